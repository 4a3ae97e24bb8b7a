//! The `interceptor` command: a shell around the library.

/// Sessions allocate and free small things all the time, on threads of their own; the system's
/// allocator gives memory back and asks for it again at each statement.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    interceptor::cli::main()
}

//! The `interceptor` command: a shell around the library.

fn main() -> std::process::ExitCode {
    interceptor::cli::main()
}

//! Developer commands. `cargo xtask help` lists them.

mod bench;
mod demo;
mod ebpf;
mod fuzz;
mod run;
mod setup;
mod steps;
mod store;
mod test;

use std::process::ExitCode;

const HELP: &str = "\
Usage: cargo xtask COMMAND

  demo [--keep]     install, build, and show the main job on real parts, checking every step;
                    --keep leaves it standing until Ctrl-C and prints how to connect by hand
  test [--quick]    install and check everything; --quick leaves out fuzzing
  bench [OPTIONS]   measure against direct connections, HAProxy and pgbouncer (--help there);
                    --micro runs the criterion benches instead
  fuzz [TARGET [SECONDS]]
                    fuzz one parser, or all of them, a minute each
  setup [GROUP..]   install what is missing (groups: build ebpf net clock postgres ssh proxies
                    deny python console npm browser; all without a name)
  build-ebpf        compile the kernel program into target/bpf/interceptor-capture.o
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(error) = fuzz::as_wrapper(&args) {
        eprintln!("xtask: {error}");
        return ExitCode::FAILURE;
    }
    let rest = args.get(1..).unwrap_or_default();
    let done = match args.first().map(String::as_str) {
        Some("demo") => demo::run(rest),
        Some("test") => test::run(rest),
        Some("bench") => bench::run(rest),
        Some("fuzz") => fuzz::command(rest),
        Some("setup") => setup::command(rest),
        Some("build-ebpf") => ebpf::build().map(drop),
        Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

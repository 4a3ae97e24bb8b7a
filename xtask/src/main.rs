//! Developer commands. `cargo xtask help` lists them.

mod ebpf;
mod run;
mod setup;

use std::process::ExitCode;

const HELP: &str = "\
Usage: cargo xtask COMMAND

  setup [GROUP..]   install what is missing (groups: build ebpf net postgres proxies deny fuzz
                    python npm; all without a name)
  build-ebpf        compile the kernel program into target/bpf/interceptor-capture.o
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let rest = args.get(1..).unwrap_or_default();
    let done = match args.first().map(String::as_str) {
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

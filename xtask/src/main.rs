//! Developer commands, without any dependency: `cargo xtask VERB`.

mod bench;
mod demo;
mod steps;
mod test;

const USAGE: &str = "\
usage: cargo xtask VERB [OPTIONS]

  demo [--keep]     install, build, and show the main job on real parts, checking every step
  test [--quick]    install and check everything
  bench [--quick]   measure against direct connections, HAProxy and pgbouncer
";

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let rest = args.get(1..).unwrap_or_default();
    let result = match args.first().map(String::as_str) {
        Some("demo") => demo::run(rest),
        Some("test") => test::run(rest),
        Some("bench") => bench::run(rest),
        _ => {
            eprint!("{USAGE}");
            return 2.into();
        }
    };
    match result {
        Ok(()) => 0.into(),
        Err(message) => {
            eprintln!("xtask: {message}");
            1.into()
        }
    }
}

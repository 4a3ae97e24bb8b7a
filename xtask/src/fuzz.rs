//! `cargo xtask fuzz`: the fuzz targets, built on what the tests are built on.
//!
//! Coverage counters are wanted in our own parsers, not in the hundreds of crates below them. So
//! this very program stands before the compiler for the workspace's crates alone
//! (`RUSTC_WORKSPACE_WRAPPER`) and adds the flags there; everything else is shared with the other
//! steps, and a build of minutes becomes one of one crate. The parsers are safe Rust, in which the
//! address sanitizer finds nothing: it is left out, and stable Rust suffices.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{Result, root, step, target};
use crate::steps::{End, Steps, cargo, passing};

/// Set for the compiler's wrapper.
const WRAPPER: &str = "INTERCEPTOR_FUZZ_WRAPPER";
/// LLVM's SanitizerCoverage as libFuzzer reads it.
const COVERAGE: [&str; 8] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "--cfg",
    "fuzzing",
];

/// `cargo xtask fuzz [TARGET [SECONDS]]`; without a target, all of them for a minute each.
pub fn command(args: &[String]) -> Result<()> {
    crate::setup::ensure(&[crate::setup::Group::Build])?;
    let known = targets()?;
    let chosen = match args.first() {
        None => known,
        Some(name) if known.contains(name) => vec![name.clone()],
        Some(name) => {
            return Err(format!("fuzz: no target {name:?}; there are {}", known.join(", ")));
        }
    };
    let seconds = match args.get(1).map(|s| s.parse::<u32>()) {
        None => 60,
        Some(Ok(seconds)) => seconds,
        Some(Err(_)) => return Err("fuzz: the second argument is a number of seconds".into()),
    };
    build(&chosen, false)?;
    let steps = Steps::default();
    run(&steps, &chosen, seconds);
    steps.finish()
}

/// The targets, by the files of `fuzz/fuzz_targets`.
///
/// # Errors
///
/// When the directory cannot be read.
pub fn targets() -> Result<Vec<String>> {
    let dir = root().join("fuzz/fuzz_targets");
    let files = std::fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut names: Vec<String> = files
        .filter_map(|file| file.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".rs").map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

/// Builds these targets; `behind` steps back whenever something else wants the processor.
///
/// # Errors
///
/// When one does not compile.
pub fn build(names: &[String], behind: bool) -> Result<()> {
    let wrapper = wrapper().map_err(|e| format!("the compiler's wrapper: {e}"))?;
    // All of the workspace is named, so that cargo chooses the features of what is shared as it
    // did for the other steps (see `demo::build`).
    let mut cargo = cargo(["build", "--workspace"]);
    for name in names {
        cargo.args(["--bin", name]);
    }
    let mut build = if behind { nice(&cargo) } else { cargo };
    build.env("RUSTC_WORKSPACE_WRAPPER", wrapper).env(WRAPPER, "1");
    passing(&mut build)
}

/// A copy of this program that no build replaces.
fn wrapper() -> std::io::Result<PathBuf> {
    let (copy, aside) = (target().join("fuzz-rustc"), target().join("fuzz-rustc.new"));
    std::fs::copy("/proc/self/exe", &aside)?;
    std::fs::rename(&aside, &copy)?;
    Ok(copy)
}

/// Runs them side by side, each a step.
pub fn run(steps: &Steps, names: &[String], seconds: u32) {
    std::thread::scope(|scope| {
        for name in names {
            scope.spawn(move || steps.step(&format!("fuzz: {name}"), || one(name, seconds)));
        }
    });
}

fn one(name: &str, seconds: u32) -> Result<End> {
    let (corpus, findings) = (root().join("fuzz/corpus").join(name), root().join("fuzz/artifacts"));
    let findings = findings.join(name);
    for dir in [&corpus, &findings] {
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    }
    let mut run = Command::new(target().join("debug").join(name));
    run.arg(format!("-max_total_time={seconds}")).args(["-rss_limit_mb=4096", "-timeout=20"]);
    run.arg(format!("-artifact_prefix={}/", findings.display())).arg(corpus);
    step(&format!("Fuzzing {name}"), &mut run)?;
    Ok(End::Ok)
}

/// The same command with the lowest priority.
fn nice(command: &Command) -> Command {
    let mut nice = Command::new("nice");
    nice.args(["-n", "19"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(name, value),
            None => nice.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        nice.current_dir(dir);
    }
    nice
}

/// Whether cargo called this program as the compiler's wrapper: then it becomes the compiler and
/// this returns only an error.
pub fn as_wrapper(args: &[String]) -> Option<String> {
    std::env::var_os(WRAPPER)?;
    let (compiler, rest) = args.split_first()?;
    if Path::new(compiler).file_stem()? != "rustc" {
        return None;
    }
    let mut rustc = Command::new(compiler);
    rustc.args(rest);
    if counted(rest) {
        rustc.args(COVERAGE);
    }
    let error = rustc.exec();
    Some(format!("{compiler}: {error}"))
}

/// Build scripts run without libFuzzer, and the questions that cargo asks name no crate.
fn counted(args: &[String]) -> bool {
    let name = args.iter().position(|a| a == "--crate-name").and_then(|at| args.get(at + 1));
    name.is_some_and(|name| name != "___" && !name.starts_with("build_script"))
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn only_code_that_is_fuzzed_is_counted() {
        let args = |name: &str| ["--crate-name", name, "src/lib.rs"].map(String::from).to_vec();
        assert!(counted(&args("interceptor")));
        assert!(!counted(&args("build_script_build")));
        assert!(!counted(&args("___")));
        assert!(!counted(&["-vV".to_owned()]));
    }
}

//! `cargo xtask demo`: the main job on real parts, from nothing.
//!
//! This part installs and builds; the story itself is told and checked by the program
//! `interceptor-demo` of the tests crate.

use crate::steps::{answers, cargo, passing, quiet, target, xtask};

/// Installs what is missing, builds, and runs the story. `--keep` leaves it standing.
pub fn run(args: &[String]) -> Result<(), String> {
    if let Some(wrong) = args.iter().find(|a| !["--keep", "--release"].contains(&a.as_str())) {
        return Err(format!("demo: unknown option {wrong:?}; there are --keep and --release"));
    }
    let release = args.iter().any(|a| a == "--release");
    eprintln!("== installing what is missing");
    passing(xtask(["setup", "build", "ebpf", "net", "postgres"])?)?;
    eprintln!("== building the kernel program and the daemon");
    quiet("building the eBPF object", xtask(["build-ebpf"])?)?;
    build(release)?;
    let program = target().join(if release { "release" } else { "debug" }).join("interceptor-demo");
    let args: Vec<&String> = args.iter().filter(|a| *a != "--release").collect();
    passing(as_root(&program.to_string_lossy(), args)?)
}

/// Builds every program of the workspace that the bed starts.
pub fn build(release: bool) -> Result<(), String> {
    let mut build = cargo(["build", "-p", "interceptor", "-p", "interceptor-tests", "--bins"]);
    if release {
        build.arg("--release");
    }
    passing(build)
}

/// The program itself as root, through sudo for those who are not.
pub fn as_root<A: AsRef<std::ffi::OsStr>>(
    program: &str,
    args: impl IntoIterator<Item = A>,
) -> Result<std::process::Command, String> {
    if is_root() {
        return Ok(crate::steps::command(program, args));
    }
    if !answers("sudo", &["--version"]) {
        return Err(
            "network namespaces and eBPF need root: run this as root, or install sudo".into()
        );
    }
    let mut sudo = crate::steps::command("sudo", ["--preserve-env=PATH,CARGO_TARGET_DIR", program]);
    sudo.args(args);
    Ok(sudo)
}

/// Whether we are root, by the owner of our own process.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

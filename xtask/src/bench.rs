//! `cargo xtask bench`: builds with optimisation and measures.
//!
//! The measuring is done by `interceptor-bench` of the tests crate, the micro benches by
//! criterion (`--micro`).

use crate::demo::{as_root, build};
use crate::steps::{cargo, passing, quiet, target, xtask};

/// All options but `--micro` go to `interceptor-bench`.
pub fn run(args: &[String]) -> Result<(), String> {
    if args.iter().any(|a| a == "--micro") {
        return passing(cargo(["bench", "-p", "interceptor", "--benches"]));
    }
    passing(xtask(["setup", "build", "ebpf", "net", "postgres", "proxies"])?)?;
    quiet("building the eBPF object", xtask(["build-ebpf"])?)?;
    build(true)?;
    let program = target().join("release/interceptor-bench");
    passing(as_root(&program.to_string_lossy(), args)?)
}

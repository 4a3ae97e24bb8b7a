//! `bench`: builds with optimisation and measures.
//!
//! The measuring is done by `interceptor-bench` of the tests crate, the micro benches by
//! criterion (`--micro`).

use crate::demo::{BED, build};
use crate::run::{Result, target};
use crate::setup::{self, Group};
use crate::steps::{as_root, cargo, passing};

/// All options but `--micro` go to `interceptor-bench`.
pub fn run(args: &[String]) -> Result<()> {
    setup::ensure(&BED)?;
    if args.iter().any(|a| a == "--micro") {
        return passing(&mut cargo(["bench", "-p", "interceptor", "--benches"]));
    }
    setup::ensure(&[Group::Proxies])?;
    crate::ebpf::build()?;
    build(true)?;
    passing(as_root(&target().join("release/interceptor-bench"))?.args(args))
}

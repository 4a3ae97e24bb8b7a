//! `demo`: the main job on real parts, from nothing.
//!
//! This part installs and builds; the story itself is told and checked by the program
//! `interceptor-demo` of the tests crate.

use crate::run::{Result, target};
use crate::setup::{self, Group};
use crate::steps::{as_root, cargo, passing};

/// What a bed needs to be built and to stand.
pub const BED: [Group; 6] =
    [Group::Build, Group::Ebpf, Group::Net, Group::Postgres, Group::Ssh, Group::Console];

/// Installs what is missing, builds, and runs the story. `--keep` leaves it standing.
pub fn run(args: &[String]) -> Result<()> {
    if let Some(wrong) = args.iter().find(|a| *a != "--keep") {
        return Err(format!("demo: unknown option {wrong:?}; there is --keep"));
    }
    setup::ensure(&BED)?;
    crate::ebpf::build()?;
    build(false)?;
    passing(as_root(&target().join("debug/interceptor-demo"))?.args(args))
}

/// The whole workspace with its tests, always: cargo unifies features over what is built together,
/// and another choice of packages would build every dependency again. The fuzz targets
/// are linked with their counters only.
pub const BUILD: &[&str] =
    &["build", "--workspace", "--exclude", "interceptor-fuzz", "--all-targets"];

/// Builds every program that a bed starts.
pub fn build(release: bool) -> Result<()> {
    println!("Building the daemon and its surroundings");
    let mut build = cargo(BUILD);
    if release {
        build =
            cargo(["build", "--release", "-p", "interceptor", "-p", "interceptor-tests", "--bins"]);
    }
    passing(&mut build)
}

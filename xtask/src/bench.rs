//! `bench`: builds with optimisation and measures.
//!
//! The measuring is done by `interceptor-bench` of the tests crate, that of taking events at a
//! collector by a bench of the daemon's crate, the micro benches by criterion (`--micro`).

use crate::demo::{BED, build};
use crate::run::{Result, target};
use crate::setup::{self, Group};
use crate::steps::{as_root, cargo, passing};

/// Taking events at the collector is a bench of the daemon's crate, under this name.
const INGEST: &str = "collector ingest";
/// Events and hosts of it: all of it, and to see whether it works.
const FULL: [&str; 2] = ["4000000", "4"];
const QUICK: [&str; 2] = ["20000", "2"];

/// All options but `--micro` go to `interceptor-bench`.
pub fn run(args: &[String]) -> Result<()> {
    setup::ensure(&BED)?;
    if args.iter().any(|a| a == "--micro") {
        return passing(&mut cargo(["bench", "-p", "interceptor", "--benches"]));
    }
    let only = only(args);
    if !only.is_some_and(|only| only.contains("ingest")) {
        setup::ensure(&[Group::Proxies])?;
        crate::ebpf::build()?;
        build(true)?;
        passing(as_root(&target().join("release/interceptor-bench"))?.args(args))?;
    }
    if only.is_none_or(|only| INGEST.contains(only)) {
        let size = if args.iter().any(|a| a == "--quick") { QUICK } else { FULL };
        let bench = ["bench", "-p", "interceptor", "--bench", "ingest", "--"];
        passing(&mut cargo(bench.into_iter().chain(size)))?;
    }
    Ok(())
}

/// What `--only` says.
fn only(args: &[String]) -> Option<&str> {
    let after = args.iter().position(|a| a == "--only").and_then(|at| args.get(at + 1));
    let joined = args.iter().find_map(|a| a.strip_prefix("--only="));
    after.map(String::as_str).or(joined)
}

#[cfg(test)]
mod tests {
    use super::only;

    #[test]
    fn the_filter_is_found_in_either_form() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(only(&words("--quick --only collector")), Some("collector"));
        assert_eq!(only(&words("--only=ssh --rounds 1")), Some("ssh"));
        assert_eq!(only(&words("--quick --only")), None);
    }
}

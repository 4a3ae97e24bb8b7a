//! `bench`: builds with optimisation and measures.
//!
//! The measuring is done by `interceptor-bench` of the tests crate, that of taking events and
//! hosts at a collector by benches of the daemon's crate, the micro benches by criterion (`--micro`).

use crate::demo::{BED, build};
use crate::run::{Result, target};
use crate::setup::{self, Group};
use crate::steps::{as_root, cargo, passing};

/// A bench of the daemon's crate: the name that `--only` knows, its own, and what it is given for
/// all of it, and to see whether it works.
struct Bench {
    name: &'static str,
    bench: &'static str,
    full: [&'static str; 2],
    quick: [&'static str; 2],
}

const BENCHES: [Bench; 2] = [
    // Events, and hosts that have them.
    Bench {
        name: "collector ingest",
        bench: "ingest",
        full: ["4000000", "4"],
        quick: ["20000", "2"],
    },
    // Hosts, and seconds.
    Bench { name: "collector fleet", bench: "fleet", full: ["2000", "60"], quick: ["50", "15"] },
];

/// All options but `--micro` go to `interceptor-bench`.
pub fn run(args: &[String]) -> Result<()> {
    setup::ensure(&BED)?;
    if args.iter().any(|a| a == "--micro") {
        return passing(&mut cargo(["bench", "-p", "interceptor", "--benches"]));
    }
    let only = only(args);
    let own = |only: &str| ["ingest", "fleet"].iter().any(|name| only.contains(name));
    if !only.is_some_and(own) {
        setup::ensure(&[Group::Proxies])?;
        crate::ebpf::build()?;
        build(true)?;
        passing(as_root(&target().join("release/interceptor-bench"))?.args(args))?;
    }
    for it in BENCHES.iter().filter(|it| only.is_none_or(|only| it.name.contains(only))) {
        let size = if args.iter().any(|a| a == "--quick") { it.quick } else { it.full };
        let bench = ["bench", "-p", "interceptor", "--bench", it.bench, "--"];
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

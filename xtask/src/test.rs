//! `cargo xtask test`: installs what is missing and checks everything.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::demo::BUILD;
use crate::fuzz;
use crate::run::{Result, find, output, root, target};
use crate::steps::{End, Steps, as_root, cargo, is_root, passing};
use crate::store::Store;

/// How long each fuzz target runs.
const FUZZ_SECONDS: u32 = 30;

/// Runs every step even when an earlier one failed, as far as it makes sense, and ends with a
/// table. `--quick` leaves out fuzzing.
pub fn run(args: &[String]) -> Result<()> {
    if let Some(wrong) = args.iter().find(|a| *a != "--quick") {
        return Err(format!("test: unknown option {wrong:?}; there is --quick"));
    }
    let quick = args.iter().any(|a| a == "--quick");
    let steps = Steps::default();
    steps.step("setup", || done(crate::setup::command(&[])));
    steps.step("format", || done(passing(&mut cargo(["fmt", "--all", "--check"]))));
    let built = steps.step("build-ebpf", || done(crate::ebpf::build().map(drop)));
    steps.step("deny", deny);
    steps.step("advisories", advisories);
    let built = built && steps.step("build", || done(passing(&mut linted(BUILD)?)));
    if built {
        steps.step("clippy", clippy);
        steps.step("policies", policies);
    }
    std::thread::scope(|scope| {
        // Tests wait a good deal, for processes and deadlines: a build that steps back whenever
        // they want the processor costs them nothing.
        let fuzzing = (built && !quick).then(|| scope.spawn(|| fuzz_build(&steps)));
        if built {
            steps.step("tests", tests);
            steps.step("collector on PostgreSQL", on_postgres);
        }
        if let Some(targets) = fuzzing.and_then(|t| t.join().ok()) {
            fuzz::run(&steps, &targets, FUZZ_SECONDS);
        }
    });
    steps.finish()
}

fn done(result: Result<()>) -> Result<End> {
    result.map(|()| End::Ok)
}

/// Cargo with clippy for a compiler: one pass over the workspace's crates finds what there is to
/// say and makes what is tested, where `cargo clippy` would read every dependency once more.
fn linted(args: &[&str]) -> Result<Command> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(root()))
        .ok_or("no rustc: install Rust with rustup")?;
    let driver = Path::new(&sysroot).join("bin/clippy-driver");
    if !driver.exists() {
        return Err("no clippy: `rustup component add clippy`".into());
    }
    let mut cargo = cargo(args);
    cargo.env("RUSTC_WORKSPACE_WRAPPER", driver);
    Ok(cargo)
}

/// Warnings are errors. Cargo keeps what the compiler said and says it again.
fn clippy() -> Result<End> {
    let mut again = linted(BUILD)?;
    let again = again.arg("--message-format=json").stderr(Stdio::null()).output();
    let again = again.map_err(|e| format!("cargo build: {e}"))?;
    if !again.status.success() {
        return Err(format!("cargo build: {}", again.status));
    }
    let said = String::from_utf8_lossy(&again.stdout)
        .lines()
        .filter(|line| line.contains(r#""reason":"compiler-message""#))
        .filter(|line| line.contains(r#""level":"warning""#))
        .count();
    if said == 0 { Ok(End::Ok) } else { Err(format!("{said} warnings: see the build above")) }
}

fn deny() -> Result<End> {
    if find("cargo-deny").is_none() {
        return Err("cargo-deny is not installed: run `cargo xtask setup`".into());
    }
    done(passing(&mut cargo(["deny", "check", "bans", "licenses", "sources"])))
}

/// The advisory database is a repository elsewhere: without it this is a visible skip.
fn advisories() -> Result<End> {
    if find("cargo-deny").is_none() {
        return Err("cargo-deny is not installed: run `cargo xtask setup`".into());
    }
    let fetched = cargo(["deny", "fetch", "db"])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("cargo deny: {e}"))?;
    if !fetched.status.success() {
        return Ok(End::Skipped("the advisory database cannot be reached".into()));
    }
    done(passing(&mut cargo(["deny", "check", "--disable-fetch", "advisories"])))
}

/// The shipped policies with their own tests.
fn policies() -> Result<End> {
    if !root().join("policies").is_dir() {
        return Ok(End::Skipped("no policies/ here".into()));
    }
    let mut test = Command::new(target().join("debug/interceptor"));
    done(passing(test.current_dir(root()).args(["policy", "test", "policies"])))
}

/// Unit and end-to-end tests in one go, with what was built. Without root the tests that need it
/// skip visibly there and are run again through sudo.
fn tests() -> Result<End> {
    let test = ["test", "--workspace", "--exclude", "interceptor-fuzz"];
    // Tests wait for processes and deadlines: some more than there are processors keep those busy.
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get() + n.get().div_ceil(2));
    let mut all = linted(&test)?;
    all.env("RUST_TEST_THREADS", threads.to_string());
    passing(all.arg("--no-fail-fast").env("RUST_BACKTRACE", "0"))?;
    if is_root() {
        return Ok(End::Ok);
    }
    let mut list = linted(&test)?;
    list.args(["--no-run", "--message-format=short"]);
    let output = list.output().map_err(|e| format!("cargo test: {e}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let mut failed = Vec::new();
    // "  Executable tests/bed.rs (target/debug/deps/bed-0123)"
    for line in text.lines().filter(|l| l.trim_start().starts_with("Executable tests/")) {
        let Some(path) = line.rsplit_once('(').and_then(|(_, p)| p.strip_suffix(')')) else {
            continue;
        };
        let program = root().join(path);
        if let Err(e) = as_root(&program).and_then(|mut test| passing(&mut test)) {
            failed.push(e);
        }
    }
    if failed.is_empty() { Ok(End::Ok) } else { Err(failed.join("\n")) }
}

/// The collector's own tests once more, with PostgreSQL in place of SQLite. Forwards read replicas
/// and are the same on both; they take long and are left out.
fn on_postgres() -> Result<End> {
    let store = Store::start()?;
    let mut test = linted(&["test", "--workspace", "--exclude", "interceptor-fuzz", "--lib"])?;
    test.args(["collector::", "--", "--skip", "forward::"]);
    test.env("INTERCEPTOR_TEST_STORE", store.url()).env("RUST_BACKTRACE", "0");
    done(passing(&mut test))
}

/// Builds every fuzz target and gives their names; none when that failed.
fn fuzz_build(steps: &Steps) -> Vec<String> {
    let names = fuzz::targets();
    let built = steps.step("fuzz: build", || match &names {
        Ok(names) => done(fuzz::build(names, true)),
        Err(e) => Err(e.clone()),
    });
    names.ok().filter(|_| built).unwrap_or_default()
}

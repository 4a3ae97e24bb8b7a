//! `setup`: installs, by name, what is missing.
//!
//! In groups, so that each command asks only for what it needs. Asking again costs a few file
//! look-ups. Debian starts some servers as it installs them; those are stopped again, since they
//! would take the ports that are to be protected.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::ebpf;
use crate::run::{Result, as_root, find, output, root, step, target};

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Compiling the daemon.
    Build,
    /// Compiling the kernel program.
    Ebpf,
    /// Network namespaces and looking into them.
    Net,
    /// A clock that tests can set.
    Clock,
    /// PostgreSQL with its clients.
    Postgres,
    /// OpenSSH's server and clients, and what runs over ssh.
    Ssh,
    /// A syslog receiver that events are forwarded to.
    Syslog,
    /// What is compared with in benchmarks.
    Proxies,
    /// `cargo deny`.
    Deny,
    /// Python clients, schemas of what is forwarded, and a server of S3, in `target/venv`.
    Python,
    /// An issuer for people and the console's terminal player, in `target/npm`.
    Console,
    /// Node clients, other versions of PostgreSQL and what looks at pages, in `target/npm`.
    Npm,
    /// A browser for the tests of the console.
    Browser,
}

const GROUPS: [(&str, Group); 13] = [
    ("build", Group::Build),
    ("ebpf", Group::Ebpf),
    ("net", Group::Net),
    ("clock", Group::Clock),
    ("postgres", Group::Postgres),
    ("ssh", Group::Ssh),
    ("syslog", Group::Syslog),
    ("proxies", Group::Proxies),
    ("deny", Group::Deny),
    ("python", Group::Python),
    ("console", Group::Console),
    ("npm", Group::Npm),
    ("browser", Group::Browser),
];

const PYTHON: [&str; 10] = [
    "psycopg[binary]>=3.2,<4",
    "psycopg2-binary==2.9.13",
    "paramiko>=5.1,<6",
    "asyncssh>=2.24,<3",
    "opentelemetry-proto>=1.45,<2",
    "ocsf-json-schema>=1.2,<2",
    "jsonschema>=4,<5",
    // A server of S3 that checks signatures.
    "moto[s3]==5.2.5",
    "flask==3.1.3",
    "flask-cors==6.0.5",
];
/// Clients whose own tests are run: directory below `target/venv/suites`, source distribution.
const SUITES: [(&str, &str); 1] = [("psycopg2", "psycopg2==2.9.13")];
/// Directory below `node_modules`, package, version.
const NPM: [(&str, &str, &str); 6] = [
    ("pg", "pg", "^8"),
    ("ssh2", "ssh2", "^1.17"),
    ("postgres-13", "@embedded-postgres/linux-ARCH", "13.23.0-beta.16"),
    ("postgres-18", "@embedded-postgres/linux-ARCH", "18.4.0-beta.17"),
    ("axe-core", "axe-core", "^4"),
    ("puppeteer-core", "puppeteer-core", "^24"),
];
/// The same for people: where they log in, and what plays a terminal in the console.
const CONSOLE: [(&str, &str, &str); 2] =
    [("oidc-provider", "oidc-provider", "9.13.3"), ("asciinema-player", "asciinema-player", "^3")];
/// Where Debian keeps the LLVM that bpf-linker is built on; rustc 1.95 has the same major.
const LLVM: &str = "/usr/lib/llvm-22";
const BPF_LINKER: &str = "^0.13";

/// `cargo xtask setup [GROUP..]`.
pub fn command(names: &[String]) -> Result<()> {
    let all: Vec<Group> = GROUPS.iter().map(|(_, g)| *g).collect();
    let chosen = names.iter().map(|n| {
        GROUPS.iter().find(|(name, _)| name == n).map(|(_, g)| *g).ok_or_else(|| {
            let known: Vec<&str> = GROUPS.iter().map(|(name, _)| *name).collect();
            format!("setup: no group {n:?}; there are {}", known.join(", "))
        })
    });
    let chosen = chosen.collect::<Result<Vec<_>>>()?;
    ensure(if chosen.is_empty() { &all } else { &chosen })?;
    println!("All is there.");
    Ok(())
}

/// Installs what is missing of these groups.
pub fn ensure(groups: &[Group]) -> Result<()> {
    packages(groups)?;
    for group in groups {
        match group {
            Group::Ebpf => ebpf_toolchain()?,
            Group::Deny => cargo_install("cargo-deny")?,
            Group::Python => python()?,
            Group::Console => npm("the console's issuer and player", &CONSOLE)?,
            Group::Npm => npm("Node clients and PostgreSQL 13 and 18", &NPM)?,
            Group::Build
            | Group::Net
            | Group::Clock
            | Group::Postgres
            | Group::Ssh
            | Group::Syslog
            | Group::Proxies
            | Group::Browser => {}
        }
    }
    Ok(())
}

/// Debian packages of a group, each with a file or program that shows it is there.
fn needs(group: Group) -> &'static [(&'static str, &'static str)] {
    match group {
        // bindgen reads the grammar's headers through libclang.
        Group::Build => &[
            ("build-essential", "cc"),
            ("pkg-config", "pkg-config"),
            ("clang", "clang"),
            ("libclang-dev", "/usr/share/doc/libclang-dev"),
        ],
        Group::Ebpf => &[
            ("build-essential", "cc"),
            ("llvm-22-dev", "/usr/lib/llvm-22/include/llvm-c/Core.h"),
            ("libpolly-22-dev", "/usr/lib/llvm-22/lib/libPolly.a"),
            ("libzstd-dev", "/usr/include/zstd.h"),
            ("zlib1g-dev", "/usr/include/zlib.h"),
        ],
        Group::Net => &[("iproute2", "ip"), ("util-linux", "nsenter")],
        Group::Clock => &[("libfaketime", "/usr/share/doc/libfaketime")],
        Group::Postgres => {
            &[("postgresql", "/usr/share/doc/postgresql"), ("postgresql-client", "psql")]
        }
        Group::Ssh => &[
            ("openssh-server", "/usr/sbin/sshd"),
            ("openssh-client", "ssh"),
            ("rsync", "rsync"),
            ("git", "git"),
        ],
        Group::Syslog => &[
            ("rsyslog", "/usr/sbin/rsyslogd"),
            ("rsyslog-openssl", "/usr/share/doc/rsyslog-openssl"),
        ],
        Group::Proxies => &[("haproxy", "haproxy"), ("pgbouncer", "pgbouncer")],
        // pip reads a source distribution's metadata by running it, and psycopg2's looks for libpq.
        Group::Python => {
            &[("python3-venv", "/usr/share/doc/python3-venv"), ("libpq-dev", "pg_config")]
        }
        Group::Console | Group::Npm => &[("nodejs", "node"), ("npm", "npm")],
        Group::Browser => {
            &[("chromium", "chromium"), ("fonts-dejavu-core", "/usr/share/fonts/truetype/dejavu")]
        }
        Group::Deny => &[],
    }
}

/// Debian packages that start a service when they are installed, and its name.
const SERVERS: [(&str, &str); 5] = [
    ("postgresql", "postgresql"),
    ("haproxy", "haproxy"),
    ("pgbouncer", "pgbouncer"),
    ("openssh-server", "ssh"),
    ("rsyslog", "rsyslog"),
];

fn packages(groups: &[Group]) -> Result<()> {
    let mut missing: Vec<&str> = groups
        .iter()
        .flat_map(|g| needs(*g))
        .filter(|(_, sign)| !is_there(sign))
        .map(|(package, _)| *package)
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if find("apt-get").is_none() {
        return Err(format!(
            "setup: install the equivalent of these Debian packages: {}",
            missing.join(" ")
        ));
    }
    println!("Installing packages: {}", missing.join(" "));
    apt("Updating the package lists", &["update"])?;
    let install = ["install", "--yes", "--no-install-recommends"];
    apt("Installing packages", &[&install[..], &missing].concat())?;
    for (_, server) in SERVERS.iter().filter(|(package, _)| missing.contains(package)) {
        stop(server);
    }
    Ok(())
}

fn is_there(sign: &str) -> bool {
    if sign.starts_with('/') { Path::new(sign).exists() } else { find(sign).is_some() }
}

fn apt(what: &str, args: &[&str]) -> Result<()> {
    // Through env, since sudo drops the variable.
    let mut command = as_root("env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"]).args(args);
    step(what, &mut command)
}

/// Stops a server that was just installed and keeps it from starting at boot. A machine without
/// an init system has nothing to stop, hence no failure here counts.
fn stop(server: &str) {
    println!("Stopping {server}, which its package started");
    output(as_root("service").args([server, "stop"]));
    if Path::new("/run/systemd/system").exists() {
        output(as_root("systemctl").args(["disable", "--now", server]));
    }
}

fn ebpf_toolchain() -> Result<()> {
    let debian = Path::new("/usr/bin/rustc");
    if !ebpf::has_source(Path::new("rustc")) && !ebpf::has_source(debian) {
        rust_source()?;
    }
    if find("bpf-linker").is_some() {
        return Ok(());
    }
    let mut install = cargo();
    install
        .args(["install", "bpf-linker", "--version", BPF_LINKER])
        .args(["--no-default-features", "--features", "llvm-22"])
        .env("LLVM_PREFIX", LLVM)
        .env("RUSTFLAGS", format!("-L native={LLVM}/lib"));
    step("Installing bpf-linker", &mut install)
}

/// The source of `core`: from rustup, else from Debian.
fn rust_source() -> Result<()> {
    let mut rustup = Command::new("rustup");
    rustup.current_dir(root()).args(["component", "add", "rust-src"]);
    let by_rustup = step("Installing rust-src", &mut rustup);
    if by_rustup.is_ok() && ebpf::has_source(Path::new("rustc")) {
        return Ok(());
    }
    println!("rustup cannot install rust-src; trying Debian's rustc-web");
    apt(
        "Installing rustc-web",
        &["install", "--yes", "--no-install-recommends", "rustc-web", "cargo-web", "rust-web-src"],
    )
    .map_err(|by_apt| {
        let by_rustup = by_rustup.err().unwrap_or_default();
        format!(
            "no source of Rust's core library, which the kernel program needs:\n\
                 {by_rustup}\n{by_apt}"
        )
    })
}

fn cargo_install(name: &str) -> Result<()> {
    if find(name).is_some() {
        return Ok(());
    }
    step(&format!("Installing {name}"), cargo().args(["install", "--locked", "--debug", name]))
}

/// Cargo outside this workspace, whose settings are not for the tools.
fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(std::env::temp_dir()).env_remove("CARGO_TARGET_DIR");
    cargo
}

fn python() -> Result<()> {
    let venv = target().join("venv");
    let suites = SUITES.map(|(_, source)| source);
    let wanted = [PYTHON.as_slice(), suites.as_slice()].concat().join("\n");
    with_stamp(&venv, &wanted, || {
        let mut make = Command::new("/usr/bin/python3");
        step("Making a Python environment", make.args(["-m", "venv"]).arg(&venv))?;
        let mut pip = pip(&venv);
        pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(PYTHON);
        step("Installing Python clients", &mut pip)?;
        SUITES.iter().try_for_each(|(name, source)| suite(&venv, name, source))
    })
}

/// pip of an environment. Its own program names the place where that was made, which is another one
/// once the directory was copied or moved.
fn pip(venv: &Path) -> Command {
    let mut pip = Command::new(venv.join("bin/python"));
    pip.args(["-m", "pip"]);
    pip
}

/// Fetches a client's source distribution, of which only the tests are used.
fn suite(venv: &Path, name: &str, source: &str) -> Result<()> {
    let dir = venv.join("suites").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut pip = pip(venv);
    pip.args(["download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--no-binary", ":all:", "--dest"]).arg(&dir).arg(source);
    step(&format!("Fetching the tests of {name}"), &mut pip)?;
    let archive = std::fs::read_dir(&dir)
        .ok()
        .and_then(|mut files| files.find_map(|f| f.ok()))
        .ok_or_else(|| format!("pip left nothing in {}", dir.display()))?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--strip-components=1", "--directory"]).arg(&dir).arg("--file");
    step(&format!("Unpacking the tests of {name}"), tar.arg(archive.path()))
}

/// Installs those packages of a list that are not there yet.
fn npm(what: &str, list: &[(&str, &str, &str)]) -> Result<()> {
    let dir = target().join("npm");
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
    let stamp = dir.join(".installed");
    let mut there = std::fs::read_to_string(&stamp).unwrap_or_default();
    let missing: Vec<String> = list
        .iter()
        .map(|(name, package, version)| {
            format!("{name}@npm:{}@{version}", package.replace("ARCH", arch))
        })
        .filter(|package| !there.lines().any(|line| line == package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--loglevel=error", "--prefix"]);
    step(&format!("Installing {what}"), npm.arg(&dir).args(&missing))?;
    if !there.is_empty() && !there.ends_with('\n') {
        there.push('\n');
    }
    there.extend(missing.iter().map(|package| format!("{package}\n")));
    std::fs::write(&stamp, there).map_err(|e| format!("{}: {e}", stamp.display()))
}

/// Does the work unless the directory says that exactly this was done.
fn with_stamp(dir: &Path, wanted: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let stamp: PathBuf = dir.join(".installed");
    if std::fs::read_to_string(&stamp).is_ok_and(|s| s == wanted) {
        return Ok(());
    }
    std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    work()?;
    std::fs::write(&stamp, wanted).map_err(|e| format!("{}: {e}", stamp.display()))
}

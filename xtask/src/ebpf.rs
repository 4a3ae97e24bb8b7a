//! `build-ebpf`: compiles the kernel program.
//!
//! `core` has to be built for the BPF target, so a compiler is needed that has the library's
//! source beside it: the toolchain in use with its `rust-src` component, else Debian's
//! `rustc-web`. bpf-linker must stand on the same major version of LLVM as that compiler.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{Result, find, output, root, step, target};
use crate::setup::{self, Group};

const TARGET: &str = "bpfel-unknown-none";
const PROGRAM: &str = "interceptor-capture";

/// A compiler that can build `core`.
struct Toolchain {
    name: &'static str,
    cargo: PathBuf,
    rustc: PathBuf,
}

/// Where the object ends up.
pub fn object() -> PathBuf {
    target().join("bpf").join(format!("{PROGRAM}.o"))
}

/// Installs what is missing, compiles, and returns the object's path.
pub fn build() -> Result<PathBuf> {
    setup::ensure(&[Group::Ebpf])?;
    let toolchain = Toolchain::choose()?;
    let linker = find("bpf-linker").ok_or("no bpf-linker: run `cargo xtask setup ebpf`")?;
    let dir = target().join("ebpf");
    let flags = [
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".into(),
        "-Cdebuginfo=2".into(),
    ];
    let mut cargo = Command::new(&toolchain.cargo);
    cargo
        .current_dir(root())
        .args(["build", "--locked", "--release", "--package", "interceptor-ebpf"])
        .args(["--bin", PROGRAM, "--features", "kernel", "--target", TARGET])
        .args(["-Zbuild-std=core", "--target-dir"])
        .arg(&dir)
        // -Z on a stable compiler: the one that everything else is built with.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort");
    // Set by the cargo that runs this very program, for its own toolchain.
    for inherited in ["RUSTFLAGS", "RUSTUP_TOOLCHAIN", "CARGO", "RUSTC_WRAPPER"] {
        if inherited != "RUSTUP_TOOLCHAIN" || toolchain.name == DEBIAN {
            cargo.env_remove(inherited);
        }
    }
    step(&format!("Compiling the kernel program with {}", toolchain.name), &mut cargo)?;
    publish(&dir.join(TARGET).join("release").join(PROGRAM))
}

/// Puts the object where the daemon's build finds it; an equal one is left alone, so that
/// nothing is built again.
fn publish(built: &Path) -> Result<PathBuf> {
    let to = object();
    let failed = |e: std::io::Error| format!("{}: {e}", to.display());
    let bytes = std::fs::read(built).map_err(|e| format!("{}: {e}", built.display()))?;
    if std::fs::read(&to).is_ok_and(|old| old == bytes) {
        println!("{} is up to date", to.display());
        return Ok(to);
    }
    if let Some(dir) = to.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let draft = to.with_extension("new");
    std::fs::write(&draft, bytes).map_err(failed)?;
    std::fs::rename(&draft, &to).map_err(failed)?;
    println!("{}", to.display());
    Ok(to)
}

const OWN: &str = "the toolchain in use";
const DEBIAN: &str = "Debian's rustc-web";

impl Toolchain {
    fn choose() -> Result<Self> {
        let own = Self {
            name: OWN,
            cargo: std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from),
            rustc: std::env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from),
        };
        let debian =
            Self { name: DEBIAN, cargo: "/usr/bin/cargo".into(), rustc: "/usr/bin/rustc".into() };
        [own, debian].into_iter().find(Self::has_source).ok_or_else(|| {
            "the kernel program needs Rust's own source beside the compiler; either\n  \
             rustup component add rust-src\nor, on Debian,\n  \
             apt-get install rustc-web cargo-web rust-web-src"
                .into()
        })
    }

    fn has_source(&self) -> bool {
        has_source(&self.rustc)
    }
}

/// Whether a compiler has the source of `core` beside it.
pub fn has_source(rustc: &Path) -> bool {
    output(Command::new(rustc).current_dir(root()).args(["--print", "sysroot"])).is_some_and(|s| {
        Path::new(&s).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
    })
}

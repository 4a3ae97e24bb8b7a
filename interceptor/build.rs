//! Puts into the binary what is there: the compiled kernel program, and the console's terminal
//! player.
//!
//! They are looked for, never made or fetched: an ordinary build needs no eBPF toolchain and no
//! npm. `cargo xtask build-ebpf` and `cargo xtask setup console` put them where this finds them.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    kernel_program();
    player();
}

fn kernel_program() {
    println!("cargo::rustc-check-cfg=cfg(embedded_object)");
    println!("cargo::rerun-if-env-changed=INTERCEPTOR_EBPF_OBJECT");
    let object = match env::var_os("INTERCEPTOR_EBPF_OBJECT") {
        Some(path) => {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "INTERCEPTOR_EBPF_OBJECT: {} is not a file", path.display());
            println!("cargo::rerun-if-changed={}", path.display());
            path
        }
        None => {
            let dir = target().join("bpf");
            // A directory that is not there would make cargo run this every time.
            fs::create_dir_all(&dir).ok();
            println!("cargo::rerun-if-changed={}", dir.display());
            dir.join("interceptor-capture.o")
        }
    };
    if object.is_file() {
        let out = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
        match fs::copy(&object, out.join("interceptor-capture.o")) {
            Ok(_) => println!("cargo::rustc-cfg=embedded_object"),
            Err(e) => println!("cargo::warning={}: {e}; not embedded", object.display()),
        }
    }
}

/// The files of asciinema-player, from `target/npm` or from `INTERCEPTOR_NPM`.
fn player() {
    println!("cargo::rustc-check-cfg=cfg(embedded_player)");
    println!("cargo::rerun-if-env-changed=INTERCEPTOR_NPM");
    let npm = env::var_os("INTERCEPTOR_NPM").map_or_else(|| target().join("npm"), PathBuf::from);
    let bundle = npm.join("node_modules/asciinema-player/dist/bundle");
    // npm writes this file at every change. One that is not there would make cargo run this
    // every time, and so would a directory.
    let packages = npm.join("node_modules/.package-lock.json");
    if packages.is_file() {
        println!("cargo::rerun-if-changed={}", packages.display());
    } else {
        fs::create_dir_all(&npm).ok();
        println!("cargo::rerun-if-changed={}", npm.display());
    }
    let out = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    let files = ["asciinema-player.min.js", "asciinema-player.css"];
    let take = |name: &&str| copy(&bundle.join(name), &out.join(name));
    if files.iter().all(take) {
        println!("cargo::rustc-cfg=embedded_player");
    }
}

fn copy(from: &Path, to: &Path) -> bool {
    from.is_file() && fs::copy(from, to).is_ok()
}

/// The build directory: the one above us that cargo has tagged, since `CARGO_TARGET_DIR` may be
/// relative to a directory that a build script is not told.
fn target() -> PathBuf {
    let out = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    out.ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file())
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from)
}

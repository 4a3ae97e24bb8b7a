//! Puts the compiled kernel program into the binary when it is there.
//!
//! It is looked for, never made: an ordinary build needs no eBPF toolchain. `cargo xtask
//! build-ebpf` writes it where this finds it.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(embedded_object)");
    println!("cargo::rerun-if-env-changed=INTERCEPTOR_EBPF_OBJECT");
    println!("cargo::rerun-if-changed=build.rs");
    let object = match env::var_os("INTERCEPTOR_EBPF_OBJECT") {
        Some(path) => {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "INTERCEPTOR_EBPF_OBJECT: {} is not a file", path.display());
            println!("cargo::rerun-if-changed={}", path.display());
            path
        }
        None => {
            println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
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

/// The build directory: the one above us that cargo has tagged, since `CARGO_TARGET_DIR` may be
/// relative to a directory that a build script is not told.
fn target() -> PathBuf {
    let out = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    out.ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file())
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from)
}

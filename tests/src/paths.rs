//! Where the parts under test are found.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The root of the repository.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).into()
}

/// The build directory, `target` unless `CARGO_TARGET_DIR` says otherwise.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => repository().join(dir),
        None => repository().join("target"),
    }
}

/// One of our own programs, taken from beside the running one (`target/debug`,
/// `target/release`), or from `INTERCEPTOR_BIN_DIR`.
pub fn program(name: &str) -> Result<PathBuf> {
    let mut places = Vec::new();
    if let Some(dir) = std::env::var_os("INTERCEPTOR_BIN_DIR") {
        places.push(PathBuf::from(dir));
    }
    if let Ok(me) = std::env::current_exe() {
        places.extend(me.ancestors().skip(1).take(2).map(Path::to_path_buf));
    }
    places.push(target().join("debug"));
    match places.iter().map(|p| p.join(name)).find(|p| p.is_file()) {
        Some(path) => Ok(path),
        None => bail!("no program {name:?} in {places:?}: run `cargo build --workspace` first"),
    }
}

/// What `cargo xtask setup` installs for Python clients: an interpreter with psycopg 3 and
/// psycopg2. `INTERCEPTOR_VENV` names another place.
pub fn python() -> Option<PathBuf> {
    let venv =
        std::env::var_os("INTERCEPTOR_VENV").map_or_else(|| target().join("venv"), PathBuf::from);
    Some(venv.join("bin/python")).filter(|p| p.exists())
}

/// The directory in which `cargo xtask setup` installs npm packages, if it is there.
/// `INTERCEPTOR_NPM` names another place.
pub fn npm() -> Option<PathBuf> {
    let npm =
        std::env::var_os("INTERCEPTOR_NPM").map_or_else(|| target().join("npm"), PathBuf::from);
    Some(npm).filter(|p| p.join("node_modules").is_dir())
}

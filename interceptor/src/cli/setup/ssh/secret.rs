//! Files that hold keys: never shown, made for the daemon's user alone.

use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use zeroize::Zeroizing;

/// The daemon's user.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    /// Its id.
    pub uid: u32,
    /// Its group's id.
    pub gid: u32,
}

/// A key that will be written.
pub struct Secret {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub text: Zeroizing<String>,
    /// Whose.
    pub owner: Owner,
    /// What it is, for people.
    pub what: &'static str,
}

impl Secret {
    /// Writes it with mode 0600. An older one is replaced; nothing is followed.
    pub fn write(&self) -> anyhow::Result<()> {
        let what = || format!("cannot write {}", self.path.display());
        let dir = self.path.parent().context("a key needs a directory")?;
        private_directory(dir, self.owner)?;
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".new.{}", std::process::id()));
        let aside = self.path.with_file_name(name);
        let _ = fs::remove_file(&aside);
        let made = (|| {
            let mut file = File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(nix::libc::O_NOFOLLOW)
                .open(&aside)?;
            fchown(&file, Some(self.owner.uid), Some(self.owner.gid))?;
            file.write_all(self.text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&aside, &self.path)
        })();
        if made.is_err() {
            let _ = fs::remove_file(&aside);
        }
        made.with_context(what)
    }

    /// Whether it stands there already, the same and the daemon's.
    pub fn stands(&self) -> bool {
        let meta = fs::symlink_metadata(&self.path);
        let same = fs::read_to_string(&self.path).is_ok_and(|t| *t == **self.text);
        same && meta
            .is_ok_and(|m| m.is_file() && m.uid() == self.owner.uid && m.mode() & 0o7777 == 0o600)
    }
}

/// Overwrites and removes a key, and the directory if that was all it held.
pub fn destroy(path: &Path) -> anyhow::Result<()> {
    let what = || format!("cannot remove {}", path.display());
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(what),
    };
    if meta.is_file() {
        let nothing = vec![0u8; usize::try_from(meta.len()).unwrap_or(0).min(64 * 1024)];
        let open = File::options().write(true).custom_flags(nix::libc::O_NOFOLLOW).open(path);
        if let Ok(mut file) = open {
            let _ = file.write_all(&nothing).and_then(|()| file.sync_all());
        }
    }
    fs::remove_file(path).with_context(what)?;
    let _ = path.parent().map(fs::remove_dir);
    Ok(())
}

/// A directory that only the daemon's user enters.
fn private_directory(dir: &Path, owner: Owner) -> anyhow::Result<()> {
    let what = || format!("cannot make {}", dir.display());
    match fs::symlink_metadata(dir) {
        Ok(meta) => {
            ensure!(
                meta.is_dir()
                    && (meta.uid() == owner.uid || meta.uid() == 0)
                    && meta.mode() & 0o022 == 0,
                "{}: is not the daemon's own directory: move it aside",
                dir.display()
            );
            Ok(())
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            if let Some(parent) = dir.parent() {
                private_directory(parent, owner)?;
            }
            DirBuilder::new().mode(0o700).create(dir).with_context(what)?;
            let made = File::open(dir).with_context(what)?;
            fchown(&made, Some(owner.uid), Some(owner.gid)).with_context(what)
        }
        Err(e) => Err(e).with_context(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn secret(path: PathBuf) -> Secret {
        let me = nix::unistd::geteuid().as_raw();
        let owner = Owner { uid: me, gid: nix::unistd::getegid().as_raw() };
        Secret { path, text: Zeroizing::new("key\n".into()), owner, what: "a key" }
    }

    #[test]
    fn a_key_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let s = secret(dir.path().join("ssh/user_ca"));
        assert!(!s.stands());
        s.write().unwrap();
        assert!(s.stands());
        let mode = |p: &Path| fs::metadata(p).unwrap().mode() & 0o7777;
        assert_eq!((mode(&s.path), mode(s.path.parent().unwrap())), (0o600, 0o700));
        fs::set_permissions(&s.path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(!s.stands());
        s.write().unwrap();
        assert!(s.stands());
        destroy(&s.path).unwrap();
        destroy(&s.path).unwrap();
        assert!(!s.path.parent().unwrap().exists());
    }

    #[test]
    fn links_and_strangers_directories_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        assert!(secret(dir.path().join("link/user_ca")).write().is_err());
        fs::set_permissions(&real, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(secret(real.join("user_ca")).write().is_err());
        fs::set_permissions(&real, fs::Permissions::from_mode(0o700)).unwrap();
        let (victim, s) = (dir.path().join("victim"), secret(real.join("user_ca")));
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &s.path).unwrap();
        s.write().unwrap();
        destroy(&s.path).unwrap();
        assert_eq!(fs::read_to_string(victim).unwrap(), "precious");
    }
}

//! Changes to files: shown as a difference, made in one step each, with the file before kept.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cli::table::safe;

/// One file as it is and as it shall be; `None` means absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The file itself, links followed.
    pub path: PathBuf,
    /// Contents now.
    pub before: Option<String>,
    /// Contents afterwards.
    pub after: Option<String>,
    /// Whether the contents before are kept beside it.
    pub backup: bool,
    /// Whether its directory, once empty, goes with it.
    pub tidy: bool,
}

impl Change {
    /// A change of a file's text by `edit`.
    pub fn edit(
        path: &Path,
        edit: impl FnOnce(&str) -> anyhow::Result<String>,
    ) -> anyhow::Result<Self> {
        let path =
            path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?;
        let before =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let after = edit(&before).with_context(|| path.display().to_string())?;
        Ok(Self { path, before: Some(before), after: Some(after), backup: true, tidy: false })
    }

    /// A file of our own that shall have these contents, or be gone.
    pub fn own(path: PathBuf, after: Option<String>) -> anyhow::Result<Self> {
        let before = match fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        Ok(Self { path, before, after, backup: false, tidy: true })
    }

    /// The same in a directory that is somebody else's and stays.
    pub fn keeping_directory(self) -> Self {
        Self { tidy: false, ..self }
    }

    /// Whether anything would change.
    pub fn is_needed(&self) -> bool {
        self.before != self.after
    }

    /// The difference in unified form.
    pub fn diff(&self) -> String {
        let (before, after) =
            (self.before.as_deref().unwrap_or(""), self.after.as_deref().unwrap_or(""));
        let name = safe(&self.path.display().to_string());
        let side = |there: bool| if there { name.clone() } else { "/dev/null".into() };
        similar::TextDiff::from_lines(before, after)
            .unified_diff()
            .context_radius(3)
            .header(&side(self.before.is_some()), &side(self.after.is_some()))
            .to_string()
    }

    fn backup_path(&self) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".interceptor-backup");
        self.path.with_file_name(name)
    }

    /// Makes the change. An existing backup is older than our first change and is kept.
    pub fn apply(&self) -> anyhow::Result<()> {
        let what = || format!("cannot change {}", self.path.display());
        if let (true, Some(before), false) =
            (self.backup, &self.before, self.backup_path().exists())
        {
            write(&self.backup_path(), before, Some(&self.path)).with_context(what)?;
        }
        match &self.after {
            Some(after) => {
                if let Some(dir) = self.path.parent() {
                    make_directories(dir).with_context(what)?;
                }
                write(&self.path, after, self.before.as_ref().map(|_| &*self.path))
            }
            None => fs::remove_file(&self.path).map(|()| {
                // A directory that only held our file.
                self.path.parent().filter(|_| self.tidy).map(fs::remove_dir);
            }),
        }
        .with_context(what)
    }

    /// Puts the contents before back.
    pub fn revert(&self) -> anyhow::Result<()> {
        let back = Self {
            before: self.after.clone(),
            after: self.before.clone(),
            backup: false,
            tidy: self.tidy,
            path: self.path.clone(),
        };
        back.apply()
    }

    /// Removes the backup when the file is again what the backup holds. Says what it did.
    pub fn settle_backup(&self) -> Option<String> {
        let backup = self.backup_path();
        let (now, kept) = (fs::read(&self.path).ok()?, fs::read(&backup).ok()?);
        if now == kept {
            fs::remove_file(&backup).ok()?;
            return None;
        }
        Some(format!(
            "{} was edited since; our lines are out, the file from before setup is kept as {}",
            self.path.display(),
            backup.display()
        ))
    }
}

/// Makes what is missing of a directory, open to readers whatever the umask: sshd reads files
/// below as the user who logs in.
fn make_directories(dir: &Path) -> std::io::Result<()> {
    if dir.exists() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        make_directories(parent)?;
    }
    fs::create_dir(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o755))
}

/// Replaces a file in one step; owner and mode are taken from `like`.
fn write(path: &Path, text: &str, like: Option<&Path>) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".interceptor-new.{}", std::process::id()));
    let aside = path.with_file_name(name);
    let _ = fs::remove_file(&aside);
    let made = (|| {
        let mut file = File::options().write(true).create_new(true).open(&aside)?;
        match like.map(fs::metadata).transpose()? {
            Some(meta) => {
                chown(&aside, Some(meta.uid()), Some(meta.gid()))?;
                file.set_permissions(Permissions::from_mode(meta.mode() & 0o7777))?;
            }
            None => file.set_permissions(Permissions::from_mode(0o644))?,
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, path)
    })();
    if made.is_err() {
        let _ = fs::remove_file(&aside);
    }
    made
}

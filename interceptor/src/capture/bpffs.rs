//! The directory of pins: mounting its file system, locking it, and making it appear whole.
//!
//! Nothing here ever mounts over a directory that holds something, and pins appear under their
//! final name by one rename, so that no reader sees half of them.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::CaptureError;

/// Checks the path and mounts a bpffs where there is none: at the nearest parent that exists.
/// Returns whether it mounted one.
pub(super) fn ensure(dir: &Path) -> Result<bool, CaptureError> {
    let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if !dir.is_absolute() || name.is_empty() || name.contains('.') {
        return Err(CaptureError::Invalid(format!(
            "{}: the directory of pins must be an absolute path whose last name has no dot",
            dir.display()
        )));
    }
    let parent = parent_of(dir);
    let base = parent.ancestors().find(|a| a.exists()).unwrap_or(Path::new("/"));
    let mounted = !is_bpffs(base)?;
    if mounted {
        mount_at(base)?;
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(parent)
        .map_err(|e| CaptureError::from_io(format!("create {}", parent.display()), e))?;
    Ok(mounted)
}

fn is_bpffs(path: &Path) -> Result<bool, CaptureError> {
    let fs = statfs(path)
        .map_err(|e| CaptureError::from_io(format!("statfs {}", path.display()), e.into()))?;
    Ok(fs.filesystem_type() == BPF_FS_MAGIC)
}

fn mount_at(base: &Path) -> Result<(), CaptureError> {
    let what = || format!("mount a bpffs at {}", base.display());
    let mut entries = base.read_dir().map_err(|e| CaptureError::from_io(what(), e))?;
    if entries.next().is_some() {
        return Err(CaptureError::Invalid(format!(
            "{} is not a bpffs and not empty, so none is mounted over it; mount one yourself \
             (`mount -t bpf bpf DIRECTORY`) or set paths.bpffs below /sys/fs/bpf",
            base.display()
        )));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME;
    mount(Some("bpf"), base, Some("bpf"), flags, Some("mode=0755"))
        .map_err(|e| CaptureError::from_io(what(), e.into()))
}

fn parent_of(dir: &Path) -> &Path {
    dir.parent().unwrap_or(Path::new("/"))
}

/// Serialises everything that changes pins below one parent. Held while the value lives.
pub(super) fn lock(dir: &Path) -> Result<Flock<File>, CaptureError> {
    let parent = parent_of(dir);
    let what = || format!("lock {}", parent.display());
    let file = File::open(parent).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => CaptureError::NotAttached { dir: dir.into() },
        _ => CaptureError::from_io(what(), e),
    })?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, e)| CaptureError::from_io(what(), e.into()))
}

/// A directory beside the final one in which pins are made. Removed unless published.
pub(super) struct Draft {
    path: PathBuf,
    published: bool,
}

impl Draft {
    /// Makes an empty one; what an interrupted attempt left behind is removed. Needs the lock.
    pub(super) fn new(dir: &Path) -> Result<Self, CaptureError> {
        let path = beside(dir, "-new");
        remove(&path)?;
        DirBuilder::new()
            .mode(0o755)
            .create(&path)
            .map_err(|e| CaptureError::from_io(format!("create {}", path.display()), e))?;
        Ok(Self { path, published: false })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the pins their final name. Pins that stood there before go away last, so that
    /// whatever they guarded stays guarded in between.
    pub(super) fn publish(mut self, dir: &Path) -> Result<(), CaptureError> {
        let old = beside(dir, "-old");
        remove(&old)?;
        let rename = |from: &Path, to: &Path| {
            std::fs::rename(from, to)
                .map_err(|e| CaptureError::from_io(format!("rename {}", from.display()), e))
        };
        if dir.exists() {
            rename(dir, &old)?;
        }
        rename(&self.path, dir)?;
        self.published = true;
        remove(&old)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published && remove(&self.path).is_err() {
            tracing::warn!(path = %self.path.display(), "could not remove a draft of pins");
        }
    }
}

fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(dir.as_os_str());
    name.push(suffix);
    name.into()
}

/// Removes a directory of pins; one that is not there is fine.
pub(super) fn remove(dir: &Path) -> Result<(), CaptureError> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(CaptureError::from_io(format!("remove {}", dir.display()), e))
        }
        _ => Ok(()),
    }
}

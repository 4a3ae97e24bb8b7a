//! Network namespaces, by inode and by file.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use super::CaptureError;

/// The namespace of this very thread (not of the process: another thread may have moved).
pub(super) const HERE: &str = "/proc/thread-self/ns/net";

/// Inode of the calling thread's network namespace.
pub(super) fn here() -> Result<u64, CaptureError> {
    inode(Path::new(HERE))
}

/// Inode of the network namespace a file stands for.
pub(super) fn inode(path: &Path) -> Result<u64, CaptureError> {
    std::fs::metadata(path)
        .map(|m| m.ino())
        .map_err(|e| CaptureError::from_io(format!("network namespace {}", path.display()), e))
}

/// Opens the namespace, the caller's own when no path is given.
pub(super) fn open(path: Option<&Path>) -> Result<File, CaptureError> {
    let path = path.unwrap_or(Path::new(HERE));
    File::open(path)
        .map_err(|e| CaptureError::from_io(format!("network namespace {}", path.display()), e))
}

/// Runs something inside the namespace: right here if this thread is in it, else on a thread of
/// its own, which takes CAP_SYS_ADMIN.
pub(super) fn within<T: Send>(
    netns: &File,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    if netns.metadata()?.ino() == std::fs::metadata(HERE)?.ino() {
        return work();
    }
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        entered.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

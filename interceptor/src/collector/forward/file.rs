//! Events as JSON lines in a file that is only appended to, and that somebody else rotates.
//!
//! Before each batch, and again after it is on disk, the name is looked at: when it leads to
//! another file than the one that is open, or to none, it is opened anew, and the batch is written
//! there. So nothing is lost in a file that was taken away or deleted under the writer. A line
//! that was cut short, by a full disk or a kill, stays a line of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::OFlag;

use super::line::Line;
use super::sink::Failure;

/// How often a file may be taken away while one batch is written.
const ATTEMPTS: usize = 5;

/// The file of one forward.
pub struct FileSink {
    path: PathBuf,
    open: Arc<Mutex<Option<File>>>,
}

impl FileSink {
    /// With this path.
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), open: Arc::default() }
    }

    /// Appends events; they are on disk afterwards.
    pub async fn send(&mut self, lines: &[Line]) -> Result<(), Failure> {
        let mut bytes = Vec::with_capacity(lines.iter().map(|l| l.text.len() + 1).sum());
        for line in lines {
            bytes.extend_from_slice(line.text.as_bytes());
            bytes.push(b'\n');
        }
        let (path, open) = (self.path.clone(), Arc::clone(&self.open));
        let done = tokio::task::spawn_blocking(move || {
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            let written = append(&path, &mut open, &bytes);
            if written.is_err() {
                // Opened anew, it is known whether a line was cut short.
                *open = None;
            }
            written.map_err(|e| Failure::new(words(&path, &e)))
        });
        done.await.unwrap_or_else(|_| Err(Failure::new("the file's writer stopped")))
    }
}

fn words(path: &Path, e: &io::Error) -> String {
    let hint = match e.kind() {
        io::ErrorKind::NotFound => "make its directory",
        io::ErrorKind::PermissionDenied => {
            "let the collector's user write there (with systemd: LogsDirectory=)"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room",
        io::ErrorKind::ReadOnlyFilesystem => {
            "name a place that the unit may write, such as below LogsDirectory="
        }
        _ => "look at the file and its directory",
    };
    format!("cannot write {}: {e}: {hint}", path.display())
}

fn append(path: &Path, open: &mut Option<File>, bytes: &[u8]) -> io::Result<()> {
    for _ in 0..ATTEMPTS {
        let file = match open.take() {
            Some(file) if is_at(&file, path)? => file,
            _ => opened(path)?,
        };
        (&file).write_all(bytes)?;
        file.sync_data()?;
        if is_at(&file, path)? {
            *open = Some(file);
            return Ok(());
        }
    }
    Err(io::Error::other("it is taken away again and again while it is written"))
}

/// Whether the name still leads to the file that is open.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (own.dev(), own.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn opened(path: &Path) -> io::Result<File> {
    // No link is followed: who may write the directory must not choose what is written.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(flags.bits())
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if metadata.len() == 0 {
        // It may be new: its name has to be on disk too.
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        return Ok(file);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    if file.read(&mut last)? == 1 && last != *b"\n" {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

//! The socket that SSH clients find by `SSH_AUTH_SOCK`: for this user alone, in a directory of
//! its own.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::geteuid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::keeper::Credential;
use super::key::AgentKey;
use super::wire::{MAX_MESSAGE, Offer, answer};

/// Most clients at a time.
const MAX_CLIENTS: usize = 128;
/// A client that has begun a message ends it, and takes its answer, within this time.
const PATIENCE: Duration = Duration::from_secs(10);
/// A client that says nothing is let go after this time.
const IDLE: Duration = Duration::from_secs(3600);

/// A listening socket; gone, with its directory, when dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// The directory that was made for it.
    own: Option<PathBuf>,
}

impl Socket {
    /// Listens at a given path, or in a new private directory below `$XDG_RUNTIME_DIR` or the
    /// directory for temporary files.
    pub fn new(path: Option<&Path>) -> io::Result<Self> {
        match path {
            Some(path) => {
                check_directory(path)?;
                // A socket that nobody serves any more is in the way; a living one is not ours.
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    let words = format!("{}: another agent answers there", path.display());
                    return Err(io::Error::new(io::ErrorKind::AddrInUse, words));
                }
                remove_socket(path);
                Self::listen(path.to_owned(), None)
            }
            None => {
                let directory = private_directory()?;
                Self::listen(directory.join("agent.sock"), Some(directory))
            }
        }
    }

    fn listen(path: PathBuf, own: Option<PathBuf>) -> io::Result<Self> {
        let fail = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let listener = UnixListener::bind(&path).map_err(fail)?;
        let socket = Self { listener, path, own };
        std::fs::set_permissions(&socket.path, PermissionsExt::from_mode(0o600))?;
        Ok(socket)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves until the future is dropped. `plain_key`: offer the key by itself as well.
    pub async fn serve(
        &self,
        key: Arc<AgentKey>,
        credential: watch::Receiver<Option<Arc<Credential>>>,
        plain_key: bool,
    ) {
        let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
                    let (key, credential) = (key.clone(), credential.clone());
                    tokio::spawn(async move {
                        let _ = client(stream, &key, &credential, plain_key).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "agent socket: accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        remove_socket(&self.path);
        if let Some(directory) = &self.own {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

async fn client(
    mut stream: UnixStream,
    key: &AgentKey,
    credential: &watch::Receiver<Option<Arc<Credential>>>,
    plain_key: bool,
) -> io::Result<()> {
    // The mode keeps others out; this holds when somebody widens it.
    let uid = stream.peer_cred()?.uid();
    if uid != geteuid().as_raw() && uid != 0 {
        return Ok(());
    }
    loop {
        let length = timeout(IDLE, stream.read_u32()).await?? as usize;
        if length == 0 || length > MAX_MESSAGE {
            return Ok(());
        }
        let mut message = vec![0; length];
        timeout(PATIENCE, stream.read_exact(&mut message)).await??;
        let now = credential.borrow().clone();
        let certificate = now.as_deref().map(|c| &c.certificate);
        let answer = answer(&message, Offer { key, certificate, plain_key });
        let mut framed = Vec::with_capacity(4 + answer.len());
        framed.extend((answer.len() as u32).to_be_bytes());
        framed.extend(answer);
        timeout(PATIENCE, stream.write_all(&framed)).await??;
    }
}

/// A new directory that nobody else can enter.
fn private_directory() -> io::Result<PathBuf> {
    use base64::Engine;
    let mut random = [0_u8; 12];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| io::Error::other("no randomness"))?;
    let name = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random);
    let base = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute() && is_private(dir))
        .unwrap_or_else(std::env::temp_dir);
    let directory = base.join(format!("interceptor-agent-{name}"));
    std::fs::DirBuilder::new().mode(0o700).create(&directory)?;
    Ok(directory)
}

fn is_private(directory: &Path) -> bool {
    std::fs::metadata(directory)
        .is_ok_and(|m| m.is_dir() && m.uid() == geteuid().as_raw() && m.mode() & 0o077 == 0)
}

/// A given path must stand where only this user can put and replace things.
fn check_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|d| !d.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let meta = std::fs::metadata(directory)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", directory.display())))?;
    if meta.uid() != geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        let words = "others can put things there: use a directory of your own, mode 0700";
        return Err(io::Error::other(format!("{}: {words}", directory.display())));
    }
    Ok(())
}

fn remove_socket(path: &Path) {
    use std::os::unix::fs::FileTypeExt;
    if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Kind;

    #[tokio::test]
    async fn a_socket_is_private_and_leaves_nothing() {
        let socket = Socket::new(None).unwrap();
        let path = socket.path().to_owned();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        drop(socket);
        assert!(!path.parent().unwrap().exists());
    }

    #[tokio::test]
    async fn a_given_path_replaces_the_dead_and_spares_the_living() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = Socket::new(Some(&path)).unwrap();
        let error = Socket::new(Some(&path)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(socket);
        assert!(!path.exists() && dir.path().exists());
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        assert!(Socket::new(Some(&path)).unwrap_err().to_string().contains("0700"));
    }

    #[tokio::test]
    async fn a_message_gets_an_answer_and_a_giant_none() {
        let dir = tempfile::tempdir().unwrap();
        let key = Arc::new(AgentKey::create(&dir.path().join("k"), Kind::P256).unwrap());
        let socket = Socket::new(None).unwrap();
        let (_keep, credential) = watch::channel(None);
        let path = socket.path().to_owned();
        let server = tokio::spawn(async move { socket.serve(key, credential, true).await });
        let mut client = UnixStream::connect(&path).await.unwrap();
        client.write_all(&[0, 0, 0, 1, 11]).await.unwrap();
        let length = client.read_u32().await.unwrap() as usize;
        let mut answer = vec![0; length];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[..5], [12, 0, 0, 0, 1]);
        client.write_all(&(MAX_MESSAGE as u32 + 1).to_be_bytes()).await.unwrap();
        assert!(client.read_u32().await.is_err());
        server.abort();
    }
}

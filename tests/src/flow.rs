//! Large streams through a client: made up as they go, hashed as they come, and watched, so
//! that one that stands still is found at once and not at the end.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::digest;

use crate::proc::Cmd;

/// Bytes of one piece.
const PIECE: usize = 1 << 20;
/// How long a stream may stand still before it counts as stalled.
pub const STALL: Duration = Duration::from_secs(20);

/// Bytes of the large transfers; `INTERCEPTOR_BULK_MIB` makes them smaller or larger.
pub fn bulk() -> u64 {
    let mib = std::env::var("INTERCEPTOR_BULK_MIB").ok().and_then(|v| v.parse().ok());
    mib.unwrap_or(1536_u64) << 20
}

/// What became of one stream.
#[derive(Debug, Clone)]
pub struct Flow {
    /// Bytes.
    pub bytes: u64,
    /// SHA-256 of them, hex.
    pub sha256: String,
    /// From start to end.
    pub took: Duration,
    /// Longest time without a byte.
    pub pause: Duration,
}

impl Flow {
    /// MiB per second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20) / self.took.as_secs_f64()
    }
}

/// Data that does not compress and repeats nowhere, the same for the same seed.
pub struct Source {
    piece: Vec<u8>,
    left: u64,
    number: u64,
}

impl Source {
    /// So many bytes.
    pub fn new(bytes: u64, seed: u64) -> Self {
        let mut state = seed | 1;
        let piece = (0..PIECE / 8).flat_map(|_| {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        Self { piece: piece.collect(), left: bytes, number: 0 }
    }

    /// The next piece, until there is none.
    #[allow(clippy::should_implement_trait, reason = "it lends what it gives")]
    pub fn next(&mut self) -> Option<&[u8]> {
        if self.left == 0 {
            return None;
        }
        self.piece[..8].copy_from_slice(&self.number.to_le_bytes());
        self.number += 1;
        let n = usize::try_from(self.left).map_or(PIECE, |left| left.min(PIECE));
        self.left -= n as u64;
        Some(&self.piece[..n])
    }

    /// Writes a file and gives back the hash of what stands in it.
    pub fn write(mut self, path: &Path) -> Result<String> {
        let mut file = std::fs::File::create(path)?;
        let mut hash = digest::Context::new(&digest::SHA256);
        while let Some(piece) = self.next() {
            hash.update(piece);
            file.write_all(piece)?;
        }
        Ok(hex(hash))
    }

    /// The BLAKE3 of it, as the record has it of a stream.
    pub fn blake3(mut self) -> String {
        let mut hash = blake3::Hasher::new();
        while let Some(piece) = self.next() {
            hash.update(piece);
        }
        hash.finalize().to_hex().to_string()
    }

    /// The hash alone.
    pub fn sha256(mut self) -> String {
        let mut hash = digest::Context::new(&digest::SHA256);
        while let Some(piece) = self.next() {
            hash.update(piece);
        }
        hex(hash)
    }
}

/// Reads a command's standard output to its end.
pub fn download(command: &Cmd) -> Result<Flow> {
    let begun = Instant::now();
    let mut child = start(command, false)?;
    let mut out = child.stdout.take().context("no output")?;
    let (mut hash, mut bytes) = (digest::Context::new(&digest::SHA256), 0);
    let pause = watched(&mut child, |moved| {
        let mut buffer = vec![0_u8; PIECE];
        loop {
            let n = out.read(&mut buffer)?;
            if n == 0 {
                return Ok(());
            }
            hash.update(&buffer[..n]);
            bytes += n as u64;
            moved.store(bytes, Ordering::Relaxed);
        }
    })?;
    ended(child, command)?;
    Ok(Flow { bytes, sha256: hex(hash), took: begun.elapsed(), pause })
}

/// Writes data to a command's standard input; gives back what it printed, too.
pub fn upload(command: &Cmd, mut source: Source) -> Result<(Flow, String)> {
    let begun = Instant::now();
    let mut child = start(command, true)?;
    let mut stdin = child.stdin.take();
    let mut out = child.stdout.take().context("no output")?;
    let answer = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = out.read_to_string(&mut text);
        text
    });
    let (mut hash, mut bytes) = (digest::Context::new(&digest::SHA256), 0);
    let pause = watched(&mut child, |moved| {
        let pipe = stdin.as_mut().context("no input")?;
        while let Some(piece) = source.next() {
            pipe.write_all(piece)?;
            hash.update(piece);
            bytes += piece.len() as u64;
            moved.store(bytes, Ordering::Relaxed);
        }
        Ok(())
    })?;
    drop(stdin);
    ended(child, command)?;
    let text = answer.join().unwrap_or_default();
    Ok((Flow { bytes, sha256: hex(hash), took: begun.elapsed(), pause }, text))
}

fn start(command: &Cmd, input: bool) -> Result<Child> {
    command
        .command()
        .stdin(if input { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("cannot start {}", command.shown()))
}

/// Moves data while somebody looks at how it moves; kills the client when it stalls.
fn watched(child: &mut Child, work: impl FnOnce(&AtomicU64) -> Result<()>) -> Result<Duration> {
    let (moved, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let (mut seen, mut since, mut longest) = (0, Instant::now(), Duration::ZERO);
            while done.load(Ordering::Relaxed) == 0 {
                std::thread::sleep(Duration::from_millis(20));
                let now = moved.load(Ordering::Relaxed);
                if now != seen {
                    (seen, since) = (now, Instant::now());
                }
                longest = longest.max(since.elapsed());
                if longest > STALL {
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                    bail!("stalled for {STALL:?} after {seen} bytes");
                }
            }
            Ok(longest)
        });
        let result = work(&moved);
        done.store(1, Ordering::Relaxed);
        let longest = watch.join().map_err(|_| anyhow::anyhow!("the watch panicked"))??;
        result.map(|()| longest)
    })
}

fn ended(mut child: Child, command: &Cmd) -> Result<()> {
    let status = child.wait()?;
    ensure!(status.success(), "{}: {status}", command.shown());
    Ok(())
}

fn hex(hash: digest::Context) -> String {
    hash.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let hash = Source::new(3_000_001, 7).write(file.path())?;
        let flow = download(&Cmd::new("cat").arg(file.path()))?;
        assert_eq!((flow.bytes, &flow.sha256), (3_000_001, &hash));
        let (sent, text) = upload(&Cmd::new("sha256sum"), Source::new(3_000_001, 7))?;
        assert!(text.starts_with(&hash) && sent.sha256 == hash);
        Ok(())
    }
}

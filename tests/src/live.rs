//! A client that is talked to while it runs: lines in, expected text out, each with a limit.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::proc::Cmd;

/// A running client with both its output streams in one place, in order of arrival.
pub struct Live {
    child: Child,
    stdin: Option<ChildStdin>,
    incoming: Receiver<Vec<u8>>,
    seen: String,
    /// Up to where earlier expectations have consumed the output.
    read: usize,
}

impl Live {
    /// Starts the client.
    pub fn start(command: &Cmd) -> Result<Self> {
        // One pipe for both streams keeps their order.
        let (mut stream, end) = std::io::pipe()?;
        let mut child = command
            .command()
            .stdin(Stdio::piped())
            .stdout(end.try_clone()?)
            .stderr(end)
            .spawn()
            .with_context(|| format!("cannot start {}", command.shown()))?;
        let (sender, incoming) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0_u8; 8192];
            while let Ok(n) = stream.read(&mut buffer) {
                if n == 0 || sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        let stdin = child.stdin.take();
        Ok(Self { child, stdin, incoming, seen: String::new(), read: 0 })
    }

    /// Types one line.
    pub fn send(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its input is closed")?;
        stdin.write_all(format!("{line}\n").as_bytes())?;
        stdin.flush()?;
        Ok(())
    }

    /// Waits until the text appears in output not yet consumed; gives back what came up to
    /// and with it.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<String> {
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = self.seen[self.read..].find(text) {
                let upto = self.read + at + text.len();
                let part = self.seen[self.read..upto].to_owned();
                self.read = upto;
                return Ok(part);
            }
            let left = end.saturating_duration_since(Instant::now());
            // One that never stops talking is no reason to listen for ever.
            match self.incoming.recv_timeout(left) {
                Ok(bytes) if !left.is_zero() => {
                    self.seen.push_str(&String::from_utf8_lossy(&bytes));
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {
                    bail!("no {text:?} within {limit:?}; so far:\n{:.4000}", self.seen)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the client ended before {text:?}; it said:\n{}", self.seen)
                }
            }
        }
    }

    /// Runs a statement in psql and gives back everything up to a marker printed
    /// after it.
    pub fn ask(&mut self, sql: &str, limit: Duration) -> Result<String> {
        const MARK: &str = "-- end of answer --";
        self.send(sql)?;
        self.send(&format!("\\echo '{MARK}'"))?;
        let answer = self.expect(MARK, limit)?;
        Ok(answer.trim_end_matches(MARK).trim_start_matches('\n').to_owned())
    }

    /// Sends a signal to the client.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)?;
        Ok(())
    }

    /// Closes its input and waits for the end; gives back everything it said.
    pub fn finish(mut self, limit: Duration) -> Result<String> {
        self.stdin.take();
        let end = Instant::now() + limit;
        loop {
            match self.incoming.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the client did not end within {limit:?}; it said:\n{}", self.seen)
                }
            }
        }
        Ok(std::mem::take(&mut self.seen))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.stdin.take();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

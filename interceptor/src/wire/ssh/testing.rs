//! Two real programs with a state machine between them, joined by pipes.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;

/// Who sent something, or is sent something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Agent,
    Server,
}

/// An agent's program, which believes that it runs `ssh`, and a server's.
pub struct Pipes {
    agent: Child,
    server: Child,
    incoming: Receiver<(Side, Vec<u8>)>,
    to_agent: Option<Sender<Bytes>>,
    to_server: Option<Sender<Bytes>>,
    errors: Option<std::process::ChildStderr>,
    _dir: tempfile::TempDir,
}

/// The first of `candidates` that is a program here.
pub fn program(candidates: &[&str]) -> Option<PathBuf> {
    candidates.iter().map(PathBuf::from).find(|path| path.exists())
}

impl Pipes {
    /// Starts `agent`, whose `-S` is put before its arguments, and `server` in `home`.
    pub fn start(agent: &str, arguments: &[&str], server: &mut Command, home: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (up, down) = (dir.path().join("up"), dir.path().join("down"));
        for fifo in [&up, &down] {
            nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let helper = dir.path().join("ssh");
        // It ends when the server does, as ssh would.
        let script = format!(
            "#!/bin/sh\nexec 3<&0\ncat <&3 > '{}' &\nexec 3<&-\ncat '{}'\nkill $! 2>/dev/null\nexit 0\n",
            up.display(),
            down.display()
        );
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();

        let mut server = server
            .current_dir(home)
            .env("HOME", home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut agent = Command::new(agent)
            .arg("-S")
            .arg(&helper)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, incoming) = channel();
        read_all(Side::Agent, move || std::fs::File::open(up).unwrap(), sender.clone());
        let output = server.stdout.take().unwrap();
        read_all(Side::Server, move || output, sender);
        let to_agent = write_all(move || std::fs::File::create(down).unwrap());
        let input = server.stdin.take().unwrap();
        let to_server = write_all(move || input);
        let errors = agent.stderr.take();
        Self {
            agent,
            server,
            incoming,
            to_agent: Some(to_agent),
            to_server: Some(to_server),
            errors,
            _dir: dir,
        }
    }

    /// What comes next; empty when that side has no more, `None` when neither has.
    pub fn recv(&mut self) -> Option<(Side, Vec<u8>)> {
        match self.incoming.recv_timeout(Duration::from_secs(30)) {
            Ok(event) => Some(event),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
            Err(e) => panic!("nothing comes: {e}"),
        }
    }

    pub fn send(&mut self, side: Side, bytes: Bytes) {
        let sender = if side == Side::Agent { &self.to_agent } else { &self.to_server };
        if let Some(sender) = sender {
            let _ = sender.send(bytes);
        }
    }

    /// No more for this side.
    pub fn close(&mut self, side: Side) {
        if side == Side::Agent { self.to_agent = None } else { self.to_server = None }
    }

    /// Waits for the agent's program: whether it was content, and what it said.
    pub fn finish(mut self) -> (bool, String) {
        self.to_agent = None;
        self.to_server = None;
        let mut said = String::new();
        self.errors.take().unwrap().read_to_string(&mut said).unwrap();
        let ok = self.agent.wait().unwrap().success();
        let _ = self.server.wait();
        (ok, said)
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        for child in [&mut self.agent, &mut self.server] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn read_all<R: Read>(
    side: Side,
    open: impl FnOnce() -> R + Send + 'static,
    sender: Sender<(Side, Vec<u8>)>,
) {
    std::thread::spawn(move || {
        let mut source = open();
        let mut buffer = vec![0; 32 << 10];
        loop {
            let n = source.read(&mut buffer).unwrap_or(0);
            if sender.send((side, buffer[..n].to_vec())).is_err() || n == 0 {
                return;
            }
        }
    });
}

fn write_all<W: Write>(open: impl FnOnce() -> W + Send + 'static) -> Sender<Bytes> {
    let (sender, receiver) = channel::<Bytes>();
    std::thread::spawn(move || {
        let mut sink = open();
        while let Ok(bytes) = receiver.recv() {
            if sink.write_all(&bytes).is_err() {
                return;
            }
        }
    });
    sender
}

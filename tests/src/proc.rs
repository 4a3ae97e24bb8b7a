//! Running programs with a deadline, and ending them by their own process id.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often a condition is looked at while waiting for it.
const POLL: Duration = Duration::from_millis(15);

/// Looks at a condition until it holds; names it when the deadline passes first.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = condition().with_context(|| format!("while waiting for {what}"))? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(POLL);
    }
}

/// A program to run, with everything that decides how it runs.
#[derive(Clone)]
pub struct Cmd {
    argv: Vec<OsString>,
    env: BTreeMap<OsString, OsString>,
    clear_env: bool,
    dir: Option<PathBuf>,
    stdin: Vec<u8>,
    limit: Duration,
}

impl Cmd {
    /// A program found on `PATH` or by its path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            argv: vec![program.as_ref().into()],
            env: BTreeMap::new(),
            clear_env: false,
            dir: None,
            stdin: Vec::new(),
            limit: Duration::from_secs(60),
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.argv.push(arg.as_ref().into());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.argv.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets one environment variable.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.insert(key.as_ref().into(), value.as_ref().into());
        self
    }

    /// Starts from an empty environment but for `PATH`.
    pub fn clear_env(mut self) -> Self {
        self.clear_env = true;
        self
    }

    /// The directory to run in.
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.dir = Some(dir.as_ref().into());
        self
    }

    /// What the program reads from its standard input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// How long it may run before it is killed.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs inside a named network namespace. `nsenter` is used because `ip netns exec`
    /// remounts `/sys`, which would hide the pins.
    pub fn in_netns(self, namespace: &str) -> Self {
        self.wrapped(["nsenter".into(), format!("--net=/run/netns/{namespace}")])
    }

    /// Runs as another operating system user and group, without further groups.
    pub fn as_user(self, user: &str, group: &str) -> Self {
        self.wrapped([
            "setpriv".into(),
            format!("--reuid={user}"),
            format!("--regid={group}"),
            "--clear-groups".into(),
        ])
    }

    /// Runs as an operating system user by number, in the group of the same number.
    pub fn as_uid(self, uid: u32) -> Self {
        self.wrapped([
            "setpriv".into(),
            format!("--reuid={uid}"),
            format!("--regid={uid}"),
            "--clear-groups".into(),
        ])
    }

    /// Runs where each file of a directory stands in place of the one of its name in `/etc`.
    pub fn with_etc(self, dir: &Path) -> Self {
        const BIND: &str = "for f in \"$1\"/*; do mount --bind \"$f\" \"/etc/${f##*/}\" || exit 126; \
                            done; shift 2; exec \"$@\"";
        let sh = ["unshare", "--mount", "--propagation=private", "sh", "-c", BIND, "etc"];
        self.wrapped(sh.map(String::from).into_iter().chain([dir.display().to_string()]))
    }

    fn wrapped(mut self, before: impl IntoIterator<Item = String>) -> Self {
        let mut argv: Vec<OsString> = before.into_iter().map(Into::into).collect();
        argv.push("--".into());
        argv.append(&mut self.argv);
        self.argv = argv;
        self
    }

    /// The command line, for messages. Environment (where tokens are) is left out.
    pub fn shown(&self) -> String {
        self.argv.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    /// The command line for a shell, every word quoted.
    pub fn quoted(&self) -> String {
        let quote =
            |word: &OsString| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"));
        self.argv.iter().map(quote).collect::<Vec<_>>().join(" ")
    }

    /// The command for the standard library, streams not yet set.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]);
        if self.clear_env {
            command.env_clear();
            if let Some(path) = std::env::var_os("PATH") {
                command.env("PATH", path);
            }
        }
        command.envs(&self.env);
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command
    }

    /// Runs to the end, or to the limit, and gives back what came out.
    pub fn run(&self) -> Result<Output> {
        let mut child = self
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.shown()))?;
        let stdin = child.stdin.take();
        let bytes = self.stdin.clone();
        // A program that ends without reading its input is no failure of ours.
        let writer = std::thread::spawn(move || {
            if let Some(mut pipe) = stdin {
                let _ = pipe.write_all(&bytes);
            }
        });
        let stdout = drain(child.stdout.take());
        let stderr = drain(child.stderr.take());
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if started.elapsed() > self.limit {
                let _ = child.kill();
                let _ = child.wait();
                bail!(
                    "{} did not end within {:?}\n--- output\n{}\n--- errors\n{}",
                    self.shown(),
                    self.limit,
                    joined(stdout),
                    joined(stderr)
                );
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        let _ = writer.join();
        let raw = stdout.join().unwrap_or_default();
        Ok(Output {
            what: self.shown(),
            code: status.code(),
            stdout: String::from_utf8_lossy(&raw).into_owned(),
            raw,
            stderr: joined(stderr),
            took: started.elapsed(),
        })
    }

    /// Runs and insists on success; the output on failure is in the error.
    pub fn ok(&self) -> Result<String> {
        self.run()?.ok()
    }

    /// Starts a program that stays, its output going to a file.
    pub fn daemonize(&self, log: &Path) -> Result<Daemon> {
        let out = File::options().create(true).append(true).open(log)?;
        let child = self
            .command()
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {}", self.shown()))?;
        Ok(Daemon { what: self.shown(), child, log: log.into(), end: Signal::SIGTERM })
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn joined(reader: std::thread::JoinHandle<Vec<u8>>) -> String {
    String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
}

/// What a program left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line.
    pub what: String,
    /// Exit status; none when a signal ended it.
    pub code: Option<i32>,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard output, byte for byte.
    pub raw: Vec<u8>,
    /// Standard error.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Output {
    /// Whether it ended with status 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// Standard output, if it ended well.
    pub fn ok(self) -> Result<String> {
        if self.success() { Ok(self.stdout) } else { bail!("{self}") }
    }

    /// Both streams, for searching.
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: status {:?}\n--- output\n{}\n--- errors\n{}",
            self.what, self.code, self.stdout, self.stderr
        )
    }
}

/// A program that stays until it is dropped.
pub struct Daemon {
    what: String,
    child: Child,
    log: PathBuf,
    end: Signal,
}

impl Daemon {
    /// The signal that asks it to end; SIGTERM unless set.
    pub fn ends_with(mut self, signal: Signal) -> Self {
        self.end = signal;
        self
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Fails with its output if it has ended.
    pub fn still_runs(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}\n{}", self.what, self.log());
        }
        Ok(())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)?;
        Ok(())
    }

    /// Asks it to end and waits; kills it when the time is over.
    pub fn stop(&mut self) {
        self.stop_with(self.end);
    }

    /// Kills it at once and waits for it to be gone.
    pub fn kill(&mut self) {
        self.stop_with(Signal::SIGKILL);
    }

    fn stop_with(&mut self, signal: Signal) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let _ = self.signal(signal);
        let ended = wait_for("end", Duration::from_secs(8), || Ok(self.child.try_wait()?));
        if ended.is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

//! Nobody is locked out: captures of port 22 in network namespaces, with a real sshd and real SSH
//! sessions. Needs root, a kernel with BPF, and openssh; says so when it cannot run.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "capture/bed.rs"]
#[allow(dead_code)]
mod bed;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bed::{AGENT_V4, Bed, HOST_V4, skip};
use interceptor::capture::{Pins, connect_exempt};

const SSHD: &str = "/usr/sbin/sshd";
const PROGRAM: &str = env!("CARGO_BIN_EXE_interceptor");

/// A host with sshd on port 22 and a service on port 5432, and an operator at the other end.
struct Host {
    bed: Bed,
    dir: tempfile::TempDir,
    sshd: Child,
}

impl Host {
    /// `None`, visibly, where it cannot be made. `exempt` are sources for SSH.
    fn new(exempt: &[&str]) -> Option<Self> {
        if skip() {
            return None;
        }
        if !Path::new(SSHD).exists() {
            bed::say_skipped("no openssh-server");
            return None;
        }
        std::fs::create_dir_all("/run/sshd").unwrap();
        let (bed, dir) = (Bed::new(), tempfile::tempdir().unwrap());
        bed.service(5432);
        let d = dir.path().display();
        for key in ["host", "operator"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-N", "", "-t", "ed25519", "-f"])
                .arg(dir.path().join(key))
                .status();
            assert!(made.unwrap().success());
        }
        let config = format!(
            "Port 22\nHostKey {d}/host\nPidFile none\nStrictModes no\nUsePAM no\n\
             AuthorizedKeysFile {d}/operator.pub\nPermitRootLogin yes\nPrintMotd no\n"
        );
        std::fs::write(dir.path().join("sshd_config"), config).unwrap();
        let sshd = bed.host.run(|| {
            let config = dir.path().join("sshd_config");
            Command::new(SSHD).arg("-D").arg("-f").arg(config).stderr(Stdio::null()).spawn()
        });
        let host = Self { bed, dir, sshd: sshd.unwrap() };
        host.configure(exempt);
        host.until("sshd listens", || host.banner());
        Some(host)
    }

    fn configure(&self, exempt: &[&str]) {
        let exempt: String = exempt
            .iter()
            .map(|source| format!("[[capture.exempt]]\nsource='{source}'\nservices=['ssh']\n"))
            .collect();
        let (d, pins) = (self.dir.path().display(), self.bed.pins.display());
        let text = format!(
            "[paths]\nstate='{d}/state'\nrun='{d}/run'\nbpffs='{pins}'\n\
             [[service]]\nname='ssh'\nprotocol='ssh'\nport=22\naudience='a'\n\
             upstream={{host='127.0.0.1',port=22}}\n\
             [[service]]\nname='db'\nprotocol='postgres'\nport=5432\naudience='b'\n\
             plaintext_loopback=true\nupstream={{socket='/x'}}\n{exempt}"
        );
        std::fs::write(self.config(), text).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("interceptor.toml")
    }

    /// Whether the agent's side reaches an SSH server on port 22.
    fn banner(&self) -> bool {
        self.bed.agent.ask(&format!("{HOST_V4}:22")).is_ok_and(|l| l.starts_with("SSH-2.0-"))
    }

    fn database(&self) -> bool {
        self.bed.agent.ask(&format!("{HOST_V4}:5432")).is_ok()
    }

    fn line(&self, verb: &str) -> String {
        format!("{PROGRAM} --config {} capture {verb} 2>&1", self.config().display())
    }

    /// Runs a verb on the host's console: by no SSH session.
    fn console(&self, verb: &str) -> (bool, String) {
        let line = self.line(verb);
        let clean =
            |c: &mut Command| -> Output { c.env_remove("SSH_CONNECTION").output().unwrap() };
        said(&self.bed.host.run(|| clean(Command::new("sh").args(["-c", &line]))))
    }

    fn ssh(&self) -> Command {
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
        command.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]);
        command.args(["-o", "ConnectTimeout=5", "-o", "IdentitiesOnly=yes", "-i"]);
        command.arg(self.dir.path().join("operator")).arg(format!("root@{HOST_V4}"));
        command
    }

    /// Runs a verb in a new SSH session of the operator's.
    fn session(&self, verb: &str) -> (bool, String) {
        let mut ssh = self.ssh();
        ssh.arg(self.line(verb));
        said(&self.bed.agent.run(|| ssh.output().unwrap()))
    }

    /// A session that stays: the first line of what each command says is read back.
    fn standing(&self) -> Session {
        let mut ssh = self.ssh();
        ssh.arg("sh").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = self.bed.agent.run(|| ssh.spawn().unwrap());
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut session = Session { child, out };
        assert_eq!(session.says("echo ready"), "ready");
        session
    }

    fn waits(&self) -> bool {
        let (_, text) = self.console("status --json");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        !json["waiting"].is_null()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("state-capture/log")).unwrap_or_default()
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}: not within 20 s");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.console("undo");
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

struct Session {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Session {
    fn says(&mut self, line: &str) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
        let mut text = String::new();
        self.out.read_line(&mut text).unwrap();
        text.trim().to_owned()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn said(out: &Output) -> (bool, String) {
    let text = [out.stdout.clone(), out.stderr.clone()].concat();
    (out.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn a_capture_that_nobody_confirms_undoes_itself_though_its_terminal_died() {
    let Some(host) = Host::new(&[]) else { return };
    // In a terminal, which hangs up when the client is killed.
    let mut ssh = host.ssh();
    ssh.args(["-tt", &format!("{}; sleep 60", host.line("attach --undo-after 4s"))]);
    ssh.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut client = host.bed.agent.run(|| ssh.spawn().unwrap());
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let waits = lines.find(|l| l.as_ref().unwrap().contains("opens again in"));
    assert!(waits.unwrap().unwrap().contains("capture confirm"));
    client.kill().unwrap();
    client.wait().unwrap();

    assert!(!host.banner() && !host.database(), "both ports are captured");
    assert!(host.waits());
    let (_, status) = host.console("status");
    assert!(status.contains("WAITS: port 22 (ssh) opens again in"), "{status}");
    assert!(!status.contains("nobody watches"), "{status}");
    host.until("port 22 opens again", || host.banner());
    assert!(!host.waits() && !host.database(), "the other port stays captured");
    let (_, status) = host.console("status --json");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["ports"].as_array().unwrap().len(), 1);
    assert!(host.log().contains("port 22 (ssh) is open again"), "{}", host.log());
    let (fine, why) = host.console("confirm");
    assert!(!fine && why.contains("is open again"), "{why}");
}

#[test]
fn an_operator_who_comes_from_an_exempt_source_captures_for_good() {
    let exempt = format!("{AGENT_V4}/32");
    let Some(host) = Host::new(&[&exempt]) else { return };
    let (fine, text) = host.session("attach --undo-after 1s");
    assert!(fine && text.contains(&format!("{AGENT_V4} is exempt and connected")), "{text}");
    assert!(!host.waits());
    std::thread::sleep(Duration::from_millis(1500));
    assert!(host.banner(), "the exempt source reaches sshd");
    let local = host.bed.host.ask("127.0.0.1:22");
    assert!(local.is_err(), "others are refused without a daemon: {local:?}");

    // It holds for the next start of the machine, when nobody is logged in.
    host.console("detach");
    let (fine, text) = host.console("attach");
    assert!(fine && !text.contains("capture confirm"), "{text}");
    assert!(!host.waits());
    // Not with another exempt source, though.
    host.configure(&["192.0.2.0/24"]);
    let (fine, text) = host.console("attach");
    assert!(fine && text.contains("gets its exempt sources back"), "{text}");
    assert!(!host.banner());
    host.console("undo");
    assert!(host.banner(), "the exempt source of before is back");
    assert!(!host.database());
}

#[test]
fn a_new_session_from_an_exempt_source_confirms() {
    let exempt = format!("{AGENT_V4}/32");
    let Some(host) = Host::new(&[&exempt]) else { return };
    // Nobody is logged in, so nothing shows that the exempt source is a way in.
    let (fine, text) = host.console("attach --undo-after 10m");
    assert!(fine && text.contains("opens again in") && host.waits(), "{text}");
    let (fine, text) = host.console("confirm");
    assert!(!fine && text.contains("no SSH session"), "{text}");
    let (fine, text) = host.session("confirm");
    assert!(
        fine && text.contains(&format!("confirmed by a new session from {AGENT_V4}")),
        "{text}"
    );
    assert!(!host.waits() && host.banner());
    assert!(host.log().contains("confirmed"), "{}", host.log());
}

#[test]
fn only_a_session_that_began_after_the_capture_confirms_it() {
    let Some(host) = Host::new(&[]) else { return };
    let mut older = host.standing();
    let (fine, text) = host.console("attach --undo-after 10m");
    assert!(fine && host.waits(), "{text}");
    let says = older.says(&host.line("confirm"));
    assert!(says.contains("older than the capture"), "{says}");
    let _daemon = Daemon::start(&host);
    let says = older.says(&host.line("confirm"));
    assert!(says.contains("older than the capture") && host.waits(), "{says}");
    let (fine, text) = host.session("confirm");
    assert!(fine && text.contains("through the daemon"), "{text}");
    assert!(!host.waits());
    // The next attach, as at boot, needs nobody.
    host.console("detach");
    let (_, text) = host.console("attach");
    assert!(!text.contains("capture confirm"), "{text}");
}

#[test]
fn who_has_a_console_may_do_without_and_that_is_logged() {
    let Some(host) = Host::new(&[]) else { return };
    let (fine, text) = host.console("attach --no-confirm");
    assert!(fine && text.contains("nothing will undo it"), "{text}");
    assert!(!host.waits() && !host.banner());
    assert!(host.log().contains("--no-confirm"), "{}", host.log());
}

#[test]
fn attaching_again_neither_prolongs_nor_ends_the_wait() {
    let Some(host) = Host::new(&[]) else { return };
    host.console("attach --undo-after 3s");
    let (_, text) = host.console("attach --undo-after 10m");
    assert!(text.contains("opens again in"), "{text}");
    host.until("port 22 opens again", || host.banner());
    assert!(!host.waits());
    // Once more, with a watch of its own.
    host.console("attach --undo-after 1s");
    host.until("port 22 opens again", || host.banner());
}

#[test]
fn nothing_is_captured_when_the_attach_fails() {
    let Some(host) = Host::new(&[]) else { return };
    let none = host.dir.path().join("none.o");
    let (fine, text) = host.console(&format!("attach --object {}", none.display()));
    assert!(!fine, "{text}");
    assert!(host.banner() && host.database() && !host.waits());
}

/// Stands for the daemon: what is steered to it goes to the host's own sshd.
struct Daemon(Option<tokio::sync::oneshot::Sender<()>>);

impl Daemon {
    fn start(host: &Host) -> Self {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (netns, pins) =
            (std::fs::File::open(host.bed.host.path()).unwrap(), host.bed.pins.clone());
        std::thread::spawn(move || {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let mut pins = Pins::open(&pins).unwrap();
                let listener = pins.serve(22).unwrap();
                let to: SocketAddr = "127.0.0.1:22".parse().unwrap();
                let pins = std::sync::Arc::new(pins);
                ready.send(()).unwrap();
                let serve = async {
                    while let Ok(mut captured) = listener.accept().await {
                        let pins = std::sync::Arc::clone(&pins);
                        tokio::spawn(async move {
                            let (mut up, _exempt) = connect_exempt(&pins, to).await.unwrap();
                            let _ =
                                tokio::io::copy_bidirectional(&mut captured.stream, &mut up).await;
                        });
                    }
                };
                tokio::select! { () = serve => {}, _ = stopped => {} }
            });
        });
        is_ready.recv().unwrap();
        Self(Some(stop))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.take().map(|s| s.send(()));
    }
}

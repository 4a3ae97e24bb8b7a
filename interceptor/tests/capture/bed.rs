//! Two network namespaces joined by a cable, a service in one, and what tests do in them.

use std::fs::{File, Permissions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use interceptor::capture::{self, AttachOptions, CaptureError, Pins};
use nix::sched::{CloneFlags, setns, unshare};

pub const HOST_V4: &str = "10.77.1.1";
pub const AGENT_V4: &str = "10.77.1.2";
pub const HOST_V6: &str = "fd77::1";
pub const AGENT_V6: &str = "fd77::2";
/// No answer on one machine takes this long; a refusal that does was not immediate.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Says visibly why nothing is tested here, or fails where that is not acceptable.
pub fn skip() -> bool {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    let Some(why) = WHY.get_or_init(cannot) else { return false };
    assert!(std::env::var_os("INTERCEPTOR_REQUIRE_BPF").is_none(), "cannot test: {why}");
    say_skipped(why);
    true
}

/// Straight to the terminal: what a passing test prints is normally not shown.
pub fn say_skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    writeln!(io::stderr(), "SKIPPED {name}: {why}").ok();
}

fn cannot() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".into());
    }
    let bed = match Bed::try_new() {
        Ok(bed) => bed,
        Err(e) => return Some(format!("network namespaces: {e}")),
    };
    match capture::attach(&bed.options(&[1])) {
        Ok(_) => None,
        Err(e @ (CaptureError::NoObject | CaptureError::Denied { .. })) => Some(e.to_string()),
        Err(e @ CaptureError::Unsupported { .. }) => Some(e.to_string()),
        // A defect, which the tests are there to show.
        Err(_) => None,
    }
}

/// One network namespace, alive as long as this file is open.
pub struct Netns(File);

impl Netns {
    fn new() -> io::Result<Self> {
        let made = std::thread::spawn(|| -> io::Result<Self> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(Self(File::open("/proc/thread-self/ns/net")?))
        });
        let netns = made.join().unwrap()?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// Runs something on a thread of its own in the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            entered.join().unwrap()
        })
    }

    /// The same with a tokio runtime, whose sockets thus belong to the namespace.
    pub fn run_async<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(work())
        })
    }

    fn ip(&self, args: &str) -> io::Result<()> {
        let out = self.run(|| Command::new("ip").args(args.split(' ')).output())?;
        if out.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("ip {args}: {}", String::from_utf8_lossy(&out.stderr))))
    }

    /// Connects and reads what the other side says first.
    pub fn ask(&self, to: &str) -> Result<String, io::ErrorKind> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(|| ask(TcpStream::connect(to), to))
    }
}

/// Reads the greeting of a connection; checks that it looks to the client as it always did.
fn ask(stream: io::Result<TcpStream>, to: SocketAddr) -> Result<String, io::ErrorKind> {
    let begun = Instant::now();
    let answer = stream.and_then(|stream| {
        assert_eq!(stream.peer_addr()?, to, "the client sees the address it connected to");
        stream.set_read_timeout(Some(AT_ONCE))?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line.trim().to_owned())
    });
    assert!(begun.elapsed() < AT_ONCE, "answered only after {:?}", begun.elapsed());
    answer.map_err(|e| e.kind())
}

/// Namespaces `host` and `agent`, and a directory for pins. Everything goes when it is dropped.
pub struct Bed {
    pub host: Netns,
    pub agent: Netns,
    pub pins: PathBuf,
    dir: tempfile::TempDir,
}

impl Bed {
    pub fn new() -> Self {
        Self::try_new().unwrap()
    }

    fn try_new() -> io::Result<Self> {
        let (host, agent) = (Netns::new()?, Netns::new()?);
        let to_agent = agent.path().display().to_string();
        host.ip(&format!("link add a0 type veth peer name h0 netns {to_agent}"))?;
        for (netns, device, v4, v6) in
            [(&host, "a0", HOST_V4, HOST_V6), (&agent, "h0", AGENT_V4, AGENT_V6)]
        {
            netns.ip(&format!("addr add {v4}/24 dev {device}"))?;
            netns.ip(&format!("addr add {v6}/64 dev {device} nodad"))?;
            netns.ip(&format!("link set {device} up"))?;
        }
        let dir = tempfile::tempdir()?;
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        std::fs::create_dir(dir.path().join("bpf"))?;
        let pins = dir.path().join("bpf/pins");
        Ok(Self { host, agent, pins, dir })
    }

    pub fn options(&self, ports: &[u16]) -> AttachOptions {
        AttachOptions {
            dir: self.pins.clone(),
            ports: ports.to_vec(),
            netns: Some(self.host.path()),
            ..AttachOptions::default()
        }
    }

    pub fn attach(&self, ports: &[u16]) -> capture::AttachReport {
        capture::attach(&self.options(ports)).unwrap()
    }

    /// Counters of one port: steered, refused, exempt, own.
    pub fn counts(&self, port: u16) -> [u64; 4] {
        let status = self.status();
        let p = status.ports.iter().find(|p| p.port == port).unwrap();
        [p.steered, p.refused, p.exempt, p.own]
    }

    /// Status as seen from within `host`.
    pub fn status(&self) -> capture::Status {
        self.host.run(|| capture::status(&self.pins).unwrap())
    }

    /// The real service: greets with `service` and keeps the connection until the client ends it.
    pub fn service(&self, port: u16) {
        let listener = self.host.run(|| TcpListener::bind(("::", port)).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    stream.write_all(b"service\n").ok();
                    std::io::copy(&mut stream, &mut std::io::sink()).ok();
                });
            }
        });
    }

    /// A daemon in `host` that tells each client what it knows of it.
    pub fn daemon(&self, ports: &[u16]) -> Daemon {
        let (ready, is_ready) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (netns, pins, ports) =
            (self.host.0.try_clone().unwrap(), self.pins.clone(), ports.to_vec());
        let thread = std::thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let serving = serve(&pins, &ports);
                ready.send(()).unwrap();
                tokio::select! { () = serving.run() => {}, _ = stopped => {} }
            });
        });
        is_ready.recv().unwrap();
        Daemon { stop: Some(stop), thread: Some(thread) }
    }

    /// The same as a process of its own, under another user when given.
    pub fn daemon_process(&self, port: u16, uid: Option<u32>) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "daemon_process", "--ignored", "--nocapture"]);
        command.env("DAEMON_PINS", &self.pins).env("DAEMON_PORT", port.to_string());
        if let Some(uid) = uid {
            command.env("DAEMON_UID", uid.to_string());
        }
        let mut child = self.host.run(|| command.stdout(Stdio::piped()).spawn().unwrap());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let serving = lines.map_while(Result::ok).any(|line| line.contains(SERVING));
        assert!(serving, "the daemon process ended before it served");
        Process(child)
    }
}

impl Bed {
    /// Attaches in a process as root with these capabilities only (`,+bpf,+net_admin`); returns
    /// the outcome, or the error.
    pub fn attach_process(&self, port: u16, owner: u32, capabilities: &str) -> String {
        let mut command = Command::new("setpriv");
        command.arg(format!("--bounding-set=-all{capabilities}")).arg("--no-new-privs");
        command.arg(std::env::current_exe().unwrap());
        command.args(["--exact", "attach_process", "--ignored", "--nocapture"]);
        command.env("DAEMON_PINS", &self.pins).env("DAEMON_PORT", port.to_string());
        command.env("DAEMON_UID", owner.to_string());
        let out = self.host.run(|| command.output().unwrap());
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let said = text.lines().find_map(|l| Some(l.split_once(ATTACHED)?.1.to_owned()));
        said.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&out.stderr)))
    }
}

const ATTACHED: &str = "attaching ended with ";

/// What the test binary does when it is started to attach.
pub fn be_attach_process() {
    let Some(pins) = std::env::var_os("DAEMON_PINS") else { return };
    let number = |name| std::env::var(name).unwrap().parse::<u32>().unwrap();
    let owner = number("DAEMON_UID");
    let options = AttachOptions {
        dir: pins.into(),
        ports: vec![number("DAEMON_PORT").try_into().unwrap()],
        owner: Some((owner, owner)),
        ..AttachOptions::default()
    };
    match capture::attach(&options) {
        Ok(report) => println!("{ATTACHED}{:?}", report.outcome),
        Err(e) => println!("{ATTACHED}{e}"),
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        capture::detach(&self.pins).ok();
        // Lazily: a process that was just forked may still hold a file of it open.
        let detach = nix::mount::MntFlags::MNT_DETACH;
        nix::mount::umount2(&self.dir.path().join("bpf"), detach).ok();
    }
}

const SERVING: &str = "the daemon process serves";

/// What the test binary does when it is started as a daemon.
pub fn be_daemon_process() {
    let Some(pins) = std::env::var_os("DAEMON_PINS") else { return };
    if let Ok(uid) = std::env::var("DAEMON_UID") {
        nix::unistd::setgroups(&[]).unwrap();
        nix::unistd::setgid(uid.parse::<u32>().unwrap().into()).unwrap();
        nix::unistd::setuid(uid.parse::<u32>().unwrap().into()).unwrap();
    }
    let port = std::env::var("DAEMON_PORT").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let serving = serve(Path::new(&pins), &[port]);
        println!("{SERVING}");
        serving.run().await;
    });
}

struct Serving(Vec<capture::Listener>);

fn serve(pins: &Path, ports: &[u16]) -> Serving {
    let mut pins = Pins::open(pins).unwrap();
    Serving(ports.iter().map(|p| pins.serve(*p).unwrap()).collect())
}

impl Serving {
    async fn run(self) {
        let mut tasks = tokio::task::JoinSet::new();
        for listener in self.0 {
            tasks.spawn(async move {
                while let Ok(c) = listener.accept().await {
                    let uid = c.peer_uid.map_or("unknown".into(), |u| u.to_string());
                    let line =
                        format!("captured {} from {} uid {uid}\n", c.original_dst, c.peer.ip());
                    let mut stream = c.stream;
                    tokio::io::AsyncWriteExt::write_all(&mut stream, line.as_bytes()).await.ok();
                }
            });
        }
        tasks.join_all().await;
    }
}

/// Ends when dropped.
pub struct Daemon {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.take().map(|s| s.send(()));
        self.thread.take().map(JoinHandle::join);
    }
}

/// A daemon that can be killed.
pub struct Process(Child);

impl Process {
    /// SIGKILL, and gone when this returns.
    pub fn kill(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

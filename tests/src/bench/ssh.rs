//! SSH beside a direct sshd: the same key exchange, the same cipher, the same files.
//!
//! Two beds stand side by side, one without the daemon and one with it. All clients are stock
//! OpenSSH on the protected host and dial 127.0.0.1; pairs are measured in turns.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::accounts::{ANALYST, DEPLOY, give, uid};
use crate::bed::{Bed, Spec};
use crate::bench::Plan;
use crate::bench::memory::resident;
use crate::flow::{Source, download, upload};
use crate::net::Place;
use crate::proc::{Cmd, wait_for};
use crate::robot::Robot;
use crate::sshkey::Certificate;
use crate::tokens::Claims;

/// The key exchange of every way: what both have, and OpenSSH 9.2 would not choose first.
const KEX: &str = "KexAlgorithms=curve25519-sha256";
/// OpenSSH's first choice, and the quickest where processors know AES.
const CIPHERS: [&str; 2] = ["chacha20-poly1305@openssh.com", "aes128-gcm@openssh.com"];
/// Connections of one sample of connecting.
const CONNECTS: usize = 15;
/// Keys of one sample of typing.
const KEYS: usize = 300;
/// How often the large file is downloaded in search of a stall.
const DOWNLOADS: u32 = 20;

/// One measurement, the same on both ways.
#[derive(Debug, Clone)]
pub struct Case {
    /// What stands in the table.
    pub name: String,
    what: What,
    cipher: &'static str,
    user: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Connect,
    Download,
    Upload,
    Get,
    Put,
    Keys,
}

/// What one case gave: one number per round, direct and through the daemon.
#[derive(Debug, Clone, Serialize)]
pub struct Pairs {
    /// The case.
    pub name: String,
    /// `ms` or `MiB/s`.
    pub unit: &'static str,
    /// Direct.
    pub direct: Vec<f64>,
    /// Through the daemon.
    pub through: Vec<f64>,
}

/// Everything that is measured of SSH.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Ssh {
    /// Pairs.
    pub pairs: Vec<Pairs>,
    /// Large downloads in search of a stall.
    pub downloads: Option<Downloads>,
    /// Idle sessions that were opened, and resident bytes that each took.
    pub idle: Option<(u32, u64)>,
}

/// Many large downloads, one after the other.
#[derive(Debug, Clone, Serialize)]
pub struct Downloads {
    /// How many.
    pub count: u32,
    /// Bytes of each.
    pub bytes: u64,
    /// MiB per second of each.
    pub rates: Vec<f64>,
    /// Longest time without a byte, in milliseconds.
    pub pause_ms: f64,
}

/// Every case.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |name: String, what, cipher, user| cases.push(Case { name, what, cipher, user });
    case("ssh connect and true".into(), What::Connect, CIPHERS[0], ANALYST);
    for cipher in CIPHERS {
        let short = cipher.split('@').next().unwrap_or(cipher);
        case(format!("ssh download {short}"), What::Download, cipher, ANALYST);
        case(format!("ssh download masked {short}"), What::Download, cipher, DEPLOY);
        case(format!("ssh upload {short}"), What::Upload, cipher, ANALYST);
    }
    case("ssh sftp get".into(), What::Get, CIPHERS[1], ANALYST);
    case("ssh sftp put".into(), What::Put, CIPHERS[1], ANALYST);
    case("ssh keystroke".into(), What::Keys, CIPHERS[0], ANALYST);
    cases
}

/// Both beds.
pub struct SshTargets {
    direct: Bed,
    ours: Bed,
    bytes: u64,
}

impl SshTargets {
    /// Builds both, each with the large file.
    pub fn build(plan: &Plan) -> Result<Self> {
        let me = Self {
            direct: Bed::with(Spec::direct_ssh())?,
            ours: Bed::with(Spec::ssh().service(|s| s.settings = "max_connections = 2000".into()))?,
            bytes: plan.ssh_bytes,
        };
        for bed in [&me.direct, &me.ours] {
            for user in [ANALYST, DEPLOY] {
                let path = large(bed, user)?;
                Source::new(me.bytes, 17).write(&path)?;
                give(&path, uid(user)?)?;
            }
        }
        Ok(me)
    }

    /// An agent on either way, with a token that outlives every measurement.
    fn agent(&self, through: bool, user: &str) -> Result<Robot> {
        let robot = if through {
            let robot = self.ours.robot(user)?;
            let claims = Claims::ssh().lasting(3500).bound(&robot.key.thumbprint()?);
            let token = self.ours.token(&claims)?;
            let validity = "-1m:+55m".into();
            robot.certified(&Certificate { validity, ..Certificate::good(user, &token) })?
        } else {
            self.direct.direct_agent(user)?
        };
        Ok(robot.from(Place::Host).host("127.0.0.1").option(KEX))
    }

    fn bed(&self, through: bool) -> &Bed {
        if through { &self.ours } else { &self.direct }
    }
}

fn large(bed: &Bed, user: &str) -> Result<PathBuf> {
    Ok(bed.sshd()?.home(user).join("large"))
}

/// Measures one case on both ways, interleaved.
pub fn measure(targets: &SshTargets, case: &Case, plan: &Plan) -> Result<Pairs> {
    let unit = match case.what {
        What::Connect | What::Keys => "ms",
        _ => "MiB/s",
    };
    let mut pairs =
        Pairs { name: case.name.clone(), unit, direct: Vec::new(), through: Vec::new() };
    for round in 1..=plan.rounds {
        for through in [false, true] {
            eprintln!(
                "  {} · {} · round {round} of {}",
                case.name,
                if through { "interceptor" } else { "direct" },
                plan.rounds
            );
            let agent =
                targets.agent(through, case.user)?.option(&format!("Ciphers={}", case.cipher));
            let one = one(targets, through, &agent, case.what).with_context(|| {
                format!("{} {}", case.name, if through { "through" } else { "direct" })
            })?;
            if through { pairs.through.push(one) } else { pairs.direct.push(one) }
        }
    }
    Ok(pairs)
}

fn one(targets: &SshTargets, through: bool, agent: &Robot, what: What) -> Result<f64> {
    let bed = targets.bed(through);
    match what {
        What::Connect => connects(bed, agent),
        What::Keys => keys(bed, agent),
        What::Download => {
            let flow = download(&bed.at(agent, agent.ssh(["cat large"])))?;
            ensure!(flow.bytes == targets.bytes, "{} bytes", flow.bytes);
            Ok(flow.rate())
        }
        What::Upload => {
            let cmd = bed.at(agent, agent.ssh(["cat > /dev/null"]));
            Ok(upload(&cmd, Source::new(targets.bytes, 19))?.0.rate())
        }
        What::Get => batch(bed, agent, "get large /dev/null\n", targets.bytes),
        What::Put => {
            let path = large(bed, &agent.user)?;
            batch(bed, agent, &format!("put {} inbox\n", path.display()), targets.bytes)
        }
    }
}

/// Median time of connecting, running `true` and leaving.
fn connects(bed: &Bed, agent: &Robot) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..CONNECTS {
        let out = bed.ssh(agent, "true")?;
        ensure!(out.success(), "{out}");
        times.push(out.took.as_secs_f64() * 1000.0);
    }
    Ok(super::report::spread(&times).0)
}

fn batch(bed: &Bed, agent: &Robot, text: &str, bytes: u64) -> Result<f64> {
    let words = agent.words();
    let cmd = agent.run("sftp").args(words).args(["-q", "-b", "-"]).arg(agent.target());
    let cmd = bed.at(agent, cmd.stdin(text)).limit(Duration::from_secs(600));
    let begun = Instant::now();
    cmd.ok()?;
    Ok(bytes as f64 / f64::from(1 << 20) / begun.elapsed().as_secs_f64())
}

/// Median round trip of a typed letter on a terminal, which its echo shows.
fn keys(bed: &Bed, agent: &Robot) -> Result<f64> {
    // Newer clients would hide when a key was typed, by waiting.
    let options =
        ["-tt", "-o", "IgnoreUnknown=ObscureKeystrokeTiming", "-o", "ObscureKeystrokeTiming=no"];
    let cmd = bed.at(agent, agent.ssh_with(&options, ["cat"]));
    let mut child = Client::start(&cmd)?;
    child.echo(b'a').context("the first echo")?;
    let mut times = Vec::new();
    for n in 0..KEYS {
        let letter = b'a' + u8::try_from(n % 26)?;
        let begun = Instant::now();
        child.echo(letter)?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        // As slowly as somebody types who types very fast.
        std::thread::sleep(Duration::from_millis(5));
        if n % 60 == 59 {
            // A line that is full would be echoed no more.
            child.echo(b'\n')?;
            child.skip(Duration::from_millis(50));
        }
    }
    Ok(super::report::spread(&times).0)
}

/// A client to which single bytes are typed.
struct Client(Child);

impl Client {
    fn start(cmd: &Cmd) -> Result<Self> {
        let mut command = cmd.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Self(command.spawn()?))
    }

    /// Types a byte and waits for it to come back.
    fn echo(&mut self, byte: u8) -> Result<()> {
        let input = self.0.stdin.as_mut().context("no input")?;
        input.write_all(&[byte])?;
        input.flush()?;
        let output = self.0.stdout.as_mut().context("no output")?;
        let mut seen = [0];
        loop {
            ensure!(output.read(&mut seen)? == 1, "the client ended");
            if seen[0] == byte {
                return Ok(());
            }
        }
    }

    /// Reads what still comes for a while.
    fn skip(&mut self, time: Duration) {
        use std::os::fd::AsFd;
        let Some(output) = self.0.stdout.as_mut() else { return };
        let end = Instant::now() + time;
        let mut bytes = [0; 4096];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(left) = u16::try_from(left.as_millis()) else { return };
            let events = nix::poll::PollFlags::POLLIN;
            let mut fds = [nix::poll::PollFd::new(output.as_fd(), events)];
            if left == 0 || nix::poll::poll(&mut fds, left).unwrap_or(0) == 0 {
                return;
            }
            if output.read(&mut bytes).unwrap_or(0) == 0 {
                return;
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Downloads the large file again and again; one that stands still for long is an error.
pub fn downloads(targets: &SshTargets, plan: &Plan) -> Result<Downloads> {
    let agent = targets.agent(true, ANALYST)?;
    let count = if plan.rounds == 1 { 2 } else { DOWNLOADS };
    let (mut rates, mut pause) = (Vec::new(), Duration::ZERO);
    for n in 1..=count {
        eprintln!("  ssh downloads · {n} of {count}");
        let flow = download(&targets.ours.at(&agent, agent.ssh(["cat large"])))?;
        ensure!(flow.bytes == targets.bytes, "{} bytes", flow.bytes);
        rates.push(flow.rate());
        pause = pause.max(flow.pause);
    }
    let pause_ms = pause.as_secs_f64() * 1000.0;
    Ok(Downloads { count, bytes: targets.bytes, rates, pause_ms })
}

/// Resident memory that an idle session takes: connected, a command running, nothing said.
pub fn idle(targets: &SshTargets, plan: &Plan) -> Result<(u32, u64)> {
    let count = plan.ssh_idle;
    let agent = targets.agent(true, ANALYST)?;
    let bed = &targets.ours;
    let pid = bed.interceptor()?.process()?.pid();
    let open = |number: u32| -> Result<Client> {
        let mut client = Client::start(&bed.at(&agent, agent.ssh(["cat"])))?;
        client.echo(b'\n').with_context(|| format!("session {number}"))?;
        Ok(client)
    };
    // The first pay for what is made once.
    drop((0..4).map(open).collect::<Result<Vec<_>>>()?);
    wait_for("the first sessions to end", Duration::from_secs(30), || {
        Ok(bed.sshd()?.connections()?.is_empty().then_some(()))
    })?;
    let before = resident(pid)?;
    let clients = (0..count).map(open).collect::<Result<Vec<_>>>()?;
    let each = resident(pid)?.saturating_sub(before) / u64::from(count.max(1));
    drop(clients);
    Ok((count, each))
}

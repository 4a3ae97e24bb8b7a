//! A PostgreSQL of its own for tests of the collector that run on either database: on a Unix
//! socket and a loopback port, in a directory that goes with it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::run::{Result, output};
use crate::steps::is_root;

/// It must answer within this time.
const SOON: Duration = Duration::from_secs(30);

/// A running server.
pub struct Store {
    process: Child,
    dir: PathBuf,
    port: u16,
}

impl Store {
    /// Debian's newest, with settings that fit tests: what a crash would lose is of no use here.
    pub fn start() -> Result<Self> {
        let bin = newest()?;
        let dir = std::env::temp_dir().join(format!("interceptor-store-{}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        if is_root() {
            ran(Command::new("chown").arg("postgres").arg(&dir))?;
        }
        let data = dir.join("data");
        let mut init = as_owner(&bin.join("initdb"));
        ran(init.args(["-A", "trust", "-U", "collector", "-D"]).arg(&data))?;
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .map_err(|e| format!("no free port: {e}"))?
            .port();
        let process = as_owner(&bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-k"])
            .arg(&dir)
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=500"])
            .args(["-c", "fsync=off"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("postgres: {e}"))?;
        let me = Self { process, dir, port };
        let until = Instant::now() + SOON;
        while !me.answers() {
            if Instant::now() > until {
                return Err("PostgreSQL does not answer".into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(me)
    }

    fn answers(&self) -> bool {
        let mut psql = Command::new("psql");
        psql.args(["-h", "127.0.0.1", "-U", "collector", "-d", "postgres", "-c", "SELECT 1"]);
        output(psql.args(["-p", &self.port.to_string()])).is_some()
    }

    /// Where it is, as the tests want it.
    pub fn url(&self) -> String {
        format!("postgresql://collector@127.0.0.1:{}", self.port)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // The process that was started is the server itself, or `setpriv` that became it.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn newest() -> Result<PathBuf> {
    let missing = "no PostgreSQL in /usr/lib/postgresql: run `cargo xtask setup`";
    let all = std::fs::read_dir("/usr/lib/postgresql").map_err(|_| missing)?;
    let bins = all.flatten().map(|e| e.path().join("bin"));
    bins.filter(|b| b.join("initdb").exists()).max().ok_or_else(|| missing.into())
}

/// PostgreSQL does not run as root.
fn as_owner(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut cmd = Command::new("setpriv");
    cmd.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"]).arg(program);
    cmd
}

fn ran(command: &mut Command) -> Result<()> {
    match output(command) {
        Some(_) => Ok(()),
        None => Err(format!("{:?} failed", command.get_program())),
    }
}

//! Setup against a real PostgreSQL 15 in a temporary directory.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Wrapper {
    #[command(flatten)]
    args: SetupArgs,
}

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// A cluster whose socket is open to everybody, as many are.
pub struct Cluster {
    dir: tempfile::TempDir,
    /// What it is a copy of, kept for the next one.
    _template: Arc<tempfile::TempDir>,
}

/// A data directory that nobody started, made once for the tests that run at a time.
fn template(owner: &nix::unistd::User) -> Arc<tempfile::TempDir> {
    static TEMPLATE: Mutex<Weak<tempfile::TempDir>> = Mutex::new(Weak::new());
    let mut kept = TEMPLATE.lock().unwrap();
    if let Some(template) = kept.upgrade() {
        return template;
    }
    let dir = Arc::new(owned(owner));
    let data = dir.path().join("data");
    postgres_user(&format!("{BIN}/initdb"), &["-D", data.to_str().unwrap(), "-A", "trust", "-N"]);
    *kept = Arc::downgrade(&dir);
    dir
}

/// A temporary directory that the server's user may write to.
fn owned(owner: &nix::unistd::User) -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("icpg").tempdir_in("/tmp").unwrap();
    std::os::unix::fs::chown(dir.path(), Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))
        .unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

fn postgres_user(program: &str, args: &[&str]) {
    let out = Command::new("setpriv")
        .args(["--reuid=postgres", "--regid=postgres", "--init-groups", program])
        .args(args)
        .current_dir("/")
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

impl Cluster {
    /// `None`, visibly, where it cannot be made.
    pub fn start() -> Option<Self> {
        let postgres = nix::unistd::User::from_name("postgres").unwrap();
        if !nix::unistd::geteuid().is_root() || postgres.is_none() || !Path::new(BIN).exists() {
            eprintln!("skipped: needs root, the user postgres and {BIN}");
            return None;
        }
        let user = postgres.unwrap();
        let template = template(&user);
        let c = Self { dir: owned(&user), _template: template };
        let from = c._template.path().join("data");
        postgres_user("cp", &["-a", from.to_str().unwrap(), c.data().to_str().unwrap()]);
        c.control("start");
        Some(c)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn control(&self, verb: &str) {
        let options = format!(
            "-c listen_addresses='' -c fsync=off -c unix_socket_directories={}",
            self.dir.path().display()
        );
        let data = self.data();
        let log = self.dir.path().join("log");
        postgres_user(
            &format!("{BIN}/pg_ctl"),
            &[
                "-D",
                data.to_str().unwrap(),
                "-w",
                "-m",
                "fast",
                "-l",
                log.to_str().unwrap(),
                "-o",
                &options,
                verb,
            ],
        );
    }

    pub(in crate::cli) fn socket(&self) -> PathBuf {
        self.server().socket()
    }

    fn server(&self) -> server::Server {
        server::Server::of_data_dir(&self.data()).unwrap()
    }

    /// Whether an OS user in the socket's group gets in as a role.
    fn lets_in(&self, user: &str, role: &str) -> bool {
        let s = self.server();
        let group = fs::metadata(s.socket()).unwrap().gid();
        s.psql(user, &[group], role, "SELECT 1").unwrap().status.success()
    }

    pub fn run(&self, more: &[&str]) -> anyhow::Result<ExitCode> {
        let data = self.data();
        let units = self.dir.path().join("units");
        let line = [
            "setup",
            "postgres",
            "--yes",
            "--daemon-user",
            "daemon",
            "--role",
            "app",
            "--role",
            "Odd Name",
            "--data-dir",
            data.to_str().unwrap(),
            "--systemd-dir",
            units.to_str().unwrap(),
            "--unit",
            "postgresql@15-main.service",
        ];
        let line = line.iter().chain(more);
        let Verb::Postgres(args) = Wrapper::try_parse_from(line).unwrap().args.verb else {
            panic!()
        };
        postgres(&args, None)
    }

    /// Every file setup may touch, byte by byte, with mode and owner.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>, u32, u32)> {
        ["data/pg_hba.conf", "data/pg_ident.conf", "data/postgresql.conf"]
            .iter()
            .map(|f| {
                let path = self.dir.path().join(f);
                let meta = fs::metadata(&path).unwrap();
                (path.clone(), fs::read(&path).unwrap(), meta.mode(), meta.uid())
            })
            .collect()
    }

    fn leftovers(&self) -> Vec<String> {
        let names = fs::read_dir(self.data()).unwrap().map(|e| e.unwrap().file_name());
        names.filter_map(|n| n.into_string().ok()).filter(|n| n.contains("interceptor")).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.data().join("postmaster.pid").exists() {
            self.control("stop");
        }
    }
}

#[test]
fn only_the_daemon_gets_in_and_undo_restores_every_byte() {
    let Some(c) = Cluster::start() else { return };
    let before = c.files();
    let mode = fs::metadata(c.server().socket()).unwrap().mode();
    assert!(c.lets_in("nobody", "postgres"), "open to everybody before");

    c.run(&["--dry-run"]).unwrap();
    assert_eq!(c.files(), before, "--dry-run changes nothing");

    c.run(&[]).unwrap();
    for (user, role, want) in [
        ("daemon", "app", true),
        ("daemon", "Odd Name", true),
        ("daemon", "postgres", false),
        ("nobody", "app", false),
        ("nobody", "postgres", false),
        ("postgres", "postgres", true),
        ("postgres", "app", false),
        ("root", "postgres", false),
    ] {
        assert_eq!(c.lets_in(user, role), want, "{user} as {role}");
    }
    let outside = c.server().psql("nobody", &[], "app", "SELECT 1").unwrap();
    assert!(String::from_utf8_lossy(&outside.stderr).contains("Permission denied"));
    let unit = c.dir.path().join("units/postgresql@15-main.service.d/50-interceptor.conf");
    let text = fs::read_to_string(&unit).unwrap();
    assert!(text.contains("Requires=interceptor-capture.service"), "{text}");
    assert!(text.contains("After=interceptor-capture.service"), "{text}");

    // It stays so over a restart of the server, and a second run finds nothing to do.
    c.control("restart");
    assert_eq!(fs::metadata(c.server().socket()).unwrap().mode() & 0o777, 0o770);
    let once = c.files();
    c.run(&[]).unwrap();
    assert_eq!(c.files(), once);
    assert_eq!(c.leftovers().len(), 3, "one backup each");

    c.run(&["--undo"]).unwrap();
    assert_eq!(c.files(), before);
    assert_eq!(fs::metadata(c.server().socket()).unwrap().mode(), mode);
    assert!(c.lets_in("nobody", "postgres"));
    assert!(!c.lets_in("postgres", "app"), "the role that setup made is gone");
    assert!(c.leftovers().is_empty(), "{:?}", c.leftovers());
    assert!(!unit.parent().unwrap().exists());
    c.run(&["--undo"]).unwrap();
    assert_eq!(c.files(), before);
}

#[test]
fn a_failed_check_puts_everything_back() {
    let Some(c) = Cluster::start() else { return };
    c.server().ask("CREATE ROLE blocked LOGIN CONNECTION LIMIT 0").unwrap();
    let before = c.files();
    let error = c.run(&["--role", "blocked"]).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("put back") && text.contains("blocked"), "{text}");
    assert_eq!(c.files(), before);
    assert!(c.lets_in("nobody", "postgres"));
}

#[test]
fn a_daemon_that_could_not_open_the_socket_is_noticed() {
    let Some(c) = Cluster::start() else { return };
    let before = c.files();
    let data = c.data();
    let alone = |more: &[&str]| {
        let mut line =
            vec!["setup", "postgres", "--yes", "--daemon-user", "daemon", "--no-systemd"];
        line.extend(["--role", "app", "--data-dir", data.to_str().unwrap()]);
        line.extend(more);
        let Verb::Postgres(args) = Wrapper::try_parse_from(line).unwrap().args.verb else {
            panic!()
        };
        postgres(&args, None)
    };
    let error = format!("{:#}", alone(&[]).unwrap_err());
    assert!(error.contains("put it into the group postgres"), "{error}");
    assert_eq!(c.files(), before);
    alone(&["--keep-socket-mode"]).unwrap();
    assert!(c.lets_in("daemon", "app") && !c.lets_in("nobody", "app"));
    alone(&["--undo"]).unwrap();
    assert_eq!(c.files(), before);
}

#[test]
fn privileged_roles_and_edited_files_are_treated_with_care() {
    let Some(c) = Cluster::start() else { return };
    c.server().ask("CREATE ROLE boss LOGIN SUPERUSER").unwrap();
    c.server().ask("CREATE ROLE runner LOGIN; GRANT pg_execute_server_program TO runner").unwrap();
    for (role, right) in [("boss", "superuser"), ("runner", "programs"), ("postgres", "superuser")]
    {
        let error = c.run(&["--role", role]).unwrap_err().to_string();
        assert!(error.contains(right) && error.contains(role), "{error}");
    }
    c.run(&[]).unwrap();
    let hba = c.data().join("pg_hba.conf");
    let mut edited = fs::read_to_string(&hba).unwrap();
    edited.push_str("host all all 192.0.2.0/24 scram-sha-256\n");
    fs::write(&hba, &edited).unwrap();
    c.run(&["--undo"]).unwrap();
    let after = fs::read_to_string(&hba).unwrap();
    assert!(after.ends_with("192.0.2.0/24 scram-sha-256\n") && !after.contains("interceptor"));
    assert_eq!(c.leftovers(), ["pg_hba.conf.interceptor-backup"], "kept, since they differ");
}

#[test]
fn the_servers_own_user_can_be_shut_out_and_undo_still_works() {
    let Some(c) = Cluster::start() else { return };
    let before = c.files();
    c.run(&["--no-admin"]).unwrap();
    assert!(!c.lets_in("postgres", "postgres") && c.lets_in("daemon", "app"));
    c.run(&["--undo"]).unwrap();
    assert_eq!(c.files(), before);
}

//! Setup against a real sshd in a temporary directory.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Child, Command, Stdio};

use clap::Parser;

use super::door::Door;
use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: SshArgs,
}

/// An sshd with a configuration of its own. Below `/var/lib`: sshd wants no directory on the way
/// that others can write.
pub struct Bed {
    dir: tempfile::TempDir,
    running: Option<Child>,
}

impl Bed {
    /// `None`, visibly, where it cannot be made.
    pub fn new(settings: &str) -> Option<Self> {
        let root = nix::unistd::geteuid().is_root();
        if !root || !Sshd::default().program.exists() {
            eprintln!("SKIPPED: needs root and openssh-server");
            return None;
        }
        fs::create_dir_all("/run/sshd").unwrap();
        let dir = tempfile::Builder::new().prefix("icssh").tempdir_in("/var/lib").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let bed = Self { dir, running: None };
        for kind in ["ed25519", "ecdsa"] {
            let key = bed.path(&format!("ssh_host_{kind}_key"));
            let made = Command::new("ssh-keygen")
                .args(["-q", "-N", "", "-t", kind, "-f"])
                .arg(&key)
                .status()
                .unwrap();
            assert!(made.success());
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let d = bed.dir.path().display();
        fs::create_dir(bed.path("sshd_config.d")).unwrap();
        bed.write(
            "sshd_config",
            &format!(
                "Include {d}/sshd_config.d/*.conf\nPort {port}\nListenAddress 127.0.0.1\n\
                 HostKey {d}/ssh_host_ed25519_key\nHostKey {d}/ssh_host_ecdsa_key\n\
                 PidFile {d}/sshd.pid\nUsePAM no\n{settings}"
            ),
        );
        bed.write(
            "interceptor.toml",
            &format!(
                "[paths]\nstate = '{d}/state'\nrun = '{d}/run'\nbpffs = '{d}/no-pins'\n\
                 [[service]]\nname = 'host-ssh'\nprotocol = 'ssh'\nport = 22\n\
                 audience = 'api://host-ssh'\nupstream = {{ host = '127.0.0.1', port = {port} }}\n"
            ),
        );
        Some(bed)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn sshd(&self) -> Sshd {
        Sshd { config: self.path("sshd_config"), ..Sshd::default() }
    }

    pub fn config(&self) -> Config {
        Config::load(&self.path("interceptor.toml")).unwrap()
    }

    pub fn start(&mut self) {
        let sshd = self.sshd();
        let child = Command::new(&sshd.program)
            .arg("-D")
            .arg("-f")
            .arg(&sshd.config)
            .stderr(Stdio::null())
            .spawn();
        self.running = Some(child.unwrap());
        let settings = sshd.settings(None).unwrap();
        while sshd.process(&settings).is_none() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    pub async fn run(&self, more: &[&str]) -> anyhow::Result<ExitCode> {
        let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let line = [
            "ssh".into(),
            "--yes".into(),
            format!("--sshd-config={}", path("sshd_config")),
            format!("--drop-in={}", path("sshd_config.d/10-interceptor.conf")),
            format!("--trust-dir={}", path("trust/ssh")),
            format!("--systemd-dir={}", path("units")),
        ];
        let named = more.iter().any(|a| a.starts_with("--daemon-user"));
        let daemon = (!named).then(|| "--daemon-user=daemon".to_owned());
        let more = more.iter().map(|a| (*a).to_owned());
        let line = line.into_iter().chain(daemon).chain(more);
        run(&Line::try_parse_from(line)?.args, &self.path("interceptor.toml")).await
    }

    /// Every file, byte by byte, with mode and owner.
    fn files(&self) -> BTreeMap<PathBuf, (Vec<u8>, u32, u32)> {
        let mut all = BTreeMap::new();
        let mut dirs = vec![self.dir.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in dir.read_dir().unwrap() {
                let path = entry.unwrap().path();
                let meta = fs::symlink_metadata(&path).unwrap();
                if meta.is_dir() {
                    dirs.push(path);
                } else {
                    let text = fs::read(&path).unwrap();
                    all.insert(path, (text, meta.mode(), meta.uid()));
                }
            }
        }
        all.remove(&self.path("sshd.pid"));
        all
    }

    async fn opens(&self, user: &str) -> bool {
        let ca = UserCa::open(&self.path("state/ssh/user_ca")).unwrap();
        let principal = "interceptor-session";
        Door { sshd: &self.sshd(), ca: &ca, principal }.opens(user).await.unwrap()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(mut child) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[tokio::test]
async fn chosen_users_are_opened_and_undo_restores_every_byte() {
    let Some(mut bed) = Bed::new("") else { return };
    bed.start();
    let before = bed.files();
    bed.run(&["--user=games", "--dry-run"]).await.unwrap();
    assert_eq!(bed.files(), before, "--dry-run changes nothing");

    bed.run(&["--user=games"]).await.unwrap();
    for (user, want) in [("games", true), ("root", false), ("nobody", false), ("daemon", false)] {
        assert_eq!(bed.opens(user).await, want, "{user}");
    }
    let key = fs::metadata(bed.path("state/ssh/user_ca")).unwrap();
    let daemon = nix::unistd::User::from_name("daemon").unwrap().unwrap();
    assert_eq!((key.mode() & 0o7777, key.uid()), (0o600, daemon.uid.as_raw()));
    let unit = fs::read_to_string(bed.path("units/interceptor.service.d/50-ssh.conf")).unwrap();
    for kind in ["ed25519", "ecdsa"] {
        let key = bed.path(&format!("ssh_host_{kind}_key"));
        let line = format!("LoadCredential=ssh_host_{kind}_key:{}\n", key.display());
        assert!(unit.contains(&line), "{unit}");
    }
    let order = fs::read_to_string(bed.path("units/ssh.service.d/50-interceptor.conf")).unwrap();
    assert!(order.contains("After=") && !order.contains("Requires="), "{order}");

    // The running server has read it, not only the one under test.
    let settings = bed.sshd().settings(None).unwrap();
    assert!(bed.sshd().process(&settings).is_some());
    let once = bed.files();
    bed.run(&[]).await.unwrap();
    assert_eq!(bed.files(), once, "a second run, with the users of the first, changes nothing");

    // Another choice of users takes the first away.
    bed.run(&["--user=news"]).await.unwrap();
    assert!(bed.opens("news").await && !bed.opens("games").await);

    bed.run(&["--undo"]).await.unwrap();
    assert_eq!(bed.files(), before);
    assert!(bed.path("sshd_config.d").is_dir(), "it is the package's");
    assert!(!bed.path("trust").exists() || bed.path("trust").read_dir().unwrap().next().is_none());
    bed.run(&["--undo"]).await.unwrap();
    assert_eq!(bed.files(), before);
}

#[tokio::test]
async fn a_door_that_stays_shut_puts_everything_back() {
    let Some(bed) = Bed::new("AllowUsers nobody\n") else { return };
    let before = bed.files();
    let error = format!("{:#}", bed.run(&["--user=games"]).await.unwrap_err());
    assert!(error.contains("put back") && error.contains("AllowUsers"), "{error}");
    assert_eq!(bed.files(), before);
}

#[tokio::test]
async fn a_match_of_the_admins_that_comes_first_is_named() {
    let Some(bed) = Bed::new("") else { return };
    let other = "Match Address 127.0.0.0/8\n  TrustedUserCAKeys none\n";
    bed.write("sshd_config.d/05-admin.conf", other);
    let before = bed.files();
    let error = format!("{:#}", bed.run(&["--user=games"]).await.unwrap_err());
    assert!(error.contains("earlier `Match` block") && error.contains("127.0.0.1"), "{error}");
    assert_eq!(bed.files(), before);
}

#[tokio::test]
async fn an_admins_own_authority_and_strict_methods_stay_for_everybody_else() {
    let strict = "TrustedUserCAKeys /etc/hosts\nAuthorizedPrincipalsFile /etc/hosts\n\
                  PubkeyAuthentication no\nAuthenticationMethods keyboard-interactive\n\
                  KbdInteractiveAuthentication yes\n";
    let Some(bed) = Bed::new(strict) else { return };
    let of = |address: &str| {
        let client = crate::cli::sshd::Client { user: "games", address: address.parse().unwrap() };
        let s = bed.sshd().settings(Some(client)).unwrap();
        ["trustedusercakeys", "authenticationmethods", "pubkeyauthentication"]
            .map(|k| s.get(k).to_owned())
    };
    let before = of("192.0.2.1");
    bed.run(&["--user=games"]).await.unwrap();
    assert!(bed.opens("games").await);
    assert_eq!(of("192.0.2.1"), before);
    assert_eq!(of("127.0.0.1")[1..], ["publickey", "yes"]);
    let once = bed.files();
    bed.run(&[]).await.unwrap();
    assert_eq!(bed.files(), once);
}

#[tokio::test]
async fn a_main_file_without_include_gets_one_and_loses_it_again() {
    let Some(bed) = Bed::new("") else { return };
    let text = fs::read_to_string(bed.path("sshd_config")).unwrap();
    let (_, rest) = text.split_once('\n').unwrap();
    bed.write("sshd_config", rest);
    let before = bed.files();
    bed.run(&["--user=games"]).await.unwrap();
    assert!(bed.opens("games").await);
    bed.run(&["--undo"]).await.unwrap();
    assert_eq!(bed.files(), before);
}

#[tokio::test]
async fn without_systemd_the_daemon_gets_copies_of_the_hosts_keys() {
    let Some(bed) = Bed::new("") else { return };
    let before = bed.files();
    bed.run(&["--user=games", "--no-systemd"]).await.unwrap();
    let copy = bed.path("state/ssh/host/ssh_host_ed25519_key");
    assert_eq!(fs::read(&copy).unwrap(), fs::read(bed.path("ssh_host_ed25519_key")).unwrap());
    assert_eq!(fs::metadata(&copy).unwrap().mode() & 0o7777, 0o600);
    assert!(!bed.path("units").exists());
    bed.run(&["--undo", "--no-systemd"]).await.unwrap();
    assert_eq!(bed.files(), before);
}

#[tokio::test]
async fn what_must_not_be_is_refused_before_anything_changes() {
    let Some(bed) = Bed::new("") else { return };
    let before = bed.files();
    for (more, want) in [
        (&["--user=root"][..], "--allow-root"),
        (&["--user=daemon"], "runs the daemon"),
        (&["--user=no-such-user"], "no user"),
        (&["--user=../x"], "cannot be the name"),
        (&[], "--user NAME"),
        (&["--user=games", "--daemon-user=no-such-user"], "no user"),
        (&["--user=games", "--service=other", "--json", "--dry-run"], ""),
    ] {
        match bed.run(more).await {
            Err(error) => {
                assert!(!want.is_empty() && format!("{error:#}").contains(want), "{error:#}")
            }
            Ok(_) => assert!(want.is_empty(), "{more:?}"),
        }
    }
    bed.write("sshd_config.d/10-interceptor.conf", "Banner none\n");
    let error = bed.run(&["--user=games"]).await.unwrap_err().to_string();
    assert!(error.contains("not ours"), "{error}");
    let error = bed.run(&["--undo"]).await.unwrap_err().to_string();
    assert!(error.contains("not ours"), "{error}");
    bed.write("sshd_config.d/10-interceptor.conf", "NoSuchKeyword yes\n");
    let error = format!("{:#}", bed.run(&["--user=games"]).await.unwrap_err());
    assert!(error.contains("mend that first") && error.contains("NoSuchKeyword"), "{error}");
    fs::remove_file(bed.path("sshd_config.d/10-interceptor.conf")).unwrap();
    assert_eq!(bed.files(), before);
}

//! What setup will do for SSH, or undo: made as a whole, shown, tried, and carried out with a way
//! back.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use zeroize::Zeroizing;

use super::door::Door;
use super::files::{self, DropIn};
use super::secret::{self, Owner, Secret};
use super::{SshArgs, Wanted};
use crate::capture;
use crate::cli::procfs;
use crate::cli::setup::block::{self, Place};
use crate::cli::setup::change::Change;
use crate::cli::setup::systemd;
use crate::cli::sshd::{Client, Settings, Sshd};
use crate::cli::table::safe;
use crate::sshd::UserCa;

/// All changes of one run.
pub struct Plan {
    args: SshArgs,
    wanted: Wanted,
    /// sshd as it is.
    now: Settings,
    secrets: Vec<Secret>,
    changes: Vec<Change>,
    /// Keys that go.
    destroy: Vec<PathBuf>,
    /// What must be so afterwards; nothing when undoing.
    check: Option<Check>,
}

struct Check {
    ca: UserCa,
    users: Vec<String>,
}

/// One change, for scripts.
#[derive(Debug, Serialize)]
pub struct Shown {
    path: PathBuf,
    diff: String,
}

/// Our files.
struct Places {
    ca: PathBuf,
    principals: PathBuf,
}

impl Places {
    fn of(args: &SshArgs) -> Self {
        let dir = &args.trust_dir;
        Self { ca: dir.join("user_ca.pub"), principals: dir.join("principals") }
    }

    /// The users who have a file of ours.
    fn users(&self) -> anyhow::Result<BTreeSet<String>> {
        let entries = match self.principals.read_dir() {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(e) => return Err(e).with_context(|| self.principals.display().to_string()),
        };
        let ours =
            |e: &fs::DirEntry| fs::read_to_string(e.path()).is_ok_and(|text| files::is_ours(&text));
        let all = entries.flatten().filter(ours);
        Ok(all.filter_map(|e| e.file_name().into_string().ok()).collect())
    }
}

impl Plan {
    /// The plan that lets sshd trust the daemon.
    pub fn make(args: &SshArgs, wanted: Wanted) -> anyhow::Result<Self> {
        let places = Places::of(args);
        let users = users(args, &places)?;
        let owner = daemon(args)?;
        args.sshd.check().context("mend that first")?;
        let now = args.sshd.settings(None)?;
        let mut secrets = Vec::new();
        let ca = authority(&wanted, owner, &mut secrets)?;
        let mut changes = vec![Change::own(places.ca.clone(), Some(ca.public_line() + "\n"))?];
        let known = places.users()?;
        for user in users.iter().chain(known.difference(&users)) {
            let wants = users.contains(user).then(|| files::principals(&wanted.ssh.principal));
            changes.push(Change::own(places.principals.join(user), wants)?);
        }
        changes.push(drop_in(args, &places, &now)?);
        if !args.sshd.includes(&args.drop_in)? {
            changes.push(Change::edit(&args.sshd.config, |f| {
                block::put(f, &format!("Include {}", args.drop_in.display()), Place::Top)
            })?);
        }
        let keys = host_keys(&wanted, &now);
        ensure!(!keys.is_empty(), "sshd has no host key that could be handed on: ssh-keygen -A");
        if args.no_systemd {
            for key in &keys {
                secrets.push(copy(key, &wanted, owner)?);
            }
        }
        changes.extend(units(args, &now, &keys, true)?);
        ensure_ours(&changes, &places)?;
        secrets.retain(|s| !s.stands());
        changes.retain(Change::is_needed);
        let check = Some(Check { ca, users: users.into_iter().collect() });
        Ok(Self { args: args.clone(), wanted, now, secrets, changes, destroy: Vec::new(), check })
    }

    /// The plan that takes everything back.
    pub fn undo(args: &SshArgs, wanted: Wanted) -> anyhow::Result<Self> {
        let captured = capture::before(&wanted.paths.bpffs, &[wanted.port]);
        if captured.is_ok_and(|b| b.iter().any(|b| b.exempt.is_some())) {
            bail!(
                "port {port} is captured, and without this nobody would get in through the daemon: \
                 take the service {:?} out of the configuration and run `interceptor capture attach`, \
                 or run `interceptor capture detach`; then undo",
                wanted.name,
                port = wanted.port
            );
        }
        let places = Places::of(args);
        // A configuration that sshd refuses shall not keep ours in it.
        let now = args.sshd.settings(None).unwrap_or_default();
        let mut changes = vec![Change::own(args.drop_in.clone(), None)?.keeping_directory()];
        changes.push(Change::edit(&args.sshd.config, block::take_out)?);
        for user in places.users()? {
            changes.push(Change::own(places.principals.join(user), None)?);
        }
        let destroy = keys_of_ours(&wanted, &places);
        changes.push(Change::own(places.ca.clone(), None)?);
        changes.extend(units(args, &now, &[], false)?);
        ensure_ours(&changes, &places)?;
        changes.retain(Change::is_needed);
        let (args, secrets) = (args.clone(), Vec::new());
        Ok(Self { args, wanted, now, secrets, changes, destroy, check: None })
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.secrets.is_empty() && self.destroy.is_empty()
    }

    /// Every file that changes.
    pub fn shown(&self) -> Vec<Shown> {
        let key = |path: &Path, what: &str| Shown { path: path.into(), diff: what.into() };
        let written = self.secrets.iter().map(|s| key(&s.path, s.what));
        let gone = self.destroy.iter().map(|p| key(p, "the key is destroyed"));
        let changes = self.changes.iter().map(|c| key(&c.path, &c.diff()));
        written.chain(changes).chain(gone).collect()
    }

    /// Everything that will be done, for people.
    pub fn describe(&self) -> String {
        if self.is_empty() {
            return match self.check {
                Some(_) => "everything is set up already: nothing to do\n".into(),
                None => "nothing of setup is there: nothing to undo\n".into(),
            };
        }
        let mut out = String::new();
        for s in &self.secrets {
            let _ = writeln!(
                out,
                "write {} (mode 0600, for {}): {}",
                safe(&s.path.display().to_string()),
                self.args.daemon_user,
                s.what
            );
        }
        for change in &self.changes {
            let _ = writeln!(out, "{}", change.diff());
        }
        for path in &self.destroy {
            let _ = writeln!(out, "destroy {}", safe(&path.display().to_string()));
        }
        out.push_str("check with sshd -t");
        if let Some(check) = &self.check {
            let _ = write!(out, ", try a login as {}", check.users.join(", "));
        }
        out.push_str(", reload sshd\n");
        out
    }

    /// Does it all. A failure takes back what was done. Gives remarks for people.
    pub async fn carry_out(&self) -> anyhow::Result<Vec<String>> {
        let mut said = Vec::new();
        let (mut written, mut done) = (Vec::new(), Vec::new());
        if let Err(error) = self.change(&mut written, &mut done, &mut said).await {
            for change in done.iter().rev() {
                let _ = Change::revert(change);
            }
            for path in written {
                let _ = secret::destroy(path);
            }
            let _ = self.args.sshd.reload(&self.now);
            return Err(error.context("everything was put back as it was"));
        }
        for path in &self.destroy {
            secret::destroy(path)?;
        }
        if self.check.is_none() {
            said.extend(self.changes.iter().filter(|c| c.backup).filter_map(Change::settle_backup));
            said.push("undone; sshd trusts no session certificate any more".into());
        }
        Ok(said)
    }

    async fn change<'a>(
        &'a self,
        written: &mut Vec<&'a Path>,
        done: &mut Vec<&'a Change>,
        said: &mut Vec<String>,
    ) -> anyhow::Result<()> {
        for s in &self.secrets {
            let new = !s.path.exists();
            s.write()?;
            if new {
                written.push(&s.path);
            }
        }
        for change in &self.changes {
            change.apply()?;
            done.push(change);
        }
        self.args.sshd.check()?;
        if let Some(check) = &self.check {
            self.verify(check, said).await?;
        }
        let reloaded = self.args.sshd.reload(&self.now)?;
        said.push(match reloaded {
            true => "checked with sshd -t; sshd was reloaded".into(),
            false => "checked with sshd -t; no sshd listens that had to be reloaded".into(),
        });
        if !self.args.no_systemd && systemd::reads(&self.args.systemd_dir) {
            systemd::reload(said);
        }
        Ok(())
    }

    /// Who gets in by a session certificate, and who does not.
    async fn verify(&self, check: &Check, said: &mut Vec<String>) -> anyhow::Result<()> {
        let places = Places::of(&self.args);
        for user in &check.users {
            trusted(&self.args.sshd, &places, user)?;
        }
        let door = |principal| Door { sshd: &self.args.sshd, ca: &check.ca, principal };
        let ours = door(&self.wanted.ssh.principal);
        for user in &check.users {
            ensure!(
                ours.opens(user).await?,
                "sshd refuses a session certificate for {user}: see its log (AllowUsers, \
                 AllowGroups, DenyUsers, a locked account, or files that others can write)"
            );
            said.push(format!("checked: a session certificate lets the daemon in as {user}"));
            let other = door("another-principal");
            ensure!(!other.opens(user).await?, "sshd lets {user} in with another principal");
        }
        let stranger = ["nobody", "daemon", "root"].into_iter().find(|u| {
            !check.users.iter().any(|c| c == u)
                && matches!(nix::unistd::User::from_name(u), Ok(Some(_)))
        });
        if let Some(stranger) = stranger {
            let stranger_in = ours.opens(stranger).await?;
            ensure!(!stranger_in, "sshd lets {stranger} in, who was not named");
            said.push(format!("checked: it lets nobody in as {stranger}"));
        }
        Ok(())
    }

    /// The service for the configuration; empty when it stands there.
    pub fn service_block(&self) -> String {
        if self.wanted.configured || self.check.is_none() {
            return String::new();
        }
        let Wanted { name, port, .. } = &self.wanted;
        let mut text = format!(
            "[[service]]\nname = \"{name}\"\nprotocol = \"ssh\"\nport = {port}\n\
             audience = \"api://{name}\"\nupstream = {{ host = \"127.0.0.1\", port = {port} }}\n"
        );
        let standard = |k: &PathBuf| k.parent() == Some(Path::new(crate::sshd::DIRECTORY));
        let keys = match self.args.no_systemd {
            true => {
                host_keys(&self.wanted, &self.now).iter().map(|k| copied(k, &self.wanted)).collect()
            }
            false => host_keys(&self.wanted, &self.now),
        };
        if !keys.iter().all(standard) {
            let _ = writeln!(text, "\n[service.ssh]\nhost_keys = {keys:?}");
        }
        let (source, whose) = match operator() {
            Some(ip) => {
                let bits = if ip.is_ipv4() { 32 } else { 128 };
                (format!("{ip}/{bits}"), "where you are logged in from")
            }
            None => ("203.0.113.5/32".into(), "put in from where you administer this host"),
        };
        let _ = writeln!(
            text,
            "\n[capture]      # {whose}\n\
             exempt = [{{ source = \"{source}\", services = [\"{name}\"] }}]"
        );
        text
    }

    /// What the operator does afterwards.
    pub fn next_steps(&self) -> Vec<String> {
        if self.check.is_none() {
            return Vec::new();
        }
        [
            "  interceptor capture attach --owner USER    # undoes itself unless a way in is shown",
            "  systemctl restart interceptor",
            "  interceptor capture confirm                # from a new SSH session, within 2 minutes",
            "  interceptor doctor",
        ]
        .iter()
        .map(|line| line.replace("USER", &self.args.daemon_user))
        .collect()
    }
}

/// The users whose door opens: those named, or those of the last run.
fn users(args: &SshArgs, places: &Places) -> anyhow::Result<BTreeSet<String>> {
    let users: BTreeSet<String> = match &args.users[..] {
        [] => places.users()?,
        named => named.iter().cloned().collect(),
    };
    ensure!(!users.is_empty(), "name the OS users whom agents may become: --user NAME");
    for user in &users {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
        ensure!(
            !user.starts_with(['.', '-']) && user.chars().all(plain),
            "{user:?} cannot be the name of a file of principals"
        );
        let found = nix::unistd::User::from_name(user)?;
        let found = found.with_context(|| format!("there is no user {user:?} on this host"))?;
        ensure!(
            !found.uid.is_root() || args.allow_root,
            "{user} has user id 0: an agent as root can change records and the daemon itself \
             (--allow-root if that is meant)"
        );
        ensure!(*user != args.daemon_user, "{user} runs the daemon: no agent may become it");
    }
    Ok(users)
}

fn daemon(args: &SshArgs) -> anyhow::Result<Owner> {
    let name = &args.daemon_user;
    let user = nix::unistd::User::from_name(name)?.with_context(|| {
        format!(
            "there is no user {name:?} on this host: make it first, or name it with --daemon-user"
        )
    })?;
    Ok(Owner { uid: user.uid.as_raw(), gid: user.gid.as_raw() })
}

/// The authority: the key that is there, or a new one that will be written.
fn authority(wanted: &Wanted, owner: Owner, secrets: &mut Vec<Secret>) -> anyhow::Result<UserCa> {
    let path = wanted.ca_key();
    let ca = if path.exists() { UserCa::open(&path)? } else { UserCa::generate()? };
    if fs::metadata(&path).is_ok_and(|m| m.uid() == owner.uid) {
        return Ok(ca);
    }
    let (text, what) = (ca.to_openssh()?, "the key that signs session certificates");
    secrets.push(Secret { path, text, owner, what });
    Ok(ca)
}

/// Files of ours that somebody else wrote are touched by nobody but them.
fn ensure_ours(changes: &[Change], places: &Places) -> anyhow::Result<()> {
    for change in changes.iter().filter(|c| !c.backup && c.path != places.ca) {
        ensure!(
            change.before.as_deref().is_none_or(files::is_ours),
            "{} is not ours: move it aside",
            change.path.display()
        );
    }
    Ok(())
}

/// The drop-in.
fn drop_in(args: &SshArgs, places: &Places, global: &Settings) -> anyhow::Result<Change> {
    let before = Change::own(args.drop_in.clone(), None)?.before.unwrap_or_default();
    for path in [&places.ca, &places.principals] {
        let odd = |c: char| c.is_whitespace() || matches!(c, '"' | '#' | '%' | '\\');
        let text = path.to_string_lossy();
        ensure!(path.is_absolute() && !text.contains(odd), "{text:?} cannot stand in sshd's file");
    }
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    // Whoever it is: the drop-in asks for no user.
    let local = args.sshd.settings(Some(Client { user: "nobody", address }))?;
    let text = files::drop_in(&DropIn {
        ca: &places.ca,
        principals: &places.principals,
        version: args.sshd.version()?,
        before: &before,
        global,
        local: &local,
    });
    Ok(Change::own(args.drop_in.clone(), Some(text))?.keeping_directory())
}

/// Whether our trust is what counts for a user, from this host and from nowhere else.
fn trusted(sshd: &Sshd, places: &Places, user: &str) -> anyhow::Result<()> {
    let (ca, principals) = (places.ca.display().to_string(), places.principals.join("%u"));
    let ours = |address: IpAddr| -> anyhow::Result<bool> {
        let s = sshd.settings(Some(Client { user, address }))?;
        Ok(s.get("trustedusercakeys") == ca
            && Path::new(s.get("authorizedprincipalsfile")) == principals)
    };
    for address in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        ensure!(
            ours(address)?,
            "an earlier `Match` block of sshd's configuration sets TrustedUserCAKeys or \
             AuthorizedPrincipalsFile for {user} from {address}: take {address} out of it"
        );
    }
    let elsewhere = Ipv4Addr::new(192, 0, 2, 1).into();
    ensure!(!ours(elsewhere)?, "sshd would trust session certificates from anywhere");
    Ok(())
}

/// The host's keys: the configured ones, else those of sshd.
fn host_keys(wanted: &Wanted, sshd: &Settings) -> Vec<PathBuf> {
    let copies = wanted.paths.state.join("ssh");
    let originals = wanted.ssh.host_keys.iter().filter(|k| !k.starts_with(&copies));
    let mut keys: Vec<PathBuf> = originals.cloned().collect();
    if keys.is_empty() {
        keys = sshd.all("hostkey").map(PathBuf::from).collect();
    }
    keys.retain(|k| k.exists());
    keys
}

fn copied(key: &Path, wanted: &Wanted) -> PathBuf {
    wanted.paths.state.join("ssh/host").join(key.file_name().unwrap_or_default())
}

fn copy(key: &Path, wanted: &Wanted, owner: Owner) -> anyhow::Result<Secret> {
    let text = fs::read_to_string(key).with_context(|| key.display().to_string())?;
    let (path, text) = (copied(key, wanted), Zeroizing::new(text));
    Ok(Secret { path, text, owner, what: "a copy of the host's key" })
}

/// The authority's key if it is the one sshd was told of, and the copies of host keys.
fn keys_of_ours(wanted: &Wanted, places: &Places) -> Vec<PathBuf> {
    let told = fs::read_to_string(&places.ca).unwrap_or_default();
    let ours = UserCa::open(&wanted.ca_key()).is_ok_and(|ca| told.trim() == ca.public_line());
    let mut keys: Vec<PathBuf> = ours.then(|| wanted.ca_key()).into_iter().collect();
    if let Ok(entries) = wanted.paths.state.join("ssh/host").read_dir() {
        keys.extend(entries.flatten().map(|e| e.path()));
    }
    keys
}

/// The drop-ins for systemd: the daemon's credentials, and sshd's place in the order.
fn units(
    args: &SshArgs,
    sshd: &Settings,
    keys: &[PathBuf],
    wanted: bool,
) -> anyhow::Result<Vec<Change>> {
    if args.no_systemd {
        return Ok(Vec::new());
    }
    let running = args.sshd.process(sshd).and_then(systemd::unit_of);
    let running = running.filter(|u| u.starts_with("ssh"));
    let units: BTreeSet<String> = match running {
        Some(unit) => [unit].into(),
        None if wanted => ["ssh.service".into()].into(),
        // Whatever it was called when it was set up.
        None => ["ssh.service".into(), "sshd.service".into()].into(),
    };
    let own =
        |name: &str, text: String| Change::own(args.systemd_dir.join(name), wanted.then_some(text));
    let mut changes = vec![own("interceptor.service.d/50-ssh.conf", files::credentials(keys))?];
    for unit in units {
        changes.push(own(&format!("{unit}.d/50-interceptor.conf"), files::ordering())?);
    }
    Ok(changes)
}

/// Where the operator is logged in from; sudo drops the variable, so the processes above count too.
fn operator() -> Option<IpAddr> {
    let above = procfs::ancestors(std::process::id());
    let value = std::env::var("SSH_CONNECTION")
        .ok()
        .or_else(|| above.into_iter().find_map(|pid| procfs::variable(pid, "SSH_CONNECTION")))?;
    let ip: IpAddr = value.split([' ', '%']).next()?.parse().ok()?;
    (!ip.is_loopback()).then_some(ip)
}

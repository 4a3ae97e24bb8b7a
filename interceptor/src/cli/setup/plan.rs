//! What setup will do, or undo: made as a whole, shown, and carried out with a way back.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};

use super::PostgresArgs;
use super::block::{self, Place};
use super::change::Change;
use super::server::{Files, Server, group_name};
use super::systemd;
use crate::config::Service;

/// Name of the map in pg_ident.conf.
const MAP: &str = "interceptor";
/// The role that is made when nobody names one.
const DEDICATED: &str = "interceptor_app";
/// Mode of the socket once it is closed.
const SOCKET_MODE: u32 = 0o770;
const CREATED: &str = "# role created by setup: ";
const MODE_BEFORE: &str = "# mode of the socket before setup: ";

/// All changes of one run.
pub struct Plan {
    server: Server,
    files: Files,
    changes: Vec<Change>,
    create: Vec<String>,
    drop: Vec<String>,
    socket_mode: Option<u32>,
    mode_before: u32,
    check: Option<Check>,
    systemd: bool,
}

/// What must be so afterwards.
struct Check {
    daemon_user: String,
    /// Group of the socket.
    group: u32,
    /// Whether a drop-in puts the daemon into that group; else it must be in it already.
    joins: bool,
    roles: Vec<String>,
    admin: bool,
}

impl Plan {
    /// The plan that closes the server.
    pub fn make(
        args: &PostgresArgs,
        service: Option<&Service>,
        server: Server,
    ) -> anyhow::Result<Self> {
        let files = files(args, &server)?;
        ensure!(
            nix::unistd::User::from_name(&args.daemon_user)?.is_some(),
            "there is no user {:?} on this host: make the daemon's user first, or name it with --daemon-user",
            args.daemon_user
        );
        let roles = roles(args, service)?;
        let missing = check_roles(&server, service, &roles)?;
        let meta = fs::metadata(server.socket())?;
        let mut changes = Vec::new();
        changes.push(Change::edit(&files.hba, |f| block::put(f, &hba(args), Place::Top))?);
        changes.push(Change::edit(&files.ident, |f| {
            let created: BTreeSet<_> =
                notes(f, CREATED)?.into_iter().chain(missing.iter().cloned()).collect();
            block::put(f, &ident(args, &server, &roles, &created), Place::Top)
        })?);
        let mode = meta.mode() & 0o7777;
        if !args.keep_socket_mode {
            changes.push(Change::edit(&files.config, |f| {
                let before = notes(f, MODE_BEFORE)?.pop().unwrap_or(format!("{mode:04o}"));
                block::put(f, &conf(&before), Place::Bottom)
            })?);
        }
        let drop_ins = drop_ins(args, &server, &files, meta.gid(), true)?;
        let joins = !drop_ins.is_empty();
        changes.extend(drop_ins);
        changes.retain(Change::is_needed);
        Ok(Self {
            create: missing,
            drop: Vec::new(),
            mode_before: mode,
            socket_mode: (!args.keep_socket_mode && mode != SOCKET_MODE).then_some(SOCKET_MODE),
            check: Some(Check {
                daemon_user: args.daemon_user.clone(),
                group: meta.gid(),
                joins,
                roles,
                admin: !args.no_admin,
            }),
            systemd: uses_systemd(args),
            server,
            files,
            changes,
        })
    }

    /// The plan that takes everything back.
    pub fn undo(args: &PostgresArgs, server: Server) -> anyhow::Result<Self> {
        let files = files(args, &server)?;
        let ident = fs::read_to_string(&files.ident)?;
        let conf = fs::read_to_string(&files.config)?;
        let mode = notes(&conf, MODE_BEFORE)?.pop();
        let meta = fs::metadata(server.socket())?;
        let mut changes = Vec::new();
        for path in [&files.hba, &files.ident, &files.config] {
            changes.push(Change::edit(path, block::take_out)?);
        }
        changes.extend(drop_ins(args, &server, &files, meta.gid(), false)?);
        changes.retain(Change::is_needed);
        Ok(Self {
            create: Vec::new(),
            drop: notes(&ident, CREATED)?,
            mode_before: meta.mode() & 0o7777,
            socket_mode: mode.and_then(|m| u32::from_str_radix(&m, 8).ok()),
            check: None,
            systemd: uses_systemd(args),
            server,
            files,
            changes,
        })
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
            && self.create.is_empty()
            && self.drop.is_empty()
            && self.socket_mode.is_none()
    }

    /// Everything that will be done, for people.
    pub fn describe(&self) -> String {
        let mut out = String::new();
        for change in &self.changes {
            let _ = writeln!(out, "{}", change.diff());
        }
        for role in &self.create {
            let _ = writeln!(out, "SQL: {}", create_role(role));
        }
        for role in &self.drop {
            let _ = writeln!(out, "SQL: DROP ROLE {}", quote(role));
        }
        if let Some(mode) = self.socket_mode {
            let _ = writeln!(out, "chmod {mode:04o} {}", self.server.socket().display());
        }
        let _ = writeln!(out, "reload the server of {}", self.files.data.display());
        out
    }

    /// Does it all. A failure takes back what was done. Gives remarks for people.
    pub fn carry_out(&self) -> anyhow::Result<Vec<String>> {
        let mut said = Vec::new();
        for role in &self.create {
            self.server.ask(&create_role(role)).context("cannot create the role")?;
            said.push(format!("role {role} created"));
        }
        let mut done = Vec::new();
        if let Err(e) = self.change_files(&mut done, &mut said) {
            for change in done.iter().rev() {
                let _ = change.revert();
            }
            if self.socket_mode.is_some() {
                let mode = Permissions::from_mode(self.mode_before);
                let _ = fs::set_permissions(self.server.socket(), mode);
            }
            let _ = self.server.reload(&self.files.data);
            for role in &self.create {
                let _ = self.server.ask(&format!("DROP ROLE {}", quote(role)));
            }
            return Err(e.context("everything was put back as it was"));
        }
        for role in &self.drop {
            match self.server.ask(&format!("DROP ROLE IF EXISTS {}", quote(role))) {
                Ok(_) => said.push(format!("role {role} dropped")),
                Err(e) => said.push(format!("role {role} is kept: {e:#}")),
            }
        }
        if self.check.is_none() {
            said.extend(self.changes.iter().filter(|c| c.backup).filter_map(Change::settle_backup));
            said.push("undone; the files are as they were".into());
        }
        Ok(said)
    }

    fn change_files<'a>(
        &'a self,
        done: &mut Vec<&'a Change>,
        said: &mut Vec<String>,
    ) -> anyhow::Result<()> {
        // What the server has against its files already is not our doing.
        let old = self.server.complaints().unwrap_or_default();
        for change in &self.changes {
            change.apply()?;
            done.push(change);
        }
        let complaints = self.server.complaints().unwrap_or_default();
        if complaints != old && !complaints.is_empty() {
            bail!("the server refuses its new files: {complaints}");
        }
        self.server.reload(&self.files.data)?;
        if let Some(mode) = self.socket_mode {
            fs::set_permissions(self.server.socket(), Permissions::from_mode(mode))?;
        }
        if self.systemd {
            systemd::reload(said);
        }
        match &self.check {
            Some(check) => self.verify(check, said),
            None => Ok(()),
        }
    }

    /// Tries the doors: the daemon's is open, a stranger's is shut.
    fn verify(&self, check: &Check, said: &mut Vec<String>) -> anyhow::Result<()> {
        let socket = self.server.socket();
        for role in &check.roles {
            let who = "SELECT current_user";
            let joined: &[u32] = if check.joins { &[check.group] } else { &[] };
            let out = self.server.psql(&check.daemon_user, joined, role, who)?;
            ensure!(
                out.status.success() && String::from_utf8_lossy(&out.stdout).trim() == role,
                "{} cannot log in as {role} through {}: {} (put it into the group {}, or leave the \
                 socket open with --keep-socket-mode)",
                check.daemon_user,
                socket.display(),
                String::from_utf8_lossy(&out.stderr).trim(),
                group_name(check.group)
            );
            said.push(format!("checked: {} logs in as {role}", check.daemon_user));
        }
        // With the socket's group, so that pg_hba.conf itself is tried and not only the mode.
        if nix::unistd::User::from_name("nobody")?.is_some() && check.daemon_user != "nobody" {
            for role in check.roles.iter().chain([&self.server.superuser]) {
                let out = self.server.psql("nobody", &[check.group], role, "SELECT 1")?;
                ensure!(!out.status.success(), "the user nobody can still log in as {role}");
            }
            said.push("checked: another user is refused".into());
        }
        if check.joins {
            said.push(
                "restart the daemon if it runs: it gets the socket's group only at its start"
                    .into(),
            );
        }
        let admin =
            self.server.psql(&self.server.owner, &[], &self.server.superuser, "SELECT 1")?;
        ensure!(
            admin.status.success() == check.admin,
            "the server's own user is {}",
            if check.admin { "shut out" } else { "not shut out" }
        );
        Ok(())
    }
}

fn files(args: &PostgresArgs, server: &Server) -> anyhow::Result<Files> {
    let asked = server.files();
    let data = match (&asked, &args.data_dir) {
        (Ok(files), _) => files.data.clone(),
        (Err(_), Some(data)) => data.clone(),
        (Err(e), None) => bail!("{e:#}; give --data-dir, --hba, --ident and --conf"),
    };
    let pick = |given: &Option<PathBuf>, said: Option<PathBuf>, name: &str| {
        given.clone().or(said).unwrap_or_else(|| data.join(name))
    };
    let said = asked.ok();
    Ok(Files {
        hba: pick(&args.hba, said.as_ref().map(|f| f.hba.clone()), "pg_hba.conf"),
        ident: pick(&args.ident, said.as_ref().map(|f| f.ident.clone()), "pg_ident.conf"),
        config: pick(&args.conf, said.as_ref().map(|f| f.config.clone()), "postgresql.conf"),
        data: data.clone(),
    })
}

fn roles(args: &PostgresArgs, service: Option<&Service>) -> anyhow::Result<Vec<String>> {
    let mut roles: BTreeSet<String> = args.roles.iter().cloned().collect();
    if roles.is_empty() {
        roles.extend(service.iter().flat_map(|s| s.roles.keys().cloned()));
    }
    if roles.is_empty() {
        roles.insert(DEDICATED.into());
    }
    for role in &roles {
        let odd = |c: char| c.is_control() || c == '"' || c == '\\';
        ensure!(
            !role.is_empty() && !role.starts_with(['/', '+', '@']) && !role.contains(odd),
            "{role:?} cannot be written into pg_ident.conf"
        );
    }
    Ok(roles.into_iter().collect())
}

/// Refuses privileged roles unless the service allows them; gives those that do not exist.
fn check_roles(
    server: &Server,
    service: Option<&Service>,
    roles: &[String],
) -> anyhow::Result<Vec<String>> {
    let mut missing = Vec::new();
    for role in roles {
        let found = server.ask(&format!(
            "SELECT concat_ws(' ', CASE WHEN rolsuper THEN 'superuser' END, \
             CASE WHEN rolreplication THEN 'replication' END, \
             CASE WHEN rolbypassrls THEN 'bypassrls' END, \
             CASE WHEN rolcreaterole THEN 'createrole' END, \
             CASE WHEN pg_has_role(oid, 'pg_execute_server_program', 'USAGE') \
                  THEN 'programs' END, \
             CASE WHEN pg_has_role(oid, 'pg_read_server_files', 'USAGE') \
                  OR pg_has_role(oid, 'pg_write_server_files', 'USAGE') THEN 'files' END) || '.' \
             FROM pg_roles WHERE rolname = {}",
            literal(role)
        ))?;
        let allow = service.and_then(|s| s.roles.get(role)).map(|r| &r.allow);
        match found.strip_suffix('.') {
            None => missing.push(role.clone()),
            Some(rights) => {
                let superuser = rights.starts_with("superuser");
                for right in rights.split_whitespace().take(if superuser { 1 } else { 9 }) {
                    ensure!(
                        allow.is_some_and(|a| a.contains(right)),
                        "role {role} has {right}: agents must not get that. Use another role, or \
                         allow it by name in the service ([service.role.{role}] allow = [{right:?}])"
                    );
                }
            }
        }
    }
    Ok(missing)
}

fn hba(args: &PostgresArgs) -> String {
    let mut text = format!(
        "# Only OS users of the map {MAP:?} in pg_ident.conf get in through the Unix socket.\n\
         # Made by `interceptor setup postgres`; `--undo` takes it out again.\n\
         local   all          all   peer map={MAP}\n\
         local   replication  all   peer map={MAP}\n"
    );
    if args.reject_tcp {
        text.push_str("host    all          all   all   reject\n");
        text.push_str("host    replication  all   all   reject\n");
    }
    text
}

fn ident(
    args: &PostgresArgs,
    server: &Server,
    roles: &[String],
    created: &BTreeSet<String>,
) -> String {
    let mut text = String::from("# MAPNAME    SYSTEM-USERNAME  PG-USERNAME\n");
    for role in roles {
        let _ = writeln!(text, "{MAP}  {}  {}", token(&args.daemon_user), token(role));
    }
    if !args.no_admin {
        let (owner, superuser) = (token(&server.owner), token(&server.superuser));
        text.push_str("# It owns the server's files, so this gives it nothing it has not.\n");
        let _ = writeln!(text, "{MAP}  {owner}  {superuser}");
    }
    for role in created {
        let _ = writeln!(text, "{CREATED}{role}");
    }
    text
}

fn conf(mode_before: &str) -> String {
    format!(
        "# The daemon's user is in the socket's group by a drop-in of its unit.\n\
         unix_socket_permissions = {SOCKET_MODE:04o}\n{MODE_BEFORE}{mode_before}\n"
    )
}

/// The remarks of an earlier run inside our block.
fn notes(file: &str, prefix: &str) -> anyhow::Result<Vec<String>> {
    let lines = block::lines(file)?.unwrap_or_default().lines();
    Ok(lines.filter_map(|l| l.strip_prefix(prefix)).map(str::to_owned).collect())
}

/// The server starts only behind the capture; the daemon may use the server's socket.
fn drop_ins(
    args: &PostgresArgs,
    server: &Server,
    files: &Files,
    group: u32,
    wanted: bool,
) -> anyhow::Result<Vec<Change>> {
    let units = match &args.units[..] {
        _ if args.no_systemd => return Ok(Vec::new()),
        [] => Server::unit(&files.data).into_iter().collect(),
        given => given.to_vec(),
    };
    let mut changes = Vec::new();
    for unit in units {
        let valid = |c: char| c.is_ascii_alphanumeric() || "@-_.:\\".contains(c);
        ensure!(unit.ends_with(".service") && unit.chars().all(valid), "{unit:?} is no unit");
        let path = args.systemd_dir.join(format!("{unit}.d/50-interceptor.conf"));
        let text = "# Made by `interceptor setup postgres`: never without the capture.\n\
                    [Unit]\n\
                    Requires=interceptor-capture.service\n\
                    After=interceptor-capture.service\n";
        changes.push((path, text.to_owned()));
    }
    if !changes.is_empty() {
        let name = format!("interceptor.service.d/50-postgres-{}.conf", server.port);
        let text = format!(
            "# Made by `interceptor setup postgres`: the server's socket is open to its group.\n\
             [Service]\nSupplementaryGroups={}\n",
            group_name(group)
        );
        changes.push((args.systemd_dir.join(name), text));
    }
    let own = |(path, text)| Change::own(path, wanted.then_some(text));
    changes.into_iter().map(own).collect()
}

fn uses_systemd(args: &PostgresArgs) -> bool {
    !args.no_systemd && systemd::reads(&args.systemd_dir)
}

fn create_role(role: &str) -> String {
    format!(
        "CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS",
        quote(role)
    )
}

/// An SQL identifier.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// An SQL string.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A token of pg_hba.conf and pg_ident.conf.
fn token(name: &str) -> String {
    let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let keyword = matches!(name, "all" | "sameuser" | "samerole" | "replication");
    if plain && !keyword { name.to_owned() } else { format!("\"{name}\"") }
}

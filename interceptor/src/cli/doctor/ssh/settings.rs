//! What sshd's configuration means for the daemon's sessions and for ways past it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use super::{Findings, Severity};
use crate::cli::sshd::{Client, Settings, Sshd};
use crate::config::{Config, Service};
use crate::sshd::{UserCa, login_shell};

/// Any address that is not this host's.
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Looks at the settings for everybody, for the daemon, and for exempt sources.
pub fn check(
    service: &Service,
    config: &Config,
    sshd: &Sshd,
    all: &Settings,
    found: &mut Findings,
) {
    trust(service, config, sshd, found);
    crowding(service, sshd, all, found);
    ways_past(service, sshd, found);
}

/// Whether sshd trusts the authority for connections from this host, and from nowhere else.
fn trust(service: &Service, config: &Config, sshd: &Sshd, found: &mut Findings) {
    let Ok(ca) = UserCa::open(&UserCa::path(&config.paths, &service.ssh)) else { return };
    let name = &service.name;
    let fix = "run `interceptor setup ssh`";
    let settings = |address| sshd.settings(Some(Client { user: "nobody", address }));
    let trusts = |s: &Settings| {
        let text = std::fs::read_to_string(s.get("trustedusercakeys")).unwrap_or_default();
        text.lines().any(|l| l.trim() == ca.public_line())
    };
    let (Ok(local), Ok(remote)) = (settings(Ipv4Addr::LOCALHOST.into()), settings(ELSEWHERE))
    else {
        return;
    };
    let principals = local.get("authorizedprincipalsfile");
    if !trusts(&local) || principals.is_empty() || principals == "none" {
        found.add(
            Severity::Error,
            "trust",
            format!("{name}: sshd does not trust the daemon's session certificates"),
            "the drop-in is missing, or an earlier one or a `Match` block takes its place; no agent gets in",
            fix,
        );
        return;
    }
    if trusts(&remote) {
        found.add(
            Severity::Error,
            "trust",
            format!("{name}: sshd trusts session certificates from anywhere"),
            "whoever steals the daemon's key gets in from any exempt source",
            fix,
        );
    }
    users(service, Path::new(principals), found);
}

/// Whom agents may become, and which of them have a shell whose commands cannot be judged.
fn users(service: &Service, pattern: &Path, found: &mut Findings) {
    let Some(dir) = pattern.to_str().and_then(|p| p.strip_suffix("/%u")) else { return };
    let Ok(entries) = Path::new(dir).read_dir() else { return };
    let users: Vec<String> =
        entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    let name = &service.name;
    for user in &users {
        let Some(shell) = login_shell(user) else {
            found.add(
                Severity::Warning,
                "users",
                format!("{name}: {user} may be become, and is no user of this host"),
                "nobody can use it until somebody makes an account of that name",
                "run `interceptor setup ssh` with the --user that are meant",
            );
            continue;
        };
        let known = shell.file_name().and_then(|n| n.to_str());
        if !matches!(known, Some("sh" | "dash" | "bash")) {
            found.add(
                Severity::Info,
                "users",
                format!("{name}: the login shell of {user} is {}", shell.display()),
                "its commands are read by a grammar that is not judged: rules that allow a command do not apply",
                "give that user sh, dash or bash",
            );
        }
    }
    if users.is_empty() {
        found.add(
            Severity::Error,
            "users",
            format!("{name}: sshd lets the daemon in as no user at all"),
            "no agent gets in",
            "run `interceptor setup ssh --user NAME`",
        );
    }
}

/// All agents come to sshd from one address: limits by address meet all of them.
fn crowding(service: &Service, sshd: &Sshd, all: &Settings, found: &mut Findings) {
    let name = &service.name;
    let penalties =
        sshd.version().is_ok_and(|v| v >= (9, 8)) && all.get("persourcepenalties") != "no";
    let spared = all.get("persourcepenaltyexemptlist");
    if penalties && !["127.0.0.1", "::1"].iter().all(|a| spared.split(',').any(|s| s == *a)) {
        found.add(
            Severity::Error,
            "penalties",
            format!("{name}: sshd punishes addresses, this host's own among them"),
            "one agent that fails shuts out all others",
            "run `interceptor setup ssh`",
        );
    }
    let most = all.get("persourcemaxstartups");
    if !matches!(most, "" | "none") {
        found.add(
            Severity::Warning,
            "startups",
            format!("{name}: sshd takes at most {most} logins at a time from one address"),
            "all agents share the daemon's address",
            "take PerSourceMaxStartups out, or raise it",
        );
    }
    let start = all.get("maxstartups").split(':').next().and_then(|n| n.parse::<u32>().ok());
    if start.is_some_and(|n| n < 64) {
        found.add(
            Severity::Info,
            "startups",
            format!("{name}: MaxStartups is {}", all.get("maxstartups")),
            "when more agents than the first number log in at one moment, sshd drops some of them",
            "raise it where many agents connect at once, such as `MaxStartups 100:30:300`",
        );
    }
}

/// What the admin's own settings allow beside the daemon.
fn ways_past(service: &Service, sshd: &Sshd, found: &mut Findings) {
    let Ok(s) = sshd.settings(Some(Client { user: "nobody", address: ELSEWHERE })) else { return };
    let name = &service.name;
    let mut ways = Vec::new();
    if s.get("pubkeyauthentication") != "no" && s.get("authorizedkeysfile") != "none" {
        ways.push(format!("keys in {}", s.get("authorizedkeysfile")));
    }
    if s.get("passwordauthentication") == "yes" || s.get("kbdinteractiveauthentication") == "yes" {
        ways.push("passwords".into());
    }
    if !ways.is_empty() {
        found.add(
            Severity::Info,
            "direct-login",
            format!("{name}: from exempt sources sshd itself takes {}", ways.join(" and ")),
            "such logins are not judged or recorded; that is what exempt sources are for",
            "keep exempt networks small, and agents out of them",
        );
    }
    for (key, fine, means) in [
        ("gatewayports", "no", "a forward that a user asks for is reachable from other hosts"),
        ("permittunnel", "no", "a tunnel device joins networks past every protected port"),
        ("permituserenvironment", "no", "a file of the user's changes what commands mean"),
    ] {
        if !matches!(s.get(key), "" | "no") && s.get(key) != fine {
            found.add(
                Severity::Warning,
                "sshd-setting",
                format!("{name}: {key} is {}", s.get(key)),
                means,
                format!("set {key} no"),
            );
        }
    }
}

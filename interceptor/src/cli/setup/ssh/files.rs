//! The texts that setup writes for sshd and systemd.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::cli::sshd::Settings;

/// Where session certificates come from.
pub const LOCAL: &str = "127.0.0.1,::1";
/// First line of every file of ours; a file that begins otherwise is somebody else's.
pub const MADE: &str = "# Made by `interceptor setup ssh`; `--undo` takes it out again.\n";
/// The version of sshd that punishes addresses, and knows exceptions.
const PENALTIES: (u32, u32) = (9, 8);

/// What the drop-in depends on.
pub struct DropIn<'a> {
    /// Public half of the authority.
    pub ca: &'a Path,
    /// One file for each user.
    pub principals: &'a Path,
    /// Version of sshd.
    pub version: (u32, u32),
    /// Our drop-in of before, which the settings below may come from.
    pub before: &'a str,
    /// sshd's settings.
    pub global: &'a Settings,
    /// The same for connections from this host.
    pub local: &'a Settings,
}

/// The drop-in for sshd. All trust stands under `Match Address`: a certificate, stolen or not,
/// counts for nobody who comes from elsewhere, and what the admin has set for those stays.
pub fn drop_in(d: &DropIn<'_>) -> String {
    let mut text = String::from(MADE);
    if d.version >= PENALTIES {
        let exempt = exempt_list(d.global.get("persourcepenaltyexemptlist"));
        text.push_str(
            "# All agents come from the daemon's address: one that fails must not shut\n",
        );
        text.push_str("# out the others.\n");
        let _ = writeln!(text, "PerSourcePenaltyExemptList {exempt}");
    }
    let _ = writeln!(text, "Match Address {LOCAL}");
    let _ = writeln!(text, "    TrustedUserCAKeys {}", d.ca.display());
    let _ = writeln!(text, "    AuthorizedPrincipalsFile {}/%u", d.principals.display());
    text.push_str("    ExposeAuthInfo yes\n");
    let said = |line: &str| d.before.lines().any(|l| l.trim() == line);
    if d.local.get("pubkeyauthentication") == "no" || said("PubkeyAuthentication yes") {
        text.push_str("    # Certificates need it; keys of users stay refused.\n");
        text.push_str("    PubkeyAuthentication yes\n    AuthorizedKeysFile none\n");
    }
    if !suffices(d.local.get("authenticationmethods")) || said("AuthenticationMethods publickey") {
        text.push_str(
            "    # The daemon has proven the agent's token; it has no second factor to give.\n",
        );
        text.push_str("    AuthenticationMethods publickey\n");
    }
    text
}

/// Whether a certificate alone lets somebody in.
fn suffices(methods: &str) -> bool {
    methods.is_empty() || methods.split_whitespace().any(|m| m == "any" || m == "publickey")
}

fn exempt_list(now: &str) -> String {
    let others = now.split(',').filter(|a| !a.is_empty() && *a != "none");
    let others = others.filter(|a| !LOCAL.split(',').any(|l| l == *a));
    let all: Vec<_> = LOCAL.split(',').chain(others).collect();
    all.join(",")
}

/// What a user's file of principals holds.
pub fn principals(principal: &str) -> String {
    format!("{MADE}{principal}\n")
}

/// Whether a file is one of ours.
pub fn is_ours(text: &str) -> bool {
    text.starts_with(MADE)
}

/// Hands the host's keys to the daemon: systemd reads them as root, the daemon gets them alone.
pub fn credentials(keys: &[PathBuf]) -> String {
    let mut text =
        format!("{MADE}# The host's own keys, which agents expect to meet.\n[Service]\n");
    for key in keys {
        let name = key.file_name().unwrap_or_default().to_string_lossy();
        let _ = writeln!(text, "LoadCredential={name}:{}", key.display());
    }
    text
}

/// sshd starts after the capture stands, but never waits for it to be well: that would lock
/// people out.
pub fn ordering() -> String {
    format!(
        "{MADE}# In this order, and without the capture too: nobody shall be locked out.\n\
         [Unit]\nAfter=interceptor-capture.service\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(version: (u32, u32), global: &str, local: &str) -> String {
        again("", version, global, local)
    }

    fn again(before: &str, version: (u32, u32), global: &str, local: &str) -> String {
        drop_in(&DropIn {
            ca: Path::new("/etc/interceptor/ssh/user_ca.pub"),
            principals: Path::new("/etc/interceptor/ssh/principals"),
            version,
            before,
            global: &Settings::parse(global),
            local: &Settings::parse(local),
        })
    }

    #[test]
    fn trust_is_for_connections_from_this_host_only() {
        let text = text((9, 2), "", "authenticationmethods any\npubkeyauthentication yes\n");
        let before = text.split("Match Address 127.0.0.1,::1\n").next().unwrap();
        assert!(before.lines().all(|l| l.starts_with('#')), "{text}");
        assert!(text.ends_with(
            "    TrustedUserCAKeys /etc/interceptor/ssh/user_ca.pub\n    \
             AuthorizedPrincipalsFile /etc/interceptor/ssh/principals/%u\n    ExposeAuthInfo yes\n"
        ));
    }

    #[test]
    fn penalties_are_named_only_where_sshd_knows_them() {
        assert!(!text((9, 7), "", "").contains("PerSource"));
        assert!(text((9, 8), "", "").contains("\nPerSourcePenaltyExemptList 127.0.0.1,::1\n"));
        let kept = text((10, 0), "persourcepenaltyexemptlist 10.0.0.0/8,::1\n", "");
        assert!(kept.contains("\nPerSourcePenaltyExemptList 127.0.0.1,::1,10.0.0.0/8\n"), "{kept}");
    }

    #[test]
    fn what_would_keep_the_daemon_out_is_changed_for_this_host_only() {
        let text = text(
            (9, 2),
            "",
            "pubkeyauthentication no\nauthenticationmethods publickey,keyboard-interactive\n",
        );
        let inside = text.split("Match Address").nth(1).unwrap();
        for want in [
            "PubkeyAuthentication yes",
            "AuthorizedKeysFile none",
            "AuthenticationMethods publickey",
        ] {
            assert!(inside.contains(want), "{text}");
        }
        let settled = "pubkeyauthentication yes\nauthenticationmethods publickey\n";
        assert_eq!(again(&text, (9, 2), "", settled), text, "twice is once");
        assert!(suffices("any") && suffices("publickey,password publickey") && suffices(""));
        assert!(!suffices("publickey,password"));
    }
}

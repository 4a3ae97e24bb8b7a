//! The shell that reads a user's commands: rules that allow a command hold only where we know
//! its grammar.

use std::path::PathBuf;

use nix::unistd::User;

/// The login shell of an OS user, links followed (`/bin/sh` is dash on Debian, bash elsewhere);
/// `None` when there is no such user or it cannot be looked up. An empty field means `/bin/sh`,
/// as it does for sshd.
pub fn login_shell(user: &str) -> Option<PathBuf> {
    let found = match User::from_name(user) {
        Ok(found) => found?,
        Err(error) => {
            tracing::warn!(user, %error, "the login shell is unknown");
            return None;
        }
    };
    let shell = match found.shell {
        empty if empty.as_os_str().is_empty() => PathBuf::from("/bin/sh"),
        given => given,
    };
    // A shell that is not there runs nothing; its name still says what was meant.
    Some(shell.canonicalize().unwrap_or(shell))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shells_are_looked_up_and_unknown_users_have_none() {
        let root = login_shell("root").unwrap();
        assert!(root.is_absolute(), "{root:?}");
        assert_eq!(login_shell("no-such-user-here"), None);
        assert_eq!(login_shell(""), None);
        assert_eq!(login_shell("root\0x"), None);
    }
}

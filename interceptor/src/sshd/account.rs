//! What the host's user database says of a user: the shell that reads its commands, and the home
//! directory in which sshd starts them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use nix::unistd::User;

use crate::policy::ssh::Home;

/// An OS user, as looked up once.
#[derive(Debug, Clone)]
pub struct Account {
    shell: PathBuf,
    home: PathBuf,
}

impl Account {
    /// `None` when there is no such user or it cannot be looked up.
    pub fn of(user: &str) -> Option<Self> {
        match User::from_name(user) {
            Ok(found) => found.map(|found| Self { shell: found.shell, home: found.dir }),
            Err(error) => {
                tracing::warn!(user, %error, "the user's shell and home directory are unknown");
                None
            }
        }
    }

    /// The login shell, links followed (`/bin/sh` is dash on Debian, bash elsewhere). An empty
    /// field means `/bin/sh`, as it does for sshd.
    pub fn shell(&self) -> PathBuf {
        let given = &self.shell;
        let shell = if given.as_os_str().is_empty() { Path::new("/bin/sh") } else { given };
        // A shell that is not there runs nothing; its name still says what was meant.
        shell.canonicalize().unwrap_or_else(|_| shell.to_owned())
    }

    /// The directory in which sshd starts the user's commands, with the name that sftp finds
    /// behind links. `None` where it certainly is not there: then sshd starts them elsewhere.
    pub fn home(&self) -> Option<Home> {
        let is_there = match std::fs::metadata(&self.home) {
            Ok(found) => found.is_dir(),
            // Most homes are closed to the daemon, and often all of `/home` is.
            Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
        };
        let home = Home::new(self.home.to_str()?).filter(|_| is_there)?;
        let real = self.home.canonicalize().ok();
        Some(match real.as_deref().and_then(Path::to_str) {
            Some(real) => home.also(real),
            None => home,
        })
    }
}

/// The login shell of an OS user; see [`Account::shell`].
pub fn login_shell(user: &str) -> Option<PathBuf> {
    Account::of(user).map(|account| account.shell())
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

    #[test]
    fn homes_that_are_not_there_are_none() {
        let home = |home: &str| {
            let account = Account { shell: PathBuf::new(), home: home.into() };
            account.home().map(|home| home.path().to_owned())
        };
        for missing in ["/no/such/home", "/etc/passwd", "/etc/passwd/x", "", "etc"] {
            assert_eq!(home(missing), None, "{missing}");
        }
        assert_eq!(home("/etc/").as_deref(), Some("/etc"));
        assert!(Account::of("root").unwrap().home().is_some());
    }
}

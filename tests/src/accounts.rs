//! The users of a bed's machines, who exist only there.
//!
//! Programs of the bed see a passwd file of their own, bound over the machine's in a mount
//! namespace for each: nothing on the machine changes, beds cannot meet, and users have plain
//! names. The protected host has [`LOGINS`]; agents run as robots, each with a home directory
//! in which a stock client finds its key and its known hosts.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The user as whom agents do most of their work.
pub const DEPLOY: &str = "deploy";
/// A second user whom agents may become.
pub const ANALYST: &str = "analyst";
/// A user whose login shell is none that the product can read.
pub const FISHY: &str = "fishy";
/// A user whom no agent may become.
pub const VAULT: &str = "vault";

/// Users of the protected host: name and number.
pub const LOGINS: [(&str, u32); 4] =
    [(DEPLOY, 61_001), (ANALYST, 61_002), (FISHY, 61_003), (VAULT, 61_004)];

/// Number of the first robot; a bed has this many.
const ROBOT: (u32, u32) = (61_100, 250);

/// The users of one bed.
#[derive(Debug, Clone)]
pub struct Accounts {
    dir: PathBuf,
}

impl Accounts {
    /// Writes the files and home directories below a bed's directory.
    pub fn create(dir: &Path) -> Result<Self> {
        let me = Self { dir: dir.into() };
        std::fs::create_dir_all(me.etc())?;
        let odd = dir.join("oddsh");
        executable(&odd, "#!/bin/sh\nexec /bin/bash \"$@\"\n")?;
        for (name, uid) in LOGINS {
            own_dir(&me.home(name), uid)?;
        }
        let (mut passwd, mut group, mut shadow) =
            (read("passwd")?, read("group")?, read("shadow")?);
        let robots = (0..ROBOT.1).map(|n| (format!("robot{n}"), ROBOT.0 + n));
        let logins = LOGINS.into_iter().map(|(name, uid)| (name.to_owned(), uid));
        for (name, uid) in logins.chain(robots) {
            let shell = if name == FISHY { odd.display().to_string() } else { "/bin/bash".into() };
            let home = me.home(&name);
            passwd.push_str(&format!("{name}:x:{uid}:{uid}::{}:{shell}\n", home.display()));
            group.push_str(&format!("{name}:x:{uid}:\n"));
            // No password, and not locked: sshd turns locked users away without PAM.
            shadow.push_str(&format!("{name}:*:19000:0:99999:7:::\n"));
        }
        for (name, text) in [("passwd", passwd), ("group", group), ("shadow", shadow)] {
            std::fs::write(me.etc().join(name), text)?;
        }
        std::fs::set_permissions(me.etc().join("shadow"), PermissionsExt::from_mode(0o600))?;
        Ok(me)
    }

    /// What stands in place of files of `/etc`.
    pub fn etc(&self) -> PathBuf {
        self.dir.join("etc")
    }

    /// A user's home directory.
    pub fn home(&self, name: &str) -> PathBuf {
        self.dir.join("home").join(name)
    }

    /// The home of a robot and its number, made at first use.
    pub fn robot(&self, n: u32) -> Result<(PathBuf, u32)> {
        anyhow::ensure!(n < ROBOT.1, "a bed has {} robots", ROBOT.1);
        let home = self.home(&format!("robot{n}"));
        own_dir(&home, ROBOT.0 + n)?;
        own_dir(&home.join(".ssh"), ROBOT.0 + n)?;
        Ok((home, ROBOT.0 + n))
    }
}

/// The number of a user of [`LOGINS`].
pub fn uid(name: &str) -> Result<u32> {
    LOGINS.iter().find(|(n, _)| *n == name).map(|(_, uid)| *uid).context("no such login")
}

/// Gives a file to a user and group of one number.
pub fn give(path: &Path, uid: u32) -> Result<()> {
    chown(path, Some(uid), Some(uid)).with_context(|| path.display().to_string())
}

/// Writes a file that belongs to a user of the protected host.
pub fn write_as(path: &Path, bytes: impl AsRef<[u8]>, uid: u32) -> Result<()> {
    std::fs::write(path, bytes).with_context(|| path.display().to_string())?;
    give(path, uid)
}

fn own_dir(path: &Path, uid: u32) -> Result<()> {
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755))?;
    give(path, uid)
}

fn executable(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)?;
    Ok(std::fs::set_permissions(path, PermissionsExt::from_mode(0o755))?)
}

fn read(name: &str) -> Result<String> {
    let path = Path::new("/etc").join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

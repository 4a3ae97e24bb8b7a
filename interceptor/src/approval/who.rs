//! Who may decide: from a process at the control socket to a person at an issuer.
//!
//! The login user set at login (`/proc/PID/loginuid`) is the person, because it survives
//! `sudo`. It is trusted only where it says the same as the process's own user, or for root:
//! a process whose login user was never set can write any value there without privilege.
//!
//! A person at the collector is known by issuer and user id alone, and the same rules hold.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use nix::unistd::{Group, Uid, User, getgrouplist};
use serde::{Deserialize, Serialize};

use super::DecideError;
use crate::config::Approver;

/// A process at the control socket, as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process id at the time it connected.
    pub pid: u32,
    /// User of the process when it connected.
    pub uid: u32,
    /// Group of the process when it connected.
    pub gid: u32,
    /// Login user; `None` when it was never set.
    pub login_uid: Option<u32>,
}

/// A person who may decide something, or several who decided together, and where that was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decider {
    /// Operating system user name of the person; the person's own name at the collector.
    pub user: String,
    /// Issuer and user id: all that is known of who decides.
    pub identities: Vec<(String, String)>,
    /// How the person was recognised.
    #[serde(flatten)]
    pub seat: Seat,
}

/// Where a decider sits, and how that was recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "snake_case")]
pub enum Seat {
    /// A user of this host.
    Host {
        /// Operating system user id of the person.
        uid: u32,
        /// User id of the process, `0` through sudo.
        process_uid: u32,
        /// Whether the login user said so.
        by_login: bool,
    },
    /// People who logged in at the collector; its signed order says who.
    Collector {
        /// How many different people decided together.
        people: usize,
    },
}

impl Decider {
    /// Whether one of the person's identities is among these.
    pub(super) fn is_any_of(&self, ids: &[(String, String)]) -> bool {
        self.identities.iter().any(|mine| ids.contains(mine))
    }
}

impl fmt::Display for Decider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.user)?;
        for (n, (issuer, id)) in self.identities.iter().enumerate() {
            write!(f, "{}{issuer}/{id}", if n == 0 { " (" } else { ", " })?;
        }
        if !self.identities.is_empty() {
            write!(f, ")")?;
        }
        match self.seat {
            Seat::Host { .. } => Ok(()),
            Seat::Collector { .. } => write!(f, " at the collector"),
        }
    }
}

/// Those whom a request concerns, and who therefore cannot decide it.
pub(super) struct Parties {
    pub(super) principal_ids: Vec<(String, String)>,
    pub(super) owners: Vec<(String, String)>,
    pub(super) peer_uid: Option<u32>,
}

impl Parties {
    /// Whether somebody may let the request run. Refusing it takes no second person.
    pub(super) fn may_approve(&self, decider: &Decider) -> Result<(), DecideError> {
        self.may_decide(decider)?;
        match decider.seat {
            Seat::Collector { people } if self.owners.is_empty() && people < 2 => {
                Err(DecideError::NoOwner)
            }
            _ => Ok(()),
        }
    }

    /// Whether somebody may take part at all.
    pub(super) fn may_decide(&self, decider: &Decider) -> Result<(), DecideError> {
        for (issuer, id) in &decider.identities {
            let mine = |(i, x): &&(String, String)| i == issuer && x == id;
            let (issuer, id) = (issuer.clone(), id.clone());
            if self.principal_ids.iter().find(mine).is_some() {
                return Err(DecideError::OwnRequest { issuer, id });
            }
            if self.owners.iter().find(mine).is_some() {
                return Err(DecideError::OwnAgent { issuer, id });
            }
        }
        match decider.seat {
            Seat::Host { uid, .. } if self.peer_uid == Some(uid) => {
                Err(DecideError::OwnUser { user: decider.user.clone() })
            }
            _ => Ok(()),
        }
    }
}

/// The host's accounts, as far as approvers need them.
pub trait Accounts: Send + Sync {
    /// Name of a user.
    fn user_name(&self, uid: u32) -> Option<String>;
    /// Whether a user is in a group, by its primary group or as a member.
    fn is_member(&self, user: &str, group: &str) -> bool;
}

/// The accounts of this host (NSS). May block.
pub struct SystemAccounts;

impl Accounts for SystemAccounts {
    fn user_name(&self, uid: u32) -> Option<String> {
        User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|u| u.name)
    }

    fn is_member(&self, user: &str, group: &str) -> bool {
        let lookup = || {
            let group = Group::from_name(group).ok()??.gid;
            let primary = User::from_name(user).ok()??.gid;
            let name = std::ffi::CString::new(user).ok()?;
            Some(getgrouplist(&name, primary).ok()?.contains(&group))
        };
        lookup().unwrap_or(false)
    }
}

/// The configured approvers.
pub(super) struct Deciders(Vec<Approver>);

impl Deciders {
    pub(super) fn new(approvers: &[Approver]) -> Self {
        Self(approvers.to_vec())
    }

    /// The person behind a peer, with every identity the configuration gives.
    pub(super) fn resolve(
        &self,
        peer: &Peer,
        accounts: &dyn Accounts,
    ) -> Result<Decider, DecideError> {
        let uid = match (peer.uid, peer.login_uid) {
            (0, None) => return Err(DecideError::NoLogin),
            (0, Some(login)) => login,
            (process, Some(login)) if login != process => {
                return Err(DecideError::LoginMismatch { process, login });
            }
            (process, _) => process,
        };
        let user = accounts.user_name(uid).ok_or(DecideError::UnknownUser(uid))?;
        let mut identities = Vec::new();
        let mut unnamed = None;
        for a in &self.0 {
            let id = match (&a.user, &a.group) {
                (Some(u), _) if *u == user => a.uid.clone(),
                (None, Some(g)) if accounts.is_member(&user, g) => {
                    let id = a.uids.get(&user).cloned();
                    if id.is_none() {
                        unnamed = Some(g.clone());
                    }
                    id
                }
                _ => None,
            };
            let known = id.map(|id| (a.issuer.clone(), id));
            identities.extend(known.filter(|k| !identities.contains(k)));
        }
        match (identities.is_empty(), unnamed) {
            (true, Some(group)) => Err(DecideError::UnmappedInGroup { user, group }),
            (true, None) => Err(DecideError::Unmapped { user }),
            _ => Ok(Decider {
                user,
                identities,
                seat: Seat::Host { uid, process_uid: peer.uid, by_login: peer.login_uid.is_some() },
            }),
        }
    }
}

/// Processes that stand at the root of a captured session, counted.
#[derive(Default)]
pub(super) struct SessionProcesses(Arc<Mutex<HashMap<u32, usize>>>);

/// Keeps a process declared as inside a session until dropped.
pub struct SessionProcess {
    pid: u32,
    all: Arc<Mutex<HashMap<u32, usize>>>,
}

impl SessionProcesses {
    pub(super) fn register(&self, pid: u32) -> SessionProcess {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry(pid).or_default() += 1;
        SessionProcess { pid, all: self.0.clone() }
    }

    /// Whether the process or one of its ancestors is registered. A process that left its
    /// parents on purpose is not found this way: labels of the kernel must do that.
    pub(super) fn contains(&self, pid: u32) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.is_empty() {
            return false;
        }
        let mut pid = pid;
        for _ in 0..256 {
            if all.contains_key(&pid) {
                return true;
            }
            match parent(pid) {
                Some(p) if p > 0 => pid = p,
                _ => return false,
            }
        }
        true
    }
}

impl Drop for SessionProcess {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = all.get_mut(&self.pid) {
            *n -= 1;
            if *n == 0 {
                all.remove(&self.pid);
            }
        }
    }
}

fn parent(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("PPid:"))?.trim().parse().ok()
}

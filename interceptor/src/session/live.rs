//! The running sessions: who they are, for `status`, and the way to end one or many.
//!
//! An entry lives exactly as long as its session.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use ulid::Ulid;

/// Why a running session has to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Go on.
    None,
    /// The daemon stops.
    Shutdown,
    /// An operator ended it: who, and why.
    Killed(Arc<str>),
    /// Its token is in use at another host too.
    Conflict,
    /// The record cannot be written any more.
    RecordLost,
}

impl Ending {
    /// The reason in the record's words.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::None | Self::Shutdown => "shutdown",
            Self::Killed(_) => "killed",
            Self::Conflict => "conflict",
            Self::RecordLost => "store",
        }
    }

    /// More for the record, not for the agent.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Killed(who) => Some(who),
            Self::Conflict => Some("the collector says that another host has the same token"),
            _ => None,
        }
    }

    /// What the agent is told.
    pub fn words(&self) -> &'static str {
        match self {
            Self::None | Self::Shutdown => "SHUTDOWN: interceptor is stopping",
            Self::Killed(_) => "KILLED: the session was ended by an operator",
            Self::Conflict => {
                "TOKEN_COPIED: the token of this session is in use elsewhere too: get a token of \
                 your own"
            }
            Self::RecordLost => "RECORD_UNAVAILABLE: the session cannot be recorded",
        }
    }
}

/// Which running sessions are meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The session with this id.
    Session(String),
    /// All of the agent with this registered name.
    Agent(String),
    /// All on whose behalf this is: `sub`, user id, or the id of an actor in between.
    Principal(String),
    /// All that this token opened: its `jti`, or the SHA-256 of the token or of its `jti`.
    Token(String),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Session(id) => write!(f, "session {id}"),
            Self::Agent(name) => write!(f, "agent {name:?}"),
            Self::Principal(id) => write!(f, "principal {id:?}"),
            Self::Token(token) => write!(f, "token {token:?}"),
        }
    }
}

/// By what a session is found beside what is shown of it.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// Exact `iss` of the token.
    pub issuer: String,
    /// `sub`, user id, and the ids of all actors.
    pub principals: Vec<String>,
    /// The token's id, its hash, and the token's hash.
    pub tokens: Vec<String>,
}

/// What is shown of a running session.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// Session id.
    pub id: String,
    /// Service.
    pub service: String,
    /// Source address and port.
    pub source: String,
    /// Microseconds since the Unix epoch.
    pub since_us: i64,
    /// Agent, once proven.
    pub agent: Option<String>,
    /// Principal, once proven.
    pub principal: Option<String>,
    /// Database, once admitted.
    pub database: Option<String>,
    /// Role, once admitted.
    pub role: Option<String>,
}

#[derive(Debug)]
struct Entry {
    shown: Shown,
    marks: Marks,
    ending: watch::Sender<Ending>,
}

impl Entry {
    fn is(&self, target: &Target) -> bool {
        match target {
            Target::Session(id) => self.shown.id == *id,
            Target::Agent(name) => self.shown.agent.as_ref() == Some(name),
            Target::Principal(id) => self.marks.principals.contains(id),
            Target::Token(token) => self.marks.tokens.contains(token),
        }
    }
}

/// All running sessions.
#[derive(Debug, Default)]
pub struct Registry {
    entries: Mutex<BTreeMap<Ulid, Entry>>,
}

impl Registry {
    /// Enters a session, unless its service already has `limit` of them.
    pub fn enter(
        self: &Arc<Self>,
        id: Ulid,
        service: &str,
        source: SocketAddr,
        limit: u32,
    ) -> Option<Live> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let running = entries.values().filter(|e| e.shown.service == service).count();
        if running >= limit as usize {
            return None;
        }
        let (sender, receiver) = watch::channel(Ending::None);
        let shown = Shown {
            id: id.to_string(),
            service: service.to_owned(),
            source: source.to_string(),
            since_us: crate::record::now_us(),
            agent: None,
            principal: None,
            database: None,
            role: None,
        };
        entries.insert(id, Entry { shown, marks: Marks::default(), ending: sender });
        Some(Live { id, registry: Arc::clone(self), ending: receiver })
    }

    /// A picture of all of them.
    pub fn list(&self) -> Vec<Shown> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.values().map(|e| e.shown.clone()).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells all sessions that are meant to end, and says which those are.
    pub fn end_those(&self, target: &Target, ending: &Ending) -> Vec<String> {
        self.end_where(ending, |entry| entry.is(target))
    }

    /// Tells the sessions of one issuer's token to end, and says which those are.
    pub fn end_token(&self, issuer: &str, token: &str, ending: &Ending) -> Vec<String> {
        self.end_where(ending, |entry| {
            entry.marks.issuer == issuer && entry.marks.tokens.iter().any(|t| t == token)
        })
    }

    fn end_where(&self, ending: &Ending, meant: impl Fn(&Entry) -> bool) -> Vec<String> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let meant = entries.values().filter(|entry| meant(entry));
        meant
            .map(|entry| {
                entry.ending.send_replace(ending.clone());
                entry.shown.id.clone()
            })
            .collect()
    }

    /// Tells every session to end.
    pub fn end_all(&self, ending: Ending) {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in entries.values() {
            entry.ending.send_replace(ending.clone());
        }
    }
}

/// A session's entry; leaving the list is dropping it.
#[derive(Debug)]
pub struct Live {
    id: Ulid,
    registry: Arc<Registry>,
    ending: watch::Receiver<Ending>,
}

impl Live {
    fn update(&self, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.registry.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get_mut(&self.id) {
            change(entry);
        }
    }

    /// Who was proven.
    pub fn set_identity(&self, agent: &str, principal: &str, marks: Marks) {
        self.update(|entry| {
            entry.shown.agent = Some(agent.to_owned());
            entry.shown.principal = Some(principal.to_owned());
            entry.marks = marks;
        });
    }

    /// What was opened.
    pub fn set_target(&self, database: &str, role: &str) {
        self.update(|entry| {
            entry.shown.database = Some(database.to_owned());
            entry.shown.role = Some(role.to_owned());
        });
    }

    /// A receiver of the order to end.
    pub fn ending(&self) -> watch::Receiver<Ending> {
        self.ending.clone()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let mut entries = self.registry.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_found_by_id_agent_principal_and_token() {
        let registry = Arc::new(Registry::default());
        let source = "192.0.2.1:5".parse().unwrap();
        let enter = |agent: &str, uid: &str, jti: &str| {
            let id = Ulid::new();
            let live = registry.enter(id, "orders-db", source, 10).unwrap();
            let marks = Marks {
                issuer: "https://e".into(),
                principals: vec!["ann@example.com".into(), uid.into()],
                tokens: vec![jti.into()],
            };
            live.set_identity(agent, "ann@example.com", marks);
            live
        };
        let (a, b) = (enter("etl", "00u-ann", "j1"), enter("bot", "00u-bob", "j2"));
        let ended = |live: &Live| live.ending().borrow().reason() == "killed";
        let kill =
            |target: Target| registry.end_those(&target, &Ending::Killed("dba".into())).len();
        assert_eq!(kill(Target::Agent("nobody".into())), 0);
        assert_eq!(kill(Target::Principal("00u-ann".into())), 1);
        assert!(ended(&a) && !ended(&b));
        assert_eq!(kill(Target::Token("j2".into())), 1);
        assert!(ended(&b));
        assert_eq!(kill(Target::Principal("ann@example.com".into())), 2);
        assert_eq!(kill(Target::Session(a.id.to_string())), 1);
        assert!(registry.end_token("https://other", "j1", &Ending::Conflict).is_empty());
        assert_eq!(registry.end_token("https://e", "j1", &Ending::Conflict).len(), 1);
        assert_eq!(a.ending().borrow().reason(), "conflict");
    }
}

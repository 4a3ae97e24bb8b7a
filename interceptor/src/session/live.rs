//! The running sessions: who they are, for `status`, and the way to end one.
//!
//! An entry lives exactly as long as its session.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::watch;
use ulid::Ulid;

/// Why a running session has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Go on.
    None,
    /// The daemon stops.
    Shutdown,
    /// An operator ended it.
    Killed,
    /// The record cannot be written any more.
    RecordLost,
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
    ending: watch::Sender<Ending>,
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
        entries.insert(id, Entry { shown, ending: sender });
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

    /// Tells one session to end; false when there is none with this id.
    pub fn end(&self, id: Ulid, ending: Ending) -> bool {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(&id).is_some_and(|entry| entry.ending.send(ending).is_ok())
    }

    /// Tells every session to end.
    pub fn end_all(&self, ending: Ending) {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in entries.values() {
            let _ = entry.ending.send(ending);
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
    fn update(&self, change: impl FnOnce(&mut Shown)) {
        let mut entries = self.registry.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get_mut(&self.id) {
            change(&mut entry.shown);
        }
    }

    /// Who was proven.
    pub fn set_identity(&self, agent: &str, principal: &str) {
        self.update(|shown| {
            shown.agent = Some(agent.to_owned());
            shown.principal = Some(principal.to_owned());
        });
    }

    /// What was opened.
    pub fn set_target(&self, database: &str, role: &str) {
        self.update(|shown| {
            shown.database = Some(database.to_owned());
            shown.role = Some(role.to_owned());
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

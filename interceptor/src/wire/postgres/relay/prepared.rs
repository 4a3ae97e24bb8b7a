//! The agent's prepared statements, portals and cursors: by name, what was judged when they
//! were made.
//!
//! Names follow the server's own rules: the unnamed statement is replaced silently, a named one
//! only after it was closed. What is not known here cannot be executed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::session::sql::{Known, Ruling};

use super::super::codec::Field;

/// Most prepared statements and portals that one session may hold, each.
pub const MAX_HELD: usize = 10_000;

/// Most bytes of statement text that one session may hold in prepared statements.
pub const MAX_HELD_BYTES: usize = 256 << 20;

/// A prepared statement, by protocol or by SQL.
#[derive(Debug)]
pub struct Prepared {
    /// The text as sent, in UTF-8.
    pub text: Arc<str>,
    /// What was decided when it was prepared; judged again at each execution.
    ruling: Mutex<Arc<Ruling>>,
    /// Parameter types by OID: as declared in Parse, 0 where the server infers, until the
    /// server described them.
    declared: Mutex<Vec<u32>>,
    /// What the server described: the result columns, once known.
    described: Mutex<Option<Described>>,
    /// For a guarded COPY TO STDOUT: the columns of the equivalent SELECT.
    pub copy: Option<Arc<[Field]>>,
}

/// What the server said of a statement's result.
#[derive(Debug, Clone)]
pub enum Described {
    /// It returns nothing.
    NoData,
    /// It returns these columns, formats not yet chosen.
    Columns(Arc<[Field]>),
}

impl Prepared {
    /// A statement of which the server has said nothing yet.
    pub fn new(
        text: Arc<str>,
        ruling: Arc<Ruling>,
        declared: Vec<u32>,
        copy: Option<Arc<[Field]>>,
    ) -> Self {
        Self {
            text,
            ruling: Mutex::new(ruling),
            declared: Mutex::new(declared),
            described: Mutex::new(None),
            copy,
        }
    }

    /// The decision as last made.
    pub fn ruling(&self) -> Arc<Ruling> {
        Arc::clone(&self.ruling.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the decision.
    pub fn set_ruling(&self, ruling: Arc<Ruling>) {
        *self.ruling.lock().unwrap_or_else(PoisonError::into_inner) = ruling;
    }

    /// Parameter types as far as known.
    pub fn declared(&self) -> Vec<u32> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes the parameter types that the server described.
    pub fn set_declared(&self, types: Vec<u32>) {
        *self.declared.lock().unwrap_or_else(PoisonError::into_inner) = types;
    }

    /// What the server described, if it has.
    pub fn described(&self) -> Option<Described> {
        self.described.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what the server described.
    pub fn describe(&self, described: Described) {
        *self.described.lock().unwrap_or_else(PoisonError::into_inner) = Some(described);
    }
}

/// A bound statement.
#[derive(Debug, Clone)]
pub struct Portal {
    /// What is bound.
    pub prepared: Arc<Prepared>,
    /// Result format codes as sent: none, one for all, or one per column.
    pub formats: Vec<i16>,
    /// Parameter values as sent, with their format codes applied: `(binary, value)`.
    pub values: Vec<(bool, Option<Vec<u8>>)>,
    /// Number of the request under which a human granted its execution.
    pub granted: Option<u64>,
    /// Made by DECLARE; it can outlive the transaction.
    pub is_cursor: bool,
}

impl Portal {
    /// The values as text.
    pub fn shown(&self) -> Vec<Option<String>> {
        super::values::shown(&self.values, &self.prepared.declared())
    }
}

/// All that a session holds by name.
#[derive(Debug, Default)]
pub struct Held {
    statements: HashMap<Box<[u8]>, Arc<Prepared>>,
    portals: HashMap<Box<[u8]>, Portal>,
    bytes: usize,
}

impl Held {
    /// Whether another statement of `bytes` bytes may be held.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.statements.len() < MAX_HELD
            && self.portals.len() < MAX_HELD
            && self.bytes + bytes <= MAX_HELD_BYTES
    }

    /// A statement by name.
    pub fn statement(&self, name: &[u8]) -> Option<&Arc<Prepared>> {
        self.statements.get(name)
    }

    /// Holds a statement, unless a named one is already there (the server will refuse it).
    pub fn hold_statement(&mut self, name: &[u8], prepared: Arc<Prepared>) {
        if !name.is_empty() && self.statements.contains_key(name) {
            return;
        }
        self.bytes += prepared.text.len();
        if let Some(old) = self.statements.insert(name.into(), prepared) {
            self.bytes = self.bytes.saturating_sub(old.text.len());
        }
    }

    /// Forgets a statement; `only` says which one is meant, so that a failed Parse does not
    /// forget an older one of the same name.
    pub fn forget_statement(&mut self, name: &[u8], only: Option<&Arc<Prepared>>) {
        let same = |held: &Arc<Prepared>| only.is_none_or(|only| Arc::ptr_eq(held, only));
        if self.statements.get(name).is_some_and(same)
            && let Some(old) = self.statements.remove(name)
        {
            self.bytes = self.bytes.saturating_sub(old.text.len());
        }
    }

    /// Forgets a failed statement wherever it is held.
    pub fn forget(&mut self, prepared: &Arc<Prepared>) {
        let names: Vec<_> = self
            .statements
            .iter()
            .filter(|(_, held)| Arc::ptr_eq(held, prepared))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            self.forget_statement(&name, Some(prepared));
        }
    }

    /// A portal or cursor by name.
    pub fn portal(&self, name: &[u8]) -> Option<&Portal> {
        self.portals.get(name)
    }

    /// Holds a portal or cursor.
    pub fn hold_portal(&mut self, name: &[u8], portal: Portal) {
        self.portals.insert(name.into(), portal);
    }

    /// Forgets a portal or cursor.
    pub fn forget_portal(&mut self, name: &[u8]) {
        self.portals.remove(name);
    }

    /// Forgets everything (DISCARD ALL, DEALLOCATE ALL).
    pub fn forget_statements(&mut self) {
        self.statements.clear();
        self.bytes = 0;
    }

    /// Forgets portals that end with a transaction; cursors may be WITH HOLD.
    pub fn end_transaction(&mut self) {
        if self.portals.len() > 1 {
            self.portals.retain(|_, portal| portal.is_cursor);
        }
    }

    /// Forgets all portals and cursors.
    pub fn forget_portals(&mut self) {
        self.portals.clear();
    }
}

impl Known for Held {
    fn prepared(&self, name: &str) -> Option<Arc<Ruling>> {
        self.statement(name.as_bytes()).map(|prepared| prepared.ruling())
    }

    fn cursor(&self, name: &str) -> Option<Arc<Ruling>> {
        self.portal(name.as_bytes()).map(|portal| portal.prepared.ruling())
    }
}

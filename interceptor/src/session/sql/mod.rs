//! Judging SQL: from a statement's text to what may happen to it and to its answer.
//!
//! Parsing and classification come from the shared analyzer and are cached there by the full
//! text. A ruling is kept only here, in one session, and only for the policies, catalog, search
//! path and role under which it was made; conditions on time are judged at every execution.
//!
//! The [`Judge`] is here, with what it knows and keeps. How it makes a [`Ruling`] stands in
//! `decide`, with what runs under a name (`by_name`), what changes how SQL is read (`settings`,
//! `encoding`) and what protects masked columns (`shield`); `unread` rules on what could not be
//! read. Nothing here does input or output, and nothing here says "allowed" of a text that was
//! not understood.

mod by_name;
mod catalog;
mod decide;
mod encoding;
mod ruling;
mod scrub;
mod settings;
mod shield;
mod unread;

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use crate::mask::{Detectors, HashKey};
use crate::policy::PolicySet;
use crate::policy::sql::{Analyzer, Context};

use super::catalogs::Snapshot;
use super::{Admitted, Session};
use ruling::Stamp;

pub use crate::policy::sql::{
    Catalog, CopyFormat, CopyKind, CopySource, SetValue, StatementAnalysis, StatementKind,
    TransactionKind,
};
pub use by_name::Known;
pub use catalog::{
    Rows, build_catalog, catalog_fingerprint, catalog_queries, warn_of_missing_columns,
};
pub use encoding::{canonical_encoding, encoding_is_safe};
pub use ruling::{Denial, Plan, Ruling};
pub use settings::set_text;
pub use shield::Shield;

/// Rulings kept per session.
const KEPT: NonZeroUsize = match NonZeroUsize::new(256) {
    Some(n) => n,
    None => NonZeroUsize::MIN,
};

/// Longest text, in bytes, whose ruling is kept.
const KEPT_TEXT: usize = 16 * 1024;

/// The judge of one session.
#[derive(Debug)]
pub struct Judge {
    analyzer: Arc<Analyzer>,
    hash_key: Arc<HashKey>,
    recording: Arc<Detectors>,
    context: Arc<Context>,
    policies: Arc<PolicySet>,
    shield: Option<Arc<Shield>>,
    stamp: Stamp,
    kept: LruCache<Arc<str>, Arc<Ruling>>,
}

impl Judge {
    /// A judge that knows no catalog yet.
    pub fn new(session: &Session<Admitted>) -> Self {
        let gate = session.gate();
        let policies = gate.policies();
        let stamp = Stamp {
            policy: Arc::from(policies.version()),
            epoch: 0,
            path: Arc::from([]),
            role: Arc::from(session.subject().role.as_str()),
        };
        Self {
            analyzer: Arc::clone(&gate.analyzer),
            hash_key: Arc::clone(&gate.hash_key),
            recording: Arc::clone(&gate.recording),
            context: Arc::new(Context { catalog: None, search_path: Vec::new(), epoch: 0 }),
            policies,
            shield: None,
            stamp,
            kept: LruCache::new(KEPT),
        }
    }

    /// Takes over a catalog and an effective search path.
    pub fn resolve_by(
        &mut self,
        session: &Session<Admitted>,
        snapshot: &Snapshot,
        search_path: Vec<String>,
    ) {
        self.stamp.epoch = snapshot.epoch;
        self.stamp.path = Arc::from(search_path.as_slice());
        self.stamp.role = Arc::from(session.subject().role.as_str());
        self.context = Arc::new(Context {
            catalog: Some(Arc::clone(&snapshot.catalog)),
            search_path,
            epoch: snapshot.epoch,
        });
        self.raise_shield(session);
    }

    /// Takes over the policies of now, if they changed.
    pub fn follow_policies(&mut self, session: &Session<Admitted>) {
        let policies = session.gate().policies();
        if policies.version() != self.policies.version() {
            self.stamp.policy = Arc::from(policies.version());
            self.policies = policies;
            self.raise_shield(session);
        }
    }

    /// Whether masked columns are in reach.
    pub fn has_masked_columns(&self) -> bool {
        self.shield.as_ref().is_some_and(|shield| shield.has_columns())
    }

    /// Whether it matters here that the catalog is the server's of now.
    pub fn needs_catalog(&self) -> bool {
        self.has_masked_columns() || self.policies.names_tables()
    }

    /// Judges a text, from the cache where that is possible.
    pub async fn rule(
        &mut self,
        session: &Session<Admitted>,
        text: &Arc<str>,
        known: &(dyn Known + Sync),
    ) -> Arc<Ruling> {
        self.follow_policies(session);
        if text.len() <= KEPT_TEXT
            && let Some(kept) = self.kept.get(text)
            && kept.reusable
            && kept.stamp == self.stamp
        {
            return Arc::clone(kept);
        }
        let analysis = self.analyzer.analyze(Arc::clone(text), Arc::clone(&self.context)).await;
        let ruling = Arc::new(match analysis {
            Ok(analysis) => self.decide(session, analysis, text, known),
            Err(error) => self.unreadable(session, text, &error),
        });
        if ruling.reusable && text.len() <= KEPT_TEXT {
            self.kept.put(Arc::clone(text), Arc::clone(&ruling));
        }
        ruling
    }

    /// Judges again what was prepared earlier, at its execution.
    pub async fn rule_again(
        &mut self,
        session: &Session<Admitted>,
        text: &Arc<str>,
        earlier: &Arc<Ruling>,
        known: &(dyn Known + Sync),
    ) -> Arc<Ruling> {
        self.follow_policies(session);
        if earlier.reusable && earlier.stamp == self.stamp {
            return Arc::clone(earlier);
        }
        self.rule(session, text, known).await
    }
}

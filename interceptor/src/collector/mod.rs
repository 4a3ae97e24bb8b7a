//! The collector: receives the records of many hosts, keeps them unaltered, shows them to people,
//! and carries decisions back to the hosts.
//!
//! Every host has a replica of its own store below `hosts/`, with the same schema, so that
//! whatever reads, verifies or replays records on a host does so here. What concerns all hosts
//! stands in the [`Central`] database. Hosts come in at one listener with certificates of the
//! collector's own authority; people at another, with tokens of their issuer.
//!
//! What this module must never do: acknowledge what is not on disk, accept an event that does
//! not continue its chain, let a person decide a request of their own, keep the exact text of a
//! held request after its end, or delete anything that the audit trail does not name.

pub mod api;
pub mod audit;
mod authority;
mod central;
pub mod codes;
mod config;
pub mod console;
pub mod db;
pub mod decisions;
mod error;
mod feed;
pub mod forward;
pub mod holds;
pub mod hosts;
mod http;
mod hub;
pub mod import;
mod index;
mod ingest;
mod keys;
mod lease;
pub mod link;
pub mod log;
pub mod orders;
pub mod overview;
pub mod policies;
pub mod prove;
pub mod recordings;
mod refuse;
pub mod replica;
pub mod retention;
mod roots;
pub mod rotation;
mod routes;
pub mod rules;
pub mod search;
mod server;
mod shared;
mod signing;
mod store;
pub mod tokens;
pub mod webhooks;
pub mod wire;

#[cfg(test)]
mod decision_tests;
#[cfg(test)]
mod link_tests;
#[cfg(test)]
mod policy_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod rotation_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod shared_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod ship_tests;
#[cfg(test)]
mod testing;

use std::sync::Arc;

pub use central::Central;
pub use config::{
    Approval, Config, Console, DEFAULT_PATH, Hosts, Login, Role, Roles, Webhook, WebhookForm,
};
pub use decisions::Person;
pub use error::CollectorError;
pub use http::Peer;
pub use hub::{Change, Hub};
pub use ingest::Replicas;
pub use keys::Keys;
pub use refuse::Refuse;
pub use replica::{Position, Replica};
pub use routes::log_key;
pub use server::Server;

/// Everything that the parts of a running collector share.
pub struct Collector {
    /// What it is told.
    pub config: Config,
    /// What concerns all hosts.
    pub central: Central,
    /// What hosts recorded.
    pub replicas: Replicas,
    /// Its authority and its signing key.
    pub keys: Keys,
    /// Who wants to hear of changes.
    pub hub: Hub,
    /// Exact forms of what waits; in memory alone.
    pub held: holds::Exacts,
    /// Wakes hosts that wait for orders.
    pub bells: orders::Bells,
    /// How the forwards are.
    pub forwards: forward::States,
    /// What this collector does alone.
    pub leases: lease::Leases,
    /// What hosts shipped, where collectors share a database.
    pub feed: Option<feed::Feed>,
    /// Words of the replicas.
    pub search: search::Index,
    /// Attachments of large sessions.
    pub recordings: Arc<recordings::Recordings>,
}

impl Collector {
    /// Opens the state that `init` made.
    pub fn open(config: Config) -> Result<Arc<Self>, CollectorError> {
        let keys = Keys::open(&config.state)?;
        let server = config.store.as_ref().map(store::Settings::server).transpose()?;
        let central = match &server {
            Some(server) => Central::open_store(server.clone(), &keys)?,
            None => Central::open_file(&config.state, &keys)?,
        };
        Ok(Arc::new(Self {
            replicas: Replicas::new(&config.state),
            feed: server.map(feed::Feed::new),
            search: search::Index::new(&config.state),
            recordings: Arc::new(recordings::Recordings::new(&config, keys.authority_pin())?),
            config,
            central,
            keys,
            hub: Hub::default(),
            held: holds::Exacts::default(),
            bells: orders::Bells::default(),
            forwards: forward::States::default(),
            leases: lease::Leases::default(),
        }))
    }

    /// Signs where the log and the audit trail stand, if that has changed.
    pub async fn sign_log(self: &Arc<Self>) -> Result<(), CollectorError> {
        let this = Arc::clone(self);
        let sign = move |db: &_| log::store::checkpoint(db, &this.keys, &this.config.origin);
        self.central.write(sign).await.map(drop)
    }

    /// Makes the state directory with new keys and an empty database.
    pub fn init(config: &Config) -> Result<Keys, CollectorError> {
        let keys = Keys::create(&config.state)?;
        match &config.store {
            Some(store) => {
                let opened = store.server().and_then(|s| Central::open_store(s, &keys));
                // Keys that belong to nothing would keep the next attempt from making any.
                if let Err(e) = opened {
                    Keys::forget(&config.state);
                    return Err(e);
                }
            }
            None => drop(Central::open(&config.state)?),
        }
        Ok(keys)
    }
}

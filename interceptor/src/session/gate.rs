//! What all sessions of a daemon share, and the door through which each of them comes in.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use ulid::Ulid;

use crate::approval::Approvals;
use crate::capture::{Captured, Pins};
use crate::config::{Config, Mode, Service};
use crate::identity::{Identity, Source};
use crate::mask::{Detectors, HashKey, Kind, Method};
use crate::policy::PolicySet;
use crate::policy::sql::Analyzer;
use crate::present::Presented;
use crate::record::event::Opening;
use crate::record::{HmacKey, Recorder, now_us};
use crate::ship::centre;
use crate::ship::kept::Kept;

use super::catalogs::Catalogs;
use super::live::Registry;
use super::log::Log;
use super::metrics::Metrics;
use super::policies::Policies;
use super::sql::warn_of_missing_columns;
use super::{Arrived, Refused, RefusedKind, Session};

/// What all sessions share.
pub struct Gate {
    /// The configuration as read at start.
    pub config: Arc<Config>,
    services: HashMap<u16, Arc<Service>>,
    pub(super) identity: Arc<Identity>,
    /// Tokens that were presented beforehand, and tickets.
    pub presented: Arc<Presented>,
    /// The policies in force and where they come from.
    pub policies: Arc<Policies>,
    pub(super) analyzer: Arc<Analyzer>,
    /// The store.
    pub recorder: Arc<Recorder>,
    /// Held requests and grants.
    pub approvals: Arc<Approvals>,
    /// Catalog snapshots.
    pub catalogs: Catalogs,
    pub(super) hash_key: Arc<HashKey>,
    pub(super) recording: Arc<Detectors>,
    /// Key of the digests of exact texts and values.
    pub hmac: Arc<HmacKey>,
    /// Running sessions.
    pub live: Arc<Registry>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    pins: OnceLock<Arc<Pins>>,
    /// When the daemon started.
    pub started: Instant,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl Gate {
    /// Opens keys, store, policies and issuers. Serves nothing yet.
    pub async fn open(config: Config) -> anyhow::Result<Arc<Self>> {
        let state = &config.paths.state;
        std::fs::create_dir_all(state)?;
        let hash_key = Arc::new(HashKey::open(state)?);
        let hmac = Arc::new(HmacKey::open(state)?);
        let policies = open_policies(&config)?;
        let recorder = Recorder::open(&config)?;
        let identity = Identity::open(&config).await?;
        let approvals = Approvals::new(&config);
        let kinds: Vec<(Kind, Method)> =
            Kind::ALL.iter().map(|kind| (*kind, Method::Redact)).collect();
        let recording = Arc::new(Detectors::new(&kinds, Arc::clone(&hash_key)));
        let services = config.services.iter().map(|s| (s.port, Arc::new(s.clone()))).collect();
        Ok(Arc::new(Self {
            services,
            identity,
            presented: Arc::default(),
            policies,
            analyzer: Arc::new(Analyzer::new(2)),
            recorder,
            approvals,
            catalogs: Catalogs::default(),
            hash_key,
            recording,
            hmac,
            live: Arc::new(Registry::default()),
            metrics: Arc::new(Metrics::new(&config)),
            pins: OnceLock::new(),
            started: Instant::now(),
            config: Arc::new(config),
        }))
    }

    /// The issuers and their keys.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The policies in force.
    pub fn policies(&self) -> Arc<PolicySet> {
        self.policies.running()
    }

    /// Logs what masks of a set that came into force miss in the catalogs that are known.
    pub fn look_at_masks(&self, policies: &PolicySet) {
        for ((service, database), snapshot) in self.catalogs.all() {
            warn_of_missing_columns(policies, &service, &database, &snapshot.catalog);
        }
    }

    /// Gives the gate the opened pins, once, for connections of the daemon's own.
    pub fn set_pins(&self, pins: Arc<Pins>) {
        let _ = self.pins.set(pins);
    }

    /// The opened pins.
    pub fn pins(&self) -> Option<&Arc<Pins>> {
        self.pins.get()
    }

    /// The service on a port.
    pub fn service(&self, port: u16) -> Option<&Arc<Service>> {
        self.services.get(&port)
    }

    /// Opens the record of a captured connection and enters it in the list.
    pub fn arrive(
        self: &Arc<Self>,
        captured: &Captured,
        service: &Arc<Service>,
    ) -> Result<Session<Arrived>, Refused> {
        let id = Ulid::new();
        let refuse = |kind, code: &str, message: &str| {
            self.metrics.refused(&service.name, code);
            Refused { kind, message: format!("interceptor: {code}: {message}"), hint: None }
        };
        let Some(live) = self.live.enter(id, &service.name, captured.peer, service.max_connections)
        else {
            return Err(refuse(
                RefusedKind::Busy,
                "TOO_MANY_CONNECTIONS",
                "the service has as many connections as it may",
            ));
        };
        if self.recorder.health().refusing {
            return Err(refuse(
                RefusedKind::Record,
                "RECORD_UNAVAILABLE",
                "nothing can be recorded, so nothing is let through",
            ));
        }
        let opening = Opening {
            id,
            ts_us: now_us(),
            host: Cow::Owned(self.config.host_name()),
            service: Cow::Borrowed(&service.name),
            protocol: Cow::Borrowed(service.protocol.as_str()),
            source: Cow::Owned(captured.peer.to_string()),
            original_dst: Cow::Owned(captured.original_dst.to_string()),
            mode: Cow::Borrowed(match service.mode {
                Mode::Enforce => "enforce",
                Mode::Observe => "observe",
            }),
            peer_uid: captured.peer_uid,
        };
        let log = self.recorder.begin(opening).map_err(|error| {
            tracing::error!(%error, "connection refused: its record cannot be opened");
            refuse(
                RefusedKind::Record,
                "RECORD_UNAVAILABLE",
                "nothing can be recorded, so nothing is let through",
            )
        })?;
        self.metrics.arrived(&service.name);
        Ok(Session {
            gate: Arc::clone(self),
            service: Arc::clone(service),
            source: Source { addr: captured.peer.ip(), uid: captured.peer_uid },
            peer: captured.peer,
            log: Log::new(log, id),
            live,
            state: Arrived,
        })
    }
}

/// This host's policies, and those of the centre that it took last where it takes any.
fn open_policies(config: &Config) -> anyhow::Result<Arc<Policies>> {
    let directory = config.paths.policies.clone();
    let takes = config.ship.as_ref().is_some_and(|s| s.central_policies);
    let kept = Kept::of(config)?.and_then(|(_, in_force)| in_force);
    let policies = Policies::open(directory)?;
    if takes {
        policies.note_central(crate::control::CentralStatus::default());
    }
    if let Some(in_force) = kept {
        centre::apply(&policies, &in_force);
        tracing::info!(version = in_force.bundle.version, "policies of the centre, as kept");
    }
    Ok(Arc::new(policies))
}

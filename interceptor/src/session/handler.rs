//! What the control socket asks of the running daemon.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use crate::config::{Durability, Mode};
use crate::control::ControlHandler;
use crate::control::protocol::{
    Answer, ControlError, Drained, IssuerStatus, Killed, LiveSession, PolicyStatus, RecordStatus,
    ServiceStatus, ShipStatus, Status,
};
use crate::record::now_us;
use crate::ship::Shipping;

use super::{Ending, Gate, Target};

/// Answers for a gate.
pub struct Handler {
    gate: Arc<Gate>,
    loaded_us: AtomicI64,
    reload_error: Mutex<Option<String>>,
    shipping: OnceLock<Arc<Shipping>>,
}

impl Handler {
    /// For a gate whose policies were just loaded.
    pub fn new(gate: Arc<Gate>) -> Self {
        Self {
            gate,
            loaded_us: AtomicI64::new(now_us()),
            reload_error: Mutex::new(None),
            shipping: OnceLock::new(),
        }
    }

    /// From now on the way to the collector is told of too.
    pub fn set_shipping(&self, shipping: Arc<Shipping>) {
        let _ = self.shipping.set(shipping);
    }

    /// Reads the policies anew; on an error the old ones stay in force.
    pub fn reload(&self) -> Result<PolicyStatus, String> {
        let outcome = self.gate.policies.reload();
        let mut error = self.reload_error.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(policies) => {
                *error = None;
                drop(error);
                self.loaded_us.store(now_us(), Ordering::Relaxed);
                tracing::info!(version = policies.version(), "policies loaded");
                self.gate.look_at_masks(&policies);
                Ok(self.policy())
            }
            Err(errors) => {
                let words = errors.to_string();
                *error = Some(words.clone());
                tracing::error!(error = %words, "policies not loaded; the old ones stay in force");
                Err(words)
            }
        }
    }

    fn policy(&self) -> PolicyStatus {
        let policies = self.gate.policies();
        PolicyStatus {
            version: policies.version().to_owned(),
            rules: policies.len() as u64,
            loaded_us: self.loaded_us.load(Ordering::Relaxed),
            reload_error: self.reload_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            central: self.gate.policies.central(),
        }
    }

    fn services(&self) -> Vec<ServiceStatus> {
        let counters = self.gate.pins().and_then(|pins| pins.counters().ok()).unwrap_or_default();
        let live = self.gate.live.list();
        self.gate
            .config
            .services
            .iter()
            .map(|service| {
                let counted = counters.iter().find(|c| c.port == service.port);
                ServiceStatus {
                    name: service.name.clone(),
                    protocol: service.protocol.as_str().into(),
                    port: service.port,
                    mode: match service.mode {
                        Mode::Enforce => "enforce".into(),
                        Mode::Observe => "observe".into(),
                    },
                    listening: counted.is_some(),
                    live: live.iter().filter(|s| s.service == service.name).count() as u64,
                    steered: counted.map_or(0, |c| c.steered),
                    refused: counted.map_or(0, |c| c.refused),
                    exempt: counted.map_or(0, |c| c.exempt),
                    own: counted.map_or(0, |c| c.own),
                }
            })
            .collect()
    }

    fn issuers(&self) -> Vec<IssuerStatus> {
        self.gate
            .identity()
            .issuers(SystemTime::now())
            .into_iter()
            .map(|issuer| IssuerStatus {
                name: issuer.name,
                keys: issuer.keys as u64,
                keys_age_s: issuer.age_s,
                error: issuer.error,
            })
            .collect()
    }

    fn record(&self) -> RecordStatus {
        let health = self.gate.recorder.health();
        RecordStatus {
            bytes: health.bytes,
            max_bytes: health.max_bytes,
            durability: match self.gate.config.record.durability {
                Durability::Process => "process".into(),
                Durability::Disk => "disk".into(),
            },
            refusing: health
                .refusing
                .then(|| health.reason.unwrap_or_else(|| "the store takes nothing more".into())),
        }
    }
}

impl ControlHandler for Handler {
    fn status(&self) -> Answer<'_, Status> {
        Box::pin(async move {
            Ok(Status {
                version: env!("CARGO_PKG_VERSION").into(),
                pid: std::process::id(),
                host: self.gate.config.host_name(),
                uptime_s: self.gate.started.elapsed().as_secs(),
                services: self.services(),
                live_sessions: self.gate.live.len() as u64,
                policy: self.policy(),
                issuers: self.issuers(),
                record: self.record(),
                ship: self.shipping.get().map(|s| s.status()),
                ..Status::default()
            })
        })
    }

    fn drain(&self) -> Answer<'_, Drained> {
        Box::pin(async move {
            let recorder = Arc::clone(&self.gate.recorder);
            let drained = tokio::task::spawn_blocking(move || recorder.flush()).await;
            drained.map_err(ControlError::failed)?.map_err(ControlError::failed)?;
            Ok(Drained { events: Some(self.gate.recorder.health().stored) })
        })
    }

    fn policy_reload(&self) -> Answer<'_, PolicyStatus> {
        Box::pin(async move {
            self.reload().map_err(|errors| ControlError::new("POLICY_INVALID", errors))
        })
    }

    fn live_sessions(&self) -> Answer<'_, Vec<LiveSession>> {
        Box::pin(async move {
            let holds = self.gate.approvals.list();
            Ok(self
                .gate
                .live
                .list()
                .into_iter()
                .map(|shown| LiveSession {
                    held: holds
                        .iter()
                        .find(|hold| hold.session == shown.id)
                        .map(|hold| hold.id.clone()),
                    id: shown.id,
                    service: shown.service,
                    agent: shown.agent.unwrap_or_default(),
                    principal: shown.principal.unwrap_or_default(),
                    source: shown.source,
                    database: shown.database.unwrap_or_default(),
                    role: shown.role.unwrap_or_default(),
                    opened_us: shown.since_us,
                    requests: 0,
                })
                .collect())
        })
    }

    fn kill(&self, target: Target, who: String) -> Answer<'_, Killed> {
        Box::pin(async move {
            if let Target::Token(token) = &target {
                self.gate.identity().bar(token);
            }
            let sessions = self.gate.live.end_those(&target, &Ending::Killed(who.as_str().into()));
            if let Target::Token(token) = &target {
                tokio::task::block_in_place(|| self.gate.identity().keep_barred(token));
            }
            tracing::info!(%target, by = who, ended = sessions.len(), "sessions ended by an operator");
            Ok(Killed { sessions })
        })
    }

    fn metrics(&self) -> Answer<'_, String> {
        Box::pin(async move { Ok(self.rendered_metrics()) })
    }
}

impl Handler {
    fn render_shipping(&self, ship: &ShipStatus) {
        let registry = self.gate.metrics.registry();
        let seconds = |us: Option<i64>| us.unwrap_or(0) / 1_000_000;
        for (name, help, value) in [
            (
                "interceptor_ship_waiting_events",
                "Events that the collector does not have",
                i64::try_from(ship.waiting_events).unwrap_or(i64::MAX),
            ),
            (
                "interceptor_ship_acknowledged_timestamp_seconds",
                "When the collector acknowledged something last",
                seconds(ship.acknowledged_us),
            ),
            (
                "interceptor_ship_connected",
                "1 while the collector answers",
                i64::from(ship.connected),
            ),
            (
                "interceptor_ship_certificate_expiry_timestamp_seconds",
                "When the certificate for the collector ends",
                seconds(ship.certificate_until_us),
            ),
        ] {
            registry.gauge(name, help, &[]).set(value);
        }
        for (name, help, value) in [
            ("interceptor_ship_events_total", "Events shipped", ship.shipped_events),
            ("interceptor_ship_batches_total", "Batches shipped", ship.batches),
            ("interceptor_ship_errors_total", "Failures to ship", ship.errors),
        ] {
            registry.counter(name, help, &[]).set_total(value);
        }
    }

    /// Prometheus text, gauges brought up to date.
    pub fn rendered_metrics(&self) -> String {
        let registry = self.gate.metrics.registry();
        let gauge = |name, help, value: u64| {
            registry.gauge(name, help, &[]).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        let health = self.gate.recorder.health();
        gauge("interceptor_live_sessions", "Sessions open now", self.gate.live.len() as u64);
        gauge(
            "interceptor_held_requests",
            "Requests that wait for a human",
            self.gate.approvals.held() as u64,
        );
        gauge("interceptor_record_bytes", "Bytes of the store and its journal", health.bytes);
        gauge(
            "interceptor_record_backlog_bytes",
            "Bytes of the journal not yet in the store",
            health.backlog_bytes,
        );
        gauge(
            "interceptor_record_refusing",
            "1 when new requests are refused",
            u64::from(health.refusing),
        );
        if let Some(ship) = self.shipping.get().map(|s| s.status()) {
            self.render_shipping(&ship);
        }
        for service in self.services() {
            for (name, help, value) in [
                (
                    "interceptor_capture_steered_total",
                    "Connections the kernel gave to the daemon",
                    service.steered,
                ),
                (
                    "interceptor_capture_refused_total",
                    "Connections the kernel refused",
                    service.refused,
                ),
                (
                    "interceptor_capture_exempt_total",
                    "Connections of exempt sources",
                    service.exempt,
                ),
                (
                    "interceptor_capture_own_total",
                    "Connections of the daemon to the service",
                    service.own,
                ),
            ] {
                registry.counter(name, help, &[("service", &service.name)]).set_total(value);
            }
        }
        registry
            .counter("interceptor_record_events_total", "Events acknowledged as recorded", &[])
            .set_total(health.appended);
        registry.render()
    }
}

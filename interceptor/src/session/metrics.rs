//! The counters that the pipeline keeps, resolved once per service so that counting a request is
//! one atomic addition.

use std::collections::HashMap;

use crate::config::Config;
use crate::control::metrics::{Counter, Registry};

#[derive(Debug, Default)]
struct PerService {
    connections: Counter,
    admitted: Counter,
    allowed: Counter,
    held: Counter,
    denied: Counter,
}

/// The daemon's metrics.
pub struct Metrics {
    registry: Registry,
    services: HashMap<String, PerService>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

const REQUESTS: &str = "interceptor_requests_total";
const REQUESTS_HELP: &str = "Requests by service and verdict";

impl Metrics {
    /// With a series for every configured service, so that zero is shown as zero.
    pub fn new(config: &Config) -> Self {
        let registry = Registry::default();
        let services = config
            .services
            .iter()
            .map(|service| {
                let name = service.name.as_str();
                let verdict = |verdict: &str| {
                    let labels = [("service", name), ("verdict", verdict)];
                    registry.counter(REQUESTS, REQUESTS_HELP, &labels)
                };
                let per = PerService {
                    connections: registry.counter(
                        "interceptor_connections_total",
                        "Captured connections by service",
                        &[("service", name)],
                    ),
                    admitted: registry.counter(
                        "interceptor_sessions_admitted_total",
                        "Sessions that policy let in, by service",
                        &[("service", name)],
                    ),
                    allowed: verdict("allow"),
                    held: verdict("hold"),
                    denied: verdict("deny"),
                };
                (service.name.clone(), per)
            })
            .collect();
        Self { registry, services }
    }

    /// The registry, for rendering and for gauges of others.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A connection was captured.
    pub fn arrived(&self, service: &str) {
        if let Some(per) = self.services.get(service) {
            per.connections.inc();
        }
    }

    /// A session was admitted.
    pub fn admitted(&self, service: &str) {
        if let Some(per) = self.services.get(service) {
            per.admitted.inc();
        }
    }

    /// A request got its verdict.
    pub fn request(&self, service: &str, verdict: &str) {
        if let Some(per) = self.services.get(service) {
            match verdict {
                "allow" => per.allowed.inc(),
                "hold" => per.held.inc(),
                _ => per.denied.inc(),
            }
        }
    }

    /// A connection was refused.
    pub fn refused(&self, service: &str, code: &str) {
        self.registry
            .counter(
                "interceptor_refusals_total",
                "Refused connections by service and code",
                &[("service", service), ("code", code)],
            )
            .inc();
    }

    /// Something that a person should look at.
    pub fn alert(&self, code: &str) {
        self.registry
            .counter("interceptor_alerts_total", "Alerts by code", &[("code", code)])
            .inc();
    }
}

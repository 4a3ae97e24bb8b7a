//! Policies from the centre, brought into force on this host.
//!
//! The collector's answer to the poll for orders says which version is the newest; that is a
//! hint, and so is each new contact. The bundle itself is asked for, checked whole (signature,
//! number, every rule), written to disk, and only then in force. Whatever goes wrong leaves in
//! force what was; the collector and the log are told with file and line.
//!
//! What this must never do: bring a part of a bundle into force, an older one, or one of which
//! the disk does not know.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::bundle::{BundleError, Offer, Report, SignedBundle};
use super::kept::{InForce, Kept};
use super::line::{Line, LineError};
use crate::control::CentralStatus;
use crate::policy::PolicySet;
use crate::session::policies::Policies;

/// How long an answer may take; a bundle may have a megabyte.
const ANSWER: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Longest reason that is told: some errors with their places.
const MAX_ERROR: usize = 4000;

/// Called with a set that has just come into force.
pub type Applied = Box<dyn Fn(&PolicySet) + Send + Sync>;

/// The part of the line that is about policies.
pub struct Centre {
    line: Arc<Line>,
    policies: Arc<Policies>,
    applied: Applied,
    /// Whether this host takes policies from the centre.
    takes: bool,
    /// The newest version that this host knows of.
    newest: watch::Sender<u64>,
}

impl Centre {
    /// Nothing is asked for before it runs.
    pub fn new(
        line: Arc<Line>,
        policies: Arc<Policies>,
        takes: bool,
        applied: Applied,
    ) -> Arc<Self> {
        Arc::new(Self { line, policies, applied, takes, newest: watch::channel(0).0 })
    }

    /// The newest version that this host knows of, where it takes any.
    pub fn newest(&self) -> Option<u64> {
        self.takes.then(|| *self.newest.borrow())
    }

    /// The collector says which version is the newest.
    pub fn hint(&self, newest: u64) {
        self.newest.send_if_modified(|known| {
            let more = newest > *known;
            *known = (*known).max(newest);
            more
        });
    }

    /// Follows the centre for as long as the daemon runs; never returns. `instance` changes with
    /// each new contact.
    pub async fn run(&self, kept: Option<Kept>, mut instance: watch::Receiver<String>) {
        match kept.filter(|_| self.takes) {
            Some(kept) => self.follow(kept, instance).await,
            None => loop {
                if instance.changed().await.is_err() {
                    return std::future::pending().await;
                }
                let mut pause = FIRST_PAUSE;
                while self.tell().await.is_err_and(|e| e.is_away()) {
                    sleep(pause).await;
                    pause = (2 * pause).min(LONGEST_PAUSE);
                }
            },
        }
    }

    async fn follow(&self, mut kept: Kept, mut instance: watch::Receiver<String>) {
        self.hint(kept.taken());
        let mut newest = self.newest.subscribe();
        let mut pause = FIRST_PAUSE;
        // Nothing before the first contact.
        let _ = instance.changed().await;
        loop {
            instance.borrow_and_update();
            let settled = self.fetch(&mut kept).await;
            let hinted = *newest.borrow_and_update();
            let done = settled.is_some_and(|newest| newest >= hinted);
            let told = self.tell().await;
            let again = async {
                match (done, told) {
                    (true, Ok(_)) => std::future::pending().await,
                    (true, Err(e)) if !e.is_away() => std::future::pending().await,
                    _ => sleep(pause).await,
                }
            };
            let waited = tokio::select! {
                Ok(()) = newest.changed() => false,
                Ok(()) = instance.changed() => false,
                () = again => true,
            };
            pause = if waited { (2 * pause).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
        }
    }

    /// Asks for what is newer than what is in force. The version up to which all is settled, if
    /// it is.
    async fn fetch(&self, kept: &mut Kept) -> Option<u64> {
        let believed = kept.collector().current();
        let key = believed.fingerprint_hex();
        let path = format!("/host/v1/policies?after={}&key={key}", kept.taken());
        let offer = match self.line.get_json::<Offer>(&path, ANSWER).await {
            Ok(offer) => offer,
            Err(error) => {
                tracing::warn!(%error, "policies of the centre cannot be asked for");
                if !error.is_away() {
                    self.fail(None, format!("they cannot be asked for: {error}"));
                }
                return None;
            }
        };
        if !super::link::follow(kept.collector(), &believed, &offer.keys) {
            return None;
        }
        self.hint(offer.newest);
        let newest = offer.newest.max(kept.taken());
        match offer.bundle {
            Some(signed) => return self.consider(kept, &signed).then_some(newest),
            None if offer.newest < kept.taken() => {
                let old = BundleError::Old { version: offer.newest, seen: kept.taken() };
                self.fail(Some(offer.newest), old.to_string());
            }
            None => self.settle(),
        }
        Some(newest)
    }

    /// Takes a bundle, or says why not. False when the same bundle is worth another try.
    fn consider(&self, kept: &mut Kept, signed: &SignedBundle) -> bool {
        let checked = match block_in_place(|| kept.check(signed)) {
            Ok(checked) => checked,
            Err((version, error)) => {
                let suspect = matches!(error, BundleError::Forged | BundleError::Old { .. });
                if version.is_some()
                    && !suspect
                    && let Err(error) = block_in_place(|| kept.note_seen())
                {
                    tracing::error!(%error, "that a version was seen cannot be kept");
                }
                tracing::error!(
                    %error, version, suspect,
                    "ALERT: policies of the centre are refused; what was in force stays"
                );
                self.fail(version, error.to_string());
                return true;
            }
        };
        if let Err(error) = block_in_place(|| kept.take(signed, &checked)) {
            let version = checked.bundle.version;
            tracing::error!(%error, version, "ALERT: policies of the centre cannot be kept");
            self.fail(Some(version), format!("they cannot be kept on disk: {error}"));
            return false;
        }
        let running = apply(&self.policies, &checked);
        tracing::info!(
            version = checked.bundle.version,
            withdrawn = checked.policies.is_none(),
            policy = running.version(),
            "policies of the centre are in force"
        );
        (self.applied)(&running);
        true
    }

    fn status(&self) -> CentralStatus {
        self.policies.central().unwrap_or_default()
    }

    /// Nothing newer is known.
    fn settle(&self) {
        self.policies.note_central(CentralStatus { error: None, refused: None, ..self.status() });
    }

    fn fail(&self, refused: Option<u64>, why: String) {
        let error = Some(why.chars().take(MAX_ERROR).collect());
        self.policies.note_central(CentralStatus { error, refused, ..self.status() });
    }

    /// Tells the collector what is in force.
    async fn tell(&self) -> Result<(), LineError> {
        let central = self.takes.then(|| self.status());
        let told: Result<Value, _> =
            self.line.post_json("/host/v1/policies", &Report { central }, ANSWER).await;
        if let Err(error) = &told {
            tracing::warn!(%error, "the collector was not told which policies are in force");
        }
        told.map(|_| ())
    }
}

/// Brings a bundle that was checked into force, beside this host's own rules.
pub fn apply(policies: &Policies, checked: &InForce) -> Arc<PolicySet> {
    let running = policies.set_central(checked.policies.clone());
    policies.note_central(CentralStatus {
        version: checked.bundle.version,
        in_force: checked.policies.is_some(),
        sha256: checked.bundle.sha256.clone(),
        rules: checked.policies.as_ref().map_or(0, |p| p.len() as u64),
        since_us: Some(checked.since_us),
        error: None,
        refused: None,
    });
    running
}

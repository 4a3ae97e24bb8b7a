//! The line between this host and its collector, as far as people are on it: holds go out,
//! orders come in.
//!
//! The host keeps one request for orders open all the time; the collector never connects to the
//! host. Whether the line stands decides who decides ([`Authority`]): a collector that cannot be
//! reached leaves requests to the local approvers where the configuration says so, and otherwise
//! to nobody, so that they are refused and not left to hang.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::centre::Centre;
use super::kept::Kept;
use super::line::{Line, LineError};
use super::orders::{OrderBook, OrderError};
use super::remote::Remote;
use super::succession::{self, SignedSuccession};
use super::trusted::Trusted;
use super::wire::{Done, Order, Orders, Raise, Withdrawal};
use crate::approval::{Approvals, Authority, Exact};
use crate::config::Config;
use crate::record::{PublicKey, now_us};

/// Longest time that the collector keeps a request for orders, and some more for the way.
const POLL: Duration = Duration::from_secs(25 + 5);
/// How long any other answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// The line is down when nothing has come through for this long.
const AWAY_AFTER: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// After an order that was not accepted, so that a confused collector is not asked without pause.
const AFTER_REFUSAL: Duration = Duration::from_secs(1);

/// Holds as the collector may know them.
#[derive(Default)]
struct Known {
    /// They may have reached it, even if its answer was lost: to be taken back when they end.
    sent: HashSet<String>,
    /// It has taken them.
    raised: HashSet<String>,
    /// It has taken them with what they would touch.
    described: HashSet<String>,
}

/// How the collector answers.
struct Contact {
    /// When it was last heard, or when this began.
    heard: Instant,
    /// When the first of the questions since then was not answered.
    failing: Option<Instant>,
}

/// The line of one host.
pub struct Link {
    line: Arc<Line>,
    remote: Arc<Remote>,
    centre: Arc<Centre>,
    collector: String,
    local_approvers: bool,
    /// Drawn anew at every start: what an earlier start raised does not wait any more.
    boot: String,
    contact: std::sync::Mutex<Contact>,
    /// The collector's own start; holds are raised again when it changes.
    instance: watch::Sender<String>,
}

impl Link {
    /// A line that is not up yet. Until it is known to be down, the collector decides.
    pub fn new(
        line: Arc<Line>,
        remote: Arc<Remote>,
        centre: Arc<Centre>,
        local_approvers: bool,
    ) -> Arc<Self> {
        let collector = line.collector().to_owned();
        remote.approvals.set_authority(Authority::Collector { collector: collector.clone() });
        Arc::new(Self {
            line,
            remote,
            centre,
            collector,
            local_approvers,
            boot: ulid::Ulid::new().to_string(),
            contact: std::sync::Mutex::new(Contact { heard: Instant::now(), failing: None }),
            instance: watch::channel(String::new()).0,
        })
    }

    /// Keeps the line up for as long as the daemon runs; never returns.
    pub async fn run(self: Arc<Self>, book: OrderBook, kept: Option<Kept>) {
        let (done, results) = mpsc::channel(1024);
        tokio::join!(
            self.orders(book, done),
            self.report(results),
            self.holds(),
            self.watch_line(),
            self.centre.run(kept, self.instance.subscribe())
        );
    }

    fn approvals(&self) -> &Arc<Approvals> {
        &self.remote.approvals
    }

    fn contact(&self) -> std::sync::MutexGuard<'_, Contact> {
        self.contact.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn here(&self) {
        *self.contact() = Contact { heard: Instant::now(), failing: None };
        let authority = Authority::Collector { collector: self.collector.clone() };
        if self.approvals().authority() != authority {
            tracing::info!(collector = self.collector, "the collector answers again");
            self.approvals().set_authority(authority);
        }
    }

    /// A question was not answered. The line is down when that lasts: one connection that breaks,
    /// perhaps after it rested long, says nothing yet.
    pub(super) fn away(&self, error: &LineError) {
        let since = *self.contact().failing.get_or_insert_with(Instant::now);
        if since.elapsed() < AWAY_AFTER {
            return;
        }
        let collector = self.collector.clone();
        let authority = match self.local_approvers {
            true => Authority::HostMeanwhile { collector },
            false => Authority::Nobody { collector },
        };
        if self.approvals().authority() != authority {
            tracing::error!(%error, collector = self.collector, local_approvers = self.local_approvers,
                "ALERT: the collector is away");
            self.approvals().set_authority(authority);
        }
    }

    /// A poll for orders that is kept open proves nothing while it is open: while something
    /// waits for people, or nothing may since the line was down, it is tried for itself.
    async fn watch_line(&self) {
        loop {
            sleep(AWAY_AFTER).await;
            let (silent, failing) = {
                let contact = self.contact();
                (contact.heard.elapsed(), contact.failing.is_some())
            };
            let up = matches!(self.approvals().authority(), Authority::Collector { .. });
            let idle = up && !failing && self.approvals().held() == 0;
            if silent < AWAY_AFTER && !failing || idle {
                continue;
            }
            let alive: Result<Value, _> = self.line.get_json("/host/v1/alive", ANSWER).await;
            match alive {
                Ok(_) => self.here(),
                Err(error) => self.away(&error),
            }
        }
    }

    async fn orders(&self, mut book: OrderBook, done: mpsc::Sender<(u64, Done)>) {
        let mut pause = FIRST_PAUSE;
        // Beyond what was accepted, so that an order that was refused is not sent again at once.
        let mut after = book.last();
        loop {
            let instance = self.instance.borrow().clone();
            let mut path =
                format!("/host/v1/orders?after={after}&boot={}&instance={instance}", self.boot);
            let believed = book.collector().current();
            path.push_str(&format!("&key={}", believed.fingerprint_hex()));
            if let Some(newest) = self.centre.newest() {
                path.push_str(&format!("&policies={newest}"));
            }
            match self.line.get_json::<Orders>(&path, POLL).await {
                Ok(answer) => {
                    self.here();
                    if !follow(book.collector(), &believed, &answer.keys) {
                        sleep(pause).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                        continue;
                    }
                    pause = FIRST_PAUSE;
                    self.instance.send_if_modified(|known| {
                        let new = *known != answer.instance;
                        known.clone_from(&answer.instance);
                        new
                    });
                    if let Some(newest) = answer.policies {
                        self.centre.hint(newest);
                    }
                    for signed in &answer.orders {
                        after = after.max(signed.seq);
                        // Its number goes to the disk, which may take a moment.
                        let accepted = block_in_place(|| book.accept(signed, now_us()));
                        let refused = accepted.is_err();
                        let _ = done.try_send((signed.seq, self.obey(signed.seq, accepted)));
                        if refused {
                            sleep(AFTER_REFUSAL).await;
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "no orders can be had");
                    self.away(&error);
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn obey(&self, seq: u64, accepted: Result<Order, OrderError>) -> Done {
        match accepted {
            Ok(order) => block_in_place(|| self.remote.carry_out(&order)),
            Err(error) => {
                let alert = matches!(error, OrderError::Forged | OrderError::OtherHost(_));
                tracing::error!(%error, seq, alert, "an order of the collector is not carried out");
                Done { result: "refused".into(), error: Some(error.to_string()), ..Done::default() }
            }
        }
    }

    /// Tells what became of orders. An answer that is lost is only words: the order stands.
    async fn report(&self, mut results: mpsc::Receiver<(u64, Done)>) {
        while let Some((seq, done)) = results.recv().await {
            let path = format!("/host/v1/orders/{seq}/done");
            for _ in 0..5 {
                match self.line.post_json::<Value>(&path, &done, ANSWER).await {
                    Err(error) if error.is_away() => sleep(FIRST_PAUSE).await,
                    Err(error) => {
                        tracing::warn!(%error, seq, "the result of an order is not taken");
                        break;
                    }
                    Ok(_) => break,
                }
            }
        }
    }

    /// Keeps the collector's picture of what waits here the same as ours.
    async fn holds(&self) {
        let mut changes = self.approvals().changes();
        let mut instance = self.instance.subscribe();
        let mut known = Known::default();
        loop {
            changes.borrow_and_update();
            if instance.has_changed().unwrap_or(false) {
                instance.borrow_and_update();
                // What waits is raised again; what ended meanwhile is still to be taken back.
                known.raised.clear();
                known.described.clear();
            }
            let complete = self.raise_and_withdraw(&mut known).await;
            let again = async {
                match complete {
                    true => std::future::pending().await,
                    false => sleep(FIRST_PAUSE).await,
                }
            };
            tokio::select! {
                gone = changes.changed() => if gone.is_err() { return },
                Ok(()) = instance.changed() => instance.mark_changed(),
                () = again => {}
            }
        }
    }

    /// Whether everything came through.
    async fn raise_and_withdraw(&self, known: &mut Known) -> bool {
        let waiting: Vec<String> = self.approvals().list().into_iter().map(|h| h.id).collect();
        // What ended makes room for what is raised.
        if !self.withdraw(&waiting, known).await {
            return false;
        }
        let mut complete = true;
        for id in &waiting {
            let described = self.approvals().is_described(id);
            if known.raised.contains(id) && (known.described.contains(id) || !described) {
                continue;
            }
            let Some(exact) = self.approvals().exact(id) else { continue };
            let body = self.message(exact);
            let path = format!("/host/v1/holds?boot={}", self.boot);
            known.sent.insert(id.clone());
            match self.line.post_json::<Value>(&path, &body, ANSWER).await {
                Ok(_) => self.here(),
                Err(error) if error.is_away() => {
                    self.away(&error);
                    return false;
                }
                Err(error) if error.is_busy() => {
                    self.here();
                    complete = false;
                    continue;
                }
                Err(error) => {
                    tracing::error!(%error, hold = id, "the collector does not take a held request");
                }
            }
            known.raised.insert(id.clone());
            if described {
                known.described.insert(id.clone());
            }
        }
        complete
    }

    /// Takes back what waits here no more; whether everything came through.
    async fn withdraw(&self, waiting: &[String], known: &mut Known) -> bool {
        let gone: Vec<String> =
            known.sent.iter().filter(|id| !waiting.contains(id)).cloned().collect();
        for id in gone {
            let how = self.approvals().ended(&id).unwrap_or_else(|| "ended".into());
            let path = format!("/host/v1/holds/{id}");
            match self.line.delete_json::<Value>(&path, &Withdrawal { how }, ANSWER).await {
                Err(error) if error.is_away() => return false,
                Err(error) => tracing::debug!(%error, hold = id, "not taken back"),
                Ok(_) => self.here(),
            }
            known.sent.remove(&id);
            known.raised.remove(&id);
            known.described.remove(&id);
        }
        true
    }

    fn message(&self, exact: Exact) -> Raise {
        let config = &self.remote.config;
        let named = |pairs: Vec<(String, String)>| urls(config, pairs);
        Raise {
            hold: exact.summary,
            statement: exact.statement.to_string(),
            values: exact.values.to_vec(),
            principal_ids: named(exact.principal_ids),
            owners: named(exact.owners),
            claims: exact.claims,
            impact: exact.impact,
        }
    }
}

/// Believes the collector's new key, if the one before has named it. Whether the answer with these
/// keys, to a question that named the key which was believed then, is signed with the one that is
/// believed now: otherwise it has to be asked again.
pub(super) fn follow(collector: &Trusted, believed: &PublicKey, keys: &[SignedSuccession]) -> bool {
    // What is believed goes to the disk, which may take a moment.
    let followed = block_in_place(|| collector.follow(keys));
    if let Err(error) = followed {
        tracing::error!(%error, alert = true, "the collector's keys are not followed");
        return false;
    }
    let after = succession::follow(believed, keys).unwrap_or_default();
    *after.last().unwrap_or(believed) == collector.current()
}

/// Issuers by `iss`: beyond this host, their configured names mean nothing.
fn urls(config: &Config, pairs: Vec<(String, String)>) -> Vec<(String, String)> {
    let url = |name: &str| {
        let issuer = config.issuers.iter().find(|i| i.name == name);
        issuer.map_or_else(|| name.to_owned(), |i| i.url.clone())
    };
    pairs.into_iter().map(|(name, id)| (url(&name), id)).collect()
}

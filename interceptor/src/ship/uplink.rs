//! Ships, on a thread of its own: batch after batch, each begun only when the one before is on
//! the collector's disk. After any failure it asks where the collector stands and goes on from
//! there, sooner at first and later each time, so that it takes up its work by itself after
//! days.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rand::Rng;
use reqwest::Client;

use super::client::{self, ANSWER};
use super::identity::{Identity, Request};
use super::{Acknowledged, Batch, Memory, Position, ShipError, Spool};
use crate::collector::wire::{FRAMES, Renew, Renewed, Report, Standing};
use crate::config::Config;
use crate::control::{ControlHandler, ShipStatus};
use crate::record::{Recorder, now_us};

/// Bytes of a batch after a failure, and at most: it doubles with each that is taken, so that a
/// way that breaks often still gets on.
const BATCH: (usize, usize) = (64 << 10, 2 << 20);
/// The store is looked at this often while nothing waits; rarer batches are larger ones, which
/// cost less for each event.
const POLL: Duration = Duration::from_millis(250);
/// A batch must be answered within this time.
const BATCH_ANSWER: Duration = Duration::from_secs(300);
/// The host tells of itself this often.
const REPORT: Duration = Duration::from_secs(10);
/// Shortest and longest wait after failures.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Counting what waits may take this part of the time.
const COUNT_SHARE: u32 = 50;

/// What is known of the shipping, for status and metrics.
#[derive(Debug, Default)]
pub struct Shipping(Mutex<ShipStatus>);

impl Shipping {
    /// As it stands.
    pub fn status(&self) -> ShipStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut ShipStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The thread that ships.
pub struct Shipper {
    url: String,
    dir: PathBuf,
    records: PathBuf,
    memory: Memory,
    recorder: Arc<Recorder>,
    handler: Arc<dyn ControlHandler>,
    shipping: Arc<Shipping>,
    position: Position,
    batch: usize,
    counted: Option<(Instant, Duration)>,
    reported: Option<Instant>,
}

impl Shipper {
    /// Starts to ship; `None` when no collector is configured.
    pub fn start(
        config: &Config,
        recorder: Arc<Recorder>,
        handler: Arc<dyn ControlHandler>,
    ) -> Result<Option<Arc<Shipping>>, ShipError> {
        let Some(ship) = &config.ship else { return Ok(None) };
        let dir = ship.state(&config.paths);
        super::make_private(&dir)?;
        let memory = Memory::open(&dir)?;
        // What was acknowledged before counts again when the collector has said so.
        let before = memory.acknowledged()?;
        let shipping = Arc::new(Shipping::default());
        shipping.change(|s| {
            s.collector.clone_from(&ship.collector);
            s.acknowledged_ledger = before.position.ledger;
            s.acknowledged_us = (before.at_us > 0).then_some(before.at_us);
        });
        let shipper = Self {
            url: ship.collector.clone(),
            records: config.paths.state.clone(),
            dir,
            memory,
            recorder,
            handler,
            shipping: Arc::clone(&shipping),
            position: before.position,
            batch: BATCH.0,
            counted: None,
            reported: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| ShipError::io("start the thread of", &shipper.dir, e))?;
        let started = std::thread::Builder::new()
            .name("ship".into())
            .spawn(move || runtime.block_on(shipper.run()));
        match started {
            Ok(_detached) => Ok(Some(shipping)),
            Err(e) => Err(ShipError::io("start the thread for", std::path::Path::new("ship"), e)),
        }
    }

    async fn run(mut self) {
        let mut failures = 0;
        loop {
            let before = self.shipping.status().batches;
            let Err(error) = self.connected().await;
            if self.shipping.status().batches > before {
                failures = 0;
            }
            self.batch = BATCH.0;
            let text = error.to_string();
            if self.shipping.status().problem.as_ref() != Some(&text) {
                tracing::warn!(error = %text, "records are not shipped");
            }
            self.shipping.change(|s| {
                s.connected = false;
                s.errors += 1;
                s.problem = Some(text);
            });
            self.count();
            tokio::time::sleep(backoff(failures, &error)).await;
            failures += 1;
        }
    }

    /// Ships until something fails.
    async fn connected(&mut self) -> Result<std::convert::Infallible, ShipError> {
        let mut identity = self.identity()?;
        let mut client = client::enrolled(&identity)?;
        let mut spool = Spool::open(&self.records)?;
        self.resume(&client, &spool).await?;
        self.shipping.change(|s| {
            s.connected = true;
            s.problem = None;
        });
        tracing::info!(collector = %self.url, "shipping records");
        loop {
            if identity.is_due(SystemTime::now()) {
                self.renew(&client).await?;
                identity = self.identity()?;
                client = client::enrolled(&identity)?;
            }
            if self.reported.is_none_or(|t| t.elapsed() >= REPORT) {
                self.report(&client).await?;
            }
            let changed = spool.changed();
            match if changed { spool.next(&self.position, self.batch)? } else { None } {
                Some(batch) => {
                    let (more, after) = (batch.more, batch.after.clone());
                    self.send(&client, batch).await?;
                    if more || self.position != after {
                        // Looked at again without waiting for the store to change.
                        spool.look_again();
                        continue;
                    }
                }
                None if changed => self.shipping.change(|s| {
                    (s.waiting_events, s.oldest_us) = (0, None);
                }),
                None => {}
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn identity(&self) -> Result<Identity, ShipError> {
        let Some(identity) = Identity::load(&self.dir)? else {
            return Err(ShipError::Enrolment(
                "this host is not enrolled: get a code with `interceptor collector enrol` and \
                 run `interceptor ship enrol`"
                    .into(),
            ));
        };
        if identity.known.url != self.url {
            return Err(ShipError::Enrolment(format!(
                "this host is enrolled at {}, and ship.collector is {}: enrol it there",
                identity.known.url, self.url
            )));
        }
        if identity.is_over(SystemTime::now()) {
            return Err(ShipError::Enrolment(
                "the certificate has ended: see the clock, or enrol this host again".into(),
            ));
        }
        let until = identity.life.1.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.shipping.change(|s| {
            s.enrolled = true;
            s.certificate_until_us = i64::try_from(until.as_micros()).ok();
        });
        Ok(identity)
    }

    /// Asks where the collector stands.
    async fn resume(&mut self, client: &Client, spool: &Spool) -> Result<(), ShipError> {
        let here = spool.ledger()?;
        let url = format!("{}/host/v1/position?ledger={here}", self.url);
        let standing: Standing = client::call(client.get(url).timeout(ANSWER)).await?;
        if standing.position.ledger > here {
            let message = format!(
                "the collector has ledger entries up to {}, and here they end at {here}: an older \
                 copy was put back; nothing is shipped and nothing deleted until the newer one is \
                 there again",
                standing.position.ledger
            );
            return Err(ShipError::State { path: self.records.clone(), message });
        }
        let acknowledged = self.memory.acknowledged()?.position.ledger;
        if standing.position.ledger < acknowledged {
            // It is told what is still here; the rest only its backup has.
            tracing::error!(
                had = acknowledged,
                has = standing.position.ledger,
                "the collector lost ledger entries that it had acknowledged: was it put back?"
            );
        }
        self.acknowledged(standing.position)
    }

    fn acknowledged(&mut self, position: Position) -> Result<(), ShipError> {
        self.position = position;
        let at_us = now_us();
        let acknowledged = Acknowledged { position: self.position.clone(), at_us };
        self.memory.acknowledge(&acknowledged)?;
        self.recorder.acknowledge(self.position.ledger);
        self.shipping.change(|s| {
            s.acknowledged_ledger = self.position.ledger;
            s.acknowledged_us = Some(at_us);
        });
        Ok(())
    }

    async fn send(&mut self, client: &Client, batch: Batch) -> Result<(), ShipError> {
        let post = client
            .post(format!("{}/host/v1/batch", self.url))
            .timeout(BATCH_ANSWER)
            .header(reqwest::header::CONTENT_TYPE, FRAMES)
            .body(batch.frames);
        match client::call::<Standing>(post).await {
            Ok(standing) => {
                let mut position = standing.position;
                if position == self.position {
                    return Err(ShipError::Away("the collector takes batches and stays".into()));
                }
                // Nothing counts that was not sent.
                position.ledger = position.ledger.min(batch.after.ledger);
                self.acknowledged(position)?;
                self.batch = (2 * self.batch).min(BATCH.1);
                self.shipping.change(|s| {
                    s.batches += 1;
                    s.shipped_events += batch.events;
                    s.waiting_events = s.waiting_events.saturating_sub(batch.events);
                });
                if batch.more {
                    self.count();
                }
                Ok(())
            }
            Err(ShipError::Refused(refused)) if refused.standing.is_some() => {
                // A gap: it goes on from where the collector stands, unless it already did.
                let standing = refused.standing.clone().unwrap_or_default();
                if standing.position == self.position {
                    return Err(ShipError::Refused(refused));
                }
                self.position = standing.position;
                Ok(())
            }
            Err(other) => Err(other),
        }
    }

    async fn renew(&self, client: &Client) -> Result<(), ShipError> {
        let request = Request::new()?;
        let body = Renew { csr_pem: request.csr_pem.clone() };
        let post = client.post(format!("{}/host/v1/renew", self.url)).timeout(ANSWER).json(&body);
        let renewed: Renewed = client::call(post).await?;
        request.keep(&self.dir, &renewed.certificate_pem)?;
        tracing::info!("the certificate was renewed");
        Ok(())
    }

    async fn report(&mut self, client: &Client) -> Result<(), ShipError> {
        self.reported = Some(Instant::now());
        let Ok(status) = self.handler.status().await else { return Ok(()) };
        let lag_events = self.shipping.status().waiting_events;
        let report = Report { status, lag_events, now_us: now_us() };
        let post = client.post(format!("{}/host/v1/status", self.url)).timeout(ANSWER);
        client::call::<()>(post.json(&report)).await
    }

    /// Counts what waits, unless that would take too much of the time.
    fn count(&mut self) {
        let due = self.counted.is_none_or(|(at, took)| at.elapsed() > took * COUNT_SHARE);
        if !due {
            return;
        }
        let begun = Instant::now();
        let waiting = Spool::open(&self.records).and_then(|s| s.waiting(&self.position));
        self.counted = Some((Instant::now(), begun.elapsed().max(Duration::from_millis(20))));
        if let Ok(waiting) = waiting {
            self.shipping.change(|s| {
                (s.waiting_events, s.oldest_us) = (waiting.events, waiting.oldest_us);
            });
        }
    }
}

/// Doubles with each failure, and is never the same for two hosts. What a person must mend is
/// tried more rarely.
fn backoff(failures: u32, error: &ShipError) -> Duration {
    let (shortest, longest) = BACKOFF;
    let first = match error {
        ShipError::Refused(_) | ShipError::Enrolment(_) => 8 * shortest,
        _ => shortest,
    };
    let full = first.saturating_mul(1 << failures.min(10)).min(longest);
    full.mul_f64(rand::rng().random_range(0.5..1.0))
}

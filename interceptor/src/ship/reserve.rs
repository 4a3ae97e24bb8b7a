//! Reserving tokens at the collector, so that one token is not used at two hosts.
//!
//! The collector has 150 ms. What then happens is the service's choice: the token is refused, or
//! it is taken and the question asked again until it is answered; a conflict that comes out later
//! ends the sessions here, and the collector ends those at the other host.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinSet, block_in_place};
use tokio::time::{sleep, timeout};

use super::line::{Line, LineError};
use super::remote::Remote;
use super::wire::{ReserveAnswer, ReserveToken};
use crate::config::{Config, Reserve as Mode};
use crate::identity::{Reservation, Reserve, Reserved, Reserving};
use crate::record::now_us;

/// How long a connection waits for the collector.
const PATIENCE: Duration = Duration::from_millis(150);
/// How long one question that nobody waits for may take.
const UNHURRIED: Duration = Duration::from_secs(5);
/// Most tokens whose question is open; beyond it they are refused.
const MAX_OPEN: usize = 4096;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The fleet, as far as tokens go.
pub struct Fleet {
    line: Arc<Line>,
    modes: HashMap<String, Mode>,
    later: mpsc::Sender<ReserveToken>,
}

impl Fleet {
    /// For the services of this host. The second part settles what could not be settled at once;
    /// it has to run.
    pub fn new(
        line: Arc<Line>,
        config: &Config,
        default: Mode,
    ) -> (Arc<Self>, mpsc::Receiver<ReserveToken>) {
        let (later, open) = mpsc::channel(MAX_OPEN);
        let modes = config.services.iter();
        let modes = modes.map(|s| (s.name.clone(), s.reserve.unwrap_or(default))).collect();
        (Arc::new(Self { line, modes, later }), open)
    }

    async fn ask(&self, token: &Reservation) -> Reserved {
        let mode = self.modes.get(&token.service).copied().unwrap_or_default();
        if mode == Mode::Off {
            return Reserved::Ours;
        }
        let mut wanted = ReserveToken {
            issuer: token.issuer.clone(),
            jti_hash: token.jti_hash.clone(),
            expires_us: token.expires.saturating_mul(1_000_000),
            source: token.source.clone(),
            taken: false,
        };
        match timeout(PATIENCE, reserve(&self.line, &wanted, PATIENCE)).await {
            Ok(Ok(true)) => return Reserved::Ours,
            Ok(Ok(false)) => return Reserved::Elsewhere,
            Ok(Err(error)) => tracing::warn!(%error, "a token could not be reserved"),
            Err(_) => tracing::warn!("the collector did not answer in time for a token"),
        }
        wanted.taken = true;
        match mode {
            Mode::Allow if self.later.try_send(wanted).is_ok() => Reserved::Later,
            _ => Reserved::Unanswered,
        }
    }
}

impl Reserve for Fleet {
    fn reserve(&self, token: Reservation) -> Reserving<'_> {
        Box::pin(async move { self.ask(&token).await })
    }
}

async fn reserve(line: &Line, token: &ReserveToken, patience: Duration) -> Result<bool, LineError> {
    let answer: ReserveAnswer = line.post_json("/host/v1/tokens/reserve", token, patience).await?;
    Ok(answer.ours)
}

/// Settles tokens that were taken without an answer; returns when the fleet is gone.
pub async fn settle(line: Arc<Line>, remote: Arc<Remote>, mut open: mpsc::Receiver<ReserveToken>) {
    let mut tasks = JoinSet::new();
    while let Some(token) = open.recv().await {
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= MAX_OPEN {
            tasks.join_next().await;
        }
        tasks.spawn(settle_one(line.clone(), remote.clone(), token));
    }
}

/// Asks until there is an answer or the token is dead.
async fn settle_one(line: Arc<Line>, remote: Arc<Remote>, token: ReserveToken) {
    let mut pause = FIRST_PAUSE;
    while token.expires_us > now_us() {
        // Long enough for the session to be entered in the list, where it is ended.
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        match reserve(&line, &token, UNHURRIED).await {
            Ok(true) => return,
            Ok(false) => {
                block_in_place(|| remote.conflict(&token.issuer, &token.jti_hash));
                return;
            }
            Err(error) => tracing::debug!(%error, "a token is not settled yet"),
        }
    }
}

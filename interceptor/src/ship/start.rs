//! Bringing the line to the collector up inside the daemon: before the first connection is
//! served, so that no token is taken and no request decided as if there were no collector.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::centre::Centre;
use super::client;
use super::identity::Identity;
use super::kept::Kept;
use super::line::{Line, LineError};
use super::link::Link;
use super::orders::OrderBook;
use super::remote::Remote;
use super::reserve::{Fleet, settle};
use super::trusted::Trusted;
use super::wire::ReserveToken;
use crate::config::{OnTimeout, Reserve};
use crate::session::Gate;

/// How often is looked whether the host has been enrolled, or its certificate renewed.
const LOOK: Duration = Duration::from_secs(2);

/// A line that has been prepared and has to be run.
pub struct Starting {
    dir: PathBuf,
    line: Arc<Line>,
    link: Arc<Link>,
    remote: Arc<Remote>,
    open: mpsc::Receiver<ReserveToken>,
    fingerprint: String,
    /// Whether policies of the centre are taken.
    takes: bool,
    gate: Arc<Gate>,
}

/// Prepares the line of a daemon; `None` where no collector is configured. From here on tokens
/// are reserved and requests decided at the collector, whether it answers or not.
pub fn prepare(gate: &Arc<Gate>) -> Option<Starting> {
    let config = &gate.config;
    let ship = config.ship.as_ref()?;
    let line = Arc::new(Line::new(&ship.collector));
    let remote = Arc::new(Remote {
        config: Arc::clone(config),
        approvals: Arc::clone(&gate.approvals),
        live: Arc::clone(&gate.live),
        identity: Arc::clone(gate.identity()),
    });
    let default = match ship.on_timeout {
        OnTimeout::Deny => Reserve::Deny,
        OnTimeout::Allow => Reserve::Allow,
    };
    let (fleet, open) = Fleet::new(Arc::clone(&line), config, default);
    gate.identity().reserve_at(fleet);
    let takes = ship.central_policies;
    let seen = Arc::clone(gate);
    let applied = Box::new(move |policies: &_| seen.look_at_masks(policies));
    let centre = Centre::new(Arc::clone(&line), Arc::clone(&gate.policies), takes, applied);
    let link = Link::new(Arc::clone(&line), Arc::clone(&remote), centre, ship.local_approvers);
    let fingerprint = gate.recorder.public_key().fingerprint_hex();
    let dir = ship.state(&config.paths);
    let gate = Arc::clone(gate);
    Some(Starting { dir, line, link, remote, open, fingerprint, takes, gate })
}

impl Starting {
    /// Keeps the line up for as long as the daemon runs; never returns.
    pub async fn run(self) {
        let Self { dir, line, link, remote, open, fingerprint, takes, gate } = self;
        let settling = tokio::spawn(settle(Arc::clone(&line), remote, open));
        let identity = enrolled(&dir, &line, &link).await;
        let (trusted, book) = loop {
            let trusted = Trusted::of(&dir, &identity).map(Arc::new).map_err(|e| e.to_string());
            let opened = trusted.and_then(|trusted| {
                let book = OrderBook::open(&dir, Arc::clone(&trusted), &fingerprint);
                book.map(|book| (trusted, book)).map_err(|e| e.to_string())
            });
            match opened {
                Ok(opened) => break opened,
                Err(error) => {
                    tracing::error!(error, "no orders of the collector can be carried out");
                    link.away(&LineError::NotEnrolled);
                    sleep(Duration::from_secs(60)).await;
                }
            }
        };
        let kept = if takes { keeping(&dir, trusted, &gate) } else { None };
        tokio::join!(link.run(book, kept), renewed(&dir, &line, identity.life.1));
        settling.abort();
    }
}

/// Waits until this host is enrolled, and connects the line.
async fn enrolled(dir: &std::path::Path, line: &Line, link: &Link) -> Identity {
    loop {
        match connect(dir, line) {
            Ok(Some(identity)) => return identity,
            Ok(None) => {}
            Err(error) => tracing::error!(error, "the collector cannot be asked"),
        }
        link.away(&LineError::NotEnrolled);
        sleep(LOOK).await;
    }
}

fn connect(dir: &std::path::Path, line: &Line) -> Result<Option<Identity>, String> {
    let Some(identity) = Identity::load(dir).map_err(|e| e.to_string())? else { return Ok(None) };
    line.connect(client::enrolled(&identity).map_err(|e| e.to_string())?);
    Ok(Some(identity))
}

/// Takes over a certificate that was renewed; never returns.
async fn renewed(dir: &std::path::Path, line: &Line, mut until: SystemTime) {
    loop {
        sleep(30 * LOOK).await;
        match Identity::load(dir) {
            Ok(Some(identity)) if identity.life.1 != until => match connect(dir, line) {
                Ok(Some(identity)) => until = identity.life.1,
                Ok(None) => {}
                Err(error) => tracing::error!(error, "a renewed certificate cannot be used"),
            },
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "the certificate for the collector"),
        }
    }
}

/// What is kept of the centre's policies. A host that was enrolled after its start brings it
/// into force here.
fn keeping(dir: &std::path::Path, trusted: Arc<Trusted>, gate: &Gate) -> Option<Kept> {
    match Kept::open(dir, trusted) {
        Ok((kept, in_force)) => {
            if let Some(in_force) = in_force {
                super::centre::apply(&gate.policies, &in_force);
            }
            Some(kept)
        }
        Err(error) => {
            tracing::error!(%error, "ALERT: no policies of the centre are taken");
            let error = Some(error.to_string());
            let status = gate.policies.central().unwrap_or_default();
            gate.policies.note_central(crate::control::CentralStatus { error, ..status });
            None
        }
    }
}

//! The relay: judged requests to the service, guarded answers to the agent.
//!
//! One task moves both directions ([`io`]). What comes from the agent is cut into messages,
//! judged (`permit`, `hold`) and recorded (`record`) before any byte of it is queued for the
//! service (`frontend`), or refused (`refuse`); what comes from the service is matched with what
//! is owed ([`exchange`]), compared with what was judged (`compare`), masked and counted
//! (`backend`). Messages that need no change are passed through as they arrive and never
//! collected.
//!
//! The loop is here, and the state that all of it shares. Bytes reach the service in one place
//! only, `Relay::commit`, and never before the record of what they ask for.

mod backend;
mod cancel;
mod clock;
mod compare;
mod ending;
pub mod exchange;
mod frontend;
mod hold;
pub mod io;
mod permit;
pub mod prepared;
mod quiet;
mod record;
mod refuse;
mod values;

pub use ending::{Fault, Finish};
pub use frontend::application_name;
pub use quiet::{Settings, excess_privilege, ready_judge};
pub use values::bind as bind_values;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::session::catalogs::Snapshot;
use crate::session::hold::GrantRef;
use crate::session::live::Ending;
use crate::session::log::Commit;
use crate::session::sql::Judge;
use crate::session::{Admitted, Session};

use super::upstream::UpstreamKey;
use cancel::delivered;
use clock::{arm, far};
use exchange::Exchange;
use hold::{Decided, Parked, decided, withdrawn};
use io::{HIGH_WATER, Io, Wants};
use prepared::Held;

/// How late the record of an answer may be.
const TRAIL: Duration = Duration::from_millis(100);

/// Most answers that may be owed before the agent is read further.
const MAX_OWED: usize = 10_000;

/// What has to be asked of the server before the next request is judged.
#[derive(Debug, Clone, Copy, Default)]
struct Stale {
    /// Search path, role, encoding.
    settings: bool,
    /// Objects.
    catalog: bool,
}

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    session: Session<Admitted>,
    io: Io,
    exchange: Exchange,
    held: Held,
    judge: Judge,
    key: Option<UpstreamKey>,
    /// `I`, `T` or `E`, of the last ReadyForQuery.
    status: u8,
    /// Judged bytes for the service that are not committed to the record yet.
    staged: BytesMut,
    /// Bytes of the agent's current message still to be passed through.
    client_pass: usize,
    /// Bytes of the agent's current message still to be thrown away.
    client_discard: usize,
    /// Bytes of the service's current message still to be passed through.
    service_pass: usize,
    /// What is passed through is CopyData.
    passing_copy: bool,
    /// Bytes of the service's current message still to be thrown away.
    service_discard: usize,
    /// Checks the streamed rest of a large masked row.
    tail: Option<crate::mask::Tail>,
    /// Bytes of a large row that have to be here before it is looked at again.
    row_look: usize,
    /// A refused extended message: the agent's messages are ignored up to Sync.
    skip: bool,
    /// The agent waits until everything owed has come.
    wants_quiet: bool,
    /// The rest of the answer up to ReadyForQuery is kept from the agent.
    mute: bool,
    /// A cancel of our own on its way; until it has arrived nothing new may run.
    cancelling: Option<JoinHandle<()>>,
    parked: Option<Parked>,
    decided: Option<Decided>,
    /// A text whose execution a human granted, until the batch's Sync, with its request.
    batch_grant: Option<(Arc<str>, u64)>,
    /// The standing grant under which what runs was let run.
    grant: Option<GrantRef>,
    stale: Stale,
    /// What the open transaction changed, and its end may change back.
    touched: Stale,
    /// The catalog and when it was taken.
    snapshot: Snapshot,
    /// The catalog in use is this session's own, since it changed the catalog itself.
    own_catalog: bool,
    /// The effective search path.
    path: Vec<String>,
    encoding: &'static encoding_rs::Encoding,
    /// Prefix of `application_name` on the server.
    prefix: String,
    result_limit: usize,
    text_limit: usize,
    row_limit: usize,
    /// When the trailing record is due.
    trail: Option<Instant>,
    /// When the running statement must be over.
    limit: Option<Instant>,
    expires: Option<Instant>,
    /// The agent has ended the session, or its time has.
    terminated: bool,
    /// The service has said itself that it ends the session.
    told_fatal: bool,
}

/// What a relay starts with.
#[derive(Debug)]
pub struct Start {
    /// The admitted session.
    pub session: Session<Admitted>,
    /// Both transports.
    pub io: Io,
    /// The judge, knowing catalog and path.
    pub judge: Judge,
    /// The catalog that the judge knows.
    pub snapshot: Snapshot,
    /// The effective search path.
    pub path: Vec<String>,
    /// The agent's encoding.
    pub encoding: &'static encoding_rs::Encoding,
    /// Prefix of `application_name` on the server.
    pub prefix: String,
    /// Whether the session has objects of its own.
    pub own_catalog: bool,
}

impl Relay {
    /// A relay that is ready for the agent's first request.
    pub fn new(start: Start) -> Self {
        let Start { session, io, judge, snapshot, path, encoding, prefix, own_catalog } = start;
        let record = &session.gate().config.record;
        let (result_limit, text_limit) = (record.result_bytes as usize, record.text_bytes as usize);
        let row_limit = session.service().row_buffer as usize;
        let expires = session.expires_at().map(|at| {
            Instant::now() + at.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO)
        });
        Self {
            key: io.service.key.clone(),
            status: io.service.status,
            session,
            io,
            exchange: Exchange::default(),
            held: Held::default(),
            judge,
            staged: BytesMut::new(),
            client_pass: 0,
            client_discard: 0,
            service_pass: 0,
            passing_copy: false,
            service_discard: 0,
            tail: None,
            row_look: 0,
            skip: false,
            wants_quiet: false,
            mute: false,
            cancelling: None,
            parked: None,
            decided: None,
            batch_grant: None,
            grant: None,
            stale: Stale::default(),
            touched: Stale::default(),
            snapshot,
            own_catalog,
            path,
            encoding,
            prefix,
            result_limit,
            text_limit,
            row_limit,
            trail: None,
            limit: None,
            expires,
            terminated: false,
            told_fatal: false,
        }
    }

    /// Relays until either side ends, and seals the record.
    pub async fn run(mut self, mut cancels: mpsc::Receiver<()>) {
        let mut ending = self.session.live().ending();
        let finish = match self.relay(&mut cancels, &mut ending).await {
            Ok(finish) => finish,
            Err(fault) => self.fault(&fault).await,
        };
        self.close_requests(finish.reason);
        let Self { session, .. } = self;
        session.end(finish.reason, finish.detail.as_deref());
    }

    async fn relay(
        &mut self,
        cancels: &mut mpsc::Receiver<()>,
        ending: &mut watch::Receiver<Ending>,
    ) -> Result<Finish, Fault> {
        let mut sleep = Box::pin(tokio::time::sleep_until(far()));
        let mut armed = far();
        loop {
            self.backend()?;
            if self.grant.is_some() && self.exchange.is_quiet() && self.decided.is_none() {
                self.grant = None;
            }
            if self.clock_says_expired()
                && let Some(finish) = self.tick().await?
            {
                return Ok(finish);
            }
            self.frontend().await?;
            self.commit().await?;
            if self.terminated && self.io.to_upstream.is_empty() && self.exchange.is_quiet() {
                return Ok(Finish::because("client"));
            }
            arm(&mut sleep, &mut armed, self.next_deadline());
            let wants = self.wants();
            let io = &mut self.io;
            tokio::select! {
                biased;
                moved = poll_fn(|cx| io.poll(cx, wants)) => {
                    if let Some(finish) = self.moved(moved).await? {
                        return Ok(finish);
                    }
                }
                () = delivered(&mut self.cancelling) => self.cancelling = None,
                outcome = decided(&mut self.parked) => self.unpark(&outcome)?,
                gone = withdrawn(&mut self.grant) => {
                    self.grant = None;
                    if gone && !self.exchange.is_quiet() {
                        self.cancel_upstream();
                    }
                }
                Some(()) = cancels.recv() => self.cancel()?,
                Ok(()) = ending.changed() => {
                    let order = ending.borrow_and_update().clone();
                    if let Some(finish) = self.ordered(order).await {
                        return Ok(finish);
                    }
                }
                () = &mut sleep => {
                    armed = far();
                    if let Some(finish) = self.tick().await? {
                        return Ok(finish);
                    }
                }
            }
        }
    }

    fn wants(&self) -> Wants {
        let blocked = self.wants_quiet
            || self.parked.is_some()
            || self.cancelling.is_some()
            || self.exchange.owed() > MAX_OWED;
        // A blocked agent is still read a little, so that its end is noticed.
        let client = if blocked { self.io.from_client.len() < 64 * 1024 } else { true };
        Wants { client: client && !self.terminated, upstream: true }
    }

    /// Makes what is staged durable and then, only then, gives it to the transport.
    async fn commit(&mut self) -> Result<(), Fault> {
        if self.staged.is_empty() {
            if self.session.log().is_dirty() && self.trail.is_none() {
                self.trail = Some(Instant::now() + TRAIL);
            }
            return Ok(());
        }
        if self.session.log().is_dirty()
            && let Commit::Pending(durable) = self.session.log().commit()?
        {
            durable.await?;
        }
        if self.io.to_upstream.is_empty() {
            std::mem::swap(&mut self.io.to_upstream, &mut self.staged);
        } else {
            self.io.to_upstream.extend_from_slice(&self.staged);
            self.staged.clear();
        }
        Ok(())
    }

    /// Our words with the session's id.
    fn words(&self, text: &str) -> String {
        format!("interceptor: {text} (session {})", self.session.id())
    }
}

/// Whether so much waits for the service that the agent is not read further.
fn is_full(staged: &BytesMut) -> bool {
    staged.len() >= HIGH_WATER
}

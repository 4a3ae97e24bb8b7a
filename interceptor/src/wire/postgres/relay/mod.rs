//! The relay: judged requests to the service, guarded answers to the agent.
//!
//! One task moves both directions ([`io`]). What comes from the agent is cut into messages,
//! judged and recorded before any byte of it is queued for the service (`frontend`); what comes
//! from the service is matched with what is owed ([`exchange`]), compared with what was judged,
//! masked and counted (`backend`). Messages that need no change are passed through as they
//! arrive and never collected.

mod backend;
pub mod exchange;
mod frontend;
pub mod io;
pub mod prepared;
mod quiet;
mod values;

pub use frontend::application_name;
pub use quiet::{Settings, excess_privilege, ready_judge};
pub use values::bind as bind_values;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};

use crate::session::catalogs::Snapshot;
use crate::session::hold::{GrantRef, Outcome, Scope, Waiting};
use crate::session::live::Ending;
use crate::session::log::{Commit, RecordError};
use crate::session::sql::{Denial, Judge};
use crate::session::{Admitted, Session};

use super::codec::{CodecError, Report};
use super::upstream::{self, UpstreamError, UpstreamKey};
use exchange::{Exchange, Slot};
use io::{HIGH_WATER, Io, IoFailure, Moved, Wants};
use prepared::Held;

/// How late the record of an answer may be.
const TRAIL: Duration = Duration::from_millis(100);

/// Most answers that may be owed before the agent is read further.
const MAX_OWED: usize = 10_000;

/// Why a session ends.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The agent broke the protocol.
    #[error("agent: {0}")]
    Agent(CodecError),
    /// The service broke the protocol.
    #[error("service: {0}")]
    Service(CodecError),
    /// A question of our own could not be answered.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The record cannot be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A rule of the relay was broken; the message says which.
    #[error("{0}")]
    Refused(String),
}

/// How a session ended, in the record's words.
#[derive(Debug)]
pub struct Finish {
    /// `client`, `server`, `expired`, `policy`, `store`, `shutdown`, `protocol`.
    pub reason: &'static str,
    /// More words.
    pub detail: Option<String>,
}

impl Finish {
    fn because(reason: &'static str) -> Self {
        Self { reason, detail: None }
    }
}

/// A hold that the agent's next message waits for.
#[derive(Debug)]
struct Parked {
    waiting: Waiting,
    /// The text that is held.
    text: Arc<str>,
}

/// A decision on the message at the front of the agent's buffer, made while it was parked.
#[derive(Debug)]
struct Decided {
    text: Arc<str>,
    request: u64,
    /// `None`: granted.
    denial: Option<Denial>,
}

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
                    let order = *ending.borrow_and_update();
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

    /// The deadline counts time that passes; a clock that was set forward counts too, for what
    /// the agent asks from then on.
    fn clock_says_expired(&mut self) -> bool {
        let expired = !self.terminated
            && !self.io.from_client.is_empty()
            && self.session.expires_at().is_some_and(|at| at <= SystemTime::now());
        if expired {
            self.expires = Some(Instant::now());
        }
        expired
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

    async fn moved(&mut self, moved: Result<Moved, IoFailure>) -> Result<Option<Finish>, Fault> {
        Ok(match moved {
            Ok(Moved::Progress) => None,
            Ok(Moved::ClientEnd) => Some(Finish {
                reason: "client",
                detail: Some("the agent closed without Terminate".into()),
            }),
            Ok(Moved::UpstreamEnd) => {
                self.service_gone().await?;
                Some(Finish::because("server"))
            }
            Err(IoFailure::Client(e)) => {
                Some(Finish { reason: "client", detail: Some(e.to_string()) })
            }
            Err(IoFailure::Upstream(e)) => {
                self.service_gone().await?;
                Some(Finish { reason: "server", detail: Some(e.to_string()) })
            }
        })
    }

    /// Hands on what the service still said, and says that it is gone if it did not say so.
    async fn service_gone(&mut self) -> Result<(), Fault> {
        self.backend()?;
        if !self.terminated && !self.told_fatal && self.service_pass == 0 {
            let words = self.words("SERVICE_ENDED: the service closed the connection");
            Report::fatal("08006", words).write(&mut self.io.to_client);
        }
        self.flush_client().await;
        Ok(())
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

    fn next_deadline(&self) -> Instant {
        [self.trail, self.limit, self.expires].into_iter().flatten().min().unwrap_or_else(far)
    }

    async fn tick(&mut self) -> Result<Option<Finish>, Fault> {
        let now = Instant::now();
        if self.trail.is_some_and(|at| at <= now) {
            self.trail = None;
            if self.session.log().is_dirty() {
                // Nothing waits for it: what trails may trail.
                let _ = self.session.log().commit()?;
            }
        }
        if self.limit.is_some_and(|at| at <= now) {
            self.limit = None;
            self.cancel_upstream();
        }
        if self.expires.is_some_and(|at| at <= now) {
            let running = !self.exchange.is_quiet();
            let grace = self.session.expiry_grace();
            if running && !grace.is_zero() && !self.terminated {
                // The running statement may go on for the grace; nothing new is taken.
                self.terminated = true;
                self.expires = Some(now + grace);
                return Ok(None);
            }
            self.farewell("57P01", "TOKEN_EXPIRED: the token of this session has expired").await;
            return Ok(Some(Finish::because("expired")));
        }
        Ok(None)
    }

    async fn ordered(&mut self, order: Ending) -> Option<Finish> {
        let (reason, words) = match order {
            Ending::None => return None,
            Ending::Shutdown => ("shutdown", "SHUTDOWN: interceptor is stopping"),
            Ending::Killed => ("killed", "KILLED: the session was ended by an operator"),
            Ending::RecordLost => ("store", "RECORD_UNAVAILABLE: the session cannot be recorded"),
        };
        self.farewell("57P01", words).await;
        Some(Finish::because(reason))
    }

    async fn fault(&mut self, fault: &Fault) -> Finish {
        let (reason, code, words) = match fault {
            Fault::Agent(e) => ("protocol", "08P01", format!("PROTOCOL: {e}")),
            Fault::Service(e) => ("server", "08P01", format!("SERVICE_PROTOCOL: {e}")),
            Fault::Upstream(e) => ("server", "08006", format!("SERVICE: {e}")),
            Fault::Record(_) => (
                "store",
                "57P01",
                "RECORD_UNAVAILABLE: nothing can be recorded, so nothing is let through".into(),
            ),
            Fault::Refused(what) => ("policy", "57P01", what.clone()),
        };
        tracing::warn!(session = %self.session.id(), %fault, "session ends");
        self.farewell(code, &words).await;
        Finish { reason, detail: Some(fault.to_string()) }
    }

    /// A last word to the agent, where the stream stands at a message's border.
    async fn farewell(&mut self, code: &'static str, words: &str) {
        if self.service_pass == 0 {
            let message = self.words(words);
            Report::fatal(code, message).write(&mut self.io.to_client);
        }
        self.flush_client().await;
        if !self.exchange.is_quiet() {
            self.cancel_upstream();
        }
    }

    /// Writes what waits for the agent, for a second at most.
    async fn flush_client(&mut self) {
        let wants = Wants { client: false, upstream: false };
        let io = &mut self.io;
        let flush = async {
            while !io.to_client.is_empty() {
                io.to_upstream.clear();
                if poll_fn(|cx| io.poll(cx, wants)).await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), flush).await;
    }

    /// Our words with the session's id.
    fn words(&self, text: &str) -> String {
        format!("interceptor: {text} (session {})", self.session.id())
    }

    /// The agent asked to cancel what runs.
    fn cancel(&mut self) -> Result<(), Fault> {
        let Some(parked) = self.parked.take() else {
            self.cancel_upstream();
            return Ok(());
        };
        self.session.hold_ended(&parked.waiting, "cancelled", None, None, None)?;
        self.decided = Some(Decided {
            text: parked.text,
            request: parked.waiting.request,
            denial: Some(Denial {
                code: "57014",
                message: "canceling statement due to user request".into(),
                hint: None,
                rule: "cancelled".into(),
            }),
        });
        Ok(())
    }

    fn cancel_upstream(&self) -> Option<JoinHandle<()>> {
        let key = self.key.clone()?;
        let service = Arc::clone(self.session.service());
        let pins = self.session.gate().pins().cloned();
        let id = self.session.id();
        Some(tokio::spawn(async move {
            if let Err(error) = upstream::cancel(&service, pins.as_deref(), &key).await {
                tracing::warn!(session = %id, %error, "cancel could not be delivered");
            }
        }))
    }

    /// A human decided, or nobody did in time.
    fn unpark(&mut self, outcome: &Outcome) -> Result<(), Fault> {
        let Some(parked) = self.parked.take() else { return Ok(()) };
        let id = parked.waiting.id().to_owned();
        let denial = match outcome {
            Outcome::Granted { by, scope, reason, grant, .. } => {
                self.grant.clone_from(grant);
                let scope = match scope {
                    Scope::Once => "once".to_owned(),
                    Scope::ShapeFor(time) => format!("shape for {} s", time.as_secs()),
                };
                self.session.hold_ended(
                    &parked.waiting,
                    "granted",
                    Some(&by.to_string()),
                    Some(&scope),
                    reason.as_deref(),
                )?;
                None
            }
            Outcome::Denied { by, reason } => {
                self.session.hold_ended(
                    &parked.waiting,
                    "denied",
                    Some(&by.to_string()),
                    None,
                    reason.as_deref(),
                )?;
                let why = reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
                Some(format!("HOLD_DENIED: hold {id} was denied{why}"))
            }
            Outcome::Expired => {
                self.session.hold_ended(&parked.waiting, "expired", None, None, None)?;
                Some(format!("HOLD_EXPIRED: nobody decided hold {id} in time"))
            }
        };
        self.decided = Some(Decided {
            text: parked.text,
            request: parked.waiting.request,
            denial: denial.map(|message| Denial {
                code: "42501",
                message,
                hint: None,
                rule: "hold".into(),
            }),
        });
        Ok(())
    }

    /// Records that the requests in flight have no complete answer.
    fn close_requests(&mut self, reason: &str) {
        let slots: Vec<Slot> = self.exchange.drain().collect();
        for slot in slots {
            if let Slot::Query(running) | Slot::Execute(running) = slot {
                let mut running = *running;
                running
                    .error
                    .get_or_insert_with(|| ("08006".into(), format!("session ended: {reason}")));
                let _ = self.record_response(&mut running);
            }
        }
        if let Some(parked) = self.parked.take() {
            let _ = self.session.hold_ended(&parked.waiting, "withdrawn", None, None, None);
        }
    }
}

/// A time that never comes.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(365 * 86_400)
}

fn arm(sleep: &mut Pin<Box<Sleep>>, armed: &mut Instant, wanted: Instant) {
    // Re-arming costs a lock; a later deadline is found when the earlier one fires.
    if wanted < *armed {
        sleep.as_mut().reset(wanted);
        *armed = wanted;
    }
}

async fn delivered(cancelling: &mut Option<JoinHandle<()>>) {
    match cancelling {
        Some(handle) => {
            let _ = handle.await;
        }
        None => std::future::pending().await,
    }
}

/// Whether a grant was withdrawn, once it no longer stands.
async fn withdrawn(grant: &mut Option<GrantRef>) -> bool {
    match grant {
        Some(grant) => grant.withdrawn().await,
        None => std::future::pending().await,
    }
}

async fn decided(parked: &mut Option<Parked>) -> Outcome {
    match parked {
        Some(parked) => parked.waiting.decided().await,
        None => std::future::pending().await,
    }
}

/// Whether so much waits for the service that the agent is not read further.
fn is_full(staged: &BytesMut) -> bool {
    staged.len() >= HIGH_WATER
}

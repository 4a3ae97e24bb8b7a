//! What comes from the agent: cut into messages, judged, recorded, staged for the service.
//!
//! Nothing is staged without a ruling that allows it, and staged bytes leave only after the
//! record is committed (`Relay::commit`).

use std::borrow::Cow;
use std::sync::{Arc, Mutex};

use bytes::{Buf, BytesMut};

use crate::session::Effect;
use crate::session::hold::HeldRequest;
use crate::session::log::event;
use crate::session::sql::{Denial, Known, Ruling, StatementAnalysis, StatementKind, set_text};

use super::super::codec::{self, Body, CodecError, Header, MAX_COLLECTED, Report};
use super::exchange::{Rows, Running, Slot};
use super::prepared::{Held, Portal, Prepared};
use super::{Decided, Fault, Parked, Relay, is_full, values};

/// Largest message that only names something. Bytes.
const MAX_NAMING: usize = 64 * 1024;

/// What to do after a look at the agent's next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Take the next one.
    More,
    /// Nothing to do until more bytes, answers or a decision have come.
    Wait,
}

impl Known for Held {
    fn prepared(&self, name: &str) -> Option<Arc<Ruling>> {
        self.statement(name.as_bytes()).map(|prepared| prepared.ruling())
    }

    fn cursor(&self, name: &str) -> Option<Arc<Ruling>> {
        self.portal(name.as_bytes()).map(|portal| portal.prepared.ruling())
    }
}

impl Relay {
    /// Handles what the agent has sent, as far as that is possible now.
    pub(super) async fn frontend(&mut self) -> Result<(), Fault> {
        self.wants_quiet = false;
        while self.parked.is_none()
            && self.cancelling.is_none()
            && !self.terminated
            && !is_full(&self.staged)
        {
            if self.pass_rest() {
                continue;
            }
            let header = match Header::peek(&self.io.from_client) {
                Ok(Some(header)) if self.client_pass + self.client_discard == 0 => header,
                Ok(_) => return Ok(()),
                Err(e) => return Err(Fault::Agent(e)),
            };
            if self.message(header).await? == Next::Wait {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Passes through or throws away the rest of a message; false when there is none at hand.
    fn pass_rest(&mut self) -> bool {
        let input = &mut self.io.from_client;
        if self.client_pass > 0 && !input.is_empty() {
            let n = self.client_pass.min(input.len());
            self.staged.extend_from_slice(&input[..n]);
            if let Some(digest) = self.exchange.running().and_then(|r| r.digest.as_mut()) {
                digest.update(&input[..n]);
            }
            input.advance(n);
            self.client_pass -= n;
            self.session.log().bytes_in += n as u64;
            return true;
        }
        if self.client_discard > 0 && !input.is_empty() {
            let n = self.client_discard.min(input.len());
            input.advance(n);
            self.client_discard -= n;
            return true;
        }
        false
    }

    async fn message(&mut self, header: Header) -> Result<Next, Fault> {
        let limit = match header.tag {
            b'd' => return self.copy_data(header),
            b'Q' | b'P' | b'B' | b'F' => MAX_COLLECTED,
            b'f' => 1 << 20,
            b'E' | b'D' | b'C' | b'H' | b'S' | b'X' | b'c' => MAX_NAMING,
            tag => return Err(Fault::Agent(CodecError::Unknown { tag: char::from(tag) })),
        };
        if header.body > limit {
            return self.oversized(header);
        }
        if self.io.from_client.len() < header.total() {
            return Ok(Next::Wait);
        }
        if self.skip && !matches!(header.tag, b'S' | b'X') {
            self.consume(header);
            return Ok(Next::More);
        }
        match header.tag {
            b'Q' => self.on_query(header).await,
            b'P' => self.on_parse(header).await,
            b'B' => self.on_bind(header).await,
            b'E' => self.on_execute(header).await,
            b'F' => self.on_function_call(header).await,
            b'D' => self.on_describe(header),
            b'C' => self.on_close(header),
            b'S' => Ok(self.on_sync(header)),
            b'H' => Ok(self.forward(header)),
            b'c' | b'f' => self.on_copy_end(header),
            _ => {
                self.forward(header);
                self.terminated = true;
                Ok(Next::Wait)
            }
        }
    }

    /// Takes the message off the buffer.
    pub(super) fn consume(&mut self, header: Header) -> BytesMut {
        self.session.log().bytes_in += header.total() as u64;
        let mut whole = self.io.from_client.split_to(header.total());
        whole.advance(codec::HEADER);
        whole
    }

    /// Takes the message off the buffer and stages it as it is.
    fn forward(&mut self, header: Header) -> Next {
        self.session.log().bytes_in += header.total() as u64;
        self.staged.extend_from_slice(&self.io.from_client[..header.total()]);
        self.io.from_client.advance(header.total());
        Next::More
    }

    fn peek(&self, header: Header) -> &[u8] {
        &self.io.from_client[codec::HEADER..header.total()]
    }

    fn oversized(&mut self, header: Header) -> Result<Next, Fault> {
        self.client_discard = header.total();
        if self.skip {
            return Ok(Next::More);
        }
        let denial = Denial {
            code: "54000",
            message: format!(
                "a message of {} bytes; at most {MAX_COLLECTED} are judged",
                header.body
            ),
            hint: None,
            rule: "message-size".into(),
        };
        if matches!(header.tag, b'Q' | b'F') {
            self.refuse_simple(&denial);
        } else {
            self.refuse_extended(&denial);
        }
        Ok(Next::More)
    }

    /// Whether something must be asked of the server, or settled, before a statement is judged.
    /// Asks, when nothing is owed.
    async fn settle(&mut self) -> Result<Option<Next>, Fault> {
        if !self.stale.settings && !self.stale.catalog && !self.is_aged() {
            return Ok(None);
        }
        if self.exchange.is_quiet() && self.staged.is_empty() {
            self.resync().await?;
            return Ok(None);
        }
        if !self.stale.settings && !self.stale.catalog {
            // Only aged: it can wait for a quieter moment.
            return Ok(None);
        }
        if self.exchange.is_open_batch() {
            let denial = Denial {
                code: "0A000",
                message: "an earlier statement of this pipeline may change what names mean".into(),
                hint: Some("send Sync after it".into()),
                rule: "one-resolution-per-pipeline".into(),
            };
            return Ok(Some(self.refuse_front(&denial)));
        }
        self.wants_quiet = true;
        Ok(Some(Next::Wait))
    }

    /// Refuses the extended message at the front of the buffer.
    pub(super) fn refuse_front(&mut self, denial: &Denial) -> Next {
        if let Ok(Some(header)) = Header::peek(&self.io.from_client) {
            self.consume(header);
        }
        self.refuse_extended(denial);
        Next::More
    }

    fn decode(&self, bytes: &[u8]) -> Result<Arc<str>, Denial> {
        if self.encoding == encoding_rs::UTF_8 {
            return std::str::from_utf8(bytes).map(Arc::from).map_err(|_| not_encoded("UTF8"));
        }
        self.encoding
            .decode_without_bom_handling_and_without_replacement(bytes)
            .map(|text| Arc::from(text.as_ref()))
            .ok_or_else(|| not_encoded(self.encoding.name()))
    }

    async fn on_query(&mut self, header: Header) -> Result<Next, Fault> {
        if let Some(next) = self.settle().await? {
            return Ok(next);
        }
        let text = {
            let mut body = Body::new(b'Q', self.peek(header));
            let text = body.string("query").map_err(Fault::Agent)?;
            body.end().map_err(Fault::Agent)?;
            match self.decode(text) {
                Ok(text) => text,
                Err(denial) => {
                    self.consume(header);
                    self.refuse_simple(&denial);
                    return Ok(Next::More);
                }
            }
        };
        let ruling = self.judge.rule(&self.session, &text, &self.held).await;
        if self.awaits_names(&ruling) {
            self.wants_quiet = true;
            return Ok(Next::Wait);
        }
        let copy = match self.describe_copy(&ruling).await? {
            Ok(columns) => columns,
            Err(next) => return Ok(next),
        };
        let Some(request) = self.permit(&ruling, &text, "simple", Vec::new, header)? else {
            return Ok(Next::Wait);
        };
        let request = match request {
            Permit::Granted(n) => n,
            Permit::Refused(denial) => {
                self.consume(header);
                self.refuse_simple(&denial);
                return Ok(Next::More);
            }
        };
        let mut running = Running::new(request, Arc::clone(&ruling), None);
        if let Some(columns) = copy {
            match self.copy_plan(&ruling, &columns) {
                Ok(plan) => running.copy = Some(plan),
                Err(denial) => {
                    self.consume(header);
                    self.refuse_simple(&denial);
                    return Ok(Next::More);
                }
            }
        }
        match self.rewritten(&ruling) {
            Some(text) => {
                self.consume(header);
                codec::query(&mut self.staged, text.as_bytes());
            }
            None => {
                self.forward(header);
            }
        }
        self.start_limit(&ruling);
        self.note_effects(&ruling);
        self.exchange.push(Slot::Query(Box::new(running)));
        Ok(Next::More)
    }

    /// Whether the text names a prepared statement or cursor that an earlier message, not yet
    /// answered, may be making.
    fn awaits_names(&self, ruling: &Ruling) -> bool {
        !self.exchange.is_quiet()
            && !self.exchange.is_open_batch()
            && ruling.denial.as_ref().is_some_and(|denial| denial.code == "26000")
    }

    async fn on_parse(&mut self, header: Header) -> Result<Next, Fault> {
        if let Some(next) = self.settle().await? {
            return Ok(next);
        }
        let (name, text, declared) = {
            let mut body = Body::new(b'P', self.peek(header));
            let name: Box<[u8]> = body.string("statement name").map_err(Fault::Agent)?.into();
            let text = body.string("query").map_err(Fault::Agent)?;
            let count = body.i16("parameter count").map_err(Fault::Agent)?.cast_unsigned();
            let mut declared = Vec::new();
            for _ in 0..count {
                declared.push(body.u32("parameter type").map_err(Fault::Agent)?);
            }
            body.end().map_err(Fault::Agent)?;
            (name, self.decode(text), declared)
        };
        let text = match text {
            Ok(text) => text,
            Err(denial) => return Ok(self.refuse_front(&denial)),
        };
        let ruling = self.judge.rule(&self.session, &text, &self.held).await;
        if self.awaits_names(&ruling) {
            self.wants_quiet = true;
            return Ok(Next::Wait);
        }
        let copy = match self.describe_copy(&ruling).await? {
            Ok(columns) => columns,
            Err(next) => return Ok(next),
        };
        if ruling.effect != Effect::Allow {
            if ruling.effect == Effect::Hold && self.decided.is_none() && !self.batch_is_whole() {
                return Ok(Next::Wait);
            }
            let batch = self.batch_values(&declared);
            let permit = self.permit(&ruling, &text, "extended", || batch, header)?;
            match permit {
                None => return Ok(Next::Wait),
                Some(Permit::Refused(denial)) => return Ok(self.refuse_front(&denial)),
                Some(Permit::Granted(request)) => {
                    self.batch_grant = Some((Arc::clone(&text), request));
                }
            }
        }
        if !self.held.has_room(text.len()) {
            return Ok(self.refuse_front(&Denial {
                code: "54000",
                message: "too many prepared statements in this session".into(),
                hint: Some("close those that are not needed".into()),
                rule: "statements-held".into(),
            }));
        }
        self.session.log().append(&event::Prepare {
            name: String::from_utf8_lossy(&name),
            class: Cow::Borrowed(ruling.class),
            text: Cow::Borrowed(cut(&ruling.recorded, self.text_limit)),
        })?;
        let prepared = Arc::new(Prepared {
            text,
            ruling: Mutex::new(Arc::clone(&ruling)),
            declared: Mutex::new(declared),
            described: Mutex::new(None),
            copy,
        });
        match self.rewritten(&ruling) {
            Some(text) => {
                self.consume(header);
                codec::parse(&mut self.staged, &name, text.as_bytes());
            }
            None => {
                self.forward(header);
            }
        }
        self.exchange.push(Slot::Parse(Arc::clone(&prepared)));
        if ruling.guards_rows() {
            codec::target(&mut self.staged, b'D', b'S', &name);
            self.exchange.push(Slot::OwnDescribe(Arc::clone(&prepared)));
        }
        self.held.hold_statement(&name, prepared);
        Ok(Next::More)
    }

    /// Whether the agent's buffer holds everything up to the next Sync or Flush, so that a held
    /// statement can be shown with its values.
    fn batch_is_whole(&self) -> bool {
        let mut rest = &self.io.from_client[..];
        while let Ok(Some(header)) = Header::peek(rest) {
            if matches!(header.tag, b'S' | b'H') {
                return true;
            }
            let Some(after) = rest.get(header.total()..) else { return false };
            rest = after;
        }
        rest.len() > MAX_COLLECTED
    }

    /// The values of the first Bind in the agent's buffer.
    fn batch_values(&self, declared: &[u32]) -> Vec<Option<String>> {
        let mut rest = &self.io.from_client[..];
        while let Ok(Some(header)) = Header::peek(rest) {
            let Some(body) = rest.get(codec::HEADER..header.total()) else { break };
            match header.tag {
                b'B' => {
                    return values::bind(body)
                        .map(|bound| bound.shown(declared))
                        .unwrap_or_default();
                }
                b'S' | b'H' => break,
                _ => {}
            }
            rest = &rest[header.total()..];
        }
        Vec::new()
    }

    async fn on_bind(&mut self, header: Header) -> Result<Next, Fault> {
        if let Some(next) = self.settle().await? {
            return Ok(next);
        }
        let bound = values::bind(self.peek(header)).map_err(Fault::Agent)?;
        let Some(prepared) = self.held.statement(&bound.statement).cloned() else {
            let denial = unknown("26000", "prepared statement", &bound.statement);
            return Ok(self.refuse_front(&denial));
        };
        let mut granted = None;
        if prepared.ruling().effect == Effect::Hold {
            match self.batch_grant.take() {
                Some((text, request)) if text == prepared.text => granted = Some(request),
                other => {
                    self.batch_grant = other;
                    let ruling = self.again(&prepared).await;
                    let shown = bound.shown(&prepared.declared());
                    match self.permit(&ruling, &prepared.text, "extended", || shown, header)? {
                        None => return Ok(Next::Wait),
                        Some(Permit::Refused(denial)) => return Ok(self.refuse_front(&denial)),
                        Some(Permit::Granted(request)) => granted = Some(request),
                    }
                }
            }
        }
        if !self.held.has_room(0) {
            self.held.forget_portals();
        }
        let portal = bound.portal.clone();
        self.held.hold_portal(
            &portal,
            Portal {
                prepared,
                formats: bound.formats,
                values: bound.values,
                granted,
                is_cursor: false,
            },
        );
        self.exchange.push(Slot::Bind);
        Ok(self.forward(header))
    }

    async fn again(&mut self, prepared: &Arc<Prepared>) -> Arc<Ruling> {
        let earlier = prepared.ruling();
        let ruling =
            self.judge.rule_again(&self.session, &prepared.text, &earlier, &self.held).await;
        if !Arc::ptr_eq(&ruling, &earlier) {
            prepared.set_ruling(Arc::clone(&ruling));
        }
        ruling
    }

    async fn on_execute(&mut self, header: Header) -> Result<Next, Fault> {
        if let Some(next) = self.settle().await? {
            return Ok(next);
        }
        let name: Box<[u8]> = {
            let mut body = Body::new(b'E', self.peek(header));
            body.string("portal").map_err(Fault::Agent)?.into()
        };
        let Some(portal) = self.held.portal(&name).cloned() else {
            return Ok(self.refuse_front(&unknown("34000", "portal", &name)));
        };
        let ruling = self.again(&portal.prepared).await;
        let request = match (ruling.effect, portal.granted) {
            (Effect::Hold, Some(request)) => request,
            _ => {
                let shown = portal.shown();
                let text = &portal.prepared.text;
                match self.permit(&ruling, text, "extended", || shown, header)? {
                    None => return Ok(Next::Wait),
                    Some(Permit::Refused(denial)) => return Ok(self.refuse_front(&denial)),
                    Some(Permit::Granted(request)) => request,
                }
            }
        };
        let mut running =
            Running::new(request, Arc::clone(&ruling), Some(Arc::clone(&portal.prepared)));
        if ruling.guards_rows() {
            running.rows = Rows::Unresolved;
            running.formats.clone_from(&portal.formats);
            if let Some(columns) = &portal.prepared.copy {
                match self.copy_plan(&ruling, columns) {
                    Ok(plan) => running.copy = Some(plan),
                    Err(denial) => return Ok(self.refuse_front(&denial)),
                }
            }
        }
        self.start_limit(&ruling);
        self.note_effects(&ruling);
        self.exchange.push(Slot::Execute(Box::new(running)));
        Ok(self.forward(header))
    }

    async fn on_function_call(&mut self, header: Header) -> Result<Next, Fault> {
        if let Some(next) = self.settle().await? {
            return Ok(next);
        }
        let oid = Body::new(b'F', self.peek(header)).u32("function").map_err(Fault::Agent)?;
        let ruling = self.judge.rule_function_call(&self.session, oid);
        let text = Arc::clone(&ruling.recorded);
        match self.permit(&ruling, &text, "function", Vec::new, header)? {
            None => Ok(Next::Wait),
            Some(Permit::Refused(denial)) => {
                self.consume(header);
                self.refuse_simple(&denial);
                Ok(Next::More)
            }
            Some(Permit::Granted(request)) => {
                self.note_effects(&ruling);
                let running = Running::new(request, ruling, None);
                self.exchange.push(Slot::Query(Box::new(running)));
                Ok(self.forward(header))
            }
        }
    }

    fn on_describe(&mut self, header: Header) -> Result<Next, Fault> {
        let (kind, name) = self.naming(header)?;
        match kind {
            b'S' => {
                let Some(prepared) = self.held.statement(&name).cloned() else {
                    return Ok(self.refuse_front(&unknown("26000", "prepared statement", &name)));
                };
                self.exchange.push(Slot::DescribeStatement(prepared));
            }
            b'P' => self.exchange.push(Slot::DescribePortal),
            _ => return Err(malformed('D', "kind")),
        }
        Ok(self.forward(header))
    }

    fn on_close(&mut self, header: Header) -> Result<Next, Fault> {
        let (kind, name) = self.naming(header)?;
        let mut undo = None;
        match kind {
            b'S' => {
                undo = self.held.statement(&name).cloned().map(|prepared| (name.clone(), prepared));
                self.held.forget_statement(&name, None);
            }
            b'P' => self.held.forget_portal(&name),
            _ => return Err(malformed('C', "kind")),
        }
        self.exchange.push(Slot::Close(undo));
        Ok(self.forward(header))
    }

    fn naming(&self, header: Header) -> Result<(u8, Box<[u8]>), Fault> {
        let mut body = Body::new(header.tag, self.peek(header));
        let kind = body.u8("kind").map_err(Fault::Agent)?;
        let name = body.string("name").map_err(Fault::Agent)?.into();
        body.end().map_err(Fault::Agent)?;
        Ok((kind, name))
    }

    fn on_sync(&mut self, header: Header) -> Next {
        self.skip = false;
        self.batch_grant = None;
        self.exchange.push(Slot::Sync);
        self.forward(header)
    }

    fn copy_data(&mut self, header: Header) -> Result<Next, Fault> {
        if self.skip {
            self.client_discard = header.total();
            return Ok(Next::More);
        }
        self.staged.extend_from_slice(&self.io.from_client[..codec::HEADER]);
        self.io.from_client.advance(codec::HEADER);
        self.session.log().bytes_in += codec::HEADER as u64;
        self.client_pass = header.body;
        if let Some(digest) = self.exchange.running().and_then(|r| r.digest.as_mut()) {
            digest.messages += 1;
        }
        self.copy_progress()?;
        Ok(Next::More)
    }

    fn on_copy_end(&mut self, header: Header) -> Result<Next, Fault> {
        self.copy_ended((header.tag == b'f').then_some("the agent gave up"))?;
        self.exchange.end_copy_in();
        Ok(self.forward(header))
    }

    /// Records the request with its verdict and says whether it may go on. `None`: it waits
    /// for a human and stays at the front of the buffer.
    fn permit(
        &mut self,
        ruling: &Arc<Ruling>,
        text: &Arc<str>,
        via: &'static str,
        shown: impl FnOnce() -> Vec<Option<String>>,
        _header: Header,
    ) -> Result<Option<Permit>, Fault> {
        if let Some(decided) = self.decided.take_if(|d| d.text == *text) {
            return Ok(Some(self.after_hold(ruling, decided)?));
        }
        let grant = match ruling.effect {
            Effect::Hold => self.session.standing_grant(&ruling.shape()),
            Effect::Allow | Effect::Deny => None,
        };
        let effect = if grant.is_some() { Effect::Allow } else { ruling.effect };
        let shown = shown();
        let request = self.record_request(ruling, text, via, &shown, effect)?;
        if let Some(grant) = grant {
            self.session.grant_used(request, &grant)?;
            self.grant = Some(grant);
        }
        match effect {
            Effect::Allow => Ok(Some(Permit::Granted(request))),
            Effect::Deny => Ok(Some(Permit::Refused(denial_of(ruling)))),
            Effect::Hold => self.park(ruling, text, request, shown),
        }
    }

    /// The verdict is made again when a hold ends, so that a policy that changed or a token
    /// that expired meanwhile still denies.
    fn after_hold(&mut self, ruling: &Ruling, decided: Decided) -> Result<Permit, Fault> {
        if let Some(denial) = decided.denial {
            return Ok(Permit::Refused(denial));
        }
        if ruling.effect == Effect::Deny {
            return Ok(Permit::Refused(denial_of(ruling)));
        }
        Ok(Permit::Granted(decided.request))
    }

    fn park(
        &mut self,
        ruling: &Ruling,
        text: &Arc<str>,
        request: u64,
        values: Vec<Option<String>>,
    ) -> Result<Option<Permit>, Fault> {
        let service = self.session.service();
        let mut timeout = if self.status == b'I' {
            service.hold_timeout.0
        } else {
            service.hold_timeout_in_transaction.0
        };
        if let Some(shorter) = ruling.verdict.hold.as_ref().and_then(|terms| terms.timeout) {
            timeout = timeout.min(shorter);
        }
        let held = HeldRequest {
            request,
            statement: Arc::clone(text),
            values,
            shape: ruling.shape(),
            rules: ruling.rules.clone(),
            message: ruling.verdict.message.clone(),
            timeout,
        };
        let Some(waiting) = self.session.hold(held)? else {
            return Ok(Some(Permit::Refused(Denial {
                code: "42501",
                message: "HOLD_UNAVAILABLE: the request needs a human and cannot be put before one"
                    .into(),
                hint: Some("too many requests are held, or the session has no proven agent".into()),
                rule: "hold".into(),
            })));
        };
        let words = match &ruling.verdict.message {
            Some(message) => format!("held for approval, id={}: {message}", waiting.id()),
            None => format!("held for approval, id={}", waiting.id()),
        };
        if self.service_pass == 0 {
            Report::notice(self.words(&words)).write(&mut self.io.to_client);
        }
        self.parked = Some(Parked { waiting, text: Arc::clone(text) });
        Ok(None)
    }

    fn record_request(
        &mut self,
        ruling: &Arc<Ruling>,
        text: &Arc<str>,
        via: &'static str,
        shown: &[Option<String>],
        effect: Effect,
    ) -> Result<u64, Fault> {
        let request = self.session.log().next_request();
        let exact: Vec<_> = shown.iter().map(|v| v.as_deref().map(str::as_bytes)).collect();
        let hmac = self.session.gate().hmac.request(text.as_bytes(), &exact);
        let recorded: Vec<Option<String>> = shown
            .iter()
            .enumerate()
            .map(|(i, v)| v.as_ref().map(|v| self.judge.scrub_value(ruling, i, v)))
            .collect();
        let masks: Vec<String> = ruling
            .plans
            .iter()
            .flat_map(|plan| &plan.masks)
            .map(|(index, method)| format!("{index}:{}", method.name()))
            .collect();
        let denial = ruling.denial.as_ref();
        let cut_text = cut(&ruling.recorded, self.text_limit);
        self.session.log().append(&event::Request {
            n: request,
            verdict: Cow::Borrowed(ruling.observed.unwrap_or(effect).as_str()),
            class: Cow::Borrowed(ruling.class),
            observed: ruling.observed.is_some_and(|e| e != Effect::Allow),
            via: Cow::Borrowed(via),
            rules: Cow::Borrowed(&ruling.rules),
            policy: Cow::Borrowed(&ruling.policy),
            code: denial.map(|d| Cow::Borrowed(d.code)),
            message: denial.map(|d| Cow::Borrowed(d.message.as_str())),
            text: Cow::Borrowed(cut_text),
            text_bytes: (cut_text.len() < ruling.recorded.len()).then_some(text.len() as u64),
            values: Cow::Borrowed(&recorded),
            hmac: Cow::Borrowed(&hmac),
            masks: Cow::Borrowed(&masks),
        })?;
        self.session
            .gate()
            .metrics
            .request(&self.session.service().name, ruling.observed.unwrap_or(effect).as_str());
        Ok(request)
    }

    /// In place of a refused simple message the server gets one that fails; its error is
    /// replaced, its ReadyForQuery is genuine.
    pub(super) fn refuse_simple(&mut self, denial: &Denial) {
        codec::query(&mut self.staged, failing_text().as_bytes());
        let ruling = self.judge.nothing();
        let mut running = Running::new(0, ruling, None);
        running.refusal = Some(self.report(denial));
        self.exchange.push(Slot::Query(Box::new(running)));
    }

    /// In place of a refused extended message the server gets a Parse that fails; it then skips
    /// to Sync, and so do we.
    pub(super) fn refuse_extended(&mut self, denial: &Denial) {
        self.skip = true;
        codec::parse(&mut self.staged, b"", failing_text().as_bytes());
        self.exchange.push(Slot::Refused(Box::new(self.report(denial))));
    }

    pub(super) fn report(&self, denial: &Denial) -> Report {
        let mut report = Report::error(denial.code, self.words(&denial.message));
        report.hint.clone_from(&denial.hint);
        report
    }

    /// What a forwarded statement may change that has to be asked for before the next one.
    fn note_effects(&mut self, ruling: &Ruling) {
        let ends = |s: &StatementAnalysis| matches!(s.kind, StatementKind::Transaction(_));
        let ends = ruling.analysis.statements.iter().any(ends);
        self.stale.settings |= ruling.changes_settings || (ends && self.touched.settings);
        self.stale.catalog |= ruling.changes_catalog || (ends && self.touched.catalog);
        self.touched.settings |= self.stale.settings;
        self.touched.catalog |= self.stale.catalog;
    }

    fn start_limit(&mut self, ruling: &Ruling) {
        if let Some(seconds) = ruling.verdict.limits.seconds {
            let at = tokio::time::Instant::now() + std::time::Duration::from_secs(seconds);
            self.limit = Some(self.limit.map_or(at, |earlier| earlier.min(at)));
        }
    }

    /// `SET application_name`, so that it keeps the session's id at its front.
    fn rewritten(&self, ruling: &Ruling) -> Option<String> {
        let [statement] = ruling.analysis.statements.as_slice() else { return None };
        let StatementKind::Set { name, value, local } = &statement.kind else { return None };
        if !name.eq_ignore_ascii_case("application_name") {
            return None;
        }
        let scope = if *local { "LOCAL" } else { "SESSION" };
        let wanted = set_text(value).unwrap_or_default();
        let name = application_name(&self.prefix, wanted);
        Some(format!("SET {scope} application_name TO '{}'", name.replace('\'', "''")))
    }
}

/// Whether a request goes on.
enum Permit {
    /// Under this number.
    Granted(u64),
    /// Not.
    Refused(Denial),
}

/// The session's id, then the client's own name, cut to what the server keeps (63 bytes).
pub fn application_name(prefix: &str, own: &str) -> String {
    let mut name = if own.is_empty() { prefix.to_owned() } else { format!("{prefix} {own}") };
    name.truncate((0..=63).rev().find(|n| name.is_char_boundary(*n)).unwrap_or(0));
    name
}

/// A text that no server accepts and that does nothing: it is not SQL in any version.
fn failing_text() -> &'static str {
    "refused_by_interceptor"
}

fn denial_of(ruling: &Ruling) -> Denial {
    ruling.denial.clone().unwrap_or_else(|| Denial {
        code: "42501",
        message: "denied".into(),
        hint: None,
        rule: "default-deny".into(),
    })
}

fn not_encoded(encoding: &str) -> Denial {
    Denial {
        code: "22021",
        message: format!("the text is not valid {encoding}"),
        hint: None,
        rule: "readable-sql".into(),
    }
}

fn unknown(code: &'static str, what: &str, name: &[u8]) -> Denial {
    Denial {
        code,
        message: format!("{what} \"{}\" does not exist", String::from_utf8_lossy(name)),
        hint: None,
        rule: "known-statements".into(),
    }
}

fn malformed(tag: char, what: &'static str) -> Fault {
    Fault::Agent(CodecError::Malformed { tag, what })
}

fn cut(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let end = (0..=limit).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
    &text[..end]
}

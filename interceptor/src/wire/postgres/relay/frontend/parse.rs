//! Parse: a statement is judged when it is prepared, and refused or held there already.
//!
//! That it was let through here permits nothing yet; it is judged again when it is executed.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};

use crate::session::Effect;
use crate::session::log::event;
use crate::session::sql::{Denial, Ruling};

use super::super::super::codec::{self, Body, Header, MAX_COLLECTED};
use super::super::exchange::Slot;
use super::super::permit::Permit;
use super::super::prepared::Prepared;
use super::super::record::cut;
use super::super::{Fault, Relay, values};
use super::Next;

impl Relay {
    pub(super) async fn on_parse(&mut self, header: Header) -> Result<Next, Fault> {
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
}

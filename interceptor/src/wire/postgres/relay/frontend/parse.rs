//! Parse: a statement is judged when it is prepared, and refused or held there already.
//!
//! That it was let through here permits nothing yet; it is judged again when it is executed.

use std::sync::Arc;

use crate::session::Effect;
use crate::session::sql::{Denial, Ruling};

use super::super::super::codec::{self, Body, Header, MAX_COLLECTED};
use super::super::exchange::Slot;
use super::super::permit::Permit;
use super::super::prepared::Prepared;
use super::super::{Fault, Relay, values};
use super::Next;

/// What a Parse says.
struct Parse {
    name: Box<[u8]>,
    text: Arc<str>,
    /// Parameter types by OID.
    declared: Vec<u32>,
}

impl Relay {
    pub(super) async fn on_parse(&mut self, header: Header) -> Result<Next, Fault> {
        if let Some(next) = self.settle().await? {
            return Ok(next);
        }
        let Parse { name, text, declared } = match self.read_parse(header)? {
            Ok(parse) => parse,
            Err(denial) => return Ok(self.refuse_front(&denial)),
        };
        let ruling = self.judge.rule(&self.session, &text, &self.held).await;
        if self.awaits_names(&ruling) {
            return Ok(self.until_quiet());
        }
        let copy = match self.describe_copy(&ruling).await? {
            Ok(columns) => columns,
            Err(next) => return Ok(next),
        };
        if ruling.effect != Effect::Allow
            && let Some(next) = self.permit_batch(&ruling, &text, &declared)?
        {
            return Ok(next);
        }
        if !self.held.has_room(text.len()) {
            let why = "too many prepared statements in this session";
            let denial = Denial::new("54000", "statements-held", why);
            return Ok(self.refuse_front(&denial.hint("close those that are not needed")));
        }
        self.record_prepared(&name, &ruling)?;
        let prepared = Arc::new(Prepared::new(text, Arc::clone(&ruling), declared, copy));
        Ok(self.start_parse(header, &name, &ruling, prepared))
    }

    fn read_parse(&self, header: Header) -> Result<Result<Parse, Denial>, Fault> {
        let mut body = Body::new(b'P', self.peek(header));
        let name = body.string("statement name").map_err(Fault::Agent)?.into();
        let text = body.string("query").map_err(Fault::Agent)?;
        let count = body.i16("parameter count").map_err(Fault::Agent)?.cast_unsigned();
        let mut declared = Vec::new();
        for _ in 0..count {
            declared.push(body.u32("parameter type").map_err(Fault::Agent)?);
        }
        body.end().map_err(Fault::Agent)?;
        Ok(self.decode(text).map(|text| Parse { name, text, declared }))
    }

    /// What is not simply allowed is asked about, with the values of its batch, before it is
    /// prepared. `None`: it was granted, for this batch.
    fn permit_batch(
        &mut self,
        ruling: &Arc<Ruling>,
        text: &Arc<str>,
        declared: &[u32],
    ) -> Result<Option<Next>, Fault> {
        if ruling.effect == Effect::Hold && self.decided.is_none() && !self.batch_is_whole() {
            return Ok(Some(Next::Wait));
        }
        let batch = self.batch_values(declared);
        Ok(match self.permit(ruling, text, "extended", || batch)? {
            None => Some(Next::Wait),
            Some(Permit::Refused(denial)) => Some(self.refuse_front(&denial)),
            Some(Permit::Granted(request)) => {
                self.batch_grant = Some((Arc::clone(text), request));
                None
            }
        })
    }

    /// Stages a statement, and where its rows are guarded a question for their description.
    fn start_parse(
        &mut self,
        header: Header,
        name: &[u8],
        ruling: &Ruling,
        prepared: Arc<Prepared>,
    ) -> Next {
        match self.rewritten(ruling) {
            Some(text) => {
                self.consume(header);
                codec::parse(&mut self.staged, name, text.as_bytes());
            }
            None => {
                self.forward(header);
            }
        }
        self.exchange.push(Slot::Parse(Arc::clone(&prepared)));
        if ruling.guards_rows() {
            codec::target(&mut self.staged, b'D', b'S', name);
            self.exchange.push(Slot::OwnDescribe(Arc::clone(&prepared)));
        }
        self.held.hold_statement(name, prepared);
        Next::More
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

//! The simple protocol: Query, and FunctionCall, which is answered like one.

use std::sync::Arc;

use crate::session::sql::{Denial, Ruling};

use super::super::super::codec::{self, Body, Field, Header};
use super::super::exchange::{Running, Slot};
use super::super::permit::Permit;
use super::super::{Fault, Relay};
use super::Next;

impl Relay {
    pub(super) async fn on_query(&mut self, header: Header) -> Result<Next, Fault> {
        if let Some(next) = self.settle().await? {
            return Ok(next);
        }
        let text = match self.read_query(header)? {
            Ok(text) => text,
            Err(denial) => return Ok(self.refuse_query(&denial)),
        };
        let ruling = self.judge.rule(&self.session, &text, &self.held).await;
        if self.awaits_names(&ruling) {
            return Ok(self.until_quiet());
        }
        let copy = match self.describe_copy(&ruling).await? {
            Ok(columns) => columns,
            Err(next) => return Ok(next),
        };
        match self.permit(&ruling, &text, "simple", Vec::new)? {
            None => Ok(Next::Wait),
            Some(Permit::Refused(denial)) => Ok(self.refuse_query(&denial)),
            Some(Permit::Granted(request)) => {
                Ok(self.start_query(header, request, &ruling, copy.as_deref()))
            }
        }
    }

    fn read_query(&self, header: Header) -> Result<Result<Arc<str>, Denial>, Fault> {
        let mut body = Body::new(b'Q', self.peek(header));
        let text = body.string("query").map_err(Fault::Agent)?;
        body.end().map_err(Fault::Agent)?;
        Ok(self.decode(text))
    }

    /// Stages a query that may go on; `copy` are the columns of a guarded COPY TO STDOUT.
    fn start_query(
        &mut self,
        header: Header,
        request: u64,
        ruling: &Arc<Ruling>,
        copy: Option<&[Field]>,
    ) -> Next {
        let mut running = Running::new(request, Arc::clone(ruling), None);
        if let Some(columns) = copy {
            match self.copy_plan(ruling, columns) {
                Ok(plan) => running.copy = Some(plan),
                Err(denial) => return self.refuse_query(&denial),
            }
        }
        match self.rewritten(ruling) {
            Some(text) => {
                self.consume(header);
                codec::query(&mut self.staged, text.as_bytes());
            }
            None => {
                self.forward(header);
            }
        }
        self.start_limit(ruling);
        self.note_effects(ruling);
        self.exchange.push(Slot::Query(Box::new(running)));
        Next::More
    }

    pub(super) async fn on_function_call(&mut self, header: Header) -> Result<Next, Fault> {
        if let Some(next) = self.settle().await? {
            return Ok(next);
        }
        let oid = Body::new(b'F', self.peek(header)).u32("function").map_err(Fault::Agent)?;
        let ruling = self.judge.rule_function_call(&self.session, oid);
        let text = Arc::clone(&ruling.recorded);
        match self.permit(&ruling, &text, "function", Vec::new)? {
            None => Ok(Next::Wait),
            Some(Permit::Refused(denial)) => Ok(self.refuse_query(&denial)),
            Some(Permit::Granted(request)) => {
                self.note_effects(&ruling);
                let running = Running::new(request, ruling, None);
                self.exchange.push(Slot::Query(Box::new(running)));
                Ok(self.forward(header))
            }
        }
    }
}

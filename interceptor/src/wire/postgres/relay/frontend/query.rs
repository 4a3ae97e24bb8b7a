//! The simple protocol: Query, and FunctionCall, which is answered like one.

use std::sync::Arc;

use crate::session::sql::Ruling;

use super::super::super::codec::{self, Body, Header};
use super::super::exchange::{Running, Slot};
use super::super::permit::Permit;
use super::super::{Fault, Relay};
use super::Next;

impl Relay {
    pub(super) async fn on_query(&mut self, header: Header) -> Result<Next, Fault> {
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

    pub(super) async fn on_function_call(&mut self, header: Header) -> Result<Next, Fault> {
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
}

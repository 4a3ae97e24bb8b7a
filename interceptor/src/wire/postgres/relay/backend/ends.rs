//! The ends of answers: what is settled by each, what a completed statement made or unmade by
//! name, and what a failed one takes with it.

use std::sync::Arc;

use crate::session::sql::{Ruling, StatementKind};

use super::super::exchange::{Rows, Slot};
use super::super::prepared::{Portal, Prepared};
use super::super::{Fault, Relay};

impl Relay {
    pub(super) fn plain_answer(&mut self, tag: u8) {
        match (tag, self.exchange.front()) {
            (b'1', Some(Slot::Parse(_)))
            | (b'2', Some(Slot::Bind))
            | (b'3', Some(Slot::Close(_))) => {
                self.exchange.pop();
            }
            (b'I' | b's', Some(Slot::Execute(_))) => {
                if let Some(Slot::Execute(mut running)) = self.exchange.pop() {
                    running.tag = if tag == b's' { "suspended".into() } else { String::new() };
                    if let Err(fault) = self.record_response(&mut running) {
                        tracing::error!(%fault, "answer could not be recorded");
                    }
                }
            }
            (b'I', Some(Slot::Query(running))) => running.statement += 1,
            _ => {}
        }
    }

    /// CommandComplete.
    pub(super) fn complete(&mut self, tag: &str) -> Result<(), Fault> {
        let Some(running) = self.exchange.running() else { return Ok(()) };
        tag.clone_into(&mut running.tag);
        running.copy = None;
        let ruling = Arc::clone(&running.ruling);
        let index = running.statement;
        running.statement += 1;
        if !matches!(running.rows, Rows::Withheld) {
            running.rows = Rows::Plain;
        }
        if let Some(statement) = ruling.statement(index) {
            self.take_effect(&statement.kind, &ruling);
        }
        if matches!(self.exchange.front(), Some(Slot::Execute(_)))
            && let Some(Slot::Execute(mut running)) = self.exchange.pop()
        {
            self.limit = None;
            self.record_response(&mut running)?;
        }
        Ok(())
    }

    /// What a completed statement made or unmade by name.
    fn take_effect(&mut self, kind: &StatementKind, ruling: &Arc<Ruling>) {
        let named = || {
            let (text, ruling) = (Arc::clone(&ruling.text), Arc::clone(ruling));
            Arc::new(Prepared::new(text, ruling, Vec::new(), None))
        };
        match kind {
            StatementKind::Prepare { name, .. } => {
                self.held.hold_statement(name.as_bytes(), named());
            }
            StatementKind::DeclareCursor { name, .. } => {
                let portal = Portal {
                    prepared: named(),
                    formats: Vec::new(),
                    values: Vec::new(),
                    granted: None,
                    is_cursor: true,
                };
                self.held.hold_portal(name.as_bytes(), portal);
            }
            StatementKind::Deallocate(Some(name)) => {
                self.held.forget_statement(name.as_bytes(), None);
            }
            StatementKind::Deallocate(None) => self.held.forget_statements(),
            StatementKind::CloseCursor(Some(name)) => self.held.forget_portal(name.as_bytes()),
            StatementKind::CloseCursor(None) => self.held.forget_portals(),
            StatementKind::Discard(_) => {
                self.held.forget_statements();
                self.held.forget_portals();
            }
            _ => {}
        }
    }

    /// ReadyForQuery.
    pub(super) fn ready(&mut self, status: u8) -> Result<(), Fault> {
        self.status = status;
        self.mute = false;
        self.io.service.status = status;
        if let Some(Slot::Query(mut running)) = self.exchange.pop() {
            self.limit = None;
            self.record_response(&mut running)?;
        }
        if status == b'I' {
            self.held.end_transaction();
            if self.touched.settings || self.touched.catalog {
                self.stale.settings |= self.touched.settings;
                self.stale.catalog |= self.touched.catalog;
            }
        }
        Ok(())
    }

    /// The server failed what was first: everything it skips is settled.
    pub(super) fn settle_failure(&mut self) -> Result<(), Fault> {
        self.copy_ended(Some("failed"))?;
        self.limit = None;
        let skipped = self.exchange.fail();
        for (index, slot) in skipped.into_iter().enumerate() {
            match slot {
                Slot::Execute(mut running) => {
                    if index > 0 {
                        running.error = Some((
                            "25000".into(),
                            "not executed: an earlier message failed".into(),
                        ));
                    }
                    self.record_response(&mut running)?;
                }
                Slot::Query(mut running) => self.record_response(&mut running)?,
                Slot::Parse(prepared) => self.held.forget(&prepared),
                Slot::Close(Some((name, prepared))) => self.held.hold_statement(&name, prepared),
                _ => {}
            }
        }
        Ok(())
    }
}

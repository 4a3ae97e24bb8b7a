//! Bind and Execute: what was prepared gets its values, is judged once more, and runs.
//!
//! A statement or portal that is not known here was never judged and cannot be executed.

use std::sync::Arc;

use crate::session::Effect;
use crate::session::sql::Ruling;

use super::super::super::codec::{Body, Header};
use super::super::exchange::{Rows, Running, Slot};
use super::super::permit::Permit;
use super::super::prepared::{Portal, Prepared};
use super::super::refuse::unknown;
use super::super::{Fault, Relay, values};
use super::Next;

impl Relay {
    pub(super) async fn on_bind(&mut self, header: Header) -> Result<Next, Fault> {
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
                    match self.permit(&ruling, &prepared.text, "extended", || shown)? {
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

    pub(super) async fn on_execute(&mut self, header: Header) -> Result<Next, Fault> {
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
                match self.permit(&ruling, text, "extended", || shown)? {
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

    async fn again(&mut self, prepared: &Arc<Prepared>) -> Arc<Ruling> {
        let earlier = prepared.ruling();
        let ruling =
            self.judge.rule_again(&self.session, &prepared.text, &earlier, &self.held).await;
        if !Arc::ptr_eq(&ruling, &earlier) {
            prepared.set_ruling(Arc::clone(&ruling));
        }
        ruling
    }
}

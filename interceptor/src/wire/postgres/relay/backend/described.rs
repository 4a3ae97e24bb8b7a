//! Descriptions of parameters and results: kept for what is prepared, and the point at which it
//! is settled how rows are treated.

use std::sync::Arc;

use bytes::BytesMut;

use super::super::super::codec::{self, Header};
use super::super::compare::treatment;
use super::super::exchange::{Rows, Slot};
use super::super::prepared::{Described, Prepared};
use super::super::{Fault, Relay};
use super::Fate;

impl Relay {
    pub(super) fn description(
        &mut self,
        header: Header,
        body: &[u8],
        input: &mut BytesMut,
        done: &mut usize,
    ) -> Result<Fate, Fault> {
        match (header.tag, self.exchange.front()) {
            (b't', Some(Slot::OwnDescribe(prepared))) => {
                note_parameters(prepared, body);
                self.skip_message(input, done, header);
                return Ok(Fate::Done);
            }
            (b't', Some(Slot::DescribeStatement(prepared))) => note_parameters(prepared, body),
            (_, Some(Slot::OwnDescribe(prepared))) => {
                let described = if header.tag == b'n' {
                    Described::NoData
                } else {
                    let columns = codec::row_description(body).map_err(Fault::Service)?;
                    Described::Columns(columns.into())
                };
                prepared.describe(described);
                self.exchange.pop();
                self.skip_message(input, done, header);
                return Ok(Fate::Done);
            }
            (b'T' | b'n', Some(Slot::DescribeStatement(_) | Slot::DescribePortal)) => {
                self.exchange.pop();
            }
            (b'T', Some(Slot::Query(running))) if running.ruling.guards_rows() => {
                let fields = codec::row_description(body).map_err(Fault::Service)?;
                match treatment(running, &fields) {
                    Ok(rows) => running.rows = rows,
                    Err(report) => {
                        self.skip_message(input, done, header);
                        self.refuse_answer(report);
                        return Ok(Fate::Done);
                    }
                }
            }
            (b'T', Some(Slot::Query(running))) => running.rows = Rows::Plain,
            _ => {}
        }
        Ok(Fate::Pass)
    }

    /// Finds out, at the first row of an extended execution, how its rows are treated.
    pub(super) fn resolve_rows(&mut self) -> Result<(), Fault> {
        let Some(running) = self.exchange.running() else { return Ok(()) };
        if !matches!(running.rows, Rows::Unresolved) {
            return Ok(());
        }
        let Some(Described::Columns(columns)) =
            running.prepared.as_ref().and_then(|p| p.described())
        else {
            return Ok(());
        };
        let mut fields = columns.to_vec();
        for (index, field) in fields.iter_mut().enumerate() {
            field.format = match running.formats.as_slice() {
                [] => 0,
                [all] => *all,
                each => each.get(index).copied().unwrap_or(0),
            };
        }
        let treatment = treatment(running, &fields);
        match treatment {
            Ok(rows) => running.rows = rows,
            Err(report) => self.refuse_answer(report),
        }
        Ok(())
    }
}

fn note_parameters(prepared: &Arc<Prepared>, body: &[u8]) {
    let mut fields = codec::Body::new(b't', body);
    let Ok(count) = fields.i16("count") else { return };
    let types: Option<Vec<u32>> =
        (0..count.cast_unsigned()).map(|_| fields.u32("type").ok()).collect();
    if let Some(types) = types {
        prepared.set_declared(types);
    }
}

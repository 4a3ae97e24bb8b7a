//! Errors, notices, notifications and parameters: what the service says in words.
//!
//! All of them can carry values, so none reaches the agent but through [`scrub`].

use std::borrow::Cow;

use crate::session::log::event;
use crate::session::sql::canonical_encoding;

use super::super::super::{codec, scrub};
use super::super::exchange::{Rows, Running, Slot};
use super::super::{Fault, Relay};

impl Relay {
    /// An error: its own words, or ours where it stands for a refusal.
    pub(super) fn error(&mut self, body: &[u8]) -> Result<(), Fault> {
        let code = codec::report_field(body, b'C').unwrap_or_default();
        self.told_fatal |=
            matches!(codec::report_field(body, b'V').as_deref(), Some("FATAL" | "PANIC"));
        if let Some(Slot::Refused(report)) = self.exchange.front() {
            report.clone().write(&mut self.io.to_client);
        } else if let Some(running) = self.exchange.running() {
            if let Some(report) = running.refusal.take() {
                running.error = Some((report.code.to_owned(), report.message.clone()));
                report.write(&mut self.io.to_client);
            } else if !matches!(running.rows, Rows::Withheld) {
                let shielded = is_shielded(running);
                let at = self.io.to_client.len();
                let message = scrub::report(b'E', body, shielded, &mut self.io.to_client);
                if let Some(running) = self.exchange.running() {
                    running.capture(&self.io.to_client[at..], self.result_limit);
                    running.error = Some((code, message));
                }
            }
        } else {
            let shielded = self.judge.has_masked_columns();
            scrub::report(b'E', body, shielded, &mut self.io.to_client);
        }
        self.settle_failure()
    }

    /// A notice or warning.
    pub(super) fn notice(&mut self, body: &[u8]) -> Result<(), Fault> {
        let shielded = self.judge.has_masked_columns() && self.session.enforces();
        let message = scrub::report(b'N', body, shielded, &mut self.io.to_client);
        let n = self.exchange.running().map(|running| running.request);
        self.session.log().append(&event::Notice {
            n,
            severity: Cow::Owned(codec::report_field(body, b'V').unwrap_or_default()),
            code: Cow::Owned(codec::report_field(body, b'C').unwrap_or_default()),
            message: Cow::Owned(message),
            from: Cow::Borrowed("server"),
        })?;
        Ok(())
    }

    /// A parameter that changed, or a notification.
    pub(super) fn unasked(&mut self, tag: u8, body: &[u8]) -> Result<(), Fault> {
        let shielded = self.judge.has_masked_columns() && self.session.enforces();
        if tag == b'A' {
            scrub::notification(body, shielded, &mut self.io.to_client);
            return Ok(());
        }
        let mut fields = codec::Body::new(b'S', body);
        let name =
            String::from_utf8_lossy(fields.string("name").map_err(Fault::Service)?).into_owned();
        let value =
            String::from_utf8_lossy(fields.string("value").map_err(Fault::Service)?).into_owned();
        match name.as_str() {
            "standard_conforming_strings" if value != "on" => {
                return Err(Fault::Refused(
                    "SETTINGS: standard_conforming_strings was switched off".into(),
                ));
            }
            "client_encoding" => {
                self.encoding = canonical_encoding(&value).ok_or_else(|| {
                    Fault::Refused(format!("ENCODING: {value} can hide ASCII in its bytes"))
                })?;
            }
            _ => {}
        }
        let shown = scrub::parameter(&name, &value, &self.prefix, shielded);
        codec::parameter_status(&mut self.io.to_client, &name, &shown);
        Ok(())
    }
}

fn is_shielded(running: &Running) -> bool {
    running.ruling.guards_rows()
        && running.ruling.shield.as_ref().is_some_and(|shield| shield.has_columns())
}

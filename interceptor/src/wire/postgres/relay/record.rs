//! What the relay writes into the session's record: requests, statements prepared, answers, and
//! how far a COPY has come.
//!
//! Texts and values are recorded as the judge has scrubbed them, and answers as the agent saw
//! them: what was masked or withheld is not in the record either.

use std::borrow::Cow;
use std::sync::Arc;

use crate::session::log::event;
use crate::session::sql::Ruling;
use crate::session::{Effect, micros};

use super::exchange::Running;
use super::{Fault, Relay};

/// Copy data after which the record states its progress.
const COPY_STEP: u64 = 256 * 1024;

impl Relay {
    pub(super) fn record_request(
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
            ch: None,
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

    /// Records that a statement was prepared.
    pub(super) fn record_prepared(&mut self, name: &[u8], ruling: &Ruling) -> Result<(), Fault> {
        self.session.log().append(&event::Prepare {
            name: String::from_utf8_lossy(name),
            class: Cow::Borrowed(ruling.class),
            text: Cow::Borrowed(cut(&ruling.recorded, self.text_limit)),
        })?;
        Ok(())
    }

    /// Records the answer to a request.
    pub(super) fn record_response(&mut self, running: &mut Running) -> Result<(), Fault> {
        if running.request == 0 {
            return Ok(());
        }
        let error = running.error.take().map(|(code, message)| event::ErrorSeen {
            code: Cow::Owned(code),
            message: Cow::Owned(message),
        });
        let response = event::Response {
            n: running.request,
            tag: Cow::Borrowed(&running.tag),
            rows: running.row_count,
            bytes: running.byte_count,
            duration_us: micros(running.started.elapsed()),
            error,
            masked: running.masked,
            truncated: running.truncated,
        };
        self.session.log().append_with(&response, &running.captured)?;
        Ok(())
    }

    /// States how far a COPY has come, every [`COPY_STEP`] bytes.
    pub(super) fn copy_progress(&mut self) -> Result<(), Fault> {
        let Some(running) = self.exchange.running() else { return Ok(()) };
        let n = running.request;
        let Some(digest) = running.digest.as_mut() else { return Ok(()) };
        if digest.bytes - digest.recorded < COPY_STEP {
            return Ok(());
        }
        digest.recorded = digest.bytes;
        let progress = event::CopyProgress {
            n,
            direction: Cow::Borrowed(if digest.inward { "in" } else { "out" }),
            bytes: digest.bytes,
            rows: digest.messages,
            blake3: Cow::Owned(digest.hex()),
        };
        self.session.log().append(&progress)?;
        Ok(())
    }

    /// Records the end of a COPY's data.
    pub(super) fn copy_ended(&mut self, aborted: Option<&str>) -> Result<(), Fault> {
        let Some(running) = self.exchange.running() else { return Ok(()) };
        let n = running.request;
        let Some(digest) = running.digest.take() else { return Ok(()) };
        self.session.log().append(&event::CopyEnd {
            n,
            direction: Cow::Borrowed(if digest.inward { "in" } else { "out" }),
            bytes: digest.bytes,
            rows: digest.messages,
            blake3: Cow::Owned(digest.hex()),
            aborted: aborted.map(Cow::Borrowed),
        })?;
        Ok(())
    }
}

fn cut(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let end = (0..=limit).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
    &text[..end]
}

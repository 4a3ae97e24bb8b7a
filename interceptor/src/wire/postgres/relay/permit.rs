//! Whether a request goes on: its verdict, or the grant or human decision that stands for one.
//!
//! Every request is in the record with its verdict before the answer is given here; there is no
//! other way to a number under which a request may be forwarded.

use std::sync::Arc;

use crate::session::Effect;
use crate::session::sql::{Denial, Ruling};

use super::hold::after_hold;
use super::{Fault, Relay};

/// Whether a request goes on.
pub(super) enum Permit {
    /// Under this number.
    Granted(u64),
    /// Not.
    Refused(Denial),
}

impl Relay {
    /// Records the request with its verdict and says whether it may go on. `None`: it waits
    /// for a human and stays at the front of the buffer.
    pub(super) fn permit(
        &mut self,
        ruling: &Arc<Ruling>,
        text: &Arc<str>,
        via: &'static str,
        shown: impl FnOnce() -> Vec<Option<String>>,
    ) -> Result<Option<Permit>, Fault> {
        if let Some(decided) = self.decided.take_if(|d| d.text == *text) {
            return Ok(Some(after_hold(ruling, decided)));
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
}

/// Why it was denied, for the agent.
pub(super) fn denial_of(ruling: &Ruling) -> Denial {
    ruling.denial.clone().unwrap_or_else(|| Denial::new("42501", "default-deny", "denied"))
}

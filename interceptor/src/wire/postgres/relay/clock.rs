//! What happens when its time has come: the trailing record, the limit of a running statement,
//! the end of the token.

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, Sleep};

use crate::session::sql::Ruling;

use super::{Fault, Finish, Relay};

impl Relay {
    /// The deadline counts time that passes; a clock that was set forward counts too, for what
    /// the agent asks from then on.
    pub(super) fn clock_says_expired(&mut self) -> bool {
        let expired = !self.terminated
            && !self.io.from_client.is_empty()
            && self.session.expires_at().is_some_and(|at| at <= SystemTime::now());
        if expired {
            self.expires = Some(Instant::now());
        }
        expired
    }

    pub(super) fn next_deadline(&self) -> Instant {
        [self.trail, self.limit, self.expires].into_iter().flatten().min().unwrap_or_else(far)
    }

    pub(super) async fn tick(&mut self) -> Result<Option<Finish>, Fault> {
        let now = Instant::now();
        if self.trail.is_some_and(|at| at <= now) {
            self.trail = None;
            if self.session.log().is_dirty() {
                // Nothing waits for it: what trails may trail.
                let _ = self.session.log().commit()?;
            }
        }
        if self.limit.is_some_and(|at| at <= now) {
            self.limit = None;
            self.cancel_upstream();
        }
        if self.expires.is_some_and(|at| at <= now) {
            let running = !self.exchange.is_quiet();
            let grace = self.session.expiry_grace();
            if running && !grace.is_zero() && !self.terminated {
                // The running statement may go on for the grace; nothing new is taken.
                self.terminated = true;
                self.expires = Some(now + grace);
                return Ok(None);
            }
            self.farewell("57P01", "TOKEN_EXPIRED: the token of this session has expired").await;
            return Ok(Some(Finish::because("expired")));
        }
        Ok(None)
    }

    pub(super) fn start_limit(&mut self, ruling: &Ruling) {
        if let Some(seconds) = ruling.verdict.limits.seconds {
            let at = Instant::now() + Duration::from_secs(seconds);
            self.limit = Some(self.limit.map_or(at, |earlier| earlier.min(at)));
        }
    }
}

/// A time that never comes.
pub(super) fn far() -> Instant {
    Instant::now() + Duration::from_secs(365 * 86_400)
}

pub(super) fn arm(sleep: &mut Pin<Box<Sleep>>, armed: &mut Instant, wanted: Instant) {
    // Re-arming costs a lock; a later deadline is found when the earlier one fires.
    if wanted < *armed {
        sleep.as_mut().reset(wanted);
        *armed = wanted;
    }
}

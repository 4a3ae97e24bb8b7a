//! Cancelling what runs, for the agent or for ourselves.
//!
//! A cancel goes over a connection of its own and ends whatever runs when it arrives. So the one
//! behind a withheld answer is awaited before anything new is staged.

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::session::sql::Denial;

use super::super::upstream;
use super::{Fault, Relay};

impl Relay {
    /// The agent asked to cancel what runs.
    pub(super) fn cancel(&mut self) -> Result<(), Fault> {
        let Some(parked) = self.parked.take() else {
            self.cancel_upstream();
            return Ok(());
        };
        self.session.hold_ended(&parked.waiting, "cancelled", None, None, None)?;
        let why = "canceling statement due to user request";
        self.keep_decision(parked, Some(Denial::new("57014", "cancelled", why)));
        Ok(())
    }

    pub(super) fn cancel_upstream(&self) -> Option<JoinHandle<()>> {
        let key = self.key.clone()?;
        let service = Arc::clone(self.session.service());
        let pins = self.session.gate().pins().cloned();
        let id = self.session.id();
        Some(tokio::spawn(async move {
            if let Err(error) = upstream::cancel(&service, pins.as_deref(), &key).await {
                tracing::warn!(session = %id, %error, "cancel could not be delivered");
            }
        }))
    }
}

pub(super) async fn delivered(cancelling: &mut Option<JoinHandle<()>>) {
    match cancelling {
        Some(handle) => {
            let _ = handle.await;
        }
        None => std::future::pending().await,
    }
}

//! The sftp subsystem: every operation judged by itself.

use super::channel;
use super::relay::Relay;

/// Relays one sftp channel to its end.
pub async fn run(relay: Relay) {
    let _ = relay.upstream.write.close().await;
    channel::refuse(&relay.write, &relay.acting.words("sftp is not served yet")).await;
}

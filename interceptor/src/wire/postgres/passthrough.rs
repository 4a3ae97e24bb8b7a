//! Connections that stay without token by configuration: replication standbys, backup jobs,
//! exporters. They prove themselves to the server with its own authentication; we relay bytes
//! and record that nobody was proven.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};

use crate::capture::Pins;
use crate::session::{Proven, Session};

use super::codec::{self, Report};
use super::startup::{self, Startup};
use super::upstream;

/// Time in which the service has to answer the startup packet.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// AuthenticationOk, when nothing was asked before it.
const AUTHENTICATION_OK: [u8; 9] = [b'R', 0, 0, 0, 8, 0, 0, 0, 0];

/// Relays until either side ends, or an order to end comes.
pub async fn serve(session: Session<Proven>, mut startup: Startup, pins: Option<&Arc<Pins>>) {
    let user = startup.parameter("user").unwrap_or_default().to_owned();
    let database = startup.parameter("database").unwrap_or(&user).to_owned();
    let client = startup.parameter("application_name").map(str::to_owned);
    let tls = startup.stream.tls().map(|tls| format!("{} {}", tls.version, tls.cipher));
    let admitted = session.admit(&database, &user, client.as_deref(), &startup.parameters, tls);
    let mut session = match admitted {
        Ok(session) => session,
        Err((session, refused)) => {
            let report = Report::fatal("42501", refused.message.clone());
            let _ = startup::write_report(&mut startup.stream, &report).await;
            return session.end("refused", Some(&refused.message));
        }
    };
    let service = Arc::clone(session.service());
    let mut upstream = match upstream::connect(&service, pins.map(Arc::as_ref)).await {
        Ok(upstream) => upstream,
        Err(error) => {
            let report = Report::fatal("08004", "interceptor: SERVICE_UNAVAILABLE");
            let _ = startup::write_report(&mut startup.stream, &report).await;
            return session.end("server", Some(&error.to_string()));
        }
    };
    if upstream.write_all(&packet(&startup)).await.is_err() {
        return session.end("server", Some("the service closed during start-up"));
    }
    let mut first = [0u8; 9];
    let answered = tokio::time::timeout(FIRST_ANSWER, upstream.read_exact(&mut first)).await;
    if !matches!(answered, Ok(Ok(_))) {
        return session.end("server", Some("the service did not answer the startup packet"));
    }
    if first == AUTHENTICATION_OK && !session.names_os_user(&user) {
        // The server trusts the daemon's own connection, and nobody has vouched for the client.
        let words = "interceptor: NOT_AUTHENTICATED: the server asks this connection for no \
                     password, so nobody has proven anything";
        let report = Report::fatal("28000", words);
        let _ = startup::write_report(&mut startup.stream, &report).await;
        return session.end("refused", Some(words));
    }
    if startup.stream.write_all(&first).await.is_err() {
        return session.end("client", None);
    }
    let mut ending = session.live().ending();
    let moved = tokio::select! {
        moved = copy_bidirectional(&mut startup.stream, &mut upstream) => Some(moved),
        _ = ending.changed() => None,
    };
    match moved {
        Some(Ok((inward, outward))) => {
            session.log().bytes_in = inward;
            session.log().bytes_out = outward;
            session.end("client", None);
        }
        Some(Err(error)) => session.end("client", Some(&error.to_string())),
        None => {
            let order = ending.borrow().clone();
            session.end(order.reason(), order.detail());
        }
    }
}

/// The startup packet as the client sent it, in the version that was agreed.
fn packet(startup: &Startup) -> BytesMut {
    let mut packet = BytesMut::new();
    packet.put_u32(0);
    packet.put_u32(3 << 16);
    for (name, value) in &startup.parameters {
        codec::put_string(&mut packet, name.as_bytes());
        codec::put_string(&mut packet, value.as_bytes());
    }
    packet.put_u8(0);
    let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
    packet[..4].copy_from_slice(&length.to_be_bytes());
    packet
}

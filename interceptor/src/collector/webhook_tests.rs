//! Messages over real HTTP: what arrives, who signed it, and what happens when nobody is there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::Sha256;
use tokio::sync::mpsc;

use crate::collector::decisions::{Choice, decide, list};
use crate::collector::testing::{Bed, approver, ask};

const SOON: Duration = Duration::from_secs(20);
const SECRET: &str = "between us";

/// One message as it came.
struct Got {
    path: &'static str,
    headers: HeaderMap,
    body: String,
}

type Inbox = mpsc::UnboundedSender<Got>;

/// Somebody who takes messages at `/slack`, at `/generic` but for the first, and never answers at
/// `/silent`.
async fn receiver() -> (u16, mpsc::UnboundedReceiver<Got>) {
    let (inbox, got) = mpsc::unbounded_channel();
    let slack = |State(inbox): State<Inbox>, headers: HeaderMap, body: String| async move {
        let _ = inbox.send(Got { path: "slack", headers, body });
    };
    let first = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let generic = move |State(inbox): State<Inbox>, headers: HeaderMap, body: String| async move {
        if first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        let _ = inbox.send(Got { path: "generic", headers, body });
        StatusCode::NO_CONTENT
    };
    let router = Router::new()
        .route("/slack", post(slack))
        .route("/generic", post(generic))
        .route("/silent", post(std::future::pending::<StatusCode>))
        .with_state(inbox);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (port, got)
}

async fn next(got: &mut mpsc::UnboundedReceiver<Got>) -> Got {
    tokio::time::timeout(SOON, got.recv()).await.expect("a message").unwrap()
}

fn signed(got: &Got) -> bool {
    let header = got.headers["x-interceptor-signature"].to_str().unwrap();
    let (time, code) = header.split_once(",v1=").unwrap();
    let seconds = time.strip_prefix("t=").unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(format!("{seconds}.{}", got.body).as_bytes());
    crate::record::chain::hex(&mac.finalize().into_bytes()) == code
}

#[tokio::test(flavor = "multi_thread")]
async fn people_are_told_elsewhere_without_the_statement() {
    let (port, mut got) = receiver().await;
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), SECRET).unwrap();
    let bed = Bed::new(&format!(
        "[[webhook]]\nurl = 'http://127.0.0.1:{port}/silent'\n\
         [[webhook]]\nurl = 'http://127.0.0.1:{port}/slack'\nform = 'slack'\n\
         [[webhook]]\nurl = 'http://127.0.0.1:{port}/generic'\nsecret = {{ file = {:?} }}\n",
        secret.path()
    ))
    .await;
    let mut host = bed.host("a").await;
    let remote = host.connect(&bed, false).await;
    let mut asked = ask(Duration::from_secs(60));
    asked.agent = "<!channel> bot".into();
    let mut hold = remote.approvals.hold(asked).unwrap();

    // Slack hears at once, though another does not answer and a third is busy first.
    let (one, two) = (next(&mut got).await, next(&mut got).await);
    let (slack, generic) = if one.path == "slack" { (one, two) } else { (two, one) };
    assert_eq!((slack.path, generic.path), ("slack", "generic"));
    let text: Value = serde_json::from_str(&slack.body).unwrap();
    let text = text["text"].as_str().unwrap();
    assert!(text.contains("&lt;!channel&gt; bot") && text.contains("/approvals/"), "{text}");
    assert!(slack.headers.get("x-interceptor-signature").is_none());

    let said: Value = serde_json::from_str(&generic.body).unwrap();
    assert_eq!(said["event"], "hold.raised", "{said}");
    assert_eq!((&said["host"], &said["service"]), (&"a".into(), &"orders-db".into()));
    assert!(signed(&generic));
    for message in [&slack.body, &generic.body] {
        assert!(!message.contains("4111111111111111") && !message.contains("s3cret"), "{message}");
    }

    let id = list(&bed.collector).await.unwrap()[0].id.clone();
    assert!(said["link"].as_str().unwrap().ends_with(&format!("/approvals/{id}")));
    let ann = approver(&bed, "00u-ann");
    let yes = Choice { approve: true, ..Choice::default() };
    decide(&bed.collector, &ann, &id, yes).await.unwrap();
    hold.decided().await;
    let (one, two) = (next(&mut got).await, next(&mut got).await);
    let generic = if one.path == "generic" { one } else { two };
    let said: Value = serde_json::from_str(&generic.body).unwrap();
    assert_eq!((&said["event"], &said["hold"]), (&"hold.granted".into(), &id.into()));
    assert_eq!(said["by"][0], "Name of 00u-ann");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_takes_waits_and_is_bounded() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/gone", dead.local_addr().unwrap());
    drop(dead);
    let bed = Bed::new(&format!("[[webhook]]\nurl = '{url}'\n")).await;
    let mut host = bed.host("a").await;
    let remote = host.connect(&bed, false).await;
    let _hold = remote.approvals.hold(ask(Duration::from_secs(60))).unwrap();
    let tried = async {
        loop {
            let tries = bed.collector.central.read(|db| {
                db.query_row("SELECT max(tries) FROM deliveries", [], |r| r.get(0))
                    .map_err(super::CollectorError::db("read"))
            });
            let tries: Option<i64> = tries.await.unwrap();
            if tries.is_some_and(|t| t >= 1) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, tried).await.expect("an attempt that is noted");

    let collector = std::sync::Arc::clone(&bed.collector);
    let many = move |db: &crate::collector::db::Connection| {
        for _ in 0..super::MOST + 10 {
            let event = super::Event::Conflict { first: "a", second: "b" };
            super::announce(db, &collector.config, &event)?;
        }
        db.query_row("SELECT count(*) FROM deliveries", [], |r| r.get::<_, i64>(0))
            .map_err(super::CollectorError::db("count"))
    };
    assert!(bed.collector.central.write(many).await.unwrap() <= super::MOST);

    // What was meant for a webhook that is configured no more is forgotten.
    let bed = bed.restarted("").await;
    let left = async {
        loop {
            let left = bed.collector.central.read(|db| {
                db.query_row("SELECT count(*) FROM deliveries", [], |r| r.get::<_, i64>(0))
                    .map_err(super::CollectorError::db("count"))
            });
            if left.await.unwrap() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, left).await.expect("nothing left");
}

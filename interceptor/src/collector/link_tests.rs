//! The line between hosts and a collector over real HTTPS, in one process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use ulid::Ulid;

use super::decisions::{Choice, decide, kill, list, revoke};
use super::testing::{Bed, Host, approver, ask, person};
use super::{CollectorError, audit};
use crate::approval::{Authority, HoldError, Outcome};
use crate::config::Reserve as Mode;
use crate::identity::{Reservation, Reserve, Reserved};
use crate::session::live::{Live, Marks, Target};
use crate::ship::remote::Remote;
use crate::ship::reserve::{Fleet, settle};

const MINUTE: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(20);

fn yes() -> Choice {
    Choice { approve: true, ..Choice::default() }
}

/// Waits for the only hold at the collector.
pub(super) async fn arrives(bed: &Bed) -> String {
    let mut changes = bed.collector.hub.listen();
    let found = async {
        loop {
            if let Some(row) = list(&bed.collector).await.unwrap().first()
                && bed.collector.held.get(&row.id).is_some()
            {
                return row.id.clone();
            }
            let _ = tokio::time::timeout(Duration::from_millis(200), changes.recv()).await;
        }
    };
    tokio::time::timeout(SOON, found).await.expect("a hold at the collector")
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_goes_out_and_the_decision_comes_back() {
    let bed = Bed::new("").await;
    let mut host = bed.host("a").await;
    let remote = host.connect(&bed, false).await;
    let mut hold = remote.approvals.hold(ask(MINUTE)).unwrap();
    let id = arrives(&bed).await;
    let hour = Choice { approve: true, for_seconds: Some(3600), reason: Some("ok".into()) };
    decide(&bed.collector, &approver(&bed, "00u-ann"), &id, hour).await.unwrap();
    let Outcome::Granted { by, grant, .. } = hold.decided().await else { panic!() };
    assert_eq!(by.to_string(), "Name of 00u-ann (okta/00u-ann) at the collector");
    let mut grant = grant.unwrap();
    // The grant is known there, and ends from there.
    until("a grant", async || !super::decisions::grants(&bed.collector).await.unwrap().is_empty())
        .await;
    let ann = approver(&bed, "00u-ann");
    revoke(&bed.collector, &ann, host.id.id, grant.id(), None).await.unwrap();
    assert!(tokio::time::timeout(SOON, grant.withdrawn()).await.unwrap());

    let mut hold = remote.approvals.hold(ask(MINUTE)).unwrap();
    let id = arrives(&bed).await;
    let no = Choice { reason: Some("not today".into()), ..Choice::default() };
    decide(&bed.collector, &ann, &id, no).await.unwrap();
    let Outcome::Denied { reason, .. } = hold.decided().await else { panic!() };
    assert_eq!(reason.as_deref(), Some("not today"));

    // An agent that leaves takes its request along.
    drop(remote.approvals.hold(ask(MINUTE)).unwrap());
    let gone = remote.approvals.hold(ask(MINUTE)).unwrap();
    arrives(&bed).await;
    drop(gone);
    until("no hold", async || list(&bed.collector).await.unwrap().is_empty()).await;
    let trail = bed.collector.central.read(audit::verify).await.unwrap();
    assert_eq!(trail, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_judges_the_people_of_the_collector_itself() {
    // A collector that knows neither owners nor principals: the host still does.
    let bed = Bed::new("").await;
    let mut host = bed.host("a").await;
    let remote = host.connect(&bed, false).await;
    for (sub, says) in [("00u-eve", "SELF_APPROVAL"), ("00u-owner", "SELF_APPROVAL")] {
        let hold = remote.approvals.hold(ask(MINUTE)).unwrap();
        arrives(&bed).await;
        let by = crate::ship::wire::By {
            issuer: super::testing::OKTA.into(),
            sub: sub.into(),
            name: "somebody".into(),
        };
        let command = crate::ship::wire::Command::Decide {
            hold: hold.id().into(),
            approve: true,
            scope: crate::approval::Scope::Once,
            by: vec![by],
            reason: None,
        };
        let (this, at) = (Arc::clone(&bed.collector), host.id.clone());
        let issue = move |db: &crate::collector::db::Connection| this.order(db, &at, command);
        let seq = bed.collector.central.write(issue).await.unwrap();
        bed.collector.ordered(host.id.id);
        until("a refusal", async || {
            let id = host.id.id;
            let result: Option<String> = bed
                .collector
                .central
                .read(move |db| {
                    db.query_row(
                        "SELECT result FROM orders WHERE host = ?1 AND seq = ?2",
                        (id, seq as i64),
                        |r| r.get(0),
                    )
                    .map_err(CollectorError::db("read"))
                })
                .await
                .unwrap();
            result.is_some_and(|r| r.contains(says))
        })
        .await;
        assert_eq!(remote.approvals.held(), 1, "it still waits");
        drop(hold);
        until("no hold", async || list(&bed.collector).await.unwrap().is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_collector_is_away_the_host_decides_or_nobody() {
    let mut bed = Bed::new("").await;
    let (mut with, mut without) = (bed.host("with").await, bed.host("without").await);
    let (with, without) = (with.connect(&bed, true).await, without.connect(&bed, false).await);
    let mut waiting = without.approvals.hold(ask(MINUTE)).unwrap();
    let kept = with.approvals.hold(ask(MINUTE)).unwrap();
    until("two holds", async || list(&bed.collector).await.unwrap().len() == 2).await;
    bed.stop();
    let Outcome::Unanswerable { why } = waiting.decided().await else { panic!() };
    assert!(why.contains("cannot be reached"), "{why}");
    let refused = without.approvals.hold(ask(MINUTE)).unwrap_err();
    assert!(matches!(refused, HoldError::NobodyToAsk(_)));
    until("the local approvers", async || {
        matches!(with.approvals.authority(), Authority::HostMeanwhile { .. })
    })
    .await;
    assert_eq!(with.approvals.held(), 1);
    // It comes back without any exact text, and is given them again.
    let bed = bed.restarted("").await;
    until("the collector", async || {
        let here = |r: &Arc<Remote>| matches!(r.approvals.authority(), Authority::Collector { .. });
        here(&with) && here(&without)
    })
    .await;
    let id = arrives(&bed).await;
    until("one hold", async || list(&bed.collector).await.unwrap().len() == 1).await;
    decide(&bed.collector, &approver(&bed, "00u-ann"), &id, yes()).await.unwrap();
    let mut kept = kept;
    assert!(matches!(kept.decided().await, Outcome::Granted { .. }));
}

fn enter(remote: &Arc<Remote>, agent: &str, jti: &str) -> Live {
    let source = "192.0.2.1:5".parse().unwrap();
    let live = remote.live.enter(Ulid::new(), "orders-db", source, 100).unwrap();
    let marks = Marks {
        issuer: super::testing::OKTA.into(),
        principals: vec!["00u-eve".into()],
        tokens: vec![jti.into(), crate::identity::hash_jti(jti)],
    };
    live.set_identity(agent, "eve@example.com", marks);
    live
}

async fn ends(live: &Live) -> &'static str {
    let mut ending = live.ending();
    let told = ending.wait_for(|e| *e != crate::session::Ending::None);
    tokio::time::timeout(SOON, told).await.expect("an end").unwrap().reason()
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_end_on_every_host() {
    let bed = Bed::new("").await;
    let (mut a, mut b) = (bed.host("a").await, bed.host("b").await);
    let (ra, rb) = (a.connect(&bed, true).await, b.connect(&bed, true).await);
    let (mine, also, other) =
        (enter(&ra, "bot", "j1"), enter(&rb, "bot", "j2"), enter(&rb, "etl", "j3"));
    let admin = person(&bed, "00u-adm", &["admins"]);
    let bot = Target::Agent("bot".into());
    kill(&bed.collector, &admin, bot, None, Some("runs wild".into())).await.unwrap();
    assert_eq!((ends(&mine).await, ends(&also).await), ("killed", "killed"));
    let why = mine.ending().borrow().detail().map(str::to_owned);
    assert!(
        why.clone().is_some_and(|w| w.contains("00u-adm") && w.ends_with("runs wild")),
        "{why:?}"
    );
    assert_eq!(*other.ending().borrow(), crate::session::Ending::None);
}

fn token(jti: &str) -> Reservation {
    Reservation {
        issuer: super::testing::OKTA.into(),
        jti_hash: crate::identity::hash_jti(jti),
        expires: crate::record::now_us() / 1_000_000 + 600,
        source: "192.0.2.1".into(),
        service: "orders-db".into(),
    }
}

fn fleet(bed: &Bed, host: &Host, remote: &Arc<Remote>, mode: Mode) -> Arc<Fleet> {
    let (fleet, open) = Fleet::new(host.line(bed), &with_service(mode), Mode::Deny);
    tokio::spawn(settle(host.line(bed), Arc::clone(remote), open));
    fleet
}

fn with_service(mode: Mode) -> crate::config::Config {
    let mode = match mode {
        Mode::Deny => "deny",
        Mode::Allow => "allow",
        Mode::Off => "off",
    };
    toml::from_str(&format!(
        "[[service]]\nname='orders-db'\nprotocol='postgres'\nport=5432\naudience='a'\n\
         plaintext_loopback=true\nupstream={{socket='/x'}}\nreserve='{mode}'\n"
    ))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_token_is_for_one_host() {
    let mut bed = Bed::new("").await;
    let (mut a, mut b) = (bed.host("a").await, bed.host("b").await);
    let (ra, rb) = (a.connect(&bed, true).await, b.connect(&bed, true).await);
    let (fa, fb) = (fleet(&bed, &a, &ra, Mode::Deny), fleet(&bed, &b, &rb, Mode::Deny));
    // The first contact may take longer than a token's question has.
    a.line(&bed).get_json::<serde_json::Value>("/host/v1/alive", SOON).await.unwrap();
    until("an answer", async || fa.reserve(token("warm")).await == Reserved::Ours).await;
    assert_eq!(fa.reserve(token("j1")).await, Reserved::Ours);
    assert_eq!(fa.reserve(token("j1")).await, Reserved::Ours, "asked again by the same host");
    until("an answer", async || fb.reserve(token("warm-b")).await == Reserved::Ours).await;
    assert_eq!(fb.reserve(token("j1")).await, Reserved::Elsewhere);
    assert_eq!(fb.reserve(token("j2")).await, Reserved::Ours);

    // While it is away: refused, taken, or not asked, as the service says.
    bed.stop();
    assert_eq!(fb.reserve(token("j3")).await, Reserved::Unanswered);
    let (allow_a, allow_b) = (fleet(&bed, &a, &ra, Mode::Allow), fleet(&bed, &b, &rb, Mode::Allow));
    let off = fleet(&bed, &b, &rb, Mode::Off);
    assert_eq!(off.reserve(token("j3")).await, Reserved::Ours);
    let began = Instant::now();
    assert_eq!(allow_a.reserve(token("j4")).await, Reserved::Later);
    assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
    assert_eq!(allow_b.reserve(token("j4")).await, Reserved::Later);
    let (la, lb) = (enter(&ra, "bot", "j4"), enter(&rb, "bot", "j4"));
    let bed = bed.restarted("").await;
    assert_eq!((ends(&la).await, ends(&lb).await), ("conflict", "conflict"));
    let trail = bed.collector.central.read(audit::verify).await.unwrap();
    assert_eq!(trail, None);
}

/// Times of many, in milliseconds: median and 95th percentile.
fn percentiles(mut all: Vec<Duration>) -> (f64, f64) {
    all.sort();
    let at = |p: usize| all[(all.len() - 1) * p / 100].as_secs_f64() * 1000.0;
    (at(50), at(95))
}

#[tokio::test(flavor = "multi_thread")]
async fn people_hear_of_a_hold_and_the_host_of_the_decision_at_once() {
    let bed = Bed::new("").await;
    let mut host = bed.host("a").await;
    let remote = host.connect(&bed, false).await;
    let ann = approver(&bed, "00u-ann");
    let (mut out, mut back) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let mut changes = bed.collector.hub.listen();
        let began = Instant::now();
        let mut hold = remote.approvals.hold(ask(MINUTE)).unwrap();
        let id = loop {
            if let Ok(super::Change::Hold(id)) = changes.recv().await
                && id.ends_with(hold.id())
            {
                break id;
            }
        };
        out.push(began.elapsed());
        let began = Instant::now();
        decide(&bed.collector, &ann, &id, yes()).await.unwrap();
        assert!(matches!(hold.decided().await, Outcome::Granted { .. }));
        back.push(began.elapsed());
    }
    let ((out50, out95), (back50, back95)) = (percentiles(out), percentiles(back));
    println!("hold to collector: median {out50:.1} ms, p95 {out95:.1} ms");
    println!("approve to host:   median {back50:.1} ms, p95 {back95:.1} ms");
    // Of a shared database the figures are another matter.
    let shared = bed.collector.feed.is_some();
    assert!(shared || (out95 < 200.0 && back95 < 200.0), "{out95} {back95}");
}

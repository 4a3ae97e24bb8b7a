//! Policies from the centre over real HTTPS, in one process: published here, in force there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::json;

use super::audit::{self, Who};
use super::policies::check::{CheckError, Given};
use super::policies::hosts::OnHost;
use super::policies::{How, PublishError, Version, list, publish, roll_back, show, withdraw};
use super::testing::{Bed, Host};
use super::{CollectorError, hosts};
use crate::policy::testing::{claims_from, plain_agent};
use crate::policy::{Ask, Effect, Source, SqlFacts, Subject, Verdict};
use crate::policy::{Name, StatementClass};
use crate::ship::bundle::{Bundle, BundleError, File, SignedBundle};
use crate::ship::kept::Kept;
use crate::ship::trusted::Trusted;

const SOON: Duration = Duration::from_secs(20);
pub(super) const OWN: &str = "[[rule]]\nname='no-secrets'\neffect='deny'\ntables='secrets'\n";
pub(super) const OPEN: &str = "[[rule]]\nname='open'\neffect='allow'\nstatement='select'\n";

fn how() -> How {
    How { who: Who::Operator { user: "ann".into() }, note: Some("because".into()), above: 0 }
}

fn given(files: &[(&str, &str)]) -> Given {
    let mut given = Given::default();
    for (name, text) in files {
        given.add(Source { name: format!("dir/{name}"), text: (*text).into() });
    }
    given
}

pub(super) async fn published(bed: &Bed, files: &[(&str, &str)]) -> Version {
    published_above(bed, files, 0).await
}

async fn published_above(bed: &Bed, files: &[(&str, &str)], above: u64) -> Version {
    let checked = given(files).check(None).unwrap();
    let this = Arc::clone(&bed.collector);
    let write = move |db: &crate::collector::db::Connection| {
        publish(db, &this.keys, &How { above, ..how() }, checked)
    };
    bed.collector.central.write(write).await.unwrap()
}

/// Signs and offers what no loader has seen, as another version of the collector might.
async fn offered(bed: &Bed, version: i64, text: &str) {
    let files = vec![File { name: "x.toml".into(), text: text.into() }];
    let bundle = Bundle::new(u64::try_from(version).unwrap(), 1, Some(files));
    let body = serde_json::to_string(&bundle).unwrap();
    let signature = bed.collector.keys.sign(crate::ship::bundle::BUNDLE_DOMAIN, body.as_bytes());
    insert(bed, version, body, signature.to_vec()).await;
}

async fn insert(bed: &Bed, version: i64, body: String, signature: Vec<u8>) {
    let write = move |db: &crate::collector::db::Connection| {
        db.execute(
            "INSERT INTO policy_versions (version, published_us, published_by, what, sha256, \
             rules, body, signature) VALUES (?1, 1, '{}', 'published', '', 1, ?2, ?3)",
            crate::collector::db::params![version, body, signature],
        )
        .map(drop)
        .map_err(CollectorError::db("insert"))
    };
    bed.collector.central.write(write).await.unwrap();
}

fn judge(host: &mut Host, table: &str) -> Verdict {
    let now: Timestamp = "2026-03-02T10:00:00Z".parse().unwrap();
    let claims = json!({ "sub": "ann" }).as_object().unwrap().clone();
    let subject = Subject {
        claims: Some(Arc::new(claims_from(claims, "okta", now.as_second()).unwrap())),
        agent: Some(Arc::new(plain_agent("bot", Default::default()))),
        service: "orders-db".into(),
        database: "shop".into(),
        role: "app".into(),
        source: "127.0.0.1".parse().unwrap(),
        client: None,
    };
    let facts = SqlFacts {
        class: StatementClass::Select,
        tables_read: vec![Name::new("public", table)],
        text: "SELECT".into(),
        ..SqlFacts::default()
    };
    host.running().running().judge(&subject, &Ask::Sql(&facts), now)
}

fn effect(host: &mut Host, table: &str) -> Effect {
    judge(host, table).effect
}

async fn on_host(bed: &Bed, host: &Host) -> OnHost {
    let all = bed.collector.central.read(hosts::list).await.unwrap();
    all.into_iter().find(|h| h.id == host.id.id).unwrap().policies
}

/// Waits until the collector shows something of a host.
pub(super) async fn until(
    bed: &Bed,
    host: &Host,
    what: &str,
    is: impl Fn(&OnHost) -> bool,
) -> OnHost {
    let wait = async {
        loop {
            let now = on_host(bed, host).await;
            if is(&now) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(SOON, wait).await {
        Ok(found) => found,
        Err(_) => panic!("{what}: {:?}", on_host(bed, host).await),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_in_force_on_hosts_that_take_it_and_denies_of_theirs_stay() {
    let bed = Bed::new("").await;
    let (mut a, mut b) = (bed.host("a").await, bed.host("b").await);
    a.takes(OWN);
    let _running = (a.connect(&bed, true).await, b.connect(&bed, true).await);
    until(&bed, &a, "a report", |p| p.takes && p.status.version == 0).await;
    until(&bed, &b, "a report", |p| p.reported_us.is_some()).await;
    assert_eq!(effect(&mut a, "orders"), Effect::Deny);

    let first = published(&bed, &[("open.toml", OPEN)]).await;
    assert_eq!((first.version, first.rules, first.by_words().as_str()), (1, 1, "ann"));
    let shown = until(&bed, &a, "version 1", |p| p.status.version == 1).await;
    assert_eq!(
        (shown.words().as_str(), shown.status.sha256.as_str()),
        ("version 1", first.sha256.as_str())
    );
    assert!(
        shown.status.in_force && shown.status.since_us.is_some() && shown.status.error.is_none()
    );
    let verdict = judge(&mut a, "orders");
    assert_eq!(verdict.effect, Effect::Allow);
    assert_eq!(verdict.rules[0].file, "central:1/open.toml");
    assert_eq!(effect(&mut a, "secrets"), Effect::Deny, "its own deny stays");
    // The other host takes nothing, and says so.
    assert_eq!(effect(&mut b, "orders"), Effect::Deny);
    assert_eq!(on_host(&bed, &b).await.words(), "local only");

    // Further versions, back to the first under a new number, and away.
    let none = "[[rule]]\nname='none'\neffect='deny'\ntables='orders'\n";
    published(&bed, &[("none.toml", none)]).await;
    until(&bed, &a, "version 2", |p| p.status.version == 2).await;
    assert_eq!(effect(&mut a, "orders"), Effect::Deny);
    let this = Arc::clone(&bed.collector);
    let back = bed.collector.central.write(move |db| roll_back(db, &this.keys, &how(), 1)).await;
    let back: Version = back.unwrap();
    assert_eq!((back.version, back.content_of, &back.sha256), (3, Some(1), &first.sha256));
    until(&bed, &a, "version 3", |p| p.status.version == 3).await;
    assert_eq!(effect(&mut a, "orders"), Effect::Allow);
    let this = Arc::clone(&bed.collector);
    bed.collector.central.write(move |db| withdraw(db, &this.keys, &how())).await.unwrap();
    let shown = until(&bed, &a, "version 4", |p| p.status.version == 4).await;
    assert_eq!(shown.words(), "local only, withdrawn by version 4");
    assert_eq!(effect(&mut a, "orders"), Effect::Deny);
    let all = bed.collector.central.read(list).await.unwrap();
    let what: Vec<_> = all.iter().map(|v| (v.version, v.what.as_str())).collect();
    assert_eq!(what, [(4, "withdrawn"), (3, "rolled-back"), (2, "published"), (1, "published")]);
    assert_eq!(bed.collector.central.read(audit::verify).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_bundle_changes_nothing_and_is_told_with_its_place() {
    let bed = Bed::new("").await;
    let mut a = bed.host("a").await;
    a.takes(OWN);
    let _running = a.connect(&bed, true).await;
    published(&bed, &[("open.toml", OPEN)]).await;
    until(&bed, &a, "version 1", |p| p.status.version == 1).await;
    offered(&bed, 2, "[[rule]]\nname='x'\neffect='allow'\n\n[[rule]]\nname='y'\nefect='deny'\n")
        .await;
    let shown = until(&bed, &a, "an error", |p| p.status.error.is_some()).await;
    assert_eq!(
        (shown.status.version, shown.status.in_force, shown.status.refused),
        (1, true, Some(2))
    );
    let error = shown.status.error.unwrap();
    assert!(error.starts_with("central:2/x.toml:7") && error.contains("`effect`"), "{error}");
    assert_eq!(effect(&mut a, "orders"), Effect::Allow, "what was in force stays");
    // What only a host's own file may say is refused there too, whoever published it.
    offered(&bed, 3, "[[rule]]\nname='x'\neffect='allow'\nunseen=true\n").await;
    let shown = until(&bed, &a, "an error", |p| p.status.refused == Some(3)).await;
    assert!(shown.status.error.unwrap().contains("own file"), "own file");
    // A version that can be used mends it.
    published(&bed, &[("open.toml", &format!("{OPEN}# mended\n"))]).await;
    let shown = until(&bed, &a, "version 4", |p| p.status.version == 4).await;
    assert_eq!((shown.status.error, shown.status.refused), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_altered_and_foreign_bundles_are_refused() {
    let bed = Bed::new("").await;
    let other = Bed::new("").await;
    let mut a = bed.host("a").await;
    a.takes(OWN);
    let _running = a.connect(&bed, true).await;
    published(&bed, &[("open.toml", OPEN)]).await;
    until(&bed, &a, "version 1", |p| p.status.version == 1).await;
    let files = vec![File { name: "x.toml".into(), text: OPEN.into() }];
    let body = serde_json::to_string(&Bundle::new(2, 1, Some(files))).unwrap();
    let domain = crate::ship::bundle::BUNDLE_DOMAIN;
    let foreign = other.collector.keys.sign(domain, body.as_bytes()).to_vec();
    let order = bed.collector.keys.sign(crate::ship::wire::ORDER_DOMAIN, body.as_bytes()).to_vec();
    let good = bed.collector.keys.sign(domain, body.as_bytes()).to_vec();
    let altered = body.replace("open", "0pen");
    for (version, body, signature) in
        [(2, &body, foreign), (3, &body, order), (4, &altered, good), (5, &body, Vec::new())]
    {
        let before = on_host(&bed, &a).await.reported_us;
        insert(&bed, version, body.clone(), signature).await;
        let audited = move |db: &crate::collector::db::Connection| {
            db.query_row("SELECT count(*) FROM audit WHERE what = 'policies.refused'", [], |r| {
                r.get::<_, i64>(0)
            })
            .map_err(CollectorError::db("count"))
        };
        let shown = until(&bed, &a, "a refusal", |p| p.reported_us > before).await;
        assert!(shown.status.error.unwrap().contains("not signed with the key"), "{version}");
        assert_eq!((shown.status.version, shown.status.in_force), (1, true));
        assert_eq!(bed.collector.central.read(audited).await.unwrap(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_is_in_force_after_a_restart_without_the_collector() {
    let mut bed = Bed::new("").await;
    let mut a = bed.host("a").await;
    a.takes(OWN);
    let running = a.connect(&bed, true).await;
    let mut old = Vec::new();
    for text in [OPEN, &format!("{OPEN}# more\n")] {
        let version = published(&bed, &[("open.toml", text)]).await.version;
        until(&bed, &a, "a version", |p| p.status.version == version).await;
        let this = Arc::clone(&bed.collector);
        let offer = move |db: &_| super::policies::offer(db, &this.keys, 0, "");
        old.push(bed.collector.central.read(offer).await.unwrap());
    }
    bed.stop();
    drop(running);
    a.stop();
    assert_eq!(effect(&mut a, "orders"), Effect::Allow, "from its disk");
    let status = a.running().central().unwrap();
    assert_eq!((status.version, status.in_force, status.rules), (2, true, 1));
    use std::os::unix::fs::PermissionsExt;
    let file = a.dir().join("policies.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    // Shown again, an older one or the same is not taken.
    let trusted = Arc::clone(&a.trusted);
    let (mut kept, in_force) = Kept::open(a.dir(), Arc::clone(&trusted)).unwrap();
    assert_eq!(in_force.unwrap().bundle.version, 2);
    for (offer, version) in old.iter().zip([1, 2]) {
        let refused = kept.check(offer.bundle.as_ref().unwrap()).unwrap_err();
        assert_eq!(refused, (Some(version), BundleError::Old { version, seen: 2 }));
    }
    // What is on disk counts only as it was signed, and only for its own collector.
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("open", "0pen")).unwrap();
    let error = Kept::open(a.dir(), trusted).unwrap_err().to_string();
    assert!(error.contains("not signed") && error.contains("central_policies = false"), "{error}");
    std::fs::write(&file, &text).unwrap();
    let other = Bed::new("").await;
    let trusted = Arc::new(Trusted::key(other.collector.keys.public()));
    let (kept, in_force) = Kept::open(a.dir(), trusted).unwrap();
    assert!(in_force.is_none() && kept.taken() == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_was_put_back_says_so_and_is_told_how_to_go_on() {
    let bed = Bed::new("").await;
    let mut a = bed.host("a").await;
    a.takes(OWN);
    // The host has taken version 7 of a collector that now knows of none.
    let files = vec![File { name: "x.toml".into(), text: OPEN.into() }];
    let body = serde_json::to_string(&Bundle::new(7, 1, Some(files))).unwrap();
    let domain = crate::ship::bundle::BUNDLE_DOMAIN;
    let signature = STANDARD.encode(bed.collector.keys.sign(domain, body.as_bytes()));
    let signed = SignedBundle { body, signature };
    let (mut kept, _) = Kept::open(a.dir(), Arc::clone(&a.trusted)).unwrap();
    let checked = kept.check(&signed).unwrap();
    kept.take(&signed, &checked).unwrap();
    let _running = a.connect(&bed, true).await;
    let shown = until(&bed, &a, "an error", |p| p.status.error.is_some()).await;
    assert!(shown.status.error.unwrap().contains("--above 7"));
    assert_eq!((shown.status.version, shown.status.in_force), (7, true));
    let next = published_above(&bed, &[("open.toml", OPEN)], 7).await;
    assert_eq!(next.version, 8);
    let shown = until(&bed, &a, "version 8", |p| p.status.version == 8).await;
    assert_eq!(shown.status.error, None);
}

#[test]
fn files_with_errors_or_tests_that_fail_are_not_published() {
    let test = "[[case]]\nname='reads'\nstatement='SELECT 1'\nexpect='deny'\n";
    let connect = "[[rule]]\nname='in'\neffect='allow'\non='connect'\n";
    let bad = |files: &[(&str, &str)]| given(files).check(None).unwrap_err().to_string();
    let error = bad(&[("a.toml", OPEN), ("a.test.toml", test)]);
    assert!(error.starts_with("dir/a.test.toml:1: reads: expected deny, is allow"), "{error}");
    let error = bad(&[("a.toml", OPEN), ("b.toml", "\n[[rule]]\nname='x'\n")]);
    assert!(error.starts_with("dir/b.toml:2: rule \"x\": does nothing"), "{error}");
    let error = bad(&[("a.toml", "[[rule]]\nname='x'\neffect='allow'\nrequest='shell'\n")]);
    assert!(error.starts_with("dir/a.toml:1") && error.contains("own file"), "{error}");
    assert!(matches!(given(&[]).check(None), Err(CheckError::Files(_))));
    let good = given(&[
        ("a.toml", OPEN),
        ("c.toml", connect),
        ("a.test.toml", &test.replace("deny", "allow")),
    ]);
    let checked = good.check(None).unwrap();
    assert_eq!((checked.rules, checked.passed, checked.files.len()), (2, 1, 2));
}

#[tokio::test]
async fn versions_are_kept_and_nothing_is_published_that_changes_nothing() {
    let bed = Bed::new("").await;
    published(&bed, &[("a.toml", OPEN)]).await;
    let this = Arc::clone(&bed.collector);
    let again = given(&[("a.toml", OPEN)]).check(None).unwrap();
    let same = bed.collector.central.write(move |db| publish(db, &this.keys, &how(), again)).await;
    assert!(matches!(same, Err(PublishError::Same(1))));
    let this = Arc::clone(&bed.collector);
    let missing = bed.collector.central.write(move |db| roll_back(db, &this.keys, &how(), 9)).await;
    assert!(matches!(missing, Err(PublishError::NoVersion(9))));
    let (version, files) = bed.collector.central.read(|db| show(db, 1)).await.unwrap().unwrap();
    assert_eq!(version.note.as_deref(), Some("because"));
    assert_eq!(files.unwrap()[0], File { name: "a.toml".into(), text: OPEN.into() });
    let changed = bed
        .collector
        .central
        .write(|db| {
            db.execute("UPDATE policy_versions SET body = ''", [])
                .map_err(CollectorError::db("alter"))
        })
        .await;
    assert!(changed.is_err(), "versions are append-only");
}

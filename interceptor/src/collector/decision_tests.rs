//! Who may decide what, and how a hold gets its one outcome.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use super::decisions::{Choice, decide, grants, kill, list, revoke, show};
use super::testing::{Bed, Host, approver, person, raised, waits};
use super::{Person, audit, orders};
use crate::approval::Scope;
use crate::session::Target;
use crate::ship::wire::{Command, Done, Order};

const MINUTE: Duration = Duration::from_secs(60);

fn yes() -> Choice {
    Choice { approve: true, ..Choice::default() }
}

fn no(reason: &str) -> Choice {
    Choice { approve: false, for_seconds: None, reason: Some(reason.into()) }
}

async fn answer(bed: &Bed, who: &Person, hold: &str, choice: Choice) -> Result<String, String> {
    let decided = decide(&bed.collector, who, hold, choice).await;
    decided.map(|d| d.state).map_err(|e| e.code().to_owned())
}

async fn orders_of(bed: &Bed, host: &Host) -> Vec<Order> {
    let id = host.id.id;
    let all = bed.collector.central.read(move |db| orders::after(db, id, 0)).await.unwrap();
    all.iter().map(|o| serde_json::from_str(&o.body).unwrap()).collect()
}

async fn trail(bed: &Bed) -> Vec<String> {
    bed.collector
        .central
        .read(|db| {
            assert_eq!(audit::verify(db)?, None);
            db.prepare("SELECT what FROM audit ORDER BY id")
                .and_then(|mut s| s.query_map([], |r| r.get(0))?.collect())
                .map_err(super::CollectorError::db("read"))
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn nobody_decides_their_own_request_or_that_of_their_agent() {
    let bed = Bed::new("[[agent]]\nname = 'billing-bot'\nissuer = 'okta'\ncid = 'x'\nowners = ['00u-registered']\n").await;
    let host = bed.host("a").await;
    let id = waits(&bed, &host, raised("h-1", MINUTE)).await;
    for (who, want) in [
        (approver(&bed, "00u-eve"), "SELF_APPROVAL"),
        (approver(&bed, "eve@example.com"), "SELF_APPROVAL"),
        (approver(&bed, "0oa-billing"), "SELF_APPROVAL"),
        (approver(&bed, "00u-owner"), "SELF_APPROVAL"),
        (approver(&bed, "00u-registered"), "SELF_APPROVAL"),
        (person(&bed, "00u-ann", &["admins"]), "NOT_AN_APPROVER"),
        (person(&bed, "00u-ann", &[]), "NOT_AN_APPROVER"),
    ] {
        for choice in [yes(), no("")] {
            assert_eq!(answer(&bed, &who, &id, choice).await, Err(want.into()), "{}", who.sub);
        }
        let seen = show(&bed.collector, &who, &id).await.unwrap();
        assert!(seen.statement.is_none() && seen.claims.is_none() && seen.withheld.is_some());
    }
    assert!(orders_of(&bed, &host).await.is_empty());
    assert_eq!(answer(&bed, &approver(&bed, "00u-ann"), &id, yes()).await, Ok("granted".into()));
}

#[tokio::test]
async fn a_hold_has_one_outcome_and_its_exact_text_goes_with_it() {
    let bed = Bed::new("").await;
    let host = bed.host("a").await;
    let id = waits(&bed, &host, raised("h-1", MINUTE)).await;
    let (ann, bob) = (approver(&bed, "00u-ann"), approver(&bed, "00u-bob"));
    let seen = show(&bed.collector, &ann, &id).await.unwrap();
    assert!(seen.statement.unwrap().contains("4111111111111111"));
    assert_eq!(seen.values.unwrap()[0].as_deref(), Some("s3cret"));
    let seen = show(&bed.collector, &bob, &id).await.unwrap();
    let viewers: Vec<_> = seen.viewed.iter().map(|(by, _)| by.sub.as_str()).collect();
    assert_eq!(viewers, ["00u-ann", "00u-bob"]);

    let tries: Vec<_> = (0..20)
        .map(|n| {
            let (who, collector) = (approver(&bed, &format!("00u-{n}")), bed.collector.clone());
            let (id, choice) = (id.clone(), if n % 2 == 0 { yes() } else { no("never") });
            tokio::spawn(async move { decide(&collector, &who, &id, choice).await.is_ok() })
        })
        .collect();
    let mut won = 0;
    for one in tries {
        won += u32::from(one.await.unwrap());
    }
    assert_eq!(won, 1);
    assert_eq!(orders_of(&bed, &host).await.len(), 1);
    assert_eq!(answer(&bed, &ann, &id, yes()).await, Err("ENDED".into()));
    let after = show(&bed.collector, &ann, &id).await.unwrap();
    assert!(after.statement.is_none() && bed.collector.held.get(&id).is_none());
    assert!(list(&bed.collector).await.unwrap().is_empty());
    let files = std::fs::read_dir(bed.dir.path().join("collector")).unwrap();
    for file in files.flatten().filter(|f| f.path().is_file()) {
        let bytes = std::fs::read(file.path()).unwrap();
        for secret in [&b"4111111111111111"[..], b"s3cret"] {
            assert!(!bytes.windows(secret.len()).any(|w| w == secret), "{:?}", file.path());
        }
    }
    let trail = trail(&bed).await;
    assert_eq!(trail[..4], ["host.enrolled", "hold.raised", "hold.viewed", "hold.viewed"]);
    assert!(trail[4] == "hold.approved" || trail[4] == "hold.denied", "{trail:?}");
}

#[tokio::test]
async fn an_agent_of_nobody_needs_two_people_and_one_person_is_one() {
    let bed = Bed::new("").await;
    let host = bed.host("a").await;
    let mut raise = raised("h-1", MINUTE);
    raise.owners.clear();
    let id = waits(&bed, &host, raise).await;
    let (ann, bob) = (approver(&bed, "00u-ann"), approver(&bed, "00u-bob"));
    assert_eq!(answer(&bed, &ann, &id, yes()).await, Ok("waiting".into()));
    assert_eq!(answer(&bed, &ann, &id, yes()).await, Err("ALREADY_APPROVED".into()));
    assert!(orders_of(&bed, &host).await.is_empty());
    let hour = Choice { approve: true, for_seconds: Some(3600), reason: None };
    assert_eq!(answer(&bed, &bob, &id, hour).await, Ok("granted".into()));
    let all = orders_of(&bed, &host).await;
    let Command::Decide { by, scope, approve, .. } = &all[0].order else { panic!("{all:?}") };
    let subs: Vec<_> = by.iter().map(|b| b.sub.as_str()).collect();
    assert_eq!((subs, *approve), (vec!["00u-ann", "00u-bob"], true));
    assert_eq!(by[0].issuer, super::testing::OKTA);
    assert_eq!(*scope, Scope::Once, "the narrower of what both agreed to");
}

#[tokio::test]
async fn of_two_who_are_needed_one_is_enough_to_refuse() {
    let bed = Bed::new("[[approval]]\nservices = ['orders-*']\ncount = 2\n").await;
    let host = bed.host("a").await;
    let id = waits(&bed, &host, raised("h-1", MINUTE)).await;
    let (ann, bob) = (approver(&bed, "00u-ann"), approver(&bed, "00u-bob"));
    assert_eq!(answer(&bed, &ann, &id, yes()).await, Ok("waiting".into()));
    assert_eq!(answer(&bed, &bob, &id, no("not this table")).await, Ok("denied".into()));
    let all = orders_of(&bed, &host).await;
    let Command::Decide { by, approve, reason, .. } = &all[0].order else { panic!("{all:?}") };
    assert_eq!((by.len(), *approve, reason.as_deref()), (1, false, Some("not this table")));
    // Whoever approved may change their mind.
    let second = waits(&bed, &host, raised("h-2", MINUTE)).await;
    assert_eq!(answer(&bed, &ann, &second, yes()).await, Ok("waiting".into()));
    assert_eq!(answer(&bed, &ann, &second, no("")).await, Ok("denied".into()));
}

#[tokio::test]
async fn rules_name_the_groups_and_the_time() {
    let bed = Bed::new(
        "[[approval]]\nservices = ['orders-db']\ngroups = ['dba']\n\
         [[approval]]\nrules = ['hold-*']\nexpires = '1s'\n\
         [[approval]]\nservices = ['other']\ngroups = ['nobody']\n",
    )
    .await;
    let host = bed.host("a").await;
    let id = waits(&bed, &host, raised("h-1", MINUTE)).await;
    let (ann, dba) = (approver(&bed, "00u-ann"), person(&bed, "00u-d", &["approvers", "dba"]));
    assert_eq!(answer(&bed, &ann, &id, yes()).await, Err("WRONG_GROUP".into()));
    let seen = show(&bed.collector, &dba, &id).await.unwrap();
    assert_eq!(seen.groups, [vec!["dba".to_owned()]]);
    assert!(seen.row.summary.remaining_ms <= 1000);
    // Nobody decides: the collector ends it and tells the host.
    let mut changes = bed.collector.hub.listen();
    tokio::time::timeout(Duration::from_secs(20), async {
        while orders_of(&bed, &host).await.is_empty() {
            let _ = tokio::time::timeout(Duration::from_secs(1), changes.recv()).await;
        }
    })
    .await
    .unwrap();
    let all = orders_of(&bed, &host).await;
    assert_eq!(all[0].order, Command::Expire { hold: "h-1".into() });
    assert_eq!(answer(&bed, &dba, &id, yes()).await, Err("ENDED".into()));
    assert_eq!(answer(&bed, &dba, &id, no("late")).await, Err("ENDED".into()));
    assert_eq!(answer(&bed, &dba, "1:h-unknown", yes()).await, Err("NOT_FOUND".into()));
}

#[tokio::test]
async fn grants_are_listed_withdrawn_and_told_to_their_host() {
    let bed = Bed::new("").await;
    let host = bed.host("a").await;
    let id = waits(&bed, &host, raised("h-1", MINUTE)).await;
    let ann = approver(&bed, "00u-ann");
    let hour = Choice { approve: true, for_seconds: Some(3600), reason: None };
    assert_eq!(answer(&bed, &ann, &id, hour).await, Ok("granted".into()));
    let result = Done {
        result: "granted".into(),
        grant: Some("g-1".into()),
        grant_seconds: Some(3600),
        ..Done::default()
    };
    let (at, seq) = (host.id.clone(), orders_of(&bed, &host).await[0].seq);
    bed.collector.central.write(move |db| orders::done(db, &at, seq, &result)).await.unwrap();
    let standing = grants(&bed.collector).await.unwrap();
    assert_eq!((standing.len(), standing[0].grant.as_str()), (1, "g-1"));
    let stranger = person(&bed, "00u-x", &[]);
    let at = host.id.id;
    assert!(revoke(&bed.collector, &stranger, at, "g-1", None).await.is_err());
    assert!(revoke(&bed.collector, &ann, at, "g-2", None).await.is_err());
    revoke(&bed.collector, &ann, at, "g-1", Some("done".into())).await.unwrap();
    let all = orders_of(&bed, &host).await;
    assert!(matches!(&all[0].order, Command::RevokeGrant { grant, .. } if grant == "g-1"));
}

#[tokio::test]
async fn only_administrators_end_sessions_and_every_host_is_told() {
    let bed = Bed::new("").await;
    let (a, b) = (bed.host("a").await, bed.host("b").await);
    let target = || Target::Agent("billing-bot".into());
    let ann = approver(&bed, "00u-ann");
    let refused = kill(&bed.collector, &ann, target(), None, None).await.unwrap_err();
    assert_eq!(refused.code(), "NOT_AN_ADMIN");
    let admin = person(&bed, "00u-adm", &["admins"]);
    let told = kill(&bed.collector, &admin, target(), None, Some("runs wild".into())).await;
    let first = told.unwrap();
    assert_eq!(first.len(), 2);
    let told = kill(&bed.collector, &admin, target(), Some(b.id.id), None).await.unwrap();
    assert!(first.iter().all(|t| told[0].seq > t.seq));
    // A collector without memory of them goes on above them: hosts take nothing older.
    let forget = |db: &crate::collector::db::Connection| {
        db.execute("DELETE FROM orders", []).map_err(super::CollectorError::db("forget"))
    };
    let kept = orders_of(&bed, &b).await;
    bed.collector.central.write(forget).await.unwrap();
    let again = kill(&bed.collector, &admin, target(), Some(b.id.id), None).await.unwrap();
    assert!(again[0].seq > told[0].seq);
    assert_eq!(kept.len(), 2);
    assert_eq!((orders_of(&bed, &a).await.len(), orders_of(&bed, &b).await.len()), (0, 1));
    assert!(kill(&bed.collector, &admin, target(), Some(99), None).await.is_err());
}

#[tokio::test]
async fn requests_that_ended_long_ago_are_forgotten_and_waiting_ones_are_not() {
    let bed = Bed::new("").await;
    let host = bed.host("a").await;
    let (ended, waiting) = (
        waits(&bed, &host, raised("h-1", MINUTE)).await,
        waits(&bed, &host, raised("h-2", MINUTE)).await,
    );
    assert_eq!(answer(&bed, &approver(&bed, "00u-ann"), &ended, no("")).await, Ok("denied".into()));
    let sweep = |keep: Duration| {
        let central = &bed.collector.central;
        async move { central.write(move |db| super::holds::sweep(db, keep)).await.unwrap() }
    };
    assert_eq!(sweep(MINUTE).await, 0);
    assert_eq!(sweep(Duration::ZERO).await, 1);
    let count = bed.collector.central.read(|db| {
        db.query_row("SELECT count(*) FROM votes", [], |r| r.get::<_, i64>(0))
            .map_err(super::CollectorError::db("count"))
    });
    assert_eq!(count.await.unwrap(), 0);
    let left = list(&bed.collector).await.unwrap();
    assert_eq!(left.iter().map(|h| h.id.clone()).collect::<Vec<_>>(), [waiting]);
    assert!(trail(&bed).await.iter().any(|what| what.starts_with("hold.")));
}

#[tokio::test]
async fn a_request_with_more_around_it_than_a_person_reads_is_not_taken() {
    let bed = Bed::new("").await;
    let host = bed.host("a").await;
    let mut large = raised("h-1", MINUTE);
    large.claims = serde_json::json!({ "groups": vec!["g".repeat(100); 100_000] });
    let raised = super::holds::raise(&bed.collector, host.id.clone(), "boot", large).await;
    assert!(raised.is_err());
    assert!(list(&bed.collector).await.unwrap().is_empty());
}

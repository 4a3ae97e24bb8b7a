//! Holds and grants as operators and sessions see them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use ulid::Ulid;

use super::*;

const CONFIG: &str = r#"
    [[issuer]]
    name = "okta"
    url = "https://example.okta.com/oauth2/default"
    [[approver]]
    user = "alice"
    issuer = "okta"
    uid = "00u-alice"
    [[approver]]
    group = "dba"
    issuer = "okta"
    uids = { bob = "00u-bob", alice = "00u-alice-admin" }
    [[approver]]
    user = "root"
    issuer = "okta"
    uid = "00u-break-glass"
"#;

/// alice 1000, bob 1001 (dba), carol 1002 (dba, no user id), dave 1003.
struct Fake;

impl Accounts for Fake {
    fn user_name(&self, uid: u32) -> Option<String> {
        let name = match uid {
            0 => "root",
            1000 => "alice",
            1001 => "bob",
            1002 => "carol",
            1003 => "dave",
            _ => return None,
        };
        Some(name.into())
    }
    fn is_member(&self, user: &str, group: &str) -> bool {
        group == "dba" && matches!(user, "bob" | "carol")
    }
}

fn approvals() -> Arc<Approvals> {
    let config: Config = toml::from_str(CONFIG).unwrap();
    Approvals::with_accounts(&config, Box::new(Fake))
}

fn peer(uid: u32, login_uid: Option<u32>) -> Peer {
    // A pid that no test declares as a session's.
    Peer { pid: 1, uid, gid: uid, login_uid }
}

fn ask(wait: Duration) -> HoldAsk {
    let id = |x: &str| ("okta".to_owned(), x.to_owned());
    HoldAsk {
        session: Ulid::new(),
        service: "orders-db".into(),
        database: "shop".into(),
        role: "app".into(),
        agent: "billing-bot".into(),
        principal: "eve@example.com".into(),
        principal_ids: vec![id("00u-eve"), id("eve@example.com"), id("0oa-billing")],
        owners: vec![id("00u-owner")],
        peer_uid: None,
        claims: serde_json::Value::Null,
        statement: "UPDATE cards SET number = '4111111111111111'".into(),
        values: vec![Some("s3cret".into()), None],
        shape: "UPDATE cards SET number = $1".into(),
        rules: vec!["hold-writes".into()],
        message: None,
        deadline: Instant::now() + wait,
    }
}

fn key() -> GrantKey {
    GrantKey {
        shape: "UPDATE cards SET number = $1".into(),
        agent: "billing-bot".into(),
        service: "orders-db".into(),
        database: "shop".into(),
        role: "app".into(),
    }
}

fn approve(scope: Scope) -> Decision {
    Decision { approve: true, scope, reason: None }
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn deciders_are_recognised_or_refused() {
    let a = approvals();
    type Case = (&'static str, u32, Option<u32>, Result<&'static str, &'static str>);
    let cases: [Case; 11] = [
        ("a user by the process", 1000, None, Ok("alice")),
        ("a user by the login", 1000, Some(1000), Ok("alice")),
        ("a member of a group", 1001, None, Ok("bob")),
        ("a user through sudo", 0, Some(1000), Ok("alice")),
        ("root that logged in as root and is mapped", 0, Some(0), Ok("root")),
        ("root without a login", 0, None, Err("NO_LOGIN_USER")),
        ("a service that claims a login", 1003, Some(1000), Err("LOGIN_MISMATCH")),
        ("a user through sudo -u", 1001, Some(1000), Err("LOGIN_MISMATCH")),
        ("a member without a user id", 1002, None, Err("NOT_AN_APPROVER")),
        ("somebody else", 1003, None, Err("NOT_AN_APPROVER")),
        ("an unknown user through sudo", 0, Some(4711), Err("UNKNOWN_USER")),
    ];
    for (what, uid, login, want) in cases {
        let got = a.identify(&peer(uid, login));
        let got = got.as_ref().map(|d| d.user.as_str()).map_err(DecideError::code);
        assert_eq!(got, want, "{what}");
    }
    let alice = a.identify(&peer(1000, None)).unwrap();
    assert_eq!(alice.identities, [("okta".into(), "00u-alice".into())]);
    assert_eq!(alice.to_string(), "alice (okta/00u-alice)");
}

#[test]
fn all_identities_of_a_user_count() {
    struct AliceIsDba;
    impl Accounts for AliceIsDba {
        fn user_name(&self, _: u32) -> Option<String> {
            Some("alice".into())
        }
        fn is_member(&self, _: &str, _: &str) -> bool {
            true
        }
    }
    let config: Config = toml::from_str(CONFIG).unwrap();
    let a = Approvals::with_accounts(&config, Box::new(AliceIsDba));
    let alice = a.identify(&peer(1000, None)).unwrap();
    assert_eq!(alice.identities.len(), 2, "{alice}");
}

#[tokio::test]
async fn nobody_decides_what_concerns_them() {
    let a = approvals();
    let id = |i: &str, x: &str| vec![(i.to_owned(), x.to_owned())];
    type Change = Box<dyn Fn(&mut HoldAsk)>;
    let cases: [(&str, Change, Option<&str>); 7] = [
        ("a stranger", Box::new(|_| {}), None),
        (
            "the principal",
            Box::new(move |h| h.principal_ids = id("okta", "00u-alice")),
            Some("SELF_APPROVAL"),
        ),
        (
            "an actor",
            Box::new(move |h| h.principal_ids.extend(id("okta", "00u-alice"))),
            Some("SELF_APPROVAL"),
        ),
        (
            "an owner of the agent",
            Box::new(move |h| h.owners = id("okta", "00u-alice")),
            Some("SELF_APPROVAL"),
        ),
        ("the agent's own OS user", Box::new(|h| h.peer_uid = Some(1000)), Some("SELF_APPROVAL")),
        ("another OS user's agent", Box::new(|h| h.peer_uid = Some(1003)), None),
        (
            "the same id of another issuer",
            Box::new(move |h| h.owners = id("other", "00u-alice")),
            None,
        ),
    ];
    for (what, change, want) in cases {
        for peer in [peer(1000, None), peer(0, Some(1000))] {
            let alice = a.identify(&peer).unwrap();
            let mut request = ask(MINUTE);
            change(&mut request);
            let mut hold = a.hold(request).unwrap();
            let detail = a.show(hold.id(), &alice).unwrap();
            let got = a.decide(hold.id(), &alice, approve(Scope::Once));
            assert_eq!(got.as_ref().err().map(DecideError::code), want, "{what}");
            assert_eq!(detail.statement.is_none(), want.is_some(), "{what}: exact text");
            assert_eq!(detail.values.is_none(), want.is_some(), "{what}: exact values");
            if want.is_none() {
                assert_eq!(hold.decided().await.as_str(), "granted");
            } else {
                assert_eq!(a.list().len(), 1, "{what}: it still waits");
            }
        }
    }
    assert!(a.list().is_empty(), "dropped holds are withdrawn");
}

#[test]
fn a_process_below_a_session_cannot_decide() {
    let a = approvals();
    let me = std::process::id();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let inside = Peer { pid: child.id(), uid: 1000, gid: 1000, login_uid: None };
    assert!(a.identify(&inside).is_ok());
    let guard = a.session_process(me);
    assert_eq!(a.identify(&inside), Err(DecideError::InsideSession));
    drop(guard);
    assert!(a.identify(&inside).is_ok());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_deciders_exactly_one_wins() {
    let a = approvals();
    for _ in 0..50 {
        let mut hold = a.hold(ask(MINUTE)).unwrap();
        let id = hold.id().to_owned();
        let tasks: Vec<_> = (0..8)
            .map(|n| {
                let (a, id) = (a.clone(), id.clone());
                tokio::spawn(async move {
                    let who = a.identify(&peer(1000 + n % 2, None)).unwrap();
                    let decision =
                        Decision { approve: n % 2 == 0, scope: Scope::Once, reason: None };
                    a.decide(&id, &who, decision).map(|o| o.as_str())
                })
            })
            .collect();
        let seen = hold.decided().await.as_str();
        let mut won = Vec::new();
        for t in tasks {
            match t.await.unwrap() {
                Ok(outcome) => won.push(outcome),
                Err(DecideError::NotFound { was: Some(was), .. }) => {
                    assert!(was.contains(seen), "{was}, not {seen}");
                }
                Err(e) => panic!("{e}"),
            }
        }
        assert_eq!(won, [seen]);
    }
}

#[tokio::test]
async fn a_hold_expires_and_nobody_can_decide_it_afterwards() {
    let a = approvals();
    let alice = a.identify(&peer(1000, None)).unwrap();
    let wait = Duration::from_millis(80);
    let mut hold = a.hold(ask(wait)).unwrap();
    assert!((1..=80).contains(&a.list()[0].remaining_ms));
    let begun = Instant::now();
    assert_eq!(hold.decided().await.as_str(), "expired");
    assert!(begun.elapsed() >= wait - Duration::from_millis(5), "{:?}", begun.elapsed());
    assert_eq!(hold.decided().await.as_str(), "expired");
    let late = a.decide(hold.id(), &alice, approve(Scope::Once)).unwrap_err();
    assert!(late.to_string().contains("expired"), "{late}");

    // The deadline counts even while nobody looks.
    let hold = a.hold(ask(Duration::from_millis(20))).unwrap();
    tokio::time::sleep(Duration::from_millis(40)).await;
    let late = a.decide(hold.id(), &alice, approve(Scope::Once)).unwrap_err();
    assert!(late.to_string().contains("expired"), "{late}");
}

#[tokio::test]
async fn dropping_a_hold_withdraws_it() {
    let a = approvals();
    let alice = a.identify(&peer(1000, None)).unwrap();
    let hold = a.hold(ask(MINUTE)).unwrap();
    let id = hold.id().to_owned();
    drop(hold);
    let e = a.decide(&id, &alice, approve(Scope::Once)).unwrap_err();
    assert!(e.to_string().contains("withdrawn"), "{e}");
    assert_eq!(a.state().bytes, 0);
}

#[tokio::test]
async fn waiting_can_be_interrupted_and_taken_up_again() {
    let a = approvals();
    let alice = a.identify(&peer(1000, None)).unwrap();
    let mut hold = a.hold(ask(MINUTE)).unwrap();
    let short = Duration::from_millis(5);
    assert!(tokio::time::timeout(short, hold.decided()).await.is_err());
    let reason = Some("wrong table".to_owned());
    let deny = Decision { approve: false, scope: Scope::Once, reason: reason.clone() };
    a.decide(hold.id(), &alice, deny).unwrap();
    match hold.decided().await {
        Outcome::Denied { by, reason: said } => {
            assert_eq!((by.user.as_str(), said), ("alice", reason))
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn holds_are_bounded() {
    let a = approvals();
    let session = Ulid::new();
    let mine = || HoldAsk { session, ..ask(MINUTE) };
    let kept: Vec<_> = (0..MAX_HOLDS_PER_SESSION).map(|_| a.hold(mine()).unwrap()).collect();
    assert!(matches!(a.hold(mine()), Err(HoldError::SessionFull(_))));
    let many: Vec<_> = (kept.len()..MAX_HOLDS).map(|_| a.hold(ask(MINUTE)).unwrap()).collect();
    assert!(matches!(a.hold(ask(MINUTE)), Err(HoldError::HostFull(_))));
    drop((kept, many));
    let huge = HoldAsk { statement: "x".repeat(MAX_HELD_BYTES + 1).into(), ..ask(MINUTE) };
    assert!(matches!(a.hold(huge), Err(HoldError::TooLarge(_))));
    let large = || HoldAsk { statement: "x".repeat(MAX_HELD_BYTES - 100).into(), ..ask(MINUTE) };
    let full: Vec<_> = std::iter::from_fn(|| a.hold(large()).ok()).take(100).collect();
    assert_eq!(full.len(), MAX_HELD_BYTES_TOTAL / MAX_HELD_BYTES);
    drop(full);
    assert_eq!((a.held(), a.state().bytes), (0, 0));
}

#[tokio::test]
async fn exact_text_stays_out_of_lists_and_debug() {
    let a = approvals();
    let alice = a.identify(&peer(1000, None)).unwrap();
    let request = ask(MINUTE);
    let debug = format!("{request:?}");
    let hold = a.hold(request).unwrap();
    let detail = a.show(hold.id(), &alice).unwrap();
    let listed = serde_json::to_string(&a.list()).unwrap();
    for text in [debug, format!("{hold:?}"), format!("{detail:?}"), listed] {
        assert!(!text.contains("4111") && !text.contains("s3cret"), "{text}");
    }
    assert!(detail.statement.unwrap().contains("4111"));
    assert_eq!(detail.values.unwrap(), [Some("s3cret".into()), None]);
}

#[tokio::test]
async fn a_grant_of_a_shape_serves_the_same_again_until_its_time_ends() {
    let a = approvals();
    let alice = a.identify(&peer(1000, None)).unwrap();
    let hold = a.hold(ask(MINUTE)).unwrap();
    assert!(a.standing_grant(&key(), &[], &[]).is_none());
    let outcome = a.decide(hold.id(), &alice, approve(Scope::ShapeFor(10 * MINUTE))).unwrap();
    let Outcome::Granted { grant: Some(grant), .. } = outcome else { panic!("{outcome:?}") };
    assert!(grant.stands());

    type Change = fn(&mut GrantKey);
    let others: [Change; 5] = [
        |k| k.shape.push('x'),
        |k| k.agent.push('x'),
        |k| k.service.push('x'),
        |k| k.database.push('x'),
        |k| k.role.push('x'),
    ];
    for change in others {
        let mut other = key();
        change(&mut other);
        assert!(a.standing_grant(&other, &[], &[]).is_none(), "{other:?}");
    }
    let alice_herself = [("okta".to_owned(), "00u-alice".to_owned())];
    assert!(a.standing_grant(&key(), &alice_herself, &[]).is_none(), "for the one who gave it");
    assert!(a.standing_grant(&key(), &[], &alice_herself).is_none(), "for the giver's agent");
    assert_eq!(a.standing_grant(&key(), &[], &[]).unwrap().id(), grant.id());
    assert_eq!(a.grants()[0].used, 1);

    a.revoke(grant.id(), "alice").unwrap();
    let hold = a.hold(ask(MINUTE)).unwrap();
    let short = Scope::ShapeFor(Duration::from_millis(40));
    a.decide(hold.id(), &alice, approve(short)).unwrap();
    let grant = a.standing_grant(&key(), &[], &[]).unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(a.standing_grant(&key(), &[], &[]).is_none() && a.grants().is_empty());
    assert!(!grant.stands());
}

#[tokio::test]
async fn withdrawing_a_grant_tells_those_who_run_under_it() {
    let a = approvals();
    let alice = a.identify(&peer(1000, None)).unwrap();
    let hold = a.hold(ask(MINUTE)).unwrap();
    a.decide(hold.id(), &alice, approve(Scope::ShapeFor(MINUTE))).unwrap();
    let mut running = a.standing_grant(&key(), &[], &[]).unwrap();
    let id = running.id().to_owned();
    let told = tokio::spawn(async move {
        running.withdrawn().await;
        running.stands()
    });
    a.revoke(&id, "alice").unwrap();
    assert!(!told.await.unwrap());
    assert!(a.standing_grant(&key(), &[], &[]).is_none());
    assert!(matches!(a.revoke(&id, "alice"), Err(DecideError::NoGrant(_))));
}

#[tokio::test]
async fn impossible_decisions_leave_the_request_waiting() {
    let a = approvals();
    let alice = a.identify(&peer(1000, None)).unwrap();
    let hold = a.hold(ask(MINUTE)).unwrap();
    for decision in [
        approve(Scope::ShapeFor(Duration::ZERO)),
        approve(Scope::ShapeFor(MAX_GRANT + Duration::from_secs(1))),
        Decision { reason: Some("x".repeat(MAX_REASON + 1)), ..approve(Scope::Once) },
    ] {
        assert_eq!(a.decide(hold.id(), &alice, decision).unwrap_err().code(), "INVALID");
    }
    assert_eq!((a.list().len(), a.grants().len()), (1, 0));
    assert!(a.decide("h-nothere", &alice, approve(Scope::Once)).is_err());
}

#[test]
fn this_hosts_accounts_are_read() {
    assert_eq!(SystemAccounts.user_name(0).as_deref(), Some("root"));
    assert!(SystemAccounts.is_member("root", "root"));
    assert!(!SystemAccounts.is_member("root", "no-such-group"));
    assert!(!SystemAccounts.is_member("no-such-user", "root"));
}

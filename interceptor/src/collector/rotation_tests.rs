//! Changing the signing key under hosts, policies, proofs, and other collectors.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::audit::{self, Who};
use super::decisions::{Choice, decide};
use super::link_tests::arrives;
use super::log::note::NoteError;
use super::log::{Checkpoint, SessionProof, VerifierKey};
use super::policy_tests::{OPEN, OWN, published, until};
use super::rotation::{self, How, Listed, RotateError, Rotated, end_along, restore, rotate};
use super::ship_tests::{client, enrol, key_of, open_host, post, run, session, whole};
use super::testing::{Bed, approver, ask};
use super::{Collector, CollectorError, Config, Keys, Replica, log_key, prove};
use crate::approval::Outcome;
use crate::record::Reader;
use crate::ship::kept::Kept;
use crate::ship::succession::{SuccessionError, follow};

const MONTH: Duration = Duration::from_secs(30 * 86_400);
const SOON: Duration = Duration::from_secs(20);

fn how(overlap: Duration) -> How {
    let overlap_us = i64::try_from(overlap.as_micros()).unwrap();
    How { who: Who::Operator { user: "ann".into() }, overlap_us, to: None }
}

async fn rotated(collector: &Arc<Collector>, overlap: Duration) -> Result<Rotated, RotateError> {
    let rotated = rotated_in_database(collector, overlap).await;
    let this = Arc::clone(collector);
    collector.central.read(move |db| this.keys.remember(db)).await.unwrap();
    rotated
}

async fn rotated_in_database(
    collector: &Arc<Collector>,
    overlap: Duration,
) -> Result<Rotated, RotateError> {
    let this = Arc::clone(collector);
    let write = move |db: &crate::collector::db::Connection| rotate(db, &this.keys, &how(overlap));
    collector.central.write(write).await
}

/// A new key, and it is in force.
async fn turn(collector: &Arc<Collector>, overlap: Duration) -> Rotated {
    collector.keys.make_signing().unwrap();
    rotated(collector, overlap).await.unwrap()
}

async fn listed(collector: &Arc<Collector>) -> Vec<Listed> {
    let this = Arc::clone(collector);
    collector.central.read(move |db| rotation::list(db, &this.keys)).await.unwrap()
}

async fn execute(collector: &Arc<Collector>, sql: &'static str) -> Result<(), CollectorError> {
    let run = move |db: &crate::collector::db::Connection| {
        db.execute_batch(sql).map_err(CollectorError::db("alter"))
    };
    collector.central.write(run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_are_here_follow_at_once_and_those_that_come_back_follow_all() {
    let bed = Bed::new("").await;
    let mut host = bed.host("a").await;
    let first = bed.collector.keys.public();
    assert_eq!(host.trusted.current(), first);
    for _ in 0..3 {
        let remote = host.connect(&bed, false).await;
        let mut hold = remote.approvals.hold(ask(SOON * 3)).unwrap();
        let id = arrives(&bed).await;
        turn(&bed.collector, MONTH).await;
        let yes = Choice { approve: true, ..Choice::default() };
        decide(&bed.collector, &approver(&bed, "00u-ann"), &id, yes).await.unwrap();
        let Outcome::Granted { .. } = hold.decided().await else { panic!("not granted") };
        assert_eq!(host.trusted.current(), bed.collector.keys.public());
        host.stop();
        // While it is away another key comes, and goes.
        turn(&bed.collector, Duration::ZERO).await;
        assert_ne!(host.trusted.current(), bed.collector.keys.public());
    }
    let _remote = host.connect(&bed, false).await;
    let current = bed.collector.keys.public();
    let wait = async {
        while listed(&bed.collector).await.last().is_none_or(|k| k.hosts != 1) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.expect("the host says which key it follows");
    assert_eq!(host.trusted.current(), current);
    assert_eq!(host.trusted.all().len(), 7);
    assert_eq!(*host.trusted.all().last().unwrap(), first);
    let trail = bed.collector.central.read(audit::verify).await.unwrap();
    assert_eq!(trail, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_fingerprint_is_not_noted_as_a_key_that_a_host_follows() {
    let bed = Bed::new("").await;
    let host = bed.host("a").await;
    let id = host.id.id;
    let says = async |key: &str| {
        let path = format!("https://{}/host/v1/orders?instance=x&key={key}", bed.address);
        let answer = host.client(&bed).get(path).send().await.unwrap();
        assert!(answer.status().is_success());
        bed.collector.central.read(move |db| rotation::follows(db, id)).await.unwrap()
    };
    for key in ["", "x", &"x".repeat(64), &"ab".repeat(4_000), "%C3%A9"] {
        assert_eq!(says(key).await, None, "{key}");
    }
    // One that is not ours is told apart from silence.
    let strange = "ab".repeat(32);
    assert_eq!(says(&strange).await, Some(strange));
    let own = bed.collector.keys.public().fingerprint_hex();
    assert_eq!(says(&own).await, Some(own));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_from_before_is_still_done_and_what_the_old_key_signs_after_is_not() {
    let bed = Bed::new("").await;
    let mut host = bed.host("a").await;
    let remote = host.connect(&bed, false).await;
    let mut hold = remote.approvals.hold(ask(SOON * 3)).unwrap();
    let id = arrives(&bed).await;
    // The decision and the change are one moment for the host, which waits for its poll.
    let yes = Choice { approve: true, ..Choice::default() };
    let before = bed.collector.keys.public();
    let ann = approver(&bed, "00u-ann");
    let decided = decide(&bed.collector, &ann, &id, yes);
    bed.collector.keys.make_signing().unwrap();
    let (decided, turned) = tokio::join!(decided, rotated(&bed.collector, Duration::ZERO));
    decided.unwrap();
    turned.unwrap();
    let Outcome::Granted { .. } = hold.decided().await else { panic!("not granted") };
    host.stop();
    // An order that nobody fetches before the key changes is signed anew with it.
    let target = crate::session::live::Target::Agent("etl".into());
    let by = crate::ship::wire::By {
        issuer: super::testing::OKTA.into(),
        sub: "00u-ann".into(),
        name: "Ann".into(),
    };
    let command = crate::ship::wire::Command::Kill { target, by, reason: None };
    let (this, at) = (Arc::clone(&bed.collector), host.id.clone());
    let issue = move |db: &crate::collector::db::Connection| this.order(db, &at, command);
    bed.collector.central.write(issue).await.unwrap();
    let turned = turn(&bed.collector, Duration::ZERO).await;
    assert!(
        turned.again.orders >= 1,
        "that one, and the decision if nobody said yet that it is done"
    );
    let id = host.id.id;
    let signed =
        bed.collector.central.read(move |db| super::orders::after(db, id, 0)).await.unwrap();
    let (last, now) = (signed.last().unwrap(), bed.collector.keys.public());
    use base64::Engine;
    let signature = base64::engine::general_purpose::STANDARD.decode(&last.signature).unwrap();
    let message = crate::ship::wire::order_message(&last.body);
    assert!(now.verify(&message, &signature) && !before.verify(&message, &signature));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_signed_anew_that_was_not_ours() {
    let bed = Bed::new("").await;
    let host = bed.host("a").await;
    let command = crate::ship::wire::Command::Expire { hold: "h1".into() };
    let (this, at) = (Arc::clone(&bed.collector), host.id.clone());
    let issue = move |db: &crate::collector::db::Connection| this.order(db, &at, command);
    bed.collector.central.write(issue).await.unwrap();
    execute(&bed.collector, "UPDATE orders SET body = replace(body, 'h1', 'h2')").await.unwrap();
    let turned = turn(&bed.collector, MONTH).await;
    assert_eq!((turned.again.orders, turned.again.altered.len()), (0, 1), "{turned:?}");
    let id = host.id.id;
    let open = bed.collector.central.read(move |db| super::orders::after(db, id, 0)).await.unwrap();
    assert_eq!(open.len(), 0, "an altered order is over");
    for sql in [
        "DELETE FROM successions",
        "UPDATE successions SET body = ''",
        "UPDATE successions SET by_old = by_new",
    ] {
        execute(&bed.collector, sql).await.unwrap_err();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_only_the_database_names_counts_for_nothing() {
    let bed = Bed::new("").await;
    turn(&bed.collector, MONTH).await;
    let forged = "INSERT INTO successions (number, body, by_old, by_new, along_until_us) \
                  SELECT 2, replace(body, '\"number\":1', '\"number\":2'), by_old, by_new, 0 \
                  FROM successions";
    execute(&bed.collector, forged).await.unwrap();
    let this = Arc::clone(&bed.collector);
    let refused = bed.collector.central.read(move |db| this.keys.in_force(db).map(drop)).await;
    assert!(refused.unwrap_err().to_string().contains("were altered"));
    let again = Collector::open(bed.collector.config.clone()).map(drop);
    assert!(again.unwrap_err().to_string().contains("were altered"));
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_go_on_over_a_change_of_the_key() {
    let bed = Bed::new("").await;
    let mut here = bed.host("a").await;
    here.takes(OWN);
    let mut late = bed.host("b").await;
    late.takes(OWN);
    let _here = here.connect(&bed, true).await;
    published(&bed, &[("open.toml", OPEN)]).await;
    until(&bed, &here, "version 1", |p| p.status.version == 1).await;
    turn(&bed.collector, Duration::ZERO).await;
    turn(&bed.collector, Duration::ZERO).await;
    // One that never had it believes the first key alone, and the signature is of the last.
    let _late = late.connect(&bed, true).await;
    let shown = until(&bed, &late, "version 1", |p| p.status.version == 1).await;
    assert_eq!(shown.status.error, None);
    // What was taken under an old key is in force after a restart.
    here.stop();
    let (kept, in_force) = Kept::open(here.dir(), Arc::clone(&here.trusted)).unwrap();
    assert_eq!((kept.taken(), in_force.unwrap().bundle.version), (1, 1));
    let _here = here.connect(&bed, true).await;
    published(&bed, &[("open.toml", &format!("{OPEN}# more\n"))]).await;
    for host in [&here, &late] {
        let shown = until(&bed, host, "version 2", |p| p.status.version == 2).await;
        assert_eq!(shown.status.error, None);
    }
    here.stop();
    let (kept, _) = Kept::open(here.dir(), Arc::clone(&here.trusted)).unwrap();
    assert_eq!(kept.taken(), 2);
}

async fn proof(collector: &Arc<Collector>, state: &Path, host: &Path, n: &str) -> SessionProof {
    let dir = Replica::directory(state, &key_of(host).fingerprint_hex());
    let (id, state) = (Reader::of_replica(&dir).unwrap().find(n).unwrap().id, state.to_owned());
    let this = Arc::clone(collector);
    let prove = move |db: &_| prove::session(db, &state, this.feed.as_ref(), &id);
    collector.central.read(prove).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_somebody_kept_checks_proofs_for_ever() {
    let host = tempfile::tempdir().unwrap();
    let recorder = open_host(host.path());
    session(&recorder, 3);
    recorder.flush().unwrap();
    let running = run().await;
    let (collector, state) = (&running.collector, running.state.path());
    let code = running.code("db1").await;
    enrol(&running, host.path(), &code).await.unwrap();
    let http = client(host.path());
    assert_eq!(post(&running, &http, whole(host.path())).await.0, 200);
    let first = log_key(collector);
    let early = proof(collector, state, host.path(), "1").await;

    turn(collector, MONTH).await;
    let second = log_key(collector);
    assert_ne!(first, second);
    // During the overlap both sign, also what was signed before and what comes now.
    session(&recorder, 3);
    recorder.flush().unwrap();
    for n in ["1", "2"] {
        assert_eq!(post(&running, &http, whole(host.path())).await.0, 200);
        let proof = proof(collector, state, host.path(), n).await;
        for key in [&first, &second] {
            Checkpoint::verify(&proof.checkpoint, key).unwrap();
            proof.verify(key).unwrap();
        }
    }
    early.verify(&first).unwrap();

    let third = {
        turn(collector, Duration::ZERO).await;
        log_key(collector)
    };
    session(&recorder, 3);
    recorder.flush().unwrap();
    assert_eq!(post(&running, &http, whole(host.path())).await.0, 200);
    let late = proof(collector, state, host.path(), "3").await;
    // The first still signs along; the second was ended, and leads to the third by the proof.
    Checkpoint::verify(&late.checkpoint, &first).unwrap();
    assert_eq!(Checkpoint::verify(&late.checkpoint, &second), Err(NoteError::Signature));
    for key in [&first, &second, &third] {
        late.verify(key).unwrap();
    }
    early.verify(&first).unwrap();
    early.verify(&second).unwrap_err();
    // Without its successions, or with those of others, a proof leads nowhere.
    let bare = SessionProof { keys: Vec::new(), ..late.clone() };
    bare.verify(&second).unwrap_err();
    let mut forged = late.clone();
    forged.keys[1].by_old = forged.keys[0].by_old.clone();
    let wrong = forged.verify(&second).unwrap_err().to_string();
    assert_eq!(wrong, SuccessionError::Signature.to_string());
    let stranger = Bed::new("").await;
    let other = VerifierKey { key: stranger.collector.keys.public(), ..first.clone() };
    late.verify(&other).unwrap_err();

    // The host proves with the key of its enrolment.
    let (config, ship) = super::ship_tests::host_config(host.path(), &running.url);
    let reader = Reader::open(&config.paths.state, &|| Ok(())).unwrap();
    let proved = crate::ship::prove(&config, &ship, &reader).await.unwrap();
    assert_eq!((proved.sessions, proved.findings.len()), (3, 0), "{proved:?}");
    // Enrolled again, what it keeps of the first key's time is still this collector's.
    let code = running.code("db1").await;
    enrol(&running, host.path(), &code).await.unwrap();
    let identity = crate::ship::Identity::load(&host.path().join("ship")).unwrap().unwrap();
    assert_eq!(identity.collector_key().unwrap(), third.key);
    assert_eq!(identity.known.past_keys, [first.key.to_base64()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_keys_are_deleted_only_when_nothing_needs_them() {
    let bed = Bed::new("").await;
    let keys = bed.dir.path().join("collector/keys");
    turn(&bed.collector, MONTH).await;
    let end = |now| {
        let this = Arc::clone(&bed.collector);
        let who = Who::Operator { user: "ann".into() };
        let write =
            move |db: &crate::collector::db::Connection| end_along(db, &this.keys, &who, now);
        bed.collector.central.write(write)
    };
    assert!(matches!(end(false).await, Err(RotateError::Along)));
    assert_eq!(listed(&bed.collector).await[0].state, "signs the log along");
    end(true).await.unwrap();
    let this = Arc::clone(&bed.collector);
    let delete = move |db: &_| this.keys.delete_past(&*this.keys.in_force(db)?);
    let deleted = bed.collector.central.read(delete).await.unwrap();
    assert_eq!(deleted.len(), 1);
    assert!(!keys.join("host.key").exists() && keys.join("host.pub").exists());
    let again = Collector::open(bed.collector.config.clone()).unwrap();
    let all = listed(&again).await;
    let states: Vec<_> = all.iter().map(|k| (k.state, k.here)).collect();
    assert_eq!(states, [("old", false), ("in force", true)]);
    assert_eq!(again.keys.public(), bed.collector.keys.public());
    turn(&again, MONTH).await;
    // Neither key at all: nothing is made in its place.
    std::fs::remove_file(keys.join("host.pub")).unwrap();
    let lost = Keys::open(&bed.collector.config.state).map(drop).unwrap_err().to_string();
    assert!(lost.contains("put it back from the backup"), "{lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_put_back_is_led_to_the_same_key_again() {
    let bed = Bed::new("").await;
    let mut host = bed.host("a").await;
    turn(&bed.collector, MONTH).await;
    let remote = host.connect(&bed, false).await;
    drop(remote.approvals.hold(ask(SOON)).unwrap());
    let newest = bed.collector.keys.public();
    let wait = async {
        while host.trusted.current() != newest {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.unwrap();
    host.stop();
    // As it was before the change, and the old key is no more.
    std::fs::remove_file(bed.dir.path().join("collector/keys/host.key")).unwrap();
    let put_back = "DROP TRIGGER successions_keep; DELETE FROM successions;";
    let on_server = "DROP TRIGGER successions_keep ON successions; DELETE FROM successions;";
    let sql = if bed.collector.feed.is_some() { on_server } else { put_back };
    execute(&bed.collector, sql).await.unwrap();
    let again = bed.restarted("").await;
    let refused = rotated(&again.collector, MONTH).await.unwrap_err().to_string();
    assert!(refused.contains("keys restore"), "{refused}");
    let command = crate::ship::wire::Command::Expire { hold: "h1".into() };
    let (this, at) = (Arc::clone(&again.collector), host.id.clone());
    let issue = move |db: &crate::collector::db::Connection| this.order(db, &at, command);
    assert!(again.collector.central.write(issue).await.is_err(), "nothing is signed");
    let this = Arc::clone(&again.collector);
    let who = Who::Operator { user: "ann".into() };
    let write = move |db: &crate::collector::db::Connection| restore(db, &this.keys, &who);
    again.collector.central.write(write).await.unwrap();
    assert_eq!(again.collector.keys.public(), newest);
    let remote = host.connect(&again, false).await;
    let mut hold = remote.approvals.hold(ask(SOON * 3)).unwrap();
    let id = arrives(&again).await;
    let yes = Choice { approve: true, ..Choice::default() };
    decide(&again.collector, &approver(&again, "00u-ann"), &id, yes).await.unwrap();
    let Outcome::Granted { .. } = hold.decided().await else { panic!("not granted") };
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_keep_the_new_key_loses_no_decision() {
    let bed = Bed::new("").await;
    let mut host = bed.host("a").await;
    // Its directory takes nothing for now.
    let known = host.keeps_keys();
    let aside = known.with_extension("aside");
    std::fs::rename(&known, &aside).unwrap();
    let remote = host.connect(&bed, false).await;
    let mut hold = remote.approvals.hold(ask(SOON * 3)).unwrap();
    let id = arrives(&bed).await;
    turn(&bed.collector, Duration::ZERO).await;
    let yes = Choice { approve: true, ..Choice::default() };
    decide(&bed.collector, &approver(&bed, "00u-ann"), &id, yes).await.unwrap();
    let early = tokio::time::timeout(Duration::from_secs(1), hold.decided()).await;
    assert!(early.is_err(), "it must not be decided by a key that is not believed");
    std::fs::rename(&aside, &known).unwrap();
    let decided = tokio::time::timeout(SOON, hold.decided()).await;
    let Ok(Outcome::Granted { .. }) = decided else { panic!("not granted") };
}

/// Runs where `INTERCEPTOR_TEST_STORE` names a server.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_without_the_new_key_signs_nothing_until_it_has_it() {
    if std::env::var_os("INTERCEPTOR_TEST_STORE").is_none() {
        eprintln!("skipped: INTERCEPTOR_TEST_STORE names no PostgreSQL");
        return;
    }
    let bed = Bed::new("").await;
    let from = bed.dir.path().join("collector/keys");
    let state = bed.dir.path().join("second");
    std::fs::create_dir_all(&state).unwrap();
    let copy = || {
        let copied = std::process::Command::new("cp").arg("-a").args([&from, &state]).status();
        assert!(copied.unwrap().success());
    };
    copy();
    let config = Config { state: state.clone(), ..bed.collector.config.clone() };
    let second = Collector::open(config.clone()).unwrap();
    let sealed = second.keys.seal(b"hold", b"exact").unwrap();
    turn(&bed.collector, MONTH).await;
    let order = || {
        let (this, host) = (
            Arc::clone(&second),
            super::orders::HostId { id: 1, fingerprint: "00".into(), name: "a".into() },
        );
        let command = crate::ship::wire::Command::Expire { hold: "h".into() };
        second.central.write(move |db| this.order(db, &host, command))
    };
    let refused = order().await.unwrap_err().to_string();
    let current = bed.collector.keys.public().fingerprint_hex();
    assert!(refused.contains(&current) && refused.contains("copy keys/signing/"), "{refused}");
    assert_eq!(Collector::open(config.clone()).unwrap().keys.public(), bed.collector.keys.public());
    copy();
    order().await.unwrap();
    assert_eq!(second.keys.public(), bed.collector.keys.public());
    let opened = bed.collector.keys.open_sealed(b"hold", &sealed).unwrap();
    assert_eq!(&opened[..], b"exact", "what a collector sealed that did not know yet");
    // One that others may read is said to be so, and is no reason to do nothing.
    use std::os::unix::fs::PermissionsExt;
    let private = state.join("keys/signing").join(&current).join("host.key");
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o644)).unwrap();
    let third = Collector::open(config.clone()).unwrap();
    let host = super::orders::HostId { id: 1, fingerprint: "00".into(), name: "a".into() };
    let (this, command) =
        (Arc::clone(&third), crate::ship::wire::Command::Expire { hold: "h".into() });
    let refused = third.central.write(move |db| this.order(db, &host, command)).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("chmod 0600"), "{refused}");
    let chain = second.central.read(super::rotation::chain).await.unwrap();
    assert_eq!(follow(second.keys.root(), &chain).unwrap(), [second.keys.public()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_trail_that_was_cut_is_found_and_signed_no_more() {
    let bed = Bed::new("").await;
    let _host = bed.host("a").await;
    let sign = || {
        let this = Arc::clone(&bed.collector);
        bed.collector
            .central
            .write(move |db| super::log::store::checkpoint(db, &this.keys, &this.config.origin))
    };
    let check = || {
        let this = Arc::clone(&bed.collector);
        bed.collector.central.read(move |db| {
            let heads = super::log::store::audit_heads(db, &*this.keys.in_force(db)?)?.unwrap();
            audit::verify_against(db, &heads)
        })
    };
    let signed = Checkpoint::verify(&sign().await.unwrap(), &log_key(&bed.collector)).unwrap();
    let head = signed.audit.unwrap();
    assert!(head.id >= 1);
    assert_eq!(check().await.unwrap(), None);
    let server = bed.collector.feed.is_some();
    let on = if server { " ON audit" } else { "" };
    let drop_both = if server {
        "DROP TRIGGER audit_stays ON audit;".to_owned()
    } else {
        format!("DROP TRIGGER audit_stays{on}; DROP TRIGGER audit_keeps{on};")
    };
    // All hashes made anew, as whoever has the database can.
    let other = chain_of(&bed, "UPDATE audit SET detail = '{}'", drop_both).await;
    assert_ne!(other, head.hash);
    let plain = bed.collector.central.read(audit::verify).await.unwrap();
    assert_eq!(plain, None, "the chain by itself shows nothing");
    assert!(check().await.unwrap().is_some());
    let refused = sign().await.unwrap_err().to_string();
    assert!(refused.contains("audit trail") && refused.contains("cut or altered"), "{refused}");
    execute(&bed.collector, "DELETE FROM audit").await.unwrap();
    assert_eq!(check().await.unwrap(), Some(1));
    assert!(sign().await.is_err());
}

/// Alters the trail and makes its chain anew; the hash of its last step.
async fn chain_of(bed: &Bed, alter: &'static str, free: String) -> [u8; 32] {
    let write = move |db: &crate::collector::db::Connection| {
        let fail = CollectorError::db;
        db.execute_batch(&free).map_err(fail("free"))?;
        db.execute_batch(alter).map_err(fail("alter"))?;
        audit::chain_anew(db)
    };
    bed.collector.central.write(write).await.unwrap()
}

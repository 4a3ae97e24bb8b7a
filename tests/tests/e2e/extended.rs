//! The extended protocol by hand: order of answers, state after refusals, pipelines.

use anyhow::Result;
use interceptor_tests::bed::Bed;
use interceptor_tests::wire::{Raw, SYNC, encoded, extended, tags};

/// What is sent between two Syncs, and the types of what must come back.
fn cases() -> Result<Vec<(&'static str, Vec<u8>, &'static str)>> {
    let good = extended("SELECT 1")?;
    let denied = extended("DROP TABLE orders")?;
    let broken = extended("SELEC 1")?;
    Ok(vec![
        ("three good ones", [good.clone(), good.clone(), good.clone()].concat(), "12DC12DC12DCZ"),
        ("denied in the middle", [good.clone(), denied.clone(), good.clone()].concat(), "12DCEZ"),
        ("denied first", [denied.clone(), good.clone()].concat(), "EZ"),
        ("does not parse", [good.clone(), broken, good.clone()].concat(), "12DCEZ"),
        ("empty statement", extended("")?, "12IZ"),
        ("nothing but a Sync", Vec::new(), "Z"),
        ("runtime error", [extended("SELECT 1/(random()*0)::int")?, good].concat(), "12EZ"),
    ])
}

#[test]
fn answers_come_in_order_and_refusals_skip_to_sync() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let mut raw = Raw::ready(bed.net(), &bed.login("app_ro")?)?;
    for (what, bytes, expected) in cases()? {
        raw.raw(&[bytes, SYNC.to_vec()].concat())?;
        let answer = raw.until_ready()?;
        assert_eq!(tags(&answer), expected, "{what}");
        assert_eq!(answer.last().map(|m| m.body.clone()), Some(b"I".to_vec()), "{what}");
        assert_eq!(tags(&raw.ask("SELECT 1")?), "TDCZ", "after {what}");
    }
    // All at once, without waiting in between.
    let all = cases()?;
    let bytes: Vec<u8> = all.iter().flat_map(|c| [c.1.clone(), SYNC.to_vec()].concat()).collect();
    raw.raw(&bytes)?;
    for (what, _, expected) in all {
        assert_eq!(tags(&raw.until_ready()?), expected, "{what}, pipelined");
    }
    Ok(())
}

#[test]
fn a_refusal_inside_a_transaction_fails_it() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let mut raw = Raw::ready(bed.net(), &bed.login("app_rw")?)?;
    let status = |answer: &[interceptor_tests::wire::Message]| {
        answer.last().map(|m| m.body.clone()).unwrap_or_default()
    };
    assert_eq!(status(&raw.ask("BEGIN")?), b"T");
    let denied = raw.ask("DROP TABLE orders")?;
    assert_eq!((tags(&denied).as_str(), denied[0].field(b'C').as_str()), ("EZ", "42501"));
    let after = status(&denied);
    assert!(after == b"E" || after == b"T", "{after:?}");
    let next = raw.ask("SELECT 1")?;
    assert_eq!(tags(&next), if after == b"E" { "EZ" } else { "TDCZ" });
    assert_eq!(status(&raw.ask("ROLLBACK")?), b"I");
    assert_eq!(tags(&raw.ask("SELECT 1")?), "TDCZ");
    Ok(())
}

#[test]
fn prepared_statements_portals_and_descriptions() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let mut raw = Raw::ready(bed.net(), &bed.login("app_ro")?)?;
    let sql = b"SELECT id, email FROM customers WHERE id <= $1 ORDER BY id\0";
    let parse = [b"s1\0", &sql[..], &[0, 1, 0, 0, 0, 20]].concat();
    raw.raw(&[encoded(b'P', &parse)?, encoded(b'D', b"Ss1\0")?, SYNC.to_vec()].concat())?;
    assert_eq!(tags(&raw.until_ready()?), "1tTZ");
    for (limit, end) in [(2_u32, "s"), (0, "C")] {
        let bind = [&b"p1\0s1\0"[..], &[0, 0, 0, 1, 0, 0, 0, 1], b"5", &[0, 0]].concat();
        let execute = [&b"p1\0"[..], &limit.to_be_bytes()].concat();
        raw.raw(&[encoded(b'B', &bind)?, encoded(b'E', &execute)?, SYNC.to_vec()].concat())?;
        let answer = raw.until_ready()?;
        let rows: Vec<_> = answer.iter().filter(|m| m.tag == b'D').collect();
        assert_eq!(rows.len(), if limit == 2 { 2 } else { 5 });
        for (row, id) in rows.iter().zip(1..) {
            let email = row.values()[1].clone().unwrap_or_default();
            assert_ne!(email, interceptor_tests::data::customer(id).email);
        }
        assert!(tags(&answer).ends_with(&format!("{end}Z")), "{}", tags(&answer));
    }
    // A statement that was refused at Parse does not exist.
    let parse = [b"s2\0", &b"DROP TABLE orders\0"[..], &[0, 0]].concat();
    raw.raw(&[encoded(b'P', &parse)?, SYNC.to_vec()].concat())?;
    assert_eq!(tags(&raw.until_ready()?), "EZ");
    let bind = [&b"\0s2\0"[..], &[0, 0, 0, 0, 0, 0]].concat();
    raw.raw(&[encoded(b'B', &bind)?, encoded(b'E', &[0, 0, 0, 0, 0])?, SYNC.to_vec()].concat())?;
    let answer = raw.until_ready()?;
    assert_eq!((tags(&answer).as_str(), answer[0].field(b'C').as_str()), ("EZ", "26000"));
    Ok(())
}

/// A Query ends a batch as a Sync does: it must be answered with ReadyForQuery whatever becomes
/// of it, or the client waits for ever.
#[test]
fn a_query_in_a_batch_that_changed_settings_is_refused_as_a_query() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let mut raw = Raw::ready(bed.net(), &bed.login("app_ro")?)?;
    let set = extended("SET search_path = public")?;
    raw.raw(&[set, encoded(b'Q', b"SELECT 1\0")?].concat())?;
    assert_eq!(tags(&raw.until_ready()?), "12CEZ");
    assert_eq!(tags(&raw.ask("SELECT 1")?), "TDCZ");
    Ok(())
}

//! One-time enrolment codes: shown once, kept as hashes, ending soon.

use crate::collector::db::{Connection, OptionalExtension, params};

use super::error::CollectorError;
use crate::record::chain::{self, Hash};

/// Without letters that are taken for digits (Crockford).
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const DOMAIN: &[u8] = b"interceptor enrolment code v1\0";
/// Characters of a code: 120 bits.
const LENGTH: usize = 24;
/// Characters between hyphens.
const GROUP: usize = 6;

/// Makes a code under which one host may enrol with this name.
pub fn make(
    db: &Connection,
    name: &str,
    by: &str,
    now_us: i64,
    expires_us: i64,
) -> Result<String, CollectorError> {
    let mut random = [0u8; LENGTH];
    aws_lc_rs::rand::fill(&mut random)
        .map_err(|_| CollectorError::Key("no randomness from the kernel".into()))?;
    let letters: Vec<char> =
        random.iter().map(|b| char::from(ALPHABET[usize::from(b & 31)])).collect();
    let groups: Vec<String> = letters.chunks(GROUP).map(|c| c.iter().collect()).collect();
    let code = groups.join("-");
    db.execute(
        "INSERT INTO codes (hash, name, made_by, created_us, expires_us) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![&hash(&code)[..], name, by, now_us, expires_us],
    )
    .map_err(CollectorError::db("keep an enrolment code"))?;
    Ok(code)
}

/// Uses a code up; the name it was made for, or `None` when it is wrong, used or too old.
pub fn redeem(db: &Connection, code: &str, now_us: i64) -> Result<Option<String>, CollectorError> {
    let hash = hash(code);
    let name: Option<String> = db
        .query_row(
            "UPDATE codes SET used_us = ?2 WHERE hash = ?1 AND used_us IS NULL \
             AND expires_us > ?2 RETURNING name",
            params![&hash[..], now_us],
            |r| r.get(0),
        )
        .optional()
        .map_err(CollectorError::db("use an enrolment code"))?;
    db.execute("DELETE FROM codes WHERE expires_us < ?1", [now_us - 30 * 86_400_000_000])
        .map_err(CollectorError::db("forget old enrolment codes"))?;
    Ok(name)
}

/// However it was typed: hyphens, spaces and case do not count, nor O for 0 or I and L for 1.
fn hash(code: &str) -> Hash {
    let plain: String = code
        .chars()
        .filter(|c| !c.is_whitespace() && *c != '-')
        .take(2 * LENGTH)
        .map(|c| match c.to_ascii_uppercase() {
            'O' => '0',
            'I' | 'L' => '1',
            c => c,
        })
        .collect();
    chain::hash(DOMAIN, &[plain.as_bytes()])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_good_once_and_for_a_while() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(include_str!("schema.sql")).unwrap();
        let code = make(&db, "db1", "root", 1000, 2000).unwrap();
        assert_eq!(code.len(), 27);
        assert_eq!(redeem(&db, "000000-000000-000000-000000", 1500).unwrap(), None);
        assert_eq!(redeem(&db, &code, 2000).unwrap(), None, "too late");
        let typed = code.replace('-', " ").to_lowercase();
        assert_eq!(redeem(&db, &typed, 1500).unwrap().as_deref(), Some("db1"));
        assert_eq!(redeem(&db, &code, 1500).unwrap(), None, "used");
        let kept: Vec<u8> = db.query_row("SELECT hash FROM codes", [], |r| r.get(0)).unwrap();
        assert!(!code.as_bytes().windows(6).any(|w| kept.windows(6).any(|k| k == w)));
    }
}

//! Policies that hosts may take from here: versions that only grow, each signed whole and kept
//! for good.
//!
//! What a person publishes was loaded and tested first ([`check`]). A roll-back is the content
//! of an old version under a new number, and a withdrawal a version without files, so that no
//! host ever has to go back. Every step is in the audit trail, with what each host did about it.

pub mod check;
pub mod hosts;
pub mod offer;

use crate::collector::db::{Connection, OptionalExtension, Row, params};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::json;

use super::audit::{self, Entry, Who};
use super::error::CollectorError;
use super::{Collector, Keys};
use crate::policy::PolicyErrors;
use crate::record::now_us;
use crate::ship::bundle::{BUNDLE_DOMAIN, Bundle, File, Offer, SignedBundle};
use check::Checked;

/// Longest note, in characters.
const MAX_NOTE: usize = 500;

/// One version, without the texts of its files.
#[derive(Debug, Clone, Serialize)]
pub struct Version {
    /// Its number.
    pub version: u64,
    /// When it was published, microseconds since the Unix epoch.
    pub published_us: i64,
    /// Who published it.
    pub by: serde_json::Value,
    /// `published`, `rolled-back` or `withdrawn`.
    pub what: String,
    /// After a roll-back, the version whose content it has.
    pub content_of: Option<u64>,
    /// What the publisher said.
    pub note: Option<String>,
    /// Digest of its files, hex; empty when withdrawn.
    pub sha256: String,
    /// How many rules it has.
    pub rules: u64,
}

impl Version {
    /// Who published it, in words.
    pub fn by_words(&self) -> String {
        let kind = self.by.as_object().and_then(|by| by.values().next());
        let text = |key| kind.and_then(|who| who.get(key)).and_then(|v| v.as_str());
        match text("name").or_else(|| text("user")) {
            Some(name) => name.to_owned(),
            None => self.by.to_string(),
        }
    }
}

/// One version with its files, as JSON.
pub fn described(version: &Version, files: Option<&[File]>) -> serde_json::Value {
    let mut all = serde_json::to_value(version).unwrap_or_default();
    all["files"] = json!(files);
    all
}

/// Why nothing is published. Shown to the person.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// There is no such version.
    #[error("there is no version {0}: see `interceptor collector policies list`")]
    NoVersion(u64),
    /// It has no content.
    #[error("version {0} withdrew what was before it and has no rules: use `withdraw`")]
    Withdrawn(u64),
    /// Nothing would change.
    #[error("nothing changes: version {0} has the same content and is the newest")]
    Same(u64),
    /// Nothing to withdraw.
    #[error("nothing is published, so there is nothing to withdraw")]
    Nothing,
    /// A number that is too large.
    #[error("no version can have that number")]
    Number,
    /// A note that is too long or not plain.
    #[error("a note is a plain text of at most {MAX_NOTE} characters")]
    Note,
    /// Old content that this version of the program does not load.
    #[error(transparent)]
    Policies(#[from] PolicyErrors),
    /// The database.
    #[error(transparent)]
    Store(#[from] CollectorError),
}

/// How something is published.
#[derive(Debug, Clone)]
pub struct How {
    /// Who does it.
    pub who: Who,
    /// What they say about it.
    pub note: Option<String>,
    /// Its number is greater than this one as well; for a collector that was put back.
    pub above: u64,
}

fn version(r: &Row<'_>) -> crate::collector::db::Result<Version> {
    let number = |n: i64| u64::try_from(n).unwrap_or(0);
    let by: String = r.get(2)?;
    Ok(Version {
        version: number(r.get(0)?),
        published_us: r.get(1)?,
        by: serde_json::from_str(&by).unwrap_or_default(),
        what: r.get(3)?,
        content_of: r.get::<_, Option<i64>>(4)?.map(number),
        note: r.get(5)?,
        sha256: r.get(6)?,
        rules: number(r.get(7)?),
    })
}

const COLUMNS: &str = "version, published_us, published_by, what, content_of, note, sha256, rules";

/// All versions, newest first.
pub fn list(db: &Connection) -> Result<Vec<Version>, CollectorError> {
    db.prepare_cached(&format!("SELECT {COLUMNS} FROM policy_versions ORDER BY version DESC"))
        .and_then(|mut s| s.query_map([], version)?.collect())
        .map_err(CollectorError::db("list versions of policies"))
}

/// A version and its files; none in a withdrawal.
pub type WithFiles = (Version, Option<Vec<File>>);

/// One version with its files.
pub fn show(db: &Connection, number: u64) -> Result<Option<WithFiles>, CollectorError> {
    let sql = format!("SELECT {COLUMNS}, body FROM policy_versions WHERE version = ?1");
    let found: Option<(Version, String)> = db
        .prepare_cached(&sql)
        .and_then(|mut s| {
            s.query_row([i64::try_from(number).unwrap_or(-1)], |r| Ok((version(r)?, r.get(8)?)))
                .optional()
        })
        .map_err(CollectorError::db("read a version of policies"))?;
    let Some((version, body)) = found else { return Ok(None) };
    let bundle: Bundle = serde_json::from_str(&body)
        .map_err(|e| CollectorError::Key(format!("a bundle of ours cannot be read: {e}")))?;
    Ok(Some((version, bundle.files)))
}

/// The newest version; 0 when there is none.
pub fn newest(db: &Connection) -> Result<u64, CollectorError> {
    let newest: i64 = db
        .prepare_cached("SELECT coalesce(max(version), 0) FROM policy_versions")
        .and_then(|mut s| s.query_row([], |r| r.get(0)))
        .map_err(CollectorError::db("look for the newest policies"))?;
    Ok(u64::try_from(newest).unwrap_or(0))
}

/// What a host is offered that has taken a version, and believes the key with this fingerprint.
pub fn offer(db: &Connection, keys: &Keys, after: u64, key: &str) -> Result<Offer, CollectorError> {
    let (newest, keys) = (newest(db)?, keys.in_force(db)?.after(key));
    if newest <= after {
        return Ok(Offer { newest, bundle: None, keys });
    }
    let bundle = newest_signed(db)?.map(|(_, body, signature)| {
        let signature = STANDARD.encode(signature);
        SignedBundle { body, signature }
    });
    Ok(Offer { newest, bundle, keys })
}

/// The newest version as it was signed last: its number, its text, and the signature.
pub(super) fn newest_signed(
    db: &Connection,
) -> Result<Option<(i64, String, Vec<u8>)>, CollectorError> {
    db.prepare_cached(
        "SELECT p.version, p.body, coalesce((SELECT s.policies_signature FROM successions s \
         WHERE s.policies = p.version ORDER BY s.number DESC LIMIT 1), p.signature) \
         FROM policy_versions p ORDER BY p.version DESC LIMIT 1",
    )
    .and_then(|mut s| s.query_row([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).optional())
    .map_err(CollectorError::db("read the newest policies"))
}

/// Publishes files that were checked.
pub fn publish(
    db: &Connection,
    keys: &Keys,
    how: &How,
    checked: Checked,
) -> Result<Version, PublishError> {
    let Checked { files, rules, .. } = checked;
    if how.above == 0 {
        refuse_same(db, &crate::ship::bundle::digest(&files))?;
    }
    append(db, keys, how, Step { what: "published", content_of: None, rules, files: Some(files) })
}

/// Publishes the content of an old version under a new number.
pub fn roll_back(
    db: &Connection,
    keys: &Keys,
    how: &How,
    to: u64,
) -> Result<Version, PublishError> {
    let (old, files) = show(db, to)?.ok_or(PublishError::NoVersion(to))?;
    let files = files.ok_or(PublishError::Withdrawn(to))?;
    refuse_same(db, &old.sha256)?;
    // What is loaded here may have changed since.
    let rules = Bundle::new(to, 0, Some(files.clone())).policies()?.map_or(0, |p| p.len());
    let what = "rolled-back";
    append(db, keys, how, Step { what, content_of: Some(to), rules, files: Some(files) })
}

/// Publishes that there are no policies from here any more.
pub fn withdraw(db: &Connection, keys: &Keys, how: &How) -> Result<Version, PublishError> {
    if current(db)?.is_none_or(|v| v.what == "withdrawn") {
        return Err(PublishError::Nothing);
    }
    append(db, keys, how, Step { what: "withdrawn", content_of: None, rules: 0, files: None })
}

fn current(db: &Connection) -> Result<Option<Version>, CollectorError> {
    let sql = format!("SELECT {COLUMNS} FROM policy_versions ORDER BY version DESC LIMIT 1");
    db.prepare_cached(&sql)
        .and_then(|mut s| s.query_row([], version).optional())
        .map_err(CollectorError::db("look for the newest policies"))
}

fn refuse_same(db: &Connection, sha256: &str) -> Result<(), PublishError> {
    match current(db)? {
        Some(v) if v.sha256 == sha256 => Err(PublishError::Same(v.version)),
        _ => Ok(()),
    }
}

struct Step {
    what: &'static str,
    content_of: Option<u64>,
    rules: usize,
    files: Option<Vec<File>>,
}

fn append(db: &Connection, keys: &Keys, how: &How, step: Step) -> Result<Version, PublishError> {
    let plain = |n: &str| n.chars().count() <= MAX_NOTE && !n.chars().any(char::is_control);
    if how.note.as_deref().is_some_and(|n| !plain(n)) {
        return Err(PublishError::Note);
    }
    let number = newest(db)?.max(how.above).checked_add(1).ok_or(PublishError::Number)?;
    let row = i64::try_from(number).map_err(|_| PublishError::Number)?;
    let now = now_us();
    let names: Vec<String> = step.files.iter().flatten().map(|f| f.name.clone()).collect();
    let bundle = Bundle::new(number, now, step.files);
    let body = serde_json::to_string(&bundle)
        .map_err(|e| CollectorError::Key(format!("a bundle cannot be written: {e}")))?;
    let signature = keys.in_force(db)?.sign(BUNDLE_DOMAIN, body.as_bytes())?;
    let who = serde_json::to_string(&how.who).unwrap_or_default();
    let of = step.content_of.and_then(|n| i64::try_from(n).ok());
    let rules = i64::try_from(step.rules).unwrap_or(i64::MAX);
    db.prepare_cached(
        "INSERT INTO policy_versions (version, published_us, published_by, what, content_of, note, \
         sha256, rules, body, signature) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )
    .and_then(|mut s| {
        s.execute(params![
            row,
            now,
            who,
            step.what,
            of,
            how.note,
            bundle.sha256,
            rules,
            body,
            &signature[..]
        ])
    })
    .map_err(CollectorError::db("publish policies"))?;
    let detail = json!({
        "version": number, "sha256": bundle.sha256, "rules": step.rules, "files": names,
        "content_of": step.content_of, "note": how.note,
    });
    let what = format!("policies.{}", step.what);
    let target = format!("version {number}");
    audit::append(db, &Entry { who: &how.who, what: &what, target: &target, detail: &detail })?;
    Ok(Version {
        version: number,
        published_us: now,
        by: serde_json::to_value(&how.who).unwrap_or_default(),
        what: step.what.into(),
        content_of: step.content_of,
        note: how.note.clone(),
        sha256: bundle.sha256,
        rules: step.rules as u64,
    })
}

impl Collector {
    /// A version was published: hosts that wait are told to look.
    pub(in crate::collector) fn published(&self) {
        self.bells.ring_all();
        self.hub.tell(super::Change::Policies);
    }
}

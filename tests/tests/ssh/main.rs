//! SSH end to end with real parts: each module is one promise, each case what a stock client
//! with untouched configuration sees.

#[macro_use]
extern crate interceptor_tests;

mod bad_input;
mod bulk;
mod certificates;
mod channels;
mod death;
mod drivers;
mod environment;
mod exec;
mod files;
mod git;
mod helper;
mod holds;
mod host;
mod load;
mod modes;
mod record;
mod reverse;
mod shell;
mod streams;
mod tokens;
mod ways;

use std::time::Duration;

use anyhow::Result;
use interceptor_tests::bed::Bed;
use interceptor_tests::daemon::text;
use interceptor_tests::proc::{Output, wait_for};
use serde_json::Value;

/// How long an answer may take that waits for nobody.
const SOON: Duration = Duration::from_secs(20);

/// The user whom most agents become.
const USER: &str = interceptor_tests::accounts::DEPLOY;

/// A card number that passes Luhn and belongs to nobody.
fn card() -> String {
    interceptor_tests::data::card(4_711_000_001)
}

/// Asserts that a command was refused: told why, and with a status of failure.
#[track_caller]
fn assert_refused(out: &Output) {
    assert!(!out.success(), "it was let through: {out}");
    assert!(out.stderr.contains("interceptor:"), "refused without a word: {out}");
}

/// The recorded session in whose record a text stands.
fn session(bed: &Bed, contains: &str) -> Result<Value> {
    bed.interceptor()?.session(&interceptor_tests::story::session_that(bed, contains)?)
}

/// Waits until every recorded session has ended, so that its record is whole.
fn all_ended(bed: &Bed) -> Result<Vec<Value>> {
    wait_for("all sessions to be closed", SOON, || {
        let sessions = bed.interceptor()?.sessions()?;
        let open = sessions.iter().any(|s| s["closed_us"].is_null());
        Ok((!open).then_some(sessions))
    })
}

/// Everything that is recorded, as one text.
fn whole_record(bed: &Bed) -> Result<String> {
    let mut all = String::new();
    for one in all_ended(bed)? {
        all.push_str(&bed.interceptor()?.session(&text(&one, &["id", "session"]))?.to_string());
        all.push('\n');
    }
    Ok(all)
}

/// Whether a text stands in any file below a directory.
fn on_disk(dir: &std::path::Path, needle: &str) -> Result<bool> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let found = match path.symlink_metadata()? {
            m if m.is_dir() => on_disk(&path, needle)?,
            m if m.is_file() => {
                let bytes = std::fs::read(&path)?;
                bytes.windows(needle.len()).any(|w| w == needle.as_bytes())
            }
            _ => false,
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

//! `interceptor sessions verify`, for people.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::record::ledger::Anchor;
use crate::record::terminal::{Style, safe};
use crate::record::verify::{Options, Report};
use crate::record::{PublicKey, day};
use crate::ship::Proved;

/// Deletions that are listed.
const LISTED: usize = 20;

/// What to compare with.
pub(super) fn options(anchors: &[PathBuf], key: Option<&Path>) -> anyhow::Result<Options> {
    let mut options = Options { key: key.map(PublicKey::load).transpose()?, anchors: Vec::new() };
    for path in anchors {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read anchor {}", path.display()))?;
        let anchor: Anchor = serde_json::from_str(&text).with_context(|| {
            format!("{} is no checkpoint of `sessions export --checkpoint`", path.display())
        })?;
        options.anchors.push((path.display().to_string(), anchor));
    }
    Ok(options)
}

/// What was found here, and at the collector where it was asked.
pub(super) fn report(
    report: &Report,
    collector: Option<&Proved>,
    as_json: bool,
    style: Style,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    if as_json {
        let mut all = serde_json::to_value(report)?;
        if let Some(proved) = collector {
            all["collector"] = serde_json::to_value(proved)?;
        }
        serde_json::to_writer_pretty(&mut *out, &all)?;
        return Ok(writeln!(out)?);
    }
    for note in &report.notes {
        writeln!(out, "{} {}", style.yellow("note:"), safe(note))?;
    }
    for finding in &report.findings {
        let whose = finding.session.map(|n| format!("session {n} ")).unwrap_or_default();
        writeln!(out, "{} {whose}{}", style.red("finding:"), safe(&finding.message))?;
    }
    if report.more_findings > 0 {
        writeln!(out, "{} {} more", style.red("finding:"), report.more_findings)?;
    }
    let Report { sessions, events, ledger, open, deleted, unsigned, .. } = report;
    writeln!(
        out,
        "{sessions} sessions ({open} open), {events} events, {ledger} ledger entries, {deleted} \
         deleted by retention, {unsigned} events not signed by a checkpoint yet"
    )?;
    let verdict = if report.is_clean() {
        style.green("verified: everything is as it was signed")
    } else {
        style.red("NOT verified: the record was changed or is damaged")
    };
    writeln!(out, "{verdict}")?;
    collector.map_or(Ok(()), |proved| self::proved(proved, style, out))
}

fn proved(proved: &Proved, style: Style, out: &mut impl Write) -> anyhow::Result<()> {
    for finding in &proved.findings {
        writeln!(out, "{} {}", style.red("finding:"), safe(finding))?;
    }
    for gone in proved.deletions.iter().take(LISTED) {
        writeln!(
            out,
            "{} session {}: deleted by retention on {} at the collector",
            style.yellow("note:"),
            gone.number,
            day(gone.deleted_us)
        )?;
    }
    if proved.deleted > LISTED as u64 {
        let more = proved.deleted - LISTED as u64;
        writeln!(out, "{} {more} more were deleted by retention", style.yellow("note:"))?;
    }
    let Proved { size, before, sessions, waiting, .. } = proved;
    writeln!(
        out,
        "collector: {sessions} sessions stand in its log as they were sealed here, {waiting} are \
         not shipped yet; the log has {size} leaves and continues the {before} seen before"
    )?;
    let verdict = if proved.findings.is_empty() {
        style.green("proved: the collector has what it acknowledged")
    } else {
        style.red("NOT proved: the collector's log is not what it acknowledged")
    };
    Ok(writeln!(out, "{verdict}")?)
}

//! `interceptor collector keys`: which key signs, and changing it.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;

use super::operator;
use crate::cli::table::{Paint, Table, json, print, safe};
use crate::collector::rotation::{self, Again, How, Listed};
use crate::collector::{Collector, Config, log_key};
use crate::record::now_us;
use crate::record::terminal::local_time;

/// Verbs of `interceptor collector keys`.
#[derive(Debug, Subcommand)]
pub(super) enum KeysVerb {
    /// All signing keys, and how many hosts take orders of each.
    List,
    /// Make a key that the next `rotate` changes to.
    ///
    /// Where several collectors share a database, copy its directory below keys/signing/ to each
    /// of them before that: one without the key can sign nothing once it is in force.
    New,
    /// Sign with another key from now on.
    ///
    /// Hosts learn it with their next question, from the key that they know. The key before signs
    /// the log along for a while, for those who check it with that one.
    Rotate {
        /// How long the key before signs the log along; 0s when it may have been stolen.
        #[arg(long, default_value = "30days", value_parser = humantime::parse_duration)]
        overlap: Duration,
        /// Which new key, by the beginning of its fingerprint, where several are here.
        #[arg(long, value_name = "FINGERPRINT")]
        to: Option<String>,
    },
    /// Tell a database that was put back to an earlier state of the changes that it lacks.
    Restore,
    /// Delete the private parts of the keys that are not in force any more.
    Retire {
        /// Even while one signs the log along: that ends.
        #[arg(long)]
        now: bool,
    },
}

/// Runs a verb.
pub(super) async fn run(config: Config, verb: KeysVerb, as_json: bool) -> anyhow::Result<ExitCode> {
    let collector = Collector::open(config)?;
    let text = match verb {
        KeysVerb::List => {
            let shared = Arc::clone(&collector);
            let all = collector.central.read(move |db| rotation::list(db, &shared.keys)).await?;
            if as_json { json(&all)? + "\n" } else { table(&all) }
        }
        KeysVerb::New => {
            let fingerprint = collector.keys.make_signing()?;
            let place = collector.config.state.join("keys/signing").join(&fingerprint);
            match as_json {
                true => json(&serde_json::json!({ "fingerprint": fingerprint }))? + "\n",
                false => format!(
                    "Made {}\nCopy it to the other collectors of this database and back it up; \
                     then run `interceptor collector keys rotate`.\n",
                    place.display()
                ),
            }
        }
        KeysVerb::Rotate { overlap, to } => rotate(&collector, overlap, to, as_json).await?,
        KeysVerb::Restore => restore(&collector, as_json).await?,
        KeysVerb::Retire { now } => retire(&collector, now, as_json).await?,
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

async fn rotate(
    collector: &Arc<Collector>,
    overlap: Duration,
    to: Option<String>,
    as_json: bool,
) -> anyhow::Result<String> {
    let overlap_us = i64::try_from(overlap.as_micros()).context("--overlap is too long")?;
    let alone = collector.config.store.is_none();
    let shared = Arc::clone(collector);
    let how = How { who: operator(), overlap_us, to };
    let rotated = collector
        .central
        .write(move |db| {
            let listed = rotation::list(db, &shared.keys)?;
            // Nobody else has to have it first.
            if alone && how.to.is_none() && !listed.iter().any(|k| k.state == "new") {
                shared.keys.make_signing()?;
            }
            rotation::rotate(db, &shared.keys, &how)
        })
        .await?;
    let shared = Arc::clone(collector);
    collector.central.read(move |db| shared.keys.remember(db)).await?;
    collector.sign_log().await?;
    if as_json {
        return Ok(json(&rotated)? + "\n");
    }
    let along = match rotated.along_until_us > now_us() {
        true => format!(
            "The key before signs the log along until {}; then run `keys retire`.\n",
            local_time(rotated.along_until_us)
        ),
        false => "The key before signs nothing any more: run `keys retire`.\n".to_owned(),
    };
    let silent = match rotated.silent_hosts {
        0 => String::new(),
        n => format!(
            "{n} hosts never said that they follow the key before: they are away, or of an older \
             version that takes no orders of another key until it is brought up to date.\n"
        ),
    };
    let altered = altered(&rotated.again);
    Ok(format!(
        "Signing with {} from now on; hosts learn it with their next question.\n{silent}{altered}{along}Back up \
         keys/ now, and give the new key of the log to those who check it:\n\n  {}\n",
        rotated.to,
        log_key(collector)
    ))
}

fn altered(again: &Again) -> String {
    match again.altered.is_empty() {
        true => String::new(),
        false => format!(
            "ALTERED, and not signed anew: {}; find out who writes to the database.\n",
            safe(&again.altered.join(", "))
        ),
    }
}

async fn restore(collector: &Arc<Collector>, as_json: bool) -> anyhow::Result<String> {
    let (shared, who) = (Arc::clone(collector), operator());
    let again =
        collector.central.write(move |db| rotation::restore(db, &shared.keys, &who)).await?;
    collector.sign_log().await?;
    if as_json {
        return Ok(json(&again)? + "\n");
    }
    Ok(format!("The database knows every change of the key again.\n{}", altered(&again)))
}

async fn retire(collector: &Arc<Collector>, now: bool, as_json: bool) -> anyhow::Result<String> {
    let (shared, who) = (Arc::clone(collector), operator());
    collector.central.write(move |db| rotation::end_along(db, &shared.keys, &who, now)).await?;
    let shared = Arc::clone(collector);
    // The files go only when it is on disk that nothing needs them.
    let deleted = collector
        .central
        .read(move |db| {
            let in_force = shared.keys.in_force(db)?;
            in_force.check()?;
            shared.keys.delete_past(&in_force)
        })
        .await?;
    if as_json {
        return Ok(json(&serde_json::json!({ "deleted": deleted }))? + "\n");
    }
    let mut text = String::new();
    for fingerprint in &deleted {
        text.push_str(&format!("Deleted the private part of {fingerprint}.\n"));
    }
    if deleted.is_empty() {
        text.push_str("No private part of an old key is here.\n");
    }
    text.push_str("Backups and other collectors may hold copies.\n");
    Ok(text)
}

fn table(all: &[Listed]) -> String {
    let mut table = Table::new(&["FINGERPRINT", "STATE", "SINCE", "UNTIL", "HERE", "HOSTS"]);
    for key in all {
        table.row([
            key.fingerprint.clone(),
            key.state.into(),
            key.since_us.map(local_time).unwrap_or_default(),
            key.along_until_us.map(local_time).unwrap_or_default(),
            if key.here { "yes" } else { "no" }.into(),
            key.hosts.to_string(),
        ]);
    }
    table.render(Paint::stdout())
}

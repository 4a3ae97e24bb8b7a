//! `interceptor collector policies`: what hosts take from here, version by version.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use crate::collector::db::Connection;
use anyhow::bail;
use clap::Subcommand;

use super::operator;
use crate::cli::table::{Paint, Table, json, print, safe};
use crate::collector::policies::check::Given;
use crate::collector::policies::{
    self, How, PublishError, Version, list, publish, roll_back, show, withdraw,
};
use crate::collector::{Collector, CollectorError, Config, Keys, hosts};
use crate::policy::PolicySet;
use crate::record::terminal::local_time;

/// Verbs of `interceptor collector policies`.
#[derive(Debug, Subcommand)]
pub(super) enum PoliciesVerb {
    /// Check files, run the tests beside them, and publish them as the next version.
    ///
    /// Hosts with `ship.central_policies = true` take it at once; what they deny, hold, mask or
    /// limit themselves stays.
    Publish {
        /// Files, or directories with all their files; `*.test.toml` are tests.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// Why; stands in the list and in the audit trail.
        #[arg(long)]
        note: Option<String>,
        /// Run the tests with the rules of this directory beside them, as on a host.
        #[arg(long, value_name = "DIRECTORY")]
        beside: Option<PathBuf>,
        /// Number it above this one: after a collector was put back to an earlier state.
        #[arg(long, default_value_t = 0, value_name = "VERSION")]
        above: u64,
        /// Check and test only.
        #[arg(long)]
        dry_run: bool,
    },
    /// All versions, newest first, and which host has which.
    List,
    /// One version with its files.
    Show {
        /// Its number.
        #[arg(value_name = "VERSION")]
        number: u64,
    },
    /// Publish the content of an old version again, under a new number.
    Rollback {
        /// The old number.
        #[arg(value_name = "VERSION")]
        number: u64,
        /// Why.
        #[arg(long)]
        note: Option<String>,
    },
    /// Publish that there are no policies from here any more: hosts return to their own alone.
    Withdraw {
        /// Why.
        #[arg(long)]
        note: Option<String>,
    },
}

/// Runs a verb.
pub(super) async fn run(
    config: Config,
    verb: PoliciesVerb,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let how = |note: Option<String>, above| How { who: operator(), note, above };
    let published = match verb {
        PoliciesVerb::List => return listed(config, as_json).await,
        PoliciesVerb::Show { number } => return shown(config, number, as_json).await,
        PoliciesVerb::Publish { paths, note, beside, above, dry_run } => {
            // The analysis of statements blocks on threads of its own.
            let look = move || -> anyhow::Result<_> {
                let beside = beside.as_deref().map(PolicySet::load).transpose()?;
                Ok(Given::read(&paths)?.check(beside.as_ref())?)
            };
            let checked = tokio::task::spawn_blocking(look).await??;
            for warning in &checked.warnings {
                eprintln!("warning: {}", safe(&warning.to_string()));
            }
            if !as_json {
                print(&format!("{} rules, {} tests passed\n", checked.rules, checked.passed))?;
            }
            if dry_run {
                return Ok(ExitCode::SUCCESS);
            }
            let how = how(note, above);
            write(config, move |db, keys| publish(db, keys, &how, checked)).await?
        }
        PoliciesVerb::Rollback { number, note } => {
            let how = how(note, 0);
            write(config, move |db, keys| roll_back(db, keys, &how, number)).await?
        }
        PoliciesVerb::Withdraw { note } => {
            let how = how(note, 0);
            write(config, move |db, keys| withdraw(db, keys, &how)).await?
        }
    };
    if as_json {
        print(&(json(&published)? + "\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!("{}\n", told(&published)))?;
    Ok(ExitCode::SUCCESS)
}

fn told(v: &Version) -> String {
    match (v.what.as_str(), v.content_of) {
        ("withdrawn", _) => format!("Version {}: hosts return to their own policies.", v.version),
        (_, Some(of)) => format!("Version {}, with the content of {of}: {}", v.version, v.sha256),
        _ => format!("Version {}: SHA-256 {}", v.version, v.sha256),
    }
}

async fn write(
    config: Config,
    write: impl FnOnce(&Connection, &Keys) -> Result<Version, PublishError> + Send + 'static,
) -> anyhow::Result<Version> {
    let collector = Collector::open(config)?;
    let this = Arc::clone(&collector);
    let (version, ahead) = collector
        .central
        .write(move |db| {
            let version = write(db, &this.keys)?;
            Ok::<_, PublishError>((version, ahead(db)?))
        })
        .await?;
    if let Some((host, had)) = ahead.filter(|(_, had)| *had >= version.version) {
        eprintln!(
            "warning: host {} says that it has version {had}, and takes only newer ones: was \
             this collector put back? Publish with --above {had}",
            safe(&host)
        );
    }
    Ok(version)
}

/// The host that has the newest version, by its own word.
fn ahead(db: &Connection) -> Result<Option<(String, u64)>, CollectorError> {
    let all = hosts::list(db)?;
    let taking = all.into_iter().filter(|h| h.revoked_us.is_none() && h.policies.takes);
    Ok(taking.map(|h| (h.name, h.policies.status.version)).max_by_key(|(_, version)| *version))
}

async fn listed(config: Config, as_json: bool) -> anyhow::Result<ExitCode> {
    let collector = Collector::open(config)?;
    let (versions, hosts) =
        collector.central.read(|db| Ok::<_, CollectorError>((list(db)?, hosts::list(db)?))).await?;
    let on_hosts = hosts.iter().filter(|h| h.revoked_us.is_none());
    if as_json {
        let on_hosts: Vec<_> = on_hosts
            .map(|h| serde_json::json!({ "host": h.name, "policies": h.policies }))
            .collect();
        let all = serde_json::json!({ "versions": versions, "hosts": on_hosts });
        print(&(json(&all)? + "\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let paint = Paint::stdout();
    let mut table = Table::new(&["VERSION", "PUBLISHED", "BY", "WHAT", "RULES", "SHA-256", "NOTE"]);
    for v in &versions {
        let what = match v.content_of {
            Some(of) => format!("{} to {of}", v.what),
            None => v.what.clone(),
        };
        table.row([
            v.version.to_string(),
            local_time(v.published_us),
            v.by_words(),
            what,
            v.rules.to_string(),
            v.sha256.chars().take(16).collect(),
            v.note.clone().unwrap_or_default(),
        ]);
    }
    let mut on = Table::new(&["HOST", "POLICIES", "SINCE", "ERROR"]);
    for h in on_hosts {
        on.row([
            h.name.clone(),
            h.policies.words(),
            h.policies.status.since_us.map(local_time).unwrap_or_default(),
            h.policies.status.error.clone().unwrap_or_default(),
        ]);
    }
    print(&format!("{}\n{}", table.render(paint), on.render(paint)))?;
    Ok(ExitCode::SUCCESS)
}

async fn shown(config: Config, number: u64, as_json: bool) -> anyhow::Result<ExitCode> {
    let collector = Collector::open(config)?;
    let Some((version, files)) = collector.central.read(move |db| show(db, number)).await? else {
        bail!(PublishError::NoVersion(number));
    };
    if as_json {
        let all = policies::described(&version, files.as_deref());
        print(&(json(&all)? + "\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!(
        "# version {}, {} by {} at {}\n",
        version.version,
        version.what,
        safe(&version.by_words()),
        local_time(version.published_us)
    );
    if let Some(note) = &version.note {
        text.push_str(&format!("# {}\n", safe(note)));
    }
    for file in files.iter().flatten() {
        let lines: Vec<String> = file.text.lines().map(safe).collect();
        text.push_str(&format!("\n# ---- {}\n{}\n", file.name, lines.join("\n")));
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

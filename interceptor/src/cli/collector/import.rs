//! `interceptor collector import`: from SQLite into the database of `[store]`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::operator;
use crate::cli::table::{json, print, safe};
use crate::collector::import::{self, Imported, Step};
use crate::collector::{Collector, Config};

/// How often a terminal is told.
const TELL: Duration = Duration::from_millis(500);

/// Runs it.
pub(super) async fn run(config: Config, as_json: bool) -> anyhow::Result<ExitCode> {
    let collector = Collector::open(config)?;
    let this = Arc::clone(&collector);
    let brought = tokio::task::spawn_blocking(move || {
        let mut told = progress(std::io::stderr().is_terminal());
        import::run(&this, &operator(), &mut told)
    });
    let brought = brought.await?;
    clear_line();
    let brought = brought?;
    // All is done by then; a collector that runs signs as well.
    if let Err(error) = collector.sign_log().await {
        eprintln!("interceptor: warning: the log is not signed yet: {}", safe(&error.to_string()));
    }
    if as_json {
        print(&(json(&brought)? + "\n"))?;
        return Ok(exit(&brought));
    }
    let state = collector.config.state.display();
    if brought.before {
        print(&format!(
            "It was done before: {state}/collector.db is {state}/collector.db.imported now.\n"
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!(
        "Brought {} hosts, {} sessions and {} events into the database of [store].\n\
         {state}/collector.db.imported is not read any more: delete it once the database has a \
         backup.\nRun `interceptor collector verify`, then start the collector.\n",
        brought.hosts, brought.sessions, brought.events
    ))?;
    for less in &brought.incomplete {
        print(&format!(
            "NOT ALL OF HOST {}: {} of {} events could be read; look at its problem in \
             `interceptor collector hosts` before you delete its replica here\n",
            safe(&less.host),
            less.brought,
            less.of
        ))?;
    }
    Ok(exit(&brought))
}

/// 1 when something could not be brought.
fn exit(brought: &Imported) -> ExitCode {
    if brought.incomplete.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Shows on a terminal where it is.
fn progress(shown: bool) -> impl FnMut(Step<'_>) {
    let mut last = Instant::now();
    move |step| {
        if !shown || last.elapsed() < TELL {
            return;
        }
        last = Instant::now();
        let words = match step {
            Step::Host(name, events) => format!("host {}: {events} events", safe(name)),
            Step::Table(name, rows) => format!("{name}: {rows} rows"),
        };
        let _ = write!(std::io::stderr(), "\r\x1b[K{words}");
    }
}

fn clear_line() {
    if std::io::stderr().is_terminal() {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
}

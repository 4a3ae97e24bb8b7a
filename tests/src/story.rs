//! The main job, told step by step and checked at every step: what the demo shows.

mod fleet;
mod ssh;

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::bed::Bed;
use crate::central::Central;
use crate::daemon::text;
use crate::data;
use crate::live::Live;
use crate::net::{HOST_V4, Place};
use crate::proc::Output;
use crate::provider::Provider;
use crate::tokens::Claims;

/// How long an answer may take that waits for nobody.
const SOON: Duration = Duration::from_secs(15);

/// Ends the story before its next step when set, so that everything is put away in order.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Where the story is written; counts what differed.
pub struct Teller<'a> {
    out: &'a mut dyn Write,
    colour: bool,
    failed: u32,
    told: u32,
}

impl<'a> Teller<'a> {
    /// Tells to a stream, with colours or without.
    pub fn new(out: &'a mut dyn Write, colour: bool) -> Self {
        Self { out, colour, failed: 0, told: 0 }
    }

    /// Tells one step: what is tried, what must come of it, and what came.
    fn step(&mut self, what: &str, why: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
        ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
        self.told += 1;
        let number = self.told;
        writeln!(self.out, "\n{number}. {}", self.paint("1", what))?;
        writeln!(self.out, "   {why}")?;
        self.out.flush()?;
        let begun = Instant::now();
        let result = work();
        let took = begun.elapsed().as_secs_f64();
        match result {
            Ok(evidence) => {
                self.quote(&evidence)?;
                writeln!(self.out, "   {} as promised ({took:.1} s)", self.paint("32", "✓"))?;
            }
            Err(error) => {
                self.failed += 1;
                self.quote(&format!("{error:#}"))?;
                writeln!(self.out, "   {} NOT as promised ({took:.1} s)", self.paint("31", "✗"))?;
            }
        }
        Ok(())
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }

    fn quote(&mut self, text: &str) -> Result<()> {
        for line in text.trim_end().lines().take(60) {
            writeln!(self.out, "     | {line}")?;
        }
        Ok(())
    }
}

/// Whether standard output should be coloured.
pub fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Tells the whole story on a standing bed; gives back how many steps differed, and the collector
/// that was brought up, where what it needs is installed.
pub fn tell(bed: &mut Bed, teller: &mut Teller<'_>) -> Result<(u32, Option<Central>)> {
    reading(bed, teller)?;
    refusing(bed, teller)?;
    holding(bed, teller)?;
    tokens(bed, teller)?;
    if bed.sshd().is_ok() {
        ssh::tell(bed, teller)?;
    }
    dying(bed, teller)?;
    looking_back(bed, teller)?;
    let central = match Provider::absent() {
        None => Some(fleet::tell(bed, teller)?),
        Some(why) => {
            writeln!(teller.out, "\nWithout the collector's scene: {why}")?;
            None
        }
    };
    let (told, failed) = (teller.told, teller.failed);
    writeln!(teller.out, "\n{} of {told} steps as promised.", told - failed)?;
    Ok((failed, central))
}

fn reading(bed: &Bed, teller: &mut Teller<'_>) -> Result<()> {
    let sql = "SELECT id, name, email, card_number FROM customers ORDER BY id LIMIT 4;";
    teller.step(
        &format!("psql -h {HOST_V4} -U app_ro shop   -- {sql}"),
        "An agent reads customers with plain psql, its token as the password: e-mail and card arrive masked.",
        || {
            let login = bed.login("app_ro")?;
            let cmd = bed.client(&login, "psql").args(["-X", "-c", sql]);
            let out = bed.place(&login, cmd).run()?.ok()?;
            for c in (1..=4).map(data::customer) {
                ensure!(out.contains(&c.name), "{} is missing:\n{out}", c.name);
                for secret in [&c.email, &c.card_number] {
                    ensure!(!out.contains(secret.as_str()), "{secret} came through:\n{out}");
                }
            }
            Ok(out)
        },
    )
}

fn refusing(bed: &Bed, teller: &mut Teller<'_>) -> Result<()> {
    teller.step(
        "DROP TABLE payments;",
        "A statement that a rule denies is refused with a clear error, and the same connection goes on.",
        || {
            let mut psql = bed.live_psql(&bed.login("app_admin")?)?;
            let before = psql.ask("SELECT pg_backend_pid();", SOON)?;
            let refused = psql.ask("DROP TABLE payments;", SOON)?;
            ensure!(refused.contains("interceptor:"), "no refusal:\n{refused}");
            let after = psql.ask("SELECT pg_backend_pid();", SOON)?;
            ensure!(before == after, "another connection: {before} then {after}");
            let there = bed.db().admin("SELECT count(*) FROM payments")?;
            ensure!(there.trim() == data::ORDERS.to_string(), "payments changed: {there}");
            Ok(format!("{}\nSELECT pg_backend_pid() -> {}", refused.trim(), after.trim()))
        },
    )
}

/// The statement that waits for a human, and the value it sets.
const UPDATE: &str = "UPDATE orders SET status = 'approved-by-hand' WHERE id = 7;";

fn holding(bed: &Bed, teller: &mut Teller<'_>) -> Result<()> {
    teller.step(
        UPDATE,
        "A risky statement waits, the connection stays; it runs when a human approves it.",
        || {
            let interceptor = bed.interceptor()?;
            let mut psql = bed.live_psql(&bed.login("app_rw")?)?;
            psql.ask("SELECT 1;", SOON)?;
            psql.send(UPDATE)?;
            let id = interceptor.next_hold(SOON)?;
            let notice = psql.expect(&id, SOON)?;
            let status = || bed.db().admin("SELECT status FROM orders WHERE id = 7");
            ensure!(!status()?.contains("by-hand"), "it ran before it was approved");
            let decided = interceptor.approve(&id)?.ok()?;
            psql.expect("UPDATE 1", SOON)?;
            ensure!(status()?.contains("by-hand"), "it was approved and did not run");
            Ok(format!(
                "agent:    {}\napprover: interceptor approvals approve {id}\n{}agent:    UPDATE 1",
                notice.trim(),
                decided
            ))
        },
    )
}

fn tokens(bed: &Bed, teller: &mut Teller<'_>) -> Result<()> {
    let good = Claims::reporter();
    let cases = [
        ("An expired token", bed.token(&good.clone().shifted(-900))?, "TOKEN_EXPIRED"),
        (
            "A token for another audience",
            bed.token(&good.clone().with("aud", "api://something-else"))?,
            "TOKEN_AUDIENCE",
        ),
        ("A forged signature", bed.token(&good.clone().sign("foreign"))?, "TOKEN_SIGNATURE"),
    ];
    for (what, token, code) in cases {
        teller.step(
            what,
            &format!("Refused before anything reaches PostgreSQL: {code}."),
            || {
                let out = bed.psql(&bed.login("app_ro")?.password(&token), "SELECT 1")?;
                refused(&out, code)
            },
        )?;
    }
    teller.step(
        "A token copied to another machine",
        "The first use pins a token to its source; the same token from elsewhere is TOKEN_COPIED.",
        || {
            let login = bed.login("app_ro")?;
            let first = bed.psql(&login, "SELECT 'first use'")?.ok()?;
            let out = bed.psql(&login.clone().from(Place::Other), "SELECT 1")?;
            Ok(format!("agent: {first}other: {}", refused(&out, "TOKEN_COPIED")?))
        },
    )
}

/// Insists that a client was refused with this code and saw no row.
pub fn refused(out: &Output, code: &str) -> Result<String> {
    ensure!(!out.success(), "it was let in: {out}");
    ensure!(out.stderr.contains(code), "refused, but without {code}: {out}");
    Ok(out.stderr.trim().to_owned())
}

fn dying(bed: &mut Bed, teller: &mut Teller<'_>) -> Result<()> {
    bed.interceptor_mut()?.kill();
    teller.step(
        "A connection while the daemon is dead",
        "Killed with SIGKILL, the daemon leaves the port closed, not open.",
        || {
            let out = bed.psql(&bed.direct("app_ro"), "SELECT 1")?;
            ensure!(!out.success(), "it was passed on to PostgreSQL: {out}");
            ensure!(out.stderr.contains("Connection refused"), "not refused at once: {out}");
            Ok(out.stderr.trim().to_owned())
        },
    )?;
    bed.interceptor_mut()?.start()
}

fn looking_back(bed: &Bed, teller: &mut Teller<'_>) -> Result<()> {
    let interceptor = bed.interceptor()?;
    teller.step("interceptor sessions list", "Every connection is a recorded session.", || {
        let list = interceptor.cli(["sessions", "list"]).ok()?;
        ensure!(interceptor.sessions()?.len() >= 7, "sessions are missing:\n{list}");
        Ok(list)
    })?;
    let held = session_that(bed, "approved-by-hand");
    teller.step(
        "interceptor sessions show",
        "The claims of the token, captured at the moment of access: who acts for whom.",
        || {
            let session =
                interceptor.session(held.as_ref().map_err(|e| anyhow::anyhow!("{e:#}"))?)?;
            let shown = session.to_string();
            for fact in ["alice@example.com", "0oa-reporter", "reporter", "analysts"] {
                ensure!(shown.contains(fact), "{fact} is not in the record:\n{shown}");
            }
            Ok(serde_json::to_string_pretty(claims(&session).unwrap_or(&session))?)
        },
    )?;
    teller.step(
        "interceptor sessions replay",
        "The session as it happened: the statement, the wait, who approved, the answer.",
        || {
            let id = held.as_ref().map_err(|e| anyhow::anyhow!("{e:#}"))?;
            let out = interceptor.cli(["sessions", "replay", id, "--no-wait"]).ok()?;
            for fact in ["UPDATE orders", "00u-approver"] {
                ensure!(out.contains(fact), "{fact} is not in the replay:\n{out}");
            }
            Ok(out)
        },
    )?;
    teller.step(
        "interceptor sessions verify",
        "The chain of every session and the seals over them hold.",
        || interceptor.cli(["sessions", "verify"]).ok(),
    )
}

/// The captured claims inside a session's record, wherever they stand.
fn claims(value: &Value) -> Option<&Value> {
    match value {
        Value::Object(map) => {
            map.get("claims").or_else(|| map.values().find_map(claims)).filter(|c| !c.is_null())
        }
        Value::Array(list) => list.iter().find_map(claims),
        _ => None,
    }
}

/// The id of the session in whose record a text stands.
pub fn session_that(bed: &Bed, contains: &str) -> Result<String> {
    let interceptor = bed.interceptor()?;
    for session in interceptor.sessions()?.iter().rev() {
        let id = text(session, &["id", "session"]);
        if interceptor.session(&id)?.to_string().contains(contains) {
            return Ok(id);
        }
    }
    None.with_context(|| format!("no recorded session contains {contains:?}"))
}

/// Starts a psql and types a statement that will be held; gives back both.
pub fn held(bed: &Bed, role: &str, sql: &str) -> Result<(Live, String)> {
    let mut psql = bed.live_psql(&bed.login(role)?)?;
    psql.ask("SELECT 1;", SOON)?;
    psql.send(sql)?;
    let id = bed.interceptor()?.next_hold(SOON)?;
    psql.expect(&id, SOON)?;
    Ok((psql, id))
}

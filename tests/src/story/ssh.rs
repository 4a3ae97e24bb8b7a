//! The same promise on port 22, told and checked.

use anyhow::{Context, Result, ensure};

use super::{SOON, Teller, session_that};
use crate::accounts::DEPLOY;
use crate::bed::Bed;
use crate::daemon::text;
use crate::data;
use crate::live::Live;
use crate::net::HOST_V4;
use crate::proc::wait_for;
use crate::robot::Robot;
use crate::sshkey::Certificate;
use crate::tokens::Claims;

/// What an agent asks to be done that a human has to allow.
const RELEASE: &str = "touch released; echo released by hand";

/// Tells the scene on a bed with an sshd.
pub fn tell(bed: &Bed, teller: &mut Teller<'_>) -> Result<()> {
    let sshd = bed.sshd()?;
    let orders: String = (1..=4)
        .map(data::customer)
        .map(|c| format!("{:<18} card {}\n", c.name, c.card_number))
        .collect();
    sshd.put(DEPLOY, "orders.txt", orders)?;
    sshd.put(DEPLOY, "report.csv", "month,orders\n2026-10,3000\n")?;
    let agent = bed.agent(DEPLOY)?;
    reading(bed, teller, &agent)?;
    refusing(bed, teller, &agent)?;
    holding(bed, teller, &agent)?;
    fetching(bed, teller, &agent)?;
    replaying(bed, teller)?;
    stealing(bed, teller)
}

fn reading(bed: &Bed, teller: &mut Teller<'_>, agent: &Robot) -> Result<()> {
    teller.step(
        &format!("ssh {DEPLOY}@{HOST_V4} 'cat orders.txt'"),
        "Stock ssh, the host's own key, a token bound to the agent's key: card numbers arrive masked.",
        || {
            let out = bed.ssh(agent, "cat orders.txt")?;
            ensure!(out.success() && out.stderr.is_empty(), "{out}");
            for c in (1..=4).map(data::customer) {
                ensure!(out.stdout.contains(&c.name), "{} is missing: {out}", c.name);
                ensure!(!out.stdout.contains(&c.card_number), "{} came through", c.card_number);
            }
            Ok(out.stdout)
        },
    )
}

fn refusing(bed: &Bed, teller: &mut Teller<'_>, agent: &Robot) -> Result<()> {
    teller.step(
        &format!("ssh {DEPLOY}@{HOST_V4} 'echo cleaning up; sh -c \"rm orders.txt\"'"),
        "Every command inside a command is judged; what a rule denies never starts, nor does the rest of it.",
        || {
            let out = bed.ssh(agent, "echo cleaning up; sh -c \"rm orders.txt\"")?;
            ensure!(!out.success() && out.stderr.contains("interceptor:"), "no refusal: {out}");
            ensure!(!out.stdout.contains("cleaning up"), "a part of it ran: {out}");
            ensure!(bed.sshd()?.home(DEPLOY).join("orders.txt").exists(), "it was removed");
            Ok(format!("{}exit status {}", out.stderr, out.code.unwrap_or(-1)))
        },
    )
}

fn holding(bed: &Bed, teller: &mut Teller<'_>, agent: &Robot) -> Result<()> {
    teller.step(
        &format!("ssh {DEPLOY}@{HOST_V4} '{RELEASE}'"),
        "A risky command waits, its client stays; it runs when a human approves it.",
        || {
            let interceptor = bed.interceptor()?;
            let done = bed.sshd()?.home(DEPLOY).join("released");
            let mut ssh = bed.live_ssh(agent, &[], &[RELEASE])?;
            let id = interceptor.next_hold(SOON)?;
            let notice = ssh.expect(&id, SOON)?;
            ensure!(!done.exists(), "it ran before it was approved");
            let decided = interceptor.approve(&id)?.ok()?;
            let said = ssh.expect("released by hand", SOON)?;
            ensure!(done.exists(), "it was approved and did not run");
            Ok(format!(
                "agent:    {}\napprover: interceptor approvals approve {id}\n{decided}agent:    {}",
                notice.trim(),
                said.lines().last().unwrap_or_default()
            ))
        },
    )
}

fn fetching(bed: &Bed, teller: &mut Teller<'_>, agent: &Robot) -> Result<()> {
    teller.step(
        &format!("sftp {DEPLOY}@{HOST_V4}   -- get report.csv; put report.csv .ssh/authorized_keys"),
        "sftp is judged by operation and path, and recorded with the SHA-256 of what was transferred.",
        || {
            let cmd = agent.run("sftp").args(agent.words()).arg(agent.target());
            let mut sftp = Live::start(&bed.at(agent, cmd))?;
            sftp.send("get report.csv")?;
            wait_for("the download", SOON, || {
                let got = std::fs::read_to_string(agent.home.join("report.csv"));
                Ok(got.is_ok_and(|text| text.ends_with("3000\n")).then_some(()))
            })?;
            sftp.send("put report.csv .ssh/authorized_keys")?;
            sftp.expect("denied", SOON)?;
            let said = sftp.finish(SOON)?;
            let session = session_that(bed, "report.csv")?;
            let shown = bed.interceptor()?.session(&session)?.to_string();
            ensure!(shown.contains("sha256"), "no hash in the record:\n{shown}");
            Ok(said)
        },
    )
}

fn replaying(bed: &Bed, teller: &mut Teller<'_>) -> Result<()> {
    let interceptor = bed.interceptor()?;
    teller.step(
        "interceptor sessions replay",
        "A command is recorded as fully as a shell: what it was, the wait, who approved, what came out.",
        || {
            let id = session_that(bed, "touch released")?;
            let out = interceptor.cli(["sessions", "replay", &id, "--no-wait"]).ok()?;
            for fact in ["touch released", "00u-approver", "released by hand"] {
                ensure!(out.contains(fact), "{fact} is not in the replay:\n{out}");
            }
            Ok(out)
        },
    )?;
    teller.step(
        "the host's own log",
        "sshd names agent, principal and session at every login: an account of its own.",
        || {
            let log = bed.sshd()?.log();
            let sessions = interceptor.sessions()?;
            let id =
                sessions.iter().map(|s| text(s, &["id", "session"])).find(|id| log.contains(id));
            let id = id.context("sshd's log names no session")?;
            let line = log.lines().find(|l| l.contains(&id)).unwrap_or_default();
            ensure!(line.contains("alice@example.com"), "{line}");
            Ok(line.to_owned())
        },
    )
}

fn stealing(bed: &Bed, teller: &mut Teller<'_>) -> Result<()> {
    teller.step(
        "A stolen token that is bound to its agent's key",
        "In the certificate of another key it is worth nothing: TOKEN_PROOF_REQUIRED, before sshd hears of it.",
        || {
            let (owner, thief) = (bed.robot(DEPLOY)?, bed.robot(DEPLOY)?);
            let stolen = bed.token(&Claims::ssh().bound(&owner.key.thumbprint()?))?;
            let before = bed.sshd()?.accepted();
            let thief = thief.certified(&Certificate::good(DEPLOY, &stolen))?;
            let out = bed.ssh(&thief, "id")?;
            let said = super::refused(&out, "TOKEN_PROOF_REQUIRED")?;
            let after = bed.sshd()?.accepted();
            ensure!(before == after, "it reached sshd");
            Ok(said)
        },
    )
}

//! A host that joins a collector: decided and looked back at from there, told and checked.

use anyhow::{Context, Result, ensure};

use super::{SOON, Teller, session_that};
use crate::bed::Bed;
use crate::central::{self, Central, ORIGIN};
use crate::visitor::Visitor;

/// Everybody who can log in at the console.
pub const EVERYBODY: [(&str, &str, &[&str]); 3] = [
    ("00u-vera", "Vera Viewer", &["viewers"]),
    ("00u-ann", "Ann Approver", &["approvers"]),
    ("00u-ada", "Ada Admin", &["admins"]),
];

/// The statement that waits for the people at the console.
const UPDATE: &str = "UPDATE orders SET status = 'approved-at-the-console' WHERE id = 8;";

/// Tells the scene; the collector runs as long as what is given back.
pub fn tell(bed: &mut Bed, teller: &mut Teller<'_>) -> Result<Central> {
    let central = Central::start(bed, &EVERYBODY)?;
    joining(bed, teller, &central)?;
    deciding(bed, teller, &central)?;
    replaying(bed, teller, &central)?;
    teller.step(
        "interceptor sessions verify --collector",
        "What the host sealed stands in the collector's append-only log, unaltered.",
        || {
            let out = bed.interceptor()?.cli(["sessions", "verify", "--collector"]).ok()?;
            ensure!(out.contains("proved: the collector has what it acknowledged"), "{out}");
            Ok(out)
        },
    )?;
    // Whoever comes by with a browser chooses who they are.
    bed.net().inside(crate::net::Place::Host, || central.people.next(""))?;
    Ok(central)
}

fn joining(bed: &mut Bed, teller: &mut Teller<'_>, central: &Central) -> Result<()> {
    let earlier = session_that(bed, "approved-by-hand");
    teller.step(
        "interceptor collector enrol; interceptor ship enrol",
        "The host joins a collector with a code that is good once, and ships what it recorded so far.",
        || {
            central.join(bed, "db1")?;
            let mut vera = central.log_in(bed, "00u-vera")?;
            let path = format!("/sessions/{}", earlier?);
            central::until(bed, &mut vera, &path, "Seal ")?;
            let hosts = central.cli(&["hosts"])?.ok()?;
            ensure!(hosts.contains("db1"), "{hosts}");
            Ok(format!("{hosts}console: {ORIGIN}"))
        },
    )
}

fn deciding(bed: &Bed, teller: &mut Teller<'_>, central: &Central) -> Result<()> {
    teller.step(
        UPDATE,
        "A held statement is at the console at once; who logs in there as an approver reads it and decides.",
        || {
            let mut psql = bed.live_psql(&bed.login("app_rw")?)?;
            psql.send(UPDATE)?;
            let mut ann = central.log_in(bed, "00u-ann")?;
            let path = central::next_hold(bed, &mut ann)?;
            let seen = central::until(bed, &mut ann, &path, "approved-at-the-console")?;
            ensure!(seen.contains("00u-alice"), "the claims are not shown:\n{seen}");
            let form = [("decision", "approve"), ("reason", "checked with the shop")];
            let said = central::post(bed, &mut ann, &path, &form)?.text();
            ensure!(said.contains("Approved."), "{said}");
            psql.expect("UPDATE 1", SOON)?;
            central::until(bed, &mut ann, &path, "The host carried it out.")?;
            Ok(format!("approver: {ORIGIN}{path}\nagent:    UPDATE 1"))
        },
    )
}

fn replaying(bed: &Bed, teller: &mut Teller<'_>, central: &Central) -> Result<()> {
    teller.step(
        "The session at the console",
        "Statement, wait, who approved and why, answer; checked against the host's seal.",
        || {
            let mut vera = central.log_in(bed, "00u-vera")?;
            let id = seen_session(bed, &mut vera)?;
            for fact in ["UPDATE 1", "Ann Approver", "checked with the shop", "Unaltered"] {
                central::until(bed, &mut vera, &id, fact)?;
            }
            Ok(format!("{ORIGIN}{id}"))
        },
    )
}

/// The page of the session that asked.
fn seen_session(bed: &Bed, who: &mut Visitor) -> Result<String> {
    let search = "/sessions?q=approved-at-the-console";
    let list = central::until(bed, who, search, "class=\"hit\"")?;
    let id = list.split("class=\"t\"><a href=\"").nth(1).and_then(|t| t.split('"').next());
    Ok(id.context("a link to the session")?.to_owned())
}

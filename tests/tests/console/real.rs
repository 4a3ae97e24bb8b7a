//! A real host with its daemon, a real collector process, and people at its console: what waits
//! on the host is decided there, and what runs on it is ended there.

use std::time::Duration;

use anyhow::{Context, Result};
use interceptor_tests::accounts::ANALYST;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::central::{self, Central, ORIGIN};
use interceptor_tests::net::Place;
use interceptor_tests::story::session_that;
use interceptor_tests::visitor::{Answer, Visitor};
use interceptor_tests::{skip_unless_possible, skip_unless_ssh};
use serde_json::json;

use crate::browser::browser;
use crate::ground::nothing;

/// Long enough for a loaded machine; nothing waits for it to pass.
const SOON: Duration = Duration::from_secs(30);
const SQL: &str = "UPDATE orders SET status = 'touched' WHERE id = 11;";
const EVERYBODY: [(&str, &str, &[&str]); 3] = [
    ("00u-vera", "Vera Viewer", &["viewers"]),
    ("00u-ann", "Ann Approver", &["approvers"]),
    ("00u-ada", "Ada Admin", &["admins"]),
];

/// Everything on one host, in its network.
struct Real {
    central: Central,
    bed: Bed,
}

impl Real {
    fn start(mut spec: Spec) -> Result<Self> {
        spec.daemon.get_or_insert_default().start = false;
        let mut bed = Bed::with(spec)?;
        let central = Central::start(&bed, &EVERYBODY)?;
        central.join(&mut bed, "bed")?;
        Ok(Self { central, bed })
    }

    fn log_in(&self, id: &str) -> Result<Visitor> {
        self.central.log_in(&self.bed, id)
    }

    fn page(&self, who: &mut Visitor, path: &str) -> Result<Answer> {
        central::page(&self.bed, who, path)
    }

    fn post(&self, who: &mut Visitor, path: &str, form: &[(&str, &str)]) -> Result<Answer> {
        central::post(&self.bed, who, path, form)
    }

    fn until(&self, who: &mut Visitor, path: &str, words: &str) -> Result<String> {
        central::until(&self.bed, who, path, words)
    }

    fn next_hold(&self, who: &mut Visitor) -> Result<String> {
        central::next_hold(&self.bed, who)
    }

    /// The last words of both sides, for a failure.
    fn logs(&self) -> String {
        let tail = |log: String| {
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(30)..].join("\n")
        };
        let host = self.bed.interceptor().map(|i| i.log()).unwrap_or_default();
        format!("collector:\n{}\nhost:\n{}\n", tail(self.central.process.log()), tail(host))
    }

    fn touched(&self) -> Result<bool> {
        let status = self.bed.db().admin("SELECT status FROM orders WHERE id = 11")?;
        Ok(status.trim() == "touched")
    }
}

#[test]
fn people_at_the_console_decide_and_end_what_runs_on_a_host() -> Result<()> {
    skip_unless_possible!();
    if nothing() {
        return Ok(());
    }
    let real = Real::start(Spec::default())?;
    let mut psql = real.bed.live_psql(&real.bed.login("app_rw")?)?;
    psql.send(SQL)?;

    // A viewer sees that something waits, not what exactly, and decides nothing.
    let mut vera = real.log_in("00u-vera")?;
    let path = real.next_hold(&mut vera)?;
    let seen = real.page(&mut vera, &path)?.text();
    assert!(seen.contains("You cannot decide this") && !seen.contains("touched"), "{seen}");
    let refused = real.post(&mut vera, &path, &[("decision", "approve")])?;
    assert_eq!(refused.status, 403, "{}", refused.text());

    // An approver reads it, and denies it.
    let mut ann = real.log_in("00u-ann")?;
    let seen = real.until(&mut ann, &path, "touched")?;
    assert!(seen.contains("00u-alice"), "{seen}");
    let said = real.post(&mut ann, &path, &[("decision", "deny"), ("reason", "not today")])?;
    assert!(said.text().contains("Denied."), "{}", said.text());
    let told = psql.expect("not today", SOON);
    told.with_context(|| real.logs())?;
    assert!(!real.touched()?);

    // Asked again, it is approved, and runs.
    psql.send(SQL)?;
    let path = real.next_hold(&mut ann)?;
    real.until(&mut ann, &path, "name=\"decision\"")?;
    let said = real.post(&mut ann, &path, &[("decision", "approve"), ("reason", "checked")])?;
    assert!(said.text().contains("Approved."), "{}", said.text());
    psql.expect("UPDATE 1", SOON)?;
    assert!(real.touched()?);
    real.until(&mut ann, &path, "The host carried it out.")?;
    let list = real.page(&mut ann, "/approvals")?.text();
    assert!(list.contains("Nothing waits.") && list.contains("granted"), "{list}");

    // The session runs, says who decided, and is ended by an administrator.
    let list = real.until(&mut vera, "/sessions?q=touched&state=live", "class=\"hit\"")?;
    let id = list.split("class=\"t\"><a href=\"").nth(1).and_then(|t| t.split('"').next());
    let id = id.context("a session")?.to_owned();
    let seen = real.until(&mut vera, &id, "UPDATE 1")?;
    for words in
        ["Ann Approver (people/00u-ann) at the collector", "not today", "Following", "live"]
    {
        assert!(seen.contains(words), "{words}: {seen}");
    }
    let refused = real.post(&mut ann, &format!("{id}/kill"), &[("reason", "no")])?;
    assert_eq!(refused.status, 403, "{}", refused.text());
    let mut ada = real.log_in("00u-ada")?;
    let said = real.post(&mut ada, &format!("{id}/kill"), &[("reason", "runs wild")])?;
    assert!(said.text().contains("The host was told to end this session."), "{}", said.text());
    let ended = real.until(&mut vera, &id, "Seal ")?;
    for words in ["Unaltered", "killed", "runs wild", "00u-ada"] {
        assert!(ended.contains(words), "{words}: {ended}");
    }
    // psql reads only when it is given something to do.
    psql.send("SELECT 1;")?;
    psql.expect("KILLED", SOON)?;

    // The host is there, and says what it guards.
    let hosts = real.until(&mut vera, "/hosts", "1 of 1 up")?;
    assert!(hosts.contains("orders") && !hosts.contains("is not captured"), "{hosts}");
    Ok(())
}

#[test]
fn a_recorded_shell_plays_in_a_browser() -> Result<()> {
    skip_unless_ssh!();
    if nothing() {
        return Ok(());
    }
    let real = Real::start(Spec::ssh())?;
    let agent = real.bed.agent(ANALYST)?.with("TERM", "xterm");
    let mut ssh = real.bed.live_ssh(&agent, &["-tt"], &[])?;
    ssh.send("printf 'mark%s žluťoučký\\n' er-cast; exit")?;
    ssh.expect("marker-cast", SOON)?;
    ssh.finish(SOON)?;
    let id = session_that(&real.bed, "\"shell\"")?;
    let mut vera = real.log_in("00u-vera")?;
    let page = real.until(&mut vera, &format!("/sessions/{id}"), "Seal ")?;
    assert!(page.contains("marker-cast žluťoučký") && page.contains("Unaltered"), "{page}");
    let cast = real.page(&mut vera, &format!("/sessions/{id}/download/asciicast"))?;
    assert!(cast.text().contains("marker-cast žluťoučký"), "{}", cast.text());
    real.bed.net().inside(Place::Host, || real.central.people.next(""))?;
    let given = json!({
        "origin": ORIGIN, "who": "Vera Viewer", "terminal": id, "shows": "marker-cast žluťoučký",
    });
    if let Some(browser) = browser(given) {
        let said = browser.in_netns(&real.bed.net().name(Place::Host)).ok()?;
        assert!(said.contains("replayed a terminal") && said.contains("done"), "{said}");
    }
    Ok(())
}

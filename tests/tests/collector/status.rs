//! What an operator is told at 3 a.m.: `interceptor collector status` beside a real process.

use anyhow::{Context, Result};
use interceptor_tests::proc::{Output, wait_for};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::Value;

use super::{Collector, Host, SOON};

/// What it says, and its exit status. How full the disk of this machine is does not count.
fn status(collector: &Collector) -> Result<(Value, Vec<String>, Option<i32>)> {
    let out = collector.cli(["status", "--json"])?.run()?;
    let said: Value = serde_json::from_str(&out.stdout).with_context(|| out.to_string())?;
    let lines = said["needs_a_person"].as_array().context("no list")?.iter();
    let lines: Vec<String> = lines.filter_map(|l| l.as_str().map(str::to_owned)).collect();
    let full = lines.iter().any(|l| l.contains("DISK"));
    let lines: Vec<String> = lines.into_iter().filter(|l| !l.contains("DISK")).collect();
    let code = match out.code {
        Some(1) if full && lines.is_empty() => Some(0),
        code => code,
    };
    Ok((said, lines, code))
}

fn shown(collector: &Collector) -> Result<Output> {
    collector.cli(["status"])?.run()
}

#[test]
fn status_says_whether_somebody_is_needed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut collector = Collector::create(dir.path(), None)?;
    let mut host = Host::create(dir.path(), "writer", &collector.url)?;

    // Before it runs.
    let (said, lines, code) = status(&collector)?;
    assert_eq!((code, &said["running"]), (Some(3), &Value::Bool(false)), "{said}");
    assert!(lines[0].contains("NOTHING ANSWERS HOSTS"), "{lines:?}");
    let out = shown(&collector)?;
    assert_eq!(out.code, Some(3));
    assert!(out.stdout.contains("DOES NOT RUN") && !out.stdout.contains('\u{1b}'), "{out}");

    // A host that ships.
    collector.start()?;
    collector.enrol("writer", |args| host.cli(args.iter().copied())?.run())?;
    host.start(500)?;
    let (said, lines, code) = wait_for("everything to be there", SOON, || {
        let now = status(&collector)?;
        let there = now.0["log"]["size"].as_u64() > Some(0) && now.0["sessions"]["live"] == 0;
        Ok((there && now.0["hosts"]["up"] == 1 && now.0["hosts"]["behind"] == Value::Array(vec![]))
            .then_some(now))
    })?;
    assert_eq!((code, lines), (Some(0), Vec::new()), "{said}");
    assert_eq!(said["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(said["log"]["size"], said["log"]["signed"]);
    assert!(said["events"].as_u64() >= Some(500) && said["disk"]["used"].as_u64() > Some(0));
    let text = shown(&collector)?.stdout;
    for want in ["runs\n", "1 enrolled: 1 up, 0 away", "everything is kept", "authority    ends in"]
    {
        assert!(text.contains(want), "{want} in\n{text}");
    }

    // One that is let in no more is no alarm: somebody wanted that.
    collector.cli(["hosts", "revoke", "writer"])?.ok()?;
    let (said, lines, code) = status(&collector)?;
    assert_eq!((code, &lines), (Some(0), &Vec::new()), "{said}");
    assert_eq!((&said["hosts"]["revoked"], &said["hosts"]["enrolled"]), (&1.into(), &0.into()));
    host.kill();

    // Killed, the state is still told.
    collector.kill();
    let (said, _, code) = status(&collector)?;
    assert_eq!((code, &said["console"]["answers"]), (Some(3), &Value::Bool(false)));
    assert!(said["events"].as_u64() >= Some(500), "{said}");
    Ok(())
}

#[test]
fn status_looks_at_the_certificate_that_people_are_shown() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut collector = Collector::create(dir.path(), None)?;
    let (certificate, key) = (dir.path().join("console.pem"), dir.path().join("console.key"));
    let pair = KeyPair::generate()?;
    let make = |year| -> Result<()> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
        (params.not_before, params.not_after) =
            (date_time_ymd(2020, 1, 1), date_time_ymd(year, 1, 1));
        Ok(std::fs::write(&certificate, params.self_signed(&pair)?.pem())?)
    };
    make(2021)?;
    std::fs::write(&key, pair.serialize_pem())?;
    let config = std::fs::read_to_string(&collector.config)?.replace("http://", "https://");
    let tls = format!("tls = {{ certificate = {certificate:?}, key = {key:?} }}\n");
    std::fs::write(&collector.config, config + &tls)?;
    collector.start()?;
    let (said, lines, code) = wait_for("it to run", SOON, || {
        let now = status(&collector)?;
        Ok((now.0["running"] == true).then_some(now))
    })?;
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("console's certificate ENDED"), "{lines:?}");

    // Renewed in its file, the old one is still shown.
    make(2199)?;
    let (_, lines, _) = status(&collector)?;
    assert!(
        lines.iter().any(|l| l.contains("another certificate than is in its file")),
        "{lines:?}"
    );
    collector.kill();
    collector.start()?;
    wait_for("it to be well", SOON, || {
        let (_, lines, code) = status(&collector)?;
        Ok((code == Some(0) && lines.is_empty()).then_some(()))
    })?;

    // Without a state nothing is made by asking.
    std::fs::rename(dir.path().join("collector/state"), dir.path().join("aside"))?;
    let out = shown(&collector)?;
    assert_eq!(out.code, Some(3));
    assert!(out.stdout.contains("THE STATE CANNOT BE READ"), "{out}");
    assert!(!dir.path().join("collector/state").exists());
    Ok(())
}

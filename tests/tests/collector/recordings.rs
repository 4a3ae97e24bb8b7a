//! Large recordings beside a real process: what is moved reads as the host wrote it, whenever the
//! collector was killed, and the operator's commands say how it is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use interceptor::collector::{Collector as Opened, Config, Replica};
use interceptor::record::verify::{Options, verify};
use interceptor::record::{PublicKey, Reader};
use interceptor_tests::proc::wait_for;
use rand::Rng;
use serde_json::Value;

use super::{Collector, Host, SOON, sessions};

const EVENTS: u64 = 3_000;
const DATA: usize = 2_000;

fn status(collector: &Collector) -> Result<Value> {
    let out = collector.cli(["status", "--json"])?.run()?;
    serde_json::from_str(&out.stdout).with_context(|| out.to_string())
}

/// Objects below a directory.
fn objects(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut all = Vec::new();
    for path in entries.flatten().map(|e| e.path()) {
        match path.is_dir() {
            true => all.extend(objects(&path)),
            false => all.push(path),
        }
    }
    all.retain(|path| !path.ends_with("interceptor-recordings"));
    all
}

/// An event: place, body, attachment.
type Read = (u64, Vec<u8>, Vec<u8>);

/// All events of a session, with attachments.
fn events(reader: &Reader, number: u64) -> Result<Vec<Read>> {
    let mut all = Vec::new();
    reader.events(number, 0, |e| all.push((e.seq, e.body.to_owned(), e.data.to_owned())))?;
    Ok(all)
}

#[test]
fn whenever_it_is_killed_recordings_read_as_they_were_written() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let more = "[recordings]\nfrom = 20000\n";
    let mut collector = Collector::create_with(dir.path(), more, None)?;
    let mut host = Host::create(dir.path(), "writer", &collector.url)?;
    collector.start()?;
    collector.enrol("writer", |args| host.cli(args.iter().copied())?.run())?;
    assert_eq!(status(&collector)?["recordings"]["used"], false);
    host.start_with(EVENTS, DATA)?;
    let all = wait_for("everything to be shipped and sealed", SOON, || {
        let here = host.sessions()?;
        let Ok(replica) = collector.replica(&host.state()) else { return Ok(None) };
        let written: u64 = here.values().map(|(_, events)| events).sum();
        let log = status(&collector)?["log"]["size"].as_u64();
        let done = written >= EVENTS && sessions(&replica)? == here;
        Ok((done && log == Some(here.len() as u64)).then_some(here))
    })?;
    host.kill();

    // Each start looks at once for what is large; it is killed somewhere in the middle.
    for _ in 0..6 {
        collector.kill();
        collector.start()?;
        std::thread::sleep(Duration::from_millis(rand::rng().random_range(50..900)));
    }
    collector.kill();
    collector.start()?;
    let key = PublicKey::load(&host.state().join("host.pub"))?;
    let replica = Replica::directory(&collector.dir.join("state"), &key.fingerprint_hex());
    let large: Vec<u64> =
        all.iter().filter(|(_, (_, events))| *events > 12).map(|(n, _)| *n).collect();
    wait_for("all that is large to be moved", SOON, || {
        let reader = Reader::of_replica(&replica)?;
        let moved = large.iter().all(|n| reader.is_recording(*n).unwrap_or(false));
        Ok((moved && !reader.has_to_shed()?).then_some(()))
    })?;
    let folder = collector.dir.join("state/recordings");
    assert!(objects(&folder).len() >= large.len());

    // What an operator sees, once it answers.
    let said = wait_for("an answer", SOON, || {
        let said = status(&collector)?;
        Ok((said["running"] == true).then_some(said))
    })?;
    assert_eq!(
        (&said["recordings"]["answers"], &said["recordings"]["failing"]),
        (&true.into(), &false.into()),
        "{said}"
    );
    assert!(said["moved"]["bytes"].as_i64() > Some(0), "{said}");
    let text = collector.cli(["status"])?.run()?.stdout;
    assert!(text.contains(&format!("recordings   in {}, answers: ", folder.display())), "{text}");
    let out = collector.cli(["verify", "--recordings"])?.ok()?;
    assert!(out.contains("as they were put there"), "{out}");
    collector.kill();

    // Every event is what the host wrote, wherever its attachment is.
    let opened = Opened::open(Config::load(&collector.config)?)?;
    let reader =
        Reader::of_replica(&replica)?.with_objects(opened.recordings.of(&key.fingerprint_hex()));
    let here = host.reader()?;
    for number in all.keys() {
        let written = events(&here, *number)?;
        assert!(events(&reader, *number)? == written, "session {number}");
        assert!(written.iter().any(|(_, _, data)| data.len() == DATA) || !large.contains(number));
    }
    let report = verify(&reader, &Options::default())?;
    assert!(report.is_clean() && report.sessions == all.len() as u64, "{report:?}");

    // An altered object is found by name.
    let object = objects(&folder).remove(0);
    let mut bytes = std::fs::read(&object)?;
    bytes[0] ^= 1;
    std::fs::write(&object, &bytes)?;
    let out = collector.cli(["verify", "--recordings"])?.run()?;
    let name = object.file_name().context("no name")?.to_string_lossy().into_owned();
    assert_eq!(out.code, Some(1), "{out}");
    assert!(out.stdout.contains("RECORDING: ") && out.stdout.contains(&name), "{out}");
    let report = verify(&reader, &Options::default())?;
    assert!(report.findings.len() == 1 && report.findings[0].message.contains(&name), "{report:?}");

    // A folder that is not there any more is said first.
    std::fs::rename(&folder, dir.path().join("aside"))?;
    std::fs::create_dir(&folder)?;
    let said = status(&collector)?;
    assert!(said.to_string().contains("chmod 0700"), "{said}");
    Ok(())
}

//! What stands in the record of an SSH session, and that it cannot be changed unseen.

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::story::session_that;

use crate::{USER, all_ended};

#[test]
fn a_command_is_recorded_as_fully_as_a_shell() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    bed.ssh_in(&agent, "cat; echo to-err >&2; exit 5", "what-was-typed\n")?;
    all_ended(&bed)?;
    let id = session_that(&bed, "what-was-typed").or_else(|_| session_that(&bed, "to-err"))?;
    let interceptor = bed.interceptor()?;
    let shown = interceptor.session(&id)?.to_string();
    for fact in [
        "session.open",
        "identity.proven",
        "admission",
        "upstream.open",
        "channel.open",
        "request",
        "channel.data",
        "channel.exit",
        "channel.close",
        "session.end",
        "\"status\":5",
        "10.77.0.2",
        "reporter",
        "alice@example.com",
        "\"ssh\"",
    ] {
        assert!(shown.contains(fact), "{fact} is missing:\n{shown}");
    }
    let text = interceptor.cli(["sessions", "show", &id]).ok()?;
    assert!(text.contains("cat; echo to-err") && text.contains('5'), "{text}");
    let replay = interceptor.cli(["sessions", "replay", &id, "--no-wait"]).ok()?;
    for part in ["what-was-typed", "to-err"] {
        assert!(replay.contains(part), "{part} is not in the replay:\n{replay}");
    }
    let search = interceptor.cli(["sessions", "search", "to-err"]).ok()?;
    assert!(search.contains(&id), "{search}");
    interceptor.cli(["sessions", "verify"]).ok()?;
    let list = interceptor.cli(["sessions", "list"]).ok()?;
    assert!(list.contains(USER) && list.contains("host-ssh"), "{list}");
    Ok(())
}

#[test]
fn binary_data_stands_in_the_record_byte_for_byte() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let bytes: Vec<u8> = (0..=255_u8).cycle().take(100_000).collect();
    let digest = blake3::hash(&bytes).to_hex().to_string();
    assert_eq!(bed.ssh_in(&agent, "cat", bytes.clone())?.raw, bytes);
    all_ended(&bed)?;
    let shown = crate::session(&bed, "\"cat\"")?.to_string();
    // The same bytes went in and out.
    assert!(shown.matches(&digest).count() >= 2, "{shown:.3000}");
    Ok(())
}

#[test]
fn a_request_is_recorded_before_it_runs() -> Result<()> {
    skip_unless_ssh!();
    let mut bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let mut ssh = bed.live_ssh(&agent, &[], &["echo marker-before; cat"])?;
    ssh.expect("marker-before", crate::SOON)?;
    bed.interceptor_mut()?.kill();
    drop(ssh);
    bed.interceptor_mut()?.start()?;
    let shown = crate::session(&bed, "marker-before")?.to_string();
    assert!(shown.contains("interrupted"), "{shown}");
    bed.interceptor()?.cli(["sessions", "verify"]).ok()?;
    Ok(())
}

#[test]
fn what_is_kept_of_a_channel_is_bounded() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh().service(|s| s.tables = "record_bytes = 100000".into()))?;
    let agent = bed.agent(USER)?;
    bed.ssh(&agent, "head -c 30000000 /dev/urandom")?;
    all_ended(&bed)?;
    let out = interceptor_tests::proc::Cmd::new("du").args(["-sb"]).arg(bed.interceptor()?.state());
    let bytes: u64 = out.ok()?.split_whitespace().next().unwrap_or_default().parse()?;
    assert!(bytes < 12_000_000, "{bytes} bytes for 100,000 that were to be kept");
    let shown = crate::session(&bed, "urandom")?.to_string();
    assert!(shown.contains("30000000") && shown.contains("truncated"), "{shown:.3000}");
    Ok(())
}

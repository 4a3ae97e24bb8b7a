//! Large transfers, each beyond the gigabyte at which keys are exchanged anew.
//! `INTERCEPTOR_BULK_MIB` makes them smaller.

use anyhow::{Result, ensure};
// Nothing of this user is masked: what is measured and compared is the way.
use interceptor_tests::accounts::{ANALYST as USER, give, uid};
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::flow::{Source, bulk, download, upload};
use interceptor_tests::proc::Cmd;

use crate::{all_ended, session};

/// A bed with a large file, and its hash.
fn bed() -> Result<(Bed, String)> {
    let bed = Bed::with(Spec::ssh())?;
    let path = bed.sshd()?.home(USER).join("large");
    let hash = Source::new(bulk(), 17).write(&path)?;
    give(&path, uid(USER)?)?;
    Ok((bed, hash))
}

#[test]
fn a_large_file_arrives_whole_in_both_directions() -> Result<()> {
    skip_unless_ssh!();
    let (bed, hash) = bed()?;
    let agent = bed.agent(USER)?;
    let down = download(&bed.at(&agent, agent.ssh(["cat large"])))?;
    assert_eq!((down.bytes, &down.sha256), (bulk(), &hash), "down");
    let up = bed.at(&agent, agent.ssh(["sha256sum"]));
    let (up, said) = upload(&up, Source::new(bulk(), 23))?;
    assert!(said.starts_with(&up.sha256), "up: {said} is not {}", up.sha256);
    eprintln!("down {:.0} MiB/s, up {:.0} MiB/s", down.rate(), up.rate());
    // The record holds what was sent by length and hash, whatever was kept of it.
    all_ended(&bed)?;
    let shown = session(&bed, "cat large")?.to_string();
    let sum = Source::new(bulk(), 17).blake3();
    assert!(shown.contains(&sum) && shown.contains(&bulk().to_string()), "{shown:.3000}");
    let shown = session(&bed, "sha256sum")?.to_string();
    assert!(shown.contains(&Source::new(bulk(), 23).blake3()), "{shown:.3000}");
    Ok(())
}

#[test]
fn both_directions_at_once_over_one_channel() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    // `cat` gives back what it gets: both ways are full, and keys are exchanged under load.
    let cmd = bed.at(&agent, agent.ssh(["cat"]));
    let mut child = cmd.command();
    use std::process::Stdio;
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (mut stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let writer = std::thread::spawn(move || -> Result<()> {
        use std::io::Write;
        let mut source = Source::new(bulk(), 31);
        while let (Some(pipe), Some(piece)) = (stdin.as_mut(), source.next()) {
            pipe.write_all(piece)?;
        }
        Ok(())
    });
    let mut sum = Command::sha256(stdout)?;
    let hash = sum.finish()?;
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    ensure!(child.wait()?.success(), "ssh failed");
    assert_eq!(hash, Source::new(bulk(), 31).sha256());
    Ok(())
}

/// `sha256sum` fed from a pipe.
struct Command(std::process::Child);

impl Command {
    fn sha256(from: Option<std::process::ChildStdout>) -> Result<Self> {
        use std::process::Stdio;
        let stdin = from.map_or_else(Stdio::null, Stdio::from);
        let mut cmd = Cmd::new("sha256sum").command();
        Ok(Self(cmd.stdin(stdin).stdout(Stdio::piped()).spawn()?))
    }

    fn finish(&mut self) -> Result<String> {
        use std::io::Read;
        let mut text = String::new();
        if let Some(mut out) = self.0.stdout.take() {
            out.read_to_string(&mut text)?;
        }
        self.0.wait()?;
        Ok(text.chars().take(64).collect())
    }
}

#[test]
fn a_large_file_by_sftp_both_ways() -> Result<()> {
    skip_unless_ssh!();
    let (bed, hash) = bed()?;
    let agent = bed.agent(USER)?;
    let inbox = bed.sshd()?.home(USER).join("inbox");
    std::fs::create_dir(&inbox)?;
    give(&inbox, uid(USER)?)?;
    let cmd = agent.run("sftp").args(agent.words()).args(["-q", "-b", "-"]).arg(agent.target());
    let cmd = bed.at(&agent, cmd.stdin("get large\nput large inbox/back\n"));
    cmd.limit(std::time::Duration::from_secs(240)).ok()?;
    let sum = |path: std::path::PathBuf| Cmd::new("sha256sum").arg(path).ok();
    assert!(sum(agent.home.join("large"))?.starts_with(&hash), "get");
    assert!(sum(inbox.join("back"))?.starts_with(&hash), "put");
    all_ended(&bed)?;
    let shown = session(&bed, "file.done")?.to_string();
    assert!(shown.matches(&hash).count() >= 2, "{shown:.3000}");
    Ok(())
}

//! git over ssh: packs that hold valid card numbers are never changed on their way.

use std::path::PathBuf;

use anyhow::Result;
use interceptor_tests::accounts::ANALYST;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::live::Live;
use interceptor_tests::proc::{Cmd, Output};
use interceptor_tests::robot::Robot;

use crate::{SOON, USER, session};

/// A repository of some user whose files hold card numbers, stored so that the numbers stand
/// in the pack as they are.
fn repository(bed: &Bed, user: &str) -> Result<(PathBuf, String)> {
    let path = bed.sshd()?.home(user).join("cards.git");
    let work = bed.dir().join(format!("work-{user}"));
    std::fs::create_dir(&work)?;
    let git = |args: &[&str]| Cmd::new("git").args(["-C"]).arg(&work).args(args).ok();
    git(&["init", "-q", "-b", "main"])?;
    for n in 0..200_u64 {
        let text = format!("card {}\n", interceptor_tests::data::card(n * 7919 + 11));
        std::fs::write(work.join(format!("card{n}")), text)?;
    }
    let mut bytes = Vec::new();
    let mut source = interceptor_tests::flow::Source::new(1_500_000, 3);
    while let Some(piece) = source.next() {
        bytes.extend(piece);
    }
    std::fs::write(work.join("large"), bytes)?;
    git(&["add", "."])?;
    git(&["-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "-qm", "cards"])?;
    let head = git(&["rev-parse", "HEAD"])?.trim().to_owned();
    let clone = Cmd::new("git").args(["clone", "-q", "--bare"]).arg(&work).arg(&path);
    clone.ok()?;
    // Stored, not deflated: a number in a file is the same number in the pack.
    for (key, value) in [("core.compression", "0"), ("pack.compression", "0")] {
        Cmd::new("git").args(["-C"]).arg(&path).args(["config", key, value]).ok()?;
    }
    Cmd::new("git").args(["-C"]).arg(&path).args(["repack", "-qadF"]).ok()?;
    let uid = interceptor_tests::accounts::uid(user)?;
    Cmd::new("chown").args(["-R", &format!("{uid}:{uid}")]).arg(&path).ok()?;
    Ok((path, head))
}

fn url(agent: &Robot, path: &std::path::Path) -> String {
    format!("ssh://{}@{}{}", agent.user, agent.host, path.display())
}

fn clone(bed: &Bed, agent: &Robot, path: &std::path::Path) -> Result<Output> {
    agent.config("BatchMode yes\nStrictHostKeyChecking yes\n")?;
    let cmd = agent.run("git").args(["clone", "-q", &url(agent, path), "cloned"]);
    bed.at(agent, cmd).run()
}

#[test]
fn without_masks_a_clone_is_identical_and_pushes_back() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let (path, head) = repository(&bed, ANALYST)?;
    let agent = bed.agent(ANALYST)?;
    clone(&bed, &agent, &path)?.ok()?;
    let cloned = agent.home.join("cloned");
    let git =
        |args: &[&str]| bed.at(&agent, agent.run("git").arg("-C").arg(&cloned).args(args)).ok();
    assert_eq!(git(&["rev-parse", "HEAD"])?.trim(), head);
    git(&["fsck", "--full", "--strict"])?;
    let text = std::fs::read_to_string(cloned.join("card3"))?;
    assert!(text.contains(&interceptor_tests::data::card(3 * 7919 + 11)), "{text}");
    agent.write("cloned/new", "a new file\n")?;
    git(&["add", "."])?;
    git(&["-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "-qm", "new"])?;
    git(&["push", "-q", "origin", "HEAD:refs/heads/new"])?;
    let there = Cmd::new("git").args(["-c", "safe.directory=*", "-C"]).arg(&path);
    let there = there.args(["rev-parse", "refs/heads/new"]).ok()?;
    assert_eq!(there, git(&["rev-parse", "HEAD"])?);
    let shown = session(&bed, "git-upload-pack")?.to_string();
    assert!(shown.contains("allow"), "{shown:.2000}");
    Ok(())
}

/// Where card numbers are masked a pack cannot be: the clone waits for a human, and then it is
/// whole; or it is refused, and then there is nothing.
#[test]
fn where_masks_match_a_clone_is_held_and_never_changed() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let (path, head) = repository(&bed, USER)?;
    let agent = bed.agent(USER)?;
    agent.config("BatchMode yes\nStrictHostKeyChecking yes\n")?;
    let cmd = agent.run("git").args(["clone", "-q", &url(&agent, &path), "cloned"]);
    let mut git = Live::start(&bed.at(&agent, cmd))?;
    let id = bed.interceptor()?.next_hold(SOON)?;
    git.expect(&id, SOON)?;
    bed.interceptor()?.deny(&id)?.ok()?;
    let end = git.finish(SOON)?;
    assert!(end.contains("interceptor:") && !agent.home.join("cloned/card1").exists(), "{end}");

    let agent = bed.agent(USER)?;
    agent.config("BatchMode yes\nStrictHostKeyChecking yes\n")?;
    let cmd = agent.run("git").args(["clone", "-q", &url(&agent, &path), "cloned"]);
    let git = Live::start(&bed.at(&agent, cmd))?;
    let id = bed.interceptor()?.next_hold(SOON)?;
    bed.interceptor()?.approve(&id)?.ok()?;
    git.finish(SOON)?;
    let cmd = agent.run("git").args(["-C", "cloned", "rev-parse", "HEAD"]);
    assert_eq!(bed.at(&agent, cmd).ok()?.trim(), head);
    Ok(())
}

//! Files: every operation of sftp, both protocols of scp, rsync both ways.

use std::path::Path;

use anyhow::Result;
use interceptor_tests::accounts::{give, uid};
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::flow::Source;
use interceptor_tests::proc::{Cmd, Output};
use interceptor_tests::robot::Robot;

use crate::{USER, session};

/// Runs a batch of sftp commands; it stops at the first that fails unless that begins with `-`.
fn sftp(bed: &Bed, agent: &Robot, batch: &str) -> Result<Output> {
    let cmd = agent.run("sftp").args(agent.words()).args(["-b", "-"]).arg(agent.target());
    bed.at(agent, cmd.stdin(batch)).run()
}

fn scp(bed: &Bed, agent: &Robot, options: &[&str], from: &str, to: &str) -> Result<Output> {
    let cmd = agent.run("scp").args(agent.words()).args(options).args(["-q", from, to]);
    bed.at(agent, cmd).run()
}

/// A bed whose user has a box to write to and something to read.
fn bed() -> Result<(Bed, Robot)> {
    let bed = Bed::with(Spec::ssh())?;
    let sshd = bed.sshd()?;
    sshd.put(USER, "readme", "what stands in readme\n")?;
    for dir in ["inbox", ".ssh", "private"] {
        let path = sshd.home(USER).join(dir);
        std::fs::create_dir(&path)?;
        give(&path, uid(USER)?)?;
    }
    sshd.put(USER, "private/secret", "what stands in secret\n")?;
    let agent = bed.agent(USER)?;
    Ok((bed, agent))
}

fn read(bed: &Bed, name: &str) -> Result<String> {
    Ok(std::fs::read_to_string(bed.sshd()?.home(USER).join(name))?)
}

#[test]
fn every_operation_of_sftp_that_is_allowed_does_what_it_should() -> Result<()> {
    skip_unless_ssh!();
    let (bed, agent) = bed()?;
    agent.write("local", "what the agent sends\n")?;
    let batch = "pwd\nls -la\nget readme got\nput local inbox/new\nchmod 600 inbox/new\n\
                 rename inbox/new inbox/renamed\nln -s renamed inbox/link\nls -l inbox\n\
                 get inbox/link got2\nput -r outbox inbox\nget -r inbox fetched\n\
                 rm inbox/link\nln inbox/renamed inbox/hard\nrm inbox/renamed\nrmdir inbox/outbox/sub\n\
                 df\nls inbox\n";
    std::fs::create_dir_all(agent.home.join("outbox/sub"))?;
    for part in ["outbox", "outbox/sub"] {
        give(&agent.home.join(part), agent.uid)?;
    }
    let out = sftp(&bed, &agent, batch)?;
    assert!(out.success(), "{out}");
    assert_eq!(std::fs::read_to_string(agent.home.join("got"))?, "what stands in readme\n");
    assert_eq!(std::fs::read_to_string(agent.home.join("got2"))?, "what the agent sends\n");
    assert_eq!(read(&bed, "inbox/hard")?, "what the agent sends\n");
    assert!(agent.home.join("fetched/renamed").exists() && out.stdout.contains("readme"), "{out}");
    assert!(!bed.sshd()?.home(USER).join("inbox/outbox/sub").exists());
    let shown = session(&bed, "file.done")?.to_string();
    for fact in ["inbox/new", "readme", "sha256", "\"read\"", "\"write\""] {
        assert!(shown.contains(fact), "{fact} is missing:\n{shown:.6000}");
    }
    let digest = Cmd::new("sha256sum").stdin("what the agent sends\n").ok()?;
    assert!(shown.contains(&digest[..64]), "the hash of what was written is missing");
    Ok(())
}

#[test]
fn refused_paths_and_operations_stay_untouched_whatever_they_are_called() -> Result<()> {
    skip_unless_ssh!();
    let (bed, agent) = bed()?;
    agent.write("local", "evil\n")?;
    let home = bed.sshd()?.home(USER);
    let absolute = home.display();
    std::os::unix::fs::symlink(home.join(".ssh"), home.join("inbox/innocent"))?;
    std::os::unix::fs::symlink(home.join("private/secret"), home.join("inbox/harmless"))?;
    let cases = [
        "get private/secret x".to_owned(),
        "get inbox/../private/secret x".into(),
        format!("get {absolute}/private/secret x"),
        "get ./private//secret x".into(),
        "get inbox/harmless x".into(),
        "put local .ssh/authorized_keys".into(),
        "put local inbox/innocent/authorized_keys".into(),
        "put local inbox/../.ssh/authorized_keys".into(),
        format!("put local {absolute}/.ssh/authorized_keys"),
        "put local .bashrc".into(),
        "put local .profile".into(),
        "rename readme .ssh/authorized_keys".into(),
        "rename readme .bashrc".into(),
        "ln -s /etc/passwd .bashrc".into(),
        "ln readme .ssh/authorized_keys".into(),
        "rm readme".into(),
        "chmod 777 readme".into(),
        "mkdir .ssh/x".into(),
        "rmdir private".into(),
        "symlink /etc/shadow inbox/shadow".into(),
    ];
    for case in &cases {
        let out = sftp(&bed, &agent, &format!("{case}\n"))?;
        assert!(!out.success(), "{case}: it was let through: {out}");
        // The client's own words: "not found" where it could not even look.
        let words = out.stderr.to_lowercase();
        assert!(words.contains("denied") || words.contains("not found"), "{case}: {out}");
        // One refusal costs an operation, not the session.
        let out = sftp(&bed, &agent, &format!("-{case}\nget readme again\n"))?;
        assert!(out.success(), "after {case}: {out}");
    }
    assert_eq!(std::fs::read_dir(home.join(".ssh"))?.count(), 0);
    assert!(!home.join(".bashrc").exists() && !home.join(".profile").exists());
    assert_eq!(read(&bed, "readme")?, "what stands in readme\n");
    assert!(!agent.home.join("x").exists(), "a part of a refused file arrived");
    let shown = session(&bed, "authorized_keys")?.to_string();
    assert!(shown.contains("\"deny\""), "{shown}");
    Ok(())
}

#[test]
fn names_that_are_no_text_pass_or_are_refused_and_hurt_nobody() -> Result<()> {
    skip_unless_ssh!();
    use std::os::unix::ffi::OsStrExt;
    let (mut bed, agent) = bed()?;
    let odd = std::ffi::OsStr::from_bytes(b"inbox/odd-\xff\xfe");
    let path = bed.sshd()?.home(USER).join(odd);
    std::fs::write(&path, "odd")?;
    give(&path, uid(USER)?)?;
    let out = sftp(&bed, &agent, "ls -1 inbox\n")?;
    assert!(out.success(), "{out}");
    let batch = [b"get inbox/odd-\xff\xfe odd\n".to_vec(), b"ls\n".to_vec()].concat();
    let cmd = agent.run("sftp").args(agent.words()).args(["-b", "-"]).arg(agent.target());
    bed.at(&agent, cmd.stdin(batch)).run()?;
    for name in ["x".repeat(300), "a/".repeat(3000), "\u{202e}gnp".into(), "a\tb".into()] {
        sftp(&bed, &agent, &format!("-get \"inbox/{name}\" long\nls\n"))?;
    }
    assert!(bed.ssh(&agent, "true")?.success());
    bed.interceptor_mut()?.still_runs()
}

#[test]
fn scp_copies_both_ways_by_both_of_its_protocols() -> Result<()> {
    skip_unless_ssh!();
    let (bed, agent) = bed()?;
    let hash = Source::new(3_000_000, 5).write(&agent.home.join("large"))?;
    give(&agent.home.join("large"), agent.uid)?;
    let large = agent.home.join("large").display().to_string();
    let there = bed.sshd()?.home(USER).join("inbox");
    for (options, name) in [(&[][..], "by-sftp"), (&["-O"], "by-scp")] {
        let path = there.join(name);
        scp(&bed, &agent, options, &large, &agent.remote(&path))?.ok()?;
        assert_eq!(sum(&path)?, hash, "{name} there");
        let back = agent.home.join(format!("{name}-back")).display().to_string();
        scp(&bed, &agent, options, &agent.remote(&path), &back)?.ok()?;
        assert_eq!(sum(Path::new(&back))?, hash, "{name} back");
        // Directories, with their times.
        let recursive = [options, &["-r", "-p"]].concat();
        let all = agent.home.join(format!("{name}-all")).display().to_string();
        scp(&bed, &agent, &recursive, &agent.remote(&there), &all)?.ok()?;
        assert_eq!(sum(&Path::new(&all).join(name))?, hash);
        // Seen from the home directory, where sshd starts what it runs.
        let seen = format!("inbox/{name}-seen");
        scp(&bed, &agent, options, &large, &agent.remote(&seen))?.ok()?;
        assert_eq!(sum(&bed.sshd()?.home(USER).join(&seen))?, hash, "{seen}");
        // And what is refused.
        for (from, to) in [
            (large.clone(), agent.remote(".bashrc")),
            (large.clone(), agent.remote(".ssh/authorized_keys")),
            (agent.remote(there.join("../private/secret")), "secret".to_owned()),
            (large.clone(), agent.remote(there.join("../.ssh/authorized_keys"))),
            (large.clone(), agent.remote(bed.sshd()?.home(USER).join(".bashrc"))),
        ] {
            let out = scp(&bed, &agent, options, &from, &to)?;
            assert!(!out.success() && !out.stderr.is_empty(), "{name} {from} {to}: {out}");
        }
    }
    assert!(!agent.home.join("secret").exists());
    assert_eq!(std::fs::read_dir(bed.sshd()?.home(USER).join(".ssh"))?.count(), 0);
    assert!(!bed.sshd()?.home(USER).join(".bashrc").exists());
    let shown = session(&bed, "by-scp")?.to_string();
    assert!(shown.contains("scp"), "{shown:.3000}");
    Ok(())
}

#[test]
fn rsync_copies_both_ways() -> Result<()> {
    skip_unless_ssh!();
    if !interceptor_tests::bed::installed("rsync") {
        interceptor_tests::bed::skipped("no rsync: run `cargo xtask setup ssh`");
        return Ok(());
    }
    let (bed, agent) = bed()?;
    agent.config("BatchMode yes\nStrictHostKeyChecking yes\n")?;
    std::fs::create_dir(agent.home.join("tree"))?;
    for n in 0..50 {
        std::fs::write(agent.home.join(format!("tree/file{n}")), format!("file {n}\n").repeat(n))?;
    }
    let hash = Source::new(2_000_000, 6).write(&agent.home.join("tree/large"))?;
    Cmd::new("chown")
        .args(["-R", &format!("{0}:{0}", agent.uid)])
        .arg(agent.home.join("tree"))
        .ok()?;
    let there = bed.sshd()?.home(USER).join("inbox/tree");
    let rsync = |from: &str, to: &str| -> Result<Output> {
        bed.at(&agent, agent.run("rsync").args(["-rt", "--checksum", from, to])).run()
    };
    rsync("tree/", &agent.remote(&there))?.ok()?;
    assert_eq!(sum(&there.join("large"))?, hash);
    // Again with one file changed: only differences travel.
    std::fs::write(there.join("file7"), "changed there\n")?;
    rsync(&format!("{}/", agent.remote(&there)), "back")?.ok()?;
    assert_eq!(sum(&agent.home.join("back/large"))?, hash);
    assert_eq!(std::fs::read_to_string(agent.home.join("back/file7"))?, "changed there\n");
    let ssh = bed.sshd()?.home(USER).join(".ssh");
    let home = bed.sshd()?.home(USER);
    for to in [agent.remote(&ssh), agent.remote(&home), agent.remote("."), agent.remote("")] {
        let out = rsync("tree/", &to)?;
        assert!(!out.success() && out.stderr.contains("interceptor:"), "{to}: {out}");
    }
    rsync("tree/", &agent.remote("inbox/seen"))?.ok()?;
    assert_eq!(sum(&home.join("inbox/seen/large"))?, hash);
    // A link would lead what is sent next wherever it points.
    std::os::unix::fs::symlink("../../.ssh", agent.home.join("tree/way"))?;
    let archive = |options: &[&str]| -> Result<Output> {
        let to = agent.remote("inbox/seen");
        bed.at(&agent, agent.run("rsync").arg("-a").args(options).args(["tree/", &to])).run()
    };
    let out = archive(&[])?;
    assert!(!out.success() && out.stderr.contains("--no-links"), "{out}");
    assert!(!home.join("inbox/seen/way").exists());
    archive(&["--no-links"])?.ok()?;
    assert_eq!(std::fs::read_dir(ssh)?.count(), 0);
    let shown = session(&bed, "rsync --server")?.to_string();
    assert!(shown.contains("rsync"), "{shown:.2000}");
    Ok(())
}

/// A card number in a file that is copied: masking would break the protocol, and so the copy is
/// refused; what arrives is whole or nothing.
#[test]
fn what_masks_would_break_is_refused() -> Result<()> {
    skip_unless_ssh!();
    let (bed, agent) = bed()?;
    let dir = bed.sshd()?.home(USER).join("cards");
    std::fs::create_dir(&dir)?;
    give(&dir, uid(USER)?)?;
    let path = bed.sshd()?.put(USER, "cards/list", format!("card {}\n", crate::card()))?;
    for options in [&[][..], &["-O"]] {
        let out = scp(&bed, &agent, options, &agent.remote(&path), "list")?;
        assert!(!out.success() && !out.stderr.is_empty(), "{options:?}: {out}");
        assert!(!agent.home.join("list").exists(), "{options:?}: {out}");
    }
    let out = sftp(&bed, &agent, "get cards/list list\n")?;
    assert!(!out.success() && !agent.home.join("list").exists(), "{out}");
    Ok(())
}

/// Under a rule that lets everything be written, what makes a shell or sshd do something stays
/// as it is: that is what the base policy is for, wherever a home directory lies.
#[test]
fn the_base_policy_keeps_start_up_files_and_keys_as_they_are() -> Result<()> {
    skip_unless_ssh!();
    let all = "[[rule]]\nname = \"all-files\"\neffect = \"allow\"\n\
               request = [\"sftp\", \"scp\", \"rsync\", \"exec\"]\n";
    let bed = Bed::with(Spec::ssh().and_policy("all.toml", all))?;
    let agent = bed.agent(USER)?;
    let home = bed.sshd()?.home(USER);
    std::fs::create_dir(home.join(".ssh"))?;
    give(&home.join(".ssh"), uid(USER)?)?;
    agent.write("local", "evil\n")?;
    // The rule does what it says.
    sftp(&bed, &agent, "put local anywhere\n")?.ok()?;
    bed.ssh(&agent, "echo x > anything")?.ok()?;
    for name in [
        ".bashrc",
        ".profile",
        ".bash_profile",
        ".bash_login",
        ".bash_logout",
        ".ssh/authorized_keys",
        ".ssh/environment",
        ".ssh/rc",
        ".ssh/config",
        ".pam_environment",
    ] {
        for to in [name.to_owned(), format!("./{name}"), home.join(name).display().to_string()] {
            for options in [&[][..], &["-O"]] {
                let out = scp(&bed, &agent, options, "local", &agent.remote(&to))?;
                assert!(!out.success(), "scp {options:?} to {to}: {out}");
            }
            let out = bed.ssh(&agent, &format!("echo evil > {to}"))?;
            crate::assert_refused(&out);
            let out = bed.ssh(&agent, &format!("echo evil >> '{to}'"))?;
            crate::assert_refused(&out);
            let out = sftp(&bed, &agent, &format!("rename anywhere {to}\n"))?;
            assert!(!out.success(), "rename to {to}: {out}");
        }
        assert!(!home.join(name).exists(), "{name} was written");
    }
    // Nor by a directory that gets such a name, or a link that leads to one.
    sftp(&bed, &agent, "mkdir tree\nmkdir tree/systemd\nrename anywhere tree/file\n")?.ok()?;
    sftp(&bed, &agent, "rename tree/file tree/renamed\nln -s tree/renamed way\n")?.ok()?;
    for name in [".config", ".local", "bin", "go", ".vim", ".ssh", "hooks"] {
        for batch in [format!("rename tree {name}\n"), format!("ln -s tree {name}\n")] {
            let out = sftp(&bed, &agent, &batch)?;
            assert!(!out.success() && out.stderr.contains("denied"), "{batch}: {out}");
        }
    }
    for target in [".", "..", "/", ".ssh", ".config", "/etc", "bin"] {
        let out = sftp(&bed, &agent, &format!("ln -s {target} elsewhere\n"))?;
        assert!(!out.success() && out.stderr.contains("denied"), "{target}: {out}");
    }
    Ok(())
}

fn sum(path: &Path) -> Result<String> {
    let out = Cmd::new("sha256sum").arg(path).ok()?;
    Ok(out[..64].to_owned())
}

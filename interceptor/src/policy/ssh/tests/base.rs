//! What the shipped base makes of commands, under a rule that lets everything be run.

use super::{exec, judged, set};
use crate::policy::ssh::testing::Asked;
use crate::policy::ssh::{FileOp, Home, LoginShell, ShellAnalyzer, sftp};
use crate::policy::{Effect, PolicySet, Source, SshFacts};

const BASE: &str = include_str!("../../../../../policies/ssh-base.toml");
const ALL: &str = "[[rule]]\nname='all'\neffect='allow'\nrequest=['any','unknown']\nunseen=true\n";

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    about: String,
    #[serde(default)]
    pass: Vec<String>,
    #[serde(default)]
    deny: Vec<String>,
    /// Refused by the base alone, where nothing lets it through.
    #[serde(default)]
    refused: Vec<String>,
}

fn groups() -> Vec<Group> {
    #[derive(serde::Deserialize)]
    struct File {
        group: Vec<Group>,
    }
    toml::from_str::<File>(include_str!("../corpus/base.toml")).unwrap().group
}

fn home() -> Home {
    Home::new("/home/ops").unwrap()
}

/// The facts as the daemon finds them.
fn facts(analyzer: &ShellAnalyzer, command: &str, home: Option<&Home>) -> SshFacts {
    Asked::Exec(command.into(), LoginShell::Posix).facts(analyzer, home)
}

fn all() -> PolicySet {
    let source = |name: &str, text: &str| Source { name: name.into(), text: text.into() };
    PolicySet::from_sources(&[source("ssh-base.toml", BASE), source("all.toml", ALL)]).unwrap()
}

#[test]
fn every_command_of_the_base_corpus_has_its_verdict() {
    let (rules, bare, analyzer) = (all(), set(BASE), ShellAnalyzer::new(1));
    let (home, mut wrong, mut count) = (home(), Vec::new(), 0);
    for group in groups() {
        let lists = [
            (&rules, Effect::Allow, &group.pass),
            (&rules, Effect::Deny, &group.deny),
            (&bare, Effect::Deny, &group.refused),
        ];
        for (rules, expected, command) in
            lists.iter().flat_map(|(r, e, list)| list.iter().map(move |c| (*r, *e, c)))
        {
            count += 1;
            let facts = facts(&analyzer, command, Some(&home));
            let verdict = judged(rules, &facts);
            if verdict.effect != expected {
                wrong.push(format!(
                    "{}: {command:?} should be {expected}, is {} ({:?}; {:?})",
                    group.about, verdict.effect, verdict.rules, facts.files
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 180, "{count}");
}

/// Where the home directory is not known, or another one, nothing passes that should not.
#[test]
fn what_is_denied_stays_so_wherever_the_home_directory_is() {
    let (rules, analyzer) = (all(), ShellAnalyzer::new(1));
    for home in [None, Home::new("/srv/people/ops"), Home::new("/")] {
        for command in groups().iter().flat_map(|g| &g.deny).filter(|c| !c.contains("/home/ops")) {
            let facts = facts(&analyzer, command, home.as_ref());
            let verdict = judged(&rules, &facts);
            assert_eq!(verdict.effect, Effect::Deny, "{command:?} at {home:?}");
        }
    }
}

#[test]
fn names_that_scp_sends_later_are_judged_one_by_one() {
    let rules = all();
    for (path, effect) in [
        ("work/x", Effect::Allow),
        ("work/.bashrc", Effect::Deny),
        ("work/.ssh/x", Effect::Deny),
        (".bashrc", Effect::Deny),
        ("/home/ops/.local/bin/x", Effect::Deny),
        ("work/../x", Effect::Deny),
    ] {
        let mut facts = sftp(FileOp::Write, &[path.as_bytes()]);
        facts.at_home(&home());
        assert_eq!(judged(&rules, &facts).effect, effect, "{path}");
    }
}

/// Only who follows the names may say so: through a terminal, or in a longer command, they stay
/// unseen, and the directory counts for whatever may lie below.
#[test]
fn an_upload_that_nobody_follows_counts_for_all_below() {
    let rules = set(
        "[[rule]]\nname='a'\neffect='allow'\n[[rule]]\nname='d'\neffect='deny'\npaths='**/*.pem'",
    );
    let analyzer = ShellAnalyzer::new(1);
    let mut followed = exec("scp -t work");
    assert_eq!(judged(&rules, &followed).effect, Effect::Deny);
    followed.announce();
    assert_eq!(judged(&rules, &followed).effect, Effect::Allow);
    for command in ["scp -t work; ls", "scp -r -f work", "scp -t a b"] {
        let facts = facts(&analyzer, command, Some(&home()));
        assert_eq!(judged(&rules, &facts).effect, Effect::Deny, "{command}");
    }
}

/// A directory can get a name only after it was filled, and a link be followed later.
#[test]
fn trees_and_links_count_for_what_comes_along() {
    let rules = all();
    for (op, paths, effect) in [
        (FileOp::Rename, ["work/a", "work/b"], Effect::Allow),
        (FileOp::Rename, ["work/a", ".config/app"], Effect::Allow),
        (FileOp::Rename, ["work/a", ".config"], Effect::Deny),
        (FileOp::Rename, ["work/a", ".config/fish"], Effect::Deny),
        (FileOp::Rename, ["work/a", "bin"], Effect::Deny),
        (FileOp::Rename, ["work/a", ".vim"], Effect::Deny),
        (FileOp::Rename, ["work/a", "/home/ops/.local"], Effect::Deny),
        (FileOp::Rename, ["work/a", "/srv/x.git/hooks"], Effect::Deny),
        (FileOp::Link, ["work/current", "work/releases/12"], Effect::Allow),
        (FileOp::Link, ["work/a", "/home/ops"], Effect::Deny),
        (FileOp::Link, ["work/a", "/home"], Effect::Deny),
        (FileOp::Link, ["work/a", "/"], Effect::Deny),
        (FileOp::Link, ["work/a", "/home/ops/.config"], Effect::Deny),
        (FileOp::Link, ["bin", "work/a"], Effect::Deny),
    ] {
        let mut facts = sftp(op, &paths.map(str::as_bytes));
        facts.at_home(&home());
        assert_eq!(judged(&rules, &facts).effect, effect, "{op} {paths:?}");
    }
    // No rule need allow what may come along, and one about files anywhere does not fear it.
    let rules = set("[[rule]]\nname='a'\neffect='allow'\npaths=['/srv/a','/srv/b']\n\
         [[rule]]\nname='d'\neffect='deny'\npaths='**/*.pem'");
    let facts = sftp(FileOp::Rename, &[b"/srv/a", b"/srv/b"]);
    assert_eq!(judged(&rules, &facts).effect, Effect::Allow);
}

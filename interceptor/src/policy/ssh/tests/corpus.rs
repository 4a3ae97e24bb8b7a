//! Every line of `corpus/commands.toml` has its verdict.

use super::{exec, judged, set};
use crate::policy::{Effect, SshFacts, Verdict};

/// A group of the corpus.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    about: String,
    #[serde(default)]
    pub allow: Vec<String>,
    #[serde(default)]
    pub deny: Vec<String>,
    #[serde(default)]
    pub unseen: Vec<String>,
    #[serde(default)]
    pub refused: Vec<String>,
}

pub fn groups() -> Vec<Group> {
    #[derive(serde::Deserialize)]
    struct File {
        group: Vec<Group>,
    }
    toml::from_str::<File>(include_str!("../corpus/commands.toml")).unwrap().group
}

pub const POLICY: &str = include_str!("../corpus/policy.toml");

fn verdict_of(facts: &SshFacts, verdict: &Verdict) -> &'static str {
    let denied = verdict.rules.iter().any(|r| r.rule == "no-rm");
    match (verdict.effect, denied, &facts.unseen) {
        (Effect::Allow, ..) => "allow",
        (_, _, Some(_)) => "unseen",
        (_, true, _) => "deny",
        _ => "refused",
    }
}

#[test]
fn every_command_of_the_corpus_has_its_verdict() {
    let rules = set(POLICY);
    let mut wrong = Vec::new();
    let mut count = 0;
    for group in groups() {
        let lists = [
            ("allow", &group.allow),
            ("deny", &group.deny),
            ("unseen", &group.unseen),
            ("refused", &group.refused),
        ];
        for (expected, command) in
            lists.iter().flat_map(|(e, list)| list.iter().map(move |c| (*e, c)))
        {
            count += 1;
            let facts = exec(command);
            let verdict = judged(&rules, &facts);
            let is = verdict_of(&facts, &verdict);
            let denied = verdict.rules.iter().any(|r| r.rule == "no-rm");
            // Where rm was found behind something opaque, it counts as found.
            let fits = is == expected || (expected == "deny" && is == "unseen" && denied);
            if !fits {
                let why = verdict.rules.first().map_or("", |r| r.why.as_str());
                wrong.push(format!(
                    "{}: {command:?} should be {expected}, is {is} ({why}; {:?})",
                    group.about, facts.unseen
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 700, "{count}");
}

#[test]
fn what_is_unseen_is_never_let_through_by_rules_about_programs() {
    let rules = set(
        "[[rule]]\nname='all'\neffect='allow'\n[[rule]]\nname='p'\neffect='allow'\nprograms='*'",
    );
    for command in groups().iter().flat_map(|g| &g.unseen) {
        let facts = exec(command);
        assert_eq!(judged(&rules, &facts).effect, Effect::Deny, "{command:?}");
    }
}

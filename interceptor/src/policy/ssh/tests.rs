//! The corpus, and rules about SSH as operators write them.

mod attack;
mod base;
mod corpus;
mod real;
mod rules;

use std::sync::Arc;

use jiff::Timestamp;

use super::shell;
use crate::policy::testing::plain_agent;
use crate::policy::{Ask, PolicySet, Source, SshFacts, Subject, Verdict};

fn now() -> Timestamp {
    "2026-03-02T10:00:00Z".parse().unwrap()
}

fn subject() -> Subject {
    Subject {
        claims: None,
        agent: Some(Arc::new(plain_agent("helper", Default::default()))),
        service: "host-ssh".into(),
        database: String::new(),
        role: "ops".into(),
        source: "10.1.2.3".parse().unwrap(),
        client: None,
    }
}

fn set(text: &str) -> PolicySet {
    PolicySet::from_sources(&[Source { name: "p.toml".into(), text: text.into() }]).unwrap()
}

fn error(text: &str) -> String {
    PolicySet::from_sources(&[Source { name: "p.toml".into(), text: text.into() }])
        .unwrap_err()
        .to_string()
}

/// Reads a command on a stack deep enough for builds without optimisation.
fn exec(command: &str) -> SshFacts {
    let command = command.to_owned();
    std::thread::Builder::new()
        .stack_size(256 << 20)
        .spawn(move || shell::analyze(command.as_bytes(), None))
        .unwrap()
        .join()
        .unwrap()
}

fn judged(rules: &PolicySet, facts: &SshFacts) -> Verdict {
    rules.judge(&subject(), &Ask::Ssh(facts), now())
}

//! Rules as they stand in memory, checked and compiled.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use regex::Regex;

use super::central;
use super::condition::Condition;
use super::facts::{SqlFacts, StatementClass};
use super::pattern::{ColumnPattern, NamePattern, Pattern};
use super::ssh::SshMatchers;
use super::time::{Age, Window};
use super::verdict::{Effect, Limits, MaskRule};

/// What a rule is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum On {
    Request,
    Connect,
}

/// Of which protocol's requests a rule speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    Either,
    Sql,
    Ssh,
}

/// One rule.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub name: String,
    pub file: Arc<str>,
    pub line: usize,
    pub effect: Option<Effect>,
    pub on: On,
    pub message: Option<String>,
    pub limits: Limits,
    pub timeout: Option<Duration>,
    pub masks: Vec<Arc<MaskRule>>,
    pub when: Matchers,
    pub not: Matchers,
    pub about: About,
    /// Marks what it lets through as no text.
    pub binary: bool,
    /// It came from the centre, not from a file of this host.
    pub central: bool,
}

impl Rule {
    /// Whether it depends on the time or on a token's age.
    pub fn timed(&self) -> bool {
        [&self.when, &self.not].iter().any(|m| m.window.is_some() || m.age.is_some())
    }

    /// Whether it can let a request through, with or without a human. Nested actors never
    /// open a way, so a rule that looks at them cannot; nor can one from the centre about what
    /// this host's rules could not see into.
    pub fn can_cover(&self) -> bool {
        matches!(self.effect, Some(Effect::Allow | Effect::Hold))
            && self.when.actors.is_none()
            && !(self.central && central::is_opaque(self))
    }
}

/// What a rule looks at. Absent means it does not look.
#[derive(Debug, Clone, Default)]
pub(super) struct Matchers {
    pub service: Option<Vec<Pattern>>,
    pub database: Option<Vec<Pattern>>,
    pub role: Option<Vec<Pattern>>,
    pub agent: Option<Vec<Pattern>>,
    pub issuer: Option<Vec<Pattern>>,
    pub principal: Option<Vec<Pattern>>,
    pub labels: Vec<(String, Condition)>,
    pub claims: Vec<(String, Condition)>,
    pub actors: Option<Vec<Pattern>>,
    pub source: Option<Vec<IpNet>>,
    pub window: Option<Window>,
    pub age: Option<Age>,
    pub statement: Option<Classes>,
    pub commands: Option<Vec<Pattern>>,
    pub settings: Option<Vec<Pattern>>,
    pub tables: Option<Vec<NamePattern>>,
    pub reads: Option<Vec<NamePattern>>,
    pub writes: Option<Vec<NamePattern>>,
    pub columns: Option<Vec<ColumnPattern>>,
    pub functions: Option<Vec<NamePattern>>,
    pub without_where: Option<bool>,
    pub text: Option<Regex>,
    pub unseen: Option<bool>,
    pub ssh: SshMatchers,
}

impl Matchers {
    /// The first key that looks at the request rather than at who makes it.
    pub fn request_key(&self) -> Option<&'static str> {
        [
            ("statement", self.statement.is_some()),
            ("commands", self.commands.is_some()),
            ("settings", self.settings.is_some()),
            ("unseen", self.unseen.is_some()),
        ]
        .into_iter()
        .chain(self.content())
        .find(|(_, is)| *is)
        .map(|(key, _)| key)
        .or_else(|| self.ssh.key())
    }

    /// The first key that only SQL has.
    pub fn sql_key(&self) -> Option<&'static str> {
        let shared = |key: &str| key == "text";
        [("statement", self.statement.is_some())]
            .into_iter()
            .chain(self.content())
            .chain([("commands", self.commands.is_some()), ("settings", self.settings.is_some())])
            .find(|(key, is)| *is && !shared(key))
            .map(|(key, _)| key)
    }

    /// The first key that names tables, columns, commands or parameters.
    pub fn names_key(&self) -> Option<&'static str> {
        self.content_key().filter(|key| !matches!(*key, "without_where" | "text"))
    }

    /// The first key that looks at what cannot be known of an unseen request.
    pub fn content_key(&self) -> Option<&'static str> {
        self.content()
            .into_iter()
            .chain([("commands", self.commands.is_some()), ("settings", self.settings.is_some())])
            .find(|(_, is)| *is)
            .map(|(key, _)| key)
            .or_else(|| self.ssh.content_key())
    }

    fn content(&self) -> [(&'static str, bool); 7] {
        [
            ("tables", self.tables.is_some()),
            ("reads", self.reads.is_some()),
            ("writes", self.writes.is_some()),
            ("columns", self.columns.is_some()),
            ("functions", self.functions.is_some()),
            ("without_where", self.without_where.is_some()),
            ("text", self.text.is_some()),
        ]
    }
}

/// Bits of the classes that change rows.
pub(super) const DML: u32 = StatementClass::Insert.bit()
    | StatementClass::Update.bit()
    | StatementClass::Delete.bit()
    | StatementClass::Merge.bit();

/// Bits of the classes that a rule which allows must name: `any` does not mean them.
pub(super) const NAMED_ONLY: u32 = StatementClass::Fastpath.bit()
    | StatementClass::Replication.bit()
    | StatementClass::Unknown.bit();

const ALL: u32 = (1 << StatementClass::ALL.len()) - 1;

/// A set of statement classes with the groups `any`, `read` and `write`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Classes {
    pub bits: u32,
    pub any: bool,
    pub read: bool,
    pub write: bool,
}

impl Classes {
    pub const ANY: Self = Self { bits: 0, any: true, read: false, write: false };

    /// The classes of this request that a rule with this set means when it lets through: the
    /// narrow reading.
    pub fn covers(self, facts: &SqlFacts) -> u32 {
        let copies = |end: &str| {
            let mut ends = facts.commands.iter().filter(|c| c.starts_with("copy")).peekable();
            ends.peek().is_some() && ends.all(|c| c == end)
        };
        let mut bits = self.bits;
        if self.any {
            bits |= ALL & !NAMED_ONLY;
        }
        if self.write {
            bits |= DML;
            if copies("copy from stdin") {
                bits |= StatementClass::Copy.bit();
            }
        }
        if self.read {
            bits |= StatementClass::Select.bit();
            if facts.tables_written.is_empty() && copies("copy to stdout") {
                bits |= StatementClass::Copy.bit();
            }
        }
        bits
    }

    /// Whether a rule with this set fires when it holds or denies: the wide reading.
    pub fn touches(self, facts: &SqlFacts) -> bool {
        let request = facts.class_bits();
        let writes = DML | StatementClass::Ddl.bit();
        let reads = StatementClass::Select.bit() | StatementClass::Copy.bit();
        self.any
            || self.bits & request != 0
            || (self.write && (request & writes != 0 || !facts.tables_written.is_empty()))
            || (self.read && (request & reads != 0 || !facts.tables_read.is_empty()))
    }
}

//! Rules from the centre beside those of this host.
//!
//! Both sets judge together, as one. What makes that safe is that a rule which is added never
//! makes a verdict laxer than the rules that were there demand: what denies, holds, masks or
//! limits goes on doing so, and all that an allow can lift is `default-deny`. Five things would
//! break this, and none of them may come from the centre:
//!
//! * letting through what cannot be seen (`unseen = true`, shells, subsystems and their like):
//!   a deny of this host about what is in there would not see it either;
//! * calling whatever functions there are, since one may read any table: rules of the centre
//!   call those that reach nothing but their arguments, and others by their exact names;
//! * `binary = true`: masks of this host would not be applied to that output;
//! * a name or a number that is already taken: names are unique, and rules counted, within each
//!   of the two sets, so that neither can keep the other from being loaded;
//! * a place of honour: where both deny, hold or speak, this host's rule comes first.

use super::facts::{Name, SshClass, StatementClass};
use super::load::{PolicySet, Source};
use super::model::{Matchers, Rule};
use super::sql;
use super::text::{PolicyError, PolicyErrors};
use super::verdict::Effect;

/// What no deny of a host could see into, among statements.
const OPAQUE_SQL: u32 = StatementClass::Fastpath.bit()
    | StatementClass::Replication.bit()
    | StatementClass::Unknown.bit();

/// What no deny of a host could see into, among SSH requests.
const OPAQUE_SSH: u32 = SshClass::Shell.bit()
    | SshClass::Subsystem.bit()
    | SshClass::X11.bit()
    | SshClass::AgentForward.bit()
    | SshClass::Unknown.bit();

/// How files of a version from the centre are called in errors, verdicts and explanations.
pub fn source_name(version: u64, file: &str) -> String {
    format!("central:{version}/{file}")
}

impl PolicySet {
    /// Reads the files of the centre: all or nothing, by the same loader, and without what only
    /// files of the host itself may say.
    pub fn central(version: u64, sources: &[Source]) -> Result<Self, PolicyErrors> {
        let mut set = Self::from_sources(sources)?;
        let errors: Vec<PolicyError> = set.rules.iter().filter_map(refused).collect();
        if !errors.is_empty() {
            return Err(PolicyErrors(errors));
        }
        for rule in &mut set.rules {
            rule.central = true;
        }
        Ok(set.numbered(version))
    }

    /// Both sets as one. The rules of this host come first.
    #[must_use]
    pub fn with_central(&self, central: &Self) -> Self {
        let rules = self.rules.iter().chain(&central.rules).cloned().collect();
        let version = match central.central_version() {
            Some(number) => format!("{}+central.{number}", self.version()),
            None => self.version().to_owned(),
        };
        Self::joined(rules, version, central.central_version())
    }

    /// How many rules came from the centre.
    pub fn central_rules(&self) -> usize {
        self.rules.iter().filter(|r| r.central).count()
    }
}

/// Why a rule may not come from the centre.
fn refused(rule: &Rule) -> Option<PolicyError> {
    let fail = |key: &str, message: &str| {
        Some(PolicyError {
            file: rule.file.to_string(),
            line: rule.line,
            key: Some(format!("rule \"{}\", {key}", rule.name)),
            message: message.into(),
        })
    };
    if rule.binary {
        return fail(
            "binary",
            "only a host's own file may say this: its masks would not be applied to that output",
        );
    }
    if rule.effect != Some(Effect::Allow) {
        return None;
    }
    if rule.when.unseen == Some(true) {
        return fail(
            "unseen",
            "only a host's own file may let through what cannot be seen: no deny of that host \
             could see what is in it",
        );
    }
    opaque_class(rule).and_then(|(key, class)| {
        fail(
            key,
            &format!(
                "only a host's own file may let {class} through: no deny of that host could see \
                 what is in it"
            ),
        )
    })
}

/// A class that a rule names and nobody can see into.
fn opaque_class(rule: &Rule) -> Option<(&'static str, &'static str)> {
    let sql = rule.when.statement.map_or(0, |c| c.bits) & OPAQUE_SQL;
    let ssh = rule.when.ssh.request.map_or(0, |c| c.bits) & OPAQUE_SSH;
    let sql = StatementClass::ALL.into_iter().find(|c| sql & c.bit() != 0);
    let ssh = SshClass::ALL.into_iter().find(|c| ssh & c.bit() != 0);
    sql.map(|c| ("statement", c.as_str())).or_else(|| ssh.map(|c| ("request", c.as_str())))
}

/// Whether a rule speaks of what nobody can see into. From the centre it may hold or deny that,
/// and opens nothing.
pub(super) fn is_opaque(rule: &Rule) -> bool {
    rule.when.unseen == Some(true) || opaque_class(rule).is_some()
}

/// Whether a rule of the centre may let a function through that fits what it says: one that
/// reaches nothing but its arguments, or one that the rule names and that a deny can name too.
pub(super) fn may_call(m: &Matchers, name: &Name) -> bool {
    let named = || {
        let patterns = m.functions.iter().flatten();
        patterns.filter(|p| p.exact().is_some()).any(|p| p.must_match(name))
    };
    // What it sets is known as that of a SET is, and unseen where it is not.
    let sets = name.schema == "pg_catalog" && name.name == "set_config";
    sql::is_listed(name) || sets || named()
}

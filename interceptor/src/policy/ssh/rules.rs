//! What a rule says about SSH requests.

use super::facts::{FileOp, SshClass, SshFacts};
use super::pattern::{Below, DestinationPattern, PathPattern, ProgramPattern};
use crate::policy::pattern::Pattern;
use crate::policy::text::{Fields, Node, Read};

/// Classes that a rule which allows must name: `any` does not mean them.
pub(super) const NAMED_ONLY: u32 = SshClass::Shell.bit()
    | SshClass::Subsystem.bit()
    | SshClass::Forward.bit()
    | SshClass::RemoteForward.bit()
    | SshClass::X11.bit()
    | SshClass::AgentForward.bit()
    | SshClass::Unknown.bit();

const ALL: u32 = (1 << SshClass::ALL.len()) - 1;

/// A set of classes with the group `any`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::policy) struct SshClasses {
    pub bits: u32,
    pub any: bool,
}

impl SshClasses {
    pub const ANY: Self = Self { bits: 0, any: true };

    /// The classes that a rule with this set means when it lets through.
    pub const fn covers(self) -> u32 {
        if self.any { self.bits | (ALL & !NAMED_ONLY) } else { self.bits }
    }

    /// Whether a rule with this set fires when it holds or denies. scp and rsync are commands.
    pub fn touches(self, facts: &SshFacts) -> bool {
        let commands = SshClass::Scp.bit() | SshClass::Rsync.bit();
        let mut request = facts.class_bits();
        if request & commands != 0 {
            request |= SshClass::Exec.bit();
        }
        self.any || self.bits & request != 0
    }
}

/// What a rule looks at in an SSH request. Absent means it does not look.
#[derive(Debug, Clone, Default)]
pub(in crate::policy) struct SshMatchers {
    pub request: Option<SshClasses>,
    pub programs: Option<Vec<ProgramPattern>>,
    pub arguments: Option<Vec<Pattern>>,
    pub paths: Option<Vec<PathPattern>>,
    pub below: Below,
    pub operations: Option<u32>,
    pub destinations: Option<Vec<DestinationPattern>>,
    pub variables: Option<Vec<Pattern>>,
}

impl SshMatchers {
    pub fn read(fields: &Fields<'_>) -> Read<Self> {
        let full = |key: &str| match fields.get(key) {
            Some(node) if node.list().is_empty() => Err(node.err("an empty list matches nothing")),
            node => Ok(node),
        };
        Ok(Self {
            request: full("request")?.map(|n| classes(&n)).transpose()?,
            programs: full("programs")?.map(|n| n.each(ProgramPattern::new)).transpose()?,
            arguments: fields.get("arguments").map(|n| n.each(Pattern::new)).transpose()?,
            paths: full("paths")?.map(|n| n.each(PathPattern::new)).transpose()?,
            below: fields.get("below").map(|n| below(&n)).transpose()?.unwrap_or_default(),
            operations: full("operations")?.map(|n| operations(&n)).transpose()?,
            destinations: full("destinations")?
                .map(|n| n.each(DestinationPattern::new))
                .transpose()?,
            variables: full("variables")?.map(|n| n.each(Pattern::new)).transpose()?,
        })
    }

    /// The first key that is there.
    pub fn key(&self) -> Option<&'static str> {
        self.keys().first().copied()
    }

    /// The first key beside `request`.
    pub fn content_key(&self) -> Option<&'static str> {
        self.keys().into_iter().find(|key| *key != "request")
    }

    /// Whether it names programs.
    pub const fn names_programs(&self) -> bool {
        self.programs.is_some() || self.arguments.is_some()
    }

    /// Whether it names files.
    pub const fn names_files(&self) -> bool {
        self.paths.is_some() || self.operations.is_some()
    }

    /// The keys that are there.
    pub fn keys(&self) -> Vec<&'static str> {
        [
            ("request", self.request.is_some()),
            ("programs", self.programs.is_some()),
            ("arguments", self.arguments.is_some()),
            ("paths", self.paths.is_some()),
            ("operations", self.operations.is_some()),
            ("destinations", self.destinations.is_some()),
            ("variables", self.variables.is_some()),
        ]
        .into_iter()
        .filter_map(|(key, is)| is.then_some(key))
        .collect()
    }
}

fn classes(node: &Node<'_>) -> Read<SshClasses> {
    let mut classes = SshClasses::default();
    for item in node.list() {
        match item.str()? {
            "any" => classes.any = true,
            name => match SshClass::from_name(name) {
                Some(class) => classes.bits |= class.bit(),
                None => {
                    let known: Vec<_> = SshClass::ALL.iter().map(|c| c.as_str()).collect();
                    return Err(item.err(format!(
                        "{name:?} is no class of requests; known are any, {}",
                        known.join(", ")
                    )));
                }
            },
        }
    }
    Ok(classes)
}

fn below(node: &Node<'_>) -> Read<Below> {
    match node.str()? {
        "anywhere" => Ok(Below::Anywhere),
        "home" => Ok(Below::Home),
        _ => Err(node.err("\"anywhere\" or \"home\"")),
    }
}

fn operations(node: &Node<'_>) -> Read<u32> {
    let mut bits = 0;
    for item in node.list() {
        let name = item.str()?;
        match FileOp::from_name(name) {
            Some(op) => bits |= op.bit(),
            None => {
                let known: Vec<_> = FileOp::ALL.iter().map(|c| c.as_str()).collect();
                return Err(item.err(format!(
                    "{name:?} is no operation on files; known are {}",
                    known.join(", ")
                )));
            }
        }
    }
    Ok(bits)
}

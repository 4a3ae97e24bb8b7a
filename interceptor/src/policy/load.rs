//! Reading a directory of policies: all of it, or nothing.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::model::{On, Rule};
use super::rule;
use super::text::{self, Fields, PolicyError, PolicyErrors};

/// Largest policy file, in bytes.
pub const MAX_FILE: u64 = 1 << 20;
/// Most rules of a set.
pub const MAX_RULES: usize = 10_000;
/// Most files of a directory.
const MAX_FILES: usize = 1000;
/// Most errors told at once.
const MAX_ERRORS: usize = 20;

/// A loaded set of policies. Never changes: a reload makes another.
#[derive(Debug, Clone)]
pub struct PolicySet {
    pub(super) rules: Vec<Rule>,
    /// Indices by exact service name, and those for every other service.
    request: Index,
    connect: Index,
    version: String,
    central: Option<u64>,
}

#[derive(Debug, Clone, Default)]
struct Index {
    by_service: HashMap<String, Vec<u32>>,
    other: Vec<u32>,
}

impl Index {
    fn of(rules: &[Rule], on: On) -> Self {
        let mut index = Self::default();
        for rule in rules {
            for pattern in rule.when.service.iter().flatten() {
                if let Some(name) = pattern.exact() {
                    index.by_service.insert(name.to_owned(), Vec::new());
                }
            }
        }
        for (i, rule) in rules.iter().enumerate().filter(|(_, r)| r.on == on) {
            let Ok(i) = u32::try_from(i) else { break };
            let fits = |name: &str| {
                rule.when.service.as_ref().is_none_or(|s| s.iter().any(|p| p.matches(name)))
            };
            for (name, list) in &mut index.by_service {
                if fits(name) {
                    list.push(i);
                }
            }
            let exact_only =
                rule.when.service.as_ref().is_some_and(|s| s.iter().all(|p| p.exact().is_some()));
            if !exact_only {
                index.other.push(i);
            }
        }
        index
    }

    fn of_service(&self, service: &str) -> &[u32] {
        self.by_service.get(service).unwrap_or(&self.other)
    }
}

/// One file of a set, as text.
#[derive(Debug, Clone)]
pub struct Source {
    /// How errors and verdicts call it.
    pub name: String,
    /// What it says.
    pub text: String,
}

impl PolicySet {
    /// Reads every `*.toml` of a directory that is no test (`*.test.toml`).
    pub fn load(directory: &Path) -> Result<Self, PolicyErrors> {
        Self::from_sources(&read_directory(directory, |name| !name.ends_with(".test.toml"))?)
    }

    /// Reads files that are in memory already.
    pub fn from_sources(sources: &[Source]) -> Result<Self, PolicyErrors> {
        let mut rules = Vec::new();
        let mut errors = Vec::new();
        for source in sources {
            read_file(source, &mut rules, &mut errors);
            if rules.len() > MAX_RULES {
                let message = format!("more than {MAX_RULES} rules; join or drop some");
                errors.push(PolicyError { file: source.name.clone(), line: 0, key: None, message });
                break;
            }
        }
        duplicates(&rules, &mut errors);
        if !errors.is_empty() {
            errors.truncate(MAX_ERRORS);
            return Err(PolicyErrors(errors));
        }
        // Names are unique, so the order of files is forgotten here.
        rules.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self::joined(rules, version(sources), None))
    }

    /// A set of rules that were read.
    pub(super) fn joined(rules: Vec<Rule>, version: String, central: Option<u64>) -> Self {
        Self {
            request: Index::of(&rules, On::Request),
            connect: Index::of(&rules, On::Connect),
            version,
            central,
            rules,
        }
    }

    /// The same as a version of the centre.
    pub(super) fn numbered(self, version: u64) -> Self {
        Self { central: Some(version), ..self }
    }

    /// The version of the centre whose rules are in it.
    pub fn central_version(&self) -> Option<u64> {
        self.central
    }

    /// A short digest of what the files say.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is no rule, which denies everything.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether any rule depends on the time or on a token's age.
    pub fn is_time_bound(&self) -> bool {
        self.rules.iter().any(Rule::timed)
    }

    /// Whether any rule names tables, columns or functions, so that names must be resolved.
    pub fn names_tables(&self) -> bool {
        self.rules.iter().any(|r| {
            !r.masks.is_empty()
                || [&r.when, &r.not].iter().any(|m| {
                    m.tables.is_some()
                        || m.reads.is_some()
                        || m.writes.is_some()
                        || m.columns.is_some()
                        || m.functions.is_some()
                })
        })
    }

    /// Every table that a rule of this service names, as written: `customers`,
    /// `public.customers`, globs included.
    pub fn governed_tables(&self, service: &str) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for rule in self.rules_for(service, On::Request) {
            for m in [&rule.when, &rule.not] {
                for list in [&m.tables, &m.reads, &m.writes] {
                    names.extend(list.iter().flatten().map(|p| p.as_str().to_owned()));
                }
                names.extend(m.columns.iter().flatten().map(|c| c.table().as_str().to_owned()));
            }
            let masked = rule.masks.iter().flat_map(|m| &m.columns);
            names.extend(masked.map(|c| c.table().as_str().to_owned()));
        }
        names
    }

    pub(super) fn rules_for(&self, service: &str, on: On) -> impl Iterator<Item = &Rule> {
        let index = match on {
            On::Request => &self.request,
            On::Connect => &self.connect,
        };
        index.of_service(service).iter().filter_map(|i| self.rules.get(*i as usize))
    }
}

/// Reads the TOML files of a directory whose names fit, in order of name.
pub fn read_directory(
    directory: &Path,
    fits: impl Fn(&str) -> bool,
) -> Result<Vec<Source>, PolicyErrors> {
    let fail = |path: &Path, message: String| PolicyError {
        file: path.display().to_string(),
        line: 0,
        key: None,
        message,
    };
    let entries = std::fs::read_dir(directory)
        .map_err(|e| fail(directory, format!("cannot read the policy directory: {e}")))?;
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| fail(directory, e.to_string()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".toml") && !name.starts_with('.') && fits(&name) {
            paths.push(entry.path());
        }
    }
    if paths.len() > MAX_FILES {
        return Err(fail(directory, format!("more than {MAX_FILES} policy files")).into());
    }
    paths.sort();
    let mut sources = Vec::new();
    for path in paths {
        sources.push(read_source(&path)?);
    }
    Ok(sources)
}

/// Reads one file within bounds.
pub fn read_source(path: &Path) -> Result<Source, PolicyErrors> {
    use std::io::Read as _;
    let fail = |message: String| {
        PolicyErrors::from(PolicyError {
            file: path.display().to_string(),
            line: 0,
            key: None,
            message,
        })
    };
    let file = std::fs::File::open(path).map_err(|e| fail(format!("cannot read: {e}")))?;
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Err(fail("is not a regular file".into()));
    }
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|e| fail(e.to_string()))?;
    if text.len() as u64 > MAX_FILE {
        return Err(fail("larger than 1 MiB; split it".into()));
    }
    Ok(Source { name: path.display().to_string(), text })
}

fn read_file(source: &Source, rules: &mut Vec<Rule>, errors: &mut Vec<PolicyError>) {
    if source.text.len() as u64 > MAX_FILE {
        errors.push(text::fault(&source.name, "", None, None, "larger than 1 MiB; split it"));
        return;
    }
    let table = match text::parse(&source.name, &source.text) {
        Ok(table) => table,
        Err(error) => return errors.push(error),
    };
    let file: Arc<str> = source.name.as_str().into();
    let top = Fields::top(&source.name, &source.text, &table);
    if let Err(error) = top.known(&["rule"]) {
        return errors.push(error);
    }
    let Some(node) = top.get("rule") else { return };
    if node.kind() != "array" {
        return errors.push(node.err("write [[rule]] with two brackets"));
    }
    for item in node.list().into_iter().take(MAX_RULES + 1) {
        match item.table().and_then(|fields| rule::read(&file, fields)) {
            Ok(rule) => rules.push(rule),
            Err(error) => errors.push(error),
        }
    }
}

fn duplicates(rules: &[Rule], errors: &mut Vec<PolicyError>) {
    let mut seen: HashMap<&str, &Rule> = HashMap::new();
    for rule in rules {
        if let Some(first) = seen.insert(&rule.name, rule) {
            errors.push(PolicyError {
                file: rule.file.to_string(),
                line: rule.line,
                key: Some(format!("rule \"{}\"", rule.name)),
                message: format!("this name is taken by {}:{}; rename one", first.file, first.line),
            });
        }
    }
}

fn version(sources: &[Source]) -> String {
    let mut texts: Vec<&str> = sources.iter().map(|s| s.text.as_str()).collect();
    texts.sort_unstable();
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    hash.finalize().iter().take(6).fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

//! Looking at files before they are published: by the loader of hosts, with what only a host's
//! own files may say refused, and with the tests that stand beside them.

use std::path::Path;

use crate::policy::testing::{Outcome, SqlClassifier, TestFile};
use crate::policy::{PolicyErrors, PolicySet, Source, Warning, read_directory, read_source};
use crate::ship::bundle::{File, check_files};

const TEST: &str = ".test.toml";

/// Files as they were given: rules, and tests of them.
#[derive(Debug, Default)]
pub struct Given {
    /// Files with rules, in order.
    pub rules: Vec<Source>,
    /// Files with cases.
    pub tests: Vec<Source>,
}

/// Files that may be published.
#[derive(Debug)]
pub struct Checked {
    /// As they go into the bundle.
    pub files: Vec<File>,
    /// How many rules they have.
    pub rules: usize,
    /// How many cases passed.
    pub passed: usize,
    /// What is probably not meant.
    pub warnings: Vec<Warning>,
}

/// Why files are not published.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// They cannot make a bundle.
    #[error("{0}")]
    Files(String),
    /// They cannot be loaded.
    #[error(transparent)]
    Policies(#[from] PolicyErrors),
    /// Their tests fail.
    #[error("{}", told(.0))]
    Tests(Vec<Outcome>),
}

fn told(failed: &[Outcome]) -> String {
    let line = |o: &Outcome| {
        format!("{}:{}: {}: {}", o.file, o.line, o.name, o.failure.as_deref().unwrap_or_default())
    };
    failed.iter().take(20).map(line).collect::<Vec<_>>().join("\n")
}

impl Given {
    /// Reads files, and the files of directories.
    pub fn read(paths: &[impl AsRef<Path>]) -> Result<Self, PolicyErrors> {
        let mut given = Self::default();
        for path in paths {
            let path = path.as_ref();
            let found = match path.is_dir() {
                true => read_directory(path, |_| true)?,
                false => vec![read_source(path)?],
            };
            for source in found {
                given.add(source);
            }
        }
        Ok(given)
    }

    /// One file more, whose name says what it is.
    pub fn add(&mut self, source: Source) {
        let list = if source.name.ends_with(TEST) { &mut self.tests } else { &mut self.rules };
        list.push(source);
    }

    /// Loads them all and runs their tests: on the rules alone, or beside those of a host.
    pub fn check(&self, beside: Option<&PolicySet>) -> Result<Checked, CheckError> {
        let name = |s: &Source| {
            let base = Path::new(&s.name).file_name().unwrap_or_default();
            base.to_string_lossy().into_owned()
        };
        let files: Vec<File> =
            self.rules.iter().map(|s| File { name: name(s), text: s.text.clone() }).collect();
        check_files(&files).map_err(CheckError::Files)?;
        let central = PolicySet::central(0, &self.rules)?;
        let set = beside.map_or_else(|| central.clone(), |host| host.with_central(&central));
        let classifier = SqlClassifier::new();
        let mut outcomes = Vec::new();
        for test in &self.tests {
            outcomes.extend(TestFile::read(test)?.run(&set, &classifier));
        }
        let passed = outcomes.iter().filter(|o| o.failure.is_none()).count();
        let failed: Vec<Outcome> = outcomes.into_iter().filter(|o| o.failure.is_some()).collect();
        if !failed.is_empty() {
            return Err(CheckError::Tests(failed));
        }
        // That nobody is let in concerns a host's whole set.
        let mut warnings = central.warnings(&[], &[]);
        warnings.retain(|w| !w.rule.is_empty());
        Ok(Checked { files, rules: central.len(), passed, warnings })
    }
}

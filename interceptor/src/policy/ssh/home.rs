//! The home directory that relative paths and `~` are seen from.
//!
//! sshd starts every command there. Where it is not known, paths seen from it stay unknown; it is
//! never guessed for a rule that allows.

use serde::{Deserialize, Serialize};

use super::facts::Place;
use super::requests;

/// Longest path that the kernel takes, without its NUL.
const MAX_PATH: usize = 4095;

/// The home directory of the user a request runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Home {
    /// Absolute paths that all lead there; the first is what `~` stands for. Never empty.
    names: Vec<String>,
}

impl Home {
    /// The directory of that name; `None` when it is no plain absolute path.
    pub fn new(path: &str) -> Option<Self> {
        Some(Self { names: vec![plain(path)?] })
    }

    /// The same directory, known by another name too: without links.
    #[must_use]
    pub fn also(mut self, path: &str) -> Self {
        self.names.extend(plain(path).filter(|path| !self.names.contains(path)));
        self
    }

    /// What `~` stands for.
    pub fn path(&self) -> &str {
        self.names.first().map_or("/", String::as_str)
    }

    /// Every name of it.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The place without reference to a home directory.
    pub(super) fn settle(&self, place: Place) -> Place {
        // The whole may be another name of any file where the part below the home was none.
        let whole = |path: &str| requests::place(&join(self.path(), path));
        match place {
            Place::Home(path) => whole(&path),
            Place::UnderHome(path) => match whole(&path) {
                Place::At(path) => Place::Under(path),
                place => place,
            },
            place => place,
        }
    }

    /// What a path is called besides, where it lies in the home directory and that has several
    /// names.
    pub(super) fn other_names(&self, path: &str) -> Vec<String> {
        let within = self.names().filter_map(|name| Some((name, below(name, path)?)));
        within
            .flat_map(|(from, rest)| {
                self.names().filter(move |name| *name != from).map(move |name| join(name, rest))
            })
            .collect()
    }
}

/// An absolute path without parts that lead elsewhere.
fn plain(path: &str) -> Option<String> {
    if path.len() > MAX_PATH || path.chars().any(char::is_control) {
        return None;
    }
    match requests::place(path) {
        Place::At(path) => Some(path),
        _ => None,
    }
}

/// A path below a directory; an empty one is the directory itself.
pub(super) fn join(directory: &str, path: &str) -> String {
    match path {
        "" => directory.to_owned(),
        path => format!("{}/{path}", directory.trim_end_matches('/')),
    }
}

/// What of a path lies below a directory: empty for the directory itself, `None` outside.
pub(super) fn below<'p>(directory: &str, path: &'p str) -> Option<&'p str> {
    let rest = path.strip_prefix(directory.trim_end_matches('/'))?;
    match rest.strip_prefix('/') {
        Some(rest) => Some(rest),
        None => rest.is_empty().then_some(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_absolute_paths_are_homes() {
        for (path, is) in [
            ("/home/ops", Some("/home/ops")),
            ("/home/ops/", Some("/home/ops")),
            ("//srv//./ops", Some("/srv/ops")),
            ("/", Some("/")),
            ("", None),
            ("home/ops", None),
            ("/home/../ops", None),
            ("/proc/self/cwd", None),
            ("/home/o\nps", None),
        ] {
            assert_eq!(Home::new(path).as_ref().map(Home::path), is, "{path:?}");
        }
        assert_eq!(Home::new(&"/x".repeat(4000)), None);
    }

    #[test]
    fn places_seen_from_home_become_absolute() {
        let (home, root) = (Home::new("/home/ops").unwrap(), Home::new("/").unwrap());
        let at = |path: &str| Place::At(path.to_owned());
        assert_eq!(home.settle(Place::Home("a/b".into())), at("/home/ops/a/b"));
        assert_eq!(home.settle(Place::Home(String::new())), at("/home/ops"));
        assert_eq!(home.settle(Place::UnderHome("a".into())), Place::Under("/home/ops/a".into()));
        assert_eq!(root.settle(Place::Home("a".into())), at("/a"));
        assert_eq!(root.settle(Place::Home(String::new())), at("/"));
        assert_eq!(home.settle(Place::Unknown), Place::Unknown);
        let alias = "proc/self/root/etc/shadow";
        assert_eq!(root.settle(Place::Home(alias.into())), Place::Unknown);
        assert_eq!(root.settle(Place::UnderHome("dev/fd".into())), Place::Unknown);
    }

    #[test]
    fn a_path_in_a_linked_home_has_the_names_of_both() {
        let home = Home::new("/home/ops").unwrap().also("/data/ops");
        assert_eq!(home.other_names("/home/ops/secret/x"), ["/data/ops/secret/x"]);
        assert_eq!(home.other_names("/data/ops"), ["/home/ops"]);
        assert!(home.other_names("/home/opsx").is_empty());
    }

    #[test]
    fn what_is_below_is_told_from_what_only_begins_alike() {
        for (directory, path, is) in [
            ("/home/ops", "/home/ops/x", Some("x")),
            ("/home/ops", "/home/ops", Some("")),
            ("/home/ops", "/home/opsx", None),
            ("/home/ops", "/home", None),
            ("/", "/home", Some("home")),
            ("/", "/", Some("")),
        ] {
            assert_eq!(below(directory, path), is, "{directory} {path}");
        }
    }
}

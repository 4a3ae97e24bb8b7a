//! Which paths a name can mean, as far as the protocol tells.

/// Where the entries of one level lie.
#[derive(Debug)]
pub(super) struct Places {
    /// Of an upload the target; of a download what was asked for. As in the command.
    named: Vec<String>,
    upload: bool,
    /// The target must be a directory.
    directory: bool,
    /// What the directories that were entered can be, outermost first.
    entered: Vec<Vec<String>>,
}

/// Deepest directory that is followed.
const MAX_DEPTH: usize = 512;

impl Places {
    pub fn new(named: Vec<String>, upload: bool, directory: bool) -> Self {
        Self { named, upload, directory, entered: Vec::new() }
    }

    /// Directories that are entered.
    #[cfg(test)]
    pub fn depth(&self) -> usize {
        self.entered.len()
    }

    /// Every path that `name` can mean here, and whether it is known to be one of them.
    pub fn of(&self, name: &str) -> (Vec<String>, bool) {
        match self.entered.last() {
            Some(directories) => (directories.iter().map(|d| join(d, name)).collect(), true),
            None if self.upload => (self.targets(name), true),
            None => self.sources(name),
        }
    }

    /// The sink looks whether its target is a directory; we cannot.
    fn targets(&self, name: &str) -> Vec<String> {
        let itself = self.named.iter().filter(|_| !self.directory).cloned();
        itself.chain(self.named.iter().map(|target| join(target, name))).collect()
    }

    fn sources(&self, name: &str) -> (Vec<String>, bool) {
        let last = |path: &str| {
            let path = path.trim_end_matches('/');
            path.rsplit_once('/').map_or(path.to_owned(), |(_, last)| last.to_owned())
        };
        let same: Vec<_> = self.named.iter().filter(|path| last(path) == name).cloned().collect();
        if !same.is_empty() {
            return (same, true);
        }
        // The login shell may have made other names of what was asked for.
        let beside = |path: &String| match path.trim_end_matches('/').rsplit_once('/') {
            Some((directory, _)) => join(directory, name),
            None => name.to_owned(),
        };
        (self.named.iter().map(beside).collect(), false)
    }

    /// Enters a directory that can be `paths`; false if it is too deep.
    pub fn enter(&mut self, paths: Vec<String>) -> bool {
        self.entered.push(paths);
        self.entered.len() <= MAX_DEPTH
    }

    /// Leaves the directory; false if none was entered.
    pub fn leave(&mut self) -> bool {
        self.entered.pop().is_some()
    }
}

fn join(directory: &str, name: &str) -> String {
    match directory {
        "" => name.to_owned(),
        directory if directory.ends_with('/') => format!("{directory}{name}"),
        directory => format!("{directory}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_may_be_the_file_or_its_directory() {
        let places = Places::new(vec!["up".into()], true, false);
        assert_eq!(places.of("x"), (vec!["up".into(), "up/x".into()], true));
        let places = Places::new(vec!["/".into()], true, true);
        assert_eq!(places.of("x"), (vec!["/x".into()], true));
    }

    #[test]
    fn what_lies_in_a_directory_is_known() {
        let mut places = Places::new(vec!["up".into()], true, false);
        let (paths, _) = places.of("d");
        assert!(places.enter(paths));
        assert_eq!(places.of("x"), (vec!["up/x".into(), "up/d/x".into()], true));
        assert!(places.leave());
        assert!(!places.leave());
    }

    #[test]
    fn a_source_is_found_by_its_name() {
        let places =
            Places::new(vec!["/etc/hosts".into(), "a/".into(), "logs/*".into()], false, false);
        assert_eq!(places.of("hosts"), (vec!["/etc/hosts".into()], true));
        assert_eq!(places.of("a"), (vec!["a/".into()], true));
        let other = vec!["/etc/x".to_owned(), "x".into(), "logs/x".into()];
        assert_eq!(places.of("x"), (other, false));
    }
}

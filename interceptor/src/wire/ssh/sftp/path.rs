//! Paths as text: what may be one, and what is left of one when the server cannot resolve it.

/// Longest path that the kernel takes, without its NUL.
pub(super) const MAX_PATH: usize = 4095;

/// Says why `path` is refused, if it is.
pub(super) fn fault(path: &str) -> Option<&'static str> {
    if path.len() > MAX_PATH {
        return Some("interceptor: a path is longer than 4095 bytes");
    }
    path.contains('\0').then_some("interceptor: a path contains NUL")
}

/// Absolute and without `.`, `..` and empty parts, as far as that can be known without looking.
pub(super) fn clean(base: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let base = if path.starts_with('/') { "" } else { base };
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Parent and last part, for operations that do not follow a link in last place. `None` where
/// the last part is no name (`/`, `.`, `..`): the path must then be resolved in whole.
pub(super) fn split(path: &str) -> Option<(&str, &str)> {
    let trimmed = path.trim_end_matches('/');
    let (parent, last) = match trimmed.rfind('/') {
        Some(0) => ("/", &trimmed[1..]),
        Some(at) => (&trimmed[..at], &trimmed[at + 1..]),
        None => (".", trimmed),
    };
    (!matches!(last, "" | "." | "..")).then_some((parent, last))
}

/// `name` in the directory `parent`.
pub(super) fn join(parent: &str, name: &str) -> String {
    if parent.ends_with('/') { format!("{parent}{name}") } else { format!("{parent}/{name}") }
}

/// An empty path names the default directory (draft-ietf-secsh-filexfer-02, section 6.2).
pub(super) fn or_here(path: &str) -> &str {
    if path.is_empty() { "." } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_is_lexical_and_never_leaves_the_root() {
        assert_eq!(clean("/home/a", "x"), "/home/a/x");
        assert_eq!(clean("/home/a", "../../../../etc/./passwd"), "/etc/passwd");
        assert_eq!(clean("/home/a", "//etc//shadow/"), "/etc/shadow");
        assert_eq!(clean("/home/a", ""), "/home/a");
        assert_eq!(clean("/", "."), "/");
    }

    #[test]
    fn the_last_part_is_kept_only_if_it_is_a_name() {
        assert_eq!(split("/etc/passwd"), Some(("/etc", "passwd")));
        assert_eq!(split("a/b//"), Some(("a", "b")));
        assert_eq!(split("/a"), Some(("/", "a")));
        assert_eq!(split("a"), Some((".", "a")));
        for whole in ["", "/", ".", "..", "a/..", "a/./", "///"] {
            assert_eq!(split(whole), None, "{whole}");
        }
    }

    #[test]
    fn a_doubled_slash_stays_a_separator() {
        assert_eq!(split("a//b"), Some(("a/", "b")));
        assert_eq!(join("a/", "b"), "a/b");
        assert_eq!(join("/", "b"), "/b");
    }
}

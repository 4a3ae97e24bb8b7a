//! What a pg_hba.conf lets in beside the daemon, read the way the server reads it: the first
//! line that matches counts.

use std::path::Path;

use super::{Findings, Severity};

/// One line that admits somebody.
#[derive(Debug, PartialEq, Eq)]
pub struct Opening {
    /// Line number.
    pub line: usize,
    /// The line, spaces made single.
    pub text: String,
    /// Whether nothing at all is asked.
    pub trust: bool,
    /// Whether it is about the Unix socket.
    pub local: bool,
}

/// Lines that can still match and let in others than the daemon's map. Also says whether
/// there were includes, which are not followed.
pub fn openings(text: &str) -> (Vec<Opening>, bool) {
    let (mut open, mut includes) = (Vec::new(), false);
    // Set once a line has decided about every database and user of that kind.
    let (mut local_done, mut host_done) = (false, false);
    for (n, line) in text.replace("\\\n", " ").lines().enumerate() {
        let tokens = tokens(line);
        let Some(kind) = tokens.first() else { continue };
        if kind.starts_with("include") {
            includes = true;
            continue;
        }
        let local = kind == "local";
        if if local { local_done } else { host_done } {
            continue;
        }
        let method = if local {
            3
        } else if tokens.get(4).is_some_and(|t| t.parse::<std::net::IpAddr>().is_ok()) {
            5 // address and mask apart
        } else {
            4
        };
        let Some(name) = tokens.get(method) else { continue };
        let ours =
            local && name == "peer" && tokens[method..].iter().any(|t| t == "map=interceptor");
        if name != "reject" && !ours {
            let text = tokens.join(" ");
            open.push(Opening { line: n + 1, text, trust: name == "trust", local });
        }
        let everyone =
            tokens.get(1).is_some_and(|t| t == "all") && tokens.get(2).is_some_and(|t| t == "all");
        if everyone && local {
            local_done = true;
        } else if everyone && kind == "host" && tokens.get(3).is_some_and(|t| t == "all") {
            host_done = true;
        }
    }
    (open, includes)
}

/// Reports on a file.
pub fn check(path: &Path, service: &str, found: &mut Findings) {
    let shown = path.display();
    let Ok(text) = std::fs::read_to_string(path) else {
        found.add(
            Severity::Info,
            "pg-hba",
            format!("{service}: cannot read {shown}"),
            "who is let in through the Unix socket could not be checked",
            "run as root",
        );
        return;
    };
    let (open, includes) = openings(&text);
    for o in open.iter().filter(|o| o.local || o.trust) {
        let severity = match (o.local, o.trust) {
            (true, true) => Severity::Error,
            _ => Severity::Warning,
        };
        let means = match (o.local, o.trust) {
            (true, true) => {
                "any process on this host that can open the socket becomes any such role, past the daemon"
            }
            (true, false) => {
                "a local user with that login or password reaches the server past the daemon"
            }
            _ => {
                "exempt sources, and whoever reaches the port while it is not captured, get in without a password"
            }
        };
        found.add(
            severity,
            "pg-hba",
            format!("{service}: {shown} line {} admits: {}", o.line, o.text),
            means,
            if o.local {
                "run `interceptor setup postgres`"
            } else {
                "ask for scram-sha-256 in that line"
            },
        );
    }
    if includes {
        found.add(
            Severity::Info,
            "pg-hba",
            format!("{service}: {shown} includes other files"),
            "they were not looked at",
            "see `SELECT * FROM pg_hba_file_rules` in the server",
        );
    }
}

/// Tokens of a line: spaces separate, double quotes hold together, `#` ends.
fn tokens(line: &str) -> Vec<String> {
    let (mut all, mut token, mut quoted, mut some) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                some = true;
            }
            '#' if !quoted => break,
            c if c.is_whitespace() && !quoted => {
                if some {
                    all.push(std::mem::take(&mut token));
                    some = false;
                }
            }
            c => {
                token.push(c);
                some = true;
            }
        }
    }
    if some {
        all.push(token);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_can_still_match_count() {
        let cases: [(&str, &[usize]); 9] = [
            ("local all all peer map=interceptor\nlocal all all trust\n", &[]),
            ("local all postgres peer\nlocal all all peer map=interceptor", &[1]),
            ("# local all all trust\n\nlocal all all trust # why\n", &[3]),
            ("local replication all trust", &[1]),
            ("local all all reject\nlocal all all trust", &[]),
            ("local all all peer map=other", &[1]),
            ("host all all all reject\nhost all all 127.0.0.1/32 trust", &[]),
            (
                "host all all 127.0.0.1 255.255.255.255 trust\nhostssl all all ::1/128 scram-sha-256",
                &[1, 2],
            ),
            ("local \"all\" \"my user\" md5", &[1]),
        ];
        for (text, want) in cases {
            let got: Vec<_> = openings(text).0.iter().map(|o| o.line).collect();
            assert_eq!(got, want, "{text}");
        }
        assert!(openings("include_dir hba.d").1);
    }
}

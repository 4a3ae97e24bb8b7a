//! The name of a certificate, which sshd writes into its log: an audit line that is not ours.

use std::fmt::{self, Write as _};

/// Longest part kept of an agent's name, in bytes after escaping.
const AGENT: usize = 96;
/// Longest part kept of a subject. With the rest far below the line that sshd can log.
const SUBJECT: usize = 192;

/// `sess=<id> agent=<name> sub=<sub>`. Printable ASCII without blanks in the values, bounded, so
/// that no name can forge another field or cut the line of the log; what was cut ends in `~`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyId(String);

impl KeyId {
    /// For one session of one agent on behalf of one subject.
    pub fn new(session: &str, agent: &str, subject: &str) -> Self {
        Self(format!(
            "sess={} agent={} sub={}",
            plain(session, AGENT),
            plain(agent, AGENT),
            plain(subject, SUBJECT)
        ))
    }

    /// As it stands in the certificate.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Percent-encodes all that could be taken for something else, and bounds the length.
fn plain(value: &str, most: usize) -> String {
    let mut out = String::new();
    for byte in value.bytes() {
        let before = out.len();
        if byte.is_ascii_alphanumeric() || b"-._@:+|/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        if out.len() >= most {
            out.truncate(before);
            out.push('~');
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_stand_in_order() {
        let id = KeyId::new("01J9ZK", "billing-bot", "alice@example.com");
        assert_eq!(id.as_str(), "sess=01J9ZK agent=billing-bot sub=alice@example.com");
    }

    #[test]
    fn no_value_can_pose_as_another_field_or_break_the_log() {
        let id = KeyId::new("s", "a sub=root", "x\n\u{1b}[2J (serial 1) CA é=");
        assert_eq!(
            id.as_str(),
            "sess=s agent=a%20sub%3Droot sub=x%0A%1B%5B2J%20%28serial%201%29%20CA%20%C3%A9%3D"
        );
    }

    #[test]
    fn long_names_are_cut_and_say_so() {
        let id = KeyId::new("s", &"a".repeat(5000), &"é".repeat(5000));
        assert!(id.as_str().len() < 400, "{}", id.as_str().len());
        assert!(id.as_str().ends_with('~'));
        // An escape is never cut in two.
        let subject = id.as_str().split("sub=").nth(1).unwrap().trim_end_matches('~');
        assert_eq!(subject.len() % 3, 0);
    }
}

//! The ways on which a token reaches the daemon; the record says which one it was.

use std::fmt;

/// How a token came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// As the password: of PostgreSQL, or of SSH user authentication.
    Password,
    /// In answer to SSH's keyboard-interactive prompts.
    KeyboardInteractive,
    /// A one-time ticket in its place ([`crate::present`]).
    Ticket,
    /// In the extension [`super::CERTIFICATE_EXTENSION`] of a user certificate.
    Certificate,
    /// Presented beforehand, and recognised by the key it is bound to.
    PresentedKey,
    /// In an environment variable, after user authentication with a key registered for the agent.
    RegisteredKey,
}

impl Way {
    /// Every way.
    pub const ALL: &'static [Self] = &[
        Self::Password,
        Self::KeyboardInteractive,
        Self::Ticket,
        Self::Certificate,
        Self::PresentedKey,
        Self::RegisteredKey,
    ];

    /// The name that stands in the record; stable.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::KeyboardInteractive => "keyboard-interactive",
            Self::Ticket => "ticket",
            Self::Certificate => "certificate",
            Self::PresentedKey => "presented-key",
            Self::RegisteredKey => "registered-key",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_has_its_own_name() {
        let names: std::collections::BTreeSet<_> = Way::ALL.iter().map(|w| w.as_str()).collect();
        assert_eq!(names.len(), Way::ALL.len());
    }
}

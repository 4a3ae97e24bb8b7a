//! The kinds of regulated data the detectors know.

use serde::{Deserialize, Serialize};

/// A kind of regulated data, as rules name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Payment card numbers: issuer prefix, length and Luhn digit.
    Card,
    /// E-mail addresses.
    #[serde(rename = "e-mail", alias = "email")]
    Email,
    /// Telephone numbers that are written as such (`+`, parentheses, grouping).
    Phone,
    /// International bank account numbers: country length and mod-97.
    Iban,
    /// National identity and tax numbers, each with its own checksum or structure.
    NationalId,
    /// API keys, private keys and passwords in assignments.
    SecretKey,
    /// JSON web tokens.
    Jwt,
}

impl Kind {
    /// How many kinds there are.
    pub const COUNT: usize = 7;

    /// Every kind, in the order of [`Kind::index`].
    pub const ALL: [Self; Self::COUNT] = [
        Self::Card,
        Self::Email,
        Self::Phone,
        Self::Iban,
        Self::NationalId,
        Self::SecretKey,
        Self::Jwt,
    ];

    /// A dense index, for counters.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name rules and records use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Card => "card",
            Self::Email => "e-mail",
            Self::Phone => "phone",
            Self::Iban => "iban",
            Self::NationalId => "national-id",
            Self::SecretKey => "secret-key",
            Self::Jwt => "jwt",
        }
    }

    /// The kind of that name, as rules write it.
    pub fn from_name(name: &str) -> Option<Self> {
        if name == "email" {
            return Some(Self::Email);
        }
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_name_everywhere() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), index);
            assert_eq!(Kind::from_name(kind.as_str()), Some(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            let back: Kind = serde_json::from_value(kind.as_str().into()).unwrap();
            assert_eq!(back, kind);
        }
        assert_eq!(Kind::from_name("email"), Some(Kind::Email));
        assert_eq!(Kind::from_name("iris-scan"), None);
    }
}

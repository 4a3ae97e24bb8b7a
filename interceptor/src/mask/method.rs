//! How a value is masked, and which of two methods is the stricter.

use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// How a value is replaced. Stricter first: null, fixed, redact, hash, partial.
///
/// In TOML: `"null"`, `{ fixed = "x" }`, `"redact"`, `"hash"`,
/// `{ partial = { keep_start = 1, keep_end = 4 } }`, or `"partial"` for just that.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The value becomes SQL NULL (inside a longer text, nothing).
    Null,
    /// The value becomes this constant where the type can hold it, else NULL.
    Fixed(String),
    /// The value becomes `[redacted]` where the type can hold text, else NULL.
    Redact,
    /// The value becomes a keyed hash: equal values stay equal, the value is not computable.
    Hash,
    /// Some characters at both ends stay, never more than half.
    Partial {
        /// Characters kept at the start.
        keep_start: u8,
        /// Characters kept at the end.
        keep_end: u8,
    },
}

impl Method {
    /// What `"partial"` without numbers means.
    pub const DEFAULT_PARTIAL: Self = Self::Partial { keep_start: 1, keep_end: 4 };

    /// Position in the order of strictness; 0 is the strictest.
    const fn rank(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Fixed(_) => 1,
            Self::Redact => 2,
            Self::Hash => 3,
            Self::Partial { .. } => 4,
        }
    }

    /// The stricter of two methods, whichever comes first.
    ///
    /// Two partials keep what both keep. Two constants are equally strict; the
    /// lexicographically smaller one is taken, so that the order of rules never matters.
    pub fn stricter(a: Self, b: Self) -> Self {
        match (a, b) {
            (
                Self::Partial { keep_start: s1, keep_end: e1 },
                Self::Partial { keep_start: s2, keep_end: e2 },
            ) => Self::Partial { keep_start: s1.min(s2), keep_end: e1.min(e2) },
            (Self::Fixed(x), Self::Fixed(y)) => Self::Fixed(x.min(y)),
            (a, b) if a.rank() <= b.rank() => a,
            (_, b) => b,
        }
    }

    /// The name of the method without its parameters.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Fixed(_) => "fixed",
            Self::Redact => "redact",
            Self::Hash => "hash",
            Self::Partial { .. } => "partial",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The parameters of `partial` as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartialArgs {
    #[serde(default)]
    keep_start: u8,
    #[serde(default)]
    keep_end: u8,
}

const EXPECTED: &str = "\"null\", \"redact\", \"hash\", \"partial\", { fixed = \"...\" } or \
                        { partial = { keep_start = 1, keep_end = 4 } }";

struct MethodVisitor;

impl<'de> Visitor<'de> for MethodVisitor {
    type Value = Method;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a mask method: {EXPECTED}")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Method, E> {
        match name {
            "null" => Ok(Method::Null),
            "redact" => Ok(Method::Redact),
            "hash" => Ok(Method::Hash),
            "partial" => Ok(Method::DEFAULT_PARTIAL),
            "fixed" => Err(E::custom("method \"fixed\" needs its value: { fixed = \"...\" }")),
            other => Err(E::custom(format!("unknown mask method {other:?}; write {EXPECTED}"))),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Method, A::Error> {
        let name: String = map
            .next_key()?
            .ok_or_else(|| A::Error::custom(format!("empty mask method; write {EXPECTED}")))?;
        let method = match name.as_str() {
            "fixed" => Method::Fixed(map.next_value()?),
            "partial" => {
                let args: PartialArgs = map.next_value()?;
                Method::Partial { keep_start: args.keep_start, keep_end: args.keep_end }
            }
            other => {
                return Err(A::Error::custom(format!(
                    "unknown mask method {other:?}; write {EXPECTED}"
                )));
            }
        };
        match map.next_key::<String>()? {
            None => Ok(method),
            Some(extra) => Err(A::Error::custom(format!(
                "unexpected {extra:?} beside {name:?}; a mask has exactly one method"
            ))),
        }
    }
}

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MethodVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partial(keep_start: u8, keep_end: u8) -> Method {
        Method::Partial { keep_start, keep_end }
    }

    #[derive(Deserialize)]
    struct Holder {
        method: Method,
    }

    fn toml(text: &str) -> Result<Method, String> {
        toml::from_str::<Holder>(text).map(|h| h.method).map_err(|e| e.to_string())
    }

    #[test]
    fn toml_forms() {
        assert_eq!(toml("method = \"null\""), Ok(Method::Null));
        assert_eq!(toml("method = \"redact\""), Ok(Method::Redact));
        assert_eq!(toml("method = \"hash\""), Ok(Method::Hash));
        assert_eq!(toml("method = \"partial\""), Ok(partial(1, 4)));
        assert_eq!(toml("method = { fixed = \"x\" }"), Ok(Method::Fixed("x".into())));
        assert_eq!(toml("method = { partial = { keep_end = 4 } }"), Ok(partial(0, 4)));
        for (bad, says) in [
            ("method = \"fixed\"", "needs its value"),
            ("method = \"blur\"", "unknown mask method"),
            ("method = { blur = 1 }", "unknown mask method"),
            ("method = { fixed = \"x\", partial = {} }", "exactly one"),
            ("method = { partial = { keep = 3 } }", "unknown field"),
            ("method = {}", "empty mask method"),
            ("method = 3", "a mask method"),
        ] {
            let error = toml(bad).unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn json_round_trip() {
        for method in [
            Method::Null,
            Method::Fixed("a\"b".into()),
            Method::Redact,
            Method::Hash,
            partial(3, 2),
        ] {
            let text = serde_json::to_string(&method).unwrap();
            assert_eq!(serde_json::from_str::<Method>(&text).unwrap(), method, "{text}");
        }
    }

    #[test]
    fn the_stricter_wins_in_either_order() {
        let order = [
            Method::Null,
            Method::Fixed("x".into()),
            Method::Redact,
            Method::Hash,
            Method::DEFAULT_PARTIAL,
        ];
        for (i, a) in order.iter().enumerate() {
            for (j, b) in order.iter().enumerate() {
                assert_eq!(Method::stricter(a.clone(), b.clone()), order[i.min(j)]);
            }
        }
        assert_eq!(Method::stricter(partial(4, 0), partial(1, 4)), partial(1, 0));
        let (a, b) = (Method::Fixed("a".into()), Method::Fixed("b".into()));
        assert_eq!(Method::stricter(a.clone(), b.clone()), Method::stricter(b, a));
    }
}

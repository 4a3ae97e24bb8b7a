//! Conditions on one value: a claim or a label.

use regex::Regex;
use serde_json::Value;

use super::pattern::Pattern;
use super::text::{Node, Read};

/// Whether something holds. A claim that is absent is not a claim that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Truth {
    Yes,
    No,
    Unknown,
}

impl From<bool> for Truth {
    fn from(b: bool) -> Self {
        if b { Self::Yes } else { Self::No }
    }
}

/// Longest accepted regular expression, in bytes.
const MAX_REGEX: usize = 2048;
/// Largest compiled regular expression, in bytes.
const REGEX_SIZE: usize = 1 << 20;

/// A regular expression within bounds.
pub(super) fn regex(source: &str, whole: bool) -> Result<Regex, String> {
    if source.len() > MAX_REGEX {
        return Err(format!("a regular expression has at most {MAX_REGEX} bytes"));
    }
    let anchored;
    let pattern = if whole {
        // Checked alone first, so that `a)|(b` cannot climb out of the group.
        Regex::new(source).map_err(|e| flat(&e))?;
        anchored = format!(r"\A(?:{source})\z");
        anchored.as_str()
    } else {
        source
    };
    regex::RegexBuilder::new(pattern)
        .size_limit(REGEX_SIZE)
        .dfa_size_limit(REGEX_SIZE)
        .build()
        .map_err(|e| flat(&e))
}

fn flat(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default().trim().to_owned();
    format!("no regular expression: {}", last.trim_start_matches("error: "))
}

/// What a value must be.
#[derive(Debug, Clone, Default)]
pub(super) struct Condition {
    present: Option<bool>,
    any: Option<Vec<Value>>,
    glob: Option<Vec<Pattern>>,
    regex: Option<Regex>,
    bounds: Vec<(Bound, f64)>,
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    Gt,
    Ge,
    Lt,
    Le,
}

const KEYS: &[&str] = &["any", "glob", "regex", "gt", "ge", "lt", "le", "present"];

impl Condition {
    /// Reads a value, a list of values, or a table of conditions that must all hold.
    pub fn read(node: &Node<'_>) -> Read<Self> {
        let Ok(fields) = node.table() else {
            return Ok(Self { any: Some(scalars(node)?), ..Self::default() });
        };
        fields.known(KEYS)?;
        let mut condition = Self::default();
        let mut some = false;
        for (key, value) in fields.entries() {
            some = true;
            match key {
                "any" => condition.any = Some(scalars(&value)?),
                "glob" => condition.glob = Some(value.each(Pattern::new)?),
                "regex" => {
                    condition.regex = Some(regex(value.str()?, true).map_err(|e| value.err(e))?);
                }
                "present" => condition.present = Some(value.bool()?),
                bound => {
                    let limit = value.number().ok_or_else(|| value.err("a number"))?;
                    let bound = match bound {
                        "gt" => Bound::Gt,
                        "ge" => Bound::Ge,
                        "lt" => Bound::Lt,
                        _ => Bound::Le,
                    };
                    condition.bounds.push((bound, limit));
                }
            }
        }
        if !some {
            return Err(fields.err("an empty condition; write a value or { any = [...] }"));
        }
        let compares = condition.any.is_some()
            || condition.glob.is_some()
            || condition.regex.is_some()
            || !condition.bounds.is_empty();
        if condition.present == Some(false) && compares {
            return Err(fields.err("a value that is absent cannot be compared"));
        }
        Ok(condition)
    }

    /// Whether the value fits; of a list, any element.
    pub fn test(&self, value: Option<&Value>) -> Truth {
        let value = value.filter(|v| !v.is_null());
        if let Some(present) = self.present {
            if present != value.is_some() {
                return Truth::No;
            }
            if !present {
                return Truth::Yes;
            }
        }
        match value {
            None => Truth::Unknown,
            Some(Value::Array(items)) => {
                (self.only_presence() || items.iter().any(|v| self.fits(v))).into()
            }
            Some(value) => self.fits(value).into(),
        }
    }

    /// Whether a text fits.
    pub fn test_str(&self, value: Option<&str>) -> Truth {
        match value {
            None => self.test(None),
            Some(text) if self.present == Some(false) => {
                let _ = text;
                Truth::No
            }
            Some(text) => self.fits_str(text).into(),
        }
    }

    fn only_presence(&self) -> bool {
        self.any.is_none() && self.glob.is_none() && self.regex.is_none() && self.bounds.is_empty()
    }

    fn fits(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => self.fits_str(text),
            Value::Object(_) | Value::Array(_) => self.only_presence(),
            scalar => {
                self.glob.is_none()
                    && self.regex.is_none()
                    && self.any.as_ref().is_none_or(|any| any.iter().any(|a| same(a, scalar)))
                    && self.bounds.iter().all(|b| within(*b, scalar.as_f64()))
            }
        }
    }

    fn fits_str(&self, text: &str) -> bool {
        self.bounds.is_empty()
            && self.any.as_ref().is_none_or(|any| any.iter().any(|a| a.as_str() == Some(text)))
            && self.glob.as_ref().is_none_or(|globs| globs.iter().any(|g| g.matches(text)))
            && self.regex.as_ref().is_none_or(|r| r.is_match(text))
    }
}

fn scalars(node: &Node<'_>) -> Read<Vec<Value>> {
    let items = node.list();
    if items.is_empty() {
        return Err(node.err("an empty list matches nothing"));
    }
    items
        .iter()
        .map(|item| match item.json()? {
            value @ (Value::String(_) | Value::Number(_) | Value::Bool(_)) => Ok(value),
            _ => Err(item.err("a text, a number or true/false")),
        })
        .collect()
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        _ => a == b,
    }
}

fn within((bound, limit): (Bound, f64), value: Option<f64>) -> bool {
    value.is_some_and(|v| match bound {
        Bound::Gt => v > limit,
        Bound::Ge => v >= limit,
        Bound::Lt => v < limit,
        Bound::Le => v <= limit,
    })
}

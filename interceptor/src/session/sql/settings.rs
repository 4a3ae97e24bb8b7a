//! Settings that change how SQL is read or what names mean, and which of their values are
//! refused, whether they come by SET, by set_config or in the startup packet.
//!
//! A value that cannot be seen counts as the worst one.

use super::encoding::encoding_is_safe;
use super::{Denial, SetValue};

/// Settings on which the meaning of names depends.
const NAMING: &[&str] = &["search_path", "role", "session_authorization"];

/// Settings that change how SQL is read, which nothing may change.
pub(super) fn setting_denial(name: &str, value: &SetValue) -> Option<Denial> {
    let deny = |message: String| Some(unreadable_setting(message));
    let name = name.to_ascii_lowercase();
    if NAMING.contains(&name.as_str()) && matches!(value, SetValue::Unknown) {
        return deny(format!("the value that {name} will have cannot be seen"));
    }
    match name.as_str() {
        "standard_conforming_strings" | "backslash_quote" | "transform_null_equals" => {
            match set_text(value).map(str::to_ascii_lowercase).as_deref() {
                Some("on" | "true" | "yes" | "1") if name == "standard_conforming_strings" => None,
                Some("safe_encoding") if name == "backslash_quote" => None,
                Some("off" | "false" | "no" | "0") if name == "transform_null_equals" => None,
                _ => deny(format!("{name} changes how SQL is read")),
            }
        }
        "client_encoding" => match set_text(value) {
            Some(encoding) if encoding_is_safe(encoding) => None,
            Some(encoding) => {
                deny(format!("client_encoding {encoding} can hide ASCII in its bytes"))
            }
            None if matches!(value, SetValue::Default) => None,
            None => deny("the value that client_encoding will have cannot be seen".into()),
        },
        _ => None,
    }
}

pub(super) fn unreadable_setting(message: impl Into<String>) -> Denial {
    Denial::new("42501", "settings-that-change-how-sql-is-read", message)
}

/// The value of a SET with one constant.
pub fn set_text(value: &SetValue) -> Option<&str> {
    match value {
        SetValue::Values(values) => match values.as_slice() {
            [one] => Some(one),
            _ => None,
        },
        SetValue::Default | SetValue::Current | SetValue::Unknown => None,
    }
}

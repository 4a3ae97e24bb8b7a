//! One event as it is passed on: JSON of printable ASCII alone, so that no receiver, framing or
//! terminal can take any of its characters for something else.

use serde_json::{Value, json};

use crate::record::store::StoredEvent;
use crate::record::summary::Summary;

/// Texts are cut to these lengths in turn until an event fits.
const CUTS: [usize; 6] = [64 << 10, 16 << 10, 4 << 10, 1 << 10, 256, 64];

/// One event.
#[derive(Debug, Clone)]
pub struct Line {
    /// `metadata.uid`, the same each time it is delivered.
    pub uid: String,
    /// Name of its host.
    pub host: String,
    /// When it happened; microseconds since the Unix epoch.
    pub time_us: i64,
    /// OCSF `class_uid`.
    pub class: u32,
    /// OCSF `severity_id`.
    pub severity: u32,
    /// The OCSF event, without a line's end.
    pub text: String,
}

impl Line {
    /// Of an event, at most so long unless that leaves nothing to be cut.
    pub fn new(session: &Summary, e: &StoredEvent<'_>, value: Value, most: usize) -> Self {
        let number =
            |key: &str| value[key].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        Self {
            uid: format!("{}:{}", session.id, e.seq),
            host: session.host.clone(),
            time_us: e.ts_us,
            class: number("class_uid"),
            severity: number("severity_id"),
            text: text(value, most),
        }
    }
}

fn text(mut value: Value, most: usize) -> String {
    let mut text = ascii(&value);
    for cut in CUTS {
        if text.len() <= most {
            break;
        }
        shorten(&mut value, cut);
        value["unmapped"]["shortened"] = json!(true);
        text = ascii(&value);
    }
    if text.len() > most {
        text = ascii(&least(&value));
    }
    text
}

/// What is left of an event that no cut makes small enough: names of its members can be long or
/// many too. It says that it happened, and where.
fn least(value: &Value) -> Value {
    let mut kept = json!({ "unmapped": { "shortened": true } });
    for key in ["class_uid", "category_uid", "activity_id", "type_uid", "severity_id", "time"] {
        kept[key] = value[key].clone();
    }
    for key in ["uid", "version", "correlation_uid"] {
        kept["metadata"][key] = value["metadata"][key].clone();
    }
    kept
}

/// Cuts every text to so many bytes, and every list to a number of elements that goes with it.
fn shorten(value: &mut Value, most: usize) {
    match value {
        Value::String(text) if text.len() > most => {
            text.truncate(text.floor_char_boundary(most));
        }
        Value::Array(all) => {
            all.truncate((most / 16).max(4));
            all.iter_mut().for_each(|v| shorten(v, most));
        }
        Value::Object(all) => all.values_mut().for_each(|v| shorten(v, most)),
        _ => {}
    }
}

fn ascii(value: &Value) -> String {
    let text = value.to_string();
    if text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 64);
    for c in text.chars() {
        // Everything else stands inside a JSON string, where an escape says the same.
        if (' '..='~').contains(&c) {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_ascii_and_says_the_same() {
        let value = json!({ "a": "line\nfeed \u{7f} \u{202e}é 😀", "b": ["\u{1b}[2J"] });
        let line = text(value.clone(), 1 << 20);
        assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)), "{line}");
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), value);
    }

    #[test]
    fn what_no_cut_makes_small_still_says_that_it_happened() {
        let many: serde_json::Map<String, Value> =
            (0..9000).map(|n| (format!("{n:060}"), json!(1))).collect();
        let value =
            json!({ "class_uid": 6005, "time": 7, "metadata": { "uid": "s:1" }, "unmapped": many });
        let line: Value = serde_json::from_str(&text(value, 4096)).unwrap();
        assert_eq!((&line["class_uid"], &line["time"]), (&json!(6005), &json!(7)));
        assert_eq!(line["metadata"]["uid"], "s:1");
        assert_eq!(line["unmapped"]["shortened"], true);
    }

    #[test]
    fn what_is_too_long_is_shortened_and_says_so() {
        let value = json!({ "class_uid": 6005, "query_info": { "query_string": "é".repeat(200_000) },
            "unmapped": { "values": vec!["x".repeat(5000); 100], "n": 7 } });
        for most in [4 << 10, 64 << 10, 256 << 10] {
            let line = text(value.clone(), most);
            assert!(line.len() <= most, "{} of {most}", line.len());
            let back: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(back["unmapped"]["shortened"], true);
            assert_eq!(back["unmapped"]["n"], 7);
            assert!(back["query_info"]["query_string"].as_str().unwrap().starts_with("éé"));
        }
    }
}

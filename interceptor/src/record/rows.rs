//! Results as the agent saw them: the attachment of a `response`.
//!
//! It is a concatenation of PostgreSQL backend messages as they were sent (`T` RowDescription,
//! `D` DataRow, `C` CommandComplete, `d` CopyData, `N`, `E`, …), masked, cut after
//! `record.result_bytes` bytes, possibly inside a message. Decoding never fails: what cannot
//! be read ends the list with [`Message::Cut`].

use super::chain::hex;

/// A column of a RowDescription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Object id of its type.
    pub type_oid: u32,
    /// It came in binary form.
    pub binary: bool,
}

/// One decoded message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// What the following rows consist of.
    Columns(Vec<Column>),
    /// One row; `None` is null.
    Row(Vec<Option<Vec<u8>>>),
    /// Command tag.
    Complete(String),
    /// Data of a COPY towards the agent.
    Copy(Vec<u8>),
    /// Another message, by its type byte.
    Other(u8),
    /// The rest was not kept.
    Cut,
}

/// Decodes an attachment.
pub fn decode(mut data: &[u8]) -> Vec<Message> {
    let mut out = Vec::new();
    while let Some((kind, rest)) = data.split_first() {
        let body = rest.split_first_chunk::<4>().and_then(|(len, rest)| {
            let len = (u32::from_be_bytes(*len) as usize).checked_sub(4)?;
            rest.split_at_checked(len)
        });
        let Some((body, rest)) = body else {
            out.push(Message::Cut);
            break;
        };
        let Some(message) = one(*kind, body) else {
            out.push(Message::Cut);
            break;
        };
        out.push(message);
        data = rest;
    }
    out
}

fn one(kind: u8, body: &[u8]) -> Option<Message> {
    Some(match kind {
        b'T' => Message::Columns(columns(body)?),
        b'D' => Message::Row(row(body)?),
        b'C' => Message::Complete(text(body.strip_suffix(b"\0")?)),
        b'd' => Message::Copy(body.to_vec()),
        other => Message::Other(other),
    })
}

fn columns(body: &[u8]) -> Option<Vec<Column>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut out = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let end = rest.iter().position(|b| *b == 0)?;
        let name = text(&rest[..end]);
        let (fixed, after) = rest[end + 1..].split_first_chunk::<18>()?;
        let type_oid = u32::from_be_bytes([fixed[6], fixed[7], fixed[8], fixed[9]]);
        out.push(Column { name, type_oid, binary: fixed[17] == 1 });
        rest = after;
    }
    Some(out)
}

fn row(body: &[u8]) -> Option<Vec<Option<Vec<u8>>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut out = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (len, after) = rest.split_first_chunk::<4>()?;
        let len = i32::from_be_bytes(*len);
        if len < 0 {
            out.push(None);
            rest = after;
            continue;
        }
        let (value, after) = after.split_at_checked(len as usize)?;
        out.push(Some(value.to_vec()));
        rest = after;
    }
    Some(out)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A value as a person reads it; not yet safe for a terminal.
pub fn display(column: Option<&Column>, value: &[u8]) -> String {
    match column {
        Some(c) if c.binary => {
            binary(c.type_oid, value).unwrap_or_else(|| format!("\\x{}", hex(value)))
        }
        _ => text(value),
    }
}

fn binary(oid: u32, v: &[u8]) -> Option<String> {
    Some(match oid {
        16 => (if *v.first()? == 0 { "f" } else { "t" }).into(),
        20 => i64::from_be_bytes(v.try_into().ok()?).to_string(),
        21 => i16::from_be_bytes(v.try_into().ok()?).to_string(),
        23 => i32::from_be_bytes(v.try_into().ok()?).to_string(),
        26 => u32::from_be_bytes(v.try_into().ok()?).to_string(),
        700 => f32::from_be_bytes(v.try_into().ok()?).to_string(),
        701 => f64::from_be_bytes(v.try_into().ok()?).to_string(),
        18 | 19 | 25 | 114 | 142 | 705 | 1042 | 1043 => text(v),
        3802 => text(v.strip_prefix(&[1])?),
        1114 | 1184 => {
            let us = i64::from_be_bytes(v.try_into().ok()?).checked_add(946_684_800_000_000)?;
            jiff::Timestamp::from_microsecond(us).ok()?.to_string()
        }
        2950 => {
            let h = hex(v);
            (h.len() == 32)
                .then(|| [&h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..]].join("-"))?
        }
        _ => return None,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// `T`, `D` and `C` messages of a small result in text form.
    pub fn sample(names: &[&str], rows: &[&[Option<&str>]], tag: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let mut push = |kind: u8, body: &[u8]| {
            out.push(kind);
            out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
            out.extend_from_slice(body);
        };
        let mut t = (names.len() as u16).to_be_bytes().to_vec();
        for name in names {
            t.extend_from_slice(name.as_bytes());
            t.push(0);
            t.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 0xff, 0xff, 0, 0, 0, 0, 0, 0]);
        }
        push(b'T', &t);
        for row in rows {
            let mut d = (row.len() as u16).to_be_bytes().to_vec();
            for value in *row {
                match value {
                    None => d.extend_from_slice(&(-1i32).to_be_bytes()),
                    Some(v) => {
                        d.extend_from_slice(&(v.len() as i32).to_be_bytes());
                        d.extend_from_slice(v.as_bytes());
                    }
                }
            }
            push(b'D', &d);
        }
        push(b'C', format!("{tag}\0").as_bytes());
        out
    }

    #[test]
    fn results_come_back_and_cuts_are_noticed_wherever_they_fall() {
        let data = sample(&["id", "name"], &[&[Some("1"), None]], "SELECT 1");
        let all = decode(&data);
        assert_eq!(all.len(), 3);
        assert_eq!(all[1], Message::Row(vec![Some(b"1".to_vec()), None]));
        assert_eq!(all[2], Message::Complete("SELECT 1".into()));
        for cut in 1..data.len() {
            let some = decode(&data[..cut]);
            let whole = all.starts_with(&some);
            assert!(whole || some.last() == Some(&Message::Cut), "cut at {cut}: {some:?}");
        }
    }

    #[test]
    fn binary_values_are_readable() {
        let show = |oid, v: &[u8]| {
            display(Some(&Column { name: String::new(), type_oid: oid, binary: true }), v)
        };
        assert_eq!(show(23, &7i32.to_be_bytes()), "7");
        assert_eq!(show(23, b"xx"), "\\x7878");
        assert_eq!(show(16, &[1]), "t");
        assert_eq!(show(3802, b"\x01{}"), "{}");
        assert_eq!(show(1184, &0i64.to_be_bytes()), "2000-01-01T00:00:00Z");
        assert_eq!(show(2950, &[0; 16]), "00000000-0000-0000-0000-000000000000");
    }
}

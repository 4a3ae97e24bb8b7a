//! The tables of `collector.db`, row by row.

use rusqlite::types::Value;

use crate::collector::CollectorError;
use crate::collector::db::{self, Connection, params_from_iter};

use super::Step;

/// All of them. What is only in PostgreSQL is made by the import itself, or for the moment alone.
pub(super) const ALL: &[&str] = &[
    "hosts",
    "codes",
    "certificates",
    "sessions",
    "leaves",
    "nodes",
    "log_checkpoints",
    "successions",
    "holds",
    "votes",
    "viewed",
    "orders",
    "grants",
    "tokens",
    "logins",
    "pending_logins",
    "deliveries",
    "audit",
    "forwards",
    "forward_cursors",
    "legal_holds",
    "policy_versions",
    "host_policies",
    "retention",
    "recordings",
];
/// Tables that have rows in a database which nobody used yet, those of a running collector included:
/// what stands there gives way.
const BEGUN: &[&str] =
    &["retention", "recordings", "forwards", "forward_cursors", "logins", "pending_logins"];
/// Tables whose `id` the database draws.
const NUMBERED: &[&str] = &["hosts", "deliveries", "audit", "legal_holds"];
/// Values that go in one statement: a third of what the protocol has room for.
const VALUES: usize = 20_000;
/// Bytes of texts in one statement, but for the last row's.
const BYTES: usize = 8 << 20;

/// Whether a database that is empty has rows there.
pub(super) fn begins_with_rows(table: &str) -> bool {
    BEGUN.contains(&table)
}

/// Copies a table; how many rows it has.
pub(super) fn bring(
    old: &Connection,
    new: &Connection,
    table: &str,
    told: &mut dyn FnMut(Step<'_>),
) -> Result<u64, CollectorError> {
    copy(old, new, table, told).map_err(CollectorError::db("bring a table into [store]"))
}

fn copy(
    old: &Connection,
    new: &Connection,
    table: &str,
    told: &mut dyn FnMut(Step<'_>),
) -> db::Result<u64> {
    let Connection::Sqlite(old) = old else { return Err(db::Error::Contents) };
    if begins_with_rows(table) {
        new.execute(&format!("DELETE FROM {table}"), [])?;
    }
    let mut all = old.prepare(&format!("SELECT * FROM {table}"))?;
    let columns: Vec<String> = all.column_names().map(str::to_owned).collect();
    let most = (VALUES / columns.len().max(1)).max(1);
    let mut rows = all.query([])?;
    let (mut copied, mut values, mut bytes) = (0, Vec::new(), 0);
    while let Some(row) = rows.next()? {
        for column in 0..columns.len() {
            let value = row.get::<_, Value>(column)?;
            bytes += match &value {
                Value::Text(text) => text.len(),
                Value::Blob(blob) => blob.len(),
                _ => 0,
            };
            values.push(value);
        }
        copied += 1;
        if values.len() >= most * columns.len() || bytes >= BYTES {
            insert(new, table, &columns, &mut values)?;
            bytes = 0;
            told(Step::Table(table, copied));
        }
    }
    insert(new, table, &columns, &mut values)?;
    let there: i64 = new.query_row(&format!("SELECT count(*) FROM {table}"), [], |r| r.get(0))?;
    // Nothing but this transaction writes, so another number is not what was read.
    match u64::try_from(there) {
        Ok(there) if there == copied => Ok(copied),
        _ => Err(db::Error::Contents),
    }
}

/// Inserts rows; none is left over.
fn insert(
    new: &Connection,
    table: &str,
    columns: &[String],
    values: &mut Vec<Value>,
) -> db::Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    let width = columns.len();
    let rows: Vec<String> = (0..values.len() / width)
        .map(|row| {
            let places: Vec<String> =
                (1..=width).map(|c| format!("?{}", row * width + c)).collect();
            format!("({})", places.join(", "))
        })
        .collect();
    let statement =
        format!("INSERT INTO {table} ({}) VALUES {}", columns.join(", "), rows.join(", "));
    new.execute(&statement, params_from_iter(values.drain(..)))?;
    Ok(())
}

/// The next rows get numbers behind those that came.
pub(super) fn number_on(new: &Connection) -> Result<(), CollectorError> {
    for table in NUMBERED {
        let next = format!(
            "SELECT setval(pg_get_serial_sequence('{table}', 'id'), \
             (SELECT coalesce(max(id), 0) + 1 FROM {table}), false)"
        );
        new.query_row(&next, [], |r| r.get::<_, i64>(0))
            .map_err(CollectorError::db("number the rows of [store]"))?;
    }
    Ok(())
}

//! Results as tables of a page: what the agent saw, masked as it was.

use super::text::Shown;
use crate::record::rows::{self, Column, Message};

/// Most tables, rows, columns and characters of a cell that a page shows of one answer.
const TABLES: usize = 8;
const ROWS: usize = 50;
const COLUMNS: usize = 40;
const CELL: usize = 200;
/// Bytes of one answer after which no more rows are shown.
const ANSWER: usize = 256 << 10;
/// Bytes that a cell has beside its text.
const MARKUP: usize = 10;

/// One result.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Names of the columns.
    pub columns: Vec<Shown>,
    /// Cells; `None` is null.
    pub rows: Vec<Vec<Option<Shown>>>,
}

impl Table {
    /// Bytes that it has on a page, about.
    pub fn bytes(&self) -> usize {
        let columns = self.columns.iter().map(|name| MARKUP + name.bytes());
        columns.chain(self.rows.iter().map(|row| row_bytes(row))).sum()
    }

    /// All results of an attachment, and whether some of it is left out.
    pub fn all(data: &[u8]) -> (Vec<Self>, bool) {
        let mut tables: Vec<Self> = Vec::new();
        let mut columns: Vec<Column> = Vec::new();
        let (mut more, mut bytes) = (false, 0);
        for message in rows::decode(data) {
            if tables.len() >= TABLES {
                more = true;
                break;
            }
            match message {
                Message::Columns(c) => {
                    more |= c.len() > COLUMNS;
                    let names = c.iter().take(COLUMNS).map(|c| Shown::short(&c.name, CELL));
                    tables.push(Self { columns: names.collect(), rows: Vec::new() });
                    columns = c;
                }
                Message::Row(values) => {
                    if tables.is_empty() {
                        tables.push(Self::default());
                    }
                    let Some(table) = tables.last_mut() else { continue };
                    if table.rows.len() < ROWS && bytes < ANSWER {
                        let row = row(&columns, &values);
                        bytes += row_bytes(&row);
                        table.rows.push(row);
                    } else {
                        more = true;
                    }
                }
                Message::Cut => more = true,
                Message::Complete(_) => columns.clear(),
                Message::Copy(_) | Message::Other(_) => {}
            }
        }
        tables.retain(|t| !t.columns.is_empty() || !t.rows.is_empty());
        (tables, more)
    }
}

fn row_bytes(row: &[Option<Shown>]) -> usize {
    row.iter().map(|cell| MARKUP + cell.as_ref().map_or(0, Shown::bytes)).sum()
}

fn row(columns: &[Column], values: &[Option<Vec<u8>>]) -> Vec<Option<Shown>> {
    let cell = |(i, value): (usize, &Option<Vec<u8>>)| {
        let text = rows::display(columns.get(i), value.as_deref()?);
        Some(Shown::short(&text, CELL))
    };
    values.iter().take(COLUMNS).enumerate().map(cell).collect()
}

//! Results as tables of a page: what the agent saw, masked as it was.

use super::text::Shown;
use crate::record::rows::{self, Column, Message};

/// Most tables, rows, columns and characters of a cell that a page shows of one answer.
const TABLES: usize = 8;
const ROWS: usize = 50;
const COLUMNS: usize = 40;
const CELL: usize = 200;

/// One result.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Names of the columns.
    pub columns: Vec<Shown>,
    /// Cells; `None` is null.
    pub rows: Vec<Vec<Option<Shown>>>,
}

impl Table {
    /// All results of an attachment, and whether some of it is left out.
    pub fn all(data: &[u8]) -> (Vec<Self>, bool) {
        let mut tables: Vec<Self> = Vec::new();
        let mut columns: Vec<Column> = Vec::new();
        let mut more = false;
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
                    if table.rows.len() < ROWS {
                        table.rows.push(row(&columns, &values));
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

fn row(columns: &[Column], values: &[Option<Vec<u8>>]) -> Vec<Option<Shown>> {
    let cell = |(i, value): (usize, &Option<Vec<u8>>)| {
        let text = rows::display(columns.get(i), value.as_deref()?);
        Some(Shown::short(&text, CELL))
    };
    values.iter().take(COLUMNS).enumerate().map(cell).collect()
}

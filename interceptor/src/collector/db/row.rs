//! Rows and their columns.

use postgres::types::Type;

use super::{Error, Result};

/// What a statement gives, row by row.
pub enum Rows<'s> {
    /// Of SQLite: read as they are asked for.
    Sqlite(rusqlite::Rows<'s>),
    /// Of PostgreSQL.
    Postgres(std::vec::IntoIter<postgres::Row>),
}

impl<'s> Rows<'s> {
    pub(super) fn of(all: Vec<postgres::Row>) -> Self {
        Self::Postgres(all.into_iter())
    }

    /// The next one.
    #[expect(clippy::should_implement_trait, reason = "a row of SQLite lives until the next one")]
    pub fn next(&mut self) -> Result<Option<Row<'_>>> {
        Ok(match self {
            Self::Sqlite(rows) => rows.next()?.map(Row::Sqlite),
            Self::Postgres(rows) => rows.next().map(Row::Postgres),
        })
    }
}

/// A row.
pub enum Row<'r> {
    /// Of SQLite.
    Sqlite(&'r rusqlite::Row<'r>),
    /// Of PostgreSQL.
    Postgres(postgres::Row),
}

impl Row<'_> {
    /// A column, by its place counted from 0 or by its name.
    pub fn get<I: Index, T: Column>(&self, index: I) -> Result<T> {
        match self {
            Self::Sqlite(row) => T::of_sqlite(row, index.in_sqlite(row)?),
            Self::Postgres(row) => T::of_postgres(row, index.in_postgres(row)?),
        }
    }
}

/// A column's place, or its name.
pub trait Index {
    /// Its place in a row of SQLite.
    fn in_sqlite(&self, row: &rusqlite::Row<'_>) -> Result<usize>;
    /// Its place in a row of PostgreSQL.
    fn in_postgres(&self, row: &postgres::Row) -> Result<usize>;
}

impl Index for usize {
    fn in_sqlite(&self, _: &rusqlite::Row<'_>) -> Result<usize> {
        Ok(*self)
    }
    fn in_postgres(&self, _: &postgres::Row) -> Result<usize> {
        Ok(*self)
    }
}

impl Index for &str {
    fn in_sqlite(&self, row: &rusqlite::Row<'_>) -> Result<usize> {
        Ok(row.as_ref().column_index(self)?)
    }
    fn in_postgres(&self, row: &postgres::Row) -> Result<usize> {
        let place = row.columns().iter().position(|c| c.name() == *self);
        place.ok_or(Error::Contents)
    }
}

/// What can be read from a column.
pub trait Column: Sized {
    /// From SQLite.
    fn of_sqlite(row: &rusqlite::Row<'_>, index: usize) -> Result<Self>;
    /// From PostgreSQL.
    fn of_postgres(row: &postgres::Row, index: usize) -> Result<Self>;
}

macro_rules! same_in_both {
    ($($kind:ty),*) => {$(
        impl Column for $kind {
            fn of_sqlite(row: &rusqlite::Row<'_>, index: usize) -> Result<Self> {
                Ok(row.get(index)?)
            }
            fn of_postgres(row: &postgres::Row, index: usize) -> Result<Self> {
                Ok(row.try_get(index)?)
            }
        }
        impl Column for Option<$kind> {
            fn of_sqlite(row: &rusqlite::Row<'_>, index: usize) -> Result<Self> {
                Ok(row.get(index)?)
            }
            fn of_postgres(row: &postgres::Row, index: usize) -> Result<Self> {
                Ok(row.try_get(index)?)
            }
        }
    )*};
}

same_in_both!(String, Vec<u8>);

impl Column for i64 {
    fn of_sqlite(row: &rusqlite::Row<'_>, index: usize) -> Result<Self> {
        Ok(row.get(index)?)
    }
    fn of_postgres(row: &postgres::Row, index: usize) -> Result<Self> {
        Option::<Self>::of_postgres(row, index)?.ok_or(Error::Contents)
    }
}

/// Literals of PostgreSQL are narrower than its columns here.
impl Column for Option<i64> {
    fn of_sqlite(row: &rusqlite::Row<'_>, index: usize) -> Result<Self> {
        Ok(row.get(index)?)
    }
    fn of_postgres(row: &postgres::Row, index: usize) -> Result<Self> {
        if row.columns().get(index).is_some_and(|c| *c.type_() == Type::INT4) {
            return Ok(row.try_get::<_, Option<i32>>(index)?.map(i64::from));
        }
        Ok(row.try_get(index)?)
    }
}

macro_rules! smaller {
    ($($kind:ty),*) => {$(
        impl Column for $kind {
            fn of_sqlite(row: &rusqlite::Row<'_>, index: usize) -> Result<Self> {
                Ok(row.get(index)?)
            }
            fn of_postgres(row: &postgres::Row, index: usize) -> Result<Self> {
                i64::of_postgres(row, index)?.try_into().map_err(|_| Error::Contents)
            }
        }
        impl Column for Option<$kind> {
            fn of_sqlite(row: &rusqlite::Row<'_>, index: usize) -> Result<Self> {
                Ok(row.get(index)?)
            }
            fn of_postgres(row: &postgres::Row, index: usize) -> Result<Self> {
                let value = Option::<i64>::of_postgres(row, index)?;
                value.map(|v| v.try_into().map_err(|_| Error::Contents)).transpose()
            }
        }
    )*};
}

smaller!(i32, u32);

/// A column that is 0 or 1, or an expression that is true or false.
impl Column for bool {
    fn of_sqlite(row: &rusqlite::Row<'_>, index: usize) -> Result<Self> {
        Ok(row.get(index)?)
    }
    fn of_postgres(row: &postgres::Row, index: usize) -> Result<Self> {
        let kind = row.columns().get(index).map(|c| c.type_().clone());
        if kind == Some(Type::BOOL) {
            return Ok(row.try_get::<_, Option<bool>>(index)?.unwrap_or_default());
        }
        Ok(i64::of_postgres(row, index)? != 0)
    }
}

impl Column for Option<bool> {
    fn of_sqlite(row: &rusqlite::Row<'_>, index: usize) -> Result<Self> {
        Ok(row.get(index)?)
    }
    fn of_postgres(row: &postgres::Row, index: usize) -> Result<Self> {
        Ok(Option::<i64>::of_postgres(row, index)?.map(|v| v != 0))
    }
}

//! The one way in which the collector's code speaks to its central database, whether that is
//! SQLite beside it or PostgreSQL shared with other collectors.
//!
//! Statements are written once, in the SQL that both understand, with SQLite's `?1` for a
//! parameter. Whole numbers are 64 bits wide, truth values are 0 and 1, times are microseconds
//! since the Unix epoch. A connection belongs to one thread at a time.
//!
//! What this module must never do: put a value into a statement's text.

mod postgres;
mod row;
mod value;

pub use postgres::{Postgres, connect};
pub use row::{Column, Row, Rows};
pub use value::{Params, ToValue, Value, params_from_iter};

pub(crate) use value::params;

/// Why the database refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// PostgreSQL. Its own words stand in the source, which says more.
    #[error("{}", postgres::words(.0))]
    Postgres(#[from] ::postgres::Error),
    /// A statement that gives one row gave none.
    #[error("the database has no such row")]
    NoRows,
    /// A value is not what it must be.
    #[error("the database holds something that was never written there")]
    Contents,
    /// The group of writes that this one was in did not reach the disk.
    #[error("{0}")]
    Group(String),
}

/// What a statement gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// "No such row" as an answer.
pub trait OptionalExtension<T> {
    /// None where there is no row.
    fn optional(self) -> Result<Option<T>>;
}

impl<T> OptionalExtension<T> for Result<T> {
    fn optional(self) -> Result<Option<T>> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(Error::NoRows | Error::Sqlite(rusqlite::Error::QueryReturnedNoRows)) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// An open connection.
pub enum Connection {
    /// To a file.
    Sqlite(rusqlite::Connection),
    /// To a server.
    Postgres(Box<Postgres>),
}

impl From<rusqlite::Connection> for Connection {
    fn from(db: rusqlite::Connection) -> Self {
        Self::Sqlite(db)
    }
}

impl Connection {
    /// A statement that is run many times: it is kept prepared.
    pub fn prepare_cached(&self, sql: &str) -> Result<Statement<'_>> {
        Ok(match self {
            Self::Sqlite(db) => Statement::Sqlite(db.prepare_cached(sql)?),
            Self::Postgres(db) => Statement::Postgres(db, db.prepare(sql)?),
        })
    }

    /// A statement.
    pub fn prepare(&self, sql: &str) -> Result<Statement<'_>> {
        self.prepare_cached(sql)
    }

    /// Runs a statement that gives no rows; how many rows it changed.
    pub fn execute(&self, sql: &str, params: impl Params) -> Result<usize> {
        self.prepare_cached(sql)?.execute(params)
    }

    /// The first row of a statement.
    pub fn query_row<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T>,
    ) -> Result<T> {
        self.prepare_cached(sql)?.query_row(params, read)
    }

    /// Several statements without parameters.
    pub fn execute_batch(&self, sql: &str) -> Result<()> {
        match self {
            Self::Sqlite(db) => Ok(db.execute_batch(sql)?),
            Self::Postgres(db) => db.batch(sql),
        }
    }

    /// Whether it can be used no more: the server went away. That shows only when a statement was
    /// tried.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Sqlite(_) => false,
            Self::Postgres(db) => db.is_closed(),
        }
    }

    /// A database for a test.
    #[cfg(test)]
    pub fn open(path: impl AsRef<std::path::Path>) -> Result<Self> {
        Ok(rusqlite::Connection::open(path)?.into())
    }

    /// A database for a test.
    #[cfg(test)]
    pub fn open_in_memory() -> Result<Self> {
        Ok(rusqlite::Connection::open_in_memory()?.into())
    }
}

/// A prepared statement.
pub enum Statement<'c> {
    /// Of SQLite.
    Sqlite(rusqlite::CachedStatement<'c>),
    /// Of PostgreSQL.
    Postgres(&'c Postgres, ::postgres::Statement),
}

impl Statement<'_> {
    /// Runs it; how many rows it changed.
    pub fn execute(&mut self, params: impl Params) -> Result<usize> {
        let values = params.values();
        match self {
            Self::Sqlite(s) => Ok(s.execute(rusqlite::params_from_iter(&values))?),
            Self::Postgres(db, s) => db.execute(s, &values),
        }
    }

    /// Its first row.
    pub fn query_row<T>(
        &mut self,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut rows = self.query(params)?;
        match rows.next()? {
            Some(row) => read(&row),
            None => Err(Error::NoRows),
        }
    }

    /// Its rows, each read as it is asked for.
    pub fn query_map<T, P: Params, F: FnMut(&Row<'_>) -> Result<T>>(
        &mut self,
        params: P,
        mut read: F,
    ) -> Result<impl Iterator<Item = Result<T>> + use<'_, T, F, P>> {
        let mut rows = self.query(params)?;
        Ok(std::iter::from_fn(move || match rows.next() {
            Ok(Some(row)) => Some(read(&row)),
            Ok(None) => None,
            Err(e) => Some(Err(e)),
        }))
    }

    /// Its rows. Those of PostgreSQL are in memory by then: what may be many is asked for in
    /// portions.
    pub fn query(&mut self, params: impl Params) -> Result<Rows<'_>> {
        let values = params.values();
        Ok(match self {
            Self::Sqlite(s) => Rows::Sqlite(s.query(rusqlite::params_from_iter(&values))?),
            Self::Postgres(db, s) => Rows::of(db.query(s, &values)?),
        })
    }

    /// Whether it gives a row.
    pub fn exists(&mut self, params: impl Params) -> Result<bool> {
        Ok(self.query(params)?.next()?.is_some())
    }
}

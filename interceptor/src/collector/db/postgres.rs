//! A connection to PostgreSQL.

use std::cell::{Cell, RefCell};
use std::error::Error as _;
use std::time::Duration;

use lru::LruCache;
use postgres::error::Severity;
use postgres::types::ToSql;
use postgres::{Client, NoTls, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::value::Value;
use super::{Connection, Result};
use crate::collector::store::Server;

/// Statements that are kept prepared on a connection.
const PREPARED: std::num::NonZeroUsize = std::num::NonZeroUsize::new(256).unwrap();
/// What every session of ours has: a commit is on disk when it returns, and the locks of a collector
/// whose machine is gone are not kept for hours.
const OPTIONS: &str = "-c synchronous_commit=on -c tcp_keepalives_idle=30 \
                       -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3";
/// How long a server may take to answer a connection attempt.
const CONNECT: Duration = Duration::from_secs(10);

/// An open connection. Its statements block the thread that runs them.
pub struct Postgres {
    /// There until it is dropped.
    client: RefCell<Option<Client>>,
    prepared: RefCell<LruCache<String, Statement>>,
    /// The server ended it, or it broke. The client itself does not tell.
    lost: Cell<bool>,
}

/// What the server says of an error, in one line without values.
pub(super) fn words(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(e) => format!("{} (SQLSTATE {})", e.message(), e.code().code()),
        None => match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

/// Opens a connection.
pub fn connect(server: &Server) -> Result<Connection> {
    let mut config = server.config.clone();
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT);
    }
    config.keepalives_idle(Duration::from_secs(30)).tcp_user_timeout(Duration::from_secs(60));
    config.application_name("interceptor collector");
    let given = config.get_options().unwrap_or_default();
    let options = format!("{given} {OPTIONS}");
    config.options(&options);
    let client = match &server.tls {
        Some(tls) => config.connect(MakeRustlsConnect::new(tls.clone()))?,
        None => config.connect(NoTls)?,
    };
    let prepared = RefCell::new(LruCache::new(PREPARED));
    let client = RefCell::new(Some(client));
    Ok(Connection::Postgres(Box::new(Postgres { client, prepared, lost: Cell::new(false) })))
}

/// Whether a connection is of no use after this.
fn is_lost(error: &postgres::Error) -> bool {
    if let Some(of_server) = error.as_db_error() {
        return matches!(of_server.parsed_severity(), Some(Severity::Fatal | Severity::Panic));
    }
    error.is_closed() || error.source().is_some_and(|source| source.is::<std::io::Error>())
}

impl Postgres {
    pub(super) fn prepare(&self, sql: &str) -> Result<Statement> {
        if let Some(known) = self.prepared.borrow_mut().get(sql) {
            return Ok(known.clone());
        }
        let statement = self.run(|c| c.prepare(&numbered(sql)))?;
        self.prepared.borrow_mut().put(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    pub(super) fn execute(&self, statement: &Statement, values: &[Value<'_>]) -> Result<usize> {
        let changed = self.run(|c| c.execute(statement, &borrowed(values)))?;
        Ok(usize::try_from(changed).unwrap_or(usize::MAX))
    }

    pub(super) fn query(&self, statement: &Statement, values: &[Value<'_>]) -> Result<Vec<Row>> {
        self.run(|c| c.query(statement, &borrowed(values)))
    }

    pub(super) fn batch(&self, sql: &str) -> Result<()> {
        self.run(|c| c.batch_execute(sql))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lost.get() || self.client.borrow().as_ref().is_none_or(Client::is_closed)
    }

    /// Waits for the next notification, or until the time is over; its payload.
    pub fn notified(&self, patience: Duration) -> Result<Option<String>> {
        use postgres::fallible_iterator::FallibleIterator;
        let next = self.run(|c| c.notifications().timeout_iter(patience).next())?;
        Ok(next.map(|n| n.payload().to_owned()))
    }

    fn run<T>(&self, work: impl FnOnce(&mut Client) -> Result<T, postgres::Error>) -> Result<T> {
        match self.client.borrow_mut().as_mut() {
            Some(client) => Ok(work(client).inspect_err(|e| {
                if is_lost(e) {
                    self.lost.set(true);
                }
            })?),
            None => Err(super::Error::NoRows),
        }
    }
}

/// A client has a runtime of its own, which may not end on a thread that runs another.
impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(client) = self.client.get_mut().take() {
            std::thread::spawn(move || drop(client));
        }
    }
}

fn borrowed<'v>(values: &'v [Value<'v>]) -> Vec<&'v (dyn ToSql + Sync)> {
    values.iter().map(|v| v as &(dyn ToSql + Sync)).collect()
}

/// `?1` as `$1`, where it stands outside of quotes. The statements are our own.
fn numbered(sql: &str) -> String {
    let mut quoted = false;
    sql.chars()
        .map(|c| match c {
            '\'' => {
                quoted = !quoted;
                c
            }
            '?' if !quoted => '$',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::numbered;

    #[test]
    fn parameters_are_numbered_as_the_server_has_them() {
        let ours = "SELECT '?1', a FROM t WHERE b = ?1 AND c = '''?' || ?12";
        assert_eq!(numbered(ours), "SELECT '?1', a FROM t WHERE b = $1 AND c = '''?' || $12");
    }
}

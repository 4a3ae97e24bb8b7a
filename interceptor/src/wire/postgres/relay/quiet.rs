//! Questions of our own, asked on the agent's connection while nothing of the agent's is
//! outstanding: what names resolve to now, and what a COPY will return.
//!
//! Asking on the same connection sees what only this session can see: its temporary objects and
//! its uncommitted DDL.

use std::sync::Arc;

use crate::mask::{self, CopyPlan};
use crate::policy::MASKING;
use crate::session::catalogs::Snapshot;
use crate::session::sql::{
    self, CopyFormat, CopyKind, CopySource, Denial, Judge, Ruling, StatementKind, build_catalog,
    catalog_fingerprint, catalog_queries,
};
use crate::session::{Admitted, Effect, Session};

use super::super::codec::Field;
use super::super::upstream::{Upstream, UpstreamError};
use super::compare::{agreed, mask_field};
use super::frontend::Next;
use super::{Fault, Relay};

/// Search path as the server resolves it, and the role that acts now. Types are named with their
/// schema as everything is: a temporary domain `text` would run code of the agent's in here, after
/// the path was read.
const SETTINGS: &str = "select \
     pg_catalog.array_to_json(pg_catalog.current_schemas(true))::pg_catalog.text, \
     current_user::pg_catalog.text, session_user::pg_catalog.text, \
     pg_catalog.current_setting('client_encoding'), \
     pg_catalog.current_setting('standard_conforming_strings'), \
     pg_catalog.current_setting('backslash_quote')";

const PRIVILEGE_NAMES: &[&str] =
    &["superuser", "replication", "bypassrls", "createrole", "files", "programs"];

/// In the order of [`PRIVILEGE_NAMES`].
const PRIVILEGES: &str = "select r.rolsuper, r.rolreplication, r.rolbypassrls, r.rolcreaterole, \
     pg_catalog.pg_has_role(r.oid, 'pg_read_server_files', 'member') \
       or pg_catalog.pg_has_role(r.oid, 'pg_write_server_files', 'member'), \
     pg_catalog.pg_has_role(r.oid, 'pg_execute_server_program', 'member') \
     from pg_catalog.pg_roles r where r.rolname operator(pg_catalog.=) current_user";

/// The privilege that makes a role more than this service allows, in words; none in observe
/// mode, which changes nothing.
pub async fn excess_privilege(
    session: &Session<Admitted>,
    service: &mut Upstream,
    role: &str,
) -> Result<Option<String>, UpstreamError> {
    if !session.enforces() {
        return Ok(None);
    }
    let rows = service.rows(PRIVILEGES).await?;
    let row = rows.first().cloned().unwrap_or_default();
    let allowed = session.service().roles.get(role).map(|role| &role.allow);
    for (index, name) in PRIVILEGE_NAMES.iter().enumerate() {
        // A missing answer counts as having the privilege.
        let has = row.get(index).and_then(Option::as_deref) != Some("f");
        if has && !allowed.is_some_and(|allow| allow.contains(*name)) {
            return Ok(Some(format!(
                "role {role:?} has the privilege {name:?}; name it in [service.role.{role}] \
                 allow, or use a lesser role"
            )));
        }
    }
    Ok(None)
}

/// What names mean on a connection now.
#[derive(Debug)]
pub struct Settings {
    /// Schemas in the order of search, implicit ones included.
    pub path: Vec<String>,
    /// The role whose privileges count.
    pub role: String,
    /// The client's encoding.
    pub encoding: String,
}

impl Settings {
    /// Whether the session has temporary objects.
    pub fn has_temporary(&self) -> bool {
        self.path.iter().any(|schema| schema.starts_with("pg_temp_"))
    }
}

/// Asks what names mean now. Refuses a server that reads string constants differently from the
/// grammar that judges them.
pub async fn settings(service: &mut Upstream) -> Result<Settings, Fault> {
    let rows = service.rows(SETTINGS).await?;
    let row = rows.first().map(Vec::as_slice).unwrap_or_default();
    let text = |i: usize| row.get(i).and_then(Clone::clone).unwrap_or_default();
    let path: Vec<String> = serde_json::from_str(&text(0))
        .map_err(|_| Fault::Refused("the server's search path cannot be read".into()))?;
    if text(4) != "on" || text(5) == "on" {
        return Err(Fault::Refused(
            "SETTINGS: the server reads string constants in a way that cannot be judged \
             (standard_conforming_strings, backslash_quote)"
                .into(),
        ));
    }
    Ok(Settings { path, role: text(1), encoding: text(3) })
}

/// The catalog for a session: the shared one where it is fresh or unchanged, a new one else.
pub async fn catalog(
    session: &Session<Admitted>,
    service: &mut Upstream,
    private: bool,
) -> Result<Snapshot, Fault> {
    let catalogs = &session.gate().catalogs;
    let (name, database) = (&session.service().name, &session.subject().database);
    if private {
        return Ok(catalogs.private(load(service).await?));
    }
    if let Some(newest) = catalogs.newest(name, database) {
        if newest.is_fresh() {
            return Ok(newest);
        }
        let now = fingerprint(service).await?;
        if now == newest.fingerprint
            && let Some(confirmed) = catalogs.confirm(name, database, newest.epoch)
        {
            return Ok(confirmed);
        }
    }
    // The fingerprint is taken first: a change in between makes the snapshot look old, not new.
    let fingerprint = fingerprint(service).await?;
    let loaded = load(service).await?;
    sql::warn_of_missing_columns(&session.gate().policies(), name, database, &loaded);
    Ok(catalogs.publish(name, database, loaded, fingerprint))
}

async fn fingerprint(service: &mut Upstream) -> Result<String, UpstreamError> {
    let rows = service.rows(catalog_fingerprint()).await?;
    Ok(format!("{rows:?}"))
}

async fn load(service: &mut Upstream) -> Result<sql::Catalog, Fault> {
    let mut answers = Vec::new();
    for query in catalog_queries() {
        answers.push(service.rows(query).await?);
    }
    build_catalog(answers)
        .map_err(|e| Fault::Refused(format!("CATALOG: the server's catalog cannot be read: {e}")))
}

impl Relay {
    /// Whether the catalog may have changed behind our back and can be checked now.
    pub(super) fn is_aged(&self) -> bool {
        self.status == b'I'
            && !self.own_catalog
            && !self.snapshot.is_fresh()
            && self.judge.needs_catalog()
    }

    /// Learns what names mean now. Only while nothing is owed.
    pub(super) async fn resync(&mut self) -> Result<(), Fault> {
        if self.status == b'E' {
            // Nothing can be asked of a failed transaction, and nothing but its end is executed.
            return Ok(());
        }
        let settings = settings(&mut self.io.service).await?;
        let encoding = sql::canonical_encoding(&settings.encoding).ok_or_else(|| {
            Fault::Refused(format!("ENCODING: {} can hide ASCII in its bytes", settings.encoding))
        })?;
        self.encoding = encoding;
        let in_transaction = self.status == b'T';
        let private = settings.has_temporary() || (in_transaction && self.touched.catalog);
        if self.stale.catalog || private != self.own_catalog || self.is_aged() {
            if self.stale.catalog && !private {
                self.session
                    .gate()
                    .catalogs
                    .age(&self.session.service().name, &self.session.subject().database);
            }
            self.snapshot = catalog(&self.session, &mut self.io.service, private).await?;
            self.own_catalog = private;
        }
        if settings.role != self.session.subject().role {
            let excess = excess_privilege(&self.session, &mut self.io.service, &settings.role);
            if let Some(why) = excess.await? {
                return Err(Fault::Refused(format!("ROLE_TOO_POWERFUL: {why}")));
            }
            self.session.assume_role(&settings.role);
        }
        self.path.clone_from(&settings.path);
        self.judge.resolve_by(&self.session, &self.snapshot, settings.path);
        self.stale = super::Stale::default();
        if !in_transaction {
            self.touched = super::Stale::default();
        }
        self.take_unasked();
        Ok(())
    }

    /// What the server said unasked while we asked goes the way of everything it says.
    fn take_unasked(&mut self) {
        let service = &mut self.io.service;
        if !service.unasked.is_empty() {
            let mut unasked = std::mem::take(&mut service.unasked);
            unasked.extend_from_slice(&service.inbox);
            service.inbox = unasked;
        }
    }

    /// For a COPY TO STDOUT whose data has to be guarded: the columns of the equivalent SELECT,
    /// by asking the server, without running it.
    pub(super) async fn describe_copy(
        &mut self,
        ruling: &Arc<Ruling>,
    ) -> Result<Result<Option<Arc<[Field]>>, Next>, Fault> {
        if !ruling.guards_rows() || ruling.effect == Effect::Deny {
            return Ok(Ok(None));
        }
        let copies = |s: &sql::StatementKind| matches!(s, StatementKind::CopyOut { .. });
        if !ruling.analysis.statements.iter().any(|s| copies(&s.kind)) {
            return Ok(Ok(None));
        }
        let [statement] = ruling.analysis.statements.as_slice() else {
            return Ok(Err(self.refuse_whatever(&copy_denial("send COPY in a query of its own"))));
        };
        if !self.exchange.is_quiet() || !self.staged.is_empty() {
            if self.exchange.is_open_batch() {
                let denial = copy_denial("send COPY in a pipeline of its own");
                return Ok(Err(self.refuse_whatever(&denial)));
            }
            return Ok(Err(self.until_quiet()));
        }
        let StatementKind::CopyOut { source, .. } = &statement.kind else { return Ok(Ok(None)) };
        let described = self.io.service.describe(&equivalent(source)).await;
        self.take_unasked();
        match described {
            Ok(columns) => Ok(Ok(Some(columns.into()))),
            Err(UpstreamError::Refused(_)) => {
                let denial = copy_denial("the columns of this COPY cannot be determined");
                Ok(Err(self.refuse_whatever(&denial)))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// The masking of a COPY's data.
    pub(super) fn copy_plan(&self, ruling: &Ruling, columns: &[Field]) -> Result<CopyPlan, Denial> {
        let unclear = || copy_denial("the data of this COPY cannot be guarded");
        let (Some(shield), Some(plan), Some(statement)) =
            (&ruling.shield, ruling.plan(0), ruling.statement(0))
        else {
            return Err(unclear());
        };
        let StatementKind::CopyOut { format, .. } = &statement.kind else { return Err(unclear()) };
        let masks = agreed(shield, plan, columns).ok_or_else(|| {
            copy_denial("the columns of this COPY are not those that were judged")
        })?;
        let columns: Vec<crate::mask::Field> = columns.iter().map(mask_field).collect();
        let format = layout(format, &columns).ok_or_else(unclear)?;
        CopyPlan::compile(
            &columns,
            &masks,
            shield.detectors.clone(),
            Arc::clone(&shield.key),
            format,
            self.row_limit,
        )
        .map_err(|_| unclear())
    }
}

/// The SELECT that returns what a COPY would.
fn equivalent(source: &CopySource) -> String {
    match source {
        CopySource::Query { text } => text.clone(),
        CopySource::Table { name, columns } => {
            let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
            let columns = if columns.is_empty() {
                "*".to_owned()
            } else {
                columns.iter().map(|c| quoted(c)).collect::<Vec<_>>().join(", ")
            };
            format!("SELECT {columns} FROM ONLY {}.{}", quoted(&name.schema), quoted(&name.name))
        }
    }
}

/// How the data of a COPY is written, with the server's defaults (manual, "COPY").
fn layout(format: &CopyFormat, columns: &[crate::mask::Field]) -> Option<mask::CopyFormat> {
    if !format.other.is_empty() || format.encoding.is_some() {
        return None;
    }
    let byte = |given: &Option<String>, default: u8| match given.as_deref().map(str::as_bytes) {
        None => Some(default),
        Some([one]) => Some(*one),
        Some(_) => None,
    };
    let null = |default: &[u8]| match &format.null {
        Some(given) => given.as_bytes().to_vec(),
        None => default.to_vec(),
    };
    Some(match format.kind {
        CopyKind::Binary => mask::CopyFormat::Binary,
        CopyKind::Text => mask::CopyFormat::Text(mask::TextFormat {
            delimiter: byte(&format.delimiter, b'\t')?,
            null: null(b"\\N"),
            header: format.header,
        }),
        CopyKind::Csv => {
            let quote = byte(&format.quote, b'"')?;
            mask::CopyFormat::Csv(mask::CsvFormat {
                delimiter: byte(&format.delimiter, b',')?,
                quote,
                escape: byte(&format.escape, quote)?,
                null: null(b""),
                header: format.header,
                force_quote: vec![false; columns.len()],
            })
        }
    })
}

fn copy_denial(message: &str) -> Denial {
    Denial::new("42501", MASKING, message)
}

/// A judge that knows what names mean on this connection.
pub async fn ready_judge(
    session: &mut Session<Admitted>,
    service: &mut Upstream,
) -> Result<(Judge, Snapshot, Settings), Fault> {
    let settings = settings(service).await?;
    let snapshot = catalog(session, service, settings.has_temporary()).await?;
    let mut judge = Judge::new(session);
    judge.resolve_by(session, &snapshot, settings.path.clone());
    Ok((judge, snapshot, settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_questions_mean_the_same_in_every_session() {
        for sql in [SETTINGS, PRIVILEGES] {
            assert_eq!(crate::policy::sql::testing::left_open(sql), None);
        }
    }

    #[test]
    fn a_copied_table_is_described_by_quoted_names() {
        let source = CopySource::Table {
            name: crate::policy::Name::new("public", "we\"ird"),
            columns: vec!["a".into()],
        };
        assert_eq!(equivalent(&source), "SELECT \"a\" FROM ONLY \"public\".\"we\"\"ird\"");
    }
}

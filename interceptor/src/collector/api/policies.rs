//! Policies that hosts may take: versions, and for administrators publishing them.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::routing::{MethodRouter, post};
use serde::Deserialize;
use serde_json::{Value, json};

use super::caller::Caller;
use super::routes::{bad_body, inside};
use super::{Api, Refused};
use crate::collector::policies::check::{CheckError, Given};
use crate::collector::policies::{self, How, PublishError, Version};
use crate::collector::{CollectorError, Keys, Role, hosts};
use crate::policy::Source;
use crate::ship::bundle::{File, MAX_FILES_BYTES};

/// Most bytes of what is published: files and tests, escaped.
const MAX_BODY: usize = 4 * MAX_FILES_BYTES;
/// Most files, tests among them.
const MAX_GIVEN: usize = 400;

impl From<PublishError> for Refused {
    fn from(e: PublishError) -> Self {
        let (status, code) = match &e {
            PublishError::Store(e) => return inside(e),
            PublishError::NoVersion(_) => (StatusCode::NOT_FOUND, "NOT_FOUND"),
            PublishError::Same(_) | PublishError::Nothing => (StatusCode::CONFLICT, "UNCHANGED"),
            _ => (StatusCode::UNPROCESSABLE_ENTITY, "INVALID"),
        };
        Self::new(status, code, e.to_string())
    }
}

impl From<CheckError> for Refused {
    fn from(e: CheckError) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "POLICY_INVALID", e.to_string())
    }
}

/// `GET /api/v1/policies`.
pub async fn list(State(api): State<Api>, Caller(_): Caller) -> Result<Json<Value>, Refused> {
    let look = |db: &crate::collector::db::Connection| {
        Ok::<_, CollectorError>((policies::list(db)?, hosts::list(db)?))
    };
    let (versions, all) = api.0.collector.central.read(look).await?;
    let on_hosts: Vec<_> = all
        .iter()
        .filter(|h| h.revoked_us.is_none())
        .map(|h| json!({ "host": h.id, "name": h.name, "policies": h.policies }))
        .collect();
    Ok(Json(json!({ "versions": versions, "hosts": on_hosts })))
}

/// `GET /api/v1/policies/{version}`.
pub async fn show(
    State(api): State<Api>,
    Caller(_): Caller,
    Path(number): Path<u64>,
) -> Result<Json<Value>, Refused> {
    let found = api.0.collector.central.read(move |db| policies::show(db, number)).await?;
    let (version, files) = found.ok_or(PublishError::NoVersion(number))?;
    Ok(Json(policies::described(&version, files.as_deref())))
}

/// What is published.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Publish {
    files: Vec<File>,
    #[serde(default)]
    note: Option<String>,
}

/// `POST /api/v1/policies`, with a body of its own size.
pub fn publishing() -> MethodRouter<Api> {
    post(publish).layer(DefaultBodyLimit::max(MAX_BODY))
}

async fn publish(
    State(api): State<Api>,
    caller: Caller,
    body: Result<Json<Publish>, JsonRejection>,
) -> Result<(StatusCode, Json<Version>), Refused> {
    caller.demand(Role::Admin)?;
    let Json(Publish { files, note }) = body.map_err(bad_body)?;
    if files.len() > MAX_GIVEN {
        let text = format!("files: at most {MAX_GIVEN}, tests among them");
        return Err(Refused::new(StatusCode::UNPROCESSABLE_ENTITY, "INVALID", text));
    }
    // The analysis of statements blocks on threads of its own.
    let look = move || {
        let mut given = Given::default();
        for File { name, text } in files {
            given.add(Source { name, text });
        }
        given.check(None)
    };
    let checked = tokio::task::spawn_blocking(look).await.map_err(|e| inside(&e))??;
    write(&api, caller, note, move |db, keys, how| policies::publish(db, keys, how, checked)).await
}

/// What somebody says about it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Note {
    note: Option<String>,
}

/// `POST /api/v1/policies/{version}/rollback`.
pub async fn roll_back(
    State(api): State<Api>,
    caller: Caller,
    Path(to): Path<u64>,
    body: Result<Json<Note>, JsonRejection>,
) -> Result<(StatusCode, Json<Version>), Refused> {
    caller.demand(Role::Admin)?;
    let Json(Note { note }) = body.map_err(bad_body)?;
    write(&api, caller, note, move |db, keys, how| policies::roll_back(db, keys, how, to)).await
}

/// `POST /api/v1/policies/withdraw`.
pub async fn withdraw(
    State(api): State<Api>,
    caller: Caller,
    body: Result<Json<Note>, JsonRejection>,
) -> Result<(StatusCode, Json<Version>), Refused> {
    caller.demand(Role::Admin)?;
    let Json(Note { note }) = body.map_err(bad_body)?;
    write(&api, caller, note, policies::withdraw).await
}

async fn write(
    api: &Api,
    Caller(person): Caller,
    note: Option<String>,
    write: impl FnOnce(&crate::collector::db::Connection, &Keys, &How) -> Result<Version, PublishError>
    + Send
    + 'static,
) -> Result<(StatusCode, Json<Version>), Refused> {
    let how = How { who: person.who(), note, above: 0 };
    let this = Arc::clone(&api.0.collector);
    let version = api.0.collector.central.write(move |db| write(db, &this.keys, &how)).await?;
    api.0.collector.published();
    Ok((StatusCode::CREATED, Json(version)))
}

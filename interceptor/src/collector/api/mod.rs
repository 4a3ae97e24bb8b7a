//! The REST API, version 1, for programs of people: the same things as in the console, with an
//! access token of the same issuer in place of a login.
//!
//! Nothing here takes a cookie, so that no other site can use it through a browser. What it
//! offers stands in `openapi.json`, which a test holds against [`ROUTES`].

mod caller;
mod metrics;
mod policies;
mod routes;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::{Collector, CollectorError};
use crate::identity::{Audience, IdentityError, People};

/// Every method and path.
pub const ROUTES: &[(&str, &str)] = &[
    ("GET", "/api/v1/openapi.json"),
    ("GET", "/api/v1/sessions"),
    ("GET", "/api/v1/sessions/{id}"),
    ("GET", "/api/v1/sessions/{id}/events"),
    ("POST", "/api/v1/sessions/{id}/kill"),
    ("POST", "/api/v1/sessions/kill"),
    ("GET", "/api/v1/grants"),
    ("POST", "/api/v1/grants/{id}/revoke"),
    ("GET", "/api/v1/hosts"),
    ("GET", "/api/v1/policies"),
    ("POST", "/api/v1/policies"),
    ("GET", "/api/v1/policies/{version}"),
    ("POST", "/api/v1/policies/{version}/rollback"),
    ("POST", "/api/v1/policies/withdraw"),
    ("GET", "/api/v1/holds"),
    ("GET", "/api/v1/holds/{id}"),
    ("POST", "/api/v1/holds/{id}/decision"),
    ("GET", "/api/v1/legal-holds"),
    ("POST", "/api/v1/legal-holds"),
    ("POST", "/api/v1/legal-holds/{id}/release"),
];

/// What all routes share.
#[derive(Clone)]
pub struct Api(Arc<Parts>);

struct Parts {
    collector: Arc<Collector>,
    people: Option<People>,
}

/// Why a request is not answered as it was asked.
#[derive(Debug)]
pub struct Refused {
    status: StatusCode,
    code: String,
    message: String,
}

impl Refused {
    fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), message: message.into() }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let body = json!({ "error": { "code": self.code, "message": self.message } });
        let mut answer = (self.status, axum::Json(body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = axum::http::HeaderValue::from_static("Bearer");
            answer.headers_mut().insert(axum::http::header::WWW_AUTHENTICATE, challenge);
        }
        answer
    }
}

/// All routes of the API, and the metrics.
pub fn routes(collector: &Arc<Collector>) -> Result<Router, CollectorError> {
    let config = &collector.config;
    let people = config.login.as_ref().map(|login| {
        People::new(&Audience {
            issuer: login.name.clone(),
            url: login.issuer.clone(),
            ca_file: login.ca_file.clone(),
            audience: config.audience().to_owned(),
            agents: config.agents.iter().filter_map(|a| a.cid.clone()).collect(),
        })
    });
    let people = people
        .transpose()
        .map_err(|e: IdentityError| CollectorError::Key(format!("login: {e}")))?;
    Ok(routes::all(Api(Arc::new(Parts { collector: Arc::clone(collector), people }))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_description_says_what_there_is() {
        let all: serde_json::Value = serde_json::from_str(routes::DESCRIPTION).unwrap();
        assert_eq!(all["openapi"], "3.1.0");
        let described: BTreeSet<(String, String)> = all["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().unwrap();
                methods.keys().map(move |m| (m.to_uppercase(), path.clone()))
            })
            .collect();
        let there: BTreeSet<_> =
            ROUTES.iter().map(|(m, p)| ((*m).to_owned(), (*p).to_owned())).collect();
        assert_eq!(described, there);
        assert!(ROUTES.iter().all(|(_, path)| routes::route(path).is_some()));
        let text = all.to_string();
        for reference in text.split("\"#/components/").skip(1) {
            let path = reference.split('"').next().unwrap();
            let pointer = format!("/components/{path}");
            assert!(all.pointer(&pointer).is_some(), "{pointer} is referred to and not there");
        }
    }
}

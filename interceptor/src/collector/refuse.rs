//! Refusals of hosts' requests: a status, a stable word, and what to do.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::error::CollectorError;
use super::wire::{Refused, Standing};

/// A refusal of a host's request.
#[derive(Debug)]
pub struct Refuse {
    status: StatusCode,
    body: Box<Refused>,
}

impl Refuse {
    fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let body = Refused { code: code.into(), message: message.into(), standing: None };
        Self { status, body: Box::new(body) }
    }

    /// The request is not what it should be.
    pub fn form(what: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "form", what)
    }

    /// There is no certificate.
    pub fn no_certificate() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unknown",
            "no certificate of a host: run `interceptor ship enrol`",
        )
    }

    /// The certificate is of no host that is known.
    pub fn unknown() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "unknown",
            "this certificate is of no host here: enrol it with a new code",
        )
    }

    /// The host was revoked.
    pub fn revoked(name: &str) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "revoked",
            format!("host {name} was revoked: find out why; a new code enrols it again"),
        )
    }

    /// The code is not good.
    pub fn code() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "code",
            "this code is wrong, used or too old: make another with `interceptor collector enrol`",
        )
    }

    /// Too much at a time.
    pub fn busy() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "too much at a time: try again later")
    }

    /// Something before the batch is missing here.
    pub fn gap(what: &str, standing: Standing) -> Self {
        let mut refuse = Self::new(StatusCode::CONFLICT, "gap", what);
        refuse.body.standing = Some(standing);
        refuse
    }

    /// The batch contradicts itself or what is here.
    pub fn altered(what: &str) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "altered", what)
    }
}

impl From<CollectorError> for Refuse {
    fn from(error: CollectorError) -> Self {
        tracing::error!(%error, "a host's request failed");
        let message = "the collector cannot do this now: see its log";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", message)
    }
}

impl IntoResponse for Refuse {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

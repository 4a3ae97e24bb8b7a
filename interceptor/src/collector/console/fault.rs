//! What people are told when something cannot be done.

use askama::Template;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};

use super::find::Missing;
use super::frame::Frame;
use super::logins::Login;
use super::text::Shown;
use crate::collector::CollectorError;
use crate::collector::decisions::DecisionError;
use crate::collector::retention::legal_holds::HoldError;
use crate::record::RecordError;

/// A page that says what is wrong and what to do.
#[derive(Debug, Clone)]
pub struct Fault {
    status: StatusCode,
    text: String,
    frame: Frame,
}

#[derive(Template)]
#[template(path = "console/fault.html")]
struct Page<'a> {
    frame: &'a Frame,
    title: &'a str,
    text: Shown,
}

impl Fault {
    /// A fault in words.
    pub fn new(status: StatusCode, text: &str) -> Self {
        Self { status, text: text.into(), frame: Frame::outside(title(status)) }
    }

    /// There is nothing at this address.
    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, what)
    }

    /// The request says something that cannot be understood.
    pub fn bad(text: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// Whether retention deleted what was asked for.
    pub fn is_gone(&self) -> bool {
        self.status == StatusCode::GONE
    }

    /// Inside the console of somebody who is logged in.
    pub fn of(mut self, login: &Login) -> Self {
        self.frame = Frame::new(title(self.status), "", login);
        self
    }
}

fn title(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "Not logged in",
        403 => "Not allowed",
        404 => "Not here",
        409 => "Too late",
        410 => "Deleted",
        429 | 503 => "Not now",
        400 | 413 | 421 | 422 => "Not understood",
        _ => "Something failed",
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let text = Shown::lines(&self.text);
        let page = Page { frame: &self.frame, title: title(self.status), text };
        match page.render() {
            Ok(html) => (self.status, Html(html)).into_response(),
            Err(_) => (self.status, self.text).into_response(),
        }
    }
}

/// What failed inside is for the log; people are told that something did.
fn inside(e: &dyn std::error::Error) -> Fault {
    tracing::error!(error = %e, "the console failed");
    let text = "The collector could not read its data. Its log says why.";
    Fault::new(StatusCode::INTERNAL_SERVER_ERROR, text)
}

impl From<CollectorError> for Fault {
    fn from(e: CollectorError) -> Self {
        inside(&e)
    }
}

impl From<Missing> for Fault {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::None => Self::not_found("There is no such session, or its records are gone."),
            Missing::Several(a, b) => {
                let text =
                    format!("Two hosts claim this id. Look at /sessions/{a} and /sessions/{b}.");
                Self::new(StatusCode::CONFLICT, &text)
            }
            Missing::Store(e) => e.into(),
        }
    }
}

impl From<RecordError> for Fault {
    fn from(e: RecordError) -> Self {
        match e {
            RecordError::Contents(text) => Self::not_found(&text),
            e @ RecordError::Deleted { .. } => {
                Self::new(StatusCode::GONE, &sentence(&e.to_string()))
            }
            RecordError::Object(e) => {
                tracing::error!(error = %e, "a recording cannot be shown");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, &sentence(&e.to_string()))
            }
            e => inside(&e),
        }
    }
}

impl From<DecisionError> for Fault {
    fn from(e: DecisionError) -> Self {
        match e {
            DecisionError::Store(e) => e.into(),
            e => {
                let status = StatusCode::from_u16(e.status()).unwrap_or(StatusCode::BAD_REQUEST);
                Self::new(status, &sentence(&e.to_string()))
            }
        }
    }
}

/// Words that begin and end as a sentence does.
fn sentence(words: &str) -> String {
    let mut chars = words.chars();
    let first: String = chars.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
    format!("{first}{}.", chars.as_str().trim_end_matches('.'))
}

impl From<HoldError> for Fault {
    fn from(e: HoldError) -> Self {
        match e {
            HoldError::Store(e) => e.into(),
            e => {
                let status = StatusCode::from_u16(e.status()).unwrap_or(StatusCode::BAD_REQUEST);
                Self::new(status, &sentence(&e.to_string()))
            }
        }
    }
}

impl From<askama::Error> for Fault {
    fn from(e: askama::Error) -> Self {
        inside(&e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::recordings::ObjectError;

    #[test]
    fn a_recording_that_cannot_be_read_is_named() {
        let missing = ObjectError::Missing { name: "ab/7/0-cd".into(), place: "/srv".into() };
        let fault = Fault::from(RecordError::from(missing));
        assert_eq!(fault.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(fault.text.contains("The recording ab/7/0-cd is missing in /srv"), "{fault:?}");
    }
}

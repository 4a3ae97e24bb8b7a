//! Logging in and out.

use askama::Template;
use axum::extract::{Query, State};
use axum::http::header::SET_COOKIE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::Console;
use super::cookies::Name;
use super::fault::Fault;
use super::frame::Frame;
use super::guard::{Signed, local};
use super::logins::{self, PENDING_SECONDS, Remembered, Secret};
use super::oidc::Provider;
use crate::record::now_us;

/// Where to go afterwards.
#[derive(Deserialize)]
pub struct Begin {
    #[serde(default)]
    next: String,
}

/// What the issuer sends back.
#[derive(Deserialize)]
pub struct Callback {
    #[serde(default)]
    code: String,
    #[serde(default)]
    state: String,
    iss: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

#[derive(Deserialize)]
pub struct Nothing {}

#[derive(Template)]
#[template(path = "console/out.html")]
struct Out {
    frame: Frame,
}

fn provider(console: &Console) -> Result<&Provider, Fault> {
    console.provider.as_ref().ok_or_else(|| {
        let text = "Nobody can log in: the collector's configuration has no [login].";
        Fault::new(StatusCode::SERVICE_UNAVAILABLE, text)
    })
}

/// `GET /login`: sends the browser to the issuer.
pub async fn begin(
    State(console): State<Console>,
    headers: HeaderMap,
    Query(query): Query<Begin>,
) -> Result<Response, Fault> {
    let begun = provider(&console)?.begin().await.map_err(|e| unavailable(&e))?;
    // One browser may have several logins under way.
    let binding = match console.jar().get(&headers, Name::Binding) {
        Some(binding) if binding.len() == 43 => binding.to_owned(),
        _ => Secret::new()?.as_str().to_owned(),
    };
    let url = begun.url.clone();
    let (bound, next) = (binding.clone(), local(&query.next).to_owned());
    let now = now_us();
    let remember = move |db: &crate::collector::db::Connection| {
        logins::remember(db, &begun, &bound, &next, now)
    };
    console.collector().central.write(remember).await?;
    let mut answer = Redirect::to(&url).into_response();
    if let Some(cookie) = console.jar().set(Name::Binding, &binding, PENDING_SECONDS) {
        answer.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(answer)
}

fn unavailable(e: &dyn std::error::Error) -> Fault {
    tracing::warn!(error = %e, "a login failed");
    Fault::new(StatusCode::BAD_GATEWAY, &format!("You could not be logged in: {e}."))
}

/// `GET /login/callback`: the issuer sent the browser back.
pub async fn callback(
    State(console): State<Console>,
    headers: HeaderMap,
    Query(said): Query<Callback>,
) -> Result<Response, Fault> {
    let provider = provider(&console)?;
    let known = remembered(&console, &headers, &said).await?;
    if said.iss.as_deref().is_some_and(|iss| iss != provider.issuer()) {
        return Err(Fault::bad("This answer is of another issuer. Log in again."));
    }
    if let Some(error) = &said.error {
        let more = said.error_description.as_deref().unwrap_or_default();
        let text = format!("The issuer did not log you in: {error}. {more}");
        return Err(Fault::new(StatusCode::FORBIDDEN, &text));
    }
    let who = provider
        .finish(said.code, known.verifier, known.nonce)
        .await
        .map_err(|e| unavailable(&e))?;
    // A new name, so that one that was in the browser before is worth nothing.
    let name = Secret::new()?;
    let before = console.jar().get(&headers, Name::Login).map(str::to_owned);
    let seconds = console.collector().config.console.absolute.0.as_secs();
    let cookie = console.jar().set(Name::Login, name.as_str(), seconds);
    let collector = console.collector().clone();
    let inner = collector.clone();
    let create = move |db: &crate::collector::db::Connection| {
        let issuer = inner.config.login.as_ref().map_or("", |l| l.issuer.as_str());
        logins::create(db, &inner.config, issuer, &who, &name, before.as_deref(), now_us())
    };
    collector.central.write(create).await?;
    let mut answer = Redirect::to(local(&known.next)).into_response();
    let cookies = [cookie, console.jar().clear(Name::Binding)];
    for cookie in cookies.into_iter().flatten() {
        answer.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(answer)
}

async fn remembered(
    console: &Console,
    headers: &HeaderMap,
    said: &Callback,
) -> Result<Remembered, Fault> {
    let unknown = || {
        Fault::bad("This login was not begun in this browser, or it took too long. Log in again.")
    };
    let binding = console.jar().get(headers, Name::Binding).ok_or_else(unknown)?.to_owned();
    let (state, now) = (said.state.clone(), now_us());
    let take = move |db: &crate::collector::db::Connection| logins::take(db, &state, &binding, now);
    console.collector().central.write(take).await?.ok_or_else(unknown)
}

/// `POST /logout`.
pub async fn logout(
    State(console): State<Console>,
    Signed { login, .. }: Signed<Nothing>,
) -> Result<Response, Fault> {
    let end = move |db: &crate::collector::db::Connection| logins::end(db, &login);
    console.collector().central.write(end).await?;
    let page = Out { frame: Frame::outside("Logged out") }.render()?;
    let mut answer = Html(page).into_response();
    if let Some(cookie) = console.jar().clear(Name::Login) {
        answer.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(answer)
}

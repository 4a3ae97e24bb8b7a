//! The console: pages for people who look, replay, approve and end.
//!
//! A person logs in at the organisation's issuer and holds a cookie that names a login here.
//! Pages are whole without script; what script there is brings them up to date and plays
//! terminals. Everything that comes from a session or a token is hostile and reaches a page only
//! as [`text::Shown`].
//!
//! What this module must never do: show an exact held statement to somebody who may not decide
//! it (that is asked of [`crate::collector::decisions`], never judged here), change anything on
//! a GET, or send anybody to another site but the issuer.

mod approvals;
mod assets;
mod cookies;
mod downloads;
mod fault;
pub(crate) mod find;
mod frame;
pub(crate) mod guard;
pub(crate) mod hosts;
mod legal;
mod live;
mod login;
mod logins;
mod oidc;
mod output;
mod play;
mod policies;
mod session;
mod sessions;
mod table;
mod text;
mod timeline;

use std::ops::Deref;
use std::sync::Arc;

use axum::Router;
use axum::response::Redirect;
use axum::routing::{get, post};
use tokio::sync::Semaphore;

use super::{Collector, CollectorError};
use cookies::Jar;
use fault::Fault;
use oidc::Provider;

/// People who follow something at a time.
const FOLLOWERS: usize = 500;
/// Downloads at a time.
const DOWNLOADS: usize = 8;

/// What all pages share.
#[derive(Clone)]
pub struct Console(Arc<Parts>);

/// See [`Console`].
pub struct Parts {
    collector: Arc<Collector>,
    provider: Option<Provider>,
    jar: Jar,
    /// Places for those who follow something.
    followers: Arc<Semaphore>,
    /// Places for those who download something.
    downloads: Arc<Semaphore>,
}

impl Deref for Console {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Parts {
    fn collector(&self) -> &Arc<Collector> {
        &self.collector
    }

    fn jar(&self) -> Jar {
        self.jar
    }

    fn origin(&self) -> &str {
        &self.collector.config.origin
    }

    /// Name and port under which it is reached.
    fn authority(&self) -> &str {
        self.origin().split_once("://").map_or("", |(_, rest)| rest)
    }
}

/// All pages of the console, without the headers that [`guard::headers`] adds. What is read here fails at start rather than at the first visit.
pub fn routes(collector: &Arc<Collector>) -> Result<Router, CollectorError> {
    let config = &collector.config;
    let provider = match &config.login {
        Some(login) => Some(Provider::new(login, &config.origin)?),
        None => None,
    };
    let console = Console(Arc::new(Parts {
        collector: Arc::clone(collector),
        provider,
        jar: Jar::of(&config.origin),
        followers: Arc::new(Semaphore::new(FOLLOWERS)),
        downloads: Arc::new(Semaphore::new(DOWNLOADS)),
    }));
    let pages = Router::new()
        .route("/", get(|| async { Redirect::to("/sessions") }))
        .route("/login", get(login::begin))
        .route("/login/callback", get(login::callback))
        .route("/logout", post(login::logout))
        .route("/sessions", get(sessions::list))
        .route("/sessions/{id}", get(session::show))
        .route("/sessions/{id}/follow", get(live::follow))
        .route("/sessions/{id}/play", get(play::show))
        .route("/sessions/{id}/download/{format}", get(downloads::session))
        .route("/sessions/{id}/kill", post(session::kill))
        .route("/approvals", get(approvals::list))
        .route("/approvals/{id}", get(approvals::show).post(approvals::decide))
        .route("/hosts", get(hosts::list))
        .route("/legal-holds", get(legal::list).post(legal::place))
        .route("/legal-holds/{id}/release", post(legal::release))
        .route("/policies", get(policies::list))
        .route("/policies/{version}", get(policies::show))
        .route("/live/{kind}", get(live::changes))
        .route("/assets/{name}", get(assets::serve))
        .fallback(|| async { Fault::not_found("There is no such page.") })
        .layer(axum::middleware::from_fn_with_state(console.clone(), guard::same_site));
    Ok(pages.with_state(console))
}

/// Runs what reads replicas where it may block.
async fn blocking<T, F>(work: F) -> Result<T, Fault>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Fault> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, "the console failed");
            let text = "The collector could not make this page. Its log says why.";
            Err(Fault::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, text))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    /// Text from sessions holds markup of ours (`<span class="ctl">`), which would end an
    /// attribute. So attributes hold only what is named here: addresses that we make, words of
    /// ours, and plain strings, which the template escapes.
    const IN_ATTRIBUTES: &[&str] = &[
        "asked.principal",
        "anywhere",
        "asked.q",
        "at",
        "at.exact",
        "c.ch",
        "c.value",
        "cast",
        "e.seq",
        "e.when.exact",
        "frame.csrf",
        "frame.icon()",
        "frame.live",
        "frame.roles",
        "frame.script()",
        "frame.style()",
        "frame.told",
        "h.enrolled.exact",
        "h.href",
        "h.id|urlencode",
        "h.opened.exact",
        "h.state",
        "h.tag",
        "h.until_ms",
        "history.href",
        "hold.id|urlencode",
        "hold.opened.exact",
        "hold.tag",
        "hold.until_ms",
        "id",
        "l.id",
        "l.placed.exact",
        "last",
        "line.opened.exact",
        "m.seq",
        "m.seq - 1",
        "m.verdict",
        "m.when.exact",
        "m.width",
        "m.x",
        "newest",
        "next",
        "o.stream()",
        "r.verdict",
        "s.href",
        "s.opened.exact",
        "script",
        "session",
        "since.exact",
        "start",
        "state",
        "style",
        "until.exact",
        "v.number",
        "v.when.exact",
        "verified.state",
        "version.when.exact",
        "when.exact",
    ];

    #[test]
    fn recorded_text_stands_in_no_attribute_and_no_script() {
        let attribute = regex::Regex::new(r#"="([^"<>]*\{\{[^"<>]*)""#).unwrap();
        let value = regex::Regex::new(r"\{\{(.*?)\}\}").unwrap();
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/templates/console");
        let mut seen = 0;
        for file in std::fs::read_dir(dir).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(!text.contains("|safe") && !text.contains(" style="), "{}", path.display());
            for script in text.split("<script").skip(1) {
                assert!(script.starts_with(" src="), "{}: a script in a page", path.display());
            }
            for found in attribute.captures_iter(&text) {
                for expression in value.captures_iter(&found[1]) {
                    let name = expression[1].trim();
                    assert!(
                        IN_ATTRIBUTES.contains(&name),
                        "{}: {name} in an attribute",
                        path.display()
                    );
                    seen += 1;
                }
            }
        }
        assert!(seen > 40, "only {seen} attributes were looked at");
    }
}

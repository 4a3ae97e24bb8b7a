//! What stands before every page: who is there, where the request comes from, and the headers
//! that hold for every answer.

use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::header::{self, HeaderName};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use subtle::ConstantTimeEq;

use super::Console;
use super::cookies::Name;
use super::fault::Fault;
use super::logins::{self, Login};
use super::text::query;
use crate::collector::Role;
use crate::record::now_us;

/// Largest form.
const MAX_FORM: usize = 64 * 1024;
/// Nothing is loaded but what is served here, nothing is framed, no script stands in a page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      font-src 'self'; connect-src 'self'; form-action 'self'; \
                      frame-ancestors 'none'; base-uri 'none'";
/// The same for the terminal player, which is compiled to WebAssembly. It may compile that, and
/// still not evaluate text as script.
const PLAYER_POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; \
                             style-src 'self'; img-src 'self'; font-src 'self'; \
                             connect-src 'self'; form-action 'self'; frame-ancestors 'none'; \
                             base-uri 'none'";

/// Marks an answer that holds the terminal player.
#[derive(Debug, Clone, Copy)]
pub struct WithPlayer;

/// Puts the strict headers on every answer, whatever it is.
pub async fn headers(request: Request, next: Next) -> Response {
    let mut answer = next.run(request).await;
    let player = answer.extensions().get::<WithPlayer>().is_some();
    let keep = answer.headers().contains_key(header::CACHE_CONTROL);
    let map = answer.headers_mut();
    let mut set = |name: HeaderName, value: &'static str| {
        map.insert(name, HeaderValue::from_static(value));
    };
    let policy = if player { PLAYER_POLICY } else { POLICY };
    set(header::CONTENT_SECURITY_POLICY, policy);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    set(header::X_FRAME_OPTIONS, "DENY");
    set(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    set(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    set(
        HeaderName::from_static("permissions-policy"),
        "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    );
    if !keep {
        set(header::CACHE_CONTROL, "no-store");
    }
    answer
}

/// Refuses requests that were meant for another name (rebound DNS), and changes that another
/// site set off.
pub async fn same_site(State(console): State<Console>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(|a| a.as_str()));
    if !host.is_some_and(|h| h.eq_ignore_ascii_case(console.authority())) {
        let text = format!("This console answers under {} only.", console.origin());
        return Fault::new(StatusCode::MISDIRECTED_REQUEST, &text).into_response();
    }
    let safe = matches!(*request.method(), Method::GET | Method::HEAD);
    if !safe && !from_here(headers, console.origin()) {
        let text = "This change was set off by another site, or your browser does not say by \
                    which. Nothing was done. Open the console and try again.";
        return Fault::new(StatusCode::FORBIDDEN, text).into_response();
    }
    next.run(request).await
}

/// Whether a change comes from one of our own pages. Browsers write `Origin: null` because our
/// pages send no referrer, so that word counts for nothing, and Sec-Fetch-Site decides.
fn from_here(headers: &HeaderMap, origin: &str) -> bool {
    let one = |name: &str| {
        let mut all = headers.get_all(name).iter();
        let first = all.next().map(|v| v.to_str().unwrap_or("?"));
        if all.next().is_some() { Some("?") } else { first }
    };
    let stated = one("origin").filter(|o| *o != "null");
    match (one("sec-fetch-site"), stated) {
        (Some("same-origin"), None) => true,
        (Some("same-origin") | None, Some(stated)) => stated == origin,
        _ => false,
    }
}

/// Somebody who is logged in and sees sessions. Who is not logged in is sent to the login.
pub struct Viewer(pub Login);

impl FromRequestParts<Console> for Viewer {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, console: &Console) -> Result<Self, Response> {
        match present(&parts.headers, console).await? {
            Some(login) if logins::sees(&login.person) => Ok(Self(login)),
            Some(login) => {
                let text = format!(
                    "You are logged in as {}, and none of your groups has a role here. Ask an \
                     administrator to add one to [roles] in the collector's configuration.",
                    login.person.name
                );
                Err(Fault::new(StatusCode::FORBIDDEN, &text).of(&login).into_response())
            }
            None => Err(ask_to_log_in(parts)),
        }
    }
}

fn ask_to_log_in(parts: &Parts) -> Response {
    let page = parts.method == Method::GET
        && parts.headers.get("sec-fetch-dest").is_none_or(|d| d == "document");
    if !page {
        let text = "You are not logged in any more. Log in and try again.";
        return Fault::new(StatusCode::UNAUTHORIZED, text).into_response();
    }
    let wanted = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    Redirect::to(&format!("/login?next={}", query(wanted))).into_response()
}

/// Who is logged in with this request's cookie, and who uses the console by it.
pub async fn present(headers: &HeaderMap, console: &Console) -> Result<Option<Login>, Response> {
    let Some((login, due)) = look(headers, console).await? else { return Ok(None) };
    // What a page asks for by itself is no use of it.
    let by_itself = headers.get("sec-fetch-dest").is_some_and(|dest| dest == "empty");
    if due && !by_itself {
        let (used, now) = (login.clone(), now_us());
        let touch = move |db: &crate::collector::db::Connection| logins::touch(db, &used, now);
        let touched = console.collector().central.write(touch).await;
        touched.map_err(|e| Fault::from(e).into_response())?;
    }
    Ok(Some(login))
}

/// The same without using it, and whether a use would have to be noted.
pub async fn look(
    headers: &HeaderMap,
    console: &Console,
) -> Result<Option<(Login, bool)>, Response> {
    let Some(name) = console.jar().get(headers, Name::Login).map(str::to_owned) else {
        return Ok(None);
    };
    let collector = console.collector().clone();
    let now = now_us();
    let inner = collector.clone();
    let find =
        move |db: &crate::collector::db::Connection| logins::find(db, &inner.config, &name, now);
    collector.central.read(find).await.map_err(|e| Fault::from(e).into_response())
}

/// Refuses a person without a role.
pub fn demand(login: &Login, role: Role) -> Result<(), Fault> {
    if login.person.is(role) {
        return Ok(());
    }
    let needed = match role {
        Role::Viewer => "viewer",
        Role::Approver => "approver",
        Role::Admin => "administrator",
    };
    let text = format!("This needs the role {needed}, which none of your groups has.");
    Err(Fault::new(StatusCode::FORBIDDEN, &text).of(login))
}

/// A form that one of our pages gave this very login.
pub struct Signed<T> {
    /// Who sent it.
    pub login: Login,
    /// What it says.
    pub form: T,
}

#[derive(Deserialize)]
struct WithToken<T> {
    #[serde(default)]
    csrf: String,
    #[serde(flatten)]
    form: T,
}

impl<T: DeserializeOwned> FromRequest<Console> for Signed<T> {
    type Rejection = Response;

    async fn from_request(request: Request, console: &Console) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let Viewer(login) = Viewer::from_request_parts(&mut parts, console).await?;
        let form = parts.headers.get(header::CONTENT_TYPE).is_some_and(|t| {
            t.to_str().is_ok_and(|t| t.starts_with("application/x-www-form-urlencoded"))
        });
        let refuse = |status, text: &str| Fault::new(status, text).of(&login).into_response();
        let bytes = axum::body::to_bytes(body, MAX_FORM)
            .await
            .map_err(|_| refuse(StatusCode::PAYLOAD_TOO_LARGE, "This form is too large."))?;
        let read = serde_urlencoded::from_bytes::<WithToken<T>>(&bytes);
        let (Ok(read), true) = (read, form) else {
            return Err(refuse(StatusCode::BAD_REQUEST, "This form cannot be read."));
        };
        if !bool::from(read.csrf.as_bytes().ct_eq(login.csrf.as_bytes())) {
            let text = "This form is of another login. Nothing was done. Reload the page.";
            return Err(refuse(StatusCode::FORBIDDEN, text));
        }
        Ok(Self { form: read.form, login })
    }
}

/// A path on this very site to go to, or the start page. `//host`, `/\host` and whatever else
/// a browser might take for another site is none.
pub fn local(next: &str) -> &str {
    let fine = next.starts_with('/')
        && !next.starts_with("//")
        && !next.starts_with("/login")
        && next.len() <= 2000
        && next.bytes().all(|b| (0x21..0x7f).contains(&b) && b != b'\\');
    if fine { next } else { "/" }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_to_another_site() {
        for good in ["/", "/sessions?q=a%20b", "/sessions/01J/play#1", "/a//b"] {
            assert_eq!(local(good), good);
        }
        for bad in [
            "",
            "//evil.example",
            "/\\evil.example",
            "\\\\evil",
            "https://evil.example",
            "evil",
            "javascript:alert(1)",
            "/\t/evil",
            "/\n/evil",
            " /x",
            "/a b",
            "/login?next=/",
            "/ü",
        ] {
            assert_eq!(local(bad), "/", "{bad:?}");
        }
    }

    #[test]
    fn only_our_own_pages_change_something() {
        let ours = "https://c.example.com";
        let ask = |pairs: &[(&str, &str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in pairs {
                let name = HeaderName::try_from(*name).unwrap();
                map.append(name, HeaderValue::from_str(value).unwrap());
            }
            from_here(&map, ours)
        };
        for good in [
            &[("sec-fetch-site", "same-origin")][..],
            &[("sec-fetch-site", "same-origin"), ("origin", "null")],
            &[("sec-fetch-site", "same-origin"), ("origin", ours)],
            &[("origin", ours)],
        ] {
            assert!(ask(good), "{good:?}");
        }
        for bad in [
            &[][..],
            &[("origin", "null")],
            &[("origin", "https://evil.example")],
            &[("origin", "https://c.example.com.evil.example")],
            &[("origin", "http://c.example.com")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site"), ("origin", ours)],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "cross-site"), ("origin", ours)],
            &[("sec-fetch-site", "same-origin"), ("origin", "https://evil.example")],
            &[("origin", ours), ("origin", "https://evil.example")],
        ] {
            assert!(!ask(bad), "{bad:?}");
        }
    }
}

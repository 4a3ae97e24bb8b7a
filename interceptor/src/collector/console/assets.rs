//! Style, scripts and the terminal player: files that are in the binary, under names that say
//! which contents they have, so that a browser may keep them.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::fault::Fault;
use crate::record::chain::{self, hex};

const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

struct Asset {
    path: String,
    kind: &'static str,
    bytes: &'static [u8],
}

impl Asset {
    fn new(stem: &str, end: &str, kind: &'static str, bytes: &'static [u8]) -> Self {
        let digest = hex(&chain::hash(b"interceptor asset\0", &[bytes]));
        Self { path: format!("/assets/{stem}-{}.{end}", &digest[..12]), kind, bytes }
    }
}

static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    let mut all = vec![
        Asset::new("console", "css", CSS, include_bytes!("../../../assets/console.css")),
        Asset::new("console", "js", JS, include_bytes!("../../../assets/console.js")),
        Asset::new("icon", "svg", SVG, include_bytes!("../../../assets/icon.svg")),
        Asset::new("play", "js", JS, include_bytes!("../../../assets/play.js")),
    ];
    all.extend(player_files());
    all
});

/// The player comes from npm when the binary is built (`cargo xtask setup console`); an ordinary
/// build does without.
#[cfg(embedded_player)]
fn player_files() -> Vec<Asset> {
    vec![
        Asset::new(
            "player",
            "js",
            JS,
            include_bytes!(concat!(env!("OUT_DIR"), "/asciinema-player.min.js")),
        ),
        Asset::new(
            "player",
            "css",
            CSS,
            include_bytes!(concat!(env!("OUT_DIR"), "/asciinema-player.css")),
        ),
    ]
}

#[cfg(not(embedded_player))]
fn player_files() -> Vec<Asset> {
    Vec::new()
}

fn path(stem: &str, end: &str) -> &'static str {
    let start = format!("/assets/{stem}-");
    let found = ASSETS.iter().find(|a| a.path.starts_with(&start) && a.path.ends_with(end));
    found.map_or("", |a| a.path.as_str())
}

/// Address of the style sheet.
pub fn style() -> &'static str {
    path("console", ".css")
}

/// Address of the script.
pub fn script() -> &'static str {
    path("console", ".js")
}

/// Address of the icon.
pub fn icon() -> &'static str {
    path("icon", ".svg")
}

/// Addresses of the terminal player's style, its script, and ours that starts it; none when it
/// is not in this binary.
pub fn player() -> Option<(&'static str, &'static str, &'static str)> {
    let files = (path("player", ".css"), path("player", ".js"), path("play", ".js"));
    (!files.0.is_empty() && !files.1.is_empty()).then_some(files)
}

/// `GET /assets/{name}`.
pub async fn serve(Path(name): Path<String>) -> Response {
    let wanted = format!("/assets/{name}");
    match ASSETS.iter().find(|a| a.path == wanted) {
        Some(asset) => {
            let mut answer = (StatusCode::OK, asset.bytes).into_response();
            let headers = answer.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(asset.kind));
            let keep = HeaderValue::from_static("public, max-age=31536000, immutable");
            headers.insert(CACHE_CONTROL, keep);
            answer
        }
        None => Fault::not_found("There is no such file. Reload the page.").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_are_served_under_their_contents_name_and_nothing_else_is() {
        let name = style().strip_prefix("/assets/").unwrap().to_owned();
        assert_eq!(serve(Path(name)).await.status(), StatusCode::OK);
        for bad in ["console.css", "../Cargo.toml", "..%2fCargo.toml", "", "/etc/passwd"] {
            assert_eq!(serve(Path(bad.into())).await.status(), StatusCode::NOT_FOUND, "{bad}");
        }
    }
}

//! The console's cookies.
//!
//! Over HTTPS every name begins with `__Host-`, so that no other host and no plain connection
//! can set one, and every cookie is Secure. On plain loopback, where browsers refuse both,
//! they do without. A cookie that comes twice is taken for none: one of them was planted.

use axum::http::header::COOKIE;
use axum::http::{HeaderMap, HeaderValue};

/// Longest value that is looked at.
const MAX_VALUE: usize = 128;

/// How cookies are written at this address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jar {
    secure: bool,
}

/// Which cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// Who is logged in.
    Login,
    /// Which browser a login under way belongs to.
    Binding,
}

impl Jar {
    /// For the console's public address.
    pub fn of(origin: &str) -> Self {
        Self { secure: origin.starts_with("https://") }
    }

    fn name(self, name: Name) -> &'static str {
        match (name, self.secure) {
            (Name::Login, true) => "__Host-interceptor",
            (Name::Login, false) => "interceptor",
            (Name::Binding, true) => "__Host-interceptor-login",
            (Name::Binding, false) => "interceptor-login",
        }
    }

    /// The value of a cookie.
    pub fn get(self, headers: &HeaderMap, name: Name) -> Option<&str> {
        let wanted = self.name(name);
        let mut found = None;
        for header in headers.get_all(COOKIE) {
            for pair in header.to_str().ok()?.split(';') {
                let Some((key, value)) = pair.trim().split_once('=') else { continue };
                if key == wanted && found.replace(value).is_some() {
                    return None;
                }
            }
        }
        found.filter(|v| !v.is_empty() && v.len() <= MAX_VALUE && v.bytes().all(plain))
    }

    /// Sets a cookie for a number of seconds. The value is base64url.
    pub fn set(self, name: Name, value: &str, seconds: u64) -> Option<HeaderValue> {
        let secure = if self.secure { "; Secure" } else { "" };
        let text = format!(
            "{}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}",
            self.name(name)
        );
        if !value.bytes().all(plain) {
            return None;
        }
        HeaderValue::try_from(text).ok()
    }

    /// Takes a cookie away.
    pub fn clear(self, name: Name) -> Option<HeaderValue> {
        self.set(name, "", 0)
    }
}

fn plain(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'-' || b == b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for v in values {
            map.append(COOKIE, HeaderValue::from_str(v).unwrap());
        }
        map
    }

    #[test]
    fn over_https_cookies_are_bound_to_the_host() {
        let jar = Jar::of("https://collector.example.com");
        let set = jar.set(Name::Login, "abc", 60).unwrap();
        assert_eq!(
            set,
            "__Host-interceptor=abc; Path=/; Max-Age=60; HttpOnly; SameSite=Lax; Secure"
        );
        assert!(!set.to_str().unwrap().contains("Domain"));
        let plain = Jar::of("http://127.0.0.1:8443").set(Name::Login, "abc", 60).unwrap();
        assert_eq!(plain, "interceptor=abc; Path=/; Max-Age=60; HttpOnly; SameSite=Lax");
        assert_eq!(jar.set(Name::Login, "a; Domain=evil", 1), None);
    }

    #[test]
    fn planted_and_malformed_cookies_are_none() {
        let jar = Jar::of("https://c.example.com");
        let get = |values: &[&str]| jar.get(&headers(values), Name::Login).map(str::to_owned);
        assert_eq!(get(&["a=b; __Host-interceptor=abc"]).as_deref(), Some("abc"));
        assert_eq!(get(&["__Host-interceptor=a; __Host-interceptor=b"]), None);
        assert_eq!(get(&["__Host-interceptor=a", "__Host-interceptor=b"]), None);
        assert_eq!(get(&["interceptor=abc"]), None, "the plain name is not taken over HTTPS");
        assert_eq!(get(&["__Host-interceptor="]), None);
        assert_eq!(get(&["__Host-interceptor=a b"]), None);
        assert_eq!(get(&[&format!("__Host-interceptor={}", "a".repeat(200))]), None);
        assert_eq!(get(&[]), None);
    }
}

//! HTTPS towards an issuer, and towards nobody else: no redirects, bounded in time, trusting the
//! machine's authorities and, where configured, some more.

use std::fmt::Display;
use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use reqwest::{Client, ClientBuilder, Url};

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A client for one issuer. Plain HTTP is for loopback addresses only, and only where allowed.
pub(crate) fn client(
    origin: &Url,
    ca_file: Option<&Path>,
    insecure_loopback: bool,
) -> Result<Client, String> {
    if origin.query().is_some() || origin.fragment().is_some() || !origin.username().is_empty() {
        return Err("url must have no user, query or fragment".into());
    }
    build(origin, ca_file, insecure_loopback)
}

/// A client for messages to one address, whose path and query may be its secret.
pub(crate) fn message_client(url: &Url) -> Result<Client, String> {
    build(url, None, true)
}

/// A client for one receiver of events, with authorities of its own beside the machine's.
pub(crate) fn receiver_client(url: &Url, ca_file: Option<&Path>) -> Result<Client, String> {
    build(url, ca_file, true)
}

/// Longest wait for an object, either way.
const OBJECT: Duration = Duration::from_secs(300);
/// A store of objects that is silent for so long is away.
const SILENCE: Duration = Duration::from_secs(30);

/// A client for a store of objects, with authorities of its own beside the machine's.
pub(crate) fn object_client(url: &Url, ca_file: Option<&Path>) -> Result<Client, String> {
    let client = builder(url, ca_file, true)?.timeout(OBJECT).read_timeout(SILENCE);
    client.build().map_err(|e| format!("cannot prepare HTTPS: {}", chain(&e)))
}

fn build(origin: &Url, ca_file: Option<&Path>, insecure_loopback: bool) -> Result<Client, String> {
    let client = builder(origin, ca_file, insecure_loopback)?;
    client.build().map_err(|e| format!("cannot prepare HTTPS: {}", chain(&e)))
}

fn builder(
    origin: &Url,
    ca_file: Option<&Path>,
    insecure_loopback: bool,
) -> Result<ClientBuilder, String> {
    install_crypto();
    let plain = origin.scheme() == "http" && insecure_loopback && is_loopback(origin);
    if origin.scheme() != "https" && !plain {
        return Err("url must be https (http only with insecure_loopback = true and a loopback \
                    address)"
            .into());
    }
    let mut client = Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .https_only(!plain)
        .connect_timeout(TIMEOUT)
        .timeout(TIMEOUT)
        .pool_max_idle_per_host(1)
        .user_agent(concat!("interceptor/", env!("CARGO_PKG_VERSION")));
    if is_loopback(origin) {
        client = client.no_proxy();
    }
    if let Some(file) = ca_file {
        let fail = |e: &dyn Display| format!("ca_file {}: {e}", file.display());
        let pem = std::fs::read(file).map_err(|e| fail(&e))?;
        let certs = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| fail(&e))?;
        if certs.is_empty() {
            return Err(fail(&"no certificate in it"));
        }
        client = client.tls_certs_merge(certs);
    }
    Ok(client)
}

fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback()),
        None => false,
    }
}

/// An error with all its reasons on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Chooses the cryptography of the process once; a choice made before stays.
pub(crate) fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_or_real_loopback_is_asked() {
        let client = |url: &str| client(&Url::parse(url).unwrap(), None, true);
        for good in [
            "https://e.okta.com/oauth2/default",
            "http://127.0.0.1:9/oauth2/default",
            "http://[::1]:9/oauth2/default",
            "http://localhost:9/x",
        ] {
            assert!(client(good).is_ok(), "{good}");
        }
        for bad in [
            "http://e.okta.com/oauth2/default",
            "http://127.0.0.1.evil.example/oauth2/default",
            "http://localhost.evil.example/",
            "http://127.0.0.1@evil.example/",
            "https://e.okta.com/?x=1",
            "ftp://127.0.0.1/",
        ] {
            assert!(client(bad).is_err(), "{bad}");
        }
        let url = Url::parse("http://127.0.0.1:9/").unwrap();
        assert!(super::client(&url, None, false).is_err(), "not unless allowed");
    }
}

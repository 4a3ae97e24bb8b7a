//! The addresses for which a proof may be made: names that are ours, never what a client says.

use reqwest::Url;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Host and port of an https address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    host: String,
    port: u16,
}

/// All addresses under which agents know us.
#[derive(Debug)]
pub struct Origins(Vec<Origin>);

impl Origins {
    /// The configured ones, else the names of the certificate with our own port.
    pub fn new(urls: &[String], certificate: &[u8], port: u16) -> Result<Self, String> {
        let list = if urls.is_empty() {
            names(certificate)
                .iter()
                .filter_map(|name| origin(&format!("https://{name}:{port}/")))
                .collect()
        } else {
            let read = |url: &String| {
                origin(url).ok_or_else(|| format!("present.urls: {url:?} is no https address"))
            };
            urls.iter().map(read).collect::<Result<Vec<_>, _>>()?
        };
        if list.is_empty() {
            return Err("present.urls: the certificate has no plain name in it, so say under \
                        which https addresses agents know this host"
                .into());
        }
        Ok(Self(list))
    }

    /// Whether a proof's `htu` is one of our addresses with this path; query and fragment do not
    /// count (RFC 9449 §4.3).
    pub fn accept(&self, htu: &str, path: &str) -> bool {
        let Ok(url) = Url::parse(htu) else { return false };
        url.path() == path && origin(htu).is_some_and(|origin| self.0.contains(&origin))
    }
}

fn origin(url: &str) -> Option<Origin> {
    let url = Url::parse(url).ok()?;
    let plain = url.scheme() == "https" && url.username().is_empty() && url.password().is_none();
    let (host, port) = (url.host_str()?.to_owned(), url.port_or_known_default()?);
    plain.then_some(Origin { host, port })
}

/// The names of a certificate that stand for exactly one host.
fn names(certificate: &[u8]) -> Vec<String> {
    let Ok((_, parsed)) = x509_parser::certificate::X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(dns) if !dns.contains('*') => Some((*dns).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| std::net::Ipv4Addr::from(b).to_string()),
            16 => <[u8; 16]>::try_from(*bytes)
                .ok()
                .map(|b| format!("[{}]", std::net::Ipv6Addr::from(b))),
            _ => None,
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str]) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        rcgen::generate_simple_self_signed(names).unwrap().cert.der().to_vec()
    }

    #[test]
    fn a_proof_is_for_one_of_our_own_addresses() {
        let cert = certificate(&["db1.example.com", "10.0.0.1", "::1", "*.example.com"]);
        let origins = Origins::new(&[], &cert, 8443).unwrap();
        for (htu, good) in [
            ("https://db1.example.com:8443/v1/present", true),
            ("https://DB1.example.com:8443/v1/present", true),
            ("https://10.0.0.1:8443/v1/present", true),
            ("https://[::1]:8443/v1/present?x=1#y", true),
            ("https://db1.example.com/v1/present", false),
            ("http://db1.example.com:8443/v1/present", false),
            ("https://db1.example.com:8443/v1/ticket", false),
            ("https://db1.example.com:8443/v1/present/", false),
            ("https://x@db1.example.com:8443/v1/present", false),
            ("https://db2.example.com:8443/v1/present", false),
            ("https://evil.example/v1/present", false),
            ("nonsense", false),
        ] {
            assert_eq!(origins.accept(htu, "/v1/present"), good, "{htu}");
        }
    }

    #[test]
    fn configured_addresses_stand_alone() {
        let cert = certificate(&["db1.example.com"]);
        let origins = Origins::new(&["https://agents.example.com".into()], &cert, 8443).unwrap();
        assert!(origins.accept("https://agents.example.com/v1/ticket", "/v1/ticket"));
        assert!(!origins.accept("https://db1.example.com:8443/v1/ticket", "/v1/ticket"));
        assert!(Origins::new(&["http://x".into()], &cert, 1).is_err());
        assert!(Origins::new(&[], &certificate(&["*.example.com"]), 1).is_err());
        assert!(Origins::new(&[], b"rubbish", 1).is_err());
    }
}

//! Where recordings go, and from which size on: `[recordings]`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::Deserialize;

use crate::config::SecretRef;

/// Attachments of a session from which they are moved.
const FROM: u64 = 1 << 20;
/// Where a region means nothing.
const REGION: &str = "us-east-1";
/// Directory below the state directory.
const FOLDER: &str = "recordings";

/// `[recordings]`: where attachments of large sessions go.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `file:///folder` or `s3://bucket/prefix`; a folder below the state directory when absent,
    /// and with `[store]` nothing is moved then.
    pub url: Option<String>,
    /// Bytes of attachments of one session from which they are moved, at least 1.
    pub from: u64,
    /// Where S3 is, when it is not Amazon's: `https://name:port`.
    pub endpoint: Option<String>,
    /// Region of S3.
    pub region: Option<String>,
    /// As whom S3 is asked.
    pub access_key_id: Option<String>,
    /// The secret that belongs to it.
    pub secret_access_key: Option<SecretRef>,
    /// Certificate authorities of the endpoint beside the machine's (PEM).
    pub ca_file: Option<PathBuf>,
    /// An endpoint on this machine may be asked without TLS.
    pub allow_http: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: None,
            from: FROM,
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: None,
            ca_file: None,
            allow_http: false,
        }
    }
}

/// Where recordings are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: everything stays in the replicas.
    Off,
    /// Below a folder, made when it is the collector's own.
    Folder {
        /// It.
        path: PathBuf,
        /// It is below the state directory.
        own: bool,
    },
    /// In S3.
    S3 {
        /// Name of the bucket.
        bucket: String,
        /// Below this; may be empty.
        prefix: String,
        /// Where S3 is.
        endpoint: Url,
        /// Its region.
        region: String,
    },
}

impl Settings {
    /// What is wrong with it, in words. `shared`: several collectors work over one database.
    pub fn check(&self, shared: bool) -> Result<(), String> {
        self.place(Path::new("/"), shared).map(drop).map_err(|e| format!("recordings.{e}"))
    }

    /// Where recordings go.
    pub fn place(&self, state: &Path, shared: bool) -> Result<Place, String> {
        if self.from == 0 {
            return Err("from: at least 1; 1048576 moves sessions with a mebibyte of output".into());
        }
        let Some(url) = &self.url else {
            self.only_s3()?;
            return Ok(match shared {
                true => Place::Off,
                false => Place::Folder { path: state.join(FOLDER), own: true },
            });
        };
        let url = Url::parse(url).map_err(|e| format!("url: {e}"))?;
        let bare = url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none()
            && url.port().is_none();
        if !bare {
            return Err("url is a scheme, a bucket or folder and a prefix; who may ask stands in \
                        access_key_id and secret_access_key, where in endpoint"
                .into());
        }
        match url.scheme() {
            "file" => {
                self.only_s3()?;
                let path =
                    url.to_file_path().ok().filter(|p| p.is_absolute() && p.parent().is_some());
                let path = path.ok_or("url: a folder is written file:///srv/recordings")?;
                Ok(Place::Folder { path, own: false })
            }
            "s3" => self.s3(&url),
            other => {
                Err(format!("url: {other}:// is not known: file:///folder or s3://bucket/prefix"))
            }
        }
    }

    /// What belongs to S3 beside a folder is a slip.
    fn only_s3(&self) -> Result<(), String> {
        let there = [
            ("endpoint", self.endpoint.is_some()),
            ("region", self.region.is_some()),
            ("access_key_id", self.access_key_id.is_some()),
            ("secret_access_key", self.secret_access_key.is_some()),
            ("ca_file", self.ca_file.is_some()),
            ("allow_http", self.allow_http),
        ];
        match there.iter().find(|(_, there)| *there) {
            Some((name, _)) => Err(format!("{name} belongs to url = \"s3://bucket/prefix\"")),
            None => Ok(()),
        }
    }

    fn s3(&self, url: &Url) -> Result<Place, String> {
        let bucket = url.host_str().filter(|b| !b.is_empty());
        let bucket = bucket.ok_or("url: it begins with s3:// and a bucket")?.to_owned();
        let prefix = url.path().trim_matches('/').to_owned();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.=/".contains(c);
        if !prefix.chars().all(plain) || prefix.split('/').any(|s| s == "." || s == "..") {
            return Err("url: a prefix has letters, digits, and - _ . = between slashes".into());
        }
        if self.access_key_id.is_none() || self.secret_access_key.is_none() {
            return Err(
                "url: S3 asks who it is: say access_key_id and secret_access_key = { file \
                        = … }"
                    .into(),
            );
        }
        let region = match (&self.region, &self.endpoint) {
            (Some(region), _) => region.clone(),
            (None, Some(_)) => REGION.into(),
            (None, None) => return Err("region: name it, or an endpoint of your own".into()),
        };
        let named =
            !region.is_empty() && region.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if !named {
            return Err(format!("region {region:?} is none"));
        }
        let endpoint = match &self.endpoint {
            Some(endpoint) => self.endpoint(endpoint)?,
            None => Url::parse(&format!("https://s3.{region}.amazonaws.com"))
                .map_err(|e| format!("region: {e}"))?,
        };
        Ok(Place::S3 { bucket, prefix, endpoint, region })
    }

    fn endpoint(&self, endpoint: &str) -> Result<Url, String> {
        let url = Url::parse(endpoint).map_err(|e| format!("endpoint: {e}"))?;
        let bare = url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none()
            && url.path() == "/";
        if !bare || url.host_str().is_none() {
            return Err(
                "endpoint is a scheme, a name and a port: https://s3.example.com:9000".into()
            );
        }
        match url.scheme() {
            "https" => Ok(url),
            "http" if self.allow_http && is_loopback(&url) => Ok(url),
            "http" => Err("endpoint: recordings go over https:// only; http:// is for an address \
                           of this machine, with allow_http = true"
                .into()),
            other => Err(format!("endpoint: {other}:// is not known: https://")),
        }
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn place(toml: &str, shared: bool) -> Result<Place, String> {
        let settings: Settings = toml::from_str(toml).map_err(|e| e.to_string())?;
        settings.check(shared)?;
        settings.place(Path::new("/var/lib/c"), shared)
    }

    const KEYS: &str = "access_key_id = 'AK'\nsecret_access_key = { file = '/s' }\n";

    #[test]
    fn a_folder_of_its_own_unless_told_otherwise() {
        let own = Place::Folder { path: "/var/lib/c/recordings".into(), own: true };
        assert_eq!(place("", false), Ok(own));
        assert_eq!(place("", true), Ok(Place::Off), "a folder is not shared by itself");
        let folder = Place::Folder { path: "/srv/rec ordings".into(), own: false };
        assert_eq!(place("url = 'file:///srv/rec%20ordings'", true), Ok(folder));
        let s3 = place(&format!("url = 's3://bucket/a/b/'\nregion = 'eu-west-1'\n{KEYS}"), true);
        let Ok(Place::S3 { bucket, prefix, endpoint, region }) = s3 else { panic!("{s3:?}") };
        assert_eq!((&*bucket, &*prefix, &*region), ("bucket", "a/b", "eu-west-1"));
        assert_eq!(endpoint.as_str(), "https://s3.eu-west-1.amazonaws.com/");
        let here = "url = 's3://b'\nendpoint = 'http://127.0.0.1:9000'\nallow_http = true\n";
        let s3 = place(&format!("{here}{KEYS}"), true);
        assert!(matches!(&s3, Ok(Place::S3 { prefix, .. }) if prefix.is_empty()), "{s3:?}");
    }

    #[test]
    fn nonsense_and_what_is_not_safe_is_refused_in_words() {
        let with = |more: &str| format!("url = 's3://b'\nregion = 'r'\n{more}");
        for (toml, words) in [
            ("from = 0".to_owned(), "recordings.from: at least 1"),
            ("url = '/srv'".into(), "recordings.url: "),
            ("url = 'gs://bucket'".into(), "gs:// is not known"),
            ("url = 'file://host/srv'".into(), "file:///srv/recordings"),
            ("url = 'file:///'".into(), "file:///srv/recordings"),
            ("url = 's3://AK:secret@bucket'".into(), "secret_access_key"),
            ("url = 's3://bucket?x=1'".into(), "a scheme, a bucket or folder"),
            ("url = 's3://bucket/a%20b'".into(), "a prefix has"),
            (with(""), "say access_key_id"),
            ("url = 's3://b'\n".to_owned() + KEYS, "region: name it"),
            (
                with("endpoint = 'http://s3.example.com'\nallow_http = true\n") + KEYS,
                "https:// only",
            ),
            (with("endpoint = 'http://127.0.0.1:9'\n") + KEYS, "allow_http = true"),
            (with("endpoint = 'https://x/path'\n") + KEYS, "a scheme, a name and a port"),
            ("endpoint = 'https://x'".into(), "belongs to url"),
            ("url = 'file:///srv'\nregion = 'r'".into(), "recordings.region belongs to"),
            ("secret_access_key = 'in clear'".into(), "secret_access_key"),
            ("bucket = 'x'".into(), "unknown field"),
        ] {
            let said = place(&toml, false).unwrap_err();
            assert!(said.contains(words) && !said.contains("AK:secret"), "{toml}: {said}");
        }
    }
}

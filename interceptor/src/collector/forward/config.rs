//! What the collector is told about one forward: `[[forward]]`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use reqwest::Url;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName};
use rustls::pki_types::ServerName;
use serde::Deserialize;

use crate::config::{SecretRef, ServerTls};
use crate::record::ocsf::CLASSES;

/// Largest event that is passed on whole, unless `max_event` says otherwise.
const MAX_EVENT: usize = 256 << 10;
/// `max_event` lies between these: an event that was shortened still needs some room.
const EVENT_RANGE: std::ops::RangeInclusive<usize> = 4 << 10..=1 << 20;
/// Syslog facility "log audit" (RFC 5424, section 6.2.1).
const LOG_AUDIT: u8 = 13;

/// One other system that gets events.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Raw")]
pub struct Forward {
    /// Its name: under it the collector remembers how far it is.
    pub name: String,
    /// Where a forward that is new begins.
    pub from: Begin,
    /// Numbers of the OCSF classes that it gets; all when absent.
    pub classes: Option<BTreeSet<u32>>,
    /// Most bytes of one event; of a larger one the longest texts are cut.
    pub max_event: usize,
    /// How it is reached.
    pub to: To,
}

/// Where a forward that is new begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Begin {
    /// With everything that the collector has.
    Start,
    /// With what comes from then on.
    #[default]
    End,
}

/// How a forward is reached.
#[derive(Debug, Clone)]
pub enum To {
    /// A file of JSON lines.
    File {
        /// Its path.
        path: PathBuf,
    },
    /// A syslog receiver (RFC 5424 in RFC 5425).
    Syslog(Syslog),
    /// A receiver of OTLP logs over HTTP.
    Otlp(Otlp),
}

impl To {
    /// As it is configured, and as metrics show it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Syslog(_) => "syslog",
            Self::Otlp(_) => "otlp",
        }
    }
}

/// A syslog receiver.
#[derive(Debug, Clone)]
pub struct Syslog {
    /// Name or address, and port.
    pub address: String,
    /// Authorities of its certificate (PEM); no others are trusted.
    pub ca_file: PathBuf,
    /// Name that must stand in its certificate.
    pub server_name: ServerName<'static>,
    /// Certificate and key that are shown to it.
    pub client: Option<ServerTls>,
    /// Facility of the messages.
    pub facility: u8,
    /// What says that it has read a batch.
    pub acknowledge: Acknowledge,
}

/// What says that a syslog receiver has read a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Acknowledge {
    /// Its `close_notify`, which only the receiver itself can send.
    #[default]
    CloseNotify,
    /// Any orderly end of the connection, for receivers that never send one. A receiver that is
    /// killed between reading and writing loses what it had.
    Close,
}

/// A receiver of OTLP logs.
#[derive(Debug, Clone)]
pub struct Otlp {
    /// The whole URL, such as `https://otel.example.com:4318/v1/logs`.
    pub url: Url,
    /// Authorities beside the machine's (PEM).
    pub ca_file: Option<PathBuf>,
    /// Headers of each request; their values are secrets.
    pub headers: BTreeMap<String, SecretRef>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    to: Word,
    #[serde(default)]
    from: Begin,
    classes: Option<BTreeSet<String>>,
    max_event: Option<usize>,
    path: Option<PathBuf>,
    address: Option<String>,
    server_name: Option<String>,
    client: Option<ServerTls>,
    facility: Option<u8>,
    acknowledge: Option<Acknowledge>,
    url: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, SecretRef>,
    ca_file: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    File,
    Syslog,
    Otlp,
}

impl TryFrom<Raw> for Forward {
    type Error = String;

    fn try_from(raw: Raw) -> Result<Self, String> {
        let name = raw.name.clone();
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
        if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
            return Err(format!(
                "forward {name:?}: a name has 1 to 64 of the characters a-z, 0-9, - and _"
            ));
        }
        raw.check().map_err(|why| format!("forward {name:?}: {why}"))
    }
}

impl Raw {
    fn check(self) -> Result<Forward, String> {
        self.only_what_belongs()?;
        let max_event = self.max_event.unwrap_or(MAX_EVENT);
        if !EVENT_RANGE.contains(&max_event) {
            let (least, most) = EVENT_RANGE.into_inner();
            return Err(format!("max_event is between {least} and {most} bytes"));
        }
        let classes = self.classes.as_ref().map(numbers).transpose()?;
        let (name, from) = (self.name.clone(), self.from);
        let to = match self.to {
            Word::File => self.file()?,
            Word::Syslog => self.syslog()?,
            Word::Otlp => self.otlp()?,
        };
        Ok(Forward { name, from, classes, max_event, to })
    }

    /// A key that another kind of forward has is a mistake somebody should hear of.
    fn only_what_belongs(&self) -> Result<(), String> {
        let (file, syslog, otlp) = (Word::File, Word::Syslog, Word::Otlp);
        let keys: [(&str, bool, &[Word]); 9] = [
            ("path", self.path.is_some(), &[file]),
            ("address", self.address.is_some(), &[syslog]),
            ("server_name", self.server_name.is_some(), &[syslog]),
            ("client", self.client.is_some(), &[syslog]),
            ("facility", self.facility.is_some(), &[syslog]),
            ("acknowledge", self.acknowledge.is_some(), &[syslog]),
            ("url", self.url.is_some(), &[otlp]),
            ("headers", !self.headers.is_empty(), &[otlp]),
            ("ca_file", self.ca_file.is_some(), &[syslog, otlp]),
        ];
        for (key, there, kinds) in keys {
            if there && !kinds.contains(&self.to) {
                let kinds: Vec<_> = kinds.iter().map(|k| k.text()).collect();
                return Err(format!("{key} belongs to a forward with to = {}", kinds.join(" or ")));
            }
        }
        Ok(())
    }

    fn file(self) -> Result<To, String> {
        let path = self.path.ok_or("path: name the file, such as \"/var/log/x/ocsf.jsonl\"")?;
        match path.is_absolute() {
            true => Ok(To::File { path }),
            false => Err(format!("path {}: begin it with /", path.display())),
        }
    }

    fn syslog(self) -> Result<To, String> {
        let wanted = "address: name host and port, such as \"siem.example.com:6514\"";
        let address = self.address.ok_or(wanted)?;
        let (host, port) = address.rsplit_once(':').ok_or(wanted)?;
        if port.parse::<u16>().is_err() {
            return Err(wanted.into());
        }
        let shown = self.server_name.as_deref().unwrap_or(host).trim_matches(['[', ']']);
        let server_name = ServerName::try_from(shown.to_owned())
            .map_err(|_| format!("{shown:?} is no name that can stand in a certificate"))?;
        let facility = self.facility.unwrap_or(LOG_AUDIT);
        if facility > 23 {
            return Err("facility is between 0 and 23 (RFC 5424, section 6.2.1)".into());
        }
        let ca_file = self.ca_file.ok_or(
            "ca_file: name the file with the authority of the receiver's certificate (PEM)",
        )?;
        let (client, acknowledge) = (self.client, self.acknowledge.unwrap_or_default());
        Ok(To::Syslog(Syslog { address, ca_file, server_name, client, facility, acknowledge }))
    }

    fn otlp(self) -> Result<To, String> {
        let url = self.url.ok_or("url: such as \"https://otel.example.com:4318/v1/logs\"")?;
        // The text itself is not shown: some put secrets into their URLs.
        let url = Url::parse(&url).map_err(|e| format!("url: {e}"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("url: put user and password into headers, as a secret".into());
        }
        // Building a client opens nothing, and says whether the URL is one for it.
        if crate::identity::https::receiver_client(&url, None).is_err() {
            return Err("url: it must be https, or http to a loopback address".into());
        }
        for header in self.headers.keys() {
            let name: HeaderName =
                header.parse().map_err(|_| format!("headers: {header:?} is no header's name"))?;
            if [CONTENT_TYPE, CONTENT_LENGTH, HOST].contains(&name) {
                return Err(format!("headers: {header:?} is set by the collector itself"));
            }
        }
        Ok(To::Otlp(Otlp { url, ca_file: self.ca_file, headers: self.headers }))
    }
}

impl Word {
    fn text(self) -> &'static str {
        match self {
            Self::File => "\"file\"",
            Self::Syslog => "\"syslog\"",
            Self::Otlp => "\"otlp\"",
        }
    }
}

fn numbers(names: &BTreeSet<String>) -> Result<BTreeSet<u32>, String> {
    let known = || CLASSES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        return Err(format!("classes: leave it out for all, or name some of {}", known()));
    }
    names
        .iter()
        .map(|name| {
            let found = CLASSES.iter().find(|(known, _)| known == name).map(|(_, uid)| *uid);
            found.ok_or_else(|| format!("classes: {name:?} is none of {}", known()))
        })
        .collect()
}

/// Names are unique, since a cursor belongs to one forward, and so are files.
pub fn unique(all: &[Forward]) -> Result<(), String> {
    let (mut names, mut files) = (BTreeSet::new(), BTreeSet::new());
    for forward in all {
        if !names.insert(&forward.name) {
            return Err(format!("forward {:?} stands there twice: rename one", forward.name));
        }
        if let To::File { path } = &forward.to
            && !files.insert(path)
        {
            return Err(format!(
                "forward {:?}: another writes {} already",
                forward.name,
                path.display()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Forward, String> {
        toml::from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn each_kind_has_its_keys() {
        let file = parse("name = 'archive'\nto = 'file'\npath = '/var/log/x/ocsf.jsonl'").unwrap();
        assert_eq!((file.from, file.to.word(), file.classes), (Begin::End, "file", None));
        let syslog = parse(
            "name = 'siem'\nto = 'syslog'\naddress = '[::1]:6514'\nca_file = '/ca.pem'\n\
             from = 'start'\nclasses = ['authentication', 'ssh_activity']",
        )
        .unwrap();
        assert_eq!(syslog.classes, Some([3002, 4007].into()));
        let To::Syslog(syslog) = syslog.to else { panic!() };
        assert_eq!((syslog.server_name.to_str().as_ref(), syslog.facility), ("::1", 13));
        assert_eq!(syslog.acknowledge, Acknowledge::CloseNotify);
        let otlp = parse(
            "name = 'otel'\nto = 'otlp'\nurl = 'https://o.example.com:4318/v1/logs'\n\
             headers = { authorization = { file = '/etc/token' } }",
        )
        .unwrap();
        assert!(matches!(otlp.to, To::Otlp(o) if o.headers.len() == 1));
    }

    #[test]
    fn mistakes_are_said_in_words_that_help() {
        let tail = "address = 'a:1'\nca_file = '/ca.pem'";
        for (text, word) in [
            ("name = 'A b'\nto = 'file'\npath = '/x'", "characters a-z"),
            ("name = 'a'\nto = 'file'", "path: name the file"),
            ("name = 'a'\nto = 'file'\npath = 'x'", "begin it with /"),
            ("name = 'a'\nto = 'file'\npath = '/x'\nurl = 'https://x'", "url belongs to"),
            ("name = 'a'\nto = 'kafka'", "unknown variant"),
            ("name = 'a'\nto = 'file'\npath = '/x'\npaht = '/y'", "unknown field"),
            ("name = 'a'\nto = 'syslog'\naddress = 'a:1'", "ca_file: name the file"),
            ("name = 'a'\nto = 'syslog'\naddress = 'a'\nca_file = '/x'", "host and port"),
            (&format!("name = 'a'\nto = 'syslog'\nfacility = 24\n{tail}"), "between 0 and 23"),
            (&format!("name = 'a'\nto = 'syslog'\nmax_event = 9\n{tail}"), "max_event"),
            (&format!("name = 'a'\nto = 'syslog'\nclasses = ['dns']\n{tail}"), "is none of"),
            (&format!("name = 'a'\nto = 'syslog'\nclasses = []\n{tail}"), "leave it out"),
            ("name = 'a'\nto = 'otlp'\nurl = 'http://o.example.com/v1/logs'", "it must be https"),
            ("name = 'a'\nto = 'otlp'\nurl = 'https://u:p@o.example.com/'", "as a secret"),
            (
                "name = 'a'\nto = 'otlp'\nurl = 'https://o/'\nheaders = { host = { file = '/x' } }",
                "set by the collector",
            ),
        ] {
            let said = parse(text).unwrap_err();
            assert!(said.contains(word), "{text}\n{said}");
            assert!(!said.contains("u:p@"), "{said}");
        }
        let one = parse("name = 'a'\nto = 'file'\npath = '/x'").unwrap();
        assert!(unique(&[one.clone(), one.clone()]).unwrap_err().contains("twice"));
        let two = Forward { name: "b".into(), ..one.clone() };
        assert!(unique(&[one, two]).unwrap_err().contains("another writes"));
    }
}

//! Patterns of programs, paths and destinations.
//!
//! Each has two readings, as names of tables have: `may_match` counts what is unknown as a match,
//! `must_match` does not.

use std::fmt;
use std::net::IpAddr;

use globset::{GlobBuilder, GlobMatcher};
use ipnet::IpNet;

use super::facts::{Destination, FileUse, Place, Program};
use crate::policy::pattern::{MAX_PATTERN, Pattern};

/// Directories whose programs go by their bare names: only root writes there.
const STANDARD: [&str; 6] =
    ["/bin/", "/usr/bin/", "/sbin/", "/usr/sbin/", "/usr/local/bin/", "/usr/local/sbin/"];

/// A program: `ls` by that name or in a standard directory, `/opt/tool/run` at that path alone.
#[derive(Debug, Clone)]
pub struct ProgramPattern(Pattern);

impl ProgramPattern {
    /// Reads a pattern.
    pub fn new(source: &str) -> Result<Self, String> {
        if source.contains('/') && !source.starts_with('/') {
            return Err(format!("{source:?} is no program: write a name, or a path from /"));
        }
        // The other name of `test`, which would be an open class.
        Pattern::new(if source == "[" { r"\[" } else { source }).map(Self)
    }

    /// Whether the program fits; one whose name is not known may be any.
    pub fn may_match(&self, program: &Program) -> bool {
        let Some(name) = program.name.known() else { return true };
        if self.0.as_str().starts_with('/') {
            // A path that is not absolute, or takes a detour, may lead there.
            let base = self.0.as_str().rsplit('/').next().unwrap_or_default();
            return self.0.matches(name)
                || (Pattern::new(base).is_ok_and(|b| b.matches(program.base()))
                    && (!name.starts_with('/')
                        || name.contains("/.")
                        || name.contains("//")
                        || is_standard(name)));
        }
        self.0.matches(program.base()) || self.0.matches(name)
    }

    /// Whether the program certainly fits.
    pub fn must_match(&self, program: &Program) -> bool {
        let Some(name) = program.name.known() else { return false };
        if self.0.as_str().starts_with('/') {
            return name.starts_with('/') && straight(name) && self.0.matches(name);
        }
        match name.contains('/') {
            false => self.0.matches(name),
            true => is_standard(name) && self.0.matches(program.base()),
        }
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// Whether it lies directly in one of the standard directories.
fn is_standard(path: &str) -> bool {
    STANDARD.iter().any(|d| path.strip_prefix(d).is_some_and(|name| !name.contains('/')))
}

fn straight(path: &str) -> bool {
    path.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."))
}

/// Paths, as globs: `*` within a directory, `**` through directories, `~/` for a home directory.
#[derive(Clone)]
pub struct PathPattern {
    source: Box<str>,
    globs: Vec<GlobMatcher>,
    /// The part behind `~/`, for paths seen from the home directory.
    home: Option<GlobMatcher>,
    /// Each part of the path as a pattern of its own, for each place it may begin at.
    parts: Vec<Vec<Part>>,
}

#[derive(Clone)]
enum Part {
    Any,
    One(GlobMatcher),
}

/// Where home directories are, for `~/`.
const HOMES: [&str; 3] = ["/home/*/", "/root/", "/var/lib/*/"];

impl PathPattern {
    /// Reads a pattern.
    pub fn new(source: &str) -> Result<Self, String> {
        if source.len() > MAX_PATTERN {
            return Err(format!("a pattern has at most {MAX_PATTERN} bytes"));
        }
        let wholes: Vec<String> = match source.strip_prefix("~/") {
            Some(rest) => HOMES.iter().map(|home| format!("{home}{rest}")).collect(),
            None if source.starts_with('/') || source.starts_with("**/") || source == "**" => {
                vec![source.to_owned()]
            }
            None => return Err(format!("{source:?} is no path: begin it with /, **/ or ~/")),
        };
        let glob = |text: &str| {
            GlobBuilder::new(text)
                .backslash_escape(true)
                .literal_separator(true)
                .build()
                .map(|g| g.compile_matcher())
                .map_err(|e| format!("{source:?} is no glob: {}", e.kind()))
        };
        let part = |part: &str| match part {
            "**" => Ok(Part::Any),
            part => glob(part).map(Part::One),
        };
        // A brace over several parts cannot be taken apart; anything may lie below.
        let apart = source.find('{') > source.rfind('/') || !source.contains('{');
        let parts = wholes.iter().map(|whole| match apart {
            true => whole.trim_start_matches('/').split('/').map(part).collect(),
            false => Ok(vec![Part::Any]),
        });
        Ok(Self {
            home: source.strip_prefix("~/").map(glob).transpose()?,
            parts: parts.collect::<Result<_, String>>()?,
            globs: wholes.iter().map(|whole| glob(whole)).collect::<Result<_, String>>()?,
            source: source.into(),
        })
    }

    fn is_match(&self, path: &str) -> bool {
        self.globs.iter().any(|glob| glob.is_match(path))
    }

    /// Whether the file fits; one whose place is not known may be any.
    pub fn may_match(&self, file: &FileUse) -> bool {
        match &file.place {
            Place::Unknown => true,
            Place::At(path) => self.is_match(path),
            Place::Under(path) => self.is_match(path) || self.below(path),
            Place::Home(path) => self.at_home(path),
            Place::UnderHome(path) => {
                self.at_home(path) || homes(path).iter().any(|p| self.below(p))
            }
        }
    }

    /// Whether the file certainly fits.
    pub fn must_match(&self, file: &FileUse) -> bool {
        // Whose home it is, is not known.
        if self.home.is_some() {
            return false;
        }
        match &file.place {
            Place::At(path) => self.is_match(path),
            Place::Under(path) => {
                self.source.ends_with("/**") && self.is_match(&format!("{path}/x"))
            }
            Place::Home(_) | Place::UnderHome(_) | Place::Unknown => false,
        }
    }

    fn at_home(&self, path: &str) -> bool {
        if let Some(home) = &self.home {
            return home.is_match(path);
        }
        homes(path).iter().any(|p| self.is_match(p)) || self.ends_like(path)
    }

    /// Whether a pattern for any directory has the last parts of a path seen from one.
    fn ends_like(&self, path: &str) -> bool {
        let fits = |parts: &Vec<Part>| {
            let mut parts = parts.iter().rev();
            path.rsplit('/').all(|name| match parts.next() {
                None => false,
                Some(Part::Any) => true,
                Some(Part::One(part)) => part.is_match(name),
            })
        };
        self.source.starts_with("**") && self.parts.iter().any(fits)
    }

    /// Whether something below the directory may fit.
    fn below(&self, directory: &str) -> bool {
        self.parts.iter().any(|parts| {
            let mut parts = parts.iter();
            for name in directory.split('/').filter(|n| !n.is_empty()) {
                match parts.next() {
                    None => return false,
                    Some(Part::Any) => return true,
                    Some(Part::One(part)) if part.is_match(name) => {}
                    Some(Part::One(_)) => return false,
                }
            }
            parts.len() > 0
        })
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

/// A path below the usual home directories.
fn homes(path: &str) -> [String; 3] {
    let join = |home: &str| match path {
        "" => home.to_owned(),
        path => format!("{home}/{path}"),
    };
    [join("/home/user"), join("/root"), join("/var/lib/user")]
}

impl fmt::Debug for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.source)
    }
}

/// Where a forward may lead: `db.internal:5432`, `10.0.0.0/8:*`, `[fd00::1]:22`,
/// `*:8000-8999`, `unix:/run/app/*.sock`.
#[derive(Debug, Clone)]
pub struct DestinationPattern {
    source: Box<str>,
    kind: DestinationKind,
}

#[derive(Debug, Clone)]
enum DestinationKind {
    Unix(PathPattern),
    Tcp { host: HostPattern, ports: Option<(u32, u32)> },
}

#[derive(Debug, Clone)]
enum HostPattern {
    Network(IpNet),
    Name(Pattern),
}

impl DestinationPattern {
    /// Reads a pattern.
    pub fn new(source: &str) -> Result<Self, String> {
        let kind = match source.strip_prefix("unix:") {
            Some(path) => DestinationKind::Unix(PathPattern::new(path)?),
            None => {
                let (host, port) = source.rsplit_once(':').ok_or_else(|| {
                    format!("{source:?} is no destination: write \"host:port\" or \"unix:/path\"")
                })?;
                DestinationKind::Tcp { host: host_pattern(host)?, ports: ports(port)? }
            }
        };
        Ok(Self { source: source.into(), kind })
    }

    /// Whether the destination fits; a name may stand for any address.
    pub fn may_match(&self, destination: &Destination) -> bool {
        self.test(destination, true)
    }

    /// Whether the destination certainly fits.
    pub fn must_match(&self, destination: &Destination) -> bool {
        self.test(destination, false)
    }

    fn test(&self, destination: &Destination, unknown: bool) -> bool {
        match (&self.kind, destination) {
            (DestinationKind::Unix(pattern), Destination::Unix(path)) => {
                let place = super::requests::place(path);
                let file = FileUse {
                    op: super::facts::FileOp::Read,
                    place: if path.starts_with('/') { place } else { Place::Unknown },
                    written: String::new(),
                    implied: false,
                };
                if unknown { pattern.may_match(&file) } else { pattern.must_match(&file) }
            }
            (DestinationKind::Tcp { host, ports }, Destination::Tcp { host: to, port }) => {
                ports.is_none_or(|(low, high)| (low..=high).contains(port))
                    && host.test(to, unknown)
            }
            _ => false,
        }
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

impl HostPattern {
    fn test(&self, host: &str, unknown: bool) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let address = bare.parse::<IpAddr>().ok().map(|a| a.to_canonical());
        // `127.1`, `0x7f000001`, and a scope behind `%`, mean an address that is not spelt out.
        let disguised = address.is_none()
            && (bare.is_empty()
                || bare.contains([':', '%', '*'])
                || bare.split('.').all(|p| p.starts_with(|c: char| c.is_ascii_digit())));
        if disguised {
            return match self {
                _ if unknown => true,
                Self::Name(name) => name.as_str() == "*",
                Self::Network(_) => false,
            };
        }
        match (self, address) {
            (Self::Network(network), Some(address)) => match (network, address) {
                (IpNet::V4(n), IpAddr::V4(a)) => n.contains(&a),
                (IpNet::V6(n), IpAddr::V6(a)) => n.contains(&a),
                (IpNet::V6(n), IpAddr::V4(a)) => n.contains(&a.to_ipv6_mapped()),
                (IpNet::V4(_), IpAddr::V6(_)) => false,
            },
            (Self::Network(_), None) => unknown,
            (Self::Name(name), Some(address)) => {
                name.matches(bare)
                    || (unknown && address.is_loopback() && name.matches("localhost"))
            }
            (Self::Name(name), None) => name.matches(bare),
        }
    }
}

fn host_pattern(host: &str) -> Result<HostPattern, String> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let network = bare
        .parse::<IpNet>()
        .or_else(|_| bare.parse::<IpAddr>().map(|a| IpNet::from(a.to_canonical())));
    match network {
        Ok(network) => Ok(HostPattern::Network(network)),
        Err(_) if bare.contains('/') => Err(format!("{bare:?} is no network")),
        Err(_) => Pattern::new(&bare.to_ascii_lowercase()).map(HostPattern::Name),
    }
}

fn ports(text: &str) -> Result<Option<(u32, u32)>, String> {
    if text == "*" {
        return Ok(None);
    }
    let number = |t: &str| {
        t.parse::<u16>().map(u32::from).map_err(|_| {
            format!("{text:?} is no port: write a number, a range such as \"8000-8999\", or *")
        })
    };
    match text.split_once('-') {
        Some((low, high)) => Ok(Some((number(low)?, number(high)?))),
        None => number(text).map(|n| Some((n, n))),
    }
}

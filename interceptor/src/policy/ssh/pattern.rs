//! Patterns of programs, paths and destinations.
//!
//! Each has two readings, as names of tables have: `may_match` counts what is unknown as a match,
//! `must_match` does not.

use std::fmt;
use std::net::IpAddr;

use globset::{GlobBuilder, GlobMatcher};
use ipnet::IpNet;

use super::facts::{Destination, FileUse, Place, Program};
use super::home::{Home, below, join};
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

/// Where what lies below the directory of a transfer counts for patterns that begin with `**/`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Below {
    /// Wherever it is.
    #[default]
    Anywhere,
    /// Where a home directory would have it.
    Home,
}

/// Paths, as globs: `*` within a directory, `**` through directories, `~/` for a home directory.
#[derive(Clone)]
pub struct PathPattern {
    source: Box<str>,
    globs: Vec<GlobMatcher>,
    /// The part behind `~/`, for paths seen from the home directory.
    home: Option<GlobMatcher>,
    /// Each part of the path as a pattern of its own, for each place it may begin at.
    parts: Vec<Parts>,
    /// The same of what stands behind `~/` or `**/`, seen from a home directory.
    at_home: Option<Parts>,
}

type Parts = Vec<Part>;

#[derive(Clone)]
enum Part {
    Any,
    One(GlobMatcher),
}

/// Where home directories are, for `~`.
const HOMES: [&str; 3] = ["/home/*", "/root", "/var/lib/*"];

impl PathPattern {
    /// Reads a pattern.
    pub fn new(source: &str) -> Result<Self, String> {
        if source.len() > MAX_PATTERN {
            return Err(format!("a pattern has at most {MAX_PATTERN} bytes"));
        }
        let seen_from_home = if source == "~" { Some("") } else { source.strip_prefix("~/") };
        let wholes: Vec<String> = match seen_from_home {
            Some(rest) => HOMES.iter().map(|home| join(home, rest)).collect(),
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
        // A brace over several parts cannot be taken apart; anything may lie below.
        let apart = source.find('{') > source.rfind('/') || !source.contains('{');
        let parts = |whole: &str| -> Result<Parts, String> {
            let names = whole.split('/').filter(|name| !name.is_empty());
            match apart {
                true => names
                    .map(
                        |name| if name == "**" { Ok(Part::Any) } else { glob(name).map(Part::One) },
                    )
                    .collect(),
                false => Ok(vec![Part::Any]),
            }
        };
        Ok(Self {
            home: seen_from_home.map(glob).transpose()?,
            parts: wholes.iter().map(|whole| parts(whole)).collect::<Result<_, String>>()?,
            at_home: seen_from_home
                .or_else(|| source.strip_prefix("**/"))
                .map(parts)
                .transpose()?,
            globs: wholes.iter().map(|whole| glob(whole)).collect::<Result<_, String>>()?,
            source: source.into(),
        })
    }

    /// Whether the file fits; one whose place is not known may be any.
    pub fn may_match(&self, file: &FileUse, home: Option<&Home>, below: Below) -> bool {
        // Trees that get another name are many, and few hold what a pattern for anywhere means.
        let below = if file.carried { Below::Home } else { below };
        if let (Place::At(path) | Place::Under(path), Some(known)) = (&file.place, home) {
            let again = |path: String| {
                let place = match file.place {
                    Place::At(_) => Place::At(path),
                    _ => Place::Under(path),
                };
                self.may_be(&FileUse { place, ..file.clone() }, home, below)
            };
            if known.other_names(path).into_iter().any(again) {
                return true;
            }
        }
        self.may_be(file, home, below)
    }

    /// The same by the one name that the file has there.
    fn may_be(&self, file: &FileUse, home: Option<&Home>, below: Below) -> bool {
        match &file.place {
            Place::Unknown => true,
            Place::At(path) => self.is_at(path, home),
            Place::Under(path) if file.announced => self.named(|p| self.is_at(p, home), path),
            Place::Under(path) => {
                self.named(|p| self.is_at(p, home), path) || self.reaches(path, home, below)
            }
            Place::Home(path) => self.is_at_home(path),
            Place::UnderHome(path) if file.announced => self.named(|p| self.is_at_home(p), path),
            Place::UnderHome(path) => {
                self.named(|p| self.is_at_home(p), path)
                    || homes(path).iter().any(|p| self.reaches(p, None, below))
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
            Place::Under(path) if file.announced => self.named(|p| self.is_match(p), path),
            Place::Under(path) => self.all_below(|p| self.is_match(p), path),
            Place::Home(_) | Place::UnderHome(_) | Place::Unknown => false,
        }
    }

    fn is_match(&self, path: &str) -> bool {
        self.globs.iter().any(|glob| glob.is_match(path))
    }

    /// Whether an absolute path fits, the home directory being where it is known to be or where
    /// such directories are.
    fn is_at(&self, path: &str, home: Option<&Home>) -> bool {
        let seen = |glob: &GlobMatcher| {
            let mut names = home.into_iter().flat_map(Home::names);
            names.any(|home| below(home, path).is_some_and(|rest| glob.is_match(rest)))
        };
        self.is_match(path) || self.home.as_ref().is_some_and(seen)
    }

    /// Whether a path fits that is seen from a home directory nobody knows.
    fn is_at_home(&self, path: &str) -> bool {
        if let Some(home) = &self.home {
            return home.is_match(path);
        }
        homes(path).iter().any(|p| self.is_match(p)) || self.ends_like(path)
    }

    /// Whether a directory fits, or all that lies below it.
    fn named(&self, fits: impl Fn(&str) -> bool, directory: &str) -> bool {
        fits(directory) || self.all_below(fits, directory)
    }

    fn all_below(&self, fits: impl Fn(&str) -> bool, directory: &str) -> bool {
        self.source.ends_with("/**") && fits(&join(directory, "x"))
    }

    /// Whether a pattern for any directory has the last parts of a path seen from one.
    fn ends_like(&self, path: &str) -> bool {
        let fits = |parts: &Parts| {
            let mut parts = parts.iter().rev();
            path.rsplit('/').all(|name| match parts.next() {
                None => false,
                Some(Part::Any) => true,
                Some(Part::One(part)) => part.is_match(name),
            })
        };
        self.source.starts_with("**") && self.parts.iter().any(fits)
    }

    /// Whether something below an absolute directory may fit.
    fn reaches(&self, directory: &str, home: Option<&Home>, how: Below) -> bool {
        let anywhere = self.source.starts_with("**");
        if !(anywhere && how == Below::Home) && self.parts.iter().any(|p| leads(p, directory)) {
            return true;
        }
        let Some(parts) = self.at_home.as_ref().filter(|_| !anywhere || how == Below::Home) else {
            return false;
        };
        let known = home.into_iter().flat_map(Home::names).any(|home| {
            below(directory, home).is_some()
                || below(home, directory).is_some_and(|rest| leads(parts, rest))
        });
        known || usual(directory).is_some_and(|rest| leads(parts, rest))
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

/// Whether something below a directory, seen from where the parts begin, may fit.
fn leads(parts: &[Part], directory: &str) -> bool {
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
}

/// What of a directory lies below a usual home directory; empty where it holds some.
fn usual(directory: &str) -> Option<&str> {
    HOMES.iter().find_map(|home| {
        let mut rest = directory;
        for part in home.split('/').skip(1) {
            rest = rest.trim_start_matches('/');
            let (name, behind) = rest.split_once('/').unwrap_or((rest, ""));
            match name {
                "" => return Some(""),
                name if part == "*" || part == name => rest = behind,
                _ => return None,
            }
        }
        Some(rest)
    })
}

/// A path below the usual home directories.
fn homes(path: &str) -> [String; 3] {
    ["/home/user", "/root", "/var/lib/user"].map(|home| join(home, path))
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
                    announced: false,
                    carried: false,
                };
                match unknown {
                    true => pattern.may_match(&file, None, Below::Anywhere),
                    false => pattern.must_match(&file),
                }
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

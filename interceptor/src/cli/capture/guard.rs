//! Nobody is locked out: a port by which people administer this host is captured only when a way
//! in beside the daemon was shown, or else it is given back unless somebody comes in anew.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use ipnet::IpNet;

use super::caller::{self, Caller};
use super::pending::{Confirmed, Deadline, Pending, Proof, Waiting};
use super::places::{self, Places};
use super::watch;
use crate::capture::{self, AttachOptions, AttachReport, Before, Connection};
use crate::config::{Config, Protocol, Service, Upstream};

/// The port of SSH: guarded whatever is said to be spoken there.
const SSH: u16 = 22;

/// How an attach is guarded.
#[derive(Debug, Clone, Copy)]
pub struct Guard {
    /// Capture even if no way in was shown, and do not undo.
    pub no_confirm: bool,
    /// Time to confirm.
    pub undo_after: Duration,
}

/// A service by which people come in.
struct Guarded {
    service: String,
    port: u16,
    upstream: SocketAddr,
    exempt: Vec<IpNet>,
}

fn guarded(config: &Config) -> Vec<Guarded> {
    let guarded = |s: &&Service| s.protocol == Protocol::Ssh || s.port == SSH;
    let one = |s: &Service| Guarded {
        service: s.name.clone(),
        port: s.port,
        upstream: match &s.upstream {
            Upstream::Tcp { host, port, .. } => SocketAddr::new(*host, *port),
            Upstream::Unix { .. } => SocketAddr::new(IpAddr::from([127, 0, 0, 1]), s.port),
        },
        exempt: {
            let all = config.capture.exempt.iter().filter(|e| e.services.contains(&s.name));
            all.map(|e| e.source.trunc()).collect()
        },
    };
    config.services.iter().filter(guarded).map(one).collect()
}

/// How one guarded port stands before it is captured.
enum Standing {
    /// It is captured already, with no exempt source less.
    Stands,
    /// A way in was shown some other time.
    Confirmed,
    /// A way in is shown now.
    Shown(Proof),
    /// It will be given back unless that is shown.
    Waits(Waiting),
}

/// Captures the ports, guarded. Lines for people come with the report.
pub fn attach(
    config: &Config,
    mut options: AttachOptions,
    guard: Guard,
) -> anyhow::Result<(AttachReport, Vec<String>)> {
    let places = Places::of(&config.paths);
    let services = guarded(config);
    if services.is_empty() && !places.pending().exists() {
        return Ok((capture::attach(&options)?, Vec::new()));
    }
    let _lock = places.lock()?;
    let old = Pending::read(&places)?;
    let standing = services
        .iter()
        .map(|s| assess(s, &options, guard, &places, old.as_ref()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let waiting: Vec<Waiting> = standing
        .iter()
        .filter_map(|s| if let Standing::Waits(w) = s { Some(w.clone()) } else { None })
        .collect();
    let mut pending = Pending {
        pins: options.dir.clone(),
        netns: options.netns.clone(),
        deadline: match &old {
            Some(old) => old.deadline.clone(),
            None => Deadline::after(guard.undo_after)?,
        },
        attached: false,
        ports: waiting,
    };
    if !pending.ports.is_empty() {
        pending.keep(&places)?;
        watch::arm(&places).inspect_err(|_| {
            let _ = places::remove(&places.pending());
        })?;
    }
    // Connections that are open now may be the only way in that is left.
    options.keep_existing.extend(pending.ports.iter().map(|w| w.port));
    let report = match capture::attach(&options) {
        Ok(report) => report,
        Err(error) => {
            // Half an attach is taken back at once, not in two minutes.
            let _ = capture::restore(&options.dir, &befores(&pending));
            let back = old.unwrap_or_else(|| Pending { ports: Vec::new(), ..pending });
            back.keep(&places)?;
            return Err(error.into());
        }
    };
    for w in pending.ports.iter_mut().filter(|w| w.older.is_empty()) {
        w.older = cookies(&options, w)?;
    }
    pending.attached = true;
    pending.keep(&places)?;
    let lines = settle(&places, &services, standing, &pending, guard)?;
    Ok((report, lines))
}

fn assess(
    s: &Guarded,
    options: &AttachOptions,
    guard: Guard,
    places: &Places,
    old: Option<&Pending>,
) -> anyhow::Result<Standing> {
    let waits = old.and_then(|o| o.ports.iter().find(|w| w.port == s.port));
    let before = match waits {
        Some(waits) => waits.before.clone(),
        None => now(options, s.port)?,
    };
    let holds = |was: &Vec<IpNet>| was.iter().all(|net| s.exempt.contains(net));
    if waits.is_none() && before.exempt.as_ref().is_some_and(holds) {
        return Ok(Standing::Stands);
    }
    if Confirmed::read(places).iter().any(|c| c.covers(s.port, &s.exempt)) {
        return Ok(Standing::Confirmed);
    }
    if let Some(source) = live_exempt(options, s)? {
        return Ok(Standing::Shown(Proof::ExemptConnection { source }));
    }
    if guard.no_confirm {
        return Ok(Standing::Shown(Proof::NoConfirm));
    }
    Ok(Standing::Waits(Waiting {
        service: s.service.clone(),
        port: s.port,
        upstream: s.upstream,
        exempt: s.exempt.clone(),
        older: waits.map(|w| w.older.clone()).unwrap_or_default(),
        before,
    }))
}

fn now(options: &AttachOptions, port: u16) -> anyhow::Result<Before> {
    let before = capture::before(&options.dir, &[port])?;
    before.into_iter().next().context("nothing is known of the port")
}

/// An operator's live connection to the port from an exempt source: the caller's own, or one by
/// which somebody is logged in. From this host itself it shows no way in.
fn live_exempt(options: &AttachOptions, s: &Guarded) -> anyhow::Result<Option<SocketAddr>> {
    let caller = Caller::here();
    let live = capture::connections(options.netns.as_deref(), s.port)?;
    let shows = |c: &&Connection| {
        comes_from_outside(c)
            && s.exempt.iter().any(|net| net.contains(&c.remote.ip()))
            && (caller.came_by(c) || caller::is_login(c))
    };
    Ok(live.iter().find(shows).map(|c| c.remote))
}

fn comes_from_outside(c: &Connection) -> bool {
    !c.remote.ip().is_loopback() && c.remote.ip() != c.local.ip()
}

/// The connections there are, both to the port and to the service behind it.
fn cookies(options: &AttachOptions, w: &Waiting) -> anyhow::Result<Vec<u64>> {
    let mut all = capture::connections(options.netns.as_deref(), w.port)?;
    if w.upstream.port() != w.port {
        all.extend(capture::connections(options.netns.as_deref(), w.upstream.port())?);
    }
    // Never empty: an empty list means that nobody has looked.
    Ok(std::iter::once(0).chain(all.iter().map(|c| c.cookie)).collect())
}

fn befores(pending: &Pending) -> Vec<Before> {
    pending.ports.iter().map(|w| w.before.clone()).collect()
}

/// Remembers what was shown, and says how each port stands.
fn settle(
    places: &Places,
    services: &[Guarded],
    standing: Vec<Standing>,
    pending: &Pending,
    guard: Guard,
) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    for (s, standing) in services.iter().zip(standing) {
        let (port, service) = (s.port, &s.service);
        match standing {
            Standing::Stands | Standing::Confirmed => {}
            Standing::Shown(proof) => {
                let line = match &proof {
                    Proof::NoConfirm => format!(
                        "port {port} ({service}) captured with --no-confirm: nothing will undo it"
                    ),
                    Proof::ExemptConnection { source } => format!(
                        "port {port} ({service}) captured; {} is exempt and connected right now",
                        source.ip()
                    ),
                    _ => format!("port {port} ({service}) captured"),
                };
                places.note(&line);
                confirmed(service, port, &s.exempt, proof).keep(places)?;
                lines.push(line);
            }
            Standing::Waits(_) => places.note(&format!(
                "port {port} ({service}) captured; to be undone in {} s unless confirmed",
                guard.undo_after.as_secs()
            )),
        }
    }
    lines.extend(pending.lines(places));
    Ok(lines)
}

fn confirmed(service: &str, port: u16, exempt: &[IpNet], proof: Proof) -> Confirmed {
    let (service, exempt, at) = (service.to_owned(), exempt.to_vec(), jiff::Timestamp::now());
    Confirmed { service, port, exempt, at, proof }
}

/// Ends the wait of each port to which the caller has come by a new connection. Gives lines for
/// people; an error when none is proven.
pub fn confirm(places: &Places) -> anyhow::Result<Vec<String>> {
    if !places.pending().exists() {
        bail!("{}", nothing_waits(places));
    }
    let _lock = places.lock()?;
    let Some(mut pending) = Pending::read(places)? else { bail!("{}", nothing_waits(places)) };
    if !pending.attached {
        bail!("the attach has not finished: run this again in a moment");
    }
    let (caller, mut lines, mut refused) = (Caller::here(), Vec::new(), Vec::new());
    let mut left = Vec::new();
    for w in std::mem::take(&mut pending.ports) {
        match proof(&pending, &w, &caller)? {
            Ok(proof) => {
                let how = match &proof {
                    Proof::NewExemptSession { source } => format!("a new session from {source}"),
                    _ => "a new session through the daemon".into(),
                };
                let line = format!("port {} ({}) confirmed by {how}", w.port, w.service);
                confirmed(&w.service, w.port, &w.exempt, proof).keep(places)?;
                places.note(&line);
                lines.push(line);
            }
            Err(why) => {
                refused.push(format!("port {} ({}): {why}", w.port, w.service));
                left.push(w);
            }
        }
    }
    pending.ports = left;
    pending.keep(places)?;
    if lines.is_empty() {
        bail!("{}", refused.join("\n"));
    }
    lines.extend(refused);
    Ok(lines)
}

fn nothing_waits(places: &Places) -> String {
    match places.last_note() {
        Some(note) => format!("no capture waits to be confirmed; last: {note}"),
        None => "no capture waits to be confirmed".into(),
    }
}

/// Whether the caller came in anew, and which way; else why that does not count.
fn proof(
    pending: &Pending,
    w: &Waiting,
    caller: &Caller,
) -> anyhow::Result<Result<Proof, &'static str>> {
    if !caller.is_known() {
        return Ok(Err("this is no SSH session: log in anew and confirm from there"));
    }
    let netns = pending.netns.as_deref();
    let mut live = capture::connections(netns, w.port)?;
    if w.upstream.port() != w.port {
        live.extend(capture::connections(netns, w.upstream.port())?);
    }
    let mine: Vec<_> = live.iter().filter(|c| caller.came_by(c)).collect();
    if mine.is_empty() {
        return Ok(Err("this SSH session did not come in by that port"));
    }
    let Some(new) = mine.iter().find(|c| !w.older.contains(&c.cookie)) else {
        return Ok(Err("this SSH session is older than the capture: log in anew"));
    };
    let source = new.remote;
    let exempt = w.exempt.iter().any(|net| net.contains(&source.ip()));
    if new.local.port() == w.port && comes_from_outside(new) && exempt {
        return Ok(Ok(Proof::NewExemptSession { source }));
    }
    if capture::is_upstream(&pending.pins, source, new.local)? {
        return Ok(Ok(Proof::NewSession { source }));
    }
    Ok(Err("this SSH session came neither from an exempt source nor through the daemon"))
}

/// Gives the waiting ports back: they are what they were, and all others stay. `known` is what
/// to go by when the file cannot be read. Gives lines for people.
pub fn give_back(places: &Places, known: Option<&Pending>) -> anyhow::Result<Vec<String>> {
    let _lock = places.lock()?;
    let found = match (Pending::read(places), known) {
        (Ok(found), _) => found,
        (Err(_), Some(known)) => Some(known.clone()),
        (Err(error), None) => return Err(error),
    };
    let Some(pending) = found else { return Ok(vec!["no capture waits: nothing to undo".into()]) };
    capture::restore(&pending.pins, &befores(&pending))?;
    places::remove(&places.pending())?;
    let line = |w: &Waiting| {
        let line = match w.before.exempt {
            None => format!("port {} ({}) is open again as before", w.port, w.service),
            Some(_) => format!("port {} ({}) has its exempt sources back", w.port, w.service),
        };
        places.note(&line);
        line
    };
    Ok(pending.ports.iter().map(line).collect())
}

/// Forgets what waits, after everything was detached.
pub fn withdraw(places: &Places) -> anyhow::Result<()> {
    if !places.pending().exists() {
        return Ok(());
    }
    let _lock = places.lock()?;
    places::remove(&places.pending())
}

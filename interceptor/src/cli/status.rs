//! `interceptor status`: the state of the running daemon at one glance.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::approvals::control_socket;
use super::capture::Waiting;
use super::capture::places::Places;
use super::table::{Paint, Table, bytes, json, print, safe, span};
use crate::config::Config;
use crate::control::protocol::Op;
use crate::control::{CentralStatus, Client, RecordStatus, Status};
use crate::record::terminal::local_time;

/// The state of the running daemon at one glance.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  interceptor status
  interceptor status --json | jq .services

The exit status is 1 when the daemon does not run, a service has no listener, or the store
refuses new requests.")]
pub struct StatusArgs {
    /// JSON for scripts.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub async fn run(args: StatusArgs, config: &Path) -> anyhow::Result<ExitCode> {
    // First, since it is there even when the daemon is not.
    let waiting = waiting(config);
    if !args.json {
        for line in &waiting.lines {
            print(&(Paint::stdout().bad(&safe(&format!("CAPTURE NOT CONFIRMED: {line}"))) + "\n"))?;
        }
    }
    let status: Status = Client::connect(&control_socket(config)?)?.call(Op::Status)?;
    if args.json {
        let mut status = serde_json::to_value(&status)?;
        status["capture_waiting"] = serde_json::to_value(&waiting.pending)?;
        print(&(json(&status)? + "\n"))?;
    } else {
        print(&render(&status, Paint::stdout()))?;
    }
    Ok(ExitCode::from(u8::from(!healthy(&status))))
}

fn waiting(config: &Path) -> Waiting {
    let paths = Config::load(config).map(|c| c.paths).unwrap_or_default();
    Waiting::look(&Places::of(&paths))
}

fn healthy(status: &Status) -> bool {
    status.record.refusing.is_none() && status.services.iter().all(|s| s.listening)
}

fn render(s: &Status, paint: Paint) -> String {
    let mut out = String::new();
    for alarm in alarms(s) {
        let _ = writeln!(out, "{}", paint.bad(&safe(&alarm)));
    }
    let _ = writeln!(
        out,
        "interceptor {} on {}, process {}, up {}",
        safe(&s.version),
        safe(&s.host),
        s.pid,
        span(Duration::from_secs(s.uptime_s))
    );
    let _ = writeln!(
        out,
        "sessions   {} live, {} held, {} grants standing",
        s.live_sessions, s.held, s.grants
    );
    let _ = writeln!(out, "policy     {}, {} rules", safe(&s.policy.version), s.policy.rules);
    if let Some(central) = &s.policy.central {
        let _ = writeln!(out, "central    {}", from_centre(central));
    }
    let _ = writeln!(out, "record     {}", record(&s.record));
    if let Some(ship) = &s.ship {
        let _ = writeln!(out, "collector  {}", super::ship::line(ship));
    }
    for i in &s.issuers {
        let age = i.keys_age_s.map_or("never fetched".into(), |a| {
            format!("fetched {} ago", span(Duration::from_secs(a)))
        });
        let _ = writeln!(out, "issuer     {}: {} keys, {age}", safe(&i.name), i.keys);
    }
    let mut table = Table::new(&[
        "SERVICE", "PORT", "PROTOCOL", "MODE", "LISTENER", "LIVE", "STEERED", "REFUSED", "EXEMPT",
        "OWN",
    ]);
    for v in &s.services {
        table.row([
            v.name.clone(),
            v.port.to_string(),
            v.protocol.clone(),
            if v.mode == "observe" { "OBSERVE".into() } else { v.mode.clone() },
            if v.listening { "yes".into() } else { "NO".into() },
            v.live.to_string(),
            v.steered.to_string(),
            v.refused.to_string(),
            v.exempt.to_string(),
            v.own.to_string(),
        ]);
    }
    out.push('\n');
    out + &table.render(paint)
}

/// Policies of the centre.
fn from_centre(c: &CentralStatus) -> String {
    let since = c.since_us.map(|us| format!(", since {}", local_time(us))).unwrap_or_default();
    match (c.version, c.in_force) {
        (0, _) => "no version yet: this host's own policies alone".into(),
        (version, false) => {
            format!("withdrawn by version {version}{since}: this host's own policies alone")
        }
        (version, true) => {
            format!("version {version}, {} rules, SHA-256 {:.16}…{since}", c.rules, safe(&c.sha256))
        }
    }
}

fn record(r: &RecordStatus) -> String {
    let share = r.bytes.saturating_mul(100).checked_div(r.max_bytes).unwrap_or(0);
    format!(
        "{} of {} ({share} %), durability {}",
        bytes(r.bytes),
        bytes(r.max_bytes),
        safe(&r.durability)
    )
}

/// What must not be overlooked, loudest first.
fn alarms(s: &Status) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(why) = &s.record.refusing {
        all.push(format!(
            "THE STORE REFUSES: {why}; new requests are refused until that is mended"
        ));
    }
    for v in &s.services {
        if !v.listening {
            all.push(format!(
                "{} HAS NO LISTENER: every connection to port {} is refused",
                v.name, v.port
            ));
        }
        if v.mode == "observe" {
            all.push(format!(
                "{} IS IN OBSERVE MODE: nothing is refused, held or masked on port {}",
                v.name, v.port
            ));
        }
    }
    if let Some(why) = &s.policy.reload_error {
        all.push(format!("POLICY RELOAD FAILED, the rules before it stay in force: {why}"));
    }
    if let Some((central, why)) =
        s.policy.central.as_ref().and_then(|c| Some((c, c.error.as_ref()?)))
    {
        let which = central.refused.map(|v| format!(" (version {v})")).unwrap_or_default();
        all.push(format!(
            "POLICIES OF THE CENTRE{which} ARE NOT IN FORCE, what was before stays: {why}"
        ));
    }
    let r = &s.record;
    if r.refusing.is_none()
        && r.max_bytes > 0
        && r.bytes.saturating_mul(10) >= r.max_bytes.saturating_mul(8)
    {
        all.push("the store is more than 80 % full: it refuses when it is full".into());
    }
    if let Some(why) = s.ship.as_ref().and_then(|ship| ship.problem.as_ref()) {
        all.push(format!("RECORDS ARE NOT SHIPPED: {why}"));
    }
    for i in &s.issuers {
        if let Some(why) = &i.error {
            all.push(format!("keys of issuer {} cannot be fetched: {why}", i.name));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{IssuerStatus, PolicyStatus, ServiceStatus};

    fn status() -> Status {
        Status {
            version: "0.1.0".into(),
            pid: 42,
            host: "db1".into(),
            uptime_s: 3720,
            services: vec![ServiceStatus {
                name: "orders-db".into(),
                protocol: "postgres".into(),
                port: 5432,
                mode: "enforce".into(),
                listening: true,
                steered: 17,
                ..Default::default()
            }],
            policy: PolicyStatus { version: "ab12".into(), rules: 3, ..Default::default() },
            issuers: vec![IssuerStatus {
                name: "okta".into(),
                keys: 2,
                keys_age_s: Some(61),
                error: None,
            }],
            record: RecordStatus {
                bytes: 10,
                max_bytes: 100,
                durability: "process".into(),
                refusing: None,
            },
            ..Default::default()
        }
    }

    #[test]
    fn a_healthy_daemon_raises_no_alarm() {
        let text = render(&status(), Paint::plain());
        assert!(alarms(&status()).is_empty() && healthy(&status()));
        for want in
            ["up 1h 02m", "orders-db  5432", "17", "fetched 1m 01s ago", "10 B of 100 B (10 %)"]
        {
            assert!(text.contains(want), "{want} in\n{text}");
        }
    }

    #[test]
    fn observe_mode_a_refusing_store_and_a_missing_listener_are_loud() {
        type Change = fn(&mut Status);
        let cases: [(Change, &str, bool); 8] = [
            (|s| s.services[0].mode = "observe".into(), "IN OBSERVE MODE", true),
            (|s| s.services[0].listening = false, "HAS NO LISTENER", false),
            (
                |s| s.record.refusing = Some("disk full".into()),
                "THE STORE REFUSES: disk full",
                false,
            ),
            (|s| s.record.bytes = 80, "80 % full", true),
            (|s| s.policy.reload_error = Some("a.toml:3".into()), "a.toml:3", true),
            (|s| s.issuers[0].error = Some("timeout".into()), "issuer okta", true),
            (
                |s| {
                    let error = Some("central:8/a.toml:3: no".into());
                    let central = CentralStatus { error, refused: Some(8), ..Default::default() };
                    s.policy.central = Some(central);
                },
                "POLICIES OF THE CENTRE (version 8) ARE NOT IN FORCE",
                true,
            ),
            (
                |s| {
                    let problem = Some("revoked".into());
                    s.ship = Some(crate::control::ShipStatus { problem, ..Default::default() });
                },
                "RECORDS ARE NOT SHIPPED: revoked",
                true,
            ),
        ];
        for (change, want, well) in cases {
            let mut s = status();
            change(&mut s);
            let text = render(&s, Paint::plain());
            assert!(text.lines().next().unwrap().contains(want), "{want} first in\n{text}");
            assert_eq!(healthy(&s), well, "{want}");
        }
    }
}

//! A collector process on a bed's host, with people who log in at its console.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::bed::Bed;
use crate::net::Place;
use crate::paths::program;
use crate::people::{CLIENT, People, SECRET};
use crate::proc::{Cmd, Daemon, wait_for};
use crate::visitor::{Answer, Visitor};

/// Where people reach the console, inside the host's network.
pub const ORIGIN: &str = "http://127.0.0.1:8443";
/// Its port.
pub const CONSOLE: u16 = 8443;
/// Where hosts come in.
pub const HOSTS: &str = "https://127.0.0.1:8444";
/// Long enough for a loaded machine; nothing waits for it to pass.
const SOON: Duration = Duration::from_secs(30);

/// A running collector.
pub struct Central {
    /// The process.
    pub process: Daemon,
    /// Where its people log in.
    pub people: People,
    netns: String,
    config: PathBuf,
}

impl Central {
    /// Starts a collector and an issuer with people: id, name, groups (`viewers`, `approvers`,
    /// `admins`).
    pub fn start(bed: &Bed, everybody: &[(&str, &str, &[&str])]) -> Result<Self> {
        let (dir, netns) = (bed.dir().join("central"), bed.net().name(Place::Host));
        std::fs::create_dir_all(&dir)?;
        let people = People::start_in(bed.net(), Place::Host, &dir, ORIGIN, everybody)?;
        let secret = dir.join("secret");
        std::fs::write(&secret, SECRET)?;
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600))?;
        let config = dir.join("collector.toml");
        std::fs::write(
            &config,
            format!(
                "state = {:?}\norigin = '{ORIGIN}'\n\
                 [hosts]\nlisten = '127.0.0.1:8444'\nnames = ['127.0.0.1']\n\
                 [console]\nlisten = '127.0.0.1:8443'\n\
                 [login]\nname = 'people'\nissuer = '{}'\nclient_id = '{CLIENT}'\n\
                 client_secret = {{ file = {secret:?} }}\n\
                 [roles]\nviewer = ['viewers']\napprover = ['approvers']\nadmin = ['admins']\n",
                dir.join("state"),
                people.issuer(),
            ),
        )?;
        cli(&config, &netns, &["init"])?.ok()?;
        let process = cli(&config, &netns, &["run"])?.daemonize(&dir.join("collector.log"))?;
        Ok(Self { process, people, netns, config })
    }

    /// Runs `interceptor collector` there.
    pub fn cli(&self, args: &[&str]) -> Result<Cmd> {
        cli(&self.config, &self.netns, args)
    }

    /// Enrols the bed's daemon and starts it, or starts it again.
    pub fn join(&self, bed: &mut Bed, name: &str) -> Result<()> {
        let own = bed.interceptor()?.config().to_owned();
        // A host takes decisions only of people whose tokens it could judge. A loaded machine may
        // not have reserved a token in time.
        let more = format!(
            "\n[ship]\ncollector = \"{HOSTS}\"\non_timeout = \"allow\"\n\
             [[issuer]]\nname = 'people'\nurl = '{}'\ninsecure_loopback = true\n",
            self.people.issuer()
        );
        std::fs::write(&own, std::fs::read_to_string(&own)? + &more)?;
        let code: Value =
            serde_json::from_str(&self.cli(&["enrol", "--name", name, "--json"])?.ok()?)?;
        let get = |what: &str| code[what].as_str().context("a code").map(str::to_owned);
        let (code, pin) = (get("code")?, get("authority_pin")?);
        wait_for("the enrolment", SOON, || {
            let enrol = ["ship", "enrol", "--code", &code, "--authority-pin", &pin];
            let out = bed.interceptor()?.cli(enrol).run()?;
            ensure!(out.success() || out.all().contains("away"), "{out}");
            Ok(out.success().then_some(()))
        })?;
        bed.interceptor_mut()?.stop();
        bed.interceptor_mut()?.start()
    }

    /// Somebody who is logged in at the console.
    pub fn log_in(&self, bed: &Bed, id: &str) -> Result<Visitor> {
        bed.net().inside(Place::Host, || {
            let mut visitor = Visitor::default();
            self.people.next(id)?;
            let answer = visitor.visit(&format!("{ORIGIN}/login?next=/"))?;
            ensure!(answer.status == 200, "{}", answer.text());
            Ok(visitor)
        })
    }
}

/// A page of the console.
pub fn page(bed: &Bed, who: &mut Visitor, path: &str) -> Result<Answer> {
    bed.net().inside(Place::Host, || who.get(&format!("{ORIGIN}{path}")))
}

/// Sends a form as the page does that has it, and follows where it leads.
pub fn post(bed: &Bed, who: &mut Visitor, path: &str, form: &[(&str, &str)]) -> Result<Answer> {
    let csrf = page(bed, who, "/approvals")?.csrf().context("a form")?;
    let mut all = vec![("csrf", csrf.as_str())];
    all.extend_from_slice(form);
    let answer = bed.net().inside(Place::Host, || who.post(&format!("{ORIGIN}{path}"), &all))?;
    match answer.header("location") {
        Some(next) if answer.status == 303 => page(bed, who, next),
        _ => Ok(answer),
    }
}

/// A page, once it says something.
pub fn until(bed: &Bed, who: &mut Visitor, path: &str, words: &str) -> Result<String> {
    let mut last = String::new();
    let came = wait_for(words, SOON, || {
        last = page(bed, who, path)?.text();
        Ok(last.contains(words).then_some(()))
    });
    came.with_context(|| format!("{path}: {last}"))?;
    Ok(last)
}

/// Where the one request that waits is decided.
pub fn next_hold(bed: &Bed, who: &mut Visitor) -> Result<String> {
    let list = until(bed, who, "/approvals", "One request waits.")?;
    let path = list.split("class=\"hold\" href=\"").nth(1).and_then(|t| t.split('"').next());
    Ok(path.context("a link to the request")?.to_owned())
}

fn cli(config: &std::path::Path, netns: &str, args: &[&str]) -> Result<Cmd> {
    let cmd = Cmd::new(program("interceptor")?).args(["collector", "--collector-config"]);
    Ok(cmd.arg(config).args(args).in_netns(netns))
}

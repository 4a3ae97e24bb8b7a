//! Shows the main job on real parts, step by step, and checks every outcome.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Result, bail};
use clap::Parser;
use interceptor_tests::accounts::DEPLOY;
use interceptor_tests::bed::{Bed, Spec, cannot_ssh};
use interceptor_tests::central::{CONSOLE, Central, ORIGIN};
use interceptor_tests::cluster::DATABASE;
use interceptor_tests::forward::forward;
use interceptor_tests::net::{HOST_V4, Place};
use interceptor_tests::sshkey::Certificate;
use interceptor_tests::story::{INTERRUPTED, Teller, colour, tell};
use interceptor_tests::tokens::Claims;
use nix::sys::signal::{SigSet, Signal};

/// A protected host in miniature, and what happens on it.
#[derive(Parser)]
struct Options {
    /// Leave everything running afterwards, until Ctrl-C, and print how to connect by hand.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    match demo(&Options::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("{failed} step(s) differ from what is promised");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(options: &Options) -> Result<u32> {
    if let Some(why) = cannot_ssh() {
        bail!("{why}");
    }
    let ended = listen()?;
    println!(
        "Building a protected host: namespaces, PostgreSQL with sample data, sshd, issuer, capture, daemon …"
    );
    let mut bed = Bed::with(Spec::both())?;
    let mut out = std::io::stdout().lock();
    let (failed, central) = tell(&mut bed, &mut Teller::new(&mut out, colour()))?;
    if options.keep {
        explain(&bed, &mut out)?;
        if let Some(central) = &central {
            explain_console(&bed, central, &mut out)?;
        }
        drop(out);
        ended.recv()?;
        println!("\nremoving it all");
    }
    Ok(failed)
}

/// Gives notice of Ctrl-C and its kind. The signals are blocked before any thread is there, so
/// that only the listening thread sees them; programs we start have them unblocked again.
fn listen() -> Result<Receiver<()>> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
            let _ = sender.send(());
        }
    });
    Ok(receiver)
}

fn explain(bed: &Bed, out: &mut impl Write) -> Result<()> {
    let interceptor = bed.interceptor()?;
    let token = bed.dir().join("token");
    let fresh = Claims::reporter().lasting(3500);
    interceptor_tests::cluster::write_private(&token, bed.token(&fresh)?.as_bytes())?;
    let as_agent = as_agent(bed)?;
    let (agent, host) = (bed.net().name(Place::Agent), bed.net().name(Place::Host));
    let program = interceptor_tests::paths::program("interceptor")?;
    let issuer = interceptor_tests::paths::program("okta-like-issuer")?;
    let dir = bed.dir().display();
    let cli = format!(
        "nsenter --net=/run/netns/{host} {} --config {}",
        program.display(),
        interceptor.config().display()
    );
    writeln!(
        out,
        "\nStill running, until Ctrl-C. From another terminal, as root:\n\n\
         as the agent (the token is good for about an hour):\n  \
         PGPASSWORD=$(cat {token}) PGSSLMODE=verify-full PGSSLROOTCERT={ca} \\\n    \
         nsenter --net=/run/netns/{agent} psql -h {HOST_V4} -U app_ro {DATABASE}\n\
         the same by ssh (its certificate is good for about an hour):\n  \
         {as_agent} ssh {DEPLOY}@{HOST_V4} 'cat orders.txt'\n\
         another token:\n  \
         {issuer} mint --state {dir}/issuer --claims '{{…}}'\n\
         on the host:\n  \
         {cli} status\n  {cli} approvals list\n  {cli} sessions list\n\
         policies (then `… policy reload`):\n  {policies}\n\
         the daemon's log:\n  {dir}/daemon.log",
        as_agent = as_agent.display(),
        token = token.display(),
        ca = bed.tls.ca.display(),
        issuer = issuer.display(),
        policies = interceptor.policies().display(),
    )?;
    out.flush()?;
    Ok(())
}

/// Where a person decides and looks, with a browser on this machine.
fn explain_console(bed: &Bed, central: &Central, out: &mut impl Write) -> Result<()> {
    let netns = bed.net().name(Place::Host);
    let login = central.people.origin().rsplit(':').next().and_then(|port| port.parse().ok());
    let reached = forward(&netns, CONSOLE).and_then(|()| match login {
        Some(port) => forward(&netns, port),
        None => Ok(()),
    });
    if let Err(error) = reached {
        writeln!(out, "\nthe console cannot be reached from outside the host: {error:#}")?;
        return Ok(());
    }
    let agent = bed.net().name(Place::Agent);
    let token = bed.dir().join("token");
    writeln!(
        out,
        "\nthe collector's console, with a browser on this machine (Ann approves, Ada ends sessions):\n  \
         {ORIGIN}\n\
         something that waits there:\n  \
         PGPASSWORD=$(cat {token}) PGSSLMODE=verify-full PGSSLROOTCERT={ca} \\\n    \
         nsenter --net=/run/netns/{agent} psql -h {HOST_V4} -U app_rw {DATABASE} \\\n    \
         -c \"UPDATE orders SET status = 'by-browser' WHERE id = 9\"",
        token = token.display(),
        ca = bed.tls.ca.display(),
    )?;
    out.flush()?;
    Ok(())
}

/// A script that runs a command in the account of an agent with a fresh certificate.
fn as_agent(bed: &Bed) -> Result<PathBuf> {
    let robot = bed.robot(DEPLOY)?;
    let bound = Claims::ssh().lasting(3500).bound(&robot.key.thumbprint()?);
    let wish = Certificate::good(&robot.user, &bed.token(&bound)?);
    let robot = robot.certified(&Certificate { validity: "-1m:+58m".into(), ..wish })?;
    let home = format!("HOME={}", robot.home.display());
    let command = bed.at(&robot, robot.run("env").arg(home)).quoted();
    let script = bed.dir().join("as-agent");
    std::fs::write(&script, format!("#!/bin/sh\nexec {command} \"$@\"\n"))?;
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(script)
}

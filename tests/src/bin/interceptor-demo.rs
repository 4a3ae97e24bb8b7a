//! Shows the main job on real parts, step by step, and checks every outcome.

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Result, bail};
use clap::Parser;
use interceptor_tests::bed::{Bed, cannot_run};
use interceptor_tests::cluster::DATABASE;
use interceptor_tests::net::{HOST_V4, Place};
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
    if let Some(why) = cannot_run() {
        bail!("{why}");
    }
    let ended = listen()?;
    println!(
        "Building a protected host: namespaces, PostgreSQL with sample data, issuer, capture, daemon …"
    );
    let mut bed = Bed::new()?;
    let mut out = std::io::stdout().lock();
    let failed = tell(&mut bed, &mut Teller::new(&mut out, colour()))?;
    if options.keep {
        explain(&bed, &mut out)?;
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
         another token:\n  \
         {issuer} mint --state {dir}/issuer --claims '{{…}}'\n\
         on the host:\n  \
         {cli} status\n  {cli} approvals list\n  {cli} sessions list\n\
         policies (then `… policy reload`):\n  {policies}\n\
         the daemon's log:\n  {dir}/daemon.log",
        token = token.display(),
        ca = bed.tls.ca.display(),
        issuer = issuer.display(),
        policies = interceptor.policies().display(),
    )?;
    out.flush()?;
    Ok(())
}

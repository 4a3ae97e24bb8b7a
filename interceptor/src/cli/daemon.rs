//! `interceptor daemon`: serves the captured connections of all configured services.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::capture::{Listener, Pins};
use crate::config::{Config, Mode};
use crate::control;
use crate::present;
use crate::session::handler::Handler;
use crate::session::workers::Workers;
use crate::session::{Ending, Gate};
use crate::ship::{Shipper, start};
use crate::wire::Server;
use crate::wire::postgres::cancel::CancelKeys;

/// Arguments of `interceptor daemon`.
#[derive(Debug, Args)]
#[command(after_help = "\
The ports must be attached first (`interceptor capture attach`). Signals: SIGHUP reads the
policies and the SSH host keys anew, SIGTERM ends the sessions and stops.

Example:
  interceptor --config /etc/interceptor/interceptor.toml daemon")]
pub struct DaemonArgs {
    /// Time that running sessions get to end by themselves when the daemon stops, in seconds.
    #[arg(long, default_value_t = 5)]
    drain_seconds: u64,
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: DaemonArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let config = Config::load(config)?;
    std::fs::create_dir_all(&config.paths.run)
        .with_context(|| format!("create {}", config.paths.run.display()))?;
    let gate = Gate::open(config).await?;
    let line = start::prepare(&gate);
    let handler = Arc::new(Handler::new(Arc::clone(&gate)));
    let socket = gate.config.paths.control_socket();
    let control =
        control::Server::new(&socket, Arc::clone(&handler) as _, Arc::clone(&gate.approvals))?;
    let recorder = Arc::clone(&gate.recorder);
    if let Some(shipping) = Shipper::start(&gate.config, recorder, Arc::clone(&handler) as _)? {
        handler.set_shipping(shipping);
    }
    let presents = present(&gate)?;
    let listeners = listen(&gate)?;
    let mut tasks = JoinSet::new();
    if let Some(server) = presents {
        tasks.spawn(server.run());
    }
    if let Some(line) = line {
        tasks.spawn(line.run());
    }
    tasks.spawn(control.run());
    tasks.spawn(Arc::clone(gate.identity()).refresh_keys());
    if let Some(port) = gate.config.metrics.port {
        let handler = Arc::clone(&handler);
        tasks.spawn(async move {
            let render = move || handler.rendered_metrics();
            if let Err(error) = control::metrics::serve_http(port, render).await {
                tracing::error!(%error, port, "metrics port");
            }
        });
    }
    // The database wants the other half; more threads of ours cost it more than they bring.
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() / 2);
    let workers = Arc::new(Workers::start(threads).context("start the threads for sessions")?);
    let servers: Vec<Server> = listeners.iter().map(|(server, _)| server.clone()).collect();
    for (server, listener) in listeners {
        tasks.spawn(accept(server, listener, Arc::clone(&workers)));
    }
    tasks.spawn(remind(Arc::clone(&gate)));
    if let Some(patience) = sd_notify::watchdog_enabled() {
        tasks.spawn(watchdog(workers, patience));
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(services = gate.config.services.len(), "serving");
    wait(&handler, &servers).await?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    stop(&gate, tasks, Duration::from_secs(args.drain_seconds)).await;
    Ok(ExitCode::SUCCESS)
}

/// The address where tokens are presented beforehand, if there is one.
fn present(gate: &Arc<Gate>) -> anyhow::Result<Option<present::Server>> {
    let Some(config) = &gate.config.present else { return Ok(None) };
    let services = &gate.config.services;
    let services = services.iter().filter_map(|s| gate.service(s.port).cloned());
    let metrics = Arc::clone(&gate.metrics);
    let parts = present::Parts {
        identity: Arc::clone(gate.identity()),
        presented: Arc::clone(&gate.presented),
        services: services.map(|s| (s.name.clone(), s)).collect(),
        notify: Box::new(move |event| {
            if let Some(code) = event.refused {
                metrics.refused(event.service.unwrap_or("none"), code);
                if event.alert {
                    metrics.alert(code);
                }
            }
        }),
    };
    let server = present::Server::new(config, parts)?;
    tracing::info!(address = %config.listen, "tokens can be presented");
    Ok(Some(server))
}

/// Certificates are read before the first port is registered: a service that cannot be served
/// stays closed, and the daemon says so instead of half starting.
fn listen(gate: &Arc<Gate>) -> anyhow::Result<Vec<(Server, Listener)>> {
    let keys = Arc::new(CancelKeys::default());
    let mut servers = Vec::new();
    for service in &gate.config.services {
        let Some(service) = gate.service(service.port) else { continue };
        let server = Server::new(gate, service, &keys)
            .with_context(|| format!("service {:?}", service.name))?;
        servers.push((server, service.port));
    }
    let mut pins = Pins::open(&gate.config.paths.bpffs)
        .context("the ports are not attached: run `interceptor capture attach` first")?;
    let mut listeners = Vec::new();
    for (server, port) in servers {
        listeners.push((server, pins.serve(port)?));
    }
    gate.set_pins(Arc::new(pins));
    Ok(listeners)
}

async fn accept(server: Server, listener: Listener, workers: Arc<Workers>) {
    loop {
        match listener.accept().await {
            Ok(captured) => {
                let server = server.clone();
                workers.spawn(async move {
                    match captured.adopt() {
                        Ok(captured) => server.serve(captured).await,
                        Err(error) => tracing::error!(%error, "cannot serve a connection"),
                    }
                });
            }
            Err(error) => {
                // Out of descriptors or memory: wait for sessions to end rather than spin.
                tracing::error!(%error, port = listener.port(), "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Tells systemd that we live, as long as all threads that serve sessions do: one that hangs
/// holds up its sessions for good, and a restart does not.
async fn watchdog(workers: Arc<Workers>, patience: Duration) {
    let mut beat = tokio::time::interval(patience / 3);
    loop {
        beat.tick().await;
        workers.answer().await;
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
    }
}

/// A service in observe mode protects nothing; nobody may forget it.
async fn remind(gate: Arc<Gate>) {
    let mut minute = tokio::time::interval(Duration::from_secs(60));
    loop {
        minute.tick().await;
        for service in gate.config.services.iter().filter(|s| s.mode == Mode::Observe) {
            tracing::warn!(service = %service.name, "in observe mode: nothing is refused, held or masked");
        }
        let health = gate.recorder.health();
        if health.refusing {
            tracing::error!(reason = ?health.reason, "the record takes nothing more: new requests are refused");
            gate.live.end_all(Ending::RecordLost);
        } else if health.warning {
            tracing::warn!(
                bytes = health.bytes,
                of = health.max_bytes,
                "the record is more than 80 % full"
            );
        }
    }
}

async fn wait(handler: &Arc<Handler>, servers: &[Server]) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            Some(()) = hangup.recv() => {
                let _ = handler.reload();
                servers.iter().for_each(Server::reload);
            }
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

async fn stop(gate: &Arc<Gate>, mut tasks: JoinSet<()>, drain: Duration) {
    tracing::info!(sessions = gate.live.len(), "stopping");
    gate.live.end_all(Ending::Shutdown);
    let gone = async {
        while !gate.live.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(drain, gone).await.is_err() {
        tracing::warn!(sessions = gate.live.len(), "sessions cut off; sealed at the next start");
    }
    tasks.abort_all();
    let recorder = Arc::clone(&gate.recorder);
    let _ = tokio::task::spawn_blocking(move || recorder.shutdown()).await;
}

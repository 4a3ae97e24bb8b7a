//! Runs a command with the agent beside it: the command finds the socket by `SSH_AUTH_SOCK`, and
//! its end is the end of the agent.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// Signals that are handed on to the command.
const HANDED_ON: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// Runs a command to its end and gives back the status that a shell would: its own, or 128 and
/// the number of the signal that ended it.
pub async fn run(command: &[OsString], socket: &Path) -> io::Result<u8> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| io::Error::other("no command"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("SSH_AUTH_SOCK", socket)
        // An agent of the user's own must not be taken for this one.
        .env_remove("SSH_AGENT_PID")
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", program.display())))?;
    let status = wait(&mut child).await?;
    Ok(status_of(status))
}

fn status_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|n| 128 + n)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

async fn wait(child: &mut Child) -> io::Result<ExitStatus> {
    let mut streams = Vec::new();
    for name in HANDED_ON {
        streams.push((name, signal(SignalKind::from_raw(name as i32))?));
    }
    // A terminal sends these to the command by itself: it must not get them twice.
    let by_terminal = io::stdin().is_terminal();
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let (sender, mut received) = tokio::sync::mpsc::channel(8);
    for (name, mut stream) in streams {
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() && sender.send(name).await.is_ok() {}
        });
    }
    loop {
        tokio::select! {
            status = child.wait() => return status,
            Some(name) = received.recv() => {
                let from_terminal =
                    matches!(name, Signal::SIGINT | Signal::SIGQUIT | Signal::SIGWINCH);
                if let Some(pid) = pid && !(by_terminal && from_terminal) {
                    let _ = kill(pid, name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str) -> u8 {
        let command = ["sh", "-c", script].map(OsString::from);
        run(&command, Path::new("/run/x.sock")).await.unwrap()
    }

    #[tokio::test]
    async fn the_commands_status_is_handed_on() {
        assert_eq!(sh("exit 0").await, 0);
        assert_eq!(sh("exit 255").await, 255);
        assert_eq!(sh("kill -TERM $$").await, 143);
        assert_eq!(sh("test \"$SSH_AUTH_SOCK\" = /run/x.sock").await, 0);
        let nothing = [OsString::from("/nowhere/at/all")];
        assert!(run(&nothing, Path::new("/x")).await.is_err());
    }
}

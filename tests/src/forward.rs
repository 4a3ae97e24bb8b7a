//! Brings a loopback port inside a bed's network to the same port of this machine's own loopback,
//! so that a person's browser reaches it.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

/// Forwards for as long as this process runs.
///
/// # Errors
///
/// When the port is taken on this machine.
pub fn forward(netns: &str, port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .with_context(|| format!("port {port} of this machine is taken"))?;
    let netns = netns.to_owned();
    thread::spawn(move || {
        for outer in listener.incoming().flatten() {
            let netns = netns.clone();
            thread::spawn(move || {
                // A client of a port on which nothing listens sees its connection end.
                let _ = connect(&netns, port).and_then(|inner| join(&outer, &inner));
            });
        }
    });
    Ok(())
}

/// Connects from inside a network; the calling thread moves there.
fn connect(netns: &str, port: u16) -> io::Result<TcpStream> {
    let file = File::open(format!("/run/netns/{netns}"))?;
    setns(file, CloneFlags::CLONE_NEWNET)?;
    TcpStream::connect((Ipv4Addr::LOCALHOST, port))
}

fn join(outer: &TcpStream, inner: &TcpStream) -> io::Result<()> {
    let copy = |mut from: &TcpStream, mut to: &TcpStream| {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    thread::scope(|scope| {
        scope.spawn(|| copy(outer, inner));
        copy(inner, outer);
    });
    Ok(())
}

//! Many at once: each gets its own answer.

use std::time::Duration;

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};

use crate::{USER, all_ended};

#[test]
fn a_hundred_commands_in_parallel() -> Result<()> {
    skip_unless_ssh!();
    let mut bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..100)
            .map(|n| {
                let (bed, agent) = (&bed, &agent);
                scope.spawn(move || {
                    let command = format!("seq 1 500; echo last {n}; exit {}", n % 7);
                    let cmd = bed.at(agent, agent.ssh([command]));
                    cmd.limit(Duration::from_secs(120)).run()
                })
            })
            .collect();
        for (n, client) in clients.into_iter().enumerate() {
            let out = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            assert_eq!(out.code, i32::try_from(n % 7).ok(), "{n}: {out}");
            assert!(out.stdout.ends_with(&format!("500\nlast {n}\n")), "{n}: {out}");
        }
        anyhow::Ok(())
    })?;
    let sessions = all_ended(&bed)?;
    assert_eq!(sessions.len(), 100);
    bed.interceptor()?.cli(["sessions", "verify"]).ok()?;
    bed.interceptor_mut()?.still_runs()
}

#[test]
fn a_hundred_commands_over_one_connection() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let out = interceptor_tests::clients::ssh_script(
        &bed,
        &agent,
        interceptor_tests::clients::ASYNCSSH_MANY,
        &["100"],
    )?;
    if let Some(out) = out {
        assert_eq!(out["right"], 100, "{out}");
        assert_eq!(bed.interceptor()?.sessions()?.len(), 1);
    }
    Ok(())
}

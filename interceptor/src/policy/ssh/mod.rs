//! SSH requests as facts: what a command runs, what an operation touches, where a forward leads.
//!
//! Commands are read with the grammar of a shell (`brush-parser`), which is not the shell that
//! will run them. So everything the two could read differently is said to be unseen, and what is
//! unseen passes only by a rule that says so; see [`shell`].

mod check;
mod coverage;
pub mod facts;
mod home;
mod judge;
mod matching;
mod pattern;
mod pool;
mod requests;
mod rules;
mod scp;
pub mod shell;
pub mod testing;

pub use facts::{Argument, Destination, FileOp, FileUse, Place, Program, SshClass, SshFacts};
pub use home::Home;
pub use pattern::{Below, DestinationPattern, PathPattern, ProgramPattern};
pub use pool::{LoginShell, ShellAnalyzer};
pub use requests::{
    ForwardKind, agent_forward, carried, env, forward, pty, sftp, shell_request as shell,
    subsystem, unknown, x11,
};
pub use scp::ScpEnd;

pub(super) use check::say_unsafe;
pub(super) use judge::why_not;
pub(super) use rules::SshMatchers;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;

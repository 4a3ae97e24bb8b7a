//! SSH: from a captured connection to judged, recorded and masked channels.

pub mod scp;
pub mod sftp;
#[cfg(test)]
mod testing;

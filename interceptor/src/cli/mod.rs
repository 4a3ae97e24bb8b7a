//! The command line, one file per verb.

pub mod approvals;
pub mod capture;
pub mod daemon;
pub mod doctor;
pub mod policy;
pub mod sessions;
pub mod setup;
pub mod status;
pub mod table;
pub mod token;

//! The console and the REST API against real parts: the certified npm `oidc-provider`, a real
//! collector, and records that a real recorder wrote. First a plain HTTP client, which can be as
//! bad as it likes; then a headless browser.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod api;
mod attacks;
mod browser;
mod ground;
mod holds;
mod pages;
mod policies;
mod real;
mod records;
mod retention;

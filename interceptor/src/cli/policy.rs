//! `interceptor policy`.

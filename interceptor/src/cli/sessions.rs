//! `interceptor sessions`.

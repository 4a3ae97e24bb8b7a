//! `interceptor status`.

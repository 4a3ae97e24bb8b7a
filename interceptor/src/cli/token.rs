//! `interceptor token`.

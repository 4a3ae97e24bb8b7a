//! `interceptor daemon`.

//! `interceptor capture`.

//! `interceptor setup`.

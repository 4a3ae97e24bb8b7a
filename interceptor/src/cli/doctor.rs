//! `interceptor doctor`.

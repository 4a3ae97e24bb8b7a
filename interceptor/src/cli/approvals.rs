//! `interceptor approvals`.

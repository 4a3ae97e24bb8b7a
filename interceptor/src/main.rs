//! The `interceptor` command.

fn main() {}

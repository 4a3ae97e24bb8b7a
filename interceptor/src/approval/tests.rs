//! Holds and grants as operators and sessions see them.

//! From text to syntax tree, with limits.
//!
//! Runs only on the threads of [`super::pool`]: decoding and dropping a deep tree needs a stack
//! that no ordinary thread has. What this returns is never deeper than [`MAX_DEPTH`].

use pg_query::protobuf;

use super::types::SqlError;
use super::visit::Mentions;

/// Levels of syntax tree nodes that are looked at.
pub const MAX_DEPTH: usize = 1_000;

/// Longest text by default.
pub const MAX_TEXT: usize = 16 << 20;

/// A decoded syntax tree with what it mentions, per statement.
pub struct Parsed {
    /// The tree.
    pub tree: protobuf::ParseResult,
    /// What each statement mentions.
    pub mentions: Vec<Mentions>,
}

/// Refuses what is too long, or holds a NUL where the server would stop reading.
pub fn check_text(text: &str, limit: usize) -> Result<(), SqlError> {
    if text.len() > limit {
        return Err(SqlError::TooLarge { bytes: text.len(), limit });
    }
    if memchr::memchr(0, text.as_bytes()).is_some() {
        return Err(SqlError::Unsupported("the text holds a NUL byte; remove it".into()));
    }
    Ok(())
}

/// Parses a text and collects what its statements mention.
pub fn parse(text: &str) -> Result<Parsed, SqlError> {
    let tree = pg_query::parse(text, 0).map_err(syntax)?.protobuf;
    let mut mentions = Vec::with_capacity(tree.stmts.len());
    for stmt in &tree.stmts {
        mentions.push(Mentions::of(stmt)?);
    }
    Ok(Parsed { tree, mentions })
}

/// Words of the parser for a nesting that it refuses itself.
const TOO_DEEP: [&str; 4] =
    ["nested too deeply", "memory exhausted", "stack depth limit exceeded", "recursion limit"];

/// Tells a nesting limit of the parser from an error in the text.
fn syntax(error: pg_query::Error) -> SqlError {
    let message = error.to_string();
    if TOO_DEEP.iter().any(|words| message.contains(words)) {
        return SqlError::TooDeep { limit: MAX_DEPTH };
    }
    let message = message.strip_prefix("Invalid statement: ").unwrap_or(&message).to_owned();
    SqlError::Syntax { message, position: None }
}

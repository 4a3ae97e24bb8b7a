//! Why something cannot be masked. The caller withholds what it was about to send.

/// Why a row, a copy stream or a plan cannot be masked. Messages hold no values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// A rule names a column the result does not have.
    #[error(
        "column {column} is to be masked but the result has {columns}; compile the plan from the result's own description"
    )]
    NoSuchColumn {
        /// Index the rule gave.
        column: usize,
        /// Columns of the result.
        columns: usize,
    },
    /// A format code that is neither text nor binary.
    #[error("column {column} has format code {format}; only 0 (text) and 1 (binary) exist")]
    UnknownFormat {
        /// Column index.
        column: usize,
        /// The code.
        format: i16,
    },
    /// A row has another number of columns than announced.
    #[error("a row with {found} columns where {expected} were announced is withheld")]
    ColumnCount {
        /// Columns of the description.
        expected: usize,
        /// Columns of the row.
        found: usize,
    },
    /// A row ends early, a length is negative or reaches beyond the row.
    #[error("a row that ends before its column {column} is withheld")]
    Truncated {
        /// The column that is not complete.
        column: usize,
    },
    /// A row has bytes behind its last column.
    #[error("a row with {extra} bytes behind its last column is withheld")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// A value is not what its type says.
    #[error("the value of column {column} is not valid {what}; its row is withheld")]
    BadValue {
        /// Column index.
        column: usize,
        /// The type and format, in words.
        what: &'static str,
    },
    /// One row is longer than may be held in memory.
    #[error(
        "a row longer than {limit} bytes cannot be masked; select fewer or shorter columns, or raise the limit"
    )]
    RowTooLarge {
        /// The limit.
        limit: usize,
    },
    /// A copy stream is not in the announced format.
    #[error("the copy data is not valid {what}; it is withheld")]
    BadCopy {
        /// What was expected, in words.
        what: &'static str,
    },
    /// A copy format with options that cannot be honoured.
    #[error("cannot mask a copy whose {what}; use another option")]
    UnsupportedCopy {
        /// Which option, in words.
        what: &'static str,
    },
    /// The detectors cannot be used.
    #[error("the detectors are not usable; nothing that asks for them is sent")]
    DetectorsBroken,
}

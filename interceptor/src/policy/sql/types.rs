//! What the analysis of a text says: statements, their kinds, and where their data comes from.
//!
//! These are plain values that outlive the syntax tree. They carry the exact text of names and
//! byte ranges, never a verdict.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use crate::policy::facts::{ColumnName, Name, SqlFacts};

/// Why a text could not be analysed. Every one of these is a refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SqlError {
    /// The grammar refuses the text.
    #[error("{message}")]
    Syntax {
        /// The grammar's own words.
        message: String,
        /// One-based character position, where it is known.
        position: Option<usize>,
    },
    /// The statement is nested deeper than this product looks.
    #[error("statement is nested too deeply to be judged (limit {limit} levels); split it")]
    TooDeep {
        /// Levels of the syntax tree that are looked at.
        limit: usize,
    },
    /// The text is longer than the limit.
    #[error(
        "statement text of {bytes} bytes is longer than the limit of {limit} bytes; send data as parameters or COPY"
    )]
    TooLarge {
        /// Bytes sent.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The text cannot be judged for another reason.
    #[error("statement cannot be judged: {0}")]
    Unsupported(String),
}

impl SqlError {
    /// The SQLSTATE a client expects for this refusal.
    pub const fn sqlstate(&self) -> &'static str {
        match self {
            Self::Syntax { .. } => "42601",
            Self::TooDeep { .. } => "54001",
            Self::TooLarge { .. } => "54000",
            Self::Unsupported(_) => "0A000",
        }
    }
}

/// The analysis of one text, as one Query or Parse message carries it.
#[derive(Debug, Clone)]
pub struct Analysis {
    /// The statements in order; none for an empty query.
    pub statements: Vec<StatementAnalysis>,
}

/// The analysis of one statement.
#[derive(Debug, Clone)]
pub struct StatementAnalysis {
    /// What policy rules match on.
    pub facts: SqlFacts,
    /// What the wire must know about the statement.
    pub kind: StatementKind,
    /// Where its data comes from.
    pub lineage: Lineage,
    /// Its bytes in the text.
    pub range: Range<usize>,
    /// The text with constants replaced, and its class: what a grant for a shape is tied to.
    pub shape: String,
    /// Every configuration parameter it sets, by `SET` or by `set_config`.
    pub settings: Vec<Setting>,
    /// Its constants.
    pub literals: Vec<Literal>,
    /// For `$1`, `$2`, …: the column each is compared with or written to.
    pub params: Vec<Option<ColumnName>>,
    /// The highest parameter number.
    pub max_param: u32,
    /// Whatever the server looks up to make sense of it, tables apart.
    pub lookups: Lookups,
}

/// Names that the server looks up to make sense of a statement: last parts alone, since the same
/// name in another schema may be what is found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lookups {
    /// Functions that it calls.
    pub functions: BTreeSet<String>,
    /// Columns and fields: `t.f` calls f(t) where t has no such column. Table sampling methods too.
    pub columns: BTreeSet<String>,
    /// Operators, those included that a construct implies.
    pub operators: BTreeSet<String>,
    /// Types.
    pub types: BTreeSet<String>,
}

/// One configuration parameter being set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The parameter, lower case; none when it is not a constant.
    pub name: Option<String>,
    /// The value; unknown also when it is not sure that it is set when the statement succeeds
    /// (a condition, a cursor, a prepared statement): refuse that for what names depend on.
    pub value: SetValue,
    /// For the current transaction only.
    pub local: bool,
}

/// A constant of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Literal {
    /// Its bytes in the text, quotes included.
    pub range: Range<usize>,
    /// The column it is compared with, inserted into or assigned to.
    pub column: Option<ColumnName>,
}

/// What a statement does, as far as the wire has to act on it.
#[derive(Debug, Clone)]
pub enum StatementKind {
    /// Nothing the wire needs to know.
    Plain,
    /// `SET`, or `set_config` with constant arguments.
    Set {
        /// The parameter, lower case.
        name: String,
        /// The value.
        value: SetValue,
        /// For the current transaction only.
        local: bool,
    },
    /// `RESET name`, or `RESET ALL` when there is none.
    Reset(Option<String>),
    /// `SHOW name`.
    Show(String),
    /// `SET ROLE`, `SET SESSION AUTHORIZATION` and their resets.
    SetRole {
        /// The role; none for `NONE`, `DEFAULT` and `RESET`.
        role: Option<String>,
        /// Session authorization, not role.
        session: bool,
        /// For the current transaction only.
        local: bool,
    },
    /// Begin, commit and the like.
    Transaction(TransactionKind),
    /// `PREPARE`.
    Prepare {
        /// The name of the prepared statement.
        name: String,
        /// What it will run.
        inner: Box<StatementAnalysis>,
    },
    /// `EXECUTE`: its outputs are those of the prepared statement.
    Execute {
        /// The name of the prepared statement.
        name: String,
    },
    /// `DEALLOCATE name`, or all.
    Deallocate(Option<String>),
    /// `DECLARE CURSOR`.
    DeclareCursor {
        /// The cursor.
        name: String,
        /// Survives the transaction.
        hold: bool,
        /// Asked for binary results.
        binary: bool,
        /// Its query.
        inner: Box<StatementAnalysis>,
    },
    /// `FETCH` or `MOVE`.
    Fetch {
        /// The cursor.
        cursor: String,
        /// `MOVE`: no rows come.
        is_move: bool,
    },
    /// `CLOSE name`, or all.
    CloseCursor(Option<String>),
    /// `COPY … TO`.
    CopyOut {
        /// What is copied.
        source: CopySource,
        /// How the data looks.
        format: CopyFormat,
        /// To the client; else to a file or program of the server.
        to_stdout: bool,
    },
    /// `COPY … FROM`.
    CopyIn {
        /// The table and its written columns.
        source: CopySource,
        /// How the data looks.
        format: CopyFormat,
        /// From the client; else from a file or program of the server.
        from_stdin: bool,
    },
    /// `EXPLAIN`: its only output is the plan.
    Explain {
        /// Runs the statement.
        analyze: bool,
        /// What is explained.
        inner: Box<StatementAnalysis>,
    },
    /// `CALL`.
    Call(Name),
    /// `DISCARD`.
    Discard(DiscardKind),
    /// `LISTEN channel`.
    Listen(String),
    /// `UNLISTEN channel`, or all.
    Unlisten(Option<String>),
    /// `NOTIFY channel`.
    Notify(String),
}

/// The value of a `SET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetValue {
    /// `DEFAULT`.
    Default,
    /// `FROM CURRENT`.
    Current,
    /// The constants of the list, as written without quotes.
    Values(Vec<String>),
    /// Not a constant: what it will be is not known.
    Unknown,
}

/// What `DISCARD` discards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscardKind {
    /// Everything of the session.
    All,
    /// Cached plans.
    Plans,
    /// Sequence state.
    Sequences,
    /// Temporary tables.
    Temp,
}

/// Kinds of transaction statements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransactionKind {
    /// `BEGIN`, `START TRANSACTION`.
    Begin,
    /// `COMMIT`, `END`; `chain` opens the next one at once.
    Commit {
        /// `AND CHAIN`.
        chain: bool,
    },
    /// `ROLLBACK`, `ABORT`.
    Rollback {
        /// `AND CHAIN`.
        chain: bool,
    },
    /// `SAVEPOINT name`.
    Savepoint(String),
    /// `RELEASE name`.
    Release(String),
    /// `ROLLBACK TO name`.
    RollbackTo(String),
    /// `PREPARE TRANSACTION`.
    Prepare(String),
    /// `COMMIT PREPARED`.
    CommitPrepared(String),
    /// `ROLLBACK PREPARED`.
    RollbackPrepared(String),
}

/// What a `COPY` copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySource {
    /// A table or view, with the columns written in the statement (none: all).
    Table {
        /// The table, resolved.
        name: Name,
        /// The columns.
        columns: Vec<String>,
    },
    /// A query.
    Query {
        /// Its bytes in the text, without the parentheses.
        text: String,
    },
}

/// How `COPY` data is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyFormat {
    /// Text, CSV or binary.
    pub kind: CopyKind,
    /// Delimiter as written; the format's default when none.
    pub delimiter: Option<String>,
    /// Marker of NULL as written.
    pub null: Option<String>,
    /// First line carries names.
    pub header: bool,
    /// CSV quote.
    pub quote: Option<String>,
    /// CSV escape.
    pub escape: Option<String>,
    /// Encoding of the data, when it differs from the client's.
    pub encoding: Option<String>,
    /// Options this product does not know, by name: refuse when not empty and masking matters.
    pub other: Vec<String>,
}

/// Layouts of `COPY` data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyKind {
    /// Tab-separated text with backslash escapes.
    Text,
    /// Comma-separated values.
    Csv,
    /// PostgreSQL's binary layout.
    Binary,
}

/// Something that is known, or the words why it is not.
pub type Outcome<T> = Result<T, String>;

/// Where the data of a statement comes from.
#[derive(Debug, Clone)]
pub struct Lineage {
    /// The columns of the result; empty when the statement gives no rows.
    pub outputs: Outcome<Vec<Output>>,
    /// Every use of a column that is not the plain handing on of its value.
    pub uses: Vec<ColumnUse>,
    /// Relations used as a whole row.
    pub whole_rows: Vec<Name>,
    /// Every relation the statement touches.
    pub relations: Vec<RelationUse>,
    /// What was not understood or is not allowed while columns are masked.
    pub problems: Vec<Problem>,
    /// Later statements may resolve names differently after this one.
    pub changes_resolution: bool,
    /// Relations it creates or gives a new name.
    pub creates: Vec<Name>,
    /// It changes the catalog.
    pub ddl: bool,
}

impl Default for Lineage {
    fn default() -> Self {
        Self {
            outputs: Ok(Vec::new()),
            uses: Vec::new(),
            whole_rows: Vec::new(),
            relations: Vec::new(),
            problems: Vec::new(),
            changes_resolution: false,
            creates: Vec::new(),
            ddl: false,
        }
    }
}

/// One column of the result.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// The column whose value it is, if it is nothing but that.
    pub base: Option<Arc<BaseColumn>>,
}

/// A column of a relation, and what it hands on when the relation is a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseColumn {
    /// Oid of the relation, as RowDescription reports it; 0 without a catalog.
    pub relation: u32,
    /// Number of the column; 0 without a catalog.
    pub attnum: i16,
    /// Its name.
    pub column: ColumnName,
    /// For a column of a view: the column it is.
    pub through: Option<Arc<BaseColumn>>,
}

impl BaseColumn {
    /// This column and everything it is handed on from.
    pub fn chain(&self) -> impl Iterator<Item = &BaseColumn> {
        std::iter::successors(Some(self), |c| c.through.as_deref())
    }
}

/// A use of a column other than handing it on.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnUse {
    /// The column.
    pub column: ColumnName,
    /// The column with its oid and chain.
    pub base: Arc<BaseColumn>,
    /// In words: `in WHERE`, `as an argument of lower()`.
    pub how: String,
}

/// A relation a statement touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationUse {
    /// The relation.
    pub name: Name,
    /// Its oid; 0 when not known.
    pub oid: u32,
    /// It is written.
    pub written: bool,
}

/// A part of a statement that stands in the way of masking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The part, in words.
    pub part: String,
}

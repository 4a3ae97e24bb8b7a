//! What of a request the rules that let through have to cover, and what they do.
//!
//! A request passes only when everything about it is covered: each of its classes, commands
//! and parameters, each table by way of reading or writing, each column and function. Several
//! rules may share the work, because each covers only what a request it allows alone could do:
//! a table that is written must be covered by one rule that also covers the way it is written.

use super::central;
use super::facts::{ColumnName, Name, SqlFacts, StatementClass};
use super::model::{Classes, DML, Matchers, NAMED_ONLY, Rule};
use super::pattern::NamePattern;

/// What of one request is covered so far.
pub(super) struct Coverage<'a> {
    facts: &'a SqlFacts,
    bits: u32,
    /// What is only planned: the classes of what a plain `EXPLAIN` explains.
    planned: u32,
    /// The class by which tables are read beside all others.
    reading: u32,
    /// The classes by which tables are written.
    writing: u32,
    classes_left: u32,
    unseen_left: bool,
    commands: Vec<bool>,
    settings: Vec<bool>,
    reads: Vec<bool>,
    writes: Vec<bool>,
    columns_read: Vec<bool>,
    columns_written: Vec<bool>,
    functions: Vec<bool>,
}

impl<'a> Coverage<'a> {
    /// Nothing is covered yet, but for the assumption of roles, which is judged as a connection.
    pub fn new(facts: &'a SqlFacts) -> Self {
        let bits = facts.class_bits();
        let role = |s: &str| matches!(s, "role" | "session_authorization");
        let by_role = !facts.roles_assumed.is_empty() && facts.settings.iter().all(|s| role(s));
        let set = StatementClass::Set.bit();
        let planned = if bits & !set == StatementClass::Utility.bit() {
            let runs = DML | StatementClass::Select.bit();
            let own = facts.commands.iter().filter_map(|c| own_class(c));
            own.fold(0, |bits, c| bits | c.bit()) & runs
        } else {
            0
        };
        Self {
            facts,
            bits,
            reading: if reads_beside(facts, bits) { StatementClass::Select.bit() } else { 0 },
            planned,
            writing: if planned & DML == 0 { writing(bits) } else { planned & DML },
            classes_left: if by_role { bits & !set } else { bits },
            unseen_left: facts.unseen.is_some(),
            commands: facts
                .commands
                .iter()
                .map(|c| by_role && (c == "set" || c.starts_with("set ")))
                .collect(),
            settings: facts.settings.iter().map(|s| by_role && role(s)).collect(),
            reads: vec![false; facts.tables_read.len()],
            writes: vec![false; facts.tables_written.len()],
            columns_read: vec![false; facts.columns_read.len()],
            columns_written: vec![false; facts.columns_written.len()],
            functions: vec![false; facts.functions.len()],
        }
    }

    /// Adds what a rule covers whose other conditions hold; false when it covers nothing.
    pub fn add(&mut self, rule: &Rule) -> bool {
        let f = self.facts;
        let m = &rule.when;
        let covers = m.statement.unwrap_or(Classes::ANY).covers(f);
        let content = content(self.bits) | self.reading | self.planned;
        let central = rule.central;
        let way = Way { m, f, covers, bits: self.bits, content, writing: self.writing, central };
        let reads: Vec<bool> = f.tables_read.iter().map(|t| way.reads(t)).collect();
        let writes: Vec<bool> = f.tables_written.iter().map(|t| way.writes(t)).collect();
        let columns: Vec<bool> = f.columns_read.iter().map(|c| way.column(c, false)).collect();
        if restricts(m) && !reads.iter().chain(&writes).chain(&columns).any(|c| *c) {
            return false;
        }
        let commands: Vec<bool> = f.commands.iter().map(|c| way.command(c)).collect();
        let mut classes = covers & self.bits;
        if m.commands.is_some() {
            let admitted = f.commands.iter().zip(&commands).filter(|(_, ok)| **ok);
            classes &= admitted.fold(0, |bits, (c, _)| bits | class_of(c, self.bits));
        }
        let settings: Vec<bool> = f.settings.iter().map(|s| way.setting(s)).collect();
        if m.settings.is_some() && !settings.iter().any(|s| *s) {
            classes &= !StatementClass::Set.bit();
        }
        // Who may select from a table may also insert what is selected elsewhere, and who may do
        // something may have it explained.
        let helps = m.commands.is_none()
            && (covers & self.planned != 0
                || (covers & self.reading != 0
                    && (reads.contains(&true) || columns.contains(&true))));
        if classes == 0 && !helps {
            return false;
        }
        self.classes_left &= !classes;
        merge(&mut self.commands, commands);
        merge(&mut self.settings, settings);
        merge(&mut self.reads, reads);
        merge(&mut self.writes, writes);
        merge(&mut self.columns_read, columns);
        merge(&mut self.columns_written, f.columns_written.iter().map(|c| way.column(c, true)));
        merge(&mut self.functions, f.functions.iter().map(|n| way.function(n)));
        if m.unseen == Some(true) && classes & f.class.bit() != 0 {
            self.unseen_left = false;
        }
        true
    }

    /// What is not covered, in words; `None` when all is. What is most telling comes first.
    pub fn missing(&self) -> Option<String> {
        let f = self.facts;
        let left = |bits: u32| {
            StatementClass::ALL.into_iter().find(|c| self.classes_left & bits & c.bit() != 0)
        };
        if let Some(class) = left(NAMED_ONLY) {
            return Some(format!("no rule allows statements of class {class} by that name"));
        }
        if self.unseen_left {
            let what = f.unseen.as_deref().unwrap_or("a part");
            return Some(format!("cannot see {what}, and no rule allows unseen statements"));
        }
        let no = |what: String| format!("no rule allows {what}");
        first(&self.writes, &f.tables_written)
            .map(|t| no(format!("writing {t} by {}", f.class)))
            .or_else(|| first(&self.reads, &f.tables_read).map(|t| no(format!("reading {t}"))))
            .or_else(|| self.columns_missing().map(no))
            .or_else(|| first(&self.commands, &f.commands).map(|c| no(c.to_uppercase())))
            .or_else(|| first(&self.settings, &f.settings).map(|s| no(format!("setting {s}"))))
            .or_else(|| left(u32::MAX).map(|c| no(format!("statements of class {c}"))))
            .or_else(|| first(&self.functions, &f.functions).map(|n| no(format!("calling {n}"))))
    }

    fn columns_missing(&self) -> Option<String> {
        let f = self.facts;
        first(&self.columns_written, &f.columns_written)
            .map(|c| format!("writing column {c}"))
            .or_else(|| {
                first(&self.columns_read, &f.columns_read).map(|c| format!("reading column {c}"))
            })
    }
}

fn first<'t, T>(done: &[bool], items: &'t [T]) -> Option<&'t T> {
    done.iter().position(|d| !d).and_then(|i| items.get(i))
}

fn merge(into: &mut [bool], from: impl IntoIterator<Item = bool>) {
    for (a, b) in into.iter_mut().zip(from) {
        *a |= b;
    }
}

/// Whether a request reads beside what its own class reads: other tables, or what `RETURNING`
/// shows of the rows it inserts.
fn reads_beside(facts: &SqlFacts, bits: u32) -> bool {
    let inserts = bits & DML == StatementClass::Insert.bit();
    !facts.tables_read.is_empty() || (inserts && !facts.columns_read.is_empty())
}

/// Whether a rule covers only requests that touch what it names.
fn restricts(m: &Matchers) -> bool {
    let some = |list: &Option<Vec<NamePattern>>| list.as_ref().is_some_and(|l| !l.is_empty());
    some(&m.tables)
        || some(&m.reads)
        || some(&m.writes)
        || m.columns.as_ref().is_some_and(|l| !l.is_empty())
}

/// The classes by which a request writes: those that change rows, else whatever may.
const fn writing(bits: u32) -> u32 {
    if bits & DML != 0 {
        bits & (DML | StatementClass::Ddl.bit())
    } else {
        bits & !(StatementClass::Select.bit()
            | StatementClass::Set.bit()
            | StatementClass::Transaction.bit())
    }
}

/// The classes that read and call: a rule about `EXPLAIN` opens nothing of what is explained.
const fn content(bits: u32) -> u32 {
    use StatementClass as C;
    match bits & !(C::Utility.bit() | C::Set.bit() | C::Transaction.bit()) {
        0 => bits,
        content => content,
    }
}

/// The class of a command, where its first word says it.
fn own_class(command: &str) -> Option<StatementClass> {
    use StatementClass as C;
    Some(match command.split(' ').next().unwrap_or_default() {
        "select" | "values" | "table" => C::Select,
        "insert" => C::Insert,
        "update" => C::Update,
        "delete" => C::Delete,
        "merge" => C::Merge,
        "copy" => C::Copy,
        "call" => C::Call,
        "do" => C::Do,
        "set" | "reset" => C::Set,
        "begin" | "start" | "commit" | "end" | "rollback" | "abort" | "savepoint" | "release" => {
            C::Transaction
        }
        "explain" | "show" | "vacuum" | "analyze" | "lock" | "listen" | "unlisten" | "notify"
        | "checkpoint" | "cluster" | "reindex" | "load" | "fetch" | "move" | "declare"
        | "close" | "prepare" | "execute" | "deallocate" | "discard" => C::Utility,
        _ => return None,
    })
}

/// The classes of this request to which a command may belong. What the analysis files
/// elsewhere is held against all of them.
fn class_of(command: &str, bits: u32) -> u32 {
    let either = StatementClass::Ddl.bit() | StatementClass::Utility.bit();
    match bits & own_class(command).map_or(either, StatementClass::bit) {
        0 => bits,
        some => some,
    }
}

/// Ends of COPY that are on the server: a rule must name them.
fn server_side(command: &str) -> bool {
    command.starts_with("copy") && !matches!(command, "copy to stdout" | "copy from stdin")
}

/// How one rule lets one request through.
struct Way<'a> {
    m: &'a Matchers,
    f: &'a SqlFacts,
    covers: u32,
    bits: u32,
    /// The classes that read and call.
    content: u32,
    writing: u32,
    /// Whether the rule came from the centre.
    central: bool,
}

impl Way<'_> {
    fn command(&self, command: &str) -> bool {
        let named = match &self.m.commands {
            Some(patterns) => patterns.iter().any(|p| p.matches(command)),
            None => !server_side(command),
        };
        let own = own_class(command).is_some_and(|c| self.covers & c.bit() != 0);
        named && (own || class_of(command, self.bits) & !self.covers == 0)
    }

    fn setting(&self, setting: &str) -> bool {
        self.covers & StatementClass::Set.bit() != 0
            && self.m.settings.as_ref().is_none_or(|p| p.iter().any(|p| p.matches(setting)))
    }

    /// The tables that a rule on columns speaks of.
    fn column_tables(&self, table: &Name) -> bool {
        self.m
            .columns
            .as_ref()
            .is_none_or(|columns| columns.iter().any(|c| c.table().must_match(table)))
    }

    fn reads(&self, table: &Name) -> bool {
        let own = self.f.tables_written.contains(table) && self.writes(table);
        // A rule that is only about inserting does not open what is there already.
        let by = self.covers & self.content & !StatementClass::Insert.bit();
        let m = self.m;
        let named = match (&m.tables, &m.reads) {
            (None, None) => m.writes.is_none(),
            (tables, reads) => fits(tables.as_ref(), table) && fits(reads.as_ref(), table),
        };
        (by != 0 && named && self.column_tables(table)) || (own && by & DML != 0)
    }

    fn writes(&self, table: &Name) -> bool {
        let m = self.m;
        let named = match (&m.tables, &m.writes) {
            (None, None) => m.reads.is_none(),
            (tables, writes) => fits(tables.as_ref(), table) && fits(writes.as_ref(), table),
        };
        self.writing != 0 && self.writing & !self.covers == 0 && named && self.column_tables(table)
    }

    fn column(&self, column: &ColumnName, written: bool) -> bool {
        let named = self
            .m
            .columns
            .as_ref()
            .is_none_or(|columns| columns.iter().any(|p| p.must_match(column)));
        named && if written { self.writes(&column.table) } else { self.reads(&column.table) }
    }

    fn function(&self, name: &Name) -> bool {
        self.covers & self.content != 0
            && fits(self.m.functions.as_ref(), name)
            && (!self.central || central::may_call(self.m, name))
    }
}

fn fits(patterns: Option<&Vec<NamePattern>>, name: &Name) -> bool {
    patterns.is_none_or(|patterns| patterns.iter().any(|p| p.must_match(name)))
}

//! What of an SSH request the rules that let through have to cover, and what they do.
//!
//! A request passes only when everything about it is covered: each of its classes, each program,
//! each file it uses by itself, each variable, its destination. Several rules may share the work.
//! A rule covers only what it speaks of: one about paths opens no program, one about programs
//! no file but those a program would be given anyway.

use super::facts::{FileOp, FileUse, Place, SshClass, SshFacts};
use super::matching::{file_meant, program_meant};
use super::rules::{NAMED_ONLY, SshClasses, SshMatchers};
use crate::policy::model::Rule;

const COMMANDS: u32 = SshClass::Exec.bit() | SshClass::Scp.bit() | SshClass::Rsync.bit();

/// What of one request is covered so far.
pub(in crate::policy) struct SshCoverage<'a> {
    facts: &'a SshFacts,
    bits: u32,
    classes_left: u32,
    unseen_left: bool,
    destination_left: bool,
    programs: Vec<bool>,
    files: Vec<bool>,
    variables: Vec<bool>,
}

impl<'a> SshCoverage<'a> {
    /// Nothing is covered yet, but what is only a guess, what comes along, and files that are none.
    pub fn new(facts: &'a SshFacts) -> Self {
        let bits = facts.class_bits();
        Self {
            facts,
            bits,
            classes_left: bits,
            unseen_left: facts.unseen.is_some(),
            destination_left: facts.destination.is_some(),
            programs: facts.programs.iter().map(|p| p.guessed).collect(),
            files: facts.files.iter().map(|file| file.carried || nothing(file)).collect(),
            variables: vec![false; facts.variables.len()],
        }
    }

    /// Adds what a rule covers whose other conditions hold; false when it covers nothing.
    pub fn add(&mut self, rule: &Rule) -> bool {
        let (f, m) = (self.facts, &rule.when.ssh);
        let classes = m.request.unwrap_or(SshClasses::ANY).covers() & self.bits;
        if classes == 0 {
            return false;
        }
        let all = m.content_key().is_none();
        let programs: Vec<bool> = f
            .programs
            .iter()
            .map(|p| classes & COMMANDS != 0 && (all || m.names_programs()) && program_meant(m, p))
            .collect();
        let named = programs.contains(&true);
        let files: Vec<bool> =
            f.files.iter().map(|file| all || covers_file(m, file, named)).collect();
        let variable = |v: &String| {
            all || m.variables.as_ref().is_some_and(|ps| ps.iter().any(|p| p.matches(v)))
        };
        let variables: Vec<bool> = f.variables.iter().map(variable).collect();
        let destination = f.destination.as_ref().is_some_and(|d| {
            all || m.destinations.as_ref().is_some_and(|ps| ps.iter().any(|p| p.must_match(d)))
        });
        let any = |list: &[bool]| list.contains(&true);
        // Who may do something by sftp may open it.
        let opens = f.opens_sftp() && m.names_files();
        if !all && !opens && !any(&programs) && !any(&files) && !any(&variables) && !destination {
            return false;
        }
        self.classes_left &= !classes;
        self.destination_left &= !destination;
        merge(&mut self.programs, &programs);
        merge(&mut self.files, &files);
        merge(&mut self.variables, &variables);
        let main = if f.opens_sftp() { self.bits } else { f.class.bit() };
        if rule.when.unseen == Some(true) && classes & main != 0 {
            self.unseen_left = false;
        }
        true
    }

    /// What is not covered, in words; `None` when all is. What is most telling comes first.
    pub fn missing(&self) -> Option<String> {
        let f = self.facts;
        let left =
            |bits: u32| SshClass::ALL.into_iter().find(|c| self.classes_left & bits & c.bit() != 0);
        if let Some(class) = left(NAMED_ONLY & !SshClass::Unknown.bit()) {
            return Some(match &f.destination {
                Some(to) => format!("no rule allows requests of class {class} to {to}"),
                None => format!("no rule allows requests of class {class} by that name"),
            });
        }
        if self.unseen_left {
            let what = f.unseen.as_deref().unwrap_or("a part");
            return Some(format!("cannot see {what}, and no rule allows unseen requests"));
        }
        let no = |what: String| format!("no rule allows {what}");
        if self.destination_left {
            return f.destination.as_ref().map(|to| no(format!("a forward to {to}")));
        }
        first(&self.programs, &f.programs)
            .map(|p| no(format!("running {}", described(p))))
            .or_else(|| first(&self.files, &f.files).map(|file| no(format!("to {file}"))))
            .or_else(|| first(&self.variables, &f.variables).map(|v| no(format!("setting {v}"))))
            .or_else(|| left(u32::MAX).map(|c| no(format!("requests of class {c}"))))
    }
}

/// A program with its words, as far as a line holds them.
fn described(program: &super::facts::Program) -> String {
    const LONGEST: usize = 120;
    let mut out = program.to_string();
    for arg in &program.args {
        if out.len() + arg.text.len() > LONGEST {
            out.push_str(" …");
            break;
        }
        out.push(' ');
        out.push_str(&arg.text);
    }
    out
}

/// Places that take and give nothing.
fn nothing(file: &FileUse) -> bool {
    let empty = ["/dev/null", "/dev/zero", "/dev/full", "/dev/stdin", "/dev/stdout", "/dev/stderr"];
    matches!(&file.place, Place::At(path) if empty.contains(&path.as_str()))
        && matches!(file.op, FileOp::Read | FileOp::Write | FileOp::Append)
}

/// `named`: the rule covers a program of this request.
fn covers_file(m: &SshMatchers, file: &FileUse, named: bool) -> bool {
    if m.names_files() {
        return file_meant(m, file);
    }
    // What a covered program may read by an argument, it may read by a redirection.
    named && (file.implied || (file.op == FileOp::Read && m.arguments.is_none()))
}

fn first<'t, T>(done: &[bool], items: &'t [T]) -> Option<&'t T> {
    done.iter().position(|d| !d).and_then(|i| items.get(i))
}

fn merge(into: &mut [bool], from: &[bool]) {
    for (a, b) in into.iter_mut().zip(from) {
        *a |= b;
    }
}

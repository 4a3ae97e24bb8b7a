//! The walk through the syntax tree.

use brush_parser::ast;
use brush_parser::ast::{
    AndOr, Command, CommandPrefixOrSuffixItem as Item, CompoundCommand, CompoundList,
    ExtendedTestExpr, IoRedirect, Pipeline, SimpleCommand, SubshellCommand,
};

use super::walk::{Input, Walk};
use crate::policy::ssh::facts::Argument;

impl Walk {
    pub(super) fn list(&mut self, list: &CompoundList) {
        for ast::CompoundListItem(and_or, _) in &list.0 {
            self.pipeline(&and_or.first);
            for more in &and_or.additional {
                match more {
                    AndOr::And(pipeline) | AndOr::Or(pipeline) => self.pipeline(pipeline),
                }
            }
        }
    }

    fn pipeline(&mut self, pipeline: &Pipeline) {
        if pipeline.timed.is_some() {
            // A keyword to bash, a program to dash.
            self.note(Argument::literal("time"), Vec::new());
        }
        for (n, command) in pipeline.seq.iter().enumerate() {
            let input = if n > 0 { Input::Other } else { Input::Inherited };
            self.command(command, input);
        }
    }

    fn command(&mut self, command: &Command, input: Input) {
        match command {
            Command::Simple(simple) => self.simple(simple, input),
            Command::Compound(compound, redirects) => {
                self.compound(compound);
                self.redirects(redirects.as_ref());
            }
            Command::Function(function) => {
                self.unseen(format!("what {} means once it is a function", function.fname.value));
                let ast::FunctionBody(body, redirects) = &function.body;
                self.compound(body);
                self.redirects(redirects.as_ref());
            }
            Command::ExtendedTest(test, redirects) => {
                self.unseen("what [[ … ]] does, which sh runs as commands");
                self.test(&test.expr);
                self.redirects(redirects.as_ref());
            }
        }
    }

    fn compound(&mut self, compound: &CompoundCommand) {
        self.simple += 1;
        match compound {
            CompoundCommand::Arithmetic(c) => {
                self.unseen("what (( … )) does, which sh runs as commands");
                self.fragment(&c.expr.value);
                self.substitution(&c.expr.value);
            }
            CompoundCommand::ArithmeticForClause(c) => {
                self.unseen("what for (( … )) computes");
                for part in [&c.initializer, &c.condition, &c.updater].into_iter().flatten() {
                    self.fragment(&part.value);
                }
                self.list(&c.body.list);
            }
            CompoundCommand::BraceGroup(c) => self.list(&c.list),
            CompoundCommand::Subshell(c) => self.list(&c.list),
            CompoundCommand::ForClause(c) => {
                for word in c.values.iter().flatten() {
                    self.word(&word.value);
                }
                self.assign(&c.variable_name, false);
                self.list(&c.body.list);
            }
            CompoundCommand::CaseClause(c) => {
                self.word(&c.value.value);
                for case in &c.cases {
                    for pattern in &case.patterns {
                        self.word(&pattern.value);
                    }
                    if let Some(list) = &case.cmd {
                        self.list(list);
                    }
                }
            }
            CompoundCommand::IfClause(c) => {
                self.list(&c.condition);
                self.list(&c.then);
                for part in c.elses.iter().flatten() {
                    if let Some(condition) = &part.condition {
                        self.list(condition);
                    }
                    self.list(&part.body);
                }
            }
            CompoundCommand::WhileClause(c) | CompoundCommand::UntilClause(c) => {
                self.list(&c.0);
                self.list(&c.1.list);
            }
            CompoundCommand::Coprocess(c) => {
                self.unseen("what a coprocess is given");
                self.command(&c.body, Input::Other);
            }
        }
    }

    fn test(&mut self, test: &ExtendedTestExpr) {
        match test {
            ExtendedTestExpr::And(a, b) | ExtendedTestExpr::Or(a, b) => {
                self.test(a);
                self.test(b);
            }
            ExtendedTestExpr::Not(a) | ExtendedTestExpr::Parenthesized(a) => self.test(a),
            ExtendedTestExpr::UnaryTest(_, word) => drop(self.fragment(&word.value)),
            ExtendedTestExpr::BinaryTest(_, a, b) => {
                self.fragment(&a.value);
                self.fragment(&b.value);
            }
        }
    }

    /// What runs to make the file that stands for it.
    pub(super) fn process(&mut self, process: &SubshellCommand) -> Argument {
        self.list(&process.list);
        Argument { single: true, ..Argument::unknown("<(…)") }
    }

    fn simple(&mut self, simple: &SimpleCommand, mut input: Input) {
        self.simple += 1;
        let runs = simple.word_or_name.is_some();
        for item in simple.prefix.iter().flat_map(|p| &p.0) {
            match item {
                Item::AssignmentWord(assignment, _) => self.assignment(assignment, runs),
                Item::IoRedirect(redirect) => self.redirect(redirect, &mut input),
                Item::Word(word) => drop(self.word(&word.value)),
                Item::ProcessSubstitution(_, process) => drop(self.process(process)),
            }
        }
        let name = simple.word_or_name.as_ref().map(|word| self.word(&word.value));
        let mut args: Vec<Argument> = Vec::new();
        // dash ends the command at the `&` of `&>`, and begins another behind its file.
        let mut ended = false;
        for item in simple.suffix.iter().flat_map(|s| &s.0) {
            match item {
                Item::AssignmentWord(assignment, word) => {
                    if !matches!(assignment.value, ast::AssignmentValue::Scalar(_)) {
                        self.unseen("what an array holds");
                        self.array(assignment);
                    }
                    let word = self.word(&word.value);
                    args.push(word);
                }
                Item::Word(word) => {
                    let word = self.word(&word.value);
                    args.push(word);
                }
                Item::IoRedirect(redirect @ IoRedirect::OutputAndError(..)) => {
                    ended = true;
                    self.redirect(redirect, &mut input);
                }
                Item::IoRedirect(redirect) => {
                    // `{name}>file` sets a variable.
                    let sets = |a: &Argument| {
                        let inner = a.text.strip_prefix('{').and_then(|t| t.strip_suffix('}'));
                        inner.is_some_and(super::variables::is_name)
                    };
                    if args.last().is_some_and(sets) {
                        self.unseen("which variable holds a file");
                    }
                    self.redirect(redirect, &mut input);
                }
                Item::ProcessSubstitution(_, process) => {
                    let word = self.process(process);
                    args.push(word);
                }
            }
            if ended && !matches!(item, Item::IoRedirect(_)) {
                self.unseen("where a command with &> ends");
            }
        }
        if let Some(name) = name {
            self.run(name, args, input);
        }
    }

    fn assignment(&mut self, assignment: &ast::Assignment, exported: bool) {
        match &assignment.name {
            ast::AssignmentName::VariableName(name) => self.assign(name, exported),
            ast::AssignmentName::ArrayElementName(name, index) => {
                self.assign(name, exported);
                self.unseen("what an array's index does");
                self.fragment(index);
            }
        }
        if assignment.append {
            self.unseen("an assignment that sh runs as a command");
        }
        match &assignment.value {
            ast::AssignmentValue::Scalar(word) => drop(self.word(&word.value)),
            ast::AssignmentValue::Array(_) => {
                self.unseen("what an array holds");
                self.array(assignment);
            }
        }
    }

    fn array(&mut self, assignment: &ast::Assignment) {
        let ast::AssignmentValue::Array(elements) = &assignment.value else { return };
        for (key, value) in elements {
            if let Some(key) = key {
                self.fragment(&key.value);
            }
            self.word(&value.value);
        }
    }
}

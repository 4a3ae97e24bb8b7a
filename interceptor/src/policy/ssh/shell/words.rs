//! Words: what they stand for, and what runs inside them.

use brush_parser::word::{
    self, Parameter, ParameterExpr as Expr, ParameterTransformOp, SpecialParameter, WordPiece,
    WordPieceWithSource,
};

use super::walk::{Walk, options};
use crate::policy::ssh::facts::Argument;

/// Characters that end a word where they stand unquoted. One inside a word means that two
/// parsers disagree about where it ends.
const ENDS: &[char] = &[' ', '\t', '\n', ';', '&', '|', '<', '>', '(', ')'];

impl Walk {
    /// Reads one word.
    pub(super) fn word(&mut self, raw: &str) -> Argument {
        let mut word = Argument::literal("");
        let Ok(pieces) = word::parse(raw, &options()) else {
            self.unseen("a word that cannot be parsed");
            return Argument::unknown(raw);
        };
        let bare = self.pieces(raw, &pieces, false, &mut word);
        self.expansions(&bare, &mut word);
        if !word.literal {
            word.text = raw.to_owned();
        }
        word
    }

    /// Reads what stands where a word may stand that does not become one: an index, a pattern.
    pub(super) fn fragment(&mut self, raw: &str) -> Argument {
        let mut word = Argument::literal("");
        match word::parse(raw, &options()) {
            Ok(pieces) => drop(self.pieces(raw, &pieces, true, &mut word)),
            Err(_) => self.unseen("an expression that cannot be parsed"),
        }
        word
    }

    /// Reads pieces into a word; gives back what of it is unquoted, a NUL for all else.
    pub(super) fn pieces(
        &mut self,
        raw: &str,
        pieces: &[WordPieceWithSource],
        quoted: bool,
        word: &mut Argument,
    ) -> String {
        let mut bare = String::new();
        for WordPieceWithSource { piece, start_index, end_index } in pieces {
            let source = raw.get(*start_index..*end_index).unwrap_or_default();
            if let WordPiece::Text(text) = piece {
                self.text(text, raw.get(*end_index..).unwrap_or_default(), quoted);
                word.text.push_str(text);
                bare.push_str(if quoted { "\0" } else { text });
                continue;
            }
            bare.push('\0');
            match piece {
                WordPiece::Text(_) => {}
                WordPiece::SingleQuotedText(text) => word.text.push_str(text),
                WordPiece::EscapeSequence(text) => {
                    word.text.push_str(text.strip_prefix('\\').unwrap_or(text));
                }
                WordPiece::DoubleQuotedSequence(inner) => {
                    self.pieces(raw, inner, true, word);
                }
                WordPiece::GettextDoubleQuotedSequence(inner) => {
                    word.literal = false;
                    self.pieces(raw, inner, true, word);
                }
                WordPiece::AnsiCQuotedText(text) => {
                    word.literal = false;
                    if text.contains('\\') {
                        self.unseen("where $'…' ends, which sh reads otherwise");
                    }
                }
                WordPiece::TildeExpansion(_) => word.literal = false,
                other => {
                    word.literal = false;
                    word.single &= quoted && !several(other);
                    self.expansion(other, source);
                }
            }
        }
        bare
    }

    fn text(&mut self, text: &str, after: &str, quoted: bool) {
        if !quoted && text.contains(ENDS) {
            self.unseen("where a word ends");
        }
        if text.ends_with('$') && after.starts_with(['{', '(', '[', '`'])
            || ["${", "$(", "$["].iter().any(|s| text.contains(s))
            || text.contains('`')
        {
            self.unseen("an expansion that cannot be parsed");
        }
    }

    /// Globs, braces and tildes in what is unquoted.
    fn expansions(&mut self, bare: &str, word: &mut Argument) {
        let braces = bare.find('{').is_some_and(|open| {
            let inside = &bare[open..];
            inside.contains('}') && (inside.contains(',') || inside.contains(".."))
        });
        let class = bare.find('[').is_some_and(|open| bare[open..].contains(']'));
        if braces || class || bare.contains(['*', '?']) {
            word.literal = false;
            word.single = false;
        }
        let tilde = |at: usize| at == 0 || bare[..at].ends_with(['=', ':']);
        if bare.match_indices('~').any(|(at, _)| tilde(at)) {
            word.literal = false;
        }
    }

    fn expansion(&mut self, piece: &WordPiece, source: &str) {
        match piece {
            WordPiece::CommandSubstitution(text) => {
                if source.starts_with("$((") {
                    self.unseen("whether $(( … is arithmetic");
                }
                self.substitution(text);
            }
            WordPiece::BackquotedCommandSubstitution(text) => {
                if source.contains('\\') {
                    self.unseen("what is escaped between backquotes");
                }
                self.substitution(text);
            }
            WordPiece::ArithmeticExpression(expr) => {
                if !computes(&expr.value) || source.starts_with("$[") {
                    self.unseen("what arithmetic evaluates");
                }
                self.fragment(&expr.value);
            }
            WordPiece::ParameterExpansion(expr) => self.parameter(expr, source),
            _ => {}
        }
    }

    fn parameter(&mut self, expr: &Expr, source: &str) {
        if source.starts_with("${") && source.contains(['\'', '"', '\\', '`', '\n']) {
            self.unseen("where ${…} ends");
        }
        if let Some(of) = parameter_of(expr) {
            self.subscript(of);
        }
        match expr {
            Expr::Transform { op: ParameterTransformOp::PromptExpand, .. } => {
                self.unseen("what a prompt runs");
            }
            Expr::Substring { offset, length, .. } => {
                let simple = |e: &str| e.trim().bytes().all(|b| b.is_ascii_digit());
                if !simple(&offset.value) || length.as_ref().is_some_and(|l| !simple(&l.value)) {
                    self.unseen("what arithmetic evaluates");
                }
                self.fragment(&offset.value);
                if let Some(length) = length {
                    self.fragment(&length.value);
                }
            }
            Expr::ReplaceSubstring { pattern, replacement, .. } => {
                self.operand(pattern);
                self.operand(replacement.as_deref().unwrap_or_default());
            }
            Expr::AssignDefaultValues { parameter, default_value, .. } => {
                match parameter {
                    Parameter::Named(name) => self.assign(name, false),
                    _ => self.unseen("which variable is set"),
                }
                self.operand(default_value.as_deref().unwrap_or_default());
            }
            other => self.operand(operand_of(other).unwrap_or_default()),
        }
        if indirect(expr) {
            self.unseen("which variable ${!…} means");
        }
    }

    /// A word inside `${…}`.
    fn operand(&mut self, raw: &str) {
        let mut word = Argument::literal("");
        match word::parse(raw, &options()) {
            Ok(pieces) => {
                let bare = self.pieces(raw, &pieces, false, &mut word);
                if bare.contains(['{', '}', '(', ')']) {
                    self.unseen("where ${…} ends");
                }
            }
            Err(_) => self.unseen("an expansion that cannot be parsed"),
        }
    }

    fn subscript(&mut self, parameter: &Parameter) {
        if let Parameter::NamedWithIndex { index, .. } = parameter {
            if !index.bytes().all(|b| b.is_ascii_digit()) {
                self.unseen("what an array's index does");
            }
            self.fragment(index);
        }
    }
}

/// Whether a quoted expansion can become several words, or none.
fn several(piece: &WordPiece) -> bool {
    let WordPiece::ParameterExpansion(expr) = piece else { return false };
    match parameter_of(expr) {
        None => true,
        Some(Parameter::Special(SpecialParameter::AllPositionalParameters { .. }))
        | Some(Parameter::NamedWithAllIndices { .. }) => true,
        Some(_) => indirect(expr),
    }
}

/// Whether an expression is numbers and operators only, closed in itself. A variable in it would
/// be evaluated as an expression in turn, which may run a command.
fn computes(expr: &str) -> bool {
    let mut open = 0_i32;
    expr.chars().all(|c| {
        match c {
            '(' => open += 1,
            ')' => open -= 1,
            _ => {}
        }
        open >= 0
            && (c.is_ascii_digit()
                || matches!(
                    c,
                    ' ' | '+'
                        | '-'
                        | '*'
                        | '/'
                        | '%'
                        | '('
                        | ')'
                        | '<'
                        | '>'
                        | '='
                        | '!'
                        | '&'
                        | '|'
                        | '^'
                        | '?'
                        | ':'
                        | ','
                        | '~'
                ))
    }) && open == 0
}

fn indirect(expr: &Expr) -> bool {
    match expr {
        Expr::Parameter { indirect, .. }
        | Expr::UseDefaultValues { indirect, .. }
        | Expr::AssignDefaultValues { indirect, .. }
        | Expr::IndicateErrorIfNullOrUnset { indirect, .. }
        | Expr::UseAlternativeValue { indirect, .. }
        | Expr::ParameterLength { indirect, .. }
        | Expr::RemoveSmallestSuffixPattern { indirect, .. }
        | Expr::RemoveLargestSuffixPattern { indirect, .. }
        | Expr::RemoveSmallestPrefixPattern { indirect, .. }
        | Expr::RemoveLargestPrefixPattern { indirect, .. }
        | Expr::Substring { indirect, .. }
        | Expr::Transform { indirect, .. }
        | Expr::UppercaseFirstChar { indirect, .. }
        | Expr::UppercasePattern { indirect, .. }
        | Expr::LowercaseFirstChar { indirect, .. }
        | Expr::LowercasePattern { indirect, .. }
        | Expr::ReplaceSubstring { indirect, .. } => *indirect,
        Expr::VariableNames { .. } | Expr::MemberKeys { .. } => false,
    }
}

fn parameter_of(expr: &Expr) -> Option<&Parameter> {
    match expr {
        Expr::Parameter { parameter, .. }
        | Expr::UseDefaultValues { parameter, .. }
        | Expr::AssignDefaultValues { parameter, .. }
        | Expr::IndicateErrorIfNullOrUnset { parameter, .. }
        | Expr::UseAlternativeValue { parameter, .. }
        | Expr::ParameterLength { parameter, .. }
        | Expr::RemoveSmallestSuffixPattern { parameter, .. }
        | Expr::RemoveLargestSuffixPattern { parameter, .. }
        | Expr::RemoveSmallestPrefixPattern { parameter, .. }
        | Expr::RemoveLargestPrefixPattern { parameter, .. }
        | Expr::Substring { parameter, .. }
        | Expr::Transform { parameter, .. }
        | Expr::UppercaseFirstChar { parameter, .. }
        | Expr::UppercasePattern { parameter, .. }
        | Expr::LowercaseFirstChar { parameter, .. }
        | Expr::LowercasePattern { parameter, .. }
        | Expr::ReplaceSubstring { parameter, .. } => Some(parameter),
        Expr::VariableNames { .. } | Expr::MemberKeys { .. } => None,
    }
}

/// The one word inside an expansion that has one.
fn operand_of(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::UseDefaultValues { default_value: word, .. }
        | Expr::IndicateErrorIfNullOrUnset { error_message: word, .. }
        | Expr::UseAlternativeValue { alternative_value: word, .. }
        | Expr::RemoveSmallestSuffixPattern { pattern: word, .. }
        | Expr::RemoveLargestSuffixPattern { pattern: word, .. }
        | Expr::RemoveSmallestPrefixPattern { pattern: word, .. }
        | Expr::RemoveLargestPrefixPattern { pattern: word, .. }
        | Expr::UppercaseFirstChar { pattern: word, .. }
        | Expr::UppercasePattern { pattern: word, .. }
        | Expr::LowercaseFirstChar { pattern: word, .. }
        | Expr::LowercasePattern { pattern: word, .. } => word.as_deref(),
        _ => None,
    }
}

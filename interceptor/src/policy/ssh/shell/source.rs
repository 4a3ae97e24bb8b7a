//! Whether the tokens of a text are all of the text, and nothing else.
//!
//! The parser's tokenizer drops what it takes for a comment or a continued line, and moves
//! here-documents. Where a shell would not agree, a part of the command would vanish from sight.
//! So each token must be, character by character, what stands at its place, and only blanks,
//! comments and continued lines may stand between tokens.

use brush_parser::Token;

/// Says what does not add up, in words that end "… cannot see".
pub(super) fn check(text: &str, tokens: &[Token]) -> Result<(), &'static str> {
    let mut scan = Scan { chars: text.chars().collect(), at: 0 };
    let mut rest = tokens.iter();
    let mut document = None;
    while let Some(token) = rest.next() {
        scan.token(token)?;
        match token {
            Token::Operator(op, _) if op == "<<" || op == "<<-" => {
                if document.is_some() {
                    return Err("which of several here-documents is which");
                }
                let (Some(tag), Some(body), Some(_)) = (rest.next(), rest.next(), rest.next())
                else {
                    return Err("where a here-document ends");
                };
                scan.token(tag)?;
                document = Some(Document::new(tag.to_str(), body.to_str(), op == "<<-")?);
            }
            Token::Operator(op, _) if op == "\n" => {
                if let Some(document) = document.take() {
                    scan.document(&document)?;
                }
            }
            _ => {}
        }
    }
    if document.is_some() {
        return Err("where a here-document ends");
    }
    scan.gap(scan.chars.len()).then_some(()).ok_or(DROPPED)
}

const DROPPED: &str = "how its words are divided";

struct Document {
    tag: String,
    body: String,
    strip: bool,
}

impl Document {
    fn new(raw: &str, body: &str, strip: bool) -> Result<Self, &'static str> {
        let unquoted = raw
            .strip_prefix('\'')
            .and_then(|t| t.strip_suffix('\''))
            .or_else(|| raw.strip_prefix('"').and_then(|t| t.strip_suffix('"')));
        let tag = unquoted.unwrap_or(raw);
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if tag.is_empty() || !tag.chars().all(plain) {
            return Err("where a here-document ends");
        }
        if unquoted.is_none() && body.contains("\\\n") {
            return Err("which lines of a here-document are one");
        }
        Ok(Self { tag: tag.into(), body: body.into(), strip })
    }
}

struct Scan {
    chars: Vec<char>,
    at: usize,
}

impl Scan {
    fn token(&mut self, token: &Token) -> Result<(), &'static str> {
        let end = token.location().end.index;
        let length = token.to_str().chars().count();
        let start = end.checked_sub(length).filter(|s| *s >= self.at).ok_or(DROPPED)?;
        let same = self
            .chars
            .get(start..end)
            .is_some_and(|slice| slice.iter().copied().eq(token.to_str().chars()));
        if !same || !self.gap(start) {
            return Err(DROPPED);
        }
        self.at = end;
        Ok(())
    }

    /// Whether nothing but blanks, continued lines and comments stands before `end`.
    fn gap(&self, end: usize) -> bool {
        let Some(gap) = self.chars.get(self.at..end) else { return false };
        let mut comment = false;
        let mut chars = gap.iter().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\n' => return false,
                _ if comment => {}
                ' ' | '\t' => {}
                '\\' if chars.next() == Some(&'\n') => {}
                '#' => comment = true,
                _ => return false,
            }
        }
        true
    }

    /// Steps over the lines of a here-document, which must be those the tokenizer took.
    fn document(&mut self, document: &Document) -> Result<(), &'static str> {
        const WRONG: &str = "where a here-document ends";
        let mut body = String::new();
        loop {
            let rest = self.chars.get(self.at..).unwrap_or_default();
            if rest.is_empty() {
                return Err(WRONG);
            }
            let length = rest.iter().position(|c| *c == '\n');
            let mut line: String = rest[..length.unwrap_or(rest.len())].iter().collect();
            if document.strip {
                line = line.trim_start_matches('\t').to_owned();
            }
            self.at += length.map_or(rest.len(), |n| n + 1);
            if line == document.tag {
                break;
            }
            body.push_str(&line);
            body.push('\n');
        }
        (body == document.body).then_some(()).ok_or(WRONG)
    }
}

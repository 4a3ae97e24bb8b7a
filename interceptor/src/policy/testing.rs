//! Tests of policies: cases in TOML beside the rules (`orders.toml`, `orders.test.toml`).
//!
//! A case says who asks for what and what the verdict must be. Statements are classified by
//! whatever [`Classify`] is given: the SQL analysis in the product, plain facts elsewhere.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

pub use super::classify::SqlClassifier;
use super::facts::{Ask, SqlFacts, SshFacts, Subject};
use super::load::{PolicySet, Source};
use super::ssh::testing::Asked;
use super::ssh::{self, Home, ShellAnalyzer};
use super::text::{self, Fields, Node, PolicyErrors, Read};
use super::verdict::{Effect, MaskRule, Stream, Verdict};
use crate::config;
use crate::identity::Claims;

/// A table that statements of a test are about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestTable {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its columns in order.
    pub columns: Vec<String>,
}

/// Turns a statement's text into facts, one entry for each statement of the text.
pub trait Classify {
    /// Classifies; names mean what `tables` say, `search_path` being `public` behind the system
    /// catalog. An error is what an agent would be told.
    fn classify(&self, text: &str, tables: &[TestTable]) -> Result<Vec<SqlFacts>, String>;

    /// For each statement of the text why masking refuses its shape, if it does. Nothing is said
    /// where there is no lineage to judge.
    fn shapes(
        &self,
        _text: &str,
        _tables: &[TestTable],
        _masks: &[Arc<MaskRule>],
    ) -> Result<Vec<Option<String>>, String> {
        Ok(Vec::new())
    }

    /// Reads what an SSH request asks for.
    fn ssh(&self, asked: &Asked, home: Option<&Home>) -> SshFacts {
        asked.facts(&ShellAnalyzer::new(1), home)
    }
}

/// The cases of one file.
#[derive(Debug)]
pub struct TestFile {
    /// The file.
    pub file: String,
    tables: Vec<TestTable>,
    cases: Vec<Case>,
}

/// One case.
#[derive(Debug)]
struct Case {
    name: String,
    line: usize,
    subject: Subject,
    at: Timestamp,
    statement: Option<String>,
    facts: Option<SqlFacts>,
    ssh: Option<Asked>,
    home: Option<Home>,
    expect: Expect,
}

#[derive(Debug, Default)]
struct Expect {
    effect: Option<Effect>,
    error: bool,
    rule: Option<String>,
    masks: Option<Vec<String>>,
    message: Option<String>,
    stream: Option<String>,
}

/// How one case went.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The file.
    pub file: String,
    /// The line on which the case begins.
    pub line: usize,
    /// Its name.
    pub name: String,
    /// What differs; none when it passed.
    pub failure: Option<String>,
}

const CASE: &[&str] = &[
    "name",
    "service",
    "database",
    "role",
    "claims",
    "issuer",
    "agent",
    "labels",
    "source",
    "at",
    "statement",
    "facts",
    "expect",
    "rule",
    "masks",
    "message",
    "stream",
    "description",
];

fn keys() -> Vec<&'static str> {
    CASE.iter().chain(ssh::testing::KEYS).copied().collect()
}

/// When a case happens that does not say: a Monday morning.
const DEFAULT_TIME: &str = "2026-03-02T10:00:00Z";

impl TestFile {
    /// Reads one file of cases.
    pub fn read(source: &Source) -> Result<Self, PolicyErrors> {
        Ok(Self::read_one(source)?)
    }

    fn read_one(source: &Source) -> Read<Self> {
        let table = text::parse(&source.name, &source.text)?;
        let top = Fields::top(&source.name, &source.text, &table);
        top.known(&["case", "catalog", "defaults"])?;
        let defaults = top.get("defaults").map(|n| n.table()).transpose()?;
        if let Some(defaults) = &defaults {
            defaults.known(&keys())?;
        }
        let tables = top.get("catalog").map(|n| catalog(&n)).transpose()?.unwrap_or_default();
        let mut cases = Vec::new();
        for node in top.get("case").map(|n| n.list()).unwrap_or_default() {
            cases.push(case(node.table()?, defaults.as_ref())?);
        }
        Ok(Self { file: source.name.clone(), tables, cases })
    }

    /// How many cases there are.
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }

    /// Runs every case against a set of policies.
    pub fn run(&self, policies: &PolicySet, classify: &dyn Classify) -> Vec<Outcome> {
        self.cases
            .iter()
            .map(|case| Outcome {
                file: self.file.clone(),
                line: case.line,
                name: case.name.clone(),
                failure: case.run(policies, classify, &self.tables).err(),
            })
            .collect()
    }
}

/// `[catalog]`: table name to list of columns.
fn catalog(node: &Node<'_>) -> Read<Vec<TestTable>> {
    node.table()?
        .entries()
        .map(|(name, columns)| {
            let (schema, table) = name.split_once('.').unwrap_or(("public", name));
            Ok(TestTable {
                schema: schema.to_owned(),
                name: table.to_owned(),
                columns: columns.each(|c| Ok(c.to_owned()))?,
            })
        })
        .collect()
}

/// Reads a file whose `[catalog]` describes tables, as test files have it.
pub fn read_catalog(source: &Source) -> Result<Vec<TestTable>, PolicyErrors> {
    fn read(source: &Source) -> Read<Vec<TestTable>> {
        let table = text::parse(&source.name, &source.text)?;
        let top = Fields::top(&source.name, &source.text, &table);
        catalog(&top.need("catalog")?)
    }
    read(source).map_err(PolicyErrors::from)
}

fn case(mut fields: Fields<'_>, defaults: Option<&Fields<'_>>) -> Read<Case> {
    fields.rename("case");
    let name = fields.need("name")?.str()?.to_owned();
    fields.rename(format!("case \"{name}\""));
    fields.known(&keys())?;
    let get = |key: &str| fields.get(key).or_else(|| defaults.and_then(|d| d.get(key)));
    let word = |key: &str, or: &str| -> Read<String> {
        get(key).map_or_else(|| Ok(or.to_owned()), |n| n.str().map(str::to_owned))
    };
    let statement = fields.get("statement").map(|n| n.str().map(str::to_owned)).transpose()?;
    let facts = fields.get("facts").map(|n| n.read::<SqlFacts>()).transpose()?;
    if statement.is_some() && facts.is_some() {
        return Err(fields.err("either `statement` or `facts`"));
    }
    let ssh = ssh::testing::read(&fields, defaults)?;
    if ssh.is_some() && (statement.is_some() || facts.is_some()) {
        return Err(fields.err("asks for SQL and for SSH; write two cases"));
    }
    let role = word("role", "app")?;
    let home = ssh::testing::home(get("home").as_ref(), &role)?;
    let source = word("source", "127.0.0.1")?;
    let source: IpAddr =
        source.parse().map_err(|_| fields.err(format!("source {source:?} is no address")))?;
    let at = word("at", DEFAULT_TIME)?;
    let at: Timestamp = at
        .parse()
        .map_err(|_| fields.err(format!("at = {at:?}: write \"2026-03-02T10:00:00Z\"")))?;
    let subject = Subject {
        claims: claims(get("claims"), get("issuer"), at)?,
        agent: agent(get("agent"), get("labels"))?,
        service: word("service", "orders-db")?,
        database: word("database", "orders")?,
        role,
        source,
        client: None,
    };
    let expect = expect(&fields, get("expect"))?;
    Ok(Case { line: fields.line(), name, subject, at, statement, facts, ssh, home, expect })
}

fn expect(fields: &Fields<'_>, node: Option<Node<'_>>) -> Read<Expect> {
    let node = node.ok_or_else(|| fields.err("`expect` is missing"))?;
    let (effect, error) = match node.str()? {
        "allow" => (Some(Effect::Allow), false),
        "hold" => (Some(Effect::Hold), false),
        "deny" => (Some(Effect::Deny), false),
        "error" => (None, true),
        _ => return Err(node.err("\"allow\", \"hold\", \"deny\" or \"error\"")),
    };
    Ok(Expect {
        effect,
        error,
        rule: fields.get("rule").map(|n| n.str().map(str::to_owned)).transpose()?,
        masks: fields.get("masks").map(|n| n.each(|s| Ok(s.to_owned()))).transpose()?,
        message: fields.get("message").map(|n| n.str().map(str::to_owned)).transpose()?,
        stream: fields.get("stream").map(|n| n.str().map(str::to_owned)).transpose()?,
    })
}

/// The claims of a case; what every token has is filled in.
fn claims(
    node: Option<Node<'_>>,
    issuer: Option<Node<'_>>,
    at: Timestamp,
) -> Read<Option<Arc<Claims>>> {
    let Some(node) = node else { return Ok(None) };
    node.table()?;
    let serde_json::Value::Object(given) = node.json()? else {
        return Err(node.err("a table of claims"));
    };
    let now = at.as_second();
    let issuer = issuer.map_or(Ok("okta"), |n| n.str())?;
    claims_from(given, issuer, now).map(|c| Some(Arc::new(c))).map_err(|e| node.err(e))
}

/// Claims out of a bare set, for tests and explanations: what every token has is filled in.
pub fn claims_from(
    given: serde_json::Map<String, serde_json::Value>,
    issuer: &str,
    now: i64,
) -> Result<Claims, String> {
    let mut all = serde_json::json!({
        "iss": "https://issuer.example", "sub": "someone", "aud": "api://test", "jti": "test",
        "cid": "client", "iat": now - 60, "exp": now + 3540,
    });
    if let Some(all) = all.as_object_mut() {
        all.extend(given);
        return Claims::from_claim_set(issuer, all.clone()).map_err(|e| e.message);
    }
    Err("no claims".into())
}

fn agent(name: Option<Node<'_>>, labels: Option<Node<'_>>) -> Read<Option<Arc<config::Agent>>> {
    if name.is_none() && labels.is_none() {
        return Ok(None);
    }
    let name = name.map_or(Ok("agent"), |n| n.str())?;
    let labels = labels.map(|n| n.read::<BTreeMap<String, String>>()).transpose()?;
    Ok(Some(Arc::new(plain_agent(name, labels.unwrap_or_default()))))
}

/// An agent of that name with those labels and nothing else.
pub fn plain_agent(name: &str, labels: BTreeMap<String, String>) -> config::Agent {
    config::Agent {
        name: name.to_owned(),
        issuer: "okta".into(),
        cid: Some("client".into()),
        act_sub: None,
        owners: Vec::new(),
        labels,
        sources: Vec::new(),
        ssh_keys: Vec::new(),
    }
}

impl Case {
    fn run(
        &self,
        policies: &PolicySet,
        classify: &dyn Classify,
        tables: &[TestTable],
    ) -> Result<(), String> {
        if let Some(asked) = &self.ssh {
            let facts = classify.ssh(asked, self.home.as_ref());
            return self.compare(&policies.judge(&self.subject, &Ask::Ssh(&facts), self.at));
        }
        let verdict = match (&self.statement, &self.facts) {
            (Some(text), _) => match classify.classify(text, tables) {
                Err(_) if self.expect.error => return Ok(()),
                Err(error) => return Err(format!("the statement is refused: {error}")),
                Ok(facts) => {
                    let mut verdict = judge_all(policies, &self.subject, &facts, self.at)
                        .ok_or("the statement is empty")?;
                    let masks = policies.mask_rules(&self.subject, self.at);
                    let refused = classify.shapes(text, tables, &masks)?;
                    if let Some(why) = refused.into_iter().flatten().next() {
                        verdict.deny_shape(why);
                    }
                    verdict
                }
            },
            (None, Some(facts)) => policies.judge(&self.subject, &Ask::Sql(facts), self.at),
            (None, None) => policies.judge(&self.subject, &Ask::Connect, self.at),
        };
        self.compare(&verdict)
    }

    fn compare(&self, verdict: &Verdict) -> Result<(), String> {
        let Some(effect) = self.expect.effect else {
            return Err("expected an error, and the statement was understood".into());
        };
        let said =
            || verdict.rules.iter().map(|r| format!("{}: {}", r.rule, r.why)).collect::<Vec<_>>();
        if verdict.effect != effect {
            return Err(format!(
                "expected {effect}, is {} ({})",
                verdict.effect,
                said().join("; ")
            ));
        }
        if let Some(rule) = &self.expect.rule
            && !verdict.rules.iter().any(|r| r.rule == *rule)
        {
            return Err(format!("rule {rule:?} took no part ({})", said().join("; ")));
        }
        if let Some(message) = &self.expect.message
            && verdict.message.as_deref() != Some(message)
        {
            return Err(format!("the message is {:?}", verdict.message));
        }
        let stream = match verdict.stream {
            Stream::Plain => "plain",
            Stream::Masked => "masked",
            Stream::Unmasked { .. } => "unmasked",
        };
        if self.expect.stream.as_deref().is_some_and(|wanted| wanted != stream) {
            return Err(format!("the stream is {stream}"));
        }
        let Some(masks) = &self.expect.masks else { return Ok(()) };
        let mut is: Vec<String> = verdict
            .masks
            .iter()
            .flat_map(|m| {
                let columns = m.columns.iter().map(|c| c.as_str().to_owned());
                columns.chain(m.kinds.iter().map(|k| format!("kind:{k}")))
            })
            .collect();
        is.sort();
        is.dedup();
        let mut wanted = masks.clone();
        wanted.sort();
        if is == wanted { Ok(()) } else { Err(format!("expected masks {wanted:?}, are {is:?}")) }
    }
}

/// The verdict over all statements of a text; `None` when there is none.
pub fn judge_all(
    policies: &PolicySet,
    subject: &Subject,
    statements: &[SqlFacts],
    now: Timestamp,
) -> Option<Verdict> {
    statements
        .iter()
        .map(|facts| policies.judge(subject, &Ask::Sql(facts), now))
        .reduce(Verdict::combine)
}

/// Reads every test file of a directory.
pub fn read_tests(directory: &std::path::Path) -> Result<Vec<TestFile>, PolicyErrors> {
    super::load::read_directory(directory, |name| name.ends_with(".test.toml"))?
        .iter()
        .map(TestFile::read)
        .collect()
}

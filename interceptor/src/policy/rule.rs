//! One `[[rule]]` table: its keys, and what they may not say together.

use std::sync::Arc;

use jiff::tz::TimeZone;

use super::condition::{Condition, regex};
use super::facts::StatementClass;
use super::model::{About, Classes, Matchers, On, Rule};
use super::pattern::{ColumnPattern, NamePattern, Pattern};
use super::ssh::SshMatchers;
use super::text::{Fields, Node, Read};
use super::time::{Age, EVERY_DAY, Window, days, hours};
use super::verdict::{BinaryMask, Effect, Limits, MaskRule};
use crate::mask;

const MATCHERS: &[&str] = &[
    "service",
    "database",
    "role",
    "agent",
    "issuer",
    "principal",
    "labels",
    "claims",
    "actors",
    "source",
    "days",
    "hours",
    "timezone",
    "token_age",
    "statement",
    "commands",
    "settings",
    "tables",
    "reads",
    "writes",
    "columns",
    "functions",
    "without_where",
    "text",
    "unseen",
    "request",
    "programs",
    "arguments",
    "paths",
    "operations",
    "destinations",
    "variables",
];
const OTHERS: &[&str] = &[
    "name",
    "effect",
    "on",
    "message",
    "limits",
    "hold",
    "masks",
    "binary",
    "not",
    "below",
    "description",
];

const MAX_MESSAGE: usize = 1000;

/// Reads one rule.
pub(super) fn read(file: &Arc<str>, mut fields: Fields<'_>) -> Read<Rule> {
    fields.rename("rule");
    let line = fields.line();
    let name_node = fields.need("name")?;
    let name = rule_name(&name_node)?;
    fields.rename(format!("rule \"{name}\""));
    let known: Vec<&str> = OTHERS.iter().chain(MATCHERS).copied().collect();
    fields.known(&known)?;
    if let Some(node) = fields.get("description") {
        node.str()?;
    }
    let not_fields = fields.get("not").map(|n| n.table()).transpose()?;
    let not = match &not_fields {
        Some(fields) => {
            fields.known(MATCHERS)?;
            matchers(fields)?
        }
        None => Matchers::default(),
    };
    let when = matchers(&fields)?;
    let rule = Rule {
        about: about(&fields, &when, &not)?,
        binary: fields.get("binary").map(|n| n.bool()).transpose()?.unwrap_or_default(),
        masks: masks(&name, file, &fields)?,
        central: false,
        name,
        file: file.clone(),
        line,
        effect: effect(&fields)?,
        on: on(&fields)?,
        message: message(&fields)?,
        limits: limits(&fields)?,
        timeout: timeout(&fields)?,
        when,
        not,
    };
    sense(&rule, &fields)?;
    negations(&rule, &fields, not_fields.as_ref())?;
    Ok(rule)
}

fn rule_name(node: &Node<'_>) -> Read<String> {
    let name = node.str()?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
        return Err(node.err("a rule's name has 1 to 64 letters, digits, dashes, dots and _"));
    }
    if name == super::verdict::DEFAULT_DENY {
        return Err(node.err("this name stands for \"no rule matched\"; choose another"));
    }
    Ok(name.to_owned())
}

fn effect(fields: &Fields<'_>) -> Read<Option<Effect>> {
    let Some(node) = fields.get("effect") else { return Ok(None) };
    match node.str()? {
        "allow" => Ok(Some(Effect::Allow)),
        "hold" => Ok(Some(Effect::Hold)),
        "deny" => Ok(Some(Effect::Deny)),
        other => Err(node.err(format!("{other:?} is none of \"allow\", \"hold\", \"deny\""))),
    }
}

fn on(fields: &Fields<'_>) -> Read<On> {
    match fields.get("on") {
        None => Ok(On::Request),
        Some(node) => match node.str()? {
            "request" => Ok(On::Request),
            "connect" => Ok(On::Connect),
            other => Err(node.err(format!("{other:?} is neither \"request\" nor \"connect\""))),
        },
    }
}

/// Of which requests it speaks: a key that one protocol lacks keeps it from the other.
fn about(fields: &Fields<'_>, when: &Matchers, not: &Matchers) -> Read<About> {
    let sql = when.sql_key().or_else(|| not.sql_key());
    let ssh = when.ssh.key().or_else(|| not.ssh.key());
    match (sql, ssh) {
        (None, None) => Ok(About::Either),
        (Some(_), None) => Ok(About::Sql),
        (None, Some(_)) => Ok(About::Ssh),
        (Some(sql), Some(ssh)) => Err(fields.err(format!(
            "never matches: `{sql}` is about SQL and `{ssh}` about SSH; write two rules"
        ))),
    }
}

fn message(fields: &Fields<'_>) -> Read<Option<String>> {
    let Some(node) = fields.get("message") else { return Ok(None) };
    let text = node.str()?;
    if text.len() > MAX_MESSAGE || text.chars().any(|c| c.is_control() && c != '\n') {
        return Err(node.err(format!("a plain text of at most {MAX_MESSAGE} bytes")));
    }
    Ok(Some(text.to_owned()))
}

fn limits(fields: &Fields<'_>) -> Read<Limits> {
    let Some(node) = fields.get("limits") else { return Ok(Limits::default()) };
    let table = node.table()?;
    table.known(&["rows", "bytes", "seconds"])?;
    let number = |key: &str| table.get(key).map(|n| n.u64()).transpose();
    Ok(Limits { rows: number("rows")?, bytes: number("bytes")?, seconds: number("seconds")? })
}

fn timeout(fields: &Fields<'_>) -> Read<Option<std::time::Duration>> {
    let Some(node) = fields.get("hold") else { return Ok(None) };
    let table = node.table()?;
    table.known(&["timeout"])?;
    let node = table.need("timeout")?;
    humantime::parse_duration(node.str()?)
        .map(Some)
        .map_err(|_| node.err("a length of time such as \"5m\""))
}

fn masks(rule: &str, file: &Arc<str>, fields: &Fields<'_>) -> Read<Vec<Arc<MaskRule>>> {
    let Some(node) = fields.get("masks") else { return Ok(Vec::new()) };
    node.list()
        .iter()
        .map(|item| {
            let table = item.table()?;
            table.known(&["columns", "kinds", "method", "binary"])?;
            let columns = match table.get("columns") {
                Some(node) => node.each(ColumnPattern::new)?,
                None => Vec::new(),
            };
            let kinds = match table.get("kinds") {
                Some(node) => node.each(kind)?,
                None => Vec::new(),
            };
            if columns.is_empty() && kinds.is_empty() {
                return Err(table.err("a mask names `columns`, or `kinds` of data to look for"));
            }
            let method = table.need("method")?.read::<mask::Method>()?;
            let binary = match table.get("binary") {
                None => BinaryMask::default(),
                Some(node) if kinds.is_empty() => {
                    return Err(node.err("goes with `kinds`, which are looked for in streams"));
                }
                Some(node) => match node.str()? {
                    "deny" => BinaryMask::Deny,
                    "hold" => BinaryMask::Hold,
                    _ => return Err(node.err("\"deny\" or \"hold\"")),
                },
            };
            Ok(Arc::new(MaskRule {
                rule: rule.to_owned(),
                file: Arc::clone(file),
                columns,
                kinds,
                method,
                binary,
            }))
        })
        .collect()
}

fn kind(name: &str) -> Result<mask::Kind, String> {
    mask::Kind::from_name(name).ok_or_else(|| {
        let known: Vec<_> = mask::Kind::ALL.iter().map(|k| k.as_str()).collect();
        format!("{name:?} is no kind of data; known are {}", known.join(", "))
    })
}

fn matchers(fields: &Fields<'_>) -> Read<Matchers> {
    let plain = |key: &str| fields.get(key).map(|n| n.each(Pattern::new)).transpose();
    let full = |key: &str| match fields.get(key) {
        Some(node) if node.list().is_empty() => Err(node.err("an empty list matches nothing")),
        _ => plain(key),
    };
    let names = |key: &str| fields.get(key).map(|n| n.each(NamePattern::new)).transpose();
    let cidr = |s: &str| {
        s.parse::<ipnet::IpNet>()
            .or_else(|_| s.parse::<std::net::IpAddr>().map(ipnet::IpNet::from))
            .map_err(|_| format!("{s:?} is no network; write it like \"10.0.0.0/8\""))
    };
    Ok(Matchers {
        service: full("service")?,
        database: full("database")?,
        role: full("role")?,
        agent: full("agent")?,
        issuer: full("issuer")?,
        principal: full("principal")?,
        labels: conditions(fields, "labels")?,
        claims: conditions(fields, "claims")?,
        actors: full("actors")?,
        source: fields.get("source").map(|n| n.each(cidr)).transpose()?,
        window: window(fields)?,
        age: fields
            .get("token_age")
            .map(|n| Age::read(n.str()?).map_err(|e| n.err(e)))
            .transpose()?,
        statement: fields.get("statement").map(|n| classes(&n)).transpose()?,
        commands: lower(fields, "commands")?,
        settings: lower(fields, "settings")?,
        tables: names("tables")?,
        reads: names("reads")?,
        writes: names("writes")?,
        columns: fields.get("columns").map(|n| n.each(ColumnPattern::new)).transpose()?,
        functions: names("functions")?,
        without_where: fields.get("without_where").map(|n| n.bool()).transpose()?,
        text: fields
            .get("text")
            .map(|n| regex(n.str()?, false).map_err(|e| n.err(e)))
            .transpose()?,
        unseen: fields.get("unseen").map(|n| n.bool()).transpose()?,
        ssh: SshMatchers::read(fields)?,
    })
}

/// Patterns of things whose case does not matter.
fn lower(fields: &Fields<'_>, key: &str) -> Read<Option<Vec<Pattern>>> {
    fields.get(key).map(|n| n.each(|s| Pattern::new(&s.to_lowercase()))).transpose()
}

fn conditions(fields: &Fields<'_>, key: &str) -> Read<Vec<(String, Condition)>> {
    let Some(node) = fields.get(key) else { return Ok(Vec::new()) };
    let table = node.table()?;
    table.entries().map(|(name, node)| Ok((name.to_owned(), Condition::read(&node)?))).collect()
}

fn classes(node: &Node<'_>) -> Read<Classes> {
    let mut classes = Classes::default();
    if node.list().is_empty() {
        return Err(node.err("an empty list matches nothing"));
    }
    for item in node.list() {
        match item.str()? {
            "any" => classes.any = true,
            "read" => classes.read = true,
            "write" => classes.write = true,
            name => match StatementClass::from_name(name) {
                Some(class) => classes.bits |= class.bit(),
                None => {
                    let known: Vec<_> = StatementClass::ALL.iter().map(|c| c.as_str()).collect();
                    return Err(item.err(format!(
                        "{name:?} is no statement class; known are any, read, write, {}",
                        known.join(", ")
                    )));
                }
            },
        }
    }
    Ok(classes)
}

fn window(fields: &Fields<'_>) -> Read<Option<Window>> {
    let (days_node, hours_node) = (fields.get("days"), fields.get("hours"));
    let zone_node = fields.get("timezone");
    if days_node.is_none() && hours_node.is_none() {
        return match zone_node {
            Some(node) => Err(node.err("a time zone needs `days` or `hours` beside it")),
            None => Ok(None),
        };
    }
    let bits = match &days_node {
        Some(node) => node.each(days)?.into_iter().fold(0, |bits, day| bits | day),
        None => EVERY_DAY,
    };
    let ranges = hours_node.map(|n| n.each(hours)).transpose()?.unwrap_or_default();
    let zone = match &zone_node {
        None => TimeZone::UTC,
        Some(node) => TimeZone::get(node.str()?).map_err(|_| {
            node.err("no time zone of that name; write an IANA name such as \"Europe/Berlin\"")
        })?,
    };
    Ok(Some(Window { days: bits, hours: ranges, zone }))
}

/// What keys may not say together.
fn sense(rule: &Rule, fields: &Fields<'_>) -> Read<()> {
    let at = |key: &str, message: String| {
        Err(fields
            .get(key)
            .map_or_else(|| fields.err(message.as_str()), |n| n.err(message.as_str())))
    };
    let request_key = rule.when.request_key().or_else(|| rule.not.request_key());
    let bare = rule.limits == Limits::default() && rule.masks.is_empty();
    if rule.effect.is_none() && bare {
        return Err(fields.err("does nothing; give it an `effect`, `masks` or `limits`"));
    }
    if rule.timeout.is_some() && rule.effect != Some(Effect::Hold) {
        return at("hold", "goes with effect = \"hold\"".into());
    }
    if rule.binary && !matches!(rule.effect, Some(Effect::Allow | Effect::Hold)) {
        return at("binary", "goes with effect = \"allow\" or \"hold\"".into());
    }
    if rule.binary && (rule.on == On::Connect || rule.about == About::Sql) {
        return at("binary", "is about the output of SSH requests".into());
    }
    let strict = matches!(rule.effect, Some(Effect::Deny | Effect::Hold));
    if fields.get("below").is_some() && !(strict && rule.when.ssh.paths.is_some()) {
        return at("below", "goes with `paths` in a rule that denies or holds".into());
    }
    if rule.on == On::Connect {
        if let Some(key) = request_key {
            return at(
                key,
                "a rule on \"connect\" sees no statement or request; drop this key or `on`".into(),
            );
        }
        if !rule.masks.is_empty() {
            return at("masks", "a connection returns nothing to mask; drop `on`".into());
        }
        if rule.limits != Limits::default() {
            return at("limits", "a connection has no rows to limit; drop `on`".into());
        }
    }
    // Of SSH requests each shows its own output, so a mask may be about some of them only.
    let by_request = rule.about == About::Ssh && rule.masks.iter().all(|m| m.columns.is_empty());
    if rule.effect.is_none()
        && !rule.masks.is_empty()
        && !by_request
        && let Some(key) = request_key
    {
        return at(
            key,
            "a mask holds for every request of its subject; drop this key, or give an `effect`"
                .into(),
        );
    }
    if rule.when.unseen == Some(true)
        && rule.effect != Some(Effect::Deny)
        && let Some(key) = rule.not.content_key()
    {
        return at(
            "not",
            format!("what is unseen cannot be excluded: `not.{key}` has no meaning with unseen"),
        );
    }
    Ok(())
}

/// What nested actors and negations may not do.
fn negations(rule: &Rule, fields: &Fields<'_>, not: Option<&Fields<'_>>) -> Read<()> {
    let nested = |m: &Matchers| m.claims.iter().any(|(path, _)| path.starts_with("act.act"));
    let stricter = "nested actors can only make a verdict stricter";
    if rule.effect == Some(Effect::Allow) && (rule.when.actors.is_some() || nested(&rule.when)) {
        let key = if rule.when.actors.is_some() { "actors" } else { "claims" };
        let message = format!("{stricter}, so an allow cannot depend on them; use `agent`");
        return Err(fields.get(key).map_or_else(|| fields.err(&*message), |n| n.err(&*message)));
    }
    let Some(not) = not else { return Ok(()) };
    if rule.not.actors.is_some() || nested(&rule.not) {
        let message = format!("{stricter}, so no rule can be switched off by one; use `not.agent`");
        return Err(not.err(message));
    }
    if not.get("days").is_some() && not.get("hours").is_some() {
        return Err(not.err(
            "`days` and `hours` together can be read in two ways here; write one rule for each",
        ));
    }
    if rule.not.labels.len() + rule.not.claims.len() == 0 && not.entries().next().is_none() {
        return Err(not.err("is empty"));
    }
    Ok(())
}

//! Rules as operators write them, against requests as agents make them.

use std::sync::Arc;

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;

use super::testing::{SqlClassifier, claims_from, plain_agent, read_tests};
use super::*;

mod central;

fn source(name: &str, text: &str) -> Source {
    Source { name: name.into(), text: text.into() }
}

fn set(text: &str) -> PolicySet {
    PolicySet::from_sources(&[source("p.toml", text)]).unwrap()
}

fn error(text: &str) -> String {
    PolicySet::from_sources(&[source("p.toml", text)]).unwrap_err().to_string()
}

fn now() -> Timestamp {
    "2026-03-02T10:00:00Z".parse().unwrap()
}

fn subject(claims: serde_json::Value) -> Subject {
    let claims = claims.as_object().unwrap().clone();
    Subject {
        claims: Some(Arc::new(claims_from(claims, "okta", now().as_second()).unwrap())),
        agent: Some(Arc::new(plain_agent(
            "helper",
            [("tier".to_owned(), "gold".to_owned())].into(),
        ))),
        service: "db".into(),
        database: "shop".into(),
        role: "app".into(),
        source: "10.1.2.3".parse().unwrap(),
        client: None,
    }
}

fn unproven() -> Subject {
    Subject { claims: None, agent: None, ..subject(json!({})) }
}

/// Facts in a short form: `class +also r:table w:table c:t.col f:fn !unseen nowhere`.
fn facts(short: &str) -> SqlFacts {
    let name = |s: &str| {
        let (schema, name) = s.split_once('.').unwrap_or(("public", s));
        Name::new(schema, name)
    };
    let mut f = SqlFacts { text: short.into(), ..SqlFacts::default() };
    for (n, word) in short.split_whitespace().enumerate() {
        match word.split_once(':') {
            Some(("r", t)) => f.tables_read.push(name(t)),
            Some(("w", t)) => f.tables_written.push(name(t)),
            Some(("f", t)) => f.functions.push(name(t)),
            Some(("s", t)) => f.settings.push(t.into()),
            Some(("k", t)) => f.commands.push(t.replace('_', " ")),
            Some(("role", t)) => f.roles_assumed.push(t.into()),
            Some(("c", c)) => {
                let (t, c) = c.rsplit_once('.').unwrap();
                f.columns_read.push(ColumnName::new(name(t), c));
            }
            _ if n == 0 => f.class = StatementClass::from_name(word).unwrap(),
            _ if word == "!unseen" => f.unseen = Some("a body".into()),
            _ if word == "nowhere" => f.without_where = true,
            _ => f.also.push(StatementClass::from_name(word.trim_start_matches('+')).unwrap()),
        }
    }
    f
}

fn judged(rules: &PolicySet, short: &str) -> Verdict {
    rules.judge(&subject(json!({"groups": ["dba"]})), &Ask::Sql(&facts(short)), now())
}

#[test]
fn rules_that_let_through_must_cover_everything() {
    let one = |body: &str| set(&format!("[[rule]]\nname='a'\neffect='allow'\n{body}"));
    for (rules, request, passes) in [
        ("statement='select'\ntables='orders'", "select r:orders", true),
        ("statement='select'\ntables='orders'", "select r:orders r:secrets", false),
        ("statement='select'\ntables='orders'", "select", false),
        ("statement='select'\ntables=[]", "select", true),
        ("statement='select'\ntables=[]", "select r:orders", false),
        ("statement='select'\ntables='orders'", "update w:orders", false),
        ("statement='select'", "select +delete w:orders", false),
        ("statement=['select','delete']", "select +delete w:orders", true),
        ("tables='orders'", "insert w:orders", true),
        ("reads='orders'", "insert w:orders", false),
        ("reads='orders'", "select r:orders", true),
        ("writes='orders'\nstatement='update'", "update w:orders r:orders", true),
        ("writes='orders'\nstatement='update'", "update w:orders r:secrets", false),
        ("writes='orders'\nstatement='insert'", "insert w:orders r:orders", false),
        ("tables='orders'\nstatement='insert'", "insert w:orders r:orders", false),
        ("tables='public.orders'", "select r:.orders", false),
        ("statement='select'\nfunctions='pg_catalog.*'", "select f:pg_catalog.now", true),
        ("statement='select'\nfunctions='pg_catalog.*'", "select f:evil", false),
        ("statement='select'\nfunctions=[]", "select f:pg_catalog.now", false),
        ("columns='orders.id'", "select r:orders c:orders.id", true),
        ("columns='orders.id'", "select r:orders c:orders.id c:orders.total", false),
        ("columns='orders.id'", "select r:orders c:orders.*", false),
        ("columns='orders.id'", "select r:secrets", false),
        ("without_where=false", "delete w:orders", true),
        ("without_where=false", "delete w:orders nowhere", false),
        ("", "do !unseen", false),
        ("unseen=true", "do !unseen", true),
        ("unseen=true\nstatement='do'", "call !unseen", false),
        ("unseen=true", "do", true),
        // What an `any` does not mean.
        ("statement='any'", "fastpath f:evil", false),
        ("", "unknown", false),
        ("statement=['any','fastpath']", "fastpath f:evil", true),
        ("", "copy k:copy_to_stdout r:orders", true),
        ("", "copy k:copy_to_program r:orders", false),
        ("commands='copy to program'", "copy k:copy_to_program r:orders", true),
        ("statement='read'", "copy k:copy_to_stdout r:orders", true),
        ("statement='read'", "copy k:copy_from_stdin w:orders", false),
        ("statement='read'", "copy r:orders", false),
        ("statement='write'", "copy k:copy_from_stdin w:orders", true),
        ("statement='write'", "ddl w:orders", false),
        ("statement='utility'\ncommands='show'", "utility k:show", true),
        ("statement='utility'\ncommands='show'", "utility k:vacuum", false),
        ("statement='utility'\ncommands='show'", "utility", false),
        ("statement=['do','utility']\ncommands=['do','show']", "do +utility k:do k:show", true),
        (
            "statement=['do','utility']\ncommands=['do','show']",
            "do +utility k:do k:show k:load",
            false,
        ),
        ("statement='set'\nsettings='timezone'", "set k:set s:timezone", true),
        ("statement='set'\nsettings='timezone'", "set k:set s:timezone s:role", false),
        ("statement='set'\nsettings='timezone'", "set", false),
        ("statement='select'", "select s:timezone", false),
        // Negations exclude what may be there.
        ("not={tables='secrets'}", "select r:orders", true),
        ("not={tables='secrets'}", "select r:orders r:secrets", false),
        ("not={tables='app.secrets'}", "select r:.secrets", false),
        ("not={columns='orders.note'}", "select r:orders c:orders.*", false),
        ("not={statement='delete'}", "select +delete", false),
        ("not={functions='evil'}", "select f:evil", false),
        ("not={text='forbidden'}", "select r:forbidden", false),
        ("not={commands='drop *'}", "ddl", false),
    ] {
        let verdict = judged(&one(rules), request);
        let expected = if passes { Effect::Allow } else { Effect::Deny };
        assert_eq!(verdict.effect, expected, "{rules:?} on {request:?}: {:?}", verdict.rules);
    }
}

#[test]
fn several_rules_share_the_work_but_not_the_way_a_table_is_written() {
    let rules = set("
        [[rule]]\nname='read-orders'\neffect='allow'\nstatement='select'\ntables='orders'
        [[rule]]\nname='add-logs'\neffect='allow'\nstatement='insert'\ntables='logs'
        [[rule]]\nname='pg'\neffect='allow'\nstatement='select'\nreads='pg_catalog.*'
        [[rule]]\nname='explain'\neffect='allow'\nstatement='utility'\ncommands='explain'\n");
    for (request, passes) in [
        ("select r:orders r:pg_catalog.pg_class", true),
        ("insert w:logs r:orders", true),
        // Each class and each table is allowed somewhere, but nobody may insert into orders.
        ("insert w:orders r:logs", false),
        ("insert +select w:orders", false),
        ("insert w:logs r:logs", false),
        ("select r:logs", false),
        ("utility +select k:explain k:select r:orders", true),
        ("utility +select k:explain k:select r:secrets", false),
        ("utility +select k:explain k:select", false),
        // A plain EXPLAIN plans, so its class is its own, but the tables are there.
        ("utility k:explain k:select r:orders", true),
        ("utility k:explain k:select r:secrets", false),
        ("utility k:explain k:insert w:logs", true),
        ("utility k:explain k:insert w:orders", false),
        ("utility k:explain k:delete w:logs", false),
        ("utility k:explain k:select r:orders f:evil", true),
    ] {
        let verdict = judged(&rules, request);
        assert_eq!(verdict.effect == Effect::Allow, passes, "{request}: {:?}", verdict.rules);
    }
    let why = &judged(&rules, "insert w:orders r:logs").rules[0];
    assert_eq!(why.rule, DEFAULT_DENY);
    assert!(why.why.contains("writing public.orders"), "{}", why.why);
}

#[test]
fn what_an_insert_returns_is_read() {
    let insert = "[[rule]]\nname='i'\neffect='allow'\nstatement='insert'\n";
    let select = "[[rule]]\nname='s'\neffect='allow'\nstatement='select'\nreads='logs'\n";
    for (rules, passes) in [
        (insert.to_owned(), false),
        (select.to_owned(), false),
        (format!("{insert}{select}"), true),
        ("[[rule]]\nname='a'\neffect='allow'\nstatement='any'\n".to_owned(), true),
    ] {
        let rules = set(&rules);
        let verdict = judged(&rules, "insert w:logs c:logs.id");
        assert_eq!(verdict.effect == Effect::Allow, passes, "{:?}", verdict.rules);
        let other = judged(&rules, "insert w:logs c:secrets.id");
        assert_eq!(other.effect == Effect::Allow, rules_any(&rules), "{:?}", other.rules);
    }
}

/// Whether rules allow anything at all to be read.
fn rules_any(rules: &PolicySet) -> bool {
    judged(rules, "select r:anything").effect == Effect::Allow
}

#[test]
fn rules_that_deny_need_one_match_only() {
    let one = |body: &str| {
        set(&format!(
            "[[rule]]\nname='all'\neffect='allow'\nstatement=['any','unknown']\nunseen=true\n\
             [[rule]]\nname='no'\neffect='deny'\n{body}"
        ))
    };
    for (rules, request, denied) in [
        ("tables='secrets'", "select r:orders r:secrets", true),
        ("tables='secrets'", "select r:orders", false),
        ("tables='app.secrets'", "select r:.secrets", true),
        ("tables='secrets'", "delete w:secrets", true),
        ("reads='secrets'", "delete w:secrets", false),
        ("statement='delete'", "select +delete", true),
        ("statement='write'", "ddl", true),
        ("statement='write'", "select w:orders", true),
        ("statement='read'", "update w:orders r:secrets", true),
        ("columns='orders.note'", "select r:orders c:orders.*", true),
        ("columns='orders.note'", "select r:orders c:orders.id", false),
        ("commands='drop *'", "ddl k:drop_table", true),
        ("commands='drop *'", "ddl k:create_table", false),
        ("commands='drop *'", "ddl", true),
        ("settings='role'", "set", true),
        ("settings='role'", "select s:role", true),
        ("without_where=true", "delete nowhere", true),
        ("text='(?i)SECRET'", "select r:secrets", true),
        ("unseen=true", "do !unseen", true),
        ("unseen=true", "do", false),
        ("functions='pg_read_*'", "select f:pg_catalog.pg_read_file", true),
        // "Nothing but orders" catches whatever is not certainly orders.
        ("not={tables='orders'}", "select r:orders", false),
        ("not={tables='orders'}", "select r:orders r:secrets", true),
        ("not={tables='orders'}", "select", true),
        ("not={tables='public.orders'}", "select r:.orders", true),
        ("not={tables='orders'}", "do r:orders !unseen", true),
        ("not={statement='select'}", "select +delete", true),
        ("not={statement='select'}", "select", false),
        ("not={functions='pg_catalog.*'}", "select f:pg_catalog.now f:evil", true),
        ("not={columns='orders.id'}", "select c:orders.id c:orders.note", true),
        ("not={commands='show'}", "utility k:show k:vacuum", true),
    ] {
        let verdict = judged(&one(rules), request);
        assert_eq!(verdict.effect == Effect::Deny, denied, "{rules:?} on {request:?}");
    }
}

#[test]
fn subjects() {
    let ann = json!({
        "sub": "ann@example.com", "groups": ["dba", "support"], "uid": "00u1", "level": 7,
        "admin": true, "act": {"sub": "bot", "act": {"sub": "first-bot"}},
    });
    for (condition, ann_fits, unproven_fits) in [
        ("claims={groups='dba'}", true, false),
        ("claims={groups=['x','dba']}", true, false),
        ("claims={groups={any=['x','y']}}", false, false),
        ("claims={groups={glob='sup*'}}", true, false),
        ("claims={groups={regex='up'}}", false, false),
        ("claims={groups={regex='.*up.*'}}", true, false),
        ("claims={groups={regex='a|dba'}}", true, false),
        ("claims={groups={present=true}}", true, false),
        ("claims={team={present=false}}", true, true),
        ("claims={level={ge=7,lt=8}}", true, false),
        ("claims={level={gt=7}}", false, false),
        ("claims={level=7}", true, false),
        ("claims={level='7'}", false, false),
        ("claims={admin=true}", true, false),
        ("claims={'act.sub'='bot'}", true, false),
        ("claims={uid='00u1',groups='nope'}", false, false),
        ("labels={tier='gold'}", true, false),
        ("labels={tier={any=['gold','silver']}}", true, false),
        ("labels={team='x'}", false, false),
        ("principal='*@example.com'", true, false),
        ("principal='*@example.com.evil'", false, false),
        ("issuer='okta'", true, false),
        ("agent='help*'", true, false),
        ("service='db'\ndatabase='shop'\nrole=['x','app']", true, true),
        ("source='10.0.0.0/8'", true, true),
        ("source='::ffff:10.0.0.0/104'", true, true),
        ("source=['192.168.0.0/16','::1']", false, false),
        ("token_age='<15m'", true, false),
        ("token_age='>15m'", false, false),
        ("days='mon-fri'\nhours='09:00-17:00'", true, true),
        ("days='sat'", false, false),
        // In an allow, a negation wants the thing to be there and to differ.
        ("not={claims={groups='contractors'}}", true, false),
        ("not={claims={groups='dba'}}", false, false),
        ("not={claims={team='x'}}", false, false),
        ("not={claims={team={present=true}}}", true, true),
        ("not={claims={uid='00u1',level=9}}", false, false),
        ("not={labels={tier='silver'}}", true, false),
        ("not={agent='other'}", true, false),
        ("not={source='192.168.0.0/16'}", true, true),
        ("not={token_age='>15m'}", true, false),
        ("not={role='admin'}", true, true),
    ] {
        let rules = set(&format!("[[rule]]\nname='a'\neffect='allow'\non='connect'\n{condition}"));
        let fits = |s: &Subject| rules.judge(s, &Ask::Connect, now()).effect == Effect::Allow;
        assert_eq!(fits(&subject(ann.clone())), ann_fits, "{condition}");
        assert_eq!(fits(&unproven()), unproven_fits, "unproven: {condition}");
    }
}

#[test]
fn negations_that_deny_hold_unless_the_opposite_is_certain() {
    for (condition, ann_denied, unproven_denied) in [
        ("not={claims={groups='dba'}}", false, true),
        ("not={claims={team='x'}}", true, true),
        ("not={claims={groups='dba',level=9}}", true, true),
        ("not={labels={tier='gold'}}", false, true),
        ("not={agent='helper'}", false, true),
        ("actors='first-*'", true, false),
        ("actors='nobody'", false, false),
    ] {
        let rules = set(&format!(
            "[[rule]]\nname='all'\neffect='allow'\non='connect'\n\
             [[rule]]\nname='no'\neffect='deny'\non='connect'\n{condition}"
        ));
        let ann =
            subject(json!({"groups": ["dba"], "act": {"sub": "x", "act": {"sub": "first-bot"}}}));
        let denied = |s: &Subject| rules.judge(s, &Ask::Connect, now()).effect == Effect::Deny;
        assert_eq!(denied(&ann), ann_denied, "{condition}");
        assert_eq!(denied(&unproven()), unproven_denied, "unproven: {condition}");
    }
}

#[test]
fn the_strictest_wins_and_everything_adds_up() {
    let rules = set("
        [[rule]]\nname='all'\neffect='allow'\nlimits={rows=100,seconds=9}
        masks=[{columns=['t.a'],method='hash'}]
        [[rule]]\nname='wait'\neffect='hold'\nstatement='update'\nhold={timeout='5m'}\nmessage='wait'\nlimits={rows=10}
        [[rule]]\nname='wait-less'\neffect='hold'\nstatement='update'\nhold={timeout='1m'}\ntables='t'
        [[rule]]\nname='no'\neffect='deny'\ntables='secrets'\nmessage='never'
        [[rule]]\nname='cap'\nlimits={bytes=5}\nstatement='update'
        [[rule]]\nname='mask'\nmasks=[{columns=['t.a'],method='null'},{kinds=['card'],method='redact'}]\n");
    let allow = judged(&rules, "select r:t");
    assert_eq!(
        (allow.effect, allow.limits.rows, allow.limits.bytes),
        (Effect::Allow, Some(100), None)
    );
    assert_eq!(allow.masks.len(), 3);
    let a = ColumnName::new(Name::new("public", "t"), "a");
    assert_eq!(MaskRule::method_for(&allow.masks, &a), Some(crate::mask::Method::Null));
    assert!(allow.cacheable && allow.hold.is_none());

    let hold = judged(&rules, "update w:t");
    assert_eq!(hold.effect, Effect::Hold);
    assert_eq!(hold.hold.unwrap().timeout, Some(std::time::Duration::from_secs(60)));
    assert_eq!(hold.message.as_deref(), Some("wait"));
    assert_eq!(
        (hold.limits.rows, hold.limits.bytes, hold.limits.seconds),
        (Some(10), Some(5), Some(9))
    );

    let deny = judged(&rules, "update w:t r:secrets");
    assert_eq!((deny.effect, deny.message.as_deref()), (Effect::Deny, Some("never")));
    assert_eq!(deny.deciding_rule(), "no");

    let both = allow.combine(hold);
    assert_eq!(both.effect, Effect::Hold);
    assert_eq!(both.limits.rows, Some(10));
}

#[test]
fn a_hold_lets_through_only_what_it_names() {
    let rules = set("
        [[rule]]\nname='wait'\neffect='hold'\nstatement='update'\ntables='customers'\n");
    assert_eq!(judged(&rules, "update w:customers").effect, Effect::Hold);
    assert_eq!(judged(&rules, "update w:customers r:secrets").effect, Effect::Deny);
    assert_eq!(judged(&rules, "select r:customers").effect, Effect::Deny);
    // What does not make it wait, it does not let through.
    for (rule, request) in [
        ("statement='do'\nunseen=true", "do"),
        ("statement='select'\ntables='customers'", "insert w:logs r:customers"),
    ] {
        let rules = set(&format!(
            "[[rule]]\nname='wait'\neffect='hold'\n{rule}\n\
             [[rule]]\nname='add'\neffect='allow'\nstatement='insert'\ntables='logs'"
        ));
        assert_eq!(judged(&rules, request).effect, Effect::Deny, "{rule}");
    }
}

#[test]
fn nested_actors_never_open_a_way() {
    let rules = set("
        [[rule]]\nname='wait'\neffect='hold'\nactors='first'\n");
    let s = subject(json!({"act": {"sub": "x", "act": {"sub": "first"}}}));
    let facts = facts("select");
    assert_eq!(rules.judge(&s, &Ask::Sql(&facts), now()).effect, Effect::Deny);
}

#[test]
fn assuming_a_role_is_judged_as_connecting() {
    let rules = set("
        [[rule]]\nname='in'\neffect='allow'\non='connect'\nrole=['app','report']
        [[rule]]\nname='admin'\neffect='hold'\non='connect'\nrole='admin'\n");
    for (request, effect) in [
        ("set k:set s:role role:report", Effect::Allow),
        ("set k:set s:role role:admin", Effect::Hold),
        ("set k:set s:role role:postgres", Effect::Deny),
        ("set k:set s:role role:*", Effect::Deny),
        ("set k:set s:role s:log_statement role:report", Effect::Deny),
        ("set k:set s:role", Effect::Deny),
    ] {
        assert_eq!(judged(&rules, request).effect, effect, "{request}");
    }
}

#[test]
fn a_verdict_that_time_can_change_is_not_kept() {
    let rules = set("
        [[rule]]\nname='all'\neffect='allow'
        [[rule]]\nname='night'\neffect='deny'\nstatement='update'\nnot={hours='07:00-20:00'}
        [[rule]]\nname='elsewhere'\neffect='deny'\nservice='other'\ndays='sun'\n");
    assert!(rules.is_time_bound());
    let update = facts("update w:t");
    let at = |t: &str| rules.judge(&unproven(), &Ask::Sql(&update), t.parse().unwrap());
    assert_eq!(at("2026-03-02T19:59:59Z").effect, Effect::Allow);
    assert_eq!(at("2026-03-02T20:00:00Z").effect, Effect::Deny);
    assert!(!at("2026-03-02T19:59:59Z").cacheable);
    assert!(judged(&rules, "select r:t").cacheable);
}

#[test]
fn masks_follow_the_subject_whatever_is_asked() {
    let rules = set("
        [[rule]]\nname='m'\nmasks=[{columns='customers.email',method='hash'}]\nnot={claims={groups='dba'}}
        [[rule]]\nname='e'\neffect='allow'\nstatement='select'\ntables='orders'\nmasks=[{columns='customers.iban',method='null'}]\n");
    assert_eq!(rules.mask_rules(&subject(json!({"groups": ["dba"]})), now()).len(), 1);
    assert_eq!(rules.mask_rules(&subject(json!({"groups": ["x"]})), now()).len(), 2);
    // Who shows no groups at all is not known to be excepted.
    assert_eq!(rules.mask_rules(&unproven(), now()).len(), 2);
    let governed: Vec<_> = rules.governed_tables("db").into_iter().collect();
    assert_eq!(governed, ["customers", "orders"]);
}

#[test]
fn errors_name_file_line_and_key() {
    for (text, says) in [
        ("[[rule]]\nname='a'\nefect='deny'", &["p.toml:3", "rule \"a\", efect", "`effect`"][..]),
        (
            "[[rule]]\nname='a'\neffect='deny'\nnot={tabels='x'}",
            &["p.toml:4", "not.tabels", "`tables`"],
        ),
        ("[[rule]]\nname='a'\neffect='maybe'", &["p.toml:3", "effect", "\"hold\""]),
        ("[[rule]]\neffect='deny'", &["p.toml:1", "`name` is missing"]),
        ("[[rule]]\nname='a b'\neffect='deny'", &["p.toml:2", "letters"]),
        ("[[rule]]\nname='default-deny'\neffect='deny'", &["choose another"]),
        ("[rule]\nname='a'", &["p.toml", "[[rule]]"]),
        ("[[rules]]\nname='a'", &["`rule`"]),
        ("[[rule]]\nname='a'", &["does nothing"]),
        ("[[rule]]\nname='a'\neffect='deny'\nrole=3", &["p.toml:4", "role", "integer"]),
        ("[[rule]]\nname='a'\neffect='deny'\nrole=[]", &["empty list"]),
        ("[[rule]]\nname='a'\neffect='deny'\nsource='10.0.0.0/99'", &["10.0.0.0/99", "network"]),
        ("[[rule]]\nname='a'\neffect='deny'\nhours='9-17'", &["09:00-17:30"]),
        ("[[rule]]\nname='a'\neffect='deny'\nhours='09:00-17:00'\ntimezone='Mars/X'", &["IANA"]),
        ("[[rule]]\nname='a'\neffect='deny'\ntimezone='UTC'", &["days"]),
        ("[[rule]]\nname='a'\neffect='deny'\ntoken_age='15m'", &["<15m"]),
        ("[[rule]]\nname='a'\neffect='deny'\nstatement='selct'", &["known are any"]),
        ("[[rule]]\nname='a'\neffect='deny'\ntext='('", &["text", "regular expression"]),
        ("[[rule]]\nname='a'\neffect='deny'\nclaims={g={regex='a)|(b'}}", &["regular expression"]),
        ("[[rule]]\nname='a'\neffect='deny'\ntext='(\\w{1000}){1000}'", &["text"]),
        ("[[rule]]\nname='a'\neffect='deny'\nclaims={g={}}", &["empty condition"]),
        ("[[rule]]\nname='a'\neffect='deny'\nclaims={g={anny=['x']}}", &["`any`"]),
        ("[[rule]]\nname='a'\neffect='allow'\nactors='x'", &["actors", "stricter"]),
        ("[[rule]]\nname='a'\neffect='allow'\nclaims={'act.act.sub'='x'}", &["stricter"]),
        ("[[rule]]\nname='a'\neffect='deny'\nnot={actors='x'}", &["stricter"]),
        ("[[rule]]\nname='a'\neffect='deny'\nnot={days='mon',hours='09:00-10:00'}", &["two ways"]),
        ("[[rule]]\nname='a'\neffect='deny'\nnot={}", &["is empty"]),
        ("[[rule]]\nname='a'\neffect='allow'\nunseen=true\nnot={tables='x'}", &["not.tables"]),
        (
            "[[rule]]\nname='a'\neffect='deny'\non='connect'\ntables='x'",
            &["p.toml:5", "no statement"],
        ),
        ("[[rule]]\nname='a'\neffect='deny'\nhold={timeout='5m'}", &["effect = \"hold\""]),
        ("[[rule]]\nname='a'\ntables='x'\nmasks=[{kinds='card',method='null'}]", &["p.toml:3"]),
        ("[[rule]]\nname='a'\nmasks=[{columns='email',method='null'}]", &["table.column"]),
        ("[[rule]]\nname='a'\nmasks=[{kinds='cards',method='null'}]", &["known are card"]),
        ("[[rule]]\nname='a'\nmasks=[{kinds='card',method='blur'}]", &["blur", "redact"]),
        ("[[rule]]\nname='a'\nmasks=[{method='null'}]", &["kinds"]),
        ("[[rule]]\nname='a'\neffect='deny'\nlimits={row=3}", &["`rows`"]),
        ("[[rule]]\nname='a'\neffect='deny'\nlimits={rows=-3}", &["rows", "negative"]),
        (
            "[[rule]]\nname='a'\neffect='deny'\n[[rule]]\nname='a'\neffect='hold'",
            &["p.toml:4", "p.toml:1"],
        ),
        ("[[rule]\n", &["p.toml:1"]),
    ] {
        let error = error(text);
        for part in says {
            assert!(error.contains(part), "{text}\n{error}\nlacks {part}");
        }
    }
}

#[test]
fn all_errors_of_all_files_are_told_and_nothing_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("a.toml"),
        "[[rule]]\nname='a'\neffect='x'\n[[rule]]\nname='b'\n",
    )
    .unwrap();
    std::fs::write(dir.path().join("b.toml"), "[[rule]]\nname='c'\neffect='deny'\n").unwrap();
    std::fs::write(dir.path().join("c.test.toml"), "not a policy").unwrap();
    assert_eq!(PolicySet::load(dir.path()).unwrap_err().0.len(), 2);
    std::fs::remove_file(dir.path().join("a.toml")).unwrap();
    assert_eq!(PolicySet::load(dir.path()).unwrap().len(), 1);
    std::fs::write(dir.path().join("big.toml"), " ".repeat((1 << 20) + 1)).unwrap();
    assert!(PolicySet::load(dir.path()).unwrap_err().to_string().contains("1 MiB"));
    assert!(PolicySet::load(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
}

#[test]
fn rules_no_machine_can_meet_are_told() {
    let rules = set("
        [[rule]]\nname='people'\neffect='allow'\non='connect'\nclaims={groups='dba'}
        [[rule]]\nname='not'\neffect='allow'\non='connect'\nnot={claims={uid='x'}}
        [[rule]]\nname='fine'\neffect='deny'\non='connect'\nclaims={groups={present=false}}
        [[rule]]\nname='labels'\neffect='allow'\non='connect'\nlabels={a='b'}\nservice='dbb'\n");
    let told: Vec<_> = rules
        .warnings(&["db".into()], &[])
        .into_iter()
        .map(|w| format!("{}: {}", w.rule, w.message))
        .collect();
    assert_eq!(told.len(), 3, "{told:#?}");
    assert!(told[0].starts_with("people: no machine token"));
    assert!(told[1].starts_with("not: no machine token"));
    assert!(told[2].contains("\"dbb\""));
}

#[test]
fn an_explanation_says_which_key_kept_a_rule_out() {
    let rules = set("
        [[rule]]\nname='other'\neffect='allow'\nrole='admin'
        [[rule]]\nname='reads'\neffect='allow'\nstatement='select'\ntables='orders'
        [[rule]]\nname='no'\neffect='deny'\nnot={claims={groups='dba'}}\n");
    let e =
        rules.explain(&subject(json!({"groups": ["dba"]})), &Ask::Sql(&facts("select r:t")), now());
    let why = |name: &str| e.rules.iter().find(|r| r.rule == name).unwrap().why.clone();
    assert_eq!(why("other"), "`role` does not hold");
    assert_eq!(why("no"), "`not.claims` does not hold");
    assert!(why("reads").contains("`tables` has nothing"), "{}", why("reads"));
    assert_eq!(e.verdict.deciding_rule(), DEFAULT_DENY);
}

#[test]
fn the_shipped_policies_pass_their_tests() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let rules = PolicySet::load(&directory).unwrap();
    let classifier = SqlClassifier::new();
    let mut failures = Vec::new();
    for file in read_tests(&directory).unwrap() {
        assert!(!file.is_empty(), "{}", file.file);
        for o in file.run(&rules, &classifier) {
            failures.extend(o.failure.map(|f| format!("{}:{} {}: {f}", o.file, o.line, o.name)));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

// ---- properties ------------------------------------------------------------------------------

fn rule_text() -> impl Strategy<Value = String> {
    let class = prop::sample::select(vec![
        "any", "read", "write", "select", "update", "delete", "ddl", "do",
    ]);
    let table = prop::sample::select(vec!["a", "b", "public.*", "*", "x.a"]);
    let key = prop::sample::select(vec!["tables", "reads", "writes", "functions", "columns"]);
    let subject = prop::sample::select(vec![
        "",
        "claims={groups='dba'}",
        "claims={groups='x'}",
        "not.claims={groups='x'}",
        "not.labels={team='x'}",
        "labels={tier='gold'}",
        "token_age='<15m'",
        "unseen=true",
    ]);
    (class, table, key, subject, any::<bool>(), any::<bool>()).prop_map(
        |(class, table, key, subject, negate, keyed)| {
            let not = if negate && subject != "unseen=true" { "not." } else { "" };
            let table = if key == "columns" { format!("{table}.*") } else { table.into() };
            let keyed = if keyed { format!("{not}{key}='{table}'\n") } else { String::new() };
            format!("statement='{class}'\n{keyed}{subject}\n")
        },
    )
}

fn request() -> impl Strategy<Value = String> {
    let class = prop::sample::select(vec!["select", "update", "delete", "ddl", "do", "copy"]);
    let rest = prop::collection::vec(
        prop::sample::select(vec![
            "+delete", "+select", "r:a", "r:b", "w:a", "w:b", "r:x.a", "r:.a", "f:a", "f:b",
            "c:a.id", "c:b.*", "!unseen", "nowhere",
        ]),
        0..5,
    );
    (class, rest).prop_map(|(class, rest)| format!("{class} {}", rest.join(" ")))
}

fn rules() -> impl Strategy<Value = Vec<(String, &'static str)>> {
    prop::collection::vec((rule_text(), prop::sample::select(vec!["allow", "hold", "deny"])), 0..6)
}

fn sources(rules: &[(String, &str)]) -> Vec<Source> {
    rules
        .iter()
        .enumerate()
        .map(|(n, (body, effect))| {
            source(
                &format!("{n}.toml"),
                &format!("[[rule]]\nname='r{n}'\neffect='{effect}'\n{body}"),
            )
        })
        .collect()
}

fn verdict(sources: &[Source], request: &str) -> Verdict {
    judged(&PolicySet::from_sources(sources).unwrap(), request)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn another_deny_is_never_laxer(rules in rules(), deny in rule_text(), request in request()) {
        let mut with = rules.clone();
        with.push((deny, "deny"));
        prop_assert!(verdict(&sources(&with), &request).effect >= verdict(&sources(&rules), &request).effect);
    }

    #[test]
    fn one_allow_less_is_never_laxer(rules in rules(), allow in rule_text(), request in request()) {
        let mut with = rules.clone();
        with.push((allow, "allow"));
        prop_assert!(verdict(&sources(&rules), &request).effect >= verdict(&sources(&with), &request).effect);
    }

    #[test]
    fn the_order_of_files_never_matters(rules in rules(), request in request()) {
        let files = sources(&rules);
        let mut reversed = files.clone();
        reversed.reverse();
        let (a, b) = (verdict(&files, &request), verdict(&reversed, &request));
        prop_assert_eq!(serde_json::to_string(&a).unwrap(), serde_json::to_string(&b).unwrap());
    }

    #[test]
    fn one_more_table_is_never_laxer(rules in rules(), request in request()) {
        // Negations by content look at what else is there; without them more is never less.
        prop_assume!(rules.iter().all(|(body, effect)| *effect == "allow" || !body.contains("not.")));
        let request = format!("{request} r:a");
        let more = format!("{request} r:hidden.table");
        prop_assert!(verdict(&sources(&rules), &more).effect >= verdict(&sources(&rules), &request).effect);
    }

    #[test]
    fn the_loader_never_panics(text in ".{0,200}") {
        let _ = PolicySet::from_sources(&[source("x.toml", &text)]);
    }
}

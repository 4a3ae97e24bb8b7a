//! A verdict over 200 rules: what is paid when it is not kept within the session.

#![allow(missing_docs)] // criterion_group! makes an undocumented function

use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use interceptor::policy::testing::{claims_from, plain_agent};
use interceptor::policy::{
    Ask, ColumnName, Name, PolicySet, Source, SqlFacts, StatementClass, Subject,
};

/// Rules of every effect, with masks. With `one_team`, most are about other agents, as in a
/// set that serves many teams; else more than half of them match.
fn rules(count: usize, one_team: bool) -> PolicySet {
    let mut text = String::new();
    for n in 0..count {
        let service = if n % 2 == 0 { "orders-db".into() } else { format!("db-{}", n % 10) };
        let body = match n % 5 {
            0 => "effect='allow'\nstatement='read'\nreads=['public.orders','public.customers']",
            1 => "effect='deny'\nstatement='ddl'\nmessage='no'",
            2 => "effect='hold'\nstatement='update'\nwrites='public.customers*'",
            3 => "masks=[{columns=['customers.email'],method='hash'}]",
            _ => {
                "effect='allow'\nclaims={groups={glob='team-*'}}\nrole=['app','app_*']\ntables='public.t*'"
            }
        };
        let agent = if one_team && n >= 20 { "agent=['other','other-*']\n" } else { "" };
        let _ = writeln!(text, "[[rule]]\nname='r{n}'\nservice='{service}'\n{agent}{body}\n");
    }
    match PolicySet::from_sources(&[Source { name: "bench.toml".into(), text }]) {
        Ok(set) => set,
        Err(errors) => panic!("{errors}"),
    }
}

fn subject() -> Subject {
    let mut claims = serde_json::Map::new();
    claims.insert("groups".into(), serde_json::json!(["team-orders", "everyone"]));
    Subject {
        claims: claims_from(claims, "okta", 1_772_445_600).ok().map(Arc::new),
        agent: Some(Arc::new(plain_agent("helper", Default::default()))),
        service: "orders-db".into(),
        database: "orders".into(),
        role: "app".into(),
        source: std::net::IpAddr::from([10, 1, 2, 3]),
        client: None,
    }
}

fn facts() -> SqlFacts {
    let table = |name: &str| Name::new("public", name);
    SqlFacts {
        class: StatementClass::Select,
        commands: vec!["select".into()],
        tables_read: vec![table("orders"), table("customers")],
        columns_read: vec![
            ColumnName::new(table("orders"), "total"),
            ColumnName::new(table("customers"), "name"),
        ],
        functions: vec![Name::new("pg_catalog", "sum")],
        text: "SELECT c.name, sum(o.total) FROM customers c JOIN orders o ON true".into(),
        ..SqlFacts::default()
    }
}

fn verdict(c: &mut Criterion) {
    let (subject, facts) = (subject(), facts());
    let now = jiff::Timestamp::constant(1_772_445_700, 0);
    let mut group = c.benchmark_group("verdict");
    for (count, one_team) in [(10, false), (200, true), (200, false)] {
        let rules = rules(count, one_team);
        let count =
            if one_team { format!("{count} rules, few match") } else { format!("{count} rules") };
        group.bench_function(format!("cold, {count}"), |b| {
            b.iter(|| rules.judge(black_box(&subject), &Ask::Sql(black_box(&facts)), now));
        });
        group.bench_function(format!("masks in reach, {count}"), |b| {
            b.iter(|| rules.mask_rules(black_box(&subject), now));
        });
    }
    group.finish();
}

criterion_group!(benches, verdict);
criterion_main!(benches);

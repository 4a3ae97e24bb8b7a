//! The corpus against a real server, limits, and what rules and the wire see.

use std::fmt::Write as _;
use std::sync::{Arc, LazyLock, OnceLock};

use serde::Deserialize;

use super::testing::{self, cluster, context};
use super::*;
use crate::policy::facts::StatementClass;

static ANALYZER: LazyLock<Analyzer> = LazyLock::new(|| Analyzer::new(2));

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    sql: String,
    ring: String,
    #[serde(default)]
    part: String,
    #[serde(default)]
    masked: Vec<usize>,
    outputs: Option<Vec<String>>,
    #[serde(default = "yes")]
    describe: bool,
    #[serde(default)]
    search_path: Vec<String>,
    class: Option<StatementClass>,
}

const fn yes() -> bool {
    true
}

#[derive(Deserialize)]
struct Corpus {
    case: Vec<Case>,
}

fn corpus() -> Vec<Case> {
    [
        include_str!("corpus/pass.toml"),
        include_str!("corpus/refuse.toml"),
        include_str!("corpus/psql.toml"),
        include_str!("corpus/drivers.toml"),
        include_str!("corpus/attacks.toml"),
    ]
    .iter()
    .flat_map(|text| toml::from_str::<Corpus>(text).unwrap().case)
    .collect()
}

fn catalog() -> Option<&'static Arc<Catalog>> {
    static CATALOG: OnceLock<Option<Arc<Catalog>>> = OnceLock::new();
    CATALOG.get_or_init(|| cluster().map(testing::Cluster::catalog)).as_ref()
}

fn analyze(sql: &str, context: &Arc<Context>) -> Result<Arc<Analysis>, SqlError> {
    ANALYZER.analyze_blocking(sql, context.clone())
}

fn bare(sql: &str) -> StatementAnalysis {
    let path = vec!["pg_catalog".to_owned(), "public".to_owned()];
    let context = Arc::new(Context { catalog: None, search_path: path, epoch: 0 });
    analyze(sql, &context).unwrap().statements[0].clone()
}

fn judge(case: &Case, catalog: &Arc<Catalog>) -> Result<(), String> {
    let path: Vec<&str> = case.search_path.iter().map(String::as_str).collect();
    let path = if path.is_empty() { vec!["pg_catalog", "public"] } else { path };
    let context = context(catalog, &path);
    let masked = MaskedColumns::new(catalog, &testing::rules());
    let analysis = analyze(&case.sql, &context).map_err(|e| e.to_string())?;
    let mut masks = Vec::new();
    for statement in &analysis.statements {
        if let Some(class) = case.class
            && statement.facts.class != class
        {
            return Err(format!("class {}", statement.facts.class));
        }
        match (ring::check(statement, &masked, catalog), case.ring.as_str()) {
            (Ok(found), "pass") => masks.extend(found.iter().map(|m| m.index)),
            (Err(refusal), "refuse") if refusal.part.contains(&case.part) => return Ok(()),
            (Err(refusal), _) => return Err(format!("refused: {}", refusal.part)),
            (Ok(_), _) => {}
        }
    }
    if case.ring == "refuse" {
        return Err("passes".to_owned());
    }
    if masks != case.masked {
        return Err(format!("masks {masks:?}"));
    }
    let names = |s: &StatementAnalysis| -> Vec<String> {
        s.lineage.outputs.iter().flatten().map(|o| o.name.clone()).collect()
    };
    match (&case.outputs, analysis.statements.first()) {
        (Some(outputs), Some(s)) if names(s) != *outputs => Err(format!("outputs {:?}", names(s))),
        _ => Ok(()),
    }
}

#[test]
fn every_statement_of_the_corpus_is_judged_as_it_says() {
    let Some(catalog) = catalog() else { return };
    let mut wrong = String::new();
    for case in corpus() {
        if let Err(what) = judge(&case, catalog) {
            let _ = writeln!(
                wrong,
                "{}\n    expected {} {} {:?}: {what}",
                case.sql, case.ring, case.part, case.masked
            );
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// The server says which columns come out and whose they are; a wrong count, name or origin
/// would mask the wrong one.
#[test]
fn outputs_are_those_the_server_describes() {
    let (Some(cluster), Some(catalog)) = (cluster(), catalog()) else { return };
    let mut client = testing::Client::connect(cluster);
    let context = context(catalog, &["pg_catalog", "public"]);
    let mut wrong = String::new();
    for case in corpus().into_iter().filter(|c| c.ring == "pass" && c.describe) {
        let described = client.describe(&case.sql);
        let analysis = analyze(&case.sql, &context).unwrap();
        let outputs: Vec<_> = analysis.statements[0]
            .lineage
            .outputs
            .iter()
            .flatten()
            .map(|o| match &o.base {
                Some(base) => (o.name.clone(), base.relation, base.attnum),
                None => (o.name.clone(), 0, 0),
            })
            .collect();
        // System columns have numbers below zero and no place in the catalog.
        let described: Result<Vec<_>, String> = described
            .map(|d| d.into_iter().map(|c| if c.2 < 0 { (c.0, 0, 0) } else { c }).collect());
        if Ok(&outputs) != described.as_ref() {
            let _ = writeln!(
                wrong,
                "{}\n    predicted {outputs:?}\n    described {described:?}",
                case.sql
            );
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn deep_statements_pass_or_are_refused_and_the_process_lives() {
    let context = Arc::new(Context::default());
    let nest = |n: usize, open: &str, core: &str, close: &str| {
        format!("{}{core}{}", open.repeat(n), close.repeat(n))
    };
    let forms: [(&str, &dyn Fn(usize) -> String); 9] = [
        ("concatenation", &|n| format!("SELECT 'a'{}", " || 'a'".repeat(n))),
        ("joins", &|n| {
            let joins: String =
                (1..=n).map(|i| format!(" JOIN t t{i} ON t{i}.id = t0.id")).collect();
            format!("SELECT 1 FROM t t0{joins}")
        }),
        ("subselects", &|n| nest(n, "SELECT * FROM (", "SELECT 1", ") s")),
        ("parentheses", &|n| format!("SELECT {}", nest(n, "(", "1", ")"))),
        ("not", &|n| format!("SELECT {}", nest(n, "NOT ", "true", ""))),
        ("casts", &|n| format!("SELECT 1{}", "::int".repeat(n))),
        ("union", &|n| format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(n))),
        ("calls", &|n| format!("SELECT {}", nest(n, "abs(", "1", ")"))),
        ("arrays", &|n| format!("SELECT {}", nest(n, "ARRAY[", "1", "]"))),
    ];
    for (name, form) in forms {
        let fine = match name {
            "subselects" => 50,
            "joins" => 200,
            _ => 400,
        };
        assert!(analyze(&form(fine), &context).is_ok(), "{fine} {name}");
        for n in [2_000, 4_000, 4_900, 5_500, 20_000, 100_000] {
            match analyze(&form(n), &context) {
                Err(SqlError::TooDeep { .. }) => {}
                Ok(_) if name == "parentheses" => {}
                other => panic!("{n} {name}: {:?}", other.map(|_| ())),
            }
        }
    }
    assert!(analyze(&format!("SELECT 'a'{}", " || 'a'".repeat(500)), &context).is_ok());
    assert!(analyze("SELECT 1", &context).is_ok());
}

/// A tree the C side hands over must fit the stack with room to spare, or a text aborts the
/// process. Overflowing here aborts the tests.
#[test]
fn the_deepest_tree_needs_half_of_the_stack() {
    let forms: [fn(usize) -> String; 6] = [
        |n| format!("SELECT 'a'{}", " || 'a'".repeat(n)),
        |n| format!("SELECT 1{}", "::int".repeat(n)),
        |n| format!("SELECT {}true", "NOT ".repeat(n)),
        |n| format!("SELECT {}1{}", "abs(".repeat(n), ")".repeat(n)),
        |n| format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(n)),
        |n| format!("SELECT {}1{}", "(SELECT ".repeat(n), ")".repeat(n)),
    ];
    let work = move || {
        for form in forms {
            let (mut fits, mut fails) = (1, 40_000);
            while fits + 1 < fails {
                let middle = usize::midpoint(fits, fails);
                match pg_query::parse(&form(middle), 0) {
                    Ok(_) => fits = middle,
                    Err(_) => fails = middle,
                }
            }
            assert!(fits > 400, "{}", form(1));
        }
    };
    let thread = std::thread::Builder::new().stack_size(pool::STACK / 2).spawn(work);
    thread.unwrap().join().unwrap();
}

#[test]
fn texts_that_cannot_be_judged_are_refused_with_the_right_code() {
    let context = Arc::new(Context::default());
    for (text, code) in [
        ("SELEC 1".to_owned(), "42601"),
        ("SELECT 'a\0b'".to_owned(), "0A000"),
        (format!("SELECT '{}'", "x".repeat(MAX_TEXT)), "54000"),
        ("SELECT 'open".to_owned(), "42601"),
    ] {
        let error = analyze(&text, &context).unwrap_err();
        assert_eq!(error.sqlstate(), code, "{error}");
    }
    assert!(analyze(" ; -- nothing\n;", &context).unwrap().statements.is_empty());
}

#[test]
fn short_texts_never_outgrow_the_stack_of_their_caller() {
    let context = Arc::new(Context { catalog: None, search_path: Vec::new(), epoch: 0 });
    for (open, close) in [
        ("-+", ""),
        ("NOT ", ""),
        ("(", ")"),
        ("f(", ")"),
        ("ARRAY[", "]"),
        ("ROW(", ")"),
        ("(SELECT ", ")"),
        ("EXISTS(SELECT ", ")"),
        ("CASE WHEN ", " THEN 1 END"),
        ("1||", ""),
        ("1 IN (", ")"),
    ] {
        let n = (pool::SHORT_TEXT - 8) / (open.len() + close.len());
        let text: Arc<str> = format!("SELECT {}1{}", open.repeat(n), close.repeat(n)).into();
        assert!(text.len() <= pool::SHORT_TEXT);
        let context = Arc::clone(&context);
        let caller = deep_thread("short".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            on_deep_stack(|| runtime.block_on(ANALYZER.analyze(text, context))).map(drop)
        });
        // Understood or refused: the thread lives.
        let _ = caller.unwrap().join().unwrap();
    }
}

#[test]
fn what_is_known_is_found_again_only_under_the_same_names() {
    let text: Arc<str> = "SELECT id FROM cache_me".into();
    let path = |p: &str, epoch| Context { catalog: None, search_path: vec![p.to_owned()], epoch };
    assert!(ANALYZER.cached(&text, &path("a", 1)).is_none());
    analyze(&text, &Arc::new(path("a", 1))).unwrap();
    assert!(ANALYZER.cached(&text, &path("a", 1)).is_some());
    assert!(ANALYZER.cached(&text, &path("b", 1)).is_none());
    assert!(ANALYZER.cached(&text, &path("a", 2)).is_none());
    assert!(ANALYZER.cached(&Arc::from("SELECT id FROM cache_me "), &path("a", 1)).is_none());
}

#[test]
fn facts_say_what_a_statement_is_and_does() {
    use StatementClass as C;
    let table = [
        ("SELECT 1", C::Select, "", "select"),
        ("WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d", C::Select, "delete", "select"),
        ("EXPLAIN DELETE FROM t", C::Utility, "", "explain,delete"),
        ("EXPLAIN ANALYZE DELETE FROM t", C::Utility, "delete", "explain,delete"),
        ("EXPLAIN (ANALYZE off) DELETE FROM t", C::Utility, "", "explain,delete"),
        ("PREPARE p AS UPDATE t SET a = 1", C::Utility, "update", "prepare,update"),
        ("COPY (DELETE FROM t RETURNING *) TO STDOUT", C::Copy, "delete", "copy to stdout,delete"),
        ("COPY t FROM PROGRAM 'x'", C::Copy, "", "copy from program"),
        ("DECLARE c CURSOR FOR SELECT 1", C::Utility, "select", "declare cursor,select"),
        ("CREATE TABLE x AS SELECT 1", C::Ddl, "select", "create table as,select"),
        ("SELECT 1 INTO x", C::Select, "ddl", "select into"),
        ("CREATE VIEW v AS SELECT 1", C::Ddl, "", "create view"),
        ("DROP MATERIALIZED VIEW v", C::Ddl, "", "drop materialized view"),
        ("ALTER ROLE x SUPERUSER", C::Ddl, "", "alter role"),
        ("ALTER TABLE t RENAME COLUMN a TO b", C::Ddl, "", "alter table"),
        ("TRUNCATE t", C::Ddl, "", "truncate table"),
        ("CALL p()", C::Call, "", "call"),
        ("DO $$ BEGIN DELETE FROM t; END $$", C::Do, "delete", "do,delete"),
        ("BEGIN", C::Transaction, "", "begin"),
        ("SET x = 1", C::Set, "", "set"),
        ("RESET x", C::Set, "", "reset"),
        ("SET TRANSACTION READ ONLY", C::Transaction, "", "set"),
        ("SHOW x", C::Utility, "", "show"),
        ("VACUUM t", C::Utility, "", "vacuum"),
        (
            "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET b = 1",
            C::Insert,
            "update",
            "insert",
        ),
        ("MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DELETE", C::Merge, "delete", "merge"),
    ];
    let mut wrong = String::new();
    for (sql, class, also, commands) in table {
        let s = bare(sql);
        let found: Vec<_> = s.facts.also.iter().map(|c| c.as_str()).collect();
        let got = (s.facts.class, found.join(","), s.facts.commands.join(","));
        if got != (class, also.to_owned(), commands.to_owned()) {
            let _ = writeln!(wrong, "{sql}: {got:?}");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn what_cannot_be_seen_says_so() {
    for (sql, unseen) in [
        ("SELECT query_to_xml('SELECT 1 FROM secrets', true, true, '')", true),
        ("SELECT * FROM ts_stat('SELECT v FROM secrets')", true),
        ("SELECT table_to_xml('secrets'::regclass, true, true, '')", true),
        ("DO $$ BEGIN EXECUTE 'drop table x'; END $$", true),
        ("DO $$ BEGIN PERFORM 1; END $$", false),
        ("DO LANGUAGE plperl 'x'", true),
        ("SELECT set_config(a, 'b', true) FROM t", true),
        ("SELECT 1", false),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'x'", true),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'select 1'", false),
        ("CREATE EXTENSION x", true),
    ] {
        let s = bare(sql);
        assert_eq!(s.facts.unseen.is_some(), unseen, "{sql}: {:?}", s.facts.unseen);
    }
}

#[test]
fn writes_without_where_and_roles_are_told() {
    for (sql, without) in [
        ("UPDATE t SET a = 1", true),
        ("UPDATE t SET a = 1 WHERE b = 2", false),
        ("DELETE FROM t", true),
        ("WITH x AS (DELETE FROM t RETURNING *) SELECT 1", true),
        ("EXPLAIN ANALYZE DELETE FROM t", true),
        ("SELECT 1", false),
    ] {
        assert_eq!(bare(sql).facts.without_where, without, "{sql}");
    }
    for (sql, roles) in [
        ("SET ROLE boss", vec!["boss"]),
        ("SET SESSION AUTHORIZATION boss", vec!["boss"]),
        ("SELECT set_config('role', 'boss', true)", vec!["boss"]),
        ("RESET ROLE", vec![]),
        ("SET ROLE NONE", vec![]),
    ] {
        assert_eq!(bare(sql).facts.roles_assumed, roles, "{sql}");
    }
}

#[test]
fn settings_are_reported_whatever_way_they_are_set() {
    for (sql, name, value, local) in [
        ("SET search_path = a, \"B\"", "search_path", vec!["a", "B"], false),
        ("SET LOCAL Statement_Timeout TO 5", "statement_timeout", vec!["5"], true),
        ("SET TIME ZONE 'UTC'", "timezone", vec!["UTC"], false),
        ("SET NAMES 'latin1'", "client_encoding", vec!["latin1"], false),
        ("SELECT set_config('search_path', 'a', true)", "search_path", vec!["a"], true),
    ] {
        let s = bare(sql);
        assert_eq!(s.settings.len(), 1, "{sql}");
        assert_eq!(s.settings[0].name.as_deref(), Some(name), "{sql}");
        let values = value.iter().map(|v| (*v).to_owned()).collect();
        assert_eq!(s.settings[0].value, SetValue::Values(values), "{sql}");
        assert_eq!(s.settings[0].local, local, "{sql}");
    }
}

/// A setting that may or may not come about would make this product resolve names otherwise
/// than the server.
#[test]
fn a_setting_that_is_not_sure_to_come_about_is_unknown() {
    for sql in [
        "SELECT set_config('search_path', 'app', false) WHERE false",
        "SELECT set_config('search_path', 'app', false) LIMIT 0",
        "SELECT set_config('search_path', 'app', false) FROM t",
        "SELECT CASE WHEN now() > '2020-01-01' THEN '' ELSE set_config('search_path', 'a', true) END",
        "SELECT coalesce('x', set_config('search_path', 'app', false))",
        "WITH x AS (SELECT set_config('search_path', 'app', false)) SELECT 1",
        "SELECT 1 WHERE set_config('search_path', 'app', false) = 'x'",
        "SELECT set_config('search_path', 'app', false) UNION SELECT 'x'",
        "PREPARE p AS SELECT set_config('search_path', 'app', false)",
        "DECLARE c CURSOR FOR SELECT set_config('search_path', 'app', false)",
        "EXPLAIN SELECT set_config('search_path', 'app', false)",
        "EXPLAIN ANALYZE SELECT set_config('search_path', 'app', false)",
        "INSERT INTO t VALUES (set_config('search_path', 'app', false))",
        "DO $$ BEGIN PERFORM set_config('search_path', 'app', false); END $$",
        "CREATE TABLE x AS SELECT set_config('search_path', 'app', false)",
        "COPY (SELECT set_config('search_path', 'app', false)) TO STDOUT",
    ] {
        let s = bare(sql);
        let path: Vec<_> =
            s.settings.iter().filter(|s| s.name.as_deref() == Some("search_path")).collect();
        assert!(!path.is_empty(), "{sql}: not reported");
        assert!(path.iter().all(|s| s.value == SetValue::Unknown), "{sql}: {path:?}");
        assert!(s.lineage.changes_resolution || sql.starts_with("EXPLAIN"), "{sql}");
    }
}

#[test]
fn statements_of_a_batch_keep_their_places_and_constants_their_columns() {
    let text = "SELECT 1; INSERT INTO t (a, b) VALUES ('x', -5), (E'y\\n', $1) ; UPDATE t SET a = 'z' WHERE b IN (7, 8)";
    let context = Arc::new(Context { catalog: None, search_path: vec!["public".into()], epoch: 0 });
    let analysis = analyze(text, &context).unwrap();
    let texts: Vec<_> = analysis.statements.iter().map(|s| &text[s.range.clone()]).collect();
    assert_eq!(texts[0], "SELECT 1");
    assert!(texts[1].starts_with("INSERT") && texts[1].ends_with("$1)"));
    let literals = |n: usize| -> Vec<(&str, String)> {
        let column = |l: &Literal| l.column.as_ref().map_or(String::new(), |c| c.column.clone());
        analysis.statements[n]
            .literals
            .iter()
            .map(|l| (&text[l.range.clone()], column(l)))
            .collect()
    };
    let pairs = |p: &[(&'static str, &str)]| -> Vec<(&'static str, String)> {
        p.iter().map(|(a, b)| (*a, (*b).to_owned())).collect()
    };
    assert_eq!(literals(1), pairs(&[("'x'", "a"), ("5", "b"), ("E'y\\n'", "a")]));
    assert_eq!(literals(2), pairs(&[("'z'", "a"), ("7", "b"), ("8", "b")]));
    assert_eq!(analysis.statements[1].params[0].as_ref().unwrap().column, "b");
    assert_eq!(bare("SELECT 1 + 2").shape, bare("SELECT 3 + 4").shape);
    assert_ne!(bare("SELECT a FROM x.t1").shape, bare("SELECT a FROM y.t2").shape);
}

#[test]
fn copy_is_described_in_all_its_forms() {
    let out = |sql: &str| match bare(sql).kind {
        StatementKind::CopyOut { source, format, to_stdout } => (source, format, to_stdout),
        other => panic!("{sql}: {other:?}"),
    };
    let (source, format, to_stdout) =
        out("COPY s.t (a, b) TO STDOUT WITH CSV HEADER DELIMITER ';' QUOTE '\"'");
    assert_eq!(
        source,
        CopySource::Table {
            name: crate::policy::facts::Name::new("s", "t"),
            columns: vec!["a".into(), "b".into()]
        }
    );
    assert!(format.kind == CopyKind::Csv && format.header && to_stdout);
    assert_eq!(format.delimiter.as_deref(), Some(";"));
    let (source, format, _) = out("COPY /* ( */ (SELECT ')' AS x, (1)) TO STDOUT (FORMAT binary)");
    assert_eq!(source, CopySource::Query { text: "SELECT ')' AS x, (1)".into() });
    assert_eq!(format.kind, CopyKind::Binary);
    assert!(!out("COPY t TO '/tmp/x'").2);
}

#[test]
fn what_is_asked_of_the_catalog_means_the_same_in_every_session() {
    let all = Catalog::QUERIES.iter().map(|q| q.sql).chain([Catalog::FINGERPRINT]);
    for sql in all {
        assert_eq!(testing::left_open(sql), None);
    }
    for open in [
        "SELECT a = 1 FROM pg_catalog.pg_class",
        "SELECT 1 FROM pg_class c",
        "SELECT a::text FROM pg_catalog.pg_class",
        "SELECT a IN ('x') FROM pg_catalog.pg_class",
    ] {
        assert!(testing::left_open(open).is_some(), "{open}");
    }
}

#[test]
fn the_fingerprint_changes_with_ddl_and_reading_leaves_the_path_alone() {
    let Some(cluster) = cluster() else { return };
    let before = cluster.rows(Catalog::FINGERPRINT);
    assert_eq!(before, cluster.rows(Catalog::FINGERPRINT));
    cluster.psql("CREATE TABLE app.fresh (a integer);");
    let after = cluster.rows(Catalog::FINGERPRINT);
    assert_ne!(before, after);
    cluster.psql("ALTER TABLE app.fresh RENAME COLUMN a TO b;");
    assert_ne!(after, cluster.rows(Catalog::FINGERPRINT));
    let views = Catalog::QUERIES.iter().find(|q| q.name == "views").unwrap();
    let path = cluster.psql(&format!(
        "BEGIN; SET search_path = app;\n{};\n\\echo @@\nSHOW search_path;",
        views.sql
    ));
    assert!(path.ends_with("app\n") || path.trim_end().ends_with("app"), "{path:?}");
    cluster.psql("DROP TABLE app.fresh;");
}

/// Prints costs; asserts nothing, since a loaded machine says nothing.
#[test]
fn costs() {
    let context = Arc::new(Context {
        catalog: catalog().cloned(),
        search_path: vec!["pg_catalog".into(), "public".into()],
        epoch: 1,
    });
    let text: Arc<str> = "SELECT total FROM orders WHERE id = 4711".into();
    let run = || {
        let start = std::time::Instant::now();
        for _ in 0..1000 {
            pool::analyze_here(&text, &context).unwrap();
        }
        start.elapsed() / 1000
    };
    run();
    eprintln!("uncached: {:?}", run());
    analyze(&text, &context).unwrap();
    let start = std::time::Instant::now();
    for _ in 0..10_000 {
        assert!(ANALYZER.cached(&text, &context).is_some());
    }
    eprintln!("cached: {:?}", start.elapsed() / 10_000);
}

#[test]
fn whatever_the_server_looks_up_is_told() {
    let sql = "DELETE FROM t WHERE t.f AND (u.g).h AND CAST(NULL AS \"{types}\") ~~~ lower('x')";
    let l = bare(sql).lookups;
    for (names, wanted) in [
        (&l.columns, &["t", "f", "g", "h"][..]),
        (&l.types, &["{types}"]),
        (&l.operators, &["~~~", "=", "<"]),
        (&l.functions, &["lower"]),
    ] {
        assert!(wanted.iter().all(|w| names.contains(*w)), "{wanted:?} in {names:?}");
    }
}

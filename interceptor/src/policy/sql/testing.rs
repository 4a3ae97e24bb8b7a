//! A real PostgreSQL for tests of this module: a throw-away cluster on a Unix socket.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use super::{Catalog, Context};
use crate::mask::Method;
use crate::policy::pattern::ColumnPattern;
use crate::policy::verdict::MaskRule;

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// The cluster; `None`, said aloud, where no PostgreSQL 15 is installed.
pub fn cluster() -> Option<&'static Cluster> {
    static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
    CLUSTER
        .get_or_init(|| {
            if !Path::new(BIN).join("initdb").exists() {
                eprintln!("SKIPPED: no PostgreSQL 15 in {BIN}");
                return None;
            }
            Some(Cluster::start())
        })
        .as_ref()
}

pub struct Cluster {
    dir: PathBuf,
}

impl Cluster {
    fn start() -> Self {
        let dir = std::env::temp_dir().join(format!("interceptor-sql-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let root =
            std::env::var("USER").as_deref() == Ok("root") || Path::new("/root").read_dir().is_ok();
        let script = format!(
            "{BIN}/initdb -D {d}/data -U postgres -A trust -N >/dev/null && \
             {BIN}/pg_ctl -D {d}/data -w -l {d}/log -o \"-k {d} -c listen_addresses= -c fsync=off \
             -c shared_buffers=8MB\" start >/dev/null && \
             {{ (while [ -d /proc/{p} ]; do sleep 1; done; \
             {BIN}/pg_ctl -D {d}/data -m immediate stop; rm -rf {d}) >/dev/null 2>&1 </dev/null & }}",
            d = dir.display(),
            p = std::process::id(),
        );
        let mut command = if root {
            assert!(
                Command::new("chown").arg("postgres").arg(&dir).status().unwrap().success(),
                "chown {}",
                dir.display()
            );
            let mut su = Command::new("su");
            su.args(["postgres", "-s", "/bin/sh", "-c", &script]);
            su
        } else {
            let mut sh = Command::new("sh");
            sh.args(["-c", &script]);
            sh
        };
        assert!(command.status().unwrap().success(), "cluster in {} starts", dir.display());
        let cluster = Self { dir };
        cluster.psql(include_str!("corpus/schema.sql"));
        cluster
    }

    /// Runs a script with psql; standard output and error together must be what a person reads.
    pub fn psql(&self, script: &str) -> String {
        let (out, err, ok) = self.run(script, &["-v", "ON_ERROR_STOP=1"]);
        assert!(ok, "psql failed: {err}\n{script}");
        out
    }

    /// The same, going on after errors.
    pub fn run(&self, script: &str, options: &[&str]) -> (String, String, bool) {
        let mut psql = Command::new("psql")
            .args(["-XAtq", "-F", "\u{1f}", "-R", "\u{1e}", "-P", "null=\u{1d}"])
            .args(["-h", &self.dir.display().to_string(), "-U", "postgres", "-d", "postgres"])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = psql.stdin.take().unwrap();
        let script = script.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(script.as_bytes()));
        let output = psql.wait_with_output().unwrap();
        drop(writer.join());
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
            output.status.success(),
        )
    }

    /// Rows of one statement.
    pub fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let out = self.psql(&format!("{sql};"));
        let field = |f: &str| (f != "\u{1d}").then(|| f.to_owned());
        out.trim_end_matches('\n')
            .split('\u{1e}')
            .filter(|row| !row.is_empty())
            .map(|row| row.split('\u{1f}').map(field).collect())
            .collect()
    }

    pub fn catalog(&self) -> Arc<Catalog> {
        let rows = Catalog::QUERIES.iter().map(|q| self.rows(q.sql)).collect();
        Arc::new(Catalog::build(rows).unwrap())
    }
}

/// A context over a catalog with a search path.
pub fn context(catalog: &Arc<Catalog>, path: &[&str]) -> Arc<Context> {
    Arc::new(Context {
        catalog: Some(catalog.clone()),
        search_path: path.iter().map(|s| (*s).to_owned()).collect(),
        epoch: 1,
    })
}

/// The rules of the corpus.
pub fn rules() -> Vec<Arc<MaskRule>> {
    let rule = |columns: &[&str], method: Method| {
        Arc::new(MaskRule {
            rule: "mask".to_owned(),
            columns: columns.iter().map(|c| ColumnPattern::new(c).unwrap()).collect(),
            kinds: Vec::new(),
            method,
        })
    };
    vec![
        rule(&["customers.email"], Method::DEFAULT_PARTIAL),
        rule(&["public.customers.card"], Method::Redact),
        rule(&["events.payload"], Method::Null),
        rule(&["v_phone.phone"], Method::Hash),
    ]
}

//! A real PostgreSQL for tests of this module: a throw-away cluster on a Unix socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use super::{Catalog, Context};
use crate::mask::Method;
use crate::policy::pattern::ColumnPattern;
use crate::policy::verdict::MaskRule;

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// Copies of the database, for tests that compare two.
pub const TWINS: [&str; 2] = ["twin_a", "twin_b"];

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
        for twin in TWINS {
            let script = format!("CREATE DATABASE {twin} TEMPLATE postgres");
            cluster.psql_in("template1", &script);
        }
        cluster
    }

    /// Runs a script with psql; standard output and error together must be what a person reads.
    pub fn psql(&self, script: &str) -> String {
        let (out, err, ok) = self.run(script, &["-v", "ON_ERROR_STOP=1"]);
        assert!(ok, "psql failed: {err}\n{script}");
        out
    }

    /// The same in another database.
    pub fn psql_in(&self, database: &str, script: &str) {
        let (_, err, ok) = self.run(script, &["-v", "ON_ERROR_STOP=1", "-d", database]);
        assert!(ok, "psql failed: {err}\n{script}");
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

/// As much of a client as asking the server to describe a statement takes.
pub struct Client(UnixStream);

impl Client {
    pub fn connect(cluster: &Cluster) -> Self {
        Self::connect_to(cluster, "postgres")
    }

    pub fn connect_to(cluster: &Cluster, database: &str) -> Self {
        let stream = UnixStream::connect(cluster.dir.join(".s.PGSQL.5432")).unwrap();
        let mut client = Self(stream);
        let mut body = 196_608_u32.to_be_bytes().to_vec();
        body.extend(format!("user\0postgres\0database\0{database}\0\0").as_bytes());
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        client.0.write_all(&[&length, body.as_slice()].concat()).unwrap();
        while client.read().0 != b'Z' {}
        client
    }

    fn read(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 5];
        self.0.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; length - 4];
        self.0.read_exact(&mut body).unwrap();
        (head[0], body)
    }

    fn send(&mut self, tag: u8, body: &[u8]) {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        self.0.write_all(&[&[tag], &length[..], body].concat()).unwrap();
    }

    /// Runs a text; what comes back, as far as a client can tell it apart: rows without the
    /// places to leave out, tags, and the codes of errors.
    pub fn query(&mut self, sql: &str, without: &[usize]) -> Vec<String> {
        self.send(b'Q', &[sql.as_bytes(), b"\0"].concat());
        let mut seen = Vec::new();
        loop {
            match self.read() {
                (b'Z', _) => return seen,
                (b'D', body) => seen.push(row(&body, without)),
                (b'C', body) => seen.push(String::from_utf8_lossy(&body).into_owned()),
                (b'E', body) => {
                    let text = String::from_utf8_lossy(&body).into_owned();
                    let code = text.split('\0').find(|f| f.starts_with('C'));
                    seen.push(code.unwrap_or_default().to_owned());
                }
                _ => {}
            }
        }
    }

    /// Name, relation and number of every column of the result, or the server's error.
    pub fn describe(&mut self, sql: &str) -> Result<Vec<(String, u32, i16)>, String> {
        self.send(b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"].concat());
        self.send(b'D', b"S\0");
        self.send(b'S', b"");
        let mut result = Ok(Vec::new());
        loop {
            match self.read() {
                (b'Z', _) => return result,
                (b'E', body) => result = Err(String::from_utf8_lossy(&body).into_owned()),
                (b'T', body) => result = Ok(fields(&body[2..])),
                _ => {}
            }
        }
    }
}

fn row(body: &[u8], without: &[usize]) -> String {
    let count = u16::from_be_bytes([body[0], body[1]]);
    let mut rest = &body[2..];
    let mut seen = String::new();
    for index in 0..usize::from(count) {
        let length = i32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]);
        let length = usize::try_from(length).unwrap_or(0);
        let value = String::from_utf8_lossy(&rest[4..4 + length]);
        seen.push_str(if without.contains(&index) { "(masked)" } else { &value });
        seen.push('|');
        rest = &rest[4 + length..];
    }
    seen
}

fn fields(mut body: &[u8]) -> Vec<(String, u32, i16)> {
    let mut found = Vec::new();
    while let Some(end) = body.iter().position(|b| *b == 0) {
        let name = String::from_utf8_lossy(&body[..end]).into_owned();
        let rest = &body[end + 1..];
        let oid = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]);
        found.push((name, oid, i16::from_be_bytes([rest[4], rest[5]])));
        body = &rest[18..];
    }
    found
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
            file: "mask.toml".into(),
            columns: columns.iter().map(|c| ColumnPattern::new(c).unwrap()).collect(),
            kinds: Vec::new(),
            method,
            binary: crate::policy::BinaryMask::Deny,
        })
    };
    vec![
        rule(&["customers.email"], Method::DEFAULT_PARTIAL),
        rule(&["public.customers.card"], Method::Redact),
        rule(&["events.payload"], Method::Null),
        rule(&["v_phone.phone"], Method::Hash),
    ]
}

/// What of a query of ours the session that it is asked in could choose by its search path or by
/// its temporary objects: operators, types and relations without their schema.
pub fn left_open(sql: &str) -> Option<String> {
    let bare = regex::Regex::new("'[^']*'").unwrap().replace_all(sql, "''").into_owned();
    let closed = [r"(?i)operator\(pg_catalog\.[<>=~!]+\)", r"\(\*\)", r"::(pg_catalog\.|bigint\b)"];
    let rest = closed.iter().fold(bare, |text, pattern| {
        regex::Regex::new(pattern).unwrap().replace_all(&text, " ").into_owned()
    });
    let open = r"(?i)[-+*/<>=~!@#%^&|?]+|::|\b(in|like|ilike|between|similar|nullif|distinct from)\b|\bfrom (pg_[a-z_]+ |pg_[a-z_]+$)|\bjoin pg_[a-z_]+ ";
    regex::Regex::new(open)
        .unwrap()
        .find(&rest)
        .map(|found| format!("{:?} in {sql}", found.as_str()))
}

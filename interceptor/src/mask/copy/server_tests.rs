//! Copies of a real server, masked and read back by it.
//!
//! A throw-away cluster on a Unix socket; where PostgreSQL is not installed the test says so
//! and passes.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::*;
use crate::mask::Kind;

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// A cluster of its own, stopped when dropped.
struct Cluster {
    dir: tempfile::TempDir,
}

impl Cluster {
    /// `None` where there is no PostgreSQL to run.
    fn start() -> Option<Self> {
        if !Path::new(BIN).join("initdb").exists() {
            return None;
        }
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let cluster = Self { dir };
        if nix::unistd::geteuid().is_root() {
            let owner = nix::unistd::User::from_name("postgres").ok().flatten()?;
            nix::unistd::chown(cluster.dir.path(), Some(owner.uid), Some(owner.gid)).unwrap();
        }
        let data = cluster.data();
        let data = data.to_str().unwrap();
        cluster.run("initdb", &["-D", data, "-A", "trust", "-U", "postgres", "-N", "-E", "UTF8"]);
        let socket = cluster.dir.path().to_str().unwrap();
        let options = format!("-c listen_addresses= -k {socket} -c fsync=off");
        let log = format!("{socket}/log");
        cluster.run("pg_ctl", &["-D", data, "-w", "-o", &options, "-l", &log, "start"]);
        Some(cluster)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn command(program: &str) -> Command {
        let program = Path::new(BIN).join(program);
        if nix::unistd::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]);
            command.arg(program);
            return command;
        }
        Command::new(program)
    }

    fn run(&self, program: &str, args: &[&str]) {
        let mut command = Self::command(program);
        command.current_dir(self.dir.path()).args(args);
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{program}: {status}");
    }

    /// Runs one statement, giving it `input` and returning what it prints.
    fn psql(&self, sql: &str, input: &[u8]) -> Vec<u8> {
        let mut command = Self::command("psql");
        command.current_dir(self.dir.path()).arg("-h").arg(self.dir.path());
        command.args(["-U", "postgres", "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        command.env("PGCLIENTENCODING", "UTF8");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{sql}: {said}");
        output.stdout
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let data = self.data();
        let _ = Self::command("pg_ctl")
            .args(["-D", data.to_str().unwrap_or_default(), "-m", "immediate", "stop"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

const TABLE: &str = "
    create table nasty (id int, secret text, shown text, note varchar, doc jsonb, u uuid,
                        raw bytea, amount numeric, tags text[], pan bigint);
    insert into nasty values
      (1, 'plain', 'plain', 'nothing', '{\"a\": 1}', gen_random_uuid(), 'x', 1.5, '{a,b}', 42),
      (2, null, null, null, null, null, null, null, null, null),
      (3, '', '', '', '\"\"', gen_random_uuid(), '', 0, '{}', 0),
      (4, E'tab\\there', E'a\\tb', E'card 4111 1111 1111 1111\\nnext line', '[1]', null, null, -1, '{NULL,\"a,b\"}', 4111111111111111),
      (5, E'new\\nline', E'new\\nline\\r\\n', E'\"quoted\" bob@example.org', '{\"mail\": \"bob@example.org\", \"n\": 1.10}', null, E'\\\\x00ff', 1e20, '{\"say \\\"bob@example.org\\\"\",x}', 1),
      (6, E'back\\\\slash', E'\\\\N', E'\\\\\\\\ +49 171 1234567', '{\"bob@example.org\": null}', null, 'bob@example.org', 'NaN', '{{a,b},{c,bob@example.org}}', 2),
      (7, 'comma,\"quote\"', 'comma,\"quote\"''', 'üñí 例子 ４１１１１１１１１１１１１１１１', '\"4111111111111111\"', null, null, null, null, 3),
      (8, '\\N', '[redacted]', E'\\x01\\x1f', '4111111111111111', null, null, null, null, 4);
    create table expected as select * from nasty;
    update expected set secret = '[redacted]' where secret is not null;
    update expected set u = null, amount = null;
    update expected set note = E'card [redacted]\\nnext line', pan = null where id = 4;
    update expected set note = '\"quoted\" [redacted]', doc = '{\"mail\": \"[redacted]\", \"n\": 1.10}',
                        tags = '{\"say \\\"[redacted]\\\"\",x}' where id = 5;
    update expected set note = E'\\\\\\\\ [redacted]', doc = '{\"[redacted]\": null}', raw = '[redacted]',
                        tags = '{{a,b},{c,[redacted]}}' where id = 6;
    update expected set note = 'üñí 例子 [redacted]', doc = '\"[redacted]\"' where id = 7;
    update expected set doc = '\"[redacted]\"' where id = 8;
";

fn plan(format: CopyFormat) -> CopyPlan {
    let oids = [23, 25, 25, 1043, 3802, 2950, 17, 1700, 1009, 20];
    let names = ["id", "secret", "shown", "note", "doc", "u", "raw", "amount", "tags", "pan"];
    let fields: Vec<_> = oids.iter().zip(names).map(|(oid, n)| Field::new(*oid, 0, n)).collect();
    let key = Arc::new(HashKey::from_bytes(&[5; 32]));
    let kinds: Vec<_> = Kind::ALL.into_iter().map(|kind| (kind, Method::Redact)).collect();
    let detectors = Arc::new(Detectors::new(&kinds, key.clone()));
    let masks = [(1, Method::Redact), (5, Method::Redact), (7, Method::Redact)];
    CopyPlan::compile(&fields, &masks, Some(detectors), key, format, DEFAULT_ROW_LIMIT).unwrap()
}

#[test]
fn masked_copies_are_read_back_by_the_server() {
    let Some(cluster) = Cluster::start() else {
        eprintln!("SKIPPED: no PostgreSQL in {BIN}; install postgresql-15 to run this test");
        return;
    };
    cluster.psql(TABLE, b"");
    let csv = CsvFormat::default;
    let cases = [
        ("format text", CopyFormat::Text(TextFormat::default())),
        (
            "format text, delimiter '|', null 'none', header",
            CopyFormat::Text(TextFormat { delimiter: b'|', null: b"none".to_vec(), header: true }),
        ),
        ("format csv", CopyFormat::Csv(csv())),
        (
            "format csv, header, delimiter ';', quote '''', escape '\\', null 'NULL'",
            CopyFormat::Csv(CsvFormat {
                delimiter: b';',
                quote: b'\'',
                escape: b'\\',
                null: b"NULL".to_vec(),
                header: true,
                force_quote: Vec::new(),
            }),
        ),
        (
            "format csv, force_quote *",
            CopyFormat::Csv(CsvFormat { force_quote: vec![true; 10], ..csv() }),
        ),
        ("format binary", CopyFormat::Binary),
    ];
    for (options, format) in cases {
        let copy = cluster.psql(&format!("copy nasty to stdout ({options})"), b"");
        let read = options.replace(", force_quote *", "");
        for step in [1, 64, copy.len()] {
            let mut plan = plan(format.clone());
            let mut out = BytesMut::new();
            for piece in copy.chunks(step) {
                plan.push(piece, &mut out, &mut Hits::default()).unwrap();
            }
            plan.finish().unwrap();
            cluster.psql("drop table if exists back; create table back (like nasty)", b"");
            cluster.psql(&format!("copy back from stdin ({read})"), &out);
            let differ = "select 'back', * from (table back except table expected) b
                          union all select 'expected', * from (table expected except table back) e";
            let differ = String::from_utf8(cluster.psql(differ, b"")).unwrap();
            assert_eq!(differ, "", "{options}, pieces of {step}");
            let count = cluster.psql("select count(*) from back", b"");
            assert_eq!(count, b"8\n", "{options}");
        }
    }
}

//! The control socket as clients, good and bad, meet it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use ulid::Ulid;

use super::protocol::{Decided, Held, Killed, Op, PolicyStatus};
use super::*;
use crate::approval::{Approvals, GrantSummary, HoldAsk, HoldDetail};
use crate::config::Config;
use crate::session::Target;

#[derive(Default)]
struct Handler {
    drains: AtomicU64,
}

impl ControlHandler for Handler {
    fn status(&self) -> Answer<'_, Status> {
        Box::pin(async { Ok(Status { version: "9".into(), ..Status::default() }) })
    }
    fn drain(&self) -> Answer<'_, Drained> {
        Box::pin(async {
            Ok(Drained { events: Some(self.drains.fetch_add(1, Ordering::SeqCst) + 1) })
        })
    }
    fn policy_reload(&self) -> Answer<'_, PolicyStatus> {
        Box::pin(async { Err(ControlError::new("POLICY", "a.toml:3: no such key")) })
    }
    fn live_sessions(&self) -> Answer<'_, Vec<LiveSession>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn kill(&self, target: Target, who: String) -> Answer<'_, Killed> {
        Box::pin(async move { Ok(Killed { sessions: vec![format!("{target} by {who}")] }) })
    }
    fn metrics(&self) -> Answer<'_, String> {
        Box::pin(async { Ok("x_total 1\n".into()) })
    }
}

struct Bed {
    _dir: tempfile::TempDir,
    path: PathBuf,
    approvals: Arc<Approvals>,
}

/// A server in this process whose approver is the user `user`.
fn bed(user: &str) -> Bed {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("control.sock");
    let config = format!(
        "[[issuer]]\nname='okta'\nurl='https://x'\n[[approver]]\nuser='{user}'\nissuer='okta'\nuid='u1'"
    );
    let config: Config = toml::from_str(&config).unwrap();
    let approvals = Approvals::new(&config);
    let server = Server::new(&path, Arc::new(Handler::default()), approvals.clone()).unwrap();
    tokio::spawn(server.with_idle(Duration::from_millis(500)).run());
    Bed { _dir: dir, path, approvals }
}

async fn call<T: serde::de::DeserializeOwned + Send + 'static>(
    path: &Path,
    op: Op,
) -> Result<T, ClientError> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || Client::connect(&path)?.call(op)).await.unwrap()
}

/// Sends bytes and gives the first line that comes back, and how the connection stands then.
async fn raw(path: &Path, bytes: Vec<u8>) -> (String, bool) {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut s = UnixStream::connect(&path).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let _ = s.write_all(&bytes);
        let mut read = BufReader::new(s);
        let mut line = String::new();
        let _ = read.read_line(&mut line);
        let closed = !matches!(read.read(&mut [0; 1]), Ok(1));
        (line, closed)
    })
    .await
    .unwrap()
}

fn ask() -> HoldAsk {
    HoldAsk {
        session: Ulid::new(),
        service: "orders-db".into(),
        database: "shop".into(),
        role: "app".into(),
        agent: "bot".into(),
        principal: "eve".into(),
        principal_ids: vec![],
        owners: vec![],
        peer_uid: None,
        claims: serde_json::Value::Null,
        statement: "DELETE FROM t".into(),
        values: vec![],
        shape: "DELETE FROM t".into(),
        rules: vec!["r".into()],
        message: None,
        deadline: Instant::now() + Duration::from_secs(60),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_get_answers() {
    let b = bed("nobody");
    let _hold = b.approvals.hold(ask()).unwrap();
    let status: Status = call(&b.path, Op::Status).await.unwrap();
    assert_eq!((status.version.as_str(), status.held), ("9", 1));
    let drained: Drained = call(&b.path, Op::Drain).await.unwrap();
    assert_eq!(drained.events, Some(1));
    let metrics: String = call(&b.path, Op::Metrics).await.unwrap();
    assert_eq!(metrics, "x_total 1\n");
    let live: Vec<LiveSession> = call(&b.path, Op::SessionsLive).await.unwrap();
    assert!(live.is_empty());
    let error = call::<PolicyStatus>(&b.path, Op::PolicyReload).await.unwrap_err();
    assert!(error.to_string().contains("a.toml:3"), "{error}");
    let held: Held = call(&b.path, Op::ApprovalsList { after: None }).await.unwrap();
    assert_eq!(held.holds.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_holds_ends_when_one_comes() {
    let b = bed("nobody");
    let first: Held = call(&b.path, Op::ApprovalsList { after: None }).await.unwrap();
    let path = b.path.clone();
    let after = Some(first.revision);
    let wait = tokio::spawn(async move { call::<Held>(&path, Op::ApprovalsList { after }).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let hold = b.approvals.hold(ask()).unwrap();
    let next = wait.await.unwrap().unwrap();
    assert_eq!(next.holds[0].id, hold.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_lines_get_an_error_and_the_daemon_goes_on() {
    let b = bed("nobody");
    let cases: [(Vec<u8>, &str); 8] = [
        (b"\n".to_vec(), "BAD_REQUEST"),
        (b"{}\n".to_vec(), "BAD_REQUEST"),
        (b"\xff\xfe\0\n".to_vec(), "BAD_REQUEST"),
        (b"GET / HTTP/1.1\r\n".to_vec(), "BAD_REQUEST"),
        (b"{\"v\":1,\"id\":7,\"op\":\"format.disk\"}\n".to_vec(), "BAD_REQUEST"),
        (
            b"{\"v\":2,\"id\":7,\"op\":\"status\"}\n".to_vec(),
            "\"id\":7,\"error\":{\"code\":\"VERSION\"",
        ),
        ("[".repeat(100_000).into_bytes().into_iter().chain(*b"\n").collect(), "BAD_REQUEST"),
        (vec![b'x'; (1 << 20) + 10], "TOO_LARGE"),
    ];
    for (bytes, want) in cases {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
        let (line, _) = raw(&b.path, bytes).await;
        assert!(line.contains(want), "{shown}: {line}");
    }
    let (line, _) = raw(&b.path, b"{\"v\":1,\"id\":3,\"op\":\"status\"}\n".to_vec()).await;
    assert!(line.starts_with("{\"v\":1,\"id\":3,\"ok\":"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_or_slow_client_is_dropped() {
    let b = bed("nobody");
    for bytes in [b"".to_vec(), b"{\"v\":1,".to_vec()] {
        let begun = std::time::Instant::now();
        let (line, closed) = raw(&b.path, bytes).await;
        assert!(line.is_empty() && closed, "{line}");
        assert!(begun.elapsed() < Duration::from_secs(4));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded_and_places_come_free_again() {
    let b = bed("nobody");
    let kept: Vec<_> = (0..64).map(|_| UnixStream::connect(&b.path).unwrap()).collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (line, closed) = raw(&b.path, b"{\"v\":1,\"id\":1,\"op\":\"status\"}\n".to_vec()).await;
    assert!(line.is_empty() && closed, "{line}");
    drop(kept);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(call::<Status>(&b.path, Op::Status).await.is_ok());
}

#[tokio::test]
async fn the_socket_is_private_and_replaced_only_when_dead() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let config: Config = toml::from_str("").unwrap();
    let make =
        |path: &Path| Server::new(path, Arc::new(Handler::default()), Approvals::new(&config));
    // Left behind by a daemon that died.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let server = make(&path).unwrap();
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!(meta.mode() & 0o007, 0, "others stay outside");
    assert!(matches!(make(&path), Err(ServerError::InUse(_))));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing lies about");
    drop(server);
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(make(&path), Err(ServerError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

/// Runs `script` as another user, in a child process that connects by itself.
fn as_user(uid: u32, login: Option<u32>, path: &Path, request: &str) -> serde_json::Value {
    let login = login.map(|l| format!("echo {l} > /proc/$$/loginuid; ")).unwrap_or_default();
    let script = format!(
        "{login}exec python3 -c 'import socket,sys\n\
         s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n\
         s.sendall(sys.argv[2].encode()+b\"\\n\"); print(s.makefile().readline())' \"$0\" \"$1\""
    );
    let out = std::process::Command::new("setpriv")
        .args([&format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups", "sh", "-c"])
        .args([&script, path.to_str().unwrap(), request])
        .output()
        .unwrap();
    serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_says_who_decides() {
    let unset = std::fs::read_to_string("/proc/self/loginuid").is_ok_and(|l| l == "4294967295");
    if !nix::unistd::geteuid().is_root() || !unset {
        eprintln!("skipped: needs root without a login user");
        return;
    }
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap().uid.as_raw();
    let b = bed("nobody");
    std::fs::set_permissions(&b.path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let cases = [
        ("root without a login", 0, None, Some("NO_LOGIN_USER")),
        ("another user", 1, None, Some("NOT_AN_APPROVER")),
        ("another user that writes itself a login", 1, Some(nobody), Some("LOGIN_MISMATCH")),
        ("the approver", nobody, None, None),
        ("the approver with a login", nobody, Some(nobody), None),
        ("root on the approver's login", 0, Some(nobody), None),
    ];
    for (what, uid, login, want) in cases {
        let mut hold = b.approvals.hold(ask()).unwrap();
        let request = format!(
            r#"{{"v":1,"id":1,"op":"approvals.decide","args":{{"id":"{}","approve":true}}}}"#,
            hold.id()
        );
        let path = b.path.clone();
        let answer = tokio::task::spawn_blocking(move || as_user(uid, login, &path, &request))
            .await
            .unwrap();
        assert_eq!(answer["error"]["code"].as_str(), want, "{what}: {answer}");
        if want.is_none() {
            assert_eq!(answer["ok"]["by"]["user"], "nobody", "{what}");
            assert_eq!(answer["ok"]["by"]["process_uid"], uid, "{what}");
            assert_eq!(hold.decided().await.as_str(), "granted", "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_widened_socket_tells_strangers_nothing() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap().uid.as_raw();
    let b = bed("nobody");
    let _hold = b.approvals.hold(ask()).unwrap();
    std::fs::set_permissions(&b.path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let cases = [
        (1, "status", Some("NOT_ALLOWED")),
        (1, "drain", Some("NOT_ALLOWED")),
        (1, "approvals.list", Some("NOT_ALLOWED")),
        (nobody, "approvals.list", None),
        (nobody, "approvals.grants", None),
        (nobody, "policy.reload", Some("NOT_ALLOWED")),
        (nobody, "metrics", Some("NOT_ALLOWED")),
        (0, "status", None),
    ];
    for (uid, op, want) in cases {
        let path = b.path.clone();
        let args = if op == "approvals.list" { ",\"args\":{}" } else { "" };
        let request = format!("{{\"v\":1,\"id\":1,\"op\":\"{op}\"{args}}}");
        let answer =
            tokio::task::spawn_blocking(move || as_user(uid, None, &path, &request)).await.unwrap();
        assert_eq!(answer["error"]["code"].as_str(), want, "{uid} {op}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_ended_is_nobody() {
    let b = bed("nobody");
    // A child connects, forks, and ends; its own child talks on.
    let script = "import socket,sys,os\n\
        s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n\
        if os.fork(): os._exit(0)\n\
        import time; time.sleep(0.3)\n\
        s.sendall(b'{\"v\":1,\"id\":1,\"op\":\"approvals.grants\"}\\n'); print(s.makefile().readline())";
    let path = b.path.clone();
    let out = tokio::task::spawn_blocking(move || {
        std::process::Command::new("python3").args(["-c", script]).arg(&path).output().unwrap()
    })
    .await
    .unwrap();
    let line = String::from_utf8_lossy(&out.stdout).into_owned();
    // Either it was still there when it was looked at, or nobody is told anything.
    assert!(line.contains("\"ok\"") || line.contains("UNKNOWN_PEER"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn approving_a_shape_gives_a_grant_that_can_be_withdrawn() {
    let me = nix::unistd::geteuid();
    let name = nix::unistd::User::from_uid(me).unwrap().unwrap().name;
    let b = bed(&name);
    let mut hold = b.approvals.hold(ask()).unwrap();
    let id = hold.id().to_owned();
    let unset = std::fs::read_to_string("/proc/self/loginuid").is_ok_and(|l| l == "4294967295");
    if me.is_root() && unset {
        let show = call::<HoldDetail>(&b.path, Op::ApprovalsShow { id }).await.unwrap_err();
        assert!(show.to_string().contains("sudo"), "{show}");
        return;
    }
    let op = Op::ApprovalsDecide { id, approve: true, for_seconds: Some(60), reason: None };
    let done: Decided = call(&b.path, op).await.unwrap();
    assert_eq!(hold.decided().await.as_str(), "granted");
    let grants: Vec<GrantSummary> = call(&b.path, Op::ApprovalsGrants).await.unwrap();
    assert_eq!(Some(&grants[0].id), done.grant.as_ref());
    let op = Op::ApprovalsRevoke { id: grants[0].id.clone() };
    let _: GrantSummary = call(&b.path, op).await.unwrap();
    assert!(b.approvals.grants().is_empty());
}

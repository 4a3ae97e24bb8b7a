//! Sessions as a daemon records them, with whatever an attacker would put into them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use interceptor::record::event::*;
use interceptor::record::{Recorder, SessionLog, now_us};
use serde_json::json;

use crate::ground::own;

/// Markup in every place that an agent can reach.
pub const MARKUP: &str = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\"'>";

pub fn opening(service: &str, protocol: &str) -> Opening<'static> {
    Opening {
        id: ulid::Ulid::new(),
        ts_us: now_us(),
        host: own("db1"),
        service: own(service),
        protocol: own(protocol),
        source: own("10.0.0.17:40312"),
        original_dst: own("10.0.0.2:5432"),
        mode: own("enforce"),
        peer_uid: None,
    }
}

pub fn proven(agent: &str, principal: &str) -> IdentityProven<'static> {
    let now = now_us() / 1_000_000;
    IdentityProven {
        agent: own(agent),
        principal: own(principal),
        issuer: own("okta"),
        labels: BTreeMap::from([("team".to_owned(), "billing".to_owned())]),
        claims: json!({
            "iss": "https://example.okta.com/oauth2/default", "sub": principal, "uid": "00u-eve",
            "cid": "0oa-billing", "aud": "api://orders", "scopes": ["db.read"],
            "groups": ["dba", "everyone"], "iat": now - 40, "exp": now + 260,
            "jti": "AT.9f2c", "act": [{"sub": "0oa-billing", "sub_profile": "ai_agent"}],
        }),
        pinned_new: true,
        source_key: own("10.0.0.17"),
        expires_at: now + 260,
        proven: true,
        way: Some(own("password")),
    }
}

pub fn request(n: u64, verdict: &str, class: &str, text: &str) -> Request<'static> {
    Request {
        n,
        verdict: own(verdict),
        class: own(class),
        ch: None,
        observed: false,
        via: own("extended"),
        rules: Cow::Owned(vec![format!("{verdict}-{class}")]),
        policy: own("3f9c1a"),
        code: None,
        message: (verdict == "deny").then(|| own("dropping tables is not allowed here")),
        text: own(text),
        text_bytes: None,
        values: Cow::Borrowed(&[]),
        hmac: own("00"),
        masks: Cow::Borrowed(&[]),
    }
}

/// Backend messages of a small result.
pub fn rows(names: &[&str], rows: &[&[Option<&str>]]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut push = |kind: u8, body: &[u8]| {
        out.push(kind);
        out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        out.extend_from_slice(body);
    };
    let mut t = (names.len() as u16).to_be_bytes().to_vec();
    for name in names {
        t.extend_from_slice(name.as_bytes());
        t.push(0);
        t.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 0xff, 0xff, 0, 0, 0, 0, 0, 0]);
    }
    push(b'T', &t);
    for row in rows {
        let mut d = (row.len() as u16).to_be_bytes().to_vec();
        for value in *row {
            match value {
                None => d.extend_from_slice(&(-1i32).to_be_bytes()),
                Some(v) => {
                    d.extend_from_slice(&(v.len() as i32).to_be_bytes());
                    d.extend_from_slice(v.as_bytes());
                }
            }
        }
        push(b'D', &d);
    }
    push(b'C', b"SELECT 2\0");
    out
}

fn answer(log: &mut SessionLog, n: u64, data: &[u8], masked: u64) {
    let body = Response {
        n,
        tag: own("SELECT 2"),
        rows: 2,
        bytes: data.len() as u64,
        duration_us: 4_200,
        error: None,
        masked,
        truncated: false,
    };
    log.append(&Event::now(&body).with_data(data)).unwrap();
}

pub fn begin(recorder: &Recorder, agent: &str, principal: &str) -> SessionLog {
    let mut log = recorder.begin(opening("orders-db", "postgres")).unwrap();
    log.record(&proven(agent, principal)).unwrap();
    let admission = Admission {
        verdict: own("allow"),
        role: own("app"),
        database: own("orders"),
        client: Some(own("psql")),
        parameters: Default::default(),
        rules: Cow::Owned(vec!["orders-app".into()]),
        policy: own("3f9c1a"),
        message: None,
        tls: Some(own("TLSv1.3 TLS_AES_256_GCM_SHA384")),
        observed: false,
    };
    log.record(&admission).unwrap();
    log
}

/// A database session with something of everything.
pub fn database(recorder: &Recorder) -> ulid::Ulid {
    let mut log = begin(recorder, "billing-bot", "eve@example.com");
    let id = log.id();
    let statements = [
        "SELECT id, name, card FROM customers WHERE region = $1 ORDER BY id LIMIT 2",
        "SELECT count(*) FROM invoices WHERE due < now() - interval '30 days'",
    ];
    for (n, text) in (1..).zip(statements) {
        let mut r = request(n, "allow", "select", text);
        r.values = Cow::Owned(vec![Some("emea".into()), None]);
        r.masks = Cow::Owned(vec!["2:partial".into()]);
        log.record(&r).unwrap();
        let data = rows(
            &["id", "name", "card"],
            &[
                &[Some("1"), Some("Ngozi Okafor"), Some("**** **** **** 4242")],
                &[Some("2"), None, Some("**** **** **** 1111")],
            ],
        );
        answer(&mut log, n, &data, 2);
    }
    log.record(&request(3, "deny", "ddl", "DROP TABLE invoices")).unwrap();
    log.record(&request(4, "hold", "update", "UPDATE invoices SET paid = true WHERE id = 7"))
        .unwrap();
    let deadline = now_us() + 600_000_000;
    let rules = Cow::Owned(vec!["writes-need-a-person".to_owned()]);
    log.record(&HoldOpen { n: 4, id: own("h-7k2m9q"), rules, deadline_us: deadline }).unwrap();
    log.record(&HoldDecided {
        n: 4,
        id: own("h-7k2m9q"),
        outcome: own("granted"),
        by: Some(own("Ann Approver (okta/00u-ann)")),
        scope: Some(own("once")),
        reason: Some(own("checked with finance")),
        waited_us: 21_000_000,
    })
    .unwrap();
    log.commit().unwrap().wait().unwrap();
    log.seal(&End::because("client")).unwrap();
    id
}

/// Markup, control characters and reordering in every place that an agent can reach.
pub fn hostile(recorder: &Recorder) -> ulid::Ulid {
    let bad = format!("{MARKUP}\u{202e}txt.exe\x1b[2J\x07");
    let mut open = opening(&bad, "postgres");
    open.source = own(&bad);
    let mut log = recorder.begin(open).unwrap();
    let id = log.id();
    let mut who = proven(&bad, &bad);
    who.labels = BTreeMap::from([(bad.clone(), bad.clone())]);
    who.claims = json!({ bad.clone(): bad.clone(), "sub": bad.clone(), "groups": [bad.clone()] });
    who.way = Some(own(&bad));
    log.record(&who).unwrap();
    let mut r = request(1, &bad, &bad, &bad);
    r.rules = Cow::Owned(vec![bad.clone()]);
    r.values = Cow::Owned(vec![Some(bad.clone())]);
    r.masks = Cow::Owned(vec![bad.clone()]);
    r.message = Some(own(&bad));
    log.record(&r).unwrap();
    answer(&mut log, 1, &rows(&[&bad.replace('\0', "")], &[&[Some(&bad)]]), 0);
    let error = ErrorSeen { code: own(&bad), message: own(&bad) };
    log.record(&Response {
        n: 9,
        tag: own(&bad),
        rows: 0,
        bytes: 0,
        duration_us: 1,
        error: Some(error),
        masked: 0,
        truncated: false,
    })
    .unwrap();
    log.record(&Alert { code: own(&bad), message: own(&bad) }).unwrap();
    log.record(&Notice {
        n: None,
        severity: own(&bad),
        code: own(&bad),
        message: own(&bad),
        from: own("server"),
    })
    .unwrap();
    log.record(&Prepare { name: own(&bad), class: own("select"), text: own(&bad) }).unwrap();
    log.commit().unwrap().wait().unwrap();
    log.seal(&End::because("client")).unwrap();
    id
}

/// A terminal session that prints what it should not.
pub fn terminal(recorder: &Recorder, hostile: bool) -> ulid::Ulid {
    let mut log = recorder.begin(opening("host-ssh", "ssh")).unwrap();
    let id = log.id();
    log.record(&proven("deploy-bot", "eve@example.com")).unwrap();
    log.record(&ChannelOpen { ch: 0, kind: own("session"), detail: None }).unwrap();
    log.record(&ChannelPty { ch: 0, term: own("xterm-256color"), cols: 80, rows: 24 }).unwrap();
    let mut r = request(1, "allow", "shell", "");
    r.ch = Some(0);
    log.record(&r).unwrap();
    let mut offset = 0;
    let mut out = |log: &mut SessionLog, text: &str| {
        let body = ChannelData {
            ch: 0,
            stream: own("out"),
            offset,
            bytes: text.len() as u64,
            redacted: false,
            truncated: false,
        };
        offset += text.len() as u64;
        log.append(&Event::now(&body).with_data(text.as_bytes())).unwrap();
    };
    out(&mut log, "\x1b[1;32mdeploy@web1\x1b[0m:\x1b[1;34m~\x1b[0m$ systemctl status app\r\n");
    out(
        &mut log,
        "\x1b[32m●\x1b[0m app.service - the application\r\n     Active: \x1b[1;32mactive (running)\x1b[0m since Mon\r\n",
    );
    if hostile {
        out(
            &mut log,
            &format!("{MARKUP}\x1b]0;{MARKUP}\x07\x1b]8;;javascript:alert(1)\x07link\r\n"),
        );
        log.record(&FileDone {
            n: 1,
            ch: 0,
            op: own("write"),
            path: own(&format!("/tmp/{MARKUP}\u{202e}gnp.sh")),
            bytes: 12,
            sha256: own("00"),
            complete: true,
        })
        .unwrap();
        log.record(&ChannelEnv { ch: 0, name: own("LC_X"), value: own(MARKUP) }).unwrap();
    }
    out(&mut log, "\x1b[1;32mdeploy@web1\x1b[0m:\x1b[1;34m~\x1b[0m$ ");
    log.record(&ChannelExit { ch: 0, n: 1, status: Some(0), signal: None, duration_us: 900_000 })
        .unwrap();
    log.commit().unwrap().wait().unwrap();
    log.seal(&End::because("client")).unwrap();
    id
}

//! The REST API: who may, and what comes.

use interceptor_tests::visitor::Visitor;
use serde_json::{Value, json};

use crate::ground::Ground;
use crate::records;

#[tokio::test(flavor = "multi_thread")]
async fn only_a_persons_own_token_for_this_audience_is_taken() {
    let Some(ground) = Ground::new().await else { return };
    let get = |token: &str| ground.ask("GET", "/api/v1/sessions", token, None);
    assert_eq!(get(&ground.token("00u-vera", json!({}))).status, 200);
    for (why, change, status, code) in [
        ("an agent's token for a service", json!({"aud": "api://orders"}), 401, "TOKEN_AUDIENCE"),
        ("an ID token for the console", json!({"aud": "0oa-console"}), 401, "TOKEN_AUDIENCE"),
        ("two audiences", json!({"aud": [ground.origin, "api://orders"]}), 401, "TOKEN_AUDIENCE"),
        ("an agent on behalf", json!({"act": {"sub": "0oa-billing"}}), 401, "TOKEN_TYPE"),
        ("a machine", json!({"uid": null, "sub": "0oa-x"}), 401, "TOKEN_TYPE"),
        ("a registered agent", json!({"cid": "0oa-billing"}), 401, "TOKEN_TYPE"),
        ("an ID token by its name", json!({"jti": "ID.x"}), 401, "TOKEN_TYPE"),
        ("bound to a key", json!({"cnf": {"jkt": "x"}}), 401, "TOKEN_PROOF_REQUIRED"),
        ("another issuer", json!({"iss": "https://evil.example"}), 401, "TOKEN_ISSUER"),
        ("over", json!({"iat": 1000, "exp": 1300}), 401, "TOKEN_EXPIRED"),
        ("no group with a role", json!({"groups": ["others"]}), 403, "NO_ROLE"),
    ] {
        let answer = get(&ground.token("00u-vera", change));
        assert_eq!(answer.status, status, "{why}: {}", answer.text());
        let body = answer.json().unwrap();
        assert_eq!(body["error"]["code"], code, "{why}: {body}");
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401, "{why}");
    }
    let good = ground.token("00u-vera", json!({}));
    let mut forged = good.clone();
    forged.replace_range(good.len() - 8.., "AAAAAAAA");
    assert_eq!(get(&forged).status, 401);
    for header in ["Basic abc", "Bearer", "bearer ", "DPoP x", ""] {
        let headers = [("Authorization", header)];
        let url = ground.url("/api/v1/sessions");
        let answer = Visitor::default().send("GET", &url, &headers, b"").unwrap();
        assert_eq!(answer.status, 401, "{header}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_events_and_hosts_come_as_described() {
    let Some(ground) = Ground::new().await else { return };
    let id = records::database(&ground.recorder).to_string();
    records::terminal(&ground.recorder, false);
    ground.index().await;
    let token = ground.token("00u-vera", json!({}));
    let get = |path: &str| {
        let answer = ground.ask("GET", path, &token, None);
        (answer.status, answer.json().unwrap())
    };
    let (status, all) = get("/api/v1/sessions?limit=1");
    assert_eq!((status, all["sessions"].as_array().unwrap().len()), (200, 1));
    let next = all["next"].as_str().unwrap();
    let (_, rest) = get(&format!("/api/v1/sessions?limit=1&before={next}"));
    assert_eq!(rest["sessions"][0]["session"], id);
    assert_eq!(rest["next"], Value::Null);
    let (_, found) = get("/api/v1/sessions?q=customers&live=false");
    assert_eq!(found["sessions"][0]["hit"]["kind"], "request");
    let (status, one) = get(&format!("/api/v1/sessions/{id}"));
    assert_eq!((status, one["agent"].as_str()), (200, Some("billing-bot")));
    let (status, events) = get(&format!("/api/v1/sessions/{id}/events?limit=2"));
    assert_eq!((status, events["events"][0]["kind"].as_str()), (200, Some("session.open")));
    assert_eq!(events["next"], 2);
    let (_, hosts) = get("/api/v1/hosts");
    assert_eq!(
        (hosts["hosts"][0]["name"].as_str(), hosts["hosts"][0]["state"].as_str()),
        (Some("db1"), Some("up"))
    );

    let (_, described) = get("/api/v1/openapi.json");
    conforms(&described, "Session", &one);
    conforms(&described, "Session", &found["sessions"][0]);
    conforms(&described, "Event", &events["events"][0]);
    conforms(&described, "Host", &hosts["hosts"][0]);

    for (path, status) in [
        ("/api/v1/sessions/01JAAAAAAAAAAAAAAAAAAAAAAA", 404),
        ("/api/v1/nothing", 404),
        ("/api/v1/sessions?before=x", 400),
        ("/api/v1/sessions?limit=x", 400),
        ("/api/v1/sessions?nonsense=1", 400),
    ] {
        let (got, body) = get(path);
        assert_eq!(got, status, "{path}: {body}");
        assert!(body["error"]["code"].is_string(), "{path}");
    }
}

/// Every member that came is described, and every one that must be there is.
pub fn conforms(described: &Value, name: &str, value: &Value) {
    let schema = &described["components"]["schemas"][name];
    let value = value.as_object().unwrap();
    for member in value.keys() {
        assert!(schema["properties"][member].is_object(), "{name}.{member} is not described");
    }
    for member in schema["required"].as_array().into_iter().flatten() {
        assert!(value.contains_key(member.as_str().unwrap()), "{name}.{member} is missing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_for_this_machine_and_for_viewers() {
    let Some(ground) = Ground::new().await else { return };
    let url = ground.url("/metrics");
    let text = Visitor::default().get(&url).unwrap();
    assert_eq!(text.status, 200);
    assert!(
        text.text().contains("interceptor_collector_host_up{host=\"db1\",id=\"1\"} 1"),
        "{}",
        text.text()
    );
    let passed_on = [("X-Forwarded-For", "203.0.113.9")];
    let answer = Visitor::default().send("GET", &url, &passed_on, b"").unwrap();
    assert_eq!(answer.status, 401);
    let token = format!("Bearer {}", ground.token("00u-vera", json!({})));
    let both = [passed_on[0], ("Authorization", token.as_str())];
    assert_eq!(Visitor::default().send("GET", &url, &both, b"").unwrap().status, 200);
}

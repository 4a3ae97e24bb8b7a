//! Legal holds, and sessions whose content retention deleted: who may, and what is said.

use interceptor::collector::CollectorError;
use serde_json::{Value, json};

use crate::api::conforms;
use crate::ground::Ground;
use crate::records;

async fn delete(ground: &Ground, session: &str) {
    let session = session.to_owned();
    let mark = move |db: &interceptor::collector::db::Connection| -> Result<(), CollectorError> {
        for set in [
            "leaf = 0, sealed = coalesce(sealed, 1)",
            "deleted_us = 1796083200000000, deleted_policy = 'rule 2, 90 days', purged_us = 1",
        ] {
            let sql = format!("UPDATE sessions SET {set} WHERE session = ?1");
            assert_eq!(db.execute(&sql, [&session]).unwrap(), 1);
        }
        Ok(())
    };
    ground.collector.central.write(mark).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_deleted_is_said_and_its_content_is_gone() {
    let Some(ground) = Ground::new().await else { return };
    let id = records::database(&ground.recorder).to_string();
    ground.index().await;
    delete(&ground, &id).await;
    let mut vera = ground.log_in("00u-vera");
    let page = vera.get(&ground.url(&format!("/sessions/{id}"))).unwrap();
    let text = page.text();
    assert_eq!(page.status, 200, "{text}");
    for wanted in [
        "Deleted by retention",
        "Deleted on 2026-12-01 (rule 2, 90 days); the audit trail says so",
        "The content of this session was deleted.",
        "billing-bot",
    ] {
        assert!(text.contains(wanted), "{wanted} is not on the page:\n{text}");
    }
    for gone in ["FROM customers", "0oa-billing", "Altered", "/play\"", "/download/"] {
        assert!(!text.contains(gone), "{gone} is on the page:\n{text}");
    }
    for path in ["download/jsonl", "download/ocsf", "play"] {
        let answer = vera.get(&ground.url(&format!("/sessions/{id}/{path}"))).unwrap();
        assert_eq!(answer.status, 410, "{path}");
        let words = "was deleted by retention on 2026-12-01 (rule 2, 90 days)";
        assert!(answer.text().contains(words), "{path}: {}", answer.text());
    }
    let list = vera.get(&ground.url("/sessions")).unwrap().text();
    assert!(list.contains("content deleted") && list.contains(&id));
    let found = vera.get(&ground.url("/sessions?q=FROM+customers")).unwrap().text();
    assert!(!found.contains(&id), "nothing of it is found any more");

    let token = ground.token("00u-vera", json!({}));
    let get = |path: &str| ground.ask("GET", path, &token, None);
    let one = get(&format!("/api/v1/sessions/{id}")).json().unwrap();
    assert_eq!(one["deleted_us"], 1_796_083_200_000_000_i64);
    let answer = get(&format!("/api/v1/sessions/{id}/events"));
    assert_eq!(answer.status, 410, "{}", answer.text());
    assert_eq!(answer.json().unwrap()["error"]["code"], "DELETED");
    // Nobody was told that it was exported.
    let exported = ground.collector.central.read(|db| {
        let sql = "SELECT count(*) FROM audit WHERE what = 'session.exported'";
        Ok::<i64, CollectorError>(db.query_row(sql, [], |r| r.get(0)).unwrap())
    });
    assert_eq!(exported.await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_administrators_place_and_release_legal_holds() {
    let Some(ground) = Ground::new().await else { return };
    let id = records::database(&ground.recorder).to_string();
    ground.index().await;
    let body = json!({ "session": id, "name": "17-A", "reason": "case 17" });
    for who in ["00u-vera", "00u-ann"] {
        let token = ground.token(who, json!({}));
        let list = ground.ask("GET", "/api/v1/legal-holds", &token, None);
        let place = ground.ask("POST", "/api/v1/legal-holds", &token, Some(&body));
        let release = json!({ "reason": "x" });
        let release = ground.ask("POST", "/api/v1/legal-holds/1/release", &token, Some(&release));
        for answer in [list, place, release] {
            assert_eq!(answer.status, 403, "{who}: {}", answer.text());
            assert_eq!(answer.json().unwrap()["error"]["code"], "NOT_AN_ADMIN");
        }
        let mut visitor = ground.log_in(who);
        let page = visitor.get(&ground.url("/sessions")).unwrap();
        assert!(!page.text().contains("Legal holds"));
        assert_eq!(visitor.get(&ground.url("/legal-holds")).unwrap().status, 403);
        let csrf = page.csrf().unwrap();
        let form = [("csrf", csrf.as_str()), ("session", id.as_str()), ("reason", "x")];
        let placed = visitor.post(&ground.url("/legal-holds"), &form).unwrap();
        assert_eq!(placed.status, 403, "{who}");
    }

    let ada = ground.token("00u-ada", json!({}));
    let ask = |method: &str, path: &str, body: Option<&Value>| {
        let answer = ground.ask(method, path, &ada, body);
        (answer.status, answer.json().unwrap())
    };
    let (status, placed) = ask("POST", "/api/v1/legal-holds", Some(&body));
    assert_eq!((status, &placed["keeps"]), (201, &json!(1)), "{placed}");
    assert_eq!(placed["placed_by"]["person"]["sub"], "00u-ada");
    let (_, described) = ask("GET", "/api/v1/openapi.json", None);
    conforms(&described, "LegalHold", &placed);
    for (bad, status, code) in [
        (json!({ "agent": "billing-bot" }), 422, "INVALID"),
        (json!({ "reason": "x" }), 422, "INVALID"),
        (json!({ "agent": "a", "reason": "x", "days": 4 }), 422, "BAD_BODY"),
    ] {
        let (got, body) = ask("POST", "/api/v1/legal-holds", Some(&bad));
        assert_eq!((got, body["error"]["code"].as_str()), (status, Some(code)), "{bad}: {body}");
    }
    // Everybody sees that it is kept; why is the administrators' matter.
    let url = ground.url(&format!("/sessions/{id}"));
    let vera = ground.log_in("00u-vera").get(&url).unwrap().text();
    assert!(vera.contains("Under legal hold") && !vera.contains("case 17"), "{vera}");
    let mut ada = ground.log_in("00u-ada");
    let page = ada.get(&url).unwrap();
    assert!(page.text().contains("case 17"), "{}", page.text());

    // In the console: released without a token it stays, with one it goes.
    let hold = placed["id"].as_i64().unwrap();
    let release = ground.url(&format!("/legal-holds/{hold}/release"));
    let refused = ada.post(&release, &[("csrf", "x"), ("reason", "over")]).unwrap();
    assert_eq!(refused.status, 403);
    let csrf = page.csrf().unwrap();
    let nothing = ada.post(&release, &[("csrf", &csrf), ("reason", " ")]).unwrap();
    assert_eq!(nothing.status, 422);
    let form = [("csrf", csrf.as_str()), ("reason", "over"), ("back", "//evil.example")];
    let released = ada.post(&release, &form).unwrap();
    assert_eq!((released.status, released.header("location")), (303, Some("/")));
    assert!(!ada.get(&url).unwrap().text().contains("Under legal hold"));
    let again = ada.post(&release, &[("csrf", &csrf), ("reason", "over")]).unwrap();
    assert_eq!(again.status, 409);

    // Placed by filter from the page of all.
    let form = [
        ("csrf", csrf.as_str()),
        ("name", "<b>18</b>"),
        ("agent", "billing-bot"),
        ("from", "2020-01-31"),
        ("to", ""),
        ("reason", "case 18"),
    ];
    assert_eq!(ada.post(&ground.url("/legal-holds"), &form).unwrap().status, 303);
    let list = ada.get(&ground.url("/legal-holds")).unwrap().text();
    for wanted in ["&lt;b&gt;18&lt;/b&gt;", "agent billing-bot, from 2020-01-31T00:00:00Z", "over"]
    {
        assert!(list.contains(wanted), "{wanted} is not on the page:\n{list}");
    }
    let trail = ground.collector.central.read(|db| {
        let sql = "SELECT what || ' ' || (detail->>'reason') FROM audit \
                   WHERE what LIKE 'legal_hold.%' ORDER BY id";
        let mut all = db.prepare(sql).unwrap();
        let all = all.query_map([], |r| r.get::<_, String>(0)).unwrap();
        Ok::<_, CollectorError>(all.collect::<Result<Vec<_>, _>>().unwrap())
    });
    assert_eq!(
        trail.await.unwrap(),
        ["legal_hold.placed case 17", "legal_hold.released over", "legal_hold.placed case 18"]
    );

    // What is gone cannot be held.
    delete(&ground, &id).await;
    let (status, refused) = ask("POST", "/api/v1/legal-holds", Some(&body));
    assert_eq!((status, refused["error"]["code"].as_str()), (410, Some("DELETED")));
}

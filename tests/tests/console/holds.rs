//! Approvals in the console and by the API: who sees what, who decides, and once only.

use interceptor::collector::holds;
use interceptor::collector::orders::{self, HostId};
use interceptor::ship::wire::Done;
use interceptor_tests::visitor::Visitor;
use serde_json::json;

use crate::ground::Ground;
use crate::records::MARKUP;

/// The exact statement, which few may see.
const EXACT: &str = "UPDATE invoices SET paid = true WHERE id = 7 AND note = 'secret note'";

impl Ground {
    /// A host raises a hold; its name at the collector.
    pub async fn raise(&self, id: &str, exact: &str) -> String {
        let host = self.host;
        let find = move |db: &interceptor::collector::db::Connection| HostId::find(db, host);
        let host = self.collector.central.read(find).await.unwrap().unwrap();
        let issuer = self.people.issuer();
        let raise = serde_json::from_value(json!({
            "hold": {
                "id": id, "session": "01JAAAAAAAAAAAAAAAAAAAAAAA", "service": "orders-db",
                "database": "orders", "role": "app", "agent": "billing-bot",
                "principal": "eve@example.com",
                "shape": "UPDATE invoices SET paid = $1 WHERE id = $2 AND note = $3",
                "rules": ["writes-need-a-person"],
                "message": "Writes to invoices are decided by a person.",
                "opened_us": interceptor::record::now_us(), "waited_ms": 0, "remaining_ms": 600_000,
            },
            "statement": exact,
            "values": ["42", null],
            "principal_ids": [[issuer, "00u-eve"], [issuer, "eve@example.com"], [issuer, "0oa-billing"]],
            "owners": [[issuer, "00u-bea"]],
            "claims": {"sub": "eve@example.com", "uid": "00u-eve", "groups": ["dba"], "cid": "0oa-billing"},
        }))
        .unwrap();
        holds::raise(&self.collector, host, "boot", raise).await.unwrap()
    }

    fn decide(&self, who: &mut Visitor, id: &str, form: &[(&str, &str)]) -> (u16, String) {
        let csrf = who.get(&self.url("/approvals")).unwrap().csrf().unwrap();
        let mut all = vec![("csrf", csrf.as_str())];
        all.extend_from_slice(form);
        let answer = who.post(&self.url(&format!("/approvals/{id}")), &all).unwrap();
        let page = match answer.status {
            303 => who.get(&self.url(answer.header("location").unwrap())).unwrap().text(),
            _ => answer.text(),
        };
        (answer.status, page)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_may_decide_sees_the_exact_request_and_decides_it_once() {
    let Some(ground) = Ground::new().await else { return };
    let id = ground.raise("h-one", EXACT).await;
    let path = ground.url(&format!("/approvals/{id}"));
    for (who, why) in [
        ("00u-vera", "You are no approver"),
        ("00u-ada", "You are no approver"),
        ("00u-eve", "You stand in the token"),
        ("00u-bea", "You own the agent"),
    ] {
        let mut visitor = ground.log_in(who);
        let list = visitor.get(&ground.url("/approvals")).unwrap().text();
        assert!(list.contains("billing-bot") && !list.contains("secret note"), "{who}");
        let page = visitor.get(&path).unwrap().text();
        assert!(
            !page.contains("secret note") && !page.contains("value=\"approve\""),
            "{who}: {page}"
        );
        assert!(page.to_lowercase().contains(&why.to_lowercase()), "{who}: {page}");
        let (status, said) = ground.decide(&mut visitor, &id, &[("decision", "approve")]);
        assert_eq!(status, 403, "{who}: {said}");
    }
    let mut ann = ground.log_in("00u-ann");
    let page = ann.get(&path).unwrap().text();
    for wanted in [
        "secret note",
        "42",
        "null",
        "0oa-billing",
        "writes-need-a-person",
        "Writes to invoices are decided",
    ] {
        assert!(page.contains(wanted), "{wanted}: {page}");
    }
    for bad in [&[("decision", "yes")][..], &[], &[("decision", "approve"), ("scope", "forever")]] {
        assert_eq!(ground.decide(&mut ann, &id, bad).0 / 100, 4, "{bad:?}");
    }
    let form = [("decision", "approve"), ("scope", "once"), ("reason", "checked")];
    let (status, said) = ground.decide(&mut ann, &id, &form);
    assert_eq!(status, 303, "{said}");
    assert!(
        said.contains("Approved. The host has not answered yet.") && !said.contains("secret note"),
        "{said}"
    );
    let (status, said) = ground.decide(&mut ann, &id, &form);
    assert_eq!(status, 409, "{said}");
    let list = ann.get(&ground.url("/approvals")).unwrap().text();
    assert!(list.contains("Nothing waits.") && list.contains("granted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_the_host_does_not_take_is_told_with_its_reason() {
    let Some(ground) = Ground::new().await else { return };
    let id = ground.raise("h-one", EXACT).await;
    let mut ann = ground.log_in("00u-ann");
    assert_eq!(ground.decide(&mut ann, &id, &[("decision", "approve")]).0, 303);
    let host = ground.host;
    let answer = move |db: &interceptor::collector::db::Connection| {
        let host = HostId::find(db, host)?.unwrap();
        let refused = Done {
            result: "refused".into(),
            error: Some("it <b>cannot</b> be judged here".into()),
            ..Done::default()
        };
        let seq = db.query_row("SELECT max(seq) FROM orders", [], |r| r.get::<_, i64>(0)).unwrap();
        orders::done(db, &host, seq.cast_unsigned(), &refused)
    };
    ground.collector.central.write(answer).await.unwrap();
    let page = ann.get(&ground.url(&format!("/approvals/{id}"))).unwrap().text();
    for wanted in [
        "not taken by the host",
        "The host did not take the decision: it &lt;b&gt;cannot&lt;/b&gt; be judged here",
    ] {
        assert!(page.contains(wanted), "{wanted}: {page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_may_ask_for_two_people() {
    let Some(ground) = Ground::with("[[approval]]\nservices = ['orders-*']\ncount = 2").await
    else {
        return;
    };
    let id = ground.raise("h-two", EXACT).await;
    let mut ann = ground.log_in("00u-ann");
    let (_, said) = ground.decide(&mut ann, &id, &[("decision", "approve")]);
    assert!(said.contains("Somebody else must approve it too") && said.contains("1 did"), "{said}");
    let (status, _) = ground.decide(&mut ann, &id, &[("decision", "approve")]);
    assert_eq!(status, 409, "the same person again");
    let token = ground.token("00u-cyd", json!({}));
    let decision = format!("/api/v1/holds/{id}/decision");
    let answer = ground.ask("POST", &decision, &token, Some(&json!({"approve": true})));
    assert_eq!(answer.json().unwrap()["state"], "granted");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_decides_by_the_same_rules() {
    let Some(ground) = Ground::new().await else { return };
    let id = ground.raise("h-three", &format!("{EXACT} {MARKUP}")).await;
    let one = format!("/api/v1/holds/{id}");
    let decision = format!("{one}/decision");
    let vera = ground.token("00u-vera", json!({}));
    let eve = ground.token("00u-eve", json!({}));
    let ann = ground.token("00u-ann", json!({}));
    let holds = ground.ask("GET", "/api/v1/holds", &vera, None);
    assert!(holds.text().contains(&id) && !holds.text().contains("secret note"));
    for (who, status) in [(&vera, 403), (&eve, 403)] {
        assert!(!ground.ask("GET", &one, who, None).text().contains("secret note"));
        let answer = ground.ask("POST", &decision, who, Some(&json!({"approve": true})));
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    assert!(ground.ask("GET", &one, &ann, None).text().contains("secret note"));
    for bad in [
        json!({}),
        json!({"approve": "yes"}),
        json!({"approve": true, "by": "root"}),
        json!({"approve": true, "for_seconds": 999_999_999}),
    ] {
        let answer = ground.ask("POST", &decision, &ann, Some(&bad));
        assert_eq!(answer.status / 100, 4, "{bad}: {}", answer.text());
    }
    let answer =
        ground.ask("POST", &decision, &ann, Some(&json!({"approve": false, "reason": "no"})));
    assert_eq!((answer.status, answer.json().unwrap()["state"].as_str()), (200, Some("denied")));
    let late = ground.ask("POST", &decision, &ann, Some(&json!({"approve": true})));
    assert_eq!((late.status, late.json().unwrap()["error"]["code"].as_str()), (409, Some("ENDED")));
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_end_sessions_and_others_do_not() {
    let Some(ground) = Ground::new().await else { return };
    let mut log = crate::records::begin(&ground.recorder, "billing-bot", "eve@example.com");
    let id = log.id().to_string();
    log.commit().unwrap().wait().unwrap();
    ground.index().await;
    let url = ground.url(&format!("/sessions/{id}/kill"));
    for (who, status) in [("00u-vera", 403), ("00u-ann", 403), ("00u-ada", 303)] {
        let mut visitor = ground.log_in(who);
        let page = visitor.get(&ground.url(&format!("/sessions/{id}"))).unwrap();
        assert_eq!(page.text().contains("End this session"), status == 303, "{who}");
        let csrf = page.csrf().unwrap();
        let answer = visitor.post(&url, &[("csrf", &csrf), ("reason", "astray")]).unwrap();
        assert_eq!(answer.status, status, "{who}: {}", answer.text());
    }
    let orders =
        move |db: &interceptor::collector::db::Connection| -> Result<String, interceptor::collector::CollectorError> {
            Ok(db.query_row("SELECT body FROM orders", [], |r| r.get(0)).unwrap())
        };
    let body = ground.collector.central.read(orders).await.unwrap();
    assert!(body.contains(&id) && body.contains("astray"), "{body}");
    let api = format!("/api/v1/sessions/{id}/kill");
    let vera = ground.token("00u-vera", json!({}));
    assert_eq!(ground.ask("POST", &api, &vera, Some(&json!({"reason": "x"}))).status, 403);
    let ada = ground.token("00u-ada", json!({}));
    assert_eq!(ground.ask("POST", &api, &ada, Some(&json!({"reason": " "}))).status, 422);
    assert_eq!(ground.ask("POST", &api, &ada, Some(&json!({"reason": "x"}))).status, 202);
    log.seal(&interceptor::record::End::because("client")).unwrap();
}

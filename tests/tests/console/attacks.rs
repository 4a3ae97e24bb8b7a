//! What must not work.

use interceptor_tests::visitor::Visitor;
use serde_json::json;

use crate::ground::Ground;
use crate::records::{self, MARKUP};

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_good_only_in_the_browser_that_began_it_and_once() {
    let Some(ground) = Ground::new().await else { return };
    ground.people.next("00u-vera").unwrap();
    // The attacker begins a login, and stops at the way back.
    let mut attacker = Visitor::default();
    let mut answer = attacker.get(&ground.url("/login?next=/sessions")).unwrap();
    let callback = loop {
        let next = answer.header("location").unwrap().to_owned();
        if next.starts_with(&ground.url("/login/callback")) {
            break next;
        }
        let next = match next.starts_with("http") {
            true => next,
            false => format!("{}{next}", ground.people.origin()),
        };
        answer = attacker.get(&next).unwrap();
    };
    // A victim that follows that link is not logged in as the attacker.
    let mut victim = Visitor::default();
    let refused = victim.get(&callback).unwrap();
    assert_eq!(refused.status, 400, "{}", refused.text());
    victim.get(&ground.url("/login")).unwrap();
    assert_eq!(victim.get(&callback).unwrap().status, 400);
    // In the browser that began it is good, once.
    assert_eq!(attacker.get(&callback).unwrap().status, 303);
    assert_eq!(attacker.get(&callback).unwrap().status, 400);
    // Another state, another nonce, no state.
    for bad in ["state=x", "state=", "code=y"] {
        let url = ground.url(&format!("/login/callback?code=x&{bad}"));
        assert_eq!(Visitor::default().get(&url).unwrap().status, 400, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planted_session_is_not_taken_over_at_login() {
    let Some(ground) = Ground::new().await else { return };
    let host = ground.origin.trim_start_matches("http://").to_owned();
    // A name that was planted, and one that was good before: neither is the one after the login.
    let mut first = ground.log_in("00u-vera");
    let old = first.cookies[&host]["interceptor"].0.clone();
    for planted in [old.clone(), "A".repeat(43)] {
        let mut visitor = Visitor::default();
        let jar = visitor.cookies.entry(host.clone()).or_default();
        jar.insert("interceptor".into(), (planted.clone(), String::new()));
        ground.log_in_with(&mut visitor, "00u-ada", "/hosts");
        assert_ne!(visitor.cookies[&host]["interceptor"].0, planted);
        let mut attacker = Visitor::default();
        let jar = attacker.cookies.entry(host.clone()).or_default();
        jar.insert("interceptor".into(), (planted, String::new()));
        let answer = attacker.get(&ground.url("/sessions")).unwrap();
        assert_eq!(answer.status, 303, "the planted name is nobody's");
    }
    // The login before ended with the new one.
    assert_eq!(first.get(&ground.url("/sessions")).unwrap().status, 303);
    let attributes = &ground.log_in("00u-vera").cookies[&host]["interceptor"].1;
    assert!(attributes.contains("HttpOnly") && attributes.contains("SameSite=Lax"), "{attributes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_site_changes_nothing() {
    let Some(ground) = Ground::new().await else { return };
    let mut vera = ground.log_in("00u-vera");
    let mut ada = ground.log_in("00u-ada");
    let csrf = vera.get(&ground.url("/sessions")).unwrap().csrf().unwrap();
    let other = ada.get(&ground.url("/sessions")).unwrap().csrf().unwrap();
    assert_ne!(csrf, other);
    let url = ground.url("/logout");
    let own = ground.origin.clone();
    let same = ("Sec-Fetch-Site", "same-origin");
    for (why, form, headers) in [
        ("no token", vec![], vec![same]),
        ("an empty token", vec![("csrf", "")], vec![same]),
        ("somebody else's token", vec![("csrf", other.as_str())], vec![same]),
        ("another site", vec![("csrf", csrf.as_str())], vec![("Sec-Fetch-Site", "cross-site")]),
        ("a neighbour", vec![("csrf", csrf.as_str())], vec![("Sec-Fetch-Site", "same-site")]),
        ("another origin", vec![("csrf", csrf.as_str())], vec![("Origin", "http://evil.example")]),
        ("no word of where from", vec![("csrf", csrf.as_str())], vec![]),
        ("a sandbox", vec![("csrf", csrf.as_str())], vec![("Origin", "null")]),
    ] {
        let answer = vera.post_with(&url, &form, &headers).unwrap();
        assert_eq!(answer.status, 403, "{why}: {}", answer.text());
    }
    // The token in the address, or in JSON, is none.
    let answer = vera.post_with(&format!("{url}?csrf={csrf}"), &[], &[same]).unwrap();
    assert_eq!(answer.status, 403);
    let json = [("Content-Type", "application/json"), same];
    let body = json!({ "csrf": csrf }).to_string();
    assert_eq!(vera.send("POST", &url, &json, body.as_bytes()).unwrap().status, 400);
    assert_eq!(vera.get(&url).unwrap().status, 405, "a link logs nobody out");
    assert_eq!(vera.get(&ground.url("/sessions")).unwrap().status, 200, "still logged in");
    let answer = vera.post_with(&url, &[("csrf", &csrf)], &[("Origin", &own)]).unwrap();
    assert_eq!(answer.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_recorded_acts_on_a_page() {
    let Some(ground) = Ground::new().await else { return };
    let all = [
        records::hostile(&ground.recorder).to_string(),
        records::terminal(&ground.recorder, true).to_string(),
    ];
    ground.index().await;
    let mut vera = ground.log_in("00u-vera");
    let mut paths = vec!["/sessions".to_owned(), "/sessions?q=owned".to_owned(), "/hosts".into()];
    for id in &all {
        paths.push(format!("/sessions/{id}"));
        paths.push(format!("/sessions/{id}/play"));
    }
    let field = "%22%3E%3Cscript%3Ealert(1)%3C/script%3E";
    paths.push(format!(
        "/sessions?q={field}&agent={field}&principal={field}&service={field}&host={field}"
    ));
    for path in paths {
        let answer = vera.get(&ground.url(&path)).unwrap();
        assert_eq!(answer.status, 200, "{path}");
        let text = answer.text();
        for bad in
            ["<script>", "<img", "onerror=alert(1)>\"", "\x1b", "\u{202e}", "\x07", "javascript:"]
        {
            assert!(!text.contains(bad), "{path} holds {bad:?}:\n{text}");
        }
        only_our_markup(&path, &text);
    }
    let shown = vera.get(&ground.url(&format!("/sessions/{}", all[0]))).unwrap().text();
    assert!(shown.contains("&lt;script&gt;") && shown.contains("\\u{202e}"), "{shown}");
    // A person's own name is no better.
    let nobody = ground.log_in("00u-nob").get(&ground.url("/sessions")).unwrap();
    assert_eq!(nobody.status, 403);
    assert!(nobody.text().contains("Nobody &lt;b&gt;"), "{}", nobody.text());
}

/// Every attribute of every tag is one that our templates write.
pub fn only_our_markup(path: &str, text: &str) {
    for tag in text.split('<').skip(1) {
        let tag = tag.split('>').next().unwrap();
        for attribute in tag.split_whitespace().skip(1) {
            let name = attribute.split('=').next().unwrap().to_ascii_lowercase();
            assert!(!name.starts_with("on") && name != "style", "{path}: <{tag}>");
        }
        assert!(!tag.starts_with("script") || tag.contains("src=\"/assets/"), "{path}: <{tag}>");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_has_the_strict_headers() {
    let Some(ground) = Ground::new().await else { return };
    let mut vera = ground.log_in("00u-vera");
    let page = vera.get(&ground.url("/sessions")).unwrap().text();
    let style = page.split("rel=\"stylesheet\" href=\"").nth(1).unwrap().split('"').next().unwrap();
    for path in [
        "/sessions",
        "/nowhere",
        "/sessions/01J",
        style,
        "/api/v1/sessions",
        "/api/v1/openapi.json",
        "/login",
        "/live/nothing",
    ] {
        let answer = vera.get(&ground.url(path)).unwrap();
        let policy = answer.header("content-security-policy").unwrap_or_else(|| panic!("{path}"));
        for directive in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "font-src 'self'",
            "connect-src 'self'",
            "form-action 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ] {
            assert!(policy.split("; ").any(|d| d == directive), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"), "{path}");
        let cache = answer.header("cache-control").unwrap();
        let asset = path.starts_with("/assets/");
        assert_eq!(cache.contains("no-store"), !asset, "{path}: {cache}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_sent_elsewhere_and_no_path_leads_out() {
    let Some(ground) = Ground::new().await else { return };
    for next in [
        "//evil.example",
        "https://evil.example/",
        "/%5Cevil.example",
        "%2F%2Fevil.example",
        "/%09/evil.example",
    ] {
        let mut visitor = Visitor::default();
        let answer = ground.log_in_with(&mut visitor, "00u-vera", next);
        assert!(answer.url.starts_with(&ground.url("/sessions")), "{next} led to {}", answer.url);
    }
    let mut visitor = Visitor::default();
    let answer = ground.log_in_with(&mut visitor, "00u-vera", "/hosts%3Fx=1");
    assert_eq!(answer.url, ground.url("/hosts?x=1"));
    for path in [
        "/assets/../Cargo.toml",
        "/assets/..%2F..%2Fetc%2Fpasswd",
        "/assets/%2e%2e/x",
        "/sessions/..%2F..%2Fkeys%2Fhost.key",
        "/sessions/%2Fetc%2Fpasswd/download/jsonl",
        "/sessions/01J/download/..%2F..%2Fcollector.db",
        "/sessions/999999999999/play",
        "/sessions/-1",
        "/approvals/..%2F..",
    ] {
        let answer = visitor.get(&ground.url(path)).unwrap();
        assert_eq!(answer.status, 404, "{path}: {}", answer.text());
    }
    // A name that was rebound to this address.
    let evil = [("Host", "evil.example")];
    let answer = visitor.send("GET", &ground.url("/sessions"), &evil, b"").unwrap();
    assert_eq!(answer.status, 421);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_role_and_without_a_login_nothing_is_seen() {
    let Some(ground) = Ground::new().await else { return };
    let id = records::database(&ground.recorder).to_string();
    ground.index().await;
    let mut nobody = ground.log_in("00u-nob");
    let mut stranger = Visitor::default();
    for path in [
        "/sessions".to_owned(),
        format!("/sessions/{id}"),
        format!("/sessions/{id}/play"),
        format!("/sessions/{id}/follow"),
        format!("/sessions/{id}/download/jsonl"),
        "/hosts".into(),
        "/approvals".into(),
        "/policies".into(),
        "/policies/1".into(),
        "/live/sessions".into(),
        "/live/policies".into(),
    ] {
        let answer = nobody.get(&ground.url(&path)).unwrap();
        assert_eq!(answer.status, 403, "{path}");
        let answer = stranger.get(&ground.url(&path)).unwrap();
        assert_eq!(answer.status, 303, "{path}");
        assert!(answer.header("location").unwrap().starts_with("/login?next="), "{path}");
    }
    // A cookie opens no API, and a token opens no page.
    let mut vera = ground.log_in("00u-vera");
    assert_eq!(vera.get(&ground.url("/api/v1/sessions")).unwrap().status, 401);
    let token = ground.token("00u-vera", json!({}));
    assert_eq!(ground.ask("GET", "/sessions", &token, None).status, 303);
}

#[test]
fn the_markup_is_really_bad() {
    assert!(MARKUP.contains("<script>") && MARKUP.contains("onerror"));
}

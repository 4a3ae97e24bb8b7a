//! What people see.

use std::io::{BufRead, BufReader};

use interceptor::record::End;

use crate::ground::Ground;
use crate::records;

#[tokio::test(flavor = "multi_thread")]
async fn a_person_logs_in_finds_a_session_reads_it_and_logs_out() {
    let Some(ground) = Ground::new().await else { return };
    let id = records::database(&ground.recorder).to_string();
    records::terminal(&ground.recorder, false);
    ground.index().await;

    let mut vera = ground.log_in("00u-vera");
    let list = vera.get(&ground.url("/sessions")).unwrap();
    assert_eq!(list.status, 200);
    let text = list.text();
    assert!(
        text.contains("Vera Viewer") && text.contains("billing-bot") && text.contains("deploy-bot")
    );

    // By agent, by text of a statement, by a claim, and by what is nowhere.
    for (query, there) in [
        ("agent=billing-bot", true),
        ("q=FROM+customers", true),
        ("q=from%20CUSTOMERS", true),
        ("q=AT.9f2c&agent=billing-bot", true),
        ("service=orders-db&host=db1&state=past&principal=eve%40example.com", true),
        ("state=notable", true),
        ("q=nowhere-to-be-found", false),
        ("agent=billing-bot&state=live", false),
        ("q=100%25_", false),
    ] {
        let page = vera.get(&ground.url(&format!("/sessions?{query}"))).unwrap();
        assert_eq!(page.status, 200, "{query}");
        assert_eq!(page.text().contains(&format!("/sessions/{id}")), there, "{query}");
    }

    let page = vera.get(&ground.url(&format!("/sessions/{id}"))).unwrap().text();
    for wanted in [
        "SELECT id, name, card FROM customers",
        "**** **** **** 4242",
        "Ngozi Okafor",
        "dropping tables is not allowed here",
        "checked with finance",
        "0oa-billing",
        "dba, everyone",
        "Unaltered",
        "chain recomputed",
        "signed by the host&#39;s key, matches",
    ] {
        assert!(page.contains(wanted), "{wanted} is not on the page:\n{page}");
    }
    assert!(!page.contains("End this session"), "a viewer of a past session ends nothing");

    let lanes = vera.get(&ground.url(&format!("/sessions/{id}/play"))).unwrap();
    assert!(lanes.status == 200 && lanes.text().contains("DROP TABLE invoices"));

    for (format, begins) in [("jsonl", "{\"body\""), ("ocsf", "{")] {
        let url = ground.url(&format!("/sessions/{id}/download/{format}"));
        let file = vera.get(&url).unwrap();
        assert_eq!(file.status, 200, "{format}");
        assert!(file.header("content-disposition").unwrap().starts_with("attachment"));
        assert!(file.text().starts_with(begins), "{format}: {}", file.text());
    }

    ground.other_hosts().await;
    let hosts = vera.get(&ground.url("/hosts")).unwrap().text();
    for wanted in [
        "1 of 4 up",
        "orders-db",
        "3f9c1a",
        "unknown",
        "Port 22 of host-ssh is not captured",
        "Its records are refused: entry 7 was altered",
        "Its certificate ends soon",
        "revoked",
        "never seen",
    ] {
        assert!(hosts.contains(wanted), "{wanted} is not on the page of hosts");
    }

    let csrf = list.csrf().unwrap();
    let kept = vera.clone();
    let out = vera.post(&ground.url("/logout"), &[("csrf", &csrf)]).unwrap();
    assert!(out.status == 200 && out.text().contains("Logged out"));
    // The name is worth nothing any more, even to somebody who kept it.
    let after = kept.clone().get(&ground.url("/sessions")).unwrap();
    assert_eq!(after.status, 303);
    assert!(after.header("location").unwrap().starts_with("/login?next=%2Fsessions"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_the_list_show_every_session_once() {
    let Some(ground) = Ground::new().await else { return };
    for _ in 0..120 {
        let log = records::begin(&ground.recorder, "billing-bot", "eve@example.com");
        log.seal(&End::because("client")).unwrap();
    }
    ground.index().await;
    let mut vera = ground.log_in("00u-vera");
    for start in ["/sessions", "/sessions?q=app&agent=billing-bot"] {
        let mut seen = std::collections::BTreeSet::new();
        let mut next = Some(start.to_owned());
        let mut pages = 0;
        while let Some(path) = next {
            let text = vera.get(&ground.url(&path)).unwrap().text();
            let links = text.split("class=\"t\"><a href=\"/sessions/").skip(1);
            for id in links.map(|l| l[..26].to_owned()) {
                assert!(seen.insert(id), "a session stands on two pages");
            }
            let link = text.split("rel=\"next\" href=\"").nth(1);
            next = link
                .map(|l| l.split('"').next().unwrap().replace("&#38;", "&").replace("&amp;", "&"));
            let newest = text.split("\">Newest</a>").next().unwrap().rsplit('"').next().unwrap();
            assert!(pages == 0 || newest.replace("&#38;", "&") == start, "{start}: {newest}");
            pages += 1;
        }
        assert_eq!((seen.len(), pages), (120, 3), "{start}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_session_is_followed_and_a_change_is_told() {
    let Some(ground) = Ground::new().await else { return };
    let mut log = records::begin(&ground.recorder, "billing-bot", "eve@example.com");
    let id = log.id().to_string();
    log.commit().unwrap().wait().unwrap();
    ground.index().await;
    let mut vera = ground.log_in("00u-vera");
    let page = vera.get(&ground.url(&format!("/sessions/{id}"))).unwrap().text();
    assert!(page.contains("data-follow") && page.contains("live"));

    let mut told = BufReader::new(vera.stream(&ground.url("/live/sessions")).unwrap());
    until(&mut told, "event: hello");
    let url = ground.url(&format!("/sessions/{id}/follow?after=3"));
    let mut follow = BufReader::new(vera.stream(&url).unwrap());
    until(&mut follow, "retry:");

    let bad = format!("SELECT 'new one' {}", records::MARKUP);
    log.record(&records::request(1, "allow", "select", &bad)).unwrap();
    log.commit().unwrap().wait().unwrap();
    ground.index().await;
    until(&mut told, "event: changed");
    let lines = until(&mut follow, "new one");
    assert!(!lines.contains("<script>") && lines.contains("&lt;script&gt;"), "{lines}");

    log.seal(&End::because("client")).unwrap();
    ground.index().await;
    until(&mut follow, "event: ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_before_a_page_listens_is_not_missed() {
    let Some(ground) = Ground::new().await else { return };
    let mut vera = ground.log_in("00u-vera");
    let told = |page: &str| {
        let text = page.split("data-told=\"").nth(1).expect("a count on the page");
        text.split('"').next().unwrap().to_owned()
    };
    let page = vera.get(&ground.url("/approvals")).unwrap().text();
    let hello = |told: &str| format!("data: {told}\n");
    let mut stream = BufReader::new(vera.stream(&ground.url("/live/approvals")).unwrap());
    let lines = until(&mut stream, "data: ");
    assert!(lines.ends_with(&hello(&told(&page))), "nothing changed: {lines}");
    ground.raise("h-one", "UPDATE invoices SET paid = true").await;
    let mut stream = BufReader::new(vera.stream(&ground.url("/live/approvals")).unwrap());
    let lines = until(&mut stream, "data: ");
    assert!(!lines.ends_with(&hello(&told(&page))), "the page is older: {lines}");
}

/// Reads lines until one contains a word; all of them.
fn until(from: &mut impl BufRead, word: &str) -> String {
    let mut all = String::new();
    loop {
        let mut line = String::new();
        let n = from.read_line(&mut line).unwrap_or_else(|e| panic!("{word}: {e}, after {all}"));
        assert!(n > 0, "no {word:?} before the end: {all}");
        all.push_str(&line);
        if line.contains(word) {
            return all;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_altered_in_a_replica_is_said_on_its_page() {
    let Some(ground) = Ground::new().await else { return };
    let id = records::database(&ground.recorder).to_string();
    ground.index().await;
    let db = ground.replica();
    let both = "DROP TRIGGER IF EXISTS events_keep; DROP TRIGGER IF EXISTS events_stay";
    db.execute_batch(both).unwrap();
    db.execute(
        "UPDATE events SET body = replace(body, 'DROP', 'KEEP') WHERE body LIKE '%DROP%'",
        [],
    )
    .unwrap();
    let mut vera = ground.log_in("00u-vera");
    let page = vera.get(&ground.url(&format!("/sessions/{id}"))).unwrap().text();
    assert!(page.contains("Altered") && page.contains("was altered, added or moved"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_replayed_or_the_page_says_why_not() {
    let Some(ground) = Ground::new().await else { return };
    let id = records::terminal(&ground.recorder, false).to_string();
    ground.index().await;
    let mut vera = ground.log_in("00u-vera");
    let page = vera.get(&ground.url(&format!("/sessions/{id}/play"))).unwrap();
    let text = page.text();
    let built_in = text.contains("class=\"player\"");
    assert!(built_in || text.contains("is not in this build"), "{text}");
    assert!(text.contains(&format!("/sessions/{id}/download/asciicast")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("script-src 'self' 'wasm-unsafe-eval'"), "{policy}");
    let cast = vera.get(&ground.url(&format!("/sessions/{id}/download/asciicast"))).unwrap();
    assert!(cast.text().starts_with("{\"") && cast.text().contains("systemctl status app"));
    let read = vera.get(&ground.url(&format!("/sessions/{id}"))).unwrap().text();
    assert!(read.contains("app.service - the application") && !read.contains("\x1b"), "{read}");
}

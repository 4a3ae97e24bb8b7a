//! Policies that hosts may take from the collector: by REST, and on the console's pages.

use interceptor::collector::CollectorError;
use interceptor::collector::audit::Who;
use interceptor::collector::orders::HostId;
use interceptor::collector::policies::check::Given;
use interceptor::collector::policies::hosts::report;
use interceptor::collector::policies::{How, publish};
use interceptor::control::CentralStatus;
use interceptor::policy::Source;
use interceptor::ship::bundle::Report;
use serde_json::{Value, json};

use crate::api::conforms;
use crate::attacks::only_our_markup;
use crate::ground::Ground;

const RULES: &str =
    "# <script>alert(1)</script> \u{202e}\n[[rule]]\nname = \"a\"\neffect = \"deny\"\n";
const TEST: &str = "[[case]]\nname = \"t\"\nstatement = \"SELECT 1\"\nexpect = \"deny\"\n";

impl Ground {
    /// A version of policies, and a host that has not taken it.
    pub async fn publish(&self) {
        let mut given = Given::default();
        given.add(Source { name: "fleet.toml".into(), text: RULES.into() });
        let checked = given.check(None).unwrap();
        let who = Who::Operator { user: "root".into() };
        let how = How { who, note: Some("hold changes of orders".into()), above: 0 };
        let this = std::sync::Arc::clone(&self.collector);
        let write = move |db: &interceptor::collector::db::Connection| {
            publish(db, &this.keys, &how, checked)
        };
        self.collector.central.write(write).await.unwrap();
        let error = Some("central:1/fleet.toml:4: rule \"a\", effect: \"dney\" is none".into());
        self.says(Some(CentralStatus { error, refused: Some(1), ..Default::default() })).await;
    }

    /// What the host says of its policies.
    async fn says(&self, central: Option<CentralStatus>) {
        let host = self.host;
        let said = move |db: &interceptor::collector::db::Connection| {
            let host = HostId::find(db, host)?.expect("the host");
            report(db, &host, Report { central }).map(drop)
        };
        self.collector.central.write::<_, CollectorError, _>(said).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_publish_and_everybody_sees_which_host_has_what() {
    let Some(ground) = Ground::new().await else { return };
    let admin = ground.token("00u-ada", json!({}));
    let viewer = ground.token("00u-vera", json!({}));
    let ask = |method: &str, path: &str, token: &str, body: Option<Value>| {
        let answer = ground.ask(method, path, token, body.as_ref());
        (answer.status, answer.json().unwrap_or_default())
    };
    let files = |rules: &str| {
        json!({ "note": "why <b>not</b>", "files": [
            { "name": "fleet.toml", "text": rules }, { "name": "fleet.test.toml", "text": TEST },
        ]})
    };
    let all = "/api/v1/policies";
    let (status, refused) = ask("POST", all, &viewer, Some(files(RULES)));
    assert_eq!((status, refused["error"]["code"].as_str()), (403, Some("NO_ROLE")));
    let broken = RULES.replace("deny", "dney");
    let (status, refused) = ask("POST", all, &admin, Some(files(&broken)));
    let message = refused["error"]["message"].as_str().unwrap_or_default();
    assert!(status == 422 && message.starts_with("fleet.toml:4: rule \"a\", effect"), "{refused}");
    let allow = RULES.replace("deny", "allow");
    let (status, refused) = ask("POST", all, &admin, Some(files(&allow)));
    let message = refused["error"]["message"].as_str().unwrap_or_default();
    assert!(status == 422 && message.starts_with("fleet.test.toml:1: t: expected"), "{refused}");
    let (status, first) = ask("POST", all, &admin, Some(files(RULES)));
    assert_eq!((status, first["version"].as_u64()), (201, Some(1)), "{first}");
    let (status, _) = ask("POST", all, &admin, Some(files(RULES)));
    assert_eq!(status, 409, "nothing changes");
    let more = RULES.replace("\"a\"", "\"b\"");
    assert_eq!(ask("POST", all, &admin, Some(files(&more))).0, 201);
    let back = ask("POST", "/api/v1/policies/1/rollback", &admin, Some(json!({})));
    assert_eq!((back.0, back.1["version"].as_u64()), (201, Some(3)));
    assert_eq!(back.1["sha256"], first["sha256"]);
    for path in ["/api/v1/policies/1/rollback", "/api/v1/policies/withdraw"] {
        assert_eq!(ask("POST", path, &viewer, Some(json!({}))).0, 403, "{path}");
    }
    assert_eq!(ask("GET", "/api/v1/policies/9", &viewer, None).0, 404);

    ground.says(None).await;
    let (_, listed) = ask("GET", all, &viewer, None);
    assert_eq!(listed["hosts"][0]["policies"]["takes"], false, "{listed}");
    let error = Some("central:3/x.toml:1: <script>alert(1)</script>\u{1b}[2J".to_owned());
    let status = CentralStatus {
        version: 1,
        in_force: true,
        rules: 1,
        since_us: Some(1_700_000_000_000_000),
        error,
        refused: Some(3),
        ..CentralStatus::default()
    };
    ground.says(Some(status)).await;
    let (_, described) = ask("GET", "/api/v1/openapi.json", &viewer, None);
    let (_, listed) = ask("GET", all, &viewer, None);
    conforms(&described, "PolicyVersion", &listed["versions"][0]);
    conforms(&described, "PoliciesOnHost", &listed["hosts"][0]["policies"]);
    assert_eq!(listed["hosts"][0]["policies"]["version"], 1);
    let (_, one) = ask("GET", "/api/v1/policies/1", &viewer, None);
    assert_eq!(
        (one["files"][0]["name"].as_str(), one["files"].as_array().map(Vec::len)),
        (Some("fleet.toml"), Some(1)),
        "tests stay out of the bundle"
    );

    let mut vera = ground.log_in("00u-vera");
    for (path, says) in [
        ("/policies", ["0 of 1 hosts", "central:3/x.toml:1"]),
        ("/policies/1", ["fleet.toml", "\\u{202e}"]),
        ("/hosts", ["from the centre", "Policies from here (version 3) are not in force there"]),
    ] {
        let page = vera.get(&ground.url(path)).unwrap();
        let text = page.text();
        assert_eq!(page.status, 200, "{path}");
        for wanted in says {
            assert!(text.contains(wanted), "{path} lacks {wanted:?}:\n{text}");
        }
        for bad in ["<script>", "<b>not", "\x1b", "\u{202e}"] {
            assert!(!text.contains(bad), "{path} holds {bad:?}:\n{text}");
        }
        only_our_markup(path, &text);
    }
    let (status, gone) = ask("POST", "/api/v1/policies/withdraw", &admin, Some(json!({})));
    assert_eq!((status, gone["what"].as_str()), (201, Some("withdrawn")));
    assert!(vera.get(&ground.url("/policies/4")).unwrap().text().contains("no files"));
}

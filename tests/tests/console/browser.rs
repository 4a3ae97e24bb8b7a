//! A headless browser. `INTERCEPTOR_SHOTS` names a directory for pictures of every page in every
//! way, to be looked at.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use interceptor_tests::bed::skipped;
use interceptor_tests::paths;
use interceptor_tests::proc::Cmd;
use serde_json::{Value, json};

use crate::ground::Ground;
use crate::records;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/console/browser.mjs");

/// A person with a browser who does what is given; none where there is no browser.
pub fn browser(mut given: Value) -> Option<Cmd> {
    let npm = paths::npm()?;
    let chromium = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    let there = npm.join("node_modules/puppeteer-core").exists();
    let (Some(chromium), true) = (chromium, there) else {
        skipped("no browser: run `cargo xtask setup browser npm`");
        return None;
    };
    given["chromium"] = chromium.into();
    Some(Cmd::new("node").arg(SCRIPT).arg(&npm).arg(given.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_with_a_browser_does_everything() {
    let Some(ground) = Ground::new().await else { return };
    let database = records::database(&ground.recorder).to_string();
    let terminal = records::terminal(&ground.recorder, false).to_string();
    let hostile = records::hostile(&ground.recorder).to_string();
    records::terminal(&ground.recorder, true);
    let mut live = records::begin(&ground.recorder, "billing-bot", "eve@example.com");
    live.commit().unwrap().wait().unwrap();
    ground.index().await;
    ground.people.next("").unwrap();
    let long = "UPDATE invoices SET paid = true, note = 'as agreed with the customer on the phone' \
                WHERE id IN (7, 8, 9) AND due < '2026-11-01'";
    let holds = [ground.raise("h-one", long).await, ground.raise("h-two", long).await];
    ground.other_hosts().await;
    ground.publish().await;
    let shots = std::env::var_os("INTERCEPTOR_SHOTS").map(std::path::PathBuf::from);
    if let Some(dir) = &shots {
        std::fs::create_dir_all(dir).unwrap();
    }
    let given = json!({
        "origin": ground.origin, "shots": shots, "all": shots.is_some(), "database": database,
        "terminal": terminal, "hostile": hostile, "live": live.id().to_string(), "holds": holds,
    });
    let Some(browser) = browser(given) else { return };
    let mut child = browser.command().stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    // The script asks for what must happen meanwhile on the host.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        match line.as_str() {
            "follow" => {
                let text = "SELECT 'a new statement' FROM invoices";
                live.record(&records::request(1, "allow", "select", text)).unwrap();
                live.commit().unwrap().wait().unwrap();
                ground.index().await;
            }
            "raise" => drop(ground.raise("h-three", long).await),
            _ => {}
        }
        said.push_str(&line);
        said.push('\n');
    }
    let status = child.wait().unwrap();
    eprintln!("{said}");
    assert!(status.success() && said.contains("done"), "{said}");
}

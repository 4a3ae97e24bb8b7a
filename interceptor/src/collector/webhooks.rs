//! Telling people elsewhere that something waits for them: Slack-compatible and generic messages.
//!
//! A message is written into the database together with what it is about and sent from there, so
//! that none is lost with the collector; one that cannot be delivered is given up after a day. A
//! message never has the exact statement or its values, only a link to where they can be seen.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::collector::db::{self, Connection, params};
use hmac::{Hmac, Mac};
use reqwest::Url;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::audit::{self, Entry, Who};
use super::config::{Webhook, WebhookForm};
use super::error::CollectorError;
use super::{Change, Collector, Config};
use crate::approval::HoldSummary;
use crate::identity::https;
use crate::record::chain::hex;
use crate::record::now_us;

/// Most messages that wait; beyond it the oldest are given up.
const MOST: i64 = 10_000;
/// Attempts before a message is given up: about a day.
const TRIES: i64 = 18;
/// Pause after the first failure; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(4 * 3600);
/// How often is looked for messages even when nobody says that there are some.
const LOOK: Duration = Duration::from_secs(5);

/// What is told.
#[derive(Debug)]
pub enum Event<'a> {
    /// A request waits for people.
    Raised {
        /// The hold.
        id: &'a str,
        /// Name of its host.
        host: &'a str,
        /// What it is about.
        summary: &'a HoldSummary,
    },
    /// It waits no more.
    Ended {
        /// The hold.
        id: &'a str,
        /// Name of its host.
        host: &'a str,
        /// How it ended.
        state: &'a str,
        /// Names of those who decided.
        by: &'a [&'a str],
    },
    /// One token at two hosts.
    Conflict {
        /// Name of the host that had it first.
        first: &'a str,
        /// Name of the other.
        second: &'a str,
    },
}

/// Where a person sees a hold.
pub fn link(config: &Config, id: &str) -> String {
    // A name has digits, letters, a dash and a colon, which a path may carry as they are.
    format!("{}/approvals/{id}", config.origin)
}

impl Event<'_> {
    fn generic(&self, config: &Config) -> Value {
        match self {
            Self::Raised { id, host, summary } => json!({
                "event": "hold.raised", "hold": id, "host": host, "service": summary.service,
                "agent": summary.agent, "principal": summary.principal, "rules": summary.rules,
                "message": summary.message, "remaining_ms": summary.remaining_ms,
                "link": link(config, id),
            }),
            Self::Ended { id, host, state, by } => json!({
                "event": format!("hold.{state}"), "hold": id, "host": host, "by": by,
                "link": link(config, id),
            }),
            Self::Conflict { first, second } => json!({
                "event": "token.conflict", "first": first, "second": second,
                "link": config.origin,
            }),
        }
    }

    fn slack(&self, config: &Config) -> Value {
        let text = match self {
            Self::Raised { id, host, summary } => format!(
                "*{}* waits for approval on *{}* ({}): rules {}, for {}. <{}|Look and decide>",
                plain(&summary.agent),
                plain(&summary.service),
                plain(host),
                plain(&summary.rules.join(", ")),
                plain(&summary.principal),
                link(config, id),
            ),
            Self::Ended { id, host, state, by } => format!(
                "The request <{}|{id}> on {} was {state} by {}.",
                link(config, id),
                plain(host),
                plain(&by.join(" and ")),
            ),
            Self::Conflict { first, second } => format!(
                ":rotating_light: One token was used on {} and on {}. <{}|Console>",
                plain(first),
                plain(second),
                config.origin,
            ),
        };
        json!({ "text": text })
    }
}

/// Text that Slack shows as it is: nobody's name may become a link or a mention.
fn plain(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Writes the messages about an event, inside the transaction of what it is about.
pub fn announce(db: &Connection, config: &Config, event: &Event<'_>) -> Result<(), CollectorError> {
    for webhook in &config.webhooks {
        let body = match webhook.form {
            WebhookForm::Generic => event.generic(config),
            WebhookForm::Slack => event.slack(config),
        };
        db.prepare_cached("INSERT INTO deliveries (url, body, next_us) VALUES (?1, ?2, ?3)")
            .and_then(|mut s| s.execute(params![webhook.url, body.to_string(), now_us()]))
            .map_err(CollectorError::db("write a message"))?;
    }
    db.prepare_cached("DELETE FROM deliveries WHERE id <= (SELECT max(id) FROM deliveries) - ?1")
        .and_then(|mut s| s.execute([MOST]))
        .map_err(CollectorError::db("give old messages up"))?;
    Ok(())
}

struct Due {
    id: i64,
    url: String,
    body: String,
    tries: i64,
}

/// Sends what waits, for as long as the collector runs; never returns. Each webhook has its turn
/// by itself: one that does not answer keeps no other waiting.
pub async fn deliver(collector: Arc<Collector>) {
    let mut each = tokio::task::JoinSet::new();
    let urls: BTreeSet<_> = collector.config.webhooks.iter().map(|w| w.url.clone()).collect();
    for url in &urls {
        each.spawn(deliver_to(Arc::clone(&collector), url.clone()));
    }
    let forgotten = collector.central.write(move |db| forget(db, &urls)).await;
    if let Err(error) = forgotten {
        tracing::error!(%error, "messages for webhooks that are configured no more stay");
    }
    while each.join_next().await.is_some() {}
    std::future::pending().await
}

async fn deliver_to(collector: Arc<Collector>, url: String) {
    let mut changes = collector.hub.listen();
    // The URL is often a secret.
    let digest = crate::record::chain::hash(b"webhook lease\0", &[url.as_bytes()]);
    let lease = format!("webhook {}", hex(&digest[..8]));
    loop {
        if !collector.leads(&lease).await {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        let wanted = url.clone();
        match collector.central.read(move |db| due(db, &wanted)).await {
            Ok(all) if !all.is_empty() => {
                for one in all {
                    let sent = send(&collector.config, &one).await;
                    if let Err(error) = settle(&collector, one, sent).await {
                        tracing::error!(%error, "a message cannot be noted as sent");
                        tokio::time::sleep(LOOK).await;
                    }
                }
                continue;
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "messages cannot be read"),
        }
        let _ = tokio::time::timeout(LOOK, news(&mut changes)).await;
    }
}

/// Waits until somebody may have written a message.
async fn news(changes: &mut broadcast::Receiver<Change>) {
    loop {
        match changes.recv().await {
            Ok(Change::Hold(_)) | Err(RecvError::Lagged(_)) => return,
            Err(RecvError::Closed) => return std::future::pending().await,
            Ok(_) => {}
        }
    }
}

/// Messages for webhooks that are not configured have nowhere to go.
fn forget(db: &Connection, urls: &BTreeSet<String>) -> Result<(), CollectorError> {
    let forget = || -> db::Result<()> {
        let known: Vec<String> = db
            .prepare_cached("SELECT DISTINCT url FROM deliveries")?
            .query_map([], |r| r.get(0))?
            .collect::<db::Result<_>>()?;
        for url in known.iter().filter(|url| !urls.contains(*url)) {
            db.execute("DELETE FROM deliveries WHERE url = ?1", [url])?;
        }
        Ok(())
    };
    forget().map_err(CollectorError::db("forget messages"))
}

fn due(db: &Connection, url: &str) -> Result<Vec<Due>, CollectorError> {
    db.prepare_cached(
        "SELECT id, url, body, tries FROM deliveries WHERE url = ?1 AND next_us <= ?2
         ORDER BY next_us, id LIMIT 50",
    )
    .and_then(|mut s| {
        s.query_map(params![url, now_us()], |r| {
            Ok(Due { id: r.get(0)?, url: r.get(1)?, body: r.get(2)?, tries: r.get(3)? })
        })?
        .collect()
    })
    .map_err(CollectorError::db("read messages"))
}

async fn send(config: &Config, one: &Due) -> Result<(), String> {
    let webhook = config.webhooks.iter().find(|w| w.url == one.url);
    let Some(webhook) = webhook else { return Err("it is configured no more".into()) };
    let url = Url::parse(&webhook.url).map_err(|e| e.to_string())?;
    // Where a webhook goes is often itself the secret: it is never logged.
    let client = https::message_client(&url)?;
    let mut request = client
        .post(url)
        .header("content-type", "application/json")
        .header("x-interceptor-delivery", one.id.to_string());
    if let Some(signature) = signature(webhook, &one.body)? {
        request = request.header("x-interceptor-signature", signature);
    }
    let answer = request.body(one.body.clone()).send().await;
    let answer = answer.map_err(|e| https::chain(&e.without_url()))?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(format!("it answered {status}")),
    }
}

/// `t=SECONDS,v1=HEX`: HMAC-SHA-256 over `SECONDS.BODY`, so that an old message cannot be sent
/// again as a new one.
fn signature(webhook: &Webhook, body: &str) -> Result<Option<String>, String> {
    let Some(secret) = &webhook.secret else { return Ok(None) };
    let secret = secret.read().map_err(|e| e.to_string())?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes())
        .map_err(|e| e.to_string())?;
    mac.update(format!("{seconds}.{body}").as_bytes());
    Ok(Some(format!("t={seconds},v1={}", hex(&mac.finalize().into_bytes()))))
}

async fn settle(
    collector: &Collector,
    one: Due,
    sent: Result<(), String>,
) -> Result<(), CollectorError> {
    let given_up = one.tries + 1 >= TRIES;
    if let Err(error) = &sent {
        tracing::warn!(message = one.id, tries = one.tries + 1, given_up, error, "not delivered");
    }
    let failed = sent.is_err();
    collector
        .central
        .write(move |db| match failed && !given_up {
            true => put_off(db, &one),
            false => remove(db, &one, failed),
        })
        .await
}

fn put_off(db: &Connection, one: &Due) -> Result<(), CollectorError> {
    let doubled =
        FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(u32::try_from(one.tries).unwrap_or(31)));
    let pause = i64::try_from(doubled.min(LONGEST_PAUSE).as_micros()).unwrap_or(i64::MAX);
    let next = now_us().saturating_add(pause);
    db.prepare_cached("UPDATE deliveries SET tries = tries + 1, next_us = ?2 WHERE id = ?1")
        .and_then(|mut s| s.execute(params![one.id, next]))
        .map_err(CollectorError::db("put a message off"))?;
    Ok(())
}

fn remove(db: &Connection, one: &Due, given_up: bool) -> Result<(), CollectorError> {
    db.prepare_cached("DELETE FROM deliveries WHERE id = ?1")
        .and_then(|mut s| s.execute([one.id]))
        .map_err(CollectorError::db("forget a message"))?;
    if given_up {
        let detail = json!({ "tries": one.tries + 1 });
        let (what, target) = ("webhook.given_up", one.id.to_string());
        let entry = Entry { who: &Who::Collector, what, target: &target, detail: &detail };
        audit::append(db, &entry)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "webhook_tests.rs"]
mod tests;

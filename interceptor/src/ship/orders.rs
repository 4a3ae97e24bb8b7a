//! The orders of the collector, before anything is done: who signed them, for whom they are,
//! how old they are, and that none is done twice.
//!
//! The number of the last order is on disk before the order is carried out. An order that a
//! crash swallows is lost, never repeated: what it was about (a hold, a session) went with the
//! crash as well.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::trusted::Trusted;
use super::wire::{MAX_ORDER, Order, SignedOrder, order_message};

const FILE: &str = "orders.json";

/// Why an order is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// Not signed with the collector's key, or changed since.
    #[error("the order is not signed with the key of the collector that this host enrolled with")]
    Forged,
    /// No order at all, or one of a version that this host does not speak.
    #[error("no order that this version understands: {0}")]
    Unreadable(String),
    /// Signed for somebody else.
    #[error("the order is for host {0}")]
    OtherHost(String),
    /// Carried out before, or overtaken.
    #[error("the order has number {seq}, and number {last} was carried out already")]
    Old {
        /// Its number.
        seq: u64,
        /// The last that was accepted.
        last: u64,
    },
    /// Its time is over, or the clocks differ.
    #[error(
        "the order has expired {0} s ago: if that is not so, set the clocks of host and collector"
    )]
    Expired(i64),
    /// The number cannot be kept.
    #[error("{path}: {source}: the order is not carried out, since it could be repeated")]
    Keep {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
}

/// Who may order, who is ordered, and how far orders have come.
#[derive(Debug)]
pub struct OrderBook {
    collector: Arc<Trusted>,
    host: String,
    path: PathBuf,
    last: u64,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    last: u64,
}

impl OrderBook {
    /// Orders of this collector for this host. `state` is the directory of shipping.
    pub fn open(state: &Path, collector: Arc<Trusted>, host: &str) -> Result<Self, OrderError> {
        let path = state.join(FILE);
        let fail = |source| OrderError::Keep { path: path.clone(), source };
        let last = match fs::read(&path) {
            Ok(text) => {
                let kept: Kept = serde_json::from_slice(&text).map_err(|e| fail(e.into()))?;
                kept.last
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
            Err(e) => return Err(fail(e)),
        };
        Ok(Self { collector, host: host.to_owned(), path, last })
    }

    /// Who may order.
    pub fn collector(&self) -> &Arc<Trusted> {
        &self.collector
    }

    /// Number of the last order that was accepted.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Checks an order and notes its number. What this gives back has to be done now.
    pub fn accept(&mut self, signed: &SignedOrder, now_us: i64) -> Result<Order, OrderError> {
        let order = self.check(signed)?;
        self.note(order.seq)?;
        if order.expires_us <= now_us {
            let late = now_us.saturating_sub(order.expires_us) / 1_000_000;
            return Err(OrderError::Expired(late));
        }
        Ok(order)
    }

    fn check(&self, signed: &SignedOrder) -> Result<Order, OrderError> {
        if signed.body.len() > MAX_ORDER {
            return Err(OrderError::Unreadable(format!("it has more than {MAX_ORDER} bytes")));
        }
        let signature = STANDARD.decode(&signed.signature).map_err(|_| OrderError::Forged)?;
        if !self.collector.current().verify(&order_message(&signed.body), &signature) {
            return Err(OrderError::Forged);
        }
        let order: Order = serde_json::from_str(&signed.body)
            .map_err(|e| OrderError::Unreadable(e.to_string()))?;
        if order.v != 1 {
            return Err(OrderError::Unreadable(format!("it is of version {}", order.v)));
        }
        if order.host != self.host {
            return Err(OrderError::OtherHost(order.host.chars().take(80).collect()));
        }
        if order.seq <= self.last {
            return Err(OrderError::Old { seq: order.seq, last: self.last });
        }
        Ok(order)
    }

    fn note(&mut self, seq: u64) -> Result<(), OrderError> {
        let write = || -> std::io::Result<()> {
            let aside = self.path.with_extension("new");
            let mut file = File::create(&aside)?;
            file.write_all(&serde_json::to_vec(&Kept { last: seq })?)?;
            file.sync_all()?;
            fs::rename(&aside, &self.path)?;
            match self.path.parent() {
                Some(directory) => File::open(directory)?.sync_all(),
                None => Ok(()),
            }
        };
        write().map_err(|source| OrderError::Keep { path: self.path.clone(), source })?;
        self.last = seq;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::Command;
    use super::*;
    use crate::record::HostKey;

    fn trusted(key: &HostKey) -> Arc<Trusted> {
        Arc::new(Trusted::key(*key.public()))
    }

    struct Rig {
        dir: tempfile::TempDir,
        key: HostKey,
    }

    impl Rig {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let keys = dir.path().join("collector");
            fs::create_dir(&keys).unwrap();
            Self { key: HostKey::open(&keys).unwrap(), dir }
        }

        fn book(&self) -> OrderBook {
            OrderBook::open(self.dir.path(), trusted(&self.key), "host-a").unwrap()
        }

        fn signed(&self, host: &str, seq: u64, expires_us: i64) -> SignedOrder {
            let order = Command::Conflict { issuer: "https://e".into(), jti_hash: "00".into() };
            let order = Order { v: 1, host: host.into(), seq, issued_us: 0, expires_us, order };
            let body = serde_json::to_string(&order).unwrap();
            let signature = STANDARD.encode(self.key.sign(&order_message(&body)));
            SignedOrder { seq, body, signature }
        }
    }

    #[test]
    fn a_good_order_is_done_once_and_never_again_not_even_after_a_restart() {
        let rig = Rig::new();
        let first = rig.signed("host-a", 4, 100);
        assert_eq!(rig.book().accept(&first, 99).unwrap().seq, 4);
        let mut book = rig.book();
        assert_eq!(book.last(), 4);
        for seq in [0, 1, 3, 4] {
            let old = book.accept(&rig.signed("host-a", seq, 100), 99).unwrap_err();
            assert!(matches!(old, OrderError::Old { last: 4, .. }), "{seq}: {old}");
        }
        assert!(book.accept(&rig.signed("host-a", 5, 100), 99).is_ok());
    }

    #[test]
    fn orders_of_others_for_others_altered_or_late_are_refused() {
        let rig = Rig::new();
        let mut book = rig.book();
        let stranger = Rig::new().signed("host-a", 1, 100);
        assert!(matches!(book.accept(&stranger, 99), Err(OrderError::Forged)));
        let mut altered = rig.signed("host-a", 1, 100);
        altered.body = altered.body.replace("\"expires_us\":100", "\"expires_us\":900");
        assert!(matches!(book.accept(&altered, 99), Err(OrderError::Forged)));
        let mut bare = rig.signed("host-a", 1, 100);
        bare.signature = STANDARD.encode(rig.key.sign(bare.body.as_bytes()));
        assert!(matches!(book.accept(&bare, 99), Err(OrderError::Forged)), "without its domain");
        for signature in ["", "AAAA", "no base64!"] {
            let bad = SignedOrder { signature: signature.into(), ..rig.signed("host-a", 1, 100) };
            assert!(matches!(book.accept(&bad, 99), Err(OrderError::Forged)), "{signature:?}");
        }
        let other = rig.signed("host-b", 1, 100);
        assert!(matches!(book.accept(&other, 99), Err(OrderError::OtherHost(_))));
        assert_eq!(book.last(), 0, "none of them counted");
        assert!(matches!(
            book.accept(&rig.signed("host-a", 1, 100), 100),
            Err(OrderError::Expired(_))
        ));
        let again = book.accept(&rig.signed("host-a", 1, 100), 0);
        assert!(matches!(again, Err(OrderError::Old { .. })), "expired, then the clock set back");
    }

    #[test]
    fn an_order_is_not_done_when_its_number_cannot_be_kept() {
        let rig = Rig::new();
        let mut book = rig.book();
        book.path = rig.dir.path().join("missing/orders.json");
        let refused = book.accept(&rig.signed("host-a", 1, 100), 99);
        assert!(matches!(refused, Err(OrderError::Keep { .. })));
        fs::write(rig.dir.path().join(FILE), "not json").unwrap();
        assert!(OrderBook::open(rig.dir.path(), trusted(&rig.key), "host-a").is_err());
    }
}

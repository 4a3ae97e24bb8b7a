//! How much one source may ask for: connections at a time, and requests in a while.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use lru::LruCache;

/// Most connections of all sources.
const CONNECTIONS: usize = 256;
/// Most connections of one source.
const CONNECTIONS_EACH: usize = 16;
/// Requests that a source may make at once after a silence.
const BURST: f64 = 30.0;
/// Requests a second after that.
const RATE: f64 = 5.0;
/// Sources whose pace is remembered.
const SOURCES: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// The paces of all sources.
#[derive(Debug)]
pub struct Pace {
    open: Mutex<HashMap<IpAddr, usize>>,
    buckets: Mutex<LruCache<IpAddr, (f64, Instant)>>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { open: Mutex::default(), buckets: Mutex::new(LruCache::new(SOURCES)) }
    }
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub struct Place {
    pace: Arc<Pace>,
    source: IpAddr,
}

impl Pace {
    /// A place for a connection, unless there are too many.
    pub fn enter(self: &Arc<Self>, source: IpAddr) -> Option<Place> {
        let source = network(source);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let own = open.get(&source).copied().unwrap_or(0);
        if own >= CONNECTIONS_EACH || open.values().sum::<usize>() >= CONNECTIONS {
            return None;
        }
        open.insert(source, own + 1);
        Some(Place { pace: Arc::clone(self), source })
    }

    /// Whether a source may make one more request now.
    pub fn may_ask(&self, source: IpAddr) -> bool {
        self.take(network(source), Instant::now())
    }

    fn take(&self, source: IpAddr, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = buckets.get_or_insert_mut(source, || (BURST, now));
        let gained = now.saturating_duration_since(*since).as_secs_f64() * RATE;
        (*left, *since) = ((*left + gained).min(BURST), now);
        if *left < 1.0 {
            return false;
        }
        *left -= 1.0;
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.pace.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = open.get_mut(&self.source) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.source);
            }
        }
    }
}

/// What counts as one source: an IPv4 address, or an IPv6 network of 64 bits.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => {
            let s = ip.segments();
            Ipv6Addr::new(s[0], s[1], s[2], s[3], 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_source_has_a_bounded_number_of_connections() {
        let pace = Arc::new(Pace::default());
        let here: IpAddr = "2001:db8:1:2::1".parse().unwrap();
        let near: IpAddr = "2001:db8:1:2::9".parse().unwrap();
        let mut places: Vec<_> = (0..CONNECTIONS_EACH).map(|_| pace.enter(here).unwrap()).collect();
        assert!(pace.enter(near).is_none(), "the same network");
        assert!(pace.enter("10.0.0.1".parse().unwrap()).is_some());
        places.pop();
        assert!(pace.enter(near).is_some());
    }

    #[test]
    fn a_source_that_asks_too_often_waits() {
        let pace = Pace::default();
        let (here, now) = ("10.0.0.1".parse().unwrap(), Instant::now());
        assert!((0..30).all(|_| pace.take(here, now)));
        assert!(!pace.take(here, now));
        assert!(pace.take("10.0.0.2".parse().unwrap(), now));
        let later = now + Duration::from_secs(1);
        assert!((0..5).all(|_| pace.take(here, later)));
        assert!(!pace.take(here, later));
    }
}

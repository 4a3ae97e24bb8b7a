//! How many connections may be on their way to a token at a time, as sshd's MaxStartups has it.
//!
//! Key exchange costs us more than it costs a stranger. One source must not be able to take all
//! places.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most of one source; agents start many commands at once.
const PER_SOURCE: u32 = 300;

/// Most in all.
const IN_ALL: u32 = 600;

#[derive(Debug, Default)]
struct Counts {
    by_source: HashMap<IpAddr, u32>,
    all: u32,
}

/// The connections of one service that have not proven a token yet.
#[derive(Debug, Clone, Default)]
pub struct Startups(Arc<Mutex<Counts>>);

/// One of them; given back when it is dropped.
#[derive(Debug)]
pub struct Startup {
    startups: Startups,
    source: IpAddr,
}

/// Neighbours in IPv6 are one source.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

impl Startups {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place, if there is one.
    pub fn enter(&self, address: IpAddr) -> Option<Startup> {
        let source = source(address);
        let mut counts = self.lock();
        if counts.all >= IN_ALL {
            return None;
        }
        let own = counts.by_source.entry(source).or_default();
        if *own >= PER_SOURCE {
            return None;
        }
        *own += 1;
        counts.all += 1;
        drop(counts);
        Some(Startup { startups: self.clone(), source })
    }
}

impl Drop for Startup {
    fn drop(&mut self) {
        let mut counts = self.startups.lock();
        counts.all = counts.all.saturating_sub(1);
        if let Some(own) = counts.by_source.get_mut(&self.source) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                counts.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_cannot_take_all_places_and_places_come_back() {
        let startups = Startups::default();
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let held: Vec<_> = (0..PER_SOURCE).map(|_| startups.enter(one).unwrap()).collect();
        assert!(startups.enter(one).is_none());
        assert!(startups.enter("::ffff:192.0.2.1".parse().unwrap()).is_none());
        assert!(startups.enter("192.0.2.2".parse().unwrap()).is_some());
        drop(held);
        assert!(startups.enter(one).is_some());
        assert!(startups.lock().by_source.is_empty());
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let near = |last| format!("2001:db8:1:2::{last}").parse::<IpAddr>().unwrap();
        assert_eq!(source(near(1)), source(near(2)));
        assert_ne!(source(near(1)), source("2001:db8:1:3::1".parse().unwrap()));
    }
}

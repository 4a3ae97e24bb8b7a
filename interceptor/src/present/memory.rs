//! What was presented and to whom tickets were given: claims and hashes in memory, bounded, and
//! gone with the daemon.
//!
//! Nothing here proves anybody. What is found is proven once more, with every check, on the
//! connection that uses it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use russh::keys::PublicKey;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::config::{Agent, Service};
use crate::identity::{Kept, Proven, Refusal, Source, ssh_thumbprint};

/// Characters of a ticket: 256 random bits.
pub const TICKET_LENGTH: usize = 43;
/// How long a ticket is good.
pub const TICKET_LIFE: Duration = Duration::from_secs(60);

/// Most presented tokens of one agent; a new one then takes the place of its oldest.
const TOKENS_PER_AGENT: usize = 32;
/// Most tickets of one agent at a time, likewise.
const TICKETS_PER_AGENT: usize = 32;
/// Most of either in all; more are refused.
const MOST: usize = 4096;

/// Presented tokens and tickets.
#[derive(Debug)]
pub struct Presented {
    /// By thumbprint of the key.
    tokens: Mutex<HashMap<String, Vec<Entry>>>,
    tickets: Mutex<Vec<Ticket>>,
    ticket_life: Duration,
}

impl Default for Presented {
    fn default() -> Self {
        Self::with_ticket_life(TICKET_LIFE)
    }
}

/// A use that was permitted for one service and from one place.
#[derive(Debug)]
struct Entry {
    kept: Kept,
    agent: Arc<Agent>,
    service: String,
    place: String,
    since: Instant,
    expires_at: SystemTime,
}

#[derive(Debug)]
struct Ticket {
    /// SHA-256 of the ticket.
    hash: [u8; 32],
    entry: Entry,
}

/// There is no room for more.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl Entry {
    fn new(service: &Service, source: &Source, proven: &Proven, kept: Kept) -> Self {
        let agent = Arc::clone(proven.agent());
        Self {
            place: source.key(&agent),
            service: service.name.clone(),
            expires_at: proven.expires_at(),
            since: Instant::now(),
            kept,
            agent,
        }
    }

    /// Whether it is the same token for the same use.
    fn is_again(&self, other: &Self) -> bool {
        self.service == other.service
            && self.place == other.place
            && self.kept.claims().token_sha256 == other.kept.claims().token_sha256
    }

    /// Whether it was given for this service and this place.
    fn fits(&self, service: &Service, source: &Source) -> bool {
        self.service == service.name && self.place == source.key(&self.agent)
    }
}

impl Presented {
    /// With another life of tickets than [`TICKET_LIFE`].
    pub fn with_ticket_life(ticket_life: Duration) -> Self {
        Self { tokens: Mutex::default(), tickets: Mutex::default(), ticket_life }
    }

    /// How long a ticket is good.
    pub fn ticket_life(&self) -> Duration {
        self.ticket_life
    }

    /// Remembers a token that was just proven to be bound to a key.
    pub fn remember(
        &self,
        jkt: &str,
        service: &Service,
        source: &Source,
        proven: &Proven,
        kept: Kept,
    ) -> Result<(), Full> {
        let entry = Entry::new(service, source, proven, kept);
        let mut tokens = lock(&self.tokens);
        let now = SystemTime::now();
        tokens.retain(|_, list| {
            list.retain(|old| old.expires_at > now && !old.is_again(&entry));
            !list.is_empty()
        });
        if tokens.values().map(Vec::len).sum::<usize>() >= MOST {
            return Err(Full);
        }
        let own = |e: &Entry| e.agent.name == entry.agent.name;
        if tokens.values().flatten().filter(|e| own(e)).count() >= TOKENS_PER_AGENT {
            let oldest = tokens.values().flatten().filter(|e| own(e)).map(|e| e.since).min();
            tokens.values_mut().for_each(|l| l.retain(|e| !own(e) || Some(e.since) != oldest));
        }
        tokens.entry(jkt.to_owned()).or_default().push(entry);
        Ok(())
    }

    /// What a presented token said that is bound to this key, newest first.
    pub fn find(&self, key: &PublicKey, service: &Service, source: &Source) -> Option<Kept> {
        let tokens = lock(&self.tokens);
        if tokens.is_empty() {
            return None;
        }
        let now = SystemTime::now();
        let list = tokens.get(&ssh_thumbprint(key)?)?;
        list.iter()
            .rev()
            .find(|e| e.expires_at > now && e.fits(service, source))
            .map(|e| e.kept.clone())
    }

    /// A ticket in the place of a token that was just proven.
    pub fn issue(
        &self,
        service: &Service,
        source: &Source,
        proven: &Proven,
        kept: Kept,
    ) -> Result<Zeroizing<String>, Full> {
        let mut secret = Zeroizing::new([0_u8; 32]);
        // Without randomness there are no tickets.
        aws_lc_rs::rand::fill(secret.as_mut_slice()).map_err(|_| Full)?;
        let ticket = Zeroizing::new(URL_SAFE_NO_PAD.encode(secret.as_slice()));
        let hash = Sha256::digest(ticket.as_bytes()).into();
        let entry = Entry::new(service, source, proven, kept);
        let mut tickets = lock(&self.tickets);
        tickets.retain(|t| t.entry.since.elapsed() < self.ticket_life);
        if tickets.len() >= MOST {
            return Err(Full);
        }
        let own = |t: &Ticket| t.entry.agent.name == entry.agent.name;
        if tickets.iter().filter(|t| own(t)).count() >= TICKETS_PER_AGENT
            && let Some(oldest) = tickets.iter().position(own)
        {
            tickets.remove(oldest);
        }
        tickets.push(Ticket { hash, entry });
        Ok(ticket)
    }

    /// Takes a ticket out, whether or not it fits: one that is tried in the wrong place is in
    /// the wrong hands.
    pub fn redeem(
        &self,
        ticket: &[u8],
        service: &Service,
        source: &Source,
    ) -> Result<Kept, Refusal> {
        let hash: [u8; 32] = Sha256::digest(ticket).into();
        let entry = {
            let mut tickets = lock(&self.tickets);
            tickets.retain(|t| t.entry.since.elapsed() < self.ticket_life);
            // Every hash is compared in full: time tells nothing of where a guess was wrong.
            let mut found = None;
            for (at, ticket) in tickets.iter().enumerate() {
                if bool::from(ticket.hash.ct_eq(&hash)) {
                    found = Some(at);
                }
            }
            found.map(|at| tickets.remove(at).entry)
        };
        match entry {
            None => Err(Refusal::bad_ticket(None)),
            Some(entry) if entry.fits(service, source) => Ok(entry.kept),
            Some(entry) => Err(Refusal::bad_ticket(Some(format!(
                "a ticket of agent {} for {} from {} was tried at {} from {}",
                entry.agent.name,
                entry.service,
                entry.place,
                service.name,
                source.key(&entry.agent),
            )))),
        }
    }

    /// How many tokens and tickets are held.
    pub fn counts(&self) -> (usize, usize) {
        (lock(&self.tokens).values().map(Vec::len).sum(), lock(&self.tickets).len())
    }
}

/// Whether a password has the form of a ticket; a token never has.
pub fn is_ticket(password: &[u8]) -> bool {
    password.len() == TICKET_LENGTH
        && password.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// A panic elsewhere leaves these lists consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_looks_like_nothing_else() {
        let ticket = URL_SAFE_NO_PAD.encode([7; 32]);
        assert_eq!(ticket.len(), TICKET_LENGTH);
        assert!(is_ticket(ticket.as_bytes()));
        for other in ["", "secret", "a.b.c", &ticket[1..], &format!("{}=", &ticket[1..])] {
            assert!(!is_ticket(other.as_bytes()), "{other}");
        }
    }
}

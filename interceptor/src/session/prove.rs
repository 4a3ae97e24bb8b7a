//! From a connection of which nothing is known to one whose agent is known: by a token, by a
//! token that was presented beforehand, or by a ticket that stands for one.

use std::time::SystemTime;

use russh::keys::PublicKey;

use crate::identity::{self, Occasion, Presented, ProvenKey, Way};

use super::{Arrived, Marks, Proven, Refused, RefusedKind, Session, Who};

/// By what the session of this identity can be found later.
fn marks(proven: &identity::Proven) -> Marks {
    let claims = proven.claims();
    Marks {
        issuer: claims.iss.clone(),
        principals: claims.principal_ids().into_iter().map(|(_, id)| id).collect(),
        tokens: vec![
            claims.jti.clone(),
            identity::hash_jti(&claims.jti),
            claims.token_sha256.clone(),
        ],
    }
}

/// What became of an attempt; a refused connection may try again or end.
type Attempt = Result<Session<Proven>, (Session<Arrived>, Refused)>;

impl Session<Arrived> {
    /// Checks the token that came, pins it to its source, and records its claims.
    pub async fn prove(self, token: &[u8], client_key: Option<ProvenKey<'_>>, way: Way) -> Attempt {
        let presented = Presented {
            token,
            service: &self.service,
            source: self.source,
            client_key,
            now: SystemTime::now(),
        };
        let outcome = match way {
            Way::Certificate => self.prove_bound(presented).await,
            _ => self.gate.identity.prove(presented).await,
        };
        self.conclude(outcome, way)
    }

    /// Anybody can put a token into a certificate of their own: only one that is bound to the
    /// certificate's key is taken from there.
    async fn prove_bound(
        &self,
        presented: Presented<'_>,
    ) -> Result<identity::Proven, identity::Refusal> {
        let Presented { token, service, source, client_key, now } = presented;
        let kept = self.gate.identity.examine(token, service, now).await?;
        if !kept.claims().cnf {
            return Err(identity::Refusal::unbound(
                "the token in the certificate is not bound to a key: turn DPoP on for the client",
            ));
        }
        self.gate.identity.prove_kept(&kept, Occasion { service, source, client_key, now }).await
    }

    /// Whether a token bound to this key was presented for this service from this source. Costs
    /// next to nothing and is neither recorded nor a proof.
    pub fn is_presented(&self, key: &PublicKey) -> bool {
        self.gate.presented.find(key, &self.service, &self.source).is_some()
    }

    /// Proves by a token that was presented beforehand and is bound to the key of this
    /// connection. Every check is made again.
    pub async fn prove_presented(self, key: &PublicKey) -> Attempt {
        let outcome = match self.gate.presented.find(key, &self.service, &self.source) {
            Some(kept) => {
                let occasion = self.occasion(Some(ProvenKey::Ssh(key)));
                self.gate.identity.prove_kept(&kept, occasion).await
            }
            None => Err(identity::Refusal::not_presented()),
        };
        self.conclude(outcome, Way::PresentedKey)
    }

    /// Proves by a one-time ticket in the place of its token. The ticket is used up, whatever
    /// comes of it; every check is made again.
    pub async fn redeem(self, ticket: &[u8], client_key: Option<ProvenKey<'_>>) -> Attempt {
        let outcome = match self.gate.presented.redeem(ticket, &self.service, &self.source) {
            Ok(kept) => self.gate.identity.prove_kept(&kept, self.occasion(client_key)).await,
            Err(refusal) => Err(refusal),
        };
        self.conclude(outcome, Way::Ticket)
    }

    /// Records that what came beside a token was refused before the token was looked at: a
    /// certificate that is not fit.
    pub fn credential_refused(&mut self, code: &str, message: &str) {
        self.gate.metrics.refused(&self.service.name, code);
        let refused = crate::record::event::IdentityRefused {
            code: code.into(),
            message: message.into(),
            claims: None,
            alert: false,
            observed: false,
        };
        if let Err(error) = self.log.append(&refused).and_then(|()| self.log.commit().map(drop)) {
            tracing::error!(session = %self.id(), %error, "record");
        }
    }

    fn occasion<'a>(&'a self, client_key: Option<ProvenKey<'a>>) -> Occasion<'a> {
        let (service, source) = (self.service.as_ref(), self.source);
        Occasion { service, source, client_key, now: SystemTime::now() }
    }

    fn conclude(
        mut self,
        outcome: Result<identity::Proven, identity::Refusal>,
        way: Way,
    ) -> Attempt {
        match outcome {
            Ok(proven) => {
                let source = self.source.key(proven.agent());
                if let Err(e) = self.log.identity(&proven, source, way) {
                    let refused = self.record_failed(&e);
                    return Err((self, refused));
                }
                let marks = marks(&proven);
                self.live.set_identity(&proven.agent().name, proven.claims().principal(), marks);
                match self.gate.identity.still_good(&proven) {
                    Ok(()) => Ok(self.map(|_| Proven { who: Who::Token(proven) })),
                    Err(refusal) => self.token_refused(&refusal),
                }
            }
            Err(refusal) => self.token_refused(&refusal),
        }
    }

    fn token_refused(mut self, refusal: &identity::Refusal) -> Attempt {
        let code = refusal.code.as_str();
        if refusal.alert {
            self.gate.metrics.alert(code);
            tracing::warn!(session = %self.id(), source = %self.peer, code, message = %refusal.message, detail = refusal.detail, "ALERT");
        }
        let observed = !self.enforces();
        let recorded = self.log.identity_refused(refusal, observed);
        let refused = match recorded {
            Ok(()) => self.refuse(RefusedKind::Identity, code, &refusal.message, None),
            Err(e) => self.record_failed(&e),
        };
        Err((self, refused))
    }
}

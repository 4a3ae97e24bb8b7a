//! Ways in which a token is shown: certificate, presented or registered key, password,
//! keyboard-interactive, ticket.

use std::sync::Arc;
use std::time::Duration;

use russh::keys::ssh_key::Certificate;
use russh::keys::{Algorithm, PublicKey};
use russh::server::{Auth, PublicKeyOffer};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::super::acting::Acting;
use super::super::settings;
use super::{Connection, MAX_PROOFS, Standing};
use crate::identity::{self, ProvenKey, Way};
use crate::session::{Proven, Refused, Session};

/// Least time that a refused password, ticket or answer takes.
const REFUSAL_TIME: Duration = Duration::from_millis(50);

/// What OpenSSH keeps of a typed or asked secret; a longer one comes in parts. Bytes.
const OPENSSH_CUT: usize = 1023;

/// Most parts of a token.
const MAX_ROUNDS: usize = 17;

/// A refusal that leaves all methods open.
pub(super) fn reject() -> Auth {
    Auth::Reject { proceed_with_methods: Some(settings::methods()), partial_success: false }
}

/// A certificate's word on whether it may be used as `user`, before its token is looked at.
fn unfit(certificate: &Certificate, user: &str) -> Option<String> {
    let refused = |what: String| Some(format!("CERTIFICATE_REFUSED: {what}"));
    if !certificate.cert_type().is_user() {
        return refused("it is a host certificate".into());
    }
    if certificate.signature_key() != certificate.public_key() {
        return refused("it is not signed by its own key; no other authority is trusted".into());
    }
    if certificate.valid_principals().is_empty() {
        return refused("it names no principal; OpenSSH would take that for everybody".into());
    }
    if !certificate.valid_principals().iter().any(|p| p == user) {
        return refused(format!("it is not for user {user:?}"));
    }
    if let Some((name, _)) = certificate.critical_options().iter().next() {
        return refused(format!("critical option {name:?} is not understood here"));
    }
    None
}

impl Connection {
    /// A key that is not known is refused before the client signs with it, so that the
    /// certificate of the same key, or another way, follows at once.
    pub(super) fn offered(&self, offer: PublicKeyOffer<'_>) -> Auth {
        let Standing::Arrived(session) = &self.standing else { return reject() };
        if matches!(offer.algorithm, Algorithm::Rsa { hash: None }) {
            return reject();
        }
        let known = offer.in_certificate
            || self.parts.gate.identity().agent_of_key(offer.public_key).is_some()
            || session.is_presented(offer.public_key);
        if known { Auth::Accept } else { reject() }
    }

    /// A plain key whose signature was good.
    pub(super) async fn key(&mut self, user: &str, key: &PublicKey) -> Auth {
        self.user = user.to_owned();
        let Some(session) = self.take_arrived() else { return reject() };
        if session.is_presented(key) {
            let proven = session.prove_presented(key).await;
            return self.proven(proven);
        }
        if self.parts.gate.identity().agent_of_key(key).is_some() {
            self.standing = Standing::Quarantined { session, key: Box::new(key.clone()) };
            return Auth::Accept;
        }
        self.standing = Standing::Arrived(session);
        reject()
    }

    /// A certificate whose key signed: its token must be bound to that very key.
    pub(super) async fn certificate(&mut self, user: &str, certificate: &Certificate) -> Auth {
        self.user = user.to_owned();
        let Some(mut session) = self.take_arrived() else { return reject() };
        let token = certificate.extensions().get(identity::CERTIFICATE_EXTENSION);
        let refused = match (unfit(certificate, user), token) {
            (Some(why), _) => Some(why),
            (None, None) => Some(format!(
                "CERTIFICATE_REFUSED: it carries no token (extension {})",
                identity::CERTIFICATE_EXTENSION
            )),
            (None, Some(_)) => None,
        };
        if let Some(why) = refused {
            session.credential_refused("CERTIFICATE_REFUSED", &why);
            self.say(&session, &why);
            self.standing = Standing::Arrived(session);
            return reject();
        }
        let key = PublicKey::new(certificate.public_key().clone(), "");
        let token = token.map(String::as_str).unwrap_or_default();
        let proven =
            session.prove(token.as_bytes(), Some(ProvenKey::Ssh(&key)), Way::Certificate).await;
        self.proven(proven)
    }

    /// A password: a token, or a ticket that stands for one.
    pub(super) async fn password(&mut self, user: &str, password: &str, way: Way) -> Auth {
        self.user = user.to_owned();
        let until = Instant::now() + REFUSAL_TIME;
        let Some(session) = self.take_arrived() else { return reject() };
        let proven = if identity::is_token(password.as_bytes()) {
            session.prove(password.as_bytes(), None, way).await
        } else {
            session.redeem(password.as_bytes(), None).await
        };
        let answer = self.proven(proven);
        if answer != Auth::Accept {
            tokio::time::sleep_until(until).await;
        }
        answer
    }

    /// Keyboard-interactive (RFC 4256). The first round is one prompt, as every client expects;
    /// an answer that looks cut is continued in further ones.
    pub(super) async fn answers(
        &mut self,
        user: &str,
        answers: Option<Vec<Zeroizing<Vec<u8>>>>,
    ) -> Auth {
        let Some(answers) = answers else {
            self.answers = Zeroizing::new(Vec::new());
            self.rounds = 0;
            return prompt("Password: ".into());
        };
        let [answer] = answers.as_slice() else { return reject() };
        self.rounds += 1;
        if self.rounds > MAX_ROUNDS || self.answers.len() + answer.len() > identity::MAX_TOKEN {
            return reject();
        }
        self.answers.extend_from_slice(answer);
        if answer.len() == OPENSSH_CUT && self.answers.starts_with(b"ey") {
            return prompt(format!("token (continued) {}: ", self.rounds + 1).into());
        }
        let whole = std::mem::replace(&mut self.answers, Zeroizing::new(Vec::new()));
        match std::str::from_utf8(&whole) {
            Ok(text) => self.password(user, text, Way::KeyboardInteractive).await,
            Err(_) => reject(),
        }
    }

    /// The session, while nobody is proven and there may be another try.
    fn take_arrived(&mut self) -> Option<Session<crate::session::Arrived>> {
        if self.proofs >= MAX_PROOFS {
            return None;
        }
        match std::mem::replace(&mut self.standing, Standing::Gone) {
            Standing::Arrived(session) => {
                self.proofs += 1;
                Some(session)
            }
            other => {
                self.standing = other;
                None
            }
        }
    }

    fn say<S>(&mut self, session: &Session<S>, why: &str) {
        self.banner = Some(format!("interceptor: {why} (session {})\r\n", session.id()));
    }

    /// Goes on with what a proof came to: admission by policy, or a refusal with its reason.
    fn proven(
        &mut self,
        proven: Result<Session<Proven>, (Session<crate::session::Arrived>, Refused)>,
    ) -> Auth {
        match proven {
            Ok(session) => match self.admit(session) {
                Ok(()) => Auth::Accept,
                Err(refused) => {
                    self.banner = Some(format!("{}\r\n", refused.message));
                    reject()
                }
            },
            Err((session, refused)) => {
                self.banner = Some(format!("{}\r\n", refused.message));
                self.standing = Standing::Arrived(session);
                reject()
            }
        }
    }

    /// Asks policy whether this agent may become this user.
    pub(super) fn admit(&mut self, session: Session<Proven>) -> Result<(), Refused> {
        match session.admit("", &self.user, None, &[], None) {
            Ok(session) => {
                let acting = Acting::new(Arc::clone(&self.parts), session, &self.user);
                if let Some(proven) = self.proven.take() {
                    let _ = proven.send(Arc::clone(&acting));
                }
                // sshd takes a while to let us in: meanwhile the agent says what it wants.
                let early = Arc::clone(&acting);
                tokio::spawn(async move { early.upstream().await.map(drop) });
                self.standing = Standing::Acting(acting);
                Ok(())
            }
            Err((session, refused)) => {
                session.end("refused", Some(&refused.message));
                self.standing = Standing::Gone;
                Err(refused)
            }
        }
    }

    /// A token in a variable, for a connection in quarantine. The error is for the agent.
    pub(super) async fn token_in_variable(&mut self, token: &str) -> Result<(), String> {
        let standing = std::mem::replace(&mut self.standing, Standing::Gone);
        let (session, key) = match standing {
            Standing::Quarantined { session, key } => (session, key),
            other => {
                // Whoever is proven already gets nothing by another token; it is dropped.
                self.standing = other;
                return Ok(());
            }
        };
        if self.proofs >= MAX_PROOFS {
            self.standing = Standing::Quarantined { session, key };
            return Err("too many tokens were refused on this connection".into());
        }
        self.proofs += 1;
        // That the key is registered for the very agent of the token is one of the checks.
        let way = Way::RegisteredKey;
        match session.prove(token.as_bytes(), Some(ProvenKey::Ssh(&key)), way).await {
            Ok(session) => self.admit(session).map_err(|refused| refused.message),
            Err((session, refused)) => {
                self.standing = Standing::Quarantined { session, key };
                Err(refused.message)
            }
        }
    }
}

fn prompt(text: std::borrow::Cow<'static, str>) -> Auth {
    Auth::Partial {
        name: "".into(),
        instructions: "".into(),
        prompts: std::borrow::Cow::Owned(vec![(text, false)]),
    }
}

//! Proof of possession: whether the key that a token is bound to (`cnf`, RFC 7800) is the key
//! that the client proved on its connection.

use serde_json::Value;

use crate::config::Protocol;

use super::claims::Claims;
use super::refusal::{Code, Fault, quote};

/// A token that is bound to a key is good only in the hands of that key. Bindings that cannot
/// be checked here refuse too: there is no downgrade to a bearer token. `proof` is the name of
/// the proven key.
pub(super) fn check(claims: &Claims, proof: Option<&str>, protocol: Protocol) -> Result<(), Fault> {
    let Some(cnf) = claims.all.get("cnf") else { return Ok(()) };
    let required = |what: &str| Err(Fault::new(Code::ProofRequired, what));
    let jkt = match cnf.as_object() {
        Some(map) if map.len() == 1 => map.get("jkt").and_then(Value::as_str),
        _ => None,
    };
    let Some(jkt) = jkt else {
        return required(
            "the token is bound in a way that cannot be checked here; only cnf.jkt is supported",
        );
    };
    match (proof, protocol) {
        (Some(proof), _) if proof == jkt => Ok(()),
        (Some(_), Protocol::Postgres) => required(
            "the token is bound to another key than that of the client certificate on this \
             connection: use a certificate made with the token's key",
        ),
        (None, Protocol::Postgres) => required(
            "the token is bound to a key: connect over TLS with a client certificate made with \
             that key (for libpq ~/.postgresql/postgresql.crt and .key)",
        ),
        (Some(_), Protocol::Ssh) => required(
            "the token is bound to another key than the one that authenticated this connection: \
             authenticate with the token's own key (`interceptor agent` does)",
        ),
        (None, Protocol::Ssh) => required(
            "the token is bound to a key, and this connection proved none: authenticate with \
             the token's key or with a certificate made with it (`interceptor agent` does)",
        ),
    }
}

/// What the record says of a bound token that came beside another key: a copy, unless the agent
/// has mistaken its key.
pub(super) fn misplaced(claims: &Claims, proof: &str) -> String {
    let jkt = claims.all.get("cnf").and_then(|cnf| cnf.get("jkt")).and_then(Value::as_str);
    let bound =
        jkt.map_or_else(|| "in another way".into(), |jkt| format!("to the key {}", quote(jkt)));
    format!("a copy of a bound token: it is bound {bound} and came beside the key {}", quote(proof))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_bound_token_needs_exactly_its_key() {
        for (cnf, proof, ok) in [
            (json!({"jkt": "T"}), Some("T"), true),
            (json!({"jkt": "U"}), Some("T"), false),
            (json!({"jkt": "T"}), None, false),
            (json!({"x5t#S256": "T"}), Some("T"), false),
            (json!({"jkt": "T", "x5t#S256": "T"}), Some("T"), false),
            (json!({}), Some("T"), false),
            (json!(null), Some("T"), false),
            (json!("T"), Some("T"), false),
        ] {
            let all = json!({"cnf": cnf}).as_object().unwrap().clone();
            let claims = Claims { all, cnf: true, ..Claims::default() };
            for protocol in [Protocol::Postgres, Protocol::Ssh] {
                let checked = check(&claims, proof, protocol);
                assert_eq!(checked.is_ok(), ok, "{cnf}");
                // Each protocol's own advice.
                let libpq = checked.is_err_and(|f| f.message.contains("client certificate"));
                assert!(!libpq || protocol == Protocol::Postgres, "{cnf}");
            }
        }
        assert!(check(&Claims::default(), None, Protocol::Ssh).is_ok());
    }
}

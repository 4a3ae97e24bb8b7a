//! What a token says, captured at the moment of access.
//!
//! Reading is strict: a claim that is there but not of its type refuses the token, because a
//! claim that two readers understand differently is worse than none.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::refusal::{Code, Fault, quote};
use super::token::is_identifier;

/// Most actors in a delegation chain.
pub const MAX_ACTORS: usize = 8;

/// The claims of a proven token, as they were at the instant of use.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Claims {
    /// Configured name of the issuer.
    pub issuer: String,
    /// The exact `iss`.
    pub iss: String,
    /// The principal: on whose behalf the agent acts.
    pub sub: String,
    /// Stable id of the principal's user; absent for machine tokens.
    pub uid: Option<String>,
    /// Client to which the token was issued (`cid` or `client_id`); may be absent in delegated
    /// tokens, where the outermost actor is the agent.
    pub cid: Option<String>,
    /// The delegation chain, outermost (the present agent) first.
    pub act: Vec<Actor>,
    /// The single audience.
    pub aud: String,
    /// Scopes, from the list `scp` or the text `scope`.
    pub scopes: Vec<String>,
    /// Groups; empty for machine tokens.
    pub groups: Vec<String>,
    /// Issued at, seconds since the epoch.
    pub iat: i64,
    /// Expires at, seconds since the epoch.
    pub exp: i64,
    /// Not valid before, seconds since the epoch.
    pub nbf: Option<i64>,
    /// When the user authenticated, seconds since the epoch.
    pub auth_time: Option<i64>,
    /// The token's own id.
    pub jti: String,
    /// The key that signed it.
    pub kid: String,
    /// Whether the token is bound to a key.
    pub cnf: bool,
    /// SHA-256 of the token, hex.
    pub token_sha256: String,
    /// `now - iat` at the moment of use, seconds.
    pub age_at_use_s: i64,
    /// The signature was checked with keys that could not be confirmed at the issuer.
    pub offline: bool,
    /// Thumbprint of the client key that was proven on the connection.
    pub pop: Option<String>,
    /// The full claim set.
    pub all: Map<String, Value>,
}

/// One link of a delegation chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Who acts.
    pub sub: String,
    /// What kind of actor the issuer says it is, e.g. `ai_agent`.
    pub sub_profile: Option<String>,
}

impl Claims {
    /// Reads a claim set. The fields that belong to a moment or a connection (age, offline,
    /// proof, hash, key id) stay at their defaults.
    ///
    /// The set is not proven by this: use it for tests of policies and for explanations.
    pub fn from_claim_set(issuer: &str, all: Map<String, Value>) -> Result<Self, super::Refusal> {
        Ok(Self::read(issuer, all)?)
    }

    pub(super) fn read(issuer: &str, all: Map<String, Value>) -> Result<Self, Fault> {
        Ok(Self {
            issuer: issuer.to_owned(),
            iss: required_id(&all, "iss")?,
            sub: required_id(&all, "sub")?,
            uid: optional_id(&all, "uid")?,
            cid: client(&all)?,
            act: actors(&all)?,
            aud: audience(&all)?,
            scopes: scopes(&all)?,
            groups: strings(&all, "groups")?.unwrap_or_default(),
            iat: required_time(&all, "iat")?,
            exp: required_time(&all, "exp")?,
            nbf: optional_time(&all, "nbf")?,
            auth_time: optional_time(&all, "auth_time")?,
            jti: required_id(&all, "jti")?,
            cnf: all.contains_key("cnf"),
            all,
            ..Self::default()
        })
    }

    /// On whose behalf the agent acts: `sub`.
    pub fn principal(&self) -> &str {
        &self.sub
    }

    /// Who the principal and every actor are, as pairs of issuer name and id, so that nobody
    /// can approve what is done in their own name.
    pub fn principal_ids(&self) -> Vec<(String, String)> {
        let mut ids: Vec<&str> = self.uid.iter().map(String::as_str).collect();
        ids.push(&self.sub);
        ids.extend(self.act.iter().map(|a| a.sub.as_str()));
        let mut seen = std::collections::BTreeSet::new();
        ids.into_iter()
            .filter(|id| seen.insert(*id))
            .map(|id| (self.issuer.clone(), id.to_owned()))
            .collect()
    }

    /// A claim by name, or by path into nested objects: `groups`, `act.sub`. A claim whose own
    /// name has dots (`https://example.com/team`) is found by that name first.
    pub fn lookup(&self, path: &str) -> Option<&Value> {
        lookup(&self.all, path)
    }
}

fn lookup<'a>(map: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = map.get(path) {
        return Some(value);
    }
    path.match_indices('.').find_map(|(at, _)| match map.get(&path[..at])? {
        Value::Object(inner) => lookup(inner, &path[at + 1..]),
        _ => None,
    })
}

fn bad(name: &str, what: &str) -> Fault {
    Fault::new(Code::BadClaim, format!("the token's claim {name} {what}"))
}

fn required_id(map: &Map<String, Value>, name: &str) -> Result<String, Fault> {
    optional_id(map, name)?.ok_or_else(|| bad(name, "is missing"))
}

fn optional_id(map: &Map<String, Value>, name: &str) -> Result<Option<String>, Fault> {
    match map.get(name) {
        None => Ok(None),
        Some(Value::String(text)) if is_identifier(text) => Ok(Some(text.clone())),
        Some(_) => Err(bad(name, "is not a usable string")),
    }
}

fn required_time(map: &Map<String, Value>, name: &str) -> Result<i64, Fault> {
    optional_time(map, name)?.ok_or_else(|| bad(name, "is missing"))
}

/// Times are integers: what `1.5e9` or `"1500000000"` mean is for others to guess.
fn optional_time(map: &Map<String, Value>, name: &str) -> Result<Option<i64>, Fault> {
    match map.get(name) {
        None => Ok(None),
        Some(value) => match value.as_i64() {
            Some(seconds) if seconds >= 0 => Ok(Some(seconds)),
            _ => Err(bad(name, "is not an integer number of seconds")),
        },
    }
}

fn strings(map: &Map<String, Value>, name: &str) -> Result<Option<Vec<String>>, Fault> {
    let Some(value) = map.get(name) else { return Ok(None) };
    let list = value.as_array().ok_or_else(|| bad(name, "is not a list of strings"))?;
    list.iter()
        .map(|item| match item {
            Value::String(text) if is_identifier(text) => Ok(text.clone()),
            _ => Err(bad(name, "is not a list of strings")),
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

fn audience(map: &Map<String, Value>) -> Result<String, Fault> {
    match map.get("aud") {
        None => Err(bad("aud", "is missing")),
        Some(Value::String(_)) => required_id(map, "aud"),
        Some(Value::Array(_)) => match strings(map, "aud")?.unwrap_or_default().as_slice() {
            [one] => Ok(one.clone()),
            many => Err(Fault::new(
                Code::WrongAudience,
                format!("the token is for {} audiences; exactly one is accepted", many.len()),
            )),
        },
        Some(_) => Err(bad("aud", "is not a string")),
    }
}

fn client(map: &Map<String, Value>) -> Result<Option<String>, Fault> {
    match (optional_id(map, "cid")?, optional_id(map, "client_id")?) {
        (Some(a), Some(b)) if a != b => Err(bad("cid", "differs from client_id")),
        (None, None) if !map.contains_key("act") => Err(bad("cid", "is missing")),
        (a, b) => Ok(a.or(b)),
    }
}

fn scopes(map: &Map<String, Value>) -> Result<Vec<String>, Fault> {
    let list = strings(map, "scp")?;
    let text = match map.get("scope") {
        None => None,
        Some(Value::String(text)) => {
            Some(text.split(' ').filter(|s| !s.is_empty()).map(str::to_owned).collect::<Vec<_>>())
        }
        Some(_) => return Err(bad("scope", "is not a string")),
    };
    match (list, text) {
        (Some(list), Some(text)) => {
            let set = |v: &[String]| v.iter().cloned().collect::<std::collections::BTreeSet<_>>();
            if set(&list) != set(&text) {
                return Err(bad("scp", "differs from scope"));
            }
            Ok(list)
        }
        (list, text) => Ok(list.or(text).unwrap_or_default()),
    }
}

fn actors(map: &Map<String, Value>) -> Result<Vec<Actor>, Fault> {
    let mut chain = Vec::new();
    let mut next = map.get("act");
    while let Some(value) = next {
        if chain.len() == MAX_ACTORS {
            return Err(Fault::new(
                Code::ActorChain,
                format!("the token's act chain is deeper than {MAX_ACTORS}"),
            ));
        }
        let broken = |what: &str| Fault::new(Code::ActorChain, format!("the token's act {what}"));
        let inner = value.as_object().ok_or_else(|| broken("is not an object"))?;
        let sub = match inner.get("sub") {
            Some(Value::String(sub)) if is_identifier(sub) => sub.clone(),
            _ => return Err(broken("names no sub")),
        };
        let sub_profile = match inner.get("sub_profile") {
            None => None,
            Some(Value::String(profile)) if is_identifier(profile) => Some(profile.clone()),
            Some(_) => return Err(broken("has a sub_profile that is not a string")),
        };
        chain.push(Actor { sub, sub_profile });
        next = inner.get("act");
    }
    Ok(chain)
}

/// The agent's registered name cannot be found: say under which identity it was looked for.
pub(super) fn agent_identity(claims: &Claims) -> String {
    match (claims.act.first(), &claims.cid) {
        (Some(actor), _) => format!("act_sub = {}", quote(&actor.sub)),
        (None, Some(cid)) => format!("cid = {}", quote(cid)),
        (None, None) => "no cid".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn base() -> Map<String, Value> {
        json!({
            "ver": 1, "jti": "AT.x", "iss": "https://e.okta.com/oauth2/default",
            "aud": "api://db", "iat": 1000, "exp": 1300, "cid": "0oa1", "uid": "00u1",
            "scp": ["db.read"], "sub": "ann@example.com", "groups": ["dba"],
        })
        .as_object()
        .unwrap()
        .clone()
    }

    fn with(changes: Value) -> Map<String, Value> {
        let mut map = base();
        for (name, value) in changes.as_object().unwrap() {
            if value.is_null() {
                map.remove(name);
            } else {
                map.insert(name.clone(), value.clone());
            }
        }
        map
    }

    fn chain(depth: usize) -> Value {
        (0..depth)
            .fold(json!({"sub": "first"}), |inner, n| json!({"sub": format!("a{n}"), "act": inner}))
    }

    #[test]
    fn wrong_claims_are_refused_with_their_code() {
        for (changes, code) in [
            (json!({"iss": null}), Code::BadClaim),
            (json!({"sub": null}), Code::BadClaim),
            (json!({"sub": ""}), Code::BadClaim),
            (json!({"sub": "a\u{0}b"}), Code::BadClaim),
            (json!({"sub": "x".repeat(2000)}), Code::BadClaim),
            (json!({"jti": null}), Code::BadClaim),
            (json!({"jti": 7}), Code::BadClaim),
            (json!({"cid": null}), Code::BadClaim),
            (json!({"client_id": "other"}), Code::BadClaim),
            (json!({"exp": null}), Code::BadClaim),
            (json!({"exp": "1300"}), Code::BadClaim),
            (json!({"exp": 1300.5}), Code::BadClaim),
            (json!({"exp": -1}), Code::BadClaim),
            (json!({"exp": 1e40}), Code::BadClaim),
            (json!({"iat": null}), Code::BadClaim),
            (json!({"iat": "x"}), Code::BadClaim),
            (json!({"nbf": "x"}), Code::BadClaim),
            (json!({"auth_time": []}), Code::BadClaim),
            (json!({"aud": null}), Code::BadClaim),
            (json!({"aud": 1}), Code::BadClaim),
            (json!({"aud": [1]}), Code::BadClaim),
            (json!({"aud": []}), Code::WrongAudience),
            (json!({"aud": ["api://db", "api://x"]}), Code::WrongAudience),
            (json!({"scp": "db.read"}), Code::BadClaim),
            (json!({"scp": [1]}), Code::BadClaim),
            (json!({"scope": ["db.read"]}), Code::BadClaim),
            (json!({"scope": "db.write"}), Code::BadClaim),
            (json!({"groups": "dba"}), Code::BadClaim),
            (json!({"uid": 1}), Code::BadClaim),
            (json!({"act": "x"}), Code::ActorChain),
            (json!({"act": {}}), Code::ActorChain),
            (json!({"act": {"sub": 1}}), Code::ActorChain),
            (json!({"act": {"sub": "a", "sub_profile": 1}}), Code::ActorChain),
            (json!({"act": {"sub": "a", "act": 1}}), Code::ActorChain),
            (json!({"act": chain(8)}), Code::ActorChain),
        ] {
            let got = Claims::read("okta", with(changes.clone())).err().map(|f| f.code);
            assert_eq!(got, Some(code), "{changes}");
        }
    }

    #[test]
    fn both_shapes_of_a_token_are_read() {
        let classic = Claims::read("okta", base()).unwrap();
        assert_eq!(classic.scopes, ["db.read"]);
        assert_eq!(classic.groups, ["dba"]);
        let delegated = Claims::read(
            "okta",
            with(json!({
                "cid": null, "scp": null, "groups": null, "uid": null, "aud": ["api://db"],
                "scope": "db.read  db.write", "sub_profile": "service",
                "act": {"sub": "agent2", "sub_profile": "ai_agent", "act": {"sub": "agent1"}},
            })),
        )
        .unwrap();
        assert_eq!(delegated.scopes, ["db.read", "db.write"]);
        assert_eq!(delegated.aud, "api://db");
        assert_eq!(delegated.act.len(), 2);
        assert_eq!(delegated.act[0].sub_profile.as_deref(), Some("ai_agent"));
        assert!(delegated.groups.is_empty() && delegated.cid.is_none());
        assert!(Claims::read("okta", with(json!({"act": chain(7)}))).is_ok());
        assert!(Claims::read("okta", with(json!({"scope": "db.read"}))).is_ok());
    }

    #[test]
    fn the_principal_and_every_actor_are_named_once() {
        let claims =
            Claims::read("okta", with(json!({"act": {"sub": "bot", "act": {"sub": "bot"}}})))
                .unwrap();
        let ids: Vec<_> = claims.principal_ids().into_iter().map(|(_, id)| id).collect();
        assert_eq!(ids, ["00u1", "ann@example.com", "bot"]);
    }

    #[test]
    fn claims_are_found_by_name_and_by_path() {
        let claims = Claims::read(
            "okta",
            with(json!({
                "act": {"sub": "bot", "act": {"sub": "first"}},
                "https://e.com/team": "red", "a": {"b.c": {"d": 1}},
            })),
        )
        .unwrap();
        assert_eq!(claims.lookup("act.sub"), Some(&json!("bot")));
        assert_eq!(claims.lookup("act.act.sub"), Some(&json!("first")));
        assert_eq!(claims.lookup("https://e.com/team"), Some(&json!("red")));
        assert_eq!(claims.lookup("a.b.c.d"), Some(&json!(1)));
        for absent in ["", ".", "act.", "act.sub.x", "nothing", "groups.0"] {
            assert_eq!(claims.lookup(absent), None, "{absent:?}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(12, 48, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("act|sub|jkt|[a-z.]{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_claim_set_panics(
            changes in proptest::collection::btree_map(
                "iss|aud|sub|uid|cid|client_id|jti|exp|iat|nbf|scp|scope|groups|act|cnf",
                any_json(),
                0..6,
            ),
            path in "[a-z.]{0,10}",
        ) {
            let mut all = base();
            all.extend(changes);
            if let Ok(claims) = Claims::read("okta", all) {
                let _ = (claims.lookup(&path), claims.principal_ids());
                let _ = super::super::proof::check(&claims, None, crate::config::Protocol::Ssh);
            }
        }
    }
}

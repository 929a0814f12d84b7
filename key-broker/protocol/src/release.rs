//! What the broker says of an answer, signed: whose it is, what it answers, and which resource is in it.
//!
//! A JWE to a guest's key can be made by anybody who saw the key. So the broker signs a [`Statement`] beside it, and the guest
//! believes the answer only with the statement that it would have made itself, by a key that it was told of in measured
//! memory. A secret of somebody else, of another name, of another session or of an earlier request is then refused.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use kbs_types::{Response, TeePubKey};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha384};

use crate::jws::{self, Pins, Thumbprint};

/// `typ` of the signature.
pub const TYPE: &str = "cloister-release+jwt";
/// `typ` of a token.
pub const TOKEN_TYPE: &str = "JWT";
/// What the statement is about, and its version.
pub const CONTEXT: &str = "cloister-kbs release 1";
/// Header of a resource request: a value that the guest has not used before. The answer repeats it.
pub const REQUEST_HEADER: &str = "cloister-request";
/// Characters of that value, at most.
pub const MAX_REQUEST: usize = 64;

/// Why an answer is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no signature.
    #[error("it has no signature of the broker")]
    Unsigned,
    /// The signature is not to be believed.
    #[error(transparent)]
    Jws(#[from] jws::Error),
    /// The statement is not one.
    #[error("what is signed is not a statement: {0}")]
    Statement(String),
    /// The statement is about something else.
    #[error("it is for another {what}: {seen:?}, expected {expected:?}")]
    Other {
        /// In which respect.
        what: &'static str,
        /// What it says.
        seen: String,
        /// What it should.
        expected: String,
    },
    /// The challenge's nonce cannot be a token's.
    #[error("the challenge's nonce is not 8 to 64 bytes in base64")]
    Nonce,
    /// The key or the message cannot be named.
    #[error("the key or the message cannot be encoded")]
    Encoding,
}

/// What the broker signs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// [`CONTEXT`].
    pub context: String,
    /// The challenge that the guest's evidence answered, in base64url as tokens have it.
    pub eat_nonce: String,
    /// Thumbprint of the guest's key.
    pub key: String,
    /// `repository/type/tag`.
    pub resource: String,
    /// [`REQUEST_HEADER`] of the request; absent if it had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// SHA-384 of the message, base64url.
    pub digest: String,
}

/// What an answer is bound to, as each side knows it.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// As in [`Statement::eat_nonce`].
    pub nonce: &'a str,
    /// The guest's key.
    pub key: &'a TeePubKey,
    /// The resource.
    pub resource: &'a str,
    /// The request.
    pub request: Option<&'a str>,
}

/// A message with the broker's statement about it. Clients that know nothing of statements ignore the member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SignedResponse {
    /// The message.
    #[serde(flatten)]
    pub message: Response,
    /// A compact JWS over a [`Statement`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// A challenge's nonce (base64) as tokens and statements have it (base64url without padding).
pub fn eat_nonce(challenge: &str) -> Result<String, Error> {
    let bytes = BASE64_STANDARD.decode(challenge).map_err(|_| Error::Nonce)?;
    // RFC 9711, "eat_nonce".
    match bytes.len() {
        8..=64 => Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes)),
        _ => Err(Error::Nonce),
    }
}

/// SHA-384 over every part with its length before it, so that no two messages have one encoding.
fn digest(message: &Response) -> Result<String, Error> {
    let protected = message.protected.generate_aad().map_err(|_| Error::Encoding)?;
    let absent: &[u8] = &[];
    let (has_aad, aad) = message.aad.as_deref().map_or((0, absent), |aad| (1, aad));
    let parts: [&[u8]; 7] =
        [&protected, &message.encrypted_key, &message.iv, &message.ciphertext, &message.tag, &[has_aad], aad];
    let mut hash = Sha384::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    Ok(BASE64_URL_SAFE_NO_PAD.encode(hash.finalize()))
}

impl Statement {
    /// The statement about a message.
    pub fn about(message: &Response, binding: &Binding<'_>) -> Result<Self, Error> {
        Ok(Self {
            context: CONTEXT.to_owned(),
            eat_nonce: binding.nonce.to_owned(),
            key: Thumbprint::of(binding.key).ok_or(Error::Encoding)?.to_string(),
            resource: binding.resource.to_owned(),
            request: binding.request.map(str::to_owned),
            digest: digest(message)?,
        })
    }
}

/// A value of a message, for people: whatever it is, it does not fill their screen.
fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Checks that a pinned key's broker made this answer, for this request.
pub fn check(answer: &SignedResponse, binding: &Binding<'_>, pins: &Pins) -> Result<(), Error> {
    let signature = answer.signature.as_deref().ok_or(Error::Unsigned)?;
    let payload = pins.verify(signature, TYPE)?;
    let seen: Statement = serde_json::from_value(payload).map_err(|e| Error::Statement(e.to_string()))?;
    let expected = Statement::about(&answer.message, binding)?;
    let absent = || "none".to_owned();
    let rows = [
        ("purpose", seen.context, expected.context),
        ("session", seen.eat_nonce, expected.eat_nonce),
        ("guest's key", seen.key, expected.key),
        ("resource", seen.resource, expected.resource),
        ("request", seen.request.unwrap_or_else(absent), expected.request.unwrap_or_else(absent)),
        ("message", seen.digest, expected.digest),
    ];
    let other = rows.into_iter().find(|(_, seen, expected)| seen != expected);
    match other {
        Some((what, seen, expected)) => Err(Error::Other { what, seen: shown(&seen), expected }),
        None => Ok(()),
    }
}

/// Checks that a token is a pinned key's broker's, for this challenge and this key. The guest's clock is its host's word, so it
/// is not asked: the key is new, so no older token is for it. That the token ends, and not before it begins, must be said.
pub fn check_token(token: &str, nonce: &str, key: &TeePubKey, pins: &Pins) -> Result<(), Error> {
    let claims = pins.verify(token, TOKEN_TYPE)?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let bound = claims.pointer("/cnf/jwk").cloned().unwrap_or_default();
    let bound = serde_json::from_value::<TeePubKey>(bound).ok().and_then(|key| Thumbprint::of(&key));
    let own = Thumbprint::of(key).ok_or(Error::Encoding)?;
    let rows = [
        ("session", text(claims.get("eat_nonce")), nonce.to_owned()),
        ("guest's key", bound.map(|key| key.to_string()).unwrap_or_default(), own.to_string()),
    ];
    if let Some((what, seen, expected)) = rows.into_iter().find(|(_, seen, expected)| seen != expected) {
        return Err(Error::Other { what, seen: shown(&seen), expected });
    }
    let time = |name: &str| claims.get(name).and_then(Value::as_u64);
    match (time("iat"), time("exp")) {
        (Some(from), Some(to)) if from < to => Ok(()),
        _ => Err(Error::Statement("a token without iat before exp".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwe;
    use crate::jws::tests::Signer;
    use serde_json::json;

    const NONCE: &str = "bm9uY2Ugb25l";

    fn guest(seed: u8) -> (jwe::SecretKey, TeePubKey) {
        let key = jwe::SecretKey::from_slice(&[seed; 32]).unwrap();
        let public = jwe::public_key(&key.public_key());
        (key, public)
    }

    fn binding(key: &TeePubKey) -> Binding<'_> {
        Binding { nonce: NONCE, key, resource: "a/b/c", request: Some("r1") }
    }

    fn answer(broker: &Signer, binding: &Binding<'_>) -> SignedResponse {
        let message = jwe::encrypt(binding.key, b"secret").unwrap();
        let statement = serde_json::to_value(Statement::about(&message, binding).unwrap()).unwrap();
        SignedResponse { signature: Some(broker.sign(TYPE, &statement)), message }
    }

    /// Through JSON, as it travels.
    fn carried(answer: &SignedResponse) -> SignedResponse {
        serde_json::from_str(&serde_json::to_string(answer).unwrap()).unwrap()
    }

    #[test]
    fn the_brokers_answer_to_this_request_is_believed() {
        let (broker, (key, public)) = (Signer::new(1), guest(9));
        let answer = carried(&answer(&broker, &binding(&public)));
        check(&answer, &binding(&public), &broker.pins()).unwrap();
        assert_eq!(jwe::decrypt(&key, &answer.message).unwrap().as_slice(), b"secret");
        // Others take it as the plain message that it still is.
        let plain: Response = serde_json::from_str(&serde_json::to_string(&answer).unwrap()).unwrap();
        assert_eq!(jwe::decrypt(&key, &plain).unwrap().as_slice(), b"secret");
    }

    #[test]
    fn every_other_answer_is_refused_though_it_opens() {
        let (broker, stranger, (key, public), (_, other_key)) =
            (Signer::new(1), Signer::new(2), guest(9), guest(8));
        let ours = binding(&public);
        let good = answer(&broker, &ours);
        let forged =
            SignedResponse { message: jwe::encrypt(&public, b"the host's").unwrap(), signature: None };
        let rows = [
            ("forged", forged.clone(), "no signature"),
            ("forged, signed by a stranger", answer(&stranger, &ours), "not pinned"),
            (
                "forged, with the statement about another message",
                SignedResponse { signature: good.signature.clone(), ..forged },
                "another message",
            ),
            (
                "swapped resource",
                answer(&broker, &Binding { resource: "a/b/other", ..ours }),
                "another resource: \"a/b/other\", expected \"a/b/c\"",
            ),
            (
                "of an earlier session",
                answer(&broker, &Binding { nonce: "bm9uY2UgdHdv", ..ours }),
                "another session",
            ),
            (
                "of an earlier request",
                answer(&broker, &Binding { request: Some("r0"), ..ours }),
                "another request",
            ),
            ("to no request", answer(&broker, &Binding { request: None, ..ours }), "another request"),
            ("no signature", SignedResponse { signature: None, ..good.clone() }, "no signature"),
        ];
        for (name, answer, words) in rows {
            let answer = carried(&answer);
            assert!(jwe::decrypt(&key, &answer.message).is_ok(), "{name}: the key alone does not tell");
            let error = check(&answer, &ours, &broker.pins()).unwrap_err().to_string();
            assert!(error.contains(words), "{name}: {error}");
        }
        let error = check(&answer(&broker, &Binding { key: &other_key, ..ours }), &ours, &broker.pins());
        assert!(error.unwrap_err().to_string().contains("another guest's key"));
        let token = SignedResponse { signature: Some(broker.sign(TOKEN_TYPE, &json!({}))), ..good.clone() };
        assert!(matches!(check(&token, &ours, &broker.pins()), Err(Error::Jws(jws::Error::Type { .. }))));
        let mut statement = serde_json::to_value(Statement::about(&good.message, &ours).unwrap()).unwrap();
        statement["more"] = json!(1);
        let more = SignedResponse { signature: Some(broker.sign(TYPE, &statement)), ..good.clone() };
        assert!(matches!(check(&more, &ours, &broker.pins()), Err(Error::Statement(_))));
        statement.as_object_mut().unwrap().remove("more");
        statement["context"] = json!("cloister-kbs release 2");
        let other = SignedResponse { signature: Some(broker.sign(TYPE, &statement)), ..good };
        assert!(check(&other, &ours, &broker.pins()).unwrap_err().to_string().contains("another purpose"));
    }

    #[test]
    fn each_part_of_the_message_is_in_its_digest() {
        let (_, public) = guest(9);
        let message = jwe::encrypt(&public, b"secret").unwrap();
        let base = digest(&message).unwrap();
        type Change = (&'static str, fn(&mut Response));
        let changes: [Change; 8] = [
            ("protected", |m| m.protected.alg.push('x')),
            ("epk", |m| m.protected.other_fields["epk"]["crv"] = json!("P-384")),
            ("encrypted_key", |m| m.encrypted_key[0] ^= 1),
            ("iv", |m| m.iv[0] ^= 1),
            ("ciphertext", |m| m.ciphertext[0] ^= 1),
            ("tag", |m| m.tag[0] ^= 1),
            ("aad", |m| m.aad = Some(Vec::new())),
            ("a byte moved", |m| m.iv.push(m.ciphertext.remove(0))),
        ];
        for (name, change) in changes {
            let mut other = message.clone();
            change(&mut other);
            assert_ne!(digest(&other).unwrap(), base, "{name}");
        }
    }

    #[test]
    fn a_token_is_for_this_key_and_challenge_by_the_pinned_broker_whatever_the_clock_says() {
        let (broker, (_, public), (_, other)) = (Signer::new(1), guest(9), guest(8));
        let claims = |key: &TeePubKey, nonce: &str, iat: Value, exp: Value| json!({"cnf": {"jwk": key}, "eat_nonce": nonce, "iat": iat, "exp": exp});
        let check = |token: &str| check_token(token, NONCE, &public, &broker.pins());
        let good = claims(&public, NONCE, json!(1), json!(2));
        // No clock is asked: 1970 is as good as any year.
        check(&broker.sign("JWT", &good)).unwrap();
        for (name, token, words) in [
            ("a stranger's", Signer::new(2).sign("JWT", &good), "not pinned"),
            ("a statement", broker.sign(TYPE, &good), "not a \"JWT\""),
            (
                "another key's",
                broker.sign("JWT", &claims(&other, NONCE, json!(1), json!(2))),
                "another guest's key",
            ),
            (
                "no key's",
                broker.sign("JWT", &json!({"eat_nonce": NONCE, "iat": 1, "exp": 2})),
                "another guest's key",
            ),
            (
                "another session's",
                broker.sign("JWT", &claims(&public, "b3RoZXI", json!(1), json!(2))),
                "another session",
            ),
            (
                "without end",
                broker.sign("JWT", &claims(&public, NONCE, json!(1), Value::Null)),
                "iat before exp",
            ),
            (
                "ends at once",
                broker.sign("JWT", &claims(&public, NONCE, json!(2), json!(2))),
                "iat before exp",
            ),
        ] {
            let error = check(&token).unwrap_err().to_string();
            assert!(error.contains(words), "{name}: {error}");
        }
    }

    #[test]
    fn nonces_travel_in_two_alphabets() {
        assert_eq!(eat_nonce("dGhlIG5vbmNl+w==").unwrap(), "dGhlIG5vbmNl-w");
        for bad in ["", "AAAA", "!", &"A".repeat(88)] {
            assert_eq!(eat_nonce(bad), Err(Error::Nonce), "{bad}");
        }
    }
}

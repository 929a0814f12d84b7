//! What the broker signs: tokens (EAT Attestation Results as JWT), and statements about what it releases.
//!
//! A token says what the broker found, which challenge it answers, for whose key (`cnf`) and until when. The broker that
//! gets one back verifies it, and remembers nothing: any replica with the key can. Others verify it with the keys at [`JWKS`].

use std::time::{SystemTime, UNIX_EPOCH};

use aes_gcm::aead::Generate;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use cloister_attestation::jose;
use cloister_attestation::signing::SigningKey;
use cloister_kbs::jws::{Thumbprint, VerifyingKey};
use cloister_kbs::release::{self, Binding, SignedResponse, Statement};
use cloister_kbs::{Response, TeePubKey};
use serde_json::{Value, json};

use crate::challenge::Nonce;
use crate::config::{Error, SessionConfig, TokenConfig};
use crate::key_file;
use crate::problem::Problem;

/// GET: the public keys of tokens, as a JWK set.
pub const JWKS: &str = "/kbs/v0/token/jwks";

/// Seconds since 1970.
pub fn seconds(now: SystemTime) -> Result<u64, Problem> {
    now.duration_since(UNIX_EPOCH).map(|since| since.as_secs()).map_err(|_| Problem::internal())
}

/// Makes tokens, and knows its own again.
pub struct Issuer {
    key: SigningKey,
    public: VerifyingKey,
    ttl_seconds: u64,
    tolerance_seconds: u64,
}

const TOLERANCE_MAX_SECONDS: u64 = 3600;

/// What a token says that is ours and has not ended.
#[derive(Clone, Debug)]
pub struct Attested {
    /// "snp" or "tdx".
    pub tee: String,
    /// The guest's key, which its evidence binds.
    pub key: TeePubKey,
    /// The challenge, in base64url.
    pub nonce: String,
    /// "accepted" or "rejected".
    pub verdict: String,
    /// MEASUREMENT or MRTD, hexadecimal.
    pub measurement: String,
    /// Claims.
    pub claims: Value,
}

impl Attested {
    /// The chip or platform, as far as the evidence names it.
    pub fn platform(&self) -> &str {
        let names = ["/chip_id", "/platform/ppid"];
        names.iter().find_map(|name| self.claims.pointer(name).and_then(Value::as_str)).unwrap_or("masked")
    }
}

/// The name of a session in logs: the first bytes of its nonce, which both ends know and nobody else needs.
pub fn session_id(nonce: &Nonce) -> String {
    nonce.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The same of a token's nonce.
fn session_of(eat_nonce: &str) -> String {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(eat_nonce).unwrap_or_default();
    hex::encode(bytes.get(..8).unwrap_or_default())
}

impl Attested {
    /// As [`session_id`].
    pub fn session(&self) -> String {
        session_of(&self.nonce)
    }
}

/// Reads the private key that signs.
pub fn signing_key(config: &TokenConfig) -> Result<Option<SigningKey>, Error> {
    let Some(path) = &config.key_file else { return Ok(None) };
    if !path.exists() {
        let why = "there is no key: make one with `cloister-broker key generate`".to_owned();
        return Err(Error::Contents { path: path.clone(), why });
    }
    let key = SigningKey::from_pem(&key_file::read(path)?);
    key.map(Some).map_err(|e| Error::Contents { path: path.clone(), why: e.to_string() })
}

/// The thumbprint that guests pin.
pub fn pin(key: &SigningKey) -> String {
    format!("sha256:{}", jose::thumbprint(key))
}

impl Issuer {
    /// With the key that the configuration names, or one of this process.
    pub fn open(config: &TokenConfig, session: &SessionConfig) -> Result<Self, Error> {
        let key = match signing_key(config)? {
            Some(key) => key,
            None => {
                tracing::warn!(
                    "no [token] key_file: the key ends with this process, so no guest can have it pinned"
                );
                SigningKey::generate_p256(|bytes| *bytes = Generate::generate())?
            }
        };
        let public = VerifyingKey::from_jwk(&jose::jwk(&key));
        // A key that signs here is one that verifies there: the curves are the same two.
        let public = public.map_err(|_| cloister_attestation::signing::KeyError::Unusable)?;
        // More would make the tokens' own times mean nothing.
        let tolerance_seconds = config.clock_tolerance_seconds.min(TOLERANCE_MAX_SECONDS);
        Ok(Self { key, public, ttl_seconds: session.ttl_seconds, tolerance_seconds })
    }

    /// The public key, as a JWK set.
    pub fn jwks(&self) -> Value {
        json!({"keys": [jose::jwk(&self.key)]})
    }

    /// The thumbprint that guests pin.
    pub fn pin(&self) -> String {
        pin(&self.key)
    }

    fn sign(&self, purpose: &str, payload: &Value) -> String {
        let jwk = jose::jwk(&self.key);
        let kid = jose::thumbprint(&self.key);
        let header = json!({"alg": self.key.jws_algorithm(), "typ": purpose, "kid": kid, "jwk": jwk});
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(&header), part(payload));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(self.key.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    /// The token for what was found (the claims of an EAR) in evidence that answers `nonce` and binds `guest`.
    pub fn issue(
        &self,
        mut ear: Value,
        nonce: &Nonce,
        guest: &TeePubKey,
        now: u64,
    ) -> Result<String, Problem> {
        let key = serde_json::to_value(guest).map_err(|_| Problem::internal())?;
        let claims = ear.as_object_mut().ok_or_else(Problem::internal)?;
        claims.insert("iat".into(), now.into());
        claims.insert("nbf".into(), now.into());
        claims.insert("exp".into(), now.saturating_add(self.ttl_seconds).into());
        claims.insert("eat_nonce".into(), BASE64_URL_SAFE_NO_PAD.encode(nonce).into());
        claims.insert("cnf".into(), json!({"jwk": key}));
        Ok(self.sign(release::TOKEN_TYPE, &ear))
    }

    /// What a token says, if it is ours and this is its time.
    pub fn verify(&self, token: &str, now: u64) -> Result<Attested, Problem> {
        let refused = |why: &str| Problem::unauthenticated(format!("the token: {why}"));
        let claims = self.public.verify(token, release::TOKEN_TYPE).map_err(|e| refused(&e.to_string()))?;
        let time = |name: &str| claims.get(name).and_then(Value::as_u64).ok_or_else(|| refused("no time"));
        if now.saturating_add(self.tolerance_seconds) < time("nbf")? {
            return Err(refused("it is not valid yet"));
        }
        if time("exp")? <= now.saturating_sub(self.tolerance_seconds) {
            return Err(refused("it has ended"));
        }
        let cpu = claims.pointer("/submods/cpu0").unwrap_or(&Value::Null);
        let text = |value: &Value, at: &str| value.pointer(at).and_then(Value::as_str).map(str::to_owned);
        let found = cpu.pointer("/ear_attester_claims/cloister/claims").unwrap_or(&Value::Null);
        let attested = || {
            Some(Attested {
                tee: text(found, "/tee")?,
                key: serde_json::from_value(claims.pointer("/cnf/jwk")?.clone()).ok()?,
                nonce: text(&claims, "/eat_nonce")?,
                verdict: text(cpu, "/ear_verifier_claims/cloister/verdict")?,
                measurement: text(found, "/measurement").or_else(|| text(found, "/mrtd"))?,
                claims: found.clone(),
            })
        };
        attested().ok_or_else(|| refused("it says of no guest what it is"))
    }

    /// The message with what the broker says of it.
    pub fn release(&self, message: Response, binding: &Binding<'_>) -> Result<SignedResponse, Problem> {
        let statement = Statement::about(&message, binding).map_err(|_| Problem::internal())?;
        let statement = serde_json::to_value(statement).map_err(|_| Problem::internal())?;
        Ok(SignedResponse { signature: Some(self.sign(release::TYPE, &statement)), message })
    }
}

/// A guest's key in logs.
pub fn key_name(key: &TeePubKey) -> String {
    Thumbprint::of(key).map(|thumbprint| thumbprint.to_string()).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use cloister_kbs::jwe;
    use cloister_kbs::jws::Pins;

    pub(crate) fn ear() -> Value {
        json!({"iat": 1, "submods": {"cpu0": {
            "ear_verifier_claims": {"cloister": {"verdict": "accepted"}},
            "ear_attester_claims": {"cloister": {"claims": {"tee": "snp", "measurement": "aa", "chip_id": "c1"}}},
        }}})
    }

    fn issuer() -> Issuer {
        let session = SessionConfig { ttl_seconds: 60, ..SessionConfig::default() };
        // To the second.
        let token = TokenConfig { clock_tolerance_seconds: 0, ..TokenConfig::default() };
        Issuer::open(&token, &session).unwrap()
    }

    pub(crate) fn guest() -> TeePubKey {
        jwe::public_key(&jwe::generate().unwrap().public_key())
    }

    fn pins(issuer: &Issuer) -> Pins {
        let mut pins = Pins::default();
        pins.add_jwks(issuer.jwks().to_string().as_bytes()).unwrap();
        pins
    }

    #[test]
    fn a_token_says_for_whom_and_until_when_and_is_known_again() {
        let (issuer, guest) = (issuer(), guest());
        let token = issuer.issue(ear(), &[0xfb; 32], &guest, 1000).unwrap();
        let attested = issuer.verify(&token, 1059).unwrap();
        assert_eq!((attested.tee.as_str(), attested.measurement.as_str()), ("snp", "aa"));
        assert_eq!((attested.verdict.as_str(), attested.platform()), ("accepted", "c1"));
        assert_eq!(Thumbprint::of(&attested.key), Thumbprint::of(&guest));
        assert_eq!(attested.session(), "fb".repeat(8));
        assert_eq!(attested.session(), session_id(&[0xfb; 32]));
        release::check_token(&token, &BASE64_URL_SAFE_NO_PAD.encode([0xfb; 32]), &guest, &pins(&issuer))
            .unwrap();
        assert!(issuer.jwks()["keys"][0].get("d").is_none(), "the private key stays here");
        assert_ne!(self::issuer().jwks(), issuer.jwks(), "each start makes its own");
    }

    #[test]
    fn tokens_are_verified_and_never_compared() {
        let (ours, other, guest) = (issuer(), issuer(), guest());
        let token = ours.issue(ear(), &[1; 32], &guest, 1000).unwrap();
        let refused = |token: &str, now| ours.verify(token, now).unwrap_err().detail().to_owned();
        assert!(refused(&token, 1060).contains("ended"));
        assert!(refused(&token, 999).contains("not valid yet"));
        assert!(refused(&other.issue(ear(), &[1; 32], &guest, 1000).unwrap(), 1000).contains("signature"));
        assert!(refused(&ours.sign(release::TYPE, &ear()), 1000).contains("cloister-release"));
        assert!(refused(&ours.sign("JWT", &ear()), 1000).contains("no time"));
        assert!(refused(&ours.issue(json!({}), &[1; 32], &guest, 1000).unwrap(), 1000).contains("no guest"));
        assert!(refused("", 1000).contains("JWS"));
        let (head, signature) = token.rsplit_once('.').unwrap();
        let payload = head.split_once('.').unwrap().1;
        let none = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
        assert!(refused(&format!("{none}.{payload}.{signature}"), 1000).contains("algorithm"));
        assert!(refused(&format!("{none}.{payload}."), 1000).contains("algorithm"));
    }

    #[test]
    fn another_brokers_clock_may_be_a_minute_off() {
        let session = SessionConfig { ttl_seconds: 60, ..SessionConfig::default() };
        let issuer = Issuer::open(&TokenConfig::default(), &session).unwrap();
        let token = issuer.issue(ear(), &[1; 32], &guest(), 1000).unwrap();
        for (now, good) in [(939, false), (940, true), (1119, true), (1120, false)] {
            assert_eq!(issuer.verify(&token, now).is_ok(), good, "{now}");
        }
    }

    #[test]
    fn a_release_is_signed_for_its_request() {
        let (issuer, guest) = (issuer(), guest());
        let binding = Binding { nonce: "bm9uY2Ugb25l", key: &guest, resource: "a/b/c", request: Some("r") };
        let message = jwe::encrypt(&guest, b"secret").unwrap();
        let answer = issuer.release(message, &binding).unwrap();
        release::check(&answer, &binding, &pins(&issuer)).unwrap();
        assert!(release::check(&answer, &binding, &pins(&self::issuer())).is_err());
        let other = Binding { resource: "a/b/d", ..binding };
        assert!(release::check(&answer, &other, &pins(&issuer)).is_err());
    }

    #[test]
    fn a_key_file_that_holds_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        let config = TokenConfig { key_file: Some(path.clone()), ..TokenConfig::default() };
        let missing = Issuer::open(&config, &SessionConfig::default()).err().unwrap().to_string();
        assert!(missing.contains("key generate"), "{missing}");
        key_file::create(&path, "no key").unwrap();
        assert!(Issuer::open(&config, &SessionConfig::default()).is_err());
    }
}

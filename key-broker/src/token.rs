//! The token that an attested guest gets: an EAT Attestation Result (JWT) that says what the broker found.
//!
//! For the broker it is as good as random: it only compares it with the one that it gave. For others it is a statement that
//! they can verify with the key at [`JWKS`], and that is of use only to who has the guest's key (`cnf`).

use std::time::{SystemTime, UNIX_EPOCH};

use aes_gcm::aead::Generate;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cloister_attestation::ear::{Attested, EarContext, ear_jwt};
use cloister_attestation::jose;
use cloister_attestation::signing::SigningKey;
use cloister_attestation::verdict::Verdict;
use cloister_attestation::x509::UnixTime;
use cloister_kbs::TeePubKey;
use serde_json::{Value, json};

use crate::config::{self, Error, SessionConfig, TokenConfig};
use crate::problem::Problem;

/// GET: the public keys of tokens, as a JWK set.
pub const JWKS: &str = "/kbs/v0/token/jwks";

/// Makes tokens.
pub struct Issuer {
    key: SigningKey,
    ttl_seconds: u64,
}

impl Issuer {
    /// Reads the key that the configuration names, or makes one.
    pub fn open(config: &TokenConfig, session: &SessionConfig) -> Result<Self, Error> {
        let key = match &config.key_file {
            Some(path) => SigningKey::from_pem(&config::read_text(path)?)
                .map_err(|e| Error::Contents { path: path.clone(), why: e.to_string() })?,
            None => SigningKey::generate_p256(|bytes| *bytes = Generate::generate())?,
        };
        Ok(Self { key, ttl_seconds: session.ttl_seconds })
    }

    /// The public key, as a JWK set.
    pub fn jwks(&self) -> Value {
        json!({"keys": [jose::jwk(&self.key)]})
    }

    /// The token for a verdict on evidence that answers `nonce` and binds `guest`.
    pub fn issue<C: Attested>(
        &self,
        verdict: &Verdict<C>,
        nonce: &str,
        guest: &TeePubKey,
        now: SystemTime,
    ) -> Result<String, Problem> {
        let now = now.duration_since(UNIX_EPOCH).map_err(|_| Problem::internal())?.as_secs();
        let context = EarContext {
            issued_at: UnixTime(now),
            expires_at: Some(UnixTime(now.saturating_add(self.ttl_seconds))),
            nonce: BASE64_STANDARD.decode(nonce).ok(),
            confirmation: serde_json::to_value(guest).ok(),
        };
        ear_jwt(verdict, &context, &self.key).map_err(|_| Problem::internal())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    use cloister_attestation::claims::Claims;
    use cloister_attestation::verdict::Reasons;

    #[test]
    fn a_token_says_for_whom_and_until_when_and_names_its_key() {
        let session = SessionConfig { ttl_seconds: 60, max: 1 };
        let issuer = Issuer::open(&TokenConfig::default(), &session).unwrap();
        let guest =
            TeePubKey::EC { crv: "P-256".into(), alg: "ECDH-ES+A256KW".into(), x: "x".into(), y: "y".into() };
        let verdict = Verdict::<Claims>::new(Reasons::default(), None, Vec::new());
        let now = UNIX_EPOCH + std::time::Duration::from_secs(1000);
        let token = issuer.issue(&verdict, "dGhlIG5vbmNl+w==", &guest, now).unwrap();
        let parts: Vec<Value> = token
            .split('.')
            .take(2)
            .map(|part| serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap())
            .collect();
        assert_eq!(parts[0]["kid"], issuer.jwks()["keys"][0]["kid"]);
        assert_eq!((&parts[1]["iat"], &parts[1]["exp"]), (&json!(1000), &json!(1060)));
        assert_eq!(
            (&parts[1]["eat_nonce"], &parts[1]["cnf"]["jwk"]["x"]),
            (&json!("dGhlIG5vbmNl-w"), &json!("x"))
        );
        assert!(issuer.jwks()["keys"][0].get("d").is_none(), "the private key stays here");
        let again = Issuer::open(&TokenConfig::default(), &session).unwrap();
        assert_ne!(again.jwks(), issuer.jwks());
    }

    #[test]
    fn a_key_file_that_holds_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        let config = TokenConfig { key_file: Some(path.clone()) };
        assert!(Issuer::open(&config, &SessionConfig::default()).is_err());
        std::fs::write(&path, "no key").unwrap();
        assert!(Issuer::open(&config, &SessionConfig::default()).is_err());
    }
}

//! As much of JOSE as results need: compact JWS (RFC 7515) and JWK (RFC 7517) with ECDSA. There is no verification of
//! tokens here: whoever gets one has a library for that.

use alloc::format;
use alloc::string::String;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::signing::SigningKey;

/// The public key as a JWK, named by its thumbprint.
pub fn jwk(key: &SigningKey) -> Value {
    let (crv, x, y) = members(key);
    let kid = thumbprint(key);
    json!({"kty": "EC", "crv": crv, "x": x, "y": y, "alg": key.jws_algorithm(), "use": "sig", "kid": kid})
}

/// The JWK thumbprint with SHA-256 (RFC 7638).
pub fn thumbprint(key: &SigningKey) -> String {
    let (crv, x, y) = members(key);
    // The required members in lexicographic order and nothing else.
    let canonical = format!(r#"{{"crv":"{crv}","kty":"EC","x":"{x}","y":"{y}"}}"#);
    URL_SAFE_NO_PAD.encode(Sha256::digest(canonical))
}

fn members(key: &SigningKey) -> (&'static str, String, String) {
    let (x, y) = key.public_coordinates();
    let crv = if key.is_p384() { "P-384" } else { "P-256" };
    (crv, URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y))
}

/// Signs `claims` as a JWT.
pub fn sign_jwt(claims: &Value, key: &SigningKey) -> String {
    let header = json!({"alg": key.jws_algorithm(), "typ": "JWT", "kid": thumbprint(key)});
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(format!("{value}"));
    let message = format!("{}.{}", part(&header), part(claims));
    let signature = URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes()));
    format!("{message}.{signature}")
}

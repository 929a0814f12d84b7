//! What a guest and a key broker say to each other: the KBS protocol (RCAR, version 0.4.0), its JWE, and the broker's signature
//! over each release.
//!
//! Both sides use this crate, so it holds no policy and does no I/O. Everything that it reads came over a network: no
//! function here panics, and sizes are the caller's to bound before parsing.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod jwe;
pub mod jws;
pub mod release;

use std::collections::BTreeMap;

pub use kbs_types::{
    Attestation, Challenge, CompositeEvidence, Request, Response, RuntimeData, Tee, TeePubKey,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha384};

/// The protocol version that both sides must speak exactly.
pub const VERSION: &str = "0.4.0";
/// Paths of the protocol.
pub mod path {
    /// POST: a [`super::Request`]; answers a [`super::Challenge`] and the session cookie.
    pub const AUTH: &str = "/kbs/v0/auth";
    /// POST: an [`super::Attestation`]; answers a token.
    pub const ATTEST: &str = "/kbs/v0/attest";
    /// GET below this: `repository/type/tag`; answers a [`super::Response`].
    pub const RESOURCE: &str = "/kbs/v0/resource/";
}
/// The session cookie.
pub const COOKIE: &str = "kbs-session-id";

/// `primary_evidence` of an SEV-SNP guest.
///
/// The report travels as the bytes that the secure processor signed: a structure that is taken apart and put together
/// again is one that others have got wrong (research: virtee/sev 6.1.0).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnpEvidence {
    /// The attestation report, base64.
    pub report: String,
    /// The certificate table that the host gave with it, base64; empty if it gave none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub certificate_table: String,
}

/// `primary_evidence` of a TDX guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TdxEvidence {
    /// The quote, base64.
    pub quote: String,
    /// The event log of the guest's firmware (the area that ACPI's CCEL table points to), base64; empty if there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cc_eventlog: String,
}

/// The answer to an attestation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// A bearer token for resources.
    pub token: String,
}

/// An attestation, refused where it says what nobody here would look at.
///
/// kbs-types' structure of that name ignores what it does not know. A client that sends more expects more to be verified.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StrictAttestation {
    /// Data of the host's for the guest.
    #[serde(default)]
    pub init_data: Option<Value>,
    /// What REPORT_DATA must bind.
    pub runtime_data: StrictRuntimeData,
    /// The evidence.
    pub tee_evidence: StrictEvidence,
}

/// As [`RuntimeData`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StrictRuntimeData {
    /// The challenge's nonce.
    pub nonce: String,
    /// The guest's key.
    pub tee_pubkey: TeePubKey,
}

/// As [`CompositeEvidence`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StrictEvidence {
    /// Of the guest's own TEE.
    pub primary_evidence: Value,
    /// Of devices: JSON in a string, empty if there is none.
    #[serde(default)]
    pub additional_evidence: String,
}

/// An error as the broker reports it (RFC 7807).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What kind, as a URI reference.
    #[serde(rename = "type")]
    pub kind: String,
    /// In words.
    pub detail: String,
}

/// A value with the keys of its objects in order, whichever order serde_json's maps keep: that is a feature of it which
/// any crate of a build may turn on.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let map: BTreeMap<_, _> = map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            Value::Object(map.into_iter().collect())
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

/// REPORT_DATA for this exchange: SHA-384 of the runtime data's canonical JSON (keys sorted, no white space), padded with
/// zeros. It binds the broker's nonce and the guest's key to the report.
pub fn report_data(runtime: &RuntimeData) -> Result<[u8; 64], serde_json::Error> {
    let canonical = serde_json::to_string(&sorted(serde_json::to_value(runtime)?))?;
    let mut data = [0u8; 64];
    for (to, from) in data.iter_mut().zip(Sha384::digest(canonical)) {
        *to = from;
    }
    Ok(data)
}

/// A resource's name: `repository/type/tag`, each a plain word, so that no name means another path.
pub fn resource_name(text: &str) -> Option<[&str; 3]> {
    let plain = |part: &str| {
        !part.is_empty()
            && part.len() <= 64
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && !part.starts_with('.')
    };
    let mut parts = text.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(a), Some(b), Some(c), None) if plain(a) && plain(b) && plain(c) => Some([a, b, c]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_data_depends_on_nonce_and_key() {
        let key = |x: &str| TeePubKey::EC {
            crv: "P-256".into(),
            alg: "ECDH-ES+A256KW".into(),
            x: x.into(),
            y: "y".into(),
        };
        let data = |nonce: &str, x: &str| {
            report_data(&RuntimeData { nonce: nonce.into(), tee_pubkey: key(x) }).unwrap()
        };
        let base = data("n", "x");
        assert_eq!(base, data("n", "x"));
        assert_ne!(base, data("m", "x"));
        assert_ne!(base, data("n", "z"));
        assert_eq!(base[48..], [0; 16]);
        let text =
            r#"{"nonce":"n","tee-pubkey":{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"x","y":"y"}}"#;
        assert_eq!(base[..48], Sha384::digest(text)[..], "canonical form");
    }

    #[test]
    fn resource_names_are_three_plain_words() {
        assert_eq!(resource_name("demo/key/disk-1"), Some(["demo", "key", "disk-1"]));
        for bad in ["", "a/b", "a/b/c/d", "a//c", "../b/c", "a/./c", "a/b/c%2f", "a/b/.hidden", "a/b/ü"] {
            assert_eq!(resource_name(bad), None, "{bad:?}");
        }
    }
}

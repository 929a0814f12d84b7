//! The guest's side of the KBS protocol: request, challenge, attestation, response.
//!
//! Whoever answers is believed only by the signature of a key that the guest was told of in measured memory: not by its address,
//! its name, or the time.

use cloister_kbs as protocol;
use cloister_kbs::jws::Pins;
use cloister_kbs::release::{self, Binding, REQUEST_HEADER, SignedResponse};
use cloister_kbs::{Attestation, Challenge, CompositeEvidence, Problem, Request, RuntimeData, Token, jwe};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::evidence::{self, Evidence};
use crate::http;
use crate::system;
use crate::transport::Address;

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No evidence.
    #[error(transparent)]
    Evidence(#[from] evidence::Error),
    /// No connection.
    #[error("the broker at {address} cannot be reached: {source}")]
    Connect {
        /// Where.
        address: Address,
        /// Why.
        source: std::io::Error,
    },
    /// No answer.
    #[error("the broker's answer to {path}: {source}")]
    Http {
        /// To what.
        path: String,
        /// Why.
        source: http::Error,
    },
    /// The broker says no.
    #[error("the broker refused {path} ({status}): {detail}")]
    Refused {
        /// What.
        path: String,
        /// HTTP status.
        status: u16,
        /// Its reason.
        detail: String,
    },
    /// The answer makes no sense.
    #[error("the broker's answer to {path} makes no sense: {why}")]
    Malformed {
        /// To what.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The answer is not for this guest, or was changed on the way.
    #[error("the secret cannot be opened: {0}")]
    Jwe(#[from] jwe::Error),
    /// The answer is not the broker's, or not to this request.
    #[error("the answer to {path} is not believed: {source}")]
    Forged {
        /// To what.
        path: String,
        /// Why.
        source: release::Error,
    },
    /// Nothing to know the broker by.
    #[error(
        "no key of the broker is pinned, so anybody could answer: put cloister.broker-key=PIN on the kernel's command line, or \
         pass --broker-key PIN; `cloister-broker key pin` prints the PIN"
    )]
    NoPin,
    /// No randomness.
    #[error("no randomness: {0}")]
    Randomness(#[source] std::io::Error),
    /// Not a resource name.
    #[error("{0:?} is not repository/type/tag")]
    Resource(String),
}

/// An attested session.
pub struct Session {
    address: Address,
    pins: Pins,
    key: jwe::SecretKey,
    nonce: String,
    token: Token,
    evidence: Evidence,
}

impl Session {
    /// Proves this guest to the broker. The key is new, and the report binds it together with the broker's nonce; the token
    /// that comes back must be for both, by a pinned key.
    pub fn attest(address: &Address, pins: &Pins) -> Result<Self, Error> {
        if pins.is_empty() {
            return Err(Error::NoPin);
        }
        let request = Request {
            version: protocol::VERSION.into(),
            tee: evidence::tee()?,
            extra_params: serde_json::json!({}),
        };
        let auth = post(address, protocol::path::AUTH, &[], &request)?;
        let challenge: Challenge = parse(protocol::path::AUTH, &auth)?;
        let cookie = auth
            .cookies
            .iter()
            .find(|c| c.starts_with(protocol::COOKIE))
            .cloned()
            .ok_or_else(|| malformed(protocol::path::AUTH, "no session cookie"))?;
        let nonce = release::eat_nonce(&challenge.nonce).map_err(forged(protocol::path::AUTH))?;
        let key = new_key(system::random)?;
        let public = jwe::public_key(&key.public_key());
        let runtime_data = RuntimeData { nonce: challenge.nonce, tee_pubkey: public.clone() };
        let data = protocol::report_data(&runtime_data)
            .map_err(|e| malformed(protocol::path::AUTH, &e.to_string()))?;
        let evidence = evidence::get(&data)?;
        let primary_evidence =
            evidence.primary().map_err(|e| malformed(protocol::path::ATTEST, &e.to_string()))?;
        let attestation = Attestation {
            init_data: None,
            runtime_data,
            tee_evidence: CompositeEvidence { primary_evidence, additional_evidence: String::new() },
        };
        let answer = post(address, protocol::path::ATTEST, &[format!("Cookie: {cookie}")], &attestation)?;
        let token: Token = parse(protocol::path::ATTEST, &answer)?;
        release::check_token(&token.token, &nonce, &public, pins).map_err(forged(protocol::path::ATTEST))?;
        Ok(Self { address: address.clone(), pins: pins.clone(), key, nonce, token, evidence })
    }

    /// The broker's token.
    pub fn token(&self) -> &str {
        &self.token.token
    }

    /// The evidence that was sent.
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// Fetches a secret.
    pub fn secret(&mut self, resource: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        if protocol::resource_name(resource).is_none() {
            return Err(Error::Resource(resource.to_owned()));
        }
        let path = format!("{}{resource}", protocol::path::RESOURCE);
        let mut fresh = [0; 16];
        system::random(&mut fresh).map_err(Error::Randomness)?;
        let request = hex::encode(fresh);
        let headers =
            [format!("Authorization: Bearer {}", self.token.token), format!("{REQUEST_HEADER}: {request}")];
        let answer = send(&self.address, "GET", &path, &headers, None)?;
        let answer: SignedResponse = parse(&path, &answer)?;
        let key = &jwe::public_key(&self.key.public_key());
        let binding = Binding { nonce: &self.nonce, key, resource, request: Some(&request) };
        release::check(&answer, &binding, &self.pins).map_err(forged(&path))?;
        Ok(jwe::decrypt(&self.key, &answer.message)?)
    }
}

/// A key pair of the system's randomness, and of nothing in its place.
fn new_key(mut random: impl FnMut(&mut [u8]) -> std::io::Result<()>) -> Result<jwe::SecretKey, Error> {
    jwe::generate_with(|bytes| random(bytes).map_err(Error::Randomness))
}

fn forged(path: &str) -> impl Fn(release::Error) -> Error {
    move |source| Error::Forged { path: path.to_owned(), source }
}

fn malformed(path: &str, why: &str) -> Error {
    Error::Malformed { path: path.to_owned(), why: why.to_owned() }
}

fn parse<T: DeserializeOwned>(path: &str, answer: &http::Answer) -> Result<T, Error> {
    serde_json::from_slice(&answer.body).map_err(|e| malformed(path, &e.to_string()))
}

fn post<T: Serialize>(
    address: &Address,
    path: &str,
    headers: &[String],
    body: &T,
) -> Result<http::Answer, Error> {
    let body = serde_json::to_vec(body).map_err(|e| malformed(path, &e.to_string()))?;
    send(address, "POST", path, headers, Some(&body))
}

fn send(
    address: &Address,
    method: &str,
    path: &str,
    headers: &[String],
    body: Option<&[u8]>,
) -> Result<http::Answer, Error> {
    let mut stream =
        address.connect().map_err(|source| Error::Connect { address: address.clone(), source })?;
    let answer = http::exchange(&mut *stream, method, path, headers, body)
        .map_err(|source| Error::Http { path: path.to_owned(), source })?;
    if answer.status == 200 {
        return Ok(answer);
    }
    let detail = match serde_json::from_slice::<Problem>(&answer.body) {
        Ok(problem) => problem.detail,
        Err(_) => "no reason given".to_owned(),
    };
    Err(Error::Refused { path: path.to_owned(), status: answer.status, detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_pin_nobody_is_asked() {
        // There is no such address: it is not even tried.
        let address = "tcp:broker.invalid:1".parse().unwrap();
        let error = Session::attest(&address, &Pins::default()).err().unwrap();
        assert!(matches!(error, Error::NoPin) && error.to_string().contains("cloister.broker-key="));
    }

    #[test]
    fn without_randomness_there_is_no_key() {
        let failing = |_: &mut [u8]| Err(std::io::Error::from_raw_os_error(libc::ENOSYS));
        assert!(matches!(new_key(failing).map(drop), Err(Error::Randomness(_))));
        let stuck = |bytes: &mut [u8]| {
            bytes.fill(0);
            Ok(())
        };
        assert!(matches!(new_key(stuck).map(drop), Err(Error::Jwe(jwe::Error::Randomness))));
        assert!(new_key(system::random).is_ok());
    }
}

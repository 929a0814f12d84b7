//! The guest's side of the KBS protocol: request, challenge, attestation, response.

use cloister_kbs as protocol;
use cloister_kbs::{
    Attestation, Challenge, CompositeEvidence, Problem, Request, Response, RuntimeData, Token, jwe,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::evidence::{self, Evidence};
use crate::http;
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
    /// Not a resource name.
    #[error("{0:?} is not repository/type/tag")]
    Resource(String),
}

/// An attested session.
pub struct Session {
    address: Address,
    key: jwe::SecretKey,
    cookie: String,
    token: Token,
    evidence: Evidence,
}

impl Session {
    /// Proves this guest to the broker. The key is new, and the report binds it together with the broker's nonce.
    pub fn attest(address: &Address) -> Result<Self, Error> {
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
        let key = jwe::generate();
        let runtime_data =
            RuntimeData { nonce: challenge.nonce, tee_pubkey: jwe::public_key(&key.public_key()) };
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
        Ok(Self { address: address.clone(), key, cookie, token, evidence })
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
        let headers =
            [format!("Cookie: {}", self.cookie), format!("Authorization: Bearer {}", self.token.token)];
        let answer = send(&self.address, "GET", &path, &headers, None)?;
        let message: Response = parse(&path, &answer)?;
        Ok(jwe::decrypt(&self.key, &message)?)
    }
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

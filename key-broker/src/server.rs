//! The protocol: auth, attest, resource.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Instant, SystemTime};

use aes_gcm::aead::Generate;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cloister_kbs::{Attestation, COOKIE, Challenge, Request, Token, VERSION, jwe, path, resource_name};
use cloister_policies::{Policy, Question, Resource};
use serde::de::DeserializeOwned;

use crate::config::{self, Config};
use crate::problem::Problem;
use crate::session::{Attested, Refusal, Sessions};
use crate::store::{self, Store};
use crate::token::{self, Issuer};
use crate::verify::{SUPPORTED, Verifier};

/// Bytes of a request body at most: a report or quote, a certificate chain or event log, and room.
const MAX_BODY: usize = 512 << 10;

/// What requests share.
pub struct State {
    sessions: Mutex<Sessions>,
    store: Store,
    policy: Policy,
    reference: Vec<serde_json::Value>,
    verifier: Verifier,
    issuer: Issuer,
}

impl State {
    /// Opens everything that the configuration names.
    pub fn open(config: Config) -> Result<Self, String> {
        let text = match &config.policy.release {
            Some(path) => config::read_text(path).map_err(|e| e.to_string())?,
            None => cloister_policies::DEFAULT.to_owned(),
        };
        let policy = Policy::new(&text).map_err(|e| e.to_string())?;
        let reference = config
            .reference_values
            .iter()
            .map(|path| references(path))
            .collect::<Result<Vec<_>, _>>()?
            .concat();
        if reference.is_empty() {
            tracing::warn!("no reference values: the default policy releases nothing");
        }
        let verifier = Verifier::open(&config).map_err(|e| e.to_string())?;
        let issuer = Issuer::open(&config.token, &config.session).map_err(|e| e.to_string())?;
        let store = Store::open(&config.store).map_err(|e| e.to_string())?;
        Ok(Self {
            sessions: Mutex::new(Sessions::new(config.session)),
            store,
            policy,
            reference,
            verifier,
            issuer,
        })
    }

    /// No method of `Sessions` panics, so a poisoned lock holds whole sessions.
    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The reference value in a file, or the array of them.
fn references(path: &std::path::Path) -> Result<Vec<serde_json::Value>, String> {
    let text = config::read_text(path).map_err(|e| e.to_string())?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    let values = match value {
        serde_json::Value::Array(values) => values,
        value => vec![value],
    };
    // SNP's and TDX's names for it.
    let measured = |value: &serde_json::Value| {
        ["measurement", "mrtd"].iter().any(|key| value.get(key).is_some_and(serde_json::Value::is_string))
    };
    match values.is_empty() || !values.iter().all(measured) {
        true => Err(format!("{}: no measurement in it", path.display())),
        false => Ok(values),
    }
}

type Shared = axum::extract::State<Arc<State>>;

/// The routes.
pub fn router(state: Arc<State>) -> Router {
    Router::new()
        .route(path::AUTH, post(auth))
        .route(path::ATTEST, post(attest))
        .route(token::JWKS, get(jwks))
        .route("/kbs/v0/resource/{repository}/{kind}/{tag}", get(resource))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(state)
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .map_err(|e| Problem::bad_request(format!("the body is not what this path takes: {e}")))
}

/// The session cookie's value.
fn cookie(headers: &HeaderMap) -> Option<&str> {
    let all =
        headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(';'));
    all.filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == COOKIE)
        .map(|(_, value)| value)
}

async fn auth(state: Shared, body: Bytes) -> Result<Response, Problem> {
    let request: Request = parse(&body)?;
    if request.version != VERSION {
        return Err(Problem::unsupported(format!(
            "protocol version {:?}; this broker speaks {VERSION}",
            request.version
        )));
    }
    if !SUPPORTED.contains(&request.tee) {
        let supported = SUPPORTED.map(|tee| tee.as_ref().to_owned()).join(" and ");
        return Err(Problem::unsupported(format!(
            "TEE {:?}; this broker verifies {supported}",
            request.tee.as_ref()
        )));
    }
    let nonce = BASE64_STANDARD.encode(<[u8; 32]>::generate());
    let id =
        state.sessions().begin(request.tee, nonce.clone(), Instant::now()).map_err(
            |refusal| match refusal {
                Refusal::Full => Problem::busy(),
                Refusal::Unknown => Problem::internal(),
            },
        )?;
    let challenge = Challenge { nonce, extra_params: serde_json::json!({}) };
    let cookie = format!("{COOKIE}={id}; Path=/kbs; HttpOnly; SameSite=Strict");
    Ok(([(header::SET_COOKIE, cookie)], Json(challenge)).into_response())
}

async fn jwks(state: Shared) -> Json<serde_json::Value> {
    Json(state.issuer.jwks())
}

async fn attest(state: Shared, headers: HeaderMap, body: Bytes) -> Result<Json<Token>, Problem> {
    let answer = judge(&state, &headers, &body);
    match &answer {
        Ok(attested) => {
            tracing::info!(measurement = %attested.measurement, verdict = attested.verdict, "attested")
        }
        Err(problem) => tracing::warn!(reason = problem.detail(), "attestation refused"),
    }
    answer.map(|attested| Json(Token { token: attested.token }))
}

fn judge(state: &State, headers: &HeaderMap, body: &Bytes) -> Result<Attested, Problem> {
    let id = cookie(headers).ok_or_else(|| Problem::unauthenticated("no session cookie"))?;
    let attestation: Attestation = parse(body)?;
    let (tee, nonce) = state
        .sessions()
        .take_nonce(id, Instant::now())
        .map_err(|_| Problem::unauthenticated("no such session, or its nonce was used"))?;
    if attestation.runtime_data.nonce != nonce {
        return Err(Problem::attestation_failed("nonce-mismatch: the evidence answers another challenge"));
    }
    let report_data = cloister_kbs::report_data(&attestation.runtime_data)
        .map_err(|e| Problem::bad_request(format!("runtime-data: {e}")))?;
    let now = SystemTime::now();
    let evidence = attestation.tee_evidence.primary_evidence;
    let judgement = state.verifier.judge(tee, evidence, &report_data, now)?;
    let token = state.issuer.issue(&judgement.verdict, &nonce, &attestation.runtime_data.tee_pubkey, now)?;
    let attested = Attested {
        tee,
        key: attestation.runtime_data.tee_pubkey,
        measurement: judgement.measurement,
        verdict: "accepted",
        claims: judgement.claims,
        token,
    };
    state
        .sessions()
        .attested(id, attested.clone())
        .map_err(|_| Problem::unauthenticated("the session ended"))?;
    Ok(attested)
}

async fn resource(
    state: Shared,
    headers: HeaderMap,
    Path((repository, kind, tag)): Path<(String, String, String)>,
) -> Result<Json<cloister_kbs::Response>, Problem> {
    let id = cookie(&headers).ok_or_else(|| Problem::unauthenticated("no session cookie"))?;
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "));
    let attested = state
        .sessions()
        .get(id, token, Instant::now())
        .map_err(|_| Problem::unauthenticated("this session is not attested"))?;
    let name = format!("{repository}/{kind}/{tag}");
    if resource_name(&name).is_none() {
        return Err(Problem::bad_request("not a resource name"));
    }
    let question = Question {
        resource: Resource { repository: &repository, kind: &kind, tag: &tag },
        tee: attested.tee.as_ref(),
        verdict: attested.verdict,
        measurement: &attested.measurement,
        claims: &attested.claims,
        reference: &state.reference,
    };
    if !state.policy.allows(&question) {
        tracing::warn!(resource = %name, measurement = %attested.measurement, "release denied by policy");
        return Err(Problem::policy_denied());
    }
    let secret = state.store.get(&name).map_err(|error| {
        tracing::warn!(resource = %name, %error, "no release");
        match error {
            store::Error::Missing(_) => Problem::policy_denied(),
            _ => Problem::internal(),
        }
    })?;
    let message = jwe::encrypt(&attested.key, &secret).map_err(|e| Problem::bad_request(e.to_string()))?;
    tracing::info!(resource = %name, measurement = %attested.measurement, "released");
    Ok(Json(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_reference_value_or_an_array_of_them() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        for (text, count) in [
            (r#"{"measurement": "ab"}"#, Some(1)),
            (r#"{"mrtd": "ab", "cpus": 1}"#, Some(1)),
            (r#"[{"measurement": "ab"}, {"measurement": "cd"}]"#, Some(2)),
            (r#"[{"measurement": "ab"}, {"cpus": 1}]"#, None),
            (r#"[[{"measurement": "ab"}]]"#, None),
            ("[]", None),
            (r#"{"measurement": 1}"#, None),
            ("1", None),
            ("", None),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(references(&path).map(|values| values.len()).ok(), count, "{text}");
        }
    }
}

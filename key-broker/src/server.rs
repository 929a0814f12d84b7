//! The protocol: auth, attest, resource. Nothing of a session is kept between two of them: the client carries it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{Extension, Path};
use axum::http::{HeaderMap, Request, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use cloister_kbs::release::{Binding, MAX_REQUEST, REQUEST_HEADER, SignedResponse};
use cloister_kbs::{
    COOKIE, Challenge, RuntimeData, StrictAttestation, Token, VERSION, jwe, path, resource_name,
};
use cloister_policies::{Policy, Question, Resource};
use serde::de::DeserializeOwned;

use crate::challenge::{Nonce, Sealer};
use crate::config::{self, Config};
use crate::connections::Peer;
use crate::gate::Gate;
use crate::known;
use crate::problem::Problem;
use crate::spent::{InMemory, Nonces, Spent};
use crate::store::{self, Store};
use crate::token::{self, Attested, Issuer, seconds};
use crate::verify::{Judge, SUPPORTED, Verifier};

/// Bytes of a request body at most: a report or quote, a certificate chain or event log, and room.
const MAX_BODY: usize = 512 << 10;

/// What requests share.
pub struct State {
    sealer: Sealer,
    nonces: Box<dyn Nonces>,
    store: Store,
    policy: Policy,
    reference: Vec<serde_json::Value>,
    verifier: Box<dyn Judge>,
    issuer: Issuer,
    /// Two pools: who has no token cannot fill the one that tokens open.
    attestations: Gate,
    releases: Gate,
    body_time: Duration,
}

impl State {
    /// Opens everything that the configuration names.
    pub fn open(config: Config) -> Result<Self, String> {
        let verifier = Verifier::open(&config, SystemTime::now())?;
        Self::with(config, Box::new(verifier))
    }

    /// The same, with evidence judged by `verifier`.
    fn with(config: Config, verifier: Box<dyn Judge>) -> Result<Self, String> {
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
        let issuer = Issuer::open(&config.token, &config.session).map_err(|e| e.to_string())?;
        tracing::info!(pin = issuer.pin(), "signing key");
        let limits = config.limits;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let gate =
            || Gate::new(if limits.workers == 0 { processors } else { limits.workers }, limits.waiting);
        Ok(Self {
            sealer: Sealer::open(&config.session).map_err(|e| e.to_string())?,
            nonces: Box::new(InMemory::new(config.session.max)),
            store: Store::open(&config.store).map_err(|e| e.to_string())?,
            policy,
            reference,
            verifier,
            issuer,
            attestations: gate(),
            releases: gate(),
            body_time: Duration::from_millis(limits.body_ms),
        })
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
    let whole = middleware::from_fn_with_state(state.clone(), whole_request);
    Router::new()
        .route(path::AUTH, post(auth))
        .route(path::ATTEST, post(attest))
        .route(token::JWKS, get(jwks))
        .route("/kbs/v0/resource/{repository}/{kind}/{tag}", get(resource))
        .layer(whole)
        .with_state(state)
}

/// Takes the whole body in bounded size and time, before anything is done for the request.
async fn whole_request(
    state: Shared,
    Extension(peer): Extension<Peer>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let (head, body) = request.into_parts();
    if body.size_hint().lower() > MAX_BODY as u64 {
        return closing(Problem::too_large());
    }
    let body = match tokio::time::timeout(state.body_time, axum::body::to_bytes(body, MAX_BODY)).await {
        Err(_) => return closing(Problem::slow()),
        Ok(Err(_)) => return closing(Problem::too_large()),
        Ok(Ok(body)) => body,
    };
    peer.has_asked();
    next.run(Request::from_parts(head, Body::from(body))).await
}

/// The rest of the request is not wanted, so the connection cannot carry another.
fn closing(problem: Problem) -> Response {
    ([(header::CONNECTION, "close")], problem).into_response()
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

fn set_cookie(value: &str) -> [(header::HeaderName, String); 1] {
    [(header::SET_COOKIE, format!("{COOKIE}={value}; Path=/kbs; HttpOnly; SameSite=Strict"))]
}

async fn auth(state: Shared, body: Bytes) -> Result<Response, Problem> {
    let request: cloister_kbs::Request = parse(&body)?;
    if request.version != VERSION {
        return Err(Problem::unsupported(format!(
            "protocol version {:?}; this broker speaks {VERSION}",
            request.version
        )));
    }
    if !state.verifier.serves(request.tee) {
        let served = SUPPORTED.iter().filter(|tee| state.verifier.serves(**tee)).map(|tee| tee.as_ref());
        return Err(Problem::unsupported(format!(
            "TEE {:?}; this broker verifies {}",
            request.tee.as_ref(),
            served.collect::<Vec<_>>().join(" and ")
        )));
    }
    hash_algorithm(&request.extra_params)?;
    let now = seconds(SystemTime::now())?;
    let (challenge, cookie) = state.sealer.begin(request.tee, now).ok_or_else(Problem::internal)?;
    let challenge = Challenge { nonce: challenge.text(), extra_params: serde_json::json!({}) };
    Ok((set_cookie(&cookie), Json(challenge)).into_response())
}

/// A client that lists what it can hash with must be able to do it as we do.
fn hash_algorithm(extra: &serde_json::Value) -> Result<(), Problem> {
    let offered = extra.get("supported-hash-algorithms").and_then(serde_json::Value::as_array);
    let ours =
        |name: &serde_json::Value| name.as_str().is_some_and(|name| name.eq_ignore_ascii_case("sha384"));
    match offered {
        Some(names) if !names.is_empty() && !names.iter().any(ours) => {
            Err(Problem::unsupported("none of the hash algorithms is sha384, which this broker uses"))
        }
        _ => Ok(()),
    }
}

async fn jwks(state: Shared) -> Json<serde_json::Value> {
    Json(state.issuer.jwks())
}

async fn attest(
    state: Shared,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let id = cookie(&headers).ok_or_else(|| Problem::unauthenticated("no session cookie"))?.to_owned();
    let shared = state.0.clone();
    let answer = state.attestations.run(move || judge(&shared, &id, &body, &peer)).await;
    answer.map(|token| (set_cookie(&token), Json(Token { token })).into_response())
}

/// What could not be looked at is refused, not ignored: whoever sent it believes that it was.
fn nothing_unverified(attestation: &StrictAttestation) -> Result<(), Problem> {
    if attestation.init_data.is_some() {
        return Err(Problem::bad_request("init-data is not verified by this broker: send none"));
    }
    if !attestation.tee_evidence.additional_evidence.is_empty() {
        return Err(Problem::bad_request(
            "additional_evidence of devices is not verified by this broker: send an empty one",
        ));
    }
    Ok(())
}

/// Judges evidence and logs what became of it; the token.
fn judge(state: &State, cookie: &str, body: &Bytes, peer: &Peer) -> Result<String, Problem> {
    let now = SystemTime::now();
    let challenge = state
        .sealer
        .open_cookie(cookie, seconds(now)?)
        .ok_or_else(|| Problem::unauthenticated("no such challenge, or it has ended"))?;
    let session = token::session_id(&challenge.nonce);
    let result = (|| {
        let attestation: StrictAttestation = parse(body)?;
        nothing_unverified(&attestation)?;
        if attestation.runtime_data.nonce != challenge.text() {
            return Err(Problem::attestation_failed(
                "nonce-mismatch: the evidence answers another challenge",
            ));
        }
        let key = attestation.runtime_data.tee_pubkey;
        let runtime = RuntimeData { nonce: attestation.runtime_data.nonce, tee_pubkey: key.clone() };
        let report_data = cloister_kbs::report_data(&runtime)
            .map_err(|e| Problem::bad_request(format!("runtime-data: {e}")))?;
        let evidence = attestation.tee_evidence.primary_evidence;
        let judgement = state.verifier.judge(challenge.tee, evidence, &report_data, now)?;
        spend(state, &challenge.nonce, challenge.ends, seconds(now)?)?;
        let token = state.issuer.issue(judgement.ear.clone(), &challenge.nonce, &key, seconds(now)?)?;
        Ok((judgement, key, token))
    })();
    match result {
        Ok((judgement, key, token)) => {
            let unchecked = judgement.unchecked.join(" ");
            tracing::info!(
                measurement = %judgement.measurement, tee = challenge.tee.as_ref(), %session, peer = %peer.name,
                key = token::key_name(&key), %unchecked, "attested"
            );
            Ok(token)
        }
        Err(problem) => {
            tracing::warn!(reason = problem.detail(), %session, peer = %peer.name, "attestation refused");
            Err(problem)
        }
    }
}

fn spend(state: &State, nonce: &Nonce, ends: u64, now: u64) -> Result<(), Problem> {
    match state.nonces.spend(nonce, ends, now) {
        Spent::Now => Ok(()),
        Spent::Before => Err(Problem::unauthenticated("the nonce was used")),
        Spent::Full => Err(Problem::busy()),
    }
}

async fn resource(
    state: Shared,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    Path(name): Path<(String, String, String)>,
) -> Result<Json<SignedResponse>, Problem> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "));
    // Clients without a place for tokens bring it back as the cookie that it also is.
    let token = bearer.or_else(|| cookie(&headers));
    let token = token.ok_or_else(|| Problem::unauthenticated("neither token nor session cookie"))?.to_owned();
    let request = request_name(&headers)?;
    let shared = state.0.clone();
    let work = move || release(&shared, &token, &name, request.as_deref(), &peer);
    state.releases.run(work).await.map(Json)
}

/// What the answer must repeat, if the guest wants that.
fn request_name(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(REQUEST_HEADER) else { return Ok(None) };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    match value.to_str() {
        Ok(text) if text.len() <= MAX_REQUEST && text.bytes().all(plain) => Ok(Some(text.to_owned())),
        _ => Err(Problem::bad_request(format!("{REQUEST_HEADER}: at most {MAX_REQUEST} letters and digits"))),
    }
}

/// Asks the policy, and signs what it releases.
fn release(
    state: &State,
    token: &str,
    (repository, kind, tag): &(String, String, String),
    request: Option<&str>,
    peer: &Peer,
) -> Result<SignedResponse, Problem> {
    let attested = state.issuer.verify(token, seconds(SystemTime::now())?)?;
    let name = format!("{repository}/{kind}/{tag}");
    if resource_name(&name).is_none() {
        return Err(Problem::bad_request("not a resource name"));
    }
    let session = attested.session();
    let (measurement, platform) = (attested.measurement.as_str(), attested.platform());
    if !state.policy.allows(&question(state, &attested, (repository, kind, tag))) {
        let guest = known::describe(&state.reference, &attested.tee, measurement, &attested.claims);
        tracing::warn!(
            resource = %name, %measurement, guest, verdict = attested.verdict, tee = attested.tee, platform, %session,
            peer = %peer.name, "release denied by policy"
        );
        return Err(Problem::policy_denied());
    }
    let secret = state.store.get(&name).map_err(|error| {
        tracing::warn!(resource = %name, %error, %session, peer = %peer.name, "no release");
        match error {
            store::Error::Missing(_) => Problem::policy_denied(),
            _ => Problem::internal(),
        }
    })?;
    let message = jwe::encrypt(&attested.key, &secret).map_err(|e| Problem::bad_request(e.to_string()))?;
    let binding = Binding { nonce: &attested.nonce, key: &attested.key, resource: &name, request };
    let answer = state.issuer.release(message, &binding)?;
    tracing::info!(
        resource = %name, %measurement, tee = attested.tee, platform, %session, peer = %peer.name, "released"
    );
    Ok(answer)
}

fn question<'a>(
    state: &'a State,
    attested: &'a Attested,
    (repository, kind, tag): (&'a str, &'a str, &'a str),
) -> Question<'a> {
    Question {
        resource: Resource { repository, kind, tag },
        tee: &attested.tee,
        verdict: &attested.verdict,
        measurement: &attested.measurement,
        claims: &attested.claims,
        reference: &state.reference,
    }
}

#[cfg(test)]
mod tests;

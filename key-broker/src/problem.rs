//! Errors as guests see them (RFC 7807). What a guest learns is enough to act on; what it must not learn is only logged.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// When to come back, if there is too much to do.
const RETRY_SECONDS: &str = "1";

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    kind: &'static str,
    detail: String,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self { status, kind, detail: detail.into() }
    }

    /// The request is not understood.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", detail)
    }
    /// Another protocol version or TEE.
    pub fn unsupported(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unsupported", detail)
    }
    /// No session, or one that is not attested.
    pub fn unauthenticated(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
    }
    /// The evidence was refused.
    pub fn attestation_failed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "attestation-failed", detail)
    }
    /// The policy says no, or there is no such resource: which of the two is nobody's business.
    pub fn policy_denied() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "policy-denied", "the release policy does not allow this")
    }
    /// More than is done at once.
    pub fn busy() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "too much to do; try again later")
    }
    /// The client takes too long.
    pub fn slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "slow", "the request did not come in time")
    }
    /// The request is too long.
    pub fn too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "the request is too long")
    }
    /// Our fault.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the broker failed; its log says why")
    }

    /// The reason, for the log.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body =
            cloister_kbs::Problem { kind: format!("urn:cloister:broker:{}", self.kind), detail: self.detail };
        let mut response =
            (self.status, [(header::CONTENT_TYPE, "application/problem+json")], Json(body)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_SECONDS));
        }
        response
    }
}

//! Errors as guests see them (RFC 7807). What a guest learns is enough to act on; what it must not learn is only logged.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

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
    /// Too many sessions.
    pub fn busy() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many sessions; try again later")
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
        (self.status, [(header::CONTENT_TYPE, "application/problem+json")], Json(body)).into_response()
    }
}

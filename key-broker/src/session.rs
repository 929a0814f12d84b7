//! Sessions: one nonce each, used once, bounded in number and time. The clock is the caller's.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use aes_gcm::aead::Generate;
use cloister_kbs::{Tee, TeePubKey};

use crate::config::SessionConfig;

/// What attestation established.
#[derive(Clone, Debug)]
pub struct Attested {
    /// What the guest said that it is, and its evidence showed.
    pub tee: Tee,
    /// The guest's key, which its evidence binds.
    pub key: TeePubKey,
    /// MEASUREMENT or MRTD, hexadecimal.
    pub measurement: String,
    /// "accepted" or "rejected".
    pub verdict: &'static str,
    /// Claims.
    pub claims: serde_json::Value,
    /// The bearer token.
    pub token: String,
}

#[derive(Debug)]
enum State {
    /// The nonce is out.
    Challenged { tee: Tee, nonce: String },
    /// An attestation came; the nonce is spent.
    Spent,
    /// It was good.
    Attested(Box<Attested>),
}

#[derive(Debug)]
struct Session {
    begun: Instant,
    state: State,
}

/// All sessions.
#[derive(Debug)]
pub struct Sessions {
    limits: SessionConfig,
    by_id: HashMap<String, Session>,
}

/// Why there is no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Too many.
    Full,
    /// Unknown, expired, or not in the state that the request needs.
    Unknown,
}

/// Random bytes as hexadecimal digits.
fn random_hex<const N: usize>() -> String {
    hex::encode(<[u8; N]>::generate())
}

impl Sessions {
    /// No sessions.
    pub fn new(limits: SessionConfig) -> Self {
        Self { limits, by_id: HashMap::new() }
    }

    fn expire(&mut self, now: Instant) {
        let ttl = Duration::from_secs(self.limits.ttl_seconds);
        self.by_id.retain(|_, session| now.saturating_duration_since(session.begun) < ttl);
    }

    /// A new session of a guest of that kind, for a nonce; its ID.
    pub fn begin(&mut self, tee: Tee, nonce: String, now: Instant) -> Result<String, Refusal> {
        self.expire(now);
        if self.by_id.len() >= self.limits.max {
            return Err(Refusal::Full);
        }
        let id = random_hex::<16>();
        self.by_id.insert(id.clone(), Session { begun: now, state: State::Challenged { tee, nonce } });
        Ok(id)
    }

    /// Takes the nonce: whatever becomes of this attestation, the nonce is not good for another.
    pub fn take_nonce(&mut self, id: &str, now: Instant) -> Result<(Tee, String), Refusal> {
        self.expire(now);
        let session = self.by_id.get_mut(id).ok_or(Refusal::Unknown)?;
        match std::mem::replace(&mut session.state, State::Spent) {
            State::Challenged { tee, nonce } => Ok((tee, nonce)),
            other => {
                session.state = other;
                Err(Refusal::Unknown)
            }
        }
    }

    /// The attestation was good.
    pub fn attested(&mut self, id: &str, attested: Attested) -> Result<(), Refusal> {
        let session = self.by_id.get_mut(id).ok_or(Refusal::Unknown)?;
        session.state = State::Attested(Box::new(attested));
        Ok(())
    }

    /// The attested session with this cookie and, if one is given, this token.
    pub fn get(&mut self, id: &str, token: Option<&str>, now: Instant) -> Result<Attested, Refusal> {
        self.expire(now);
        match self.by_id.get(id).map(|session| &session.state) {
            Some(State::Attested(attested)) if token.is_none_or(|t| t == attested.token) => {
                Ok((**attested).clone())
            }
            _ => Err(Refusal::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attested(token: &str) -> Attested {
        Attested {
            tee: Tee::Snp,
            key: TeePubKey::EC { crv: String::new(), alg: String::new(), x: String::new(), y: String::new() },
            measurement: String::new(),
            verdict: "accepted",
            claims: serde_json::Value::Null,
            token: token.into(),
        }
    }

    #[test]
    fn a_nonce_is_good_once() {
        let (mut sessions, now) = (Sessions::new(SessionConfig::default()), Instant::now());
        let id = sessions.begin(Tee::Tdx, "n".into(), now).unwrap();
        assert!(matches!(sessions.take_nonce(&id, now), Ok((Tee::Tdx, nonce)) if nonce == "n"));
        assert_eq!(sessions.take_nonce(&id, now).err(), Some(Refusal::Unknown), "spent");
        assert_eq!(sessions.take_nonce("other", now).err(), Some(Refusal::Unknown));
        assert!(sessions.get(&id, None, now).is_err(), "not attested");
        sessions.attested(&id, attested("t")).unwrap();
        assert!(sessions.get(&id, Some("t"), now).is_ok() && sessions.get(&id, None, now).is_ok());
        assert!(sessions.get(&id, Some("u"), now).is_err(), "another token");
        assert_eq!(sessions.take_nonce(&id, now).err(), Some(Refusal::Unknown), "still spent");
        assert!(sessions.get(&id, None, now).is_ok(), "a second attempt does not end the session");
    }

    #[test]
    fn sessions_end_and_are_bounded() {
        let limits = SessionConfig { ttl_seconds: 10, max: 2 };
        let (mut sessions, now) = (Sessions::new(limits), Instant::now());
        let id = sessions.begin(Tee::Snp, "a".into(), now).unwrap();
        sessions.begin(Tee::Snp, "b".into(), now).unwrap();
        assert_eq!(sessions.begin(Tee::Snp, "c".into(), now), Err(Refusal::Full));
        let later = now + Duration::from_secs(10);
        assert_eq!(sessions.take_nonce(&id, later).err(), Some(Refusal::Unknown), "expired");
        assert!(sessions.begin(Tee::Snp, "d".into(), later).is_ok());
    }
}

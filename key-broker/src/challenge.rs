//! Challenges without memory: what the broker must know again is in the session cookie, authenticated with a key that only
//! brokers have. An unauthenticated client costs no memory, and any replica with the key takes any other's challenge.
//!
//! It is authenticated and not encrypted, since all of it is the client's to know: the nonce is the challenge itself.

use aes_gcm::aead::Generate;
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use cloister_kbs::Tee;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::config::{Error, SessionConfig};
use crate::key_file;

/// A nonce: as long as REPORT_DATA leaves room to be bound safely.
pub type Nonce = [u8; 32];

const VERSION: u8 = 1;
/// Version, TEE, end, nonce.
const BODY: usize = 1 + 1 + 8 + 32;
const TAG: usize = 32;
/// No other use of the key has this label.
const LABEL: &[u8] = b"cloister-broker challenge\n";

/// What a guest must answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// What the guest said that it is.
    pub tee: Tee,
    /// What its evidence must bind.
    pub nonce: Nonce,
    /// Until when, in seconds since 1970.
    pub ends: u64,
}

impl Challenge {
    /// The nonce as the protocol carries it.
    pub fn text(&self) -> String {
        BASE64_STANDARD.encode(self.nonce)
    }
}

/// Makes challenges and knows them again.
pub struct Sealer {
    key: Zeroizing<[u8; 32]>,
    ttl_seconds: u64,
}

fn number(tee: Tee) -> Option<u8> {
    match tee {
        Tee::Snp => Some(1),
        Tee::Tdx => Some(2),
        _ => None,
    }
}

impl Sealer {
    /// With the key that the configuration names, or one of this process.
    pub fn open(config: &SessionConfig) -> Result<Self, Error> {
        let key = match &config.key_file {
            Some(path) => key_file::read_hex(path)?,
            None => Zeroizing::new(Generate::generate()),
        };
        Ok(Self { key, ttl_seconds: config.ttl_seconds })
    }

    fn mac(&self, body: &[u8]) -> Option<Hmac<Sha256>> {
        // Any key length is good for HMAC.
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.key[..]).ok()?;
        Some(mac.chain_update(LABEL).chain_update(body))
    }

    /// A new challenge and its cookie; `None` for a TEE that is not judged here.
    pub fn begin(&self, tee: Tee, now: u64) -> Option<(Challenge, String)> {
        let ends = now.saturating_add(self.ttl_seconds);
        let challenge = Challenge { tee, nonce: Generate::generate(), ends };
        let mut body = vec![VERSION, number(tee)?];
        body.extend_from_slice(&ends.to_be_bytes());
        body.extend_from_slice(&challenge.nonce);
        let tag = self.mac(&body)?.finalize().into_bytes();
        body.extend_from_slice(&tag);
        Some((challenge, BASE64_URL_SAFE_NO_PAD.encode(body)))
    }

    /// The challenge in a cookie, if it is ours and has not ended.
    pub fn open_cookie(&self, cookie: &str, now: u64) -> Option<Challenge> {
        let bytes: [u8; BODY + TAG] = BASE64_URL_SAFE_NO_PAD.decode(cookie).ok()?.try_into().ok()?;
        let (body, tag) = bytes.split_at_checked(BODY)?;
        // Compares in constant time.
        self.mac(body)?.verify_slice(tag).ok()?;
        let (head, rest) = body.split_at_checked(2)?;
        let (ends, nonce) = rest.split_at_checked(8)?;
        let [VERSION, kind] = head else { return None };
        let tee = [Tee::Snp, Tee::Tdx].into_iter().find(|tee| number(*tee) == Some(*kind))?;
        let ends = u64::from_be_bytes(ends.try_into().ok()?);
        (now < ends).then_some(Challenge { tee, nonce: nonce.try_into().ok()?, ends })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_comes_back_until_it_ends_and_only_to_who_has_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        key_file::create(&path, &"ab".repeat(32)).unwrap();
        let shared = SessionConfig { ttl_seconds: 10, key_file: Some(path), ..SessionConfig::default() };
        let (one, replica) = (Sealer::open(&shared).unwrap(), Sealer::open(&shared).unwrap());
        let stranger = Sealer::open(&SessionConfig::default()).unwrap();
        let (challenge, cookie) = one.begin(Tee::Tdx, 100).unwrap();
        assert_eq!(one.open_cookie(&cookie, 100), Some(challenge));
        assert_eq!(replica.open_cookie(&cookie, 109), Some(challenge));
        assert_eq!(one.open_cookie(&cookie, 110), None, "ended");
        assert_eq!(stranger.open_cookie(&cookie, 100), None);
        assert_ne!(one.begin(Tee::Tdx, 100).unwrap().0.nonce, challenge.nonce);
        assert!(one.begin(Tee::Sgx, 100).is_none());
    }

    #[test]
    fn a_cookie_is_ours_to_the_last_bit() {
        let sealer = Sealer::open(&SessionConfig::default()).unwrap();
        let cookie = sealer.begin(Tee::Snp, 100).unwrap().1;
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(&cookie).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(sealer.open_cookie(&BASE64_URL_SAFE_NO_PAD.encode(changed), 100), None, "bit {bit}");
        }
        for bad in ["", "AAAA", &cookie[1..], &format!("{cookie}A")] {
            assert_eq!(sealer.open_cookie(bad, 100), None, "{bad}");
        }
    }
}

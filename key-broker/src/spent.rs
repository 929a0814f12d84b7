//! Which nonces were used. Single use is decided here and nowhere else: by one atomic step, when evidence was found good and
//! before anything is given for it. So only who can attest costs memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::challenge::Nonce;

/// What became of a nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// It is this attestation's, and no other's.
    Now,
    /// It was used.
    Before,
    /// It cannot be remembered, so it cannot be used.
    Full,
}

/// Where nonces are remembered until their challenges end. Replicas share one.
pub trait Nonces: Send + Sync {
    /// Uses a nonce whose challenge ends at `ends`. Of all calls for one nonce, at most one gets [`Spent::Now`].
    fn spend(&self, nonce: &Nonce, ends: u64, now: u64) -> Spent;
}

/// Of one process.
pub struct InMemory {
    most: usize,
    ends: Mutex<HashMap<Nonce, u64>>,
}

impl InMemory {
    /// Room for so many at once.
    pub fn new(most: usize) -> Self {
        Self { most, ends: Mutex::default() }
    }
}

impl Nonces for InMemory {
    fn spend(&self, nonce: &Nonce, ends: u64, now: u64) -> Spent {
        // No step of this can leave the map half changed.
        let mut map = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if map.contains_key(nonce) {
            return Spent::Before;
        }
        if map.len() >= self.most {
            // Those whose challenges have ended are refused without us.
            map.retain(|_, ends| now < *ends);
        }
        if map.len() >= self.most {
            return Spent::Full;
        }
        map.insert(*nonce, ends);
        Spent::Now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_once() {
        let nonces = InMemory::new(2);
        assert_eq!(nonces.spend(&[1; 32], 10, 0), Spent::Now);
        assert_eq!(nonces.spend(&[1; 32], 10, 0), Spent::Before);
        assert_eq!(nonces.spend(&[2; 32], 20, 0), Spent::Now);
        assert_eq!(nonces.spend(&[3; 32], 20, 9), Spent::Full);
        assert_eq!(nonces.spend(&[3; 32], 20, 10), Spent::Now, "the first challenge has ended");
        assert_eq!(nonces.spend(&[2; 32], 20, 10), Spent::Before, "the second has not");
    }

    #[test]
    fn of_many_at_once_one_gets_it() {
        let nonces = InMemory::new(100);
        let got = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    if nonces.spend(&[7; 32], 10, 0) == Spent::Now {
                        got.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(got.into_inner(), 1);
    }
}

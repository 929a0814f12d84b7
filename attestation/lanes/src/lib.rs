//! SHA-384 of eight messages of one length at a time: a launch digest is mostly a thousand hashes of pages that have nothing
//! to do with each other.
//!
//! One SHA-384 cannot be computed faster than its rounds follow each other; eight of them fill the lanes of AVX-512. This room
//! holds that and what it needs of `unsafe`. It must never be the only way to a digest: who has no [`Lanes`] takes `sha2`,
//! which is also what the tests compare with. What is hashed is public, so nothing here is concerned with secrets.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

#[cfg(target_arch = "x86_64")]
mod avx512;

/// How many messages are hashed beside each other.
pub const LANES: usize = 8;

/// What there is where there are lanes.
#[cfg(target_arch = "x86_64")]
type Proof = ();
#[cfg(not(target_arch = "x86_64"))]
type Proof = core::convert::Infallible;

/// A processor that has the lanes.
#[derive(Clone, Copy, Debug)]
pub struct Lanes(Proof);

impl Lanes {
    /// `None` if this processor has none.
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx512f") {
            return Some(Self(()));
        }
        None
    }

    /// SHA-384 of each message. `BYTES` is a multiple of SHA-384's block, 128 bytes.
    pub fn sha384<const BYTES: usize>(self, messages: [&[u8; BYTES]; LANES]) -> [[u8; 48]; LANES] {
        const { assert!(BYTES.is_multiple_of(128)) };
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Lanes` is only made after this processor was found to have AVX-512F.
        return unsafe { avx512::sha384(messages) };
        #[cfg(not(target_arch = "x86_64"))]
        match (self.0, messages) {}
    }
}

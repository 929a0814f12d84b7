//! SHA-256 over whatever compresses fastest: hashing kernel and initrd is most of what the firmware computes.
//!
//! The algorithm's core is the `sha2` crate's or, where the (checked) CPUID page says that there are SHA extensions,
//! `extensions`; block handling and padding (FIPS 180-4, 5.1.1) are here, because the crate's own detection would
//! execute CPUID.

mod extensions;

pub use extensions::compress as compress_with_extensions;

/// Bytes of a block.
const BLOCK: usize = 64;
/// FIPS 180-4, 5.3.3.
const INITIAL: [u32; 8] =
    [0x6A09_E667, 0xBB67_AE85, 0x3C6E_F372, 0xA54F_F53A, 0x510E_527F, 0x9B05_688C, 0x1F83_D9AB, 0x5BE0_CD19];

/// Adds whole blocks to a state.
pub type Compress = fn(&mut [u32; 8], &[[u8; BLOCK]]);

/// The portable [`Compress`].
pub fn compress_portably(state: &mut [u32; 8], blocks: &[[u8; BLOCK]]) {
    sha2::block_api::compress256(state, blocks);
}

/// A hash being computed.
pub struct Sha256 {
    compress: Compress,
    state: [u32; 8],
    /// The last, incomplete block, and how much of it there is.
    pending: [u8; BLOCK],
    filled: usize,
    length_bytes: u64,
}

impl Sha256 {
    /// The hash of nothing yet.
    pub const fn new(compress: Compress) -> Self {
        Self { compress, state: INITIAL, pending: [0; BLOCK], filled: 0, length_bytes: 0 }
    }

    /// Adds bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.length_bytes = self.length_bytes.wrapping_add(bytes.len() as u64);
        if self.filled != 0 {
            let space = self.pending.get_mut(self.filled..).unwrap_or_default();
            let taken = space.len().min(bytes.len());
            let (head, rest) = bytes.split_at(taken);
            for (to, from) in space.iter_mut().zip(head) {
                *to = *from;
            }
            self.filled = self.filled.saturating_add(taken);
            bytes = rest;
            if self.filled < BLOCK {
                return;
            }
            (self.compress)(&mut self.state, core::slice::from_ref(&self.pending));
        }
        let (blocks, rest) = bytes.as_chunks::<BLOCK>();
        (self.compress)(&mut self.state, blocks);
        for (to, from) in self.pending.iter_mut().zip(rest) {
            *to = *from;
        }
        self.filled = rest.len();
    }

    /// The digest.
    pub fn finalize(mut self) -> [u8; 32] {
        /// Where the length goes in the last block.
        const LENGTH: usize = BLOCK - 8;
        let bits = self.length_bytes.wrapping_mul(8).to_be_bytes();
        let padding = if self.filled < LENGTH { LENGTH } else { LENGTH + BLOCK }.saturating_sub(self.filled);
        let mut zeros = [0; BLOCK * 2];
        zeros[0] = 0x80;
        self.update(zeros.get(..padding).unwrap_or_default());
        self.update(&bits);
        let mut digest = [0; 32];
        for (to, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(self.state) {
            *to = word.to_be_bytes();
        }
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::Digest;

    fn compressors() -> Vec<(&'static str, Compress)> {
        let mut all: Vec<(&str, Compress)> = vec![("portable", compress_portably)];
        if is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1") {
            all.push(("extensions", compress_with_extensions));
        } else {
            eprintln!("SKIPPED: this processor has no SHA extensions, so they were not tested");
        }
        all
    }

    #[test]
    fn agrees_with_the_sha2_crate_for_every_length_and_split() {
        let data: Vec<u8> = (0..1000_u32).map(|n| ((n * n) >> 3) as u8).collect();
        for (name, compress) in compressors() {
            for length in (0..300).chain([511, 512, 513, 999]) {
                let expected: [u8; 32] = sha2::Sha256::digest(&data[..length]).into();
                for split in [0, 1, 55, 56, 63, 64, 65, 128, 200] {
                    let split = split.min(length);
                    let mut hash = Sha256::new(compress);
                    hash.update(&data[..split]);
                    hash.update(&data[split..length]);
                    assert_eq!(hash.finalize(), expected, "{name}, {length} bytes split at {split}");
                }
            }
        }
    }
}

//! What the lanes promise is what `sha2` says.

use cloister_sha384_lanes::{LANES, Lanes};
use proptest::prelude::*;
use sha2::{Digest, Sha384};

/// Hashes `bytes`, a message per lane, and compares.
fn agree<const BYTES: usize>(bytes: &[u8]) {
    let Some(lanes) = Lanes::detect() else {
        return eprintln!("SKIPPED: this processor has no AVX-512F");
    };
    let message = |lane: usize| bytes[lane * BYTES..][..BYTES].try_into().unwrap();
    let messages: [&[u8; BYTES]; LANES] = std::array::from_fn(message);
    let expected = messages.map(|message| <[u8; 48]>::from(Sha384::digest(message)));
    assert_eq!(lanes.sha384(messages), expected, "{BYTES} bytes");
}

#[test]
fn messages_without_a_byte_have_the_digest_of_the_empty_message() {
    agree::<0>(&[]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn each_lane_has_the_digest_of_its_own_message(bytes in proptest::collection::vec(any::<u8>(), LANES * 4096)) {
        agree::<128>(&bytes);
        agree::<384>(&bytes);
        agree::<4096>(&bytes);
    }
}

//! SHA-256 compression with the SHA extensions (APM volume 4, SHA256RNDS2, SHA256MSG1, SHA256MSG2).
#![allow(
    unsafe_code,
    reason = "code for a processor feature is called where the compiler cannot see the feature"
)]

use core::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_blend_epi16, _mm_extract_epi32, _mm_set_epi32,
    _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi32,
};

/// Round constants, four to a vector (FIPS 180-4, 4.2.2).
const K: [[u32; 4]; 16] = [
    [0x428A_2F98, 0x7137_4491, 0xB5C0_FBCF, 0xE9B5_DBA5],
    [0x3956_C25B, 0x59F1_11F1, 0x923F_82A4, 0xAB1C_5ED5],
    [0xD807_AA98, 0x1283_5B01, 0x2431_85BE, 0x550C_7DC3],
    [0x72BE_5D74, 0x80DE_B1FE, 0x9BDC_06A7, 0xC19B_F174],
    [0xE49B_69C1, 0xEFBE_4786, 0x0FC1_9DC6, 0x240C_A1CC],
    [0x2DE9_2C6F, 0x4A74_84AA, 0x5CB0_A9DC, 0x76F9_88DA],
    [0x983E_5152, 0xA831_C66D, 0xB003_27C8, 0xBF59_7FC7],
    [0xC6E0_0BF3, 0xD5A7_9147, 0x06CA_6351, 0x1429_2967],
    [0x27B7_0A85, 0x2E1B_2138, 0x4D2C_6DFC, 0x5338_0D13],
    [0x650A_7354, 0x766A_0ABB, 0x81C2_C92E, 0x9272_2C85],
    [0xA2BF_E8A1, 0xA81A_664B, 0xC24B_8B70, 0xC76C_51A3],
    [0xD192_E819, 0xD699_0624, 0xF40E_3585, 0x106A_A070],
    [0x19A4_C116, 0x1E37_6C08, 0x2748_774C, 0x34B0_BCB5],
    [0x391C_0CB3, 0x4ED8_AA4A, 0x5B9C_CA4F, 0x682E_6FF3],
    [0x748F_82EE, 0x78A5_636F, 0x84C8_7814, 0x8CC7_0208],
    [0x90BE_FFFA, 0xA450_6CEB, 0xBEF9_A3F7, 0xC671_78F2],
];

/// A [`super::Compress`] for processors with the SHA extensions, SSSE3 and SSE4.1. On others it is an illegal
/// instruction, which ends the guest.
pub fn compress(state: &mut [u32; 8], blocks: &[[u8; 64]]) {
    // SAFETY: without the features the first of their instructions faults; none has any other effect.
    unsafe { compress_blocks(state, blocks) }
}

#[target_feature(enable = "sha,sse4.1,ssse3")]
fn vector(words: [u32; 4]) -> __m128i {
    let [a, b, c, d] = words;
    _mm_set_epi32(d as i32, c as i32, b as i32, a as i32)
}

#[target_feature(enable = "sha,sse4.1,ssse3")]
fn compress_blocks(state: &mut [u32; 8], blocks: &[[u8; 64]]) {
    let [a, b, c, d, e, f, g, h] = *state;
    let mut abef = vector([f, e, b, a]);
    let mut cdgh = vector([h, g, d, c]);
    for block in blocks {
        let (before_abef, before_cdgh) = (abef, cdgh);
        // The last four vectors of the message schedule, oldest first.
        let mut w = [vector([0; 4]); 4];
        for (to, bytes) in w.iter_mut().zip(block.as_chunks::<16>().0) {
            let mut words = [0; 4];
            for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *word = u32::from_be_bytes(*bytes);
            }
            *to = vector(words);
        }
        for constants in K {
            let [w0, w1, w2, w3] = w;
            let keyed = _mm_add_epi32(w0, vector(constants));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, keyed);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(keyed, 0x0E));
            let next = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4));
            w = [w1, w2, w3, _mm_sha256msg2_epu32(next, w3)];
        }
        abef = _mm_add_epi32(abef, before_abef);
        cdgh = _mm_add_epi32(cdgh, before_cdgh);
    }
    let feba = _mm_shuffle_epi32(abef, 0x1B);
    let dchg = _mm_shuffle_epi32(cdgh, 0xB1);
    let dcba = _mm_blend_epi16(feba, dchg, 0xF0);
    let hgfe = _mm_alignr_epi8(dchg, feba, 8);
    for (half, words) in state.as_chunks_mut::<4>().0.iter_mut().zip([dcba, hgfe]) {
        *half = [
            _mm_extract_epi32(words, 0) as u32,
            _mm_extract_epi32(words, 1) as u32,
            _mm_extract_epi32(words, 2) as u32,
            _mm_extract_epi32(words, 3) as u32,
        ];
    }
}

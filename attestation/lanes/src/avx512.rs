//! SHA-384 (FIPS 180-4, 6.4 and 6.5) with a message in each 64-bit lane of a 512-bit register.

use core::arch::x86_64::{
    __m512i, _mm512_add_epi64, _mm512_ror_epi64, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_srli_epi64,
    _mm512_ternarylogic_epi64,
};

use zerocopy::transmute;

use crate::LANES;

/// A word of each message.
type Word = __m512i;
/// The words of a block.
type Block = [Word; 16];

/// Truth tables of `_mm512_ternarylogic_epi64`.
const XOR: i32 = 0x96;
const CHOOSE: i32 = 0xca;
const MAJORITY: i32 = 0xe8;

macro_rules! xor3 {
    ($one:expr, $two:expr, $three:expr) => {
        _mm512_ternarylogic_epi64::<XOR>($one, $two, $three)
    };
}

/// FIPS 180-4, 5.3.4.
const INITIAL: [u64; 8] = [
    0xcbbb_9d5d_c105_9ed8,
    0x629a_292a_367c_d507,
    0x9159_015a_3070_dd17,
    0x152f_ecd8_f70e_5939,
    0x6733_2667_ffc0_0b31,
    0x8eb4_4a87_6858_1511,
    0xdb0c_2e0d_64f9_8fa7,
    0x47b5_481d_befa_4fa4,
];

/// FIPS 180-4, 4.2.3: of the first eighty primes, the first 64 bits of the fractions of their cube roots.
#[rustfmt::skip]
const K: [u64; 80] = [
    0x428a_2f98_d728_ae22, 0x7137_4491_23ef_65cd, 0xb5c0_fbcf_ec4d_3b2f, 0xe9b5_dba5_8189_dbbc,
    0x3956_c25b_f348_b538, 0x59f1_11f1_b605_d019, 0x923f_82a4_af19_4f9b, 0xab1c_5ed5_da6d_8118,
    0xd807_aa98_a303_0242, 0x1283_5b01_4570_6fbe, 0x2431_85be_4ee4_b28c, 0x550c_7dc3_d5ff_b4e2,
    0x72be_5d74_f27b_896f, 0x80de_b1fe_3b16_96b1, 0x9bdc_06a7_25c7_1235, 0xc19b_f174_cf69_2694,
    0xe49b_69c1_9ef1_4ad2, 0xefbe_4786_384f_25e3, 0x0fc1_9dc6_8b8c_d5b5, 0x240c_a1cc_77ac_9c65,
    0x2de9_2c6f_592b_0275, 0x4a74_84aa_6ea6_e483, 0x5cb0_a9dc_bd41_fbd4, 0x76f9_88da_8311_53b5,
    0x983e_5152_ee66_dfab, 0xa831_c66d_2db4_3210, 0xb003_27c8_98fb_213f, 0xbf59_7fc7_beef_0ee4,
    0xc6e0_0bf3_3da8_8fc2, 0xd5a7_9147_930a_a725, 0x06ca_6351_e003_826f, 0x1429_2967_0a0e_6e70,
    0x27b7_0a85_46d2_2ffc, 0x2e1b_2138_5c26_c926, 0x4d2c_6dfc_5ac4_2aed, 0x5338_0d13_9d95_b3df,
    0x650a_7354_8baf_63de, 0x766a_0abb_3c77_b2a8, 0x81c2_c92e_47ed_aee6, 0x9272_2c85_1482_353b,
    0xa2bf_e8a1_4cf1_0364, 0xa81a_664b_bc42_3001, 0xc24b_8b70_d0f8_9791, 0xc76c_51a3_0654_be30,
    0xd192_e819_d6ef_5218, 0xd699_0624_5565_a910, 0xf40e_3585_5771_202a, 0x106a_a070_32bb_d1b8,
    0x19a4_c116_b8d2_d0c8, 0x1e37_6c08_5141_ab53, 0x2748_774c_df8e_eb99, 0x34b0_bcb5_e19b_48a8,
    0x391c_0cb3_c5c9_5a63, 0x4ed8_aa4a_e341_8acb, 0x5b9c_ca4f_7763_e373, 0x682e_6ff3_d6b2_b8a3,
    0x748f_82ee_5def_b2fc, 0x78a5_636f_4317_2f60, 0x84c8_7814_a1f0_ab72, 0x8cc7_0208_1a64_39ec,
    0x90be_fffa_2363_1e28, 0xa450_6ceb_de82_bde9, 0xbef9_a3f7_b2c6_7915, 0xc671_78f2_e372_532b,
    0xca27_3ece_ea26_619c, 0xd186_b8c7_21c0_c207, 0xeada_7dd6_cde0_eb1e, 0xf57d_4f7f_ee6e_d178,
    0x06f0_67aa_7217_6fba, 0x0a63_7dc5_a2c8_98a6, 0x113f_9804_bef9_0dae, 0x1b71_0b35_131c_471b,
    0x28db_77f5_2304_7d84, 0x32ca_ab7b_40c7_2493, 0x3c9e_be0a_15c9_bebc, 0x431d_67c4_9c10_0d4c,
    0x4cc5_d4be_cb3e_42b6, 0x597f_299c_fc65_7e2a, 0x5fcb_6fab_3ad6_faec, 0x6c44_198c_4a47_5817,
];

/// SHA-384 of each message.
#[target_feature(enable = "avx512f")]
pub fn sha384<const BYTES: usize>(messages: [&[u8; BYTES]; LANES]) -> [[u8; 48]; LANES] {
    let mut state = INITIAL.map(|word| all(word));
    let mut blocks = messages.map(|message| message.as_chunks::<128>().0.iter());
    let mut next = || {
        let mut words = [[0; LANES]; 16];
        for (lane, blocks) in blocks.iter_mut().enumerate() {
            for (words, bytes) in words.iter_mut().zip(blocks.next()?.as_chunks().0) {
                *words.get_mut(lane)? = u64::from_be_bytes(*bytes);
            }
        }
        Some(transmute!(words))
    };
    while let Some(block) = next() {
        compress(&mut state, block);
    }
    // The padding: a one after the message, and its length in bits.
    let mut last: Block = [_mm512_setzero_si512(); 16];
    last[0] = all(1 << 63);
    last[15] = all((BYTES as u64).wrapping_mul(8));
    compress(&mut state, last);
    let state: [[u64; LANES]; 8] = transmute!(state);
    core::array::from_fn(|lane| {
        let mut digest = [0; 48];
        for (bytes, words) in digest.as_chunks_mut().0.iter_mut().zip(&state) {
            *bytes = words.get(lane).copied().unwrap_or_default().to_be_bytes();
        }
        digest
    })
}

/// 6.4.2: one block of each message.
#[target_feature(enable = "avx512f")]
fn compress(state: &mut [Word; 8], mut w: Block) {
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    // Steps 2 and 3. The names move from round to round, so that no word has to.
    macro_rules! round {
        ($a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident, $k:expr, $w:expr) => {
            let sum1 =
                xor3!(_mm512_ror_epi64::<14>($e), _mm512_ror_epi64::<18>($e), _mm512_ror_epi64::<41>($e));
            let choice = _mm512_ternarylogic_epi64::<CHOOSE>($e, $f, $g);
            let input = _mm512_add_epi64($h, _mm512_add_epi64(all($k), $w));
            let t1 = _mm512_add_epi64(_mm512_add_epi64(input, choice), sum1);
            let sum0 =
                xor3!(_mm512_ror_epi64::<28>($a), _mm512_ror_epi64::<34>($a), _mm512_ror_epi64::<39>($a));
            let t2 = _mm512_add_epi64(sum0, _mm512_ternarylogic_epi64::<MAJORITY>($a, $b, $c));
            $d = _mm512_add_epi64($d, t1);
            $h = _mm512_add_epi64(t1, t2);
        };
    }
    for (turn, k) in K.as_chunks::<16>().0.iter().enumerate() {
        if turn > 0 {
            w = schedule(w);
        }
        round!(a b c d e f g h, k[0], w[0]);
        round!(h a b c d e f g, k[1], w[1]);
        round!(g h a b c d e f, k[2], w[2]);
        round!(f g h a b c d e, k[3], w[3]);
        round!(e f g h a b c d, k[4], w[4]);
        round!(d e f g h a b c, k[5], w[5]);
        round!(c d e f g h a b, k[6], w[6]);
        round!(b c d e f g h a, k[7], w[7]);
        round!(a b c d e f g h, k[8], w[8]);
        round!(h a b c d e f g, k[9], w[9]);
        round!(g h a b c d e f, k[10], w[10]);
        round!(f g h a b c d e, k[11], w[11]);
        round!(e f g h a b c d, k[12], w[12]);
        round!(d e f g h a b c, k[13], w[13]);
        round!(c d e f g h a b, k[14], w[14]);
        round!(b c d e f g h a, k[15], w[15]);
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *word = _mm512_add_epi64(*word, add);
    }
}

/// 6.4.2, step 1: the sixteen words of the message schedule that follow these. Unrolled as the rounds are: together
/// that takes a quarter of the time away.
#[target_feature(enable = "avx512f")]
fn schedule(mut w: Block) -> Block {
    macro_rules! next {
        ($($at:literal)*) => { $(
            let (w1, w14) = (w[($at + 1) % 16], w[($at + 14) % 16]);
            let sigma0 =
                xor3!(_mm512_ror_epi64::<1>(w1), _mm512_ror_epi64::<8>(w1), _mm512_srli_epi64::<7>(w1));
            let sigma1 =
                xor3!(_mm512_ror_epi64::<19>(w14), _mm512_ror_epi64::<61>(w14), _mm512_srli_epi64::<6>(w14));
            let old = _mm512_add_epi64(w[$at], w[($at + 9) % 16]);
            w[$at] = _mm512_add_epi64(old, _mm512_add_epi64(sigma0, sigma1));
        )* };
    }
    next!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    w
}

/// The same word in each lane.
#[target_feature(enable = "avx512f")]
fn all(word: u64) -> Word {
    _mm512_set1_epi64(word.cast_signed())
}

//! The register state that a case begins and ends with, and a small generator of random numbers.

/// Where test data lives, in the host process and in the guest.
pub const DATA: u64 = 0x2000_0000;
/// Bytes of test data.
pub const DATA_BYTES: usize = 0x4000;

/// General registers, flags and the FXSAVE image.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct State {
    pub image: [u8; 512],
    pub gpr: [u64; 16],
    pub rflags: u64,
}

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All instructions completed.
    Done,
    /// #DE.
    Divide,
    /// #UD.
    Undefined,
    /// #GP, #SS or #PF.
    Memory,
    /// #MF or #XM.
    Float,
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A number of the kind that finds bugs.
    pub fn interesting(&mut self) -> u64 {
        match self.below(8) {
            0 => self.below(64),
            1 => self.below(64).wrapping_neg(),
            2 => self.pick(&[
                0x7f,
                0x80,
                0x7fff,
                0x8000,
                0x7fff_ffff,
                0x8000_0000,
                1 << 63,
                (1 << 63) - 1,
                u64::MAX,
            ]),
            3 => 1 << self.below(64),
            4 => self.next() & 0xffff_ffff,
            5 => self.address(),
            _ => self.next(),
        }
    }

    /// An address inside the data, now and then close to a page boundary.
    pub fn address(&mut self) -> u64 {
        let middle = 0x1000 + self.below(DATA_BYTES as u64 - 0x2000);
        match self.below(4) {
            0 => DATA + 0x2000 - self.below(40),
            1 => DATA + (middle & !63),
            _ => DATA + middle,
        }
    }
}

/// Floating-point registers that hold numbers, NaNs and denormals rather than noise.
fn random_image(random: &mut Random) -> [u8; 512] {
    let mut image = [0; 512];
    image[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
    image[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    if random.one_in(4) {
        // Unmasked underflow (bit 4) is left out: it reports exact tiny results, which the masked operation does not,
        // and the processor runs all operations masked.
        // Another rounding mode and precision; one in four of those unmasks something.
        let control = 0x3fu16 | (random.next() as u16 & 0xf00) | 0x40;
        let control = if random.one_in(4) { control & !(1 << random.below(6)) } else { control };
        image[0..2].copy_from_slice(&control.to_le_bytes());
        let mxcsr = 0x1f80u32 | (random.next() as u32 & 0xe040);
        let mxcsr = if random.one_in(4) { mxcsr & !(0x80 << random.pick(&[0, 1, 2, 3, 5])) } else { mxcsr };
        image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    }
    let top = random.below(8) as u8;
    image[3] = top << 3;
    // Abridged tag word: some registers hold something.
    image[4] = random.next() as u8;
    for st in 0..8 {
        let value = match random.below(4) {
            0 => 0x8000_0000_0000_0000,
            1 => 0,
            _ => random.next() | 1 << 63,
        };
        let exponent = match random.below(6) {
            0 => 0u16,
            1 => 0x7fff,
            _ => 0x3fff + random.below(40) as u16,
        };
        let exponent = if value == 0 { 0 } else { exponent } | (random.next() as u16 & 0x8000);
        image[32 + st * 16..40 + st * 16].copy_from_slice(&value.to_le_bytes());
        image[40 + st * 16..42 + st * 16].copy_from_slice(&exponent.to_le_bytes());
    }
    for xmm in 0..16 {
        for half in 0..2 {
            let bits = match random.below(5) {
                0 => (random.next() as i32 as f64).to_bits(),
                1 => u64::from((random.next() as i16 as f32).to_bits()) << 32 | u64::from(1.5f32.to_bits()),
                2 => random.pick(&[0, f64::NAN.to_bits(), f64::INFINITY.to_bits(), 1, (-0.0f64).to_bits()]),
                _ => random.next(),
            };
            image[160 + xmm * 16 + half * 8..168 + xmm * 16 + half * 8].copy_from_slice(&bits.to_le_bytes());
        }
    }
    image
}

/// A state to begin with. RBP, RSI, RDI, R12, R13 and RSP are addresses, RCX and R14 small.
pub fn random_state(random: &mut Random) -> State {
    let mut gpr = [0; 16];
    for r in &mut gpr {
        *r = random.interesting();
    }
    for r in [4, 5, 6, 7, 12, 13] {
        gpr[r] = random.address();
    }
    gpr[1] = if random.one_in(2) { random.below(40) } else { gpr[1] & 0xff };
    gpr[14] = random.below(16);
    let mut rflags = random.next() & 0x8d5 | 0x202;
    if random.one_in(4) {
        rflags |= 0x400;
    }
    State { image: random_image(random), gpr, rflags }
}

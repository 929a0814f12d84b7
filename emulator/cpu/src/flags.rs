//! The arithmetic flags between instructions.
//!
//! Guest and host share an instruction set, so flags are never computed: the host's own are captured after the
//! host's own instruction, in the form that costs least to capture, `LAHF; SETO AL`.

/// SF:ZF:0:AF:0:PF:1:CF in bits 15:8 and OF in bit 0, as `LAHF; SETO AL` leaves them in AX.
pub(crate) type Flags = u16;

pub(crate) const CF: Flags = 0x0100;
pub(crate) const PF: Flags = 0x0400;
pub(crate) const AF: Flags = 0x1000;
pub(crate) const ZF: Flags = 0x4000;
pub(crate) const SF: Flags = 0x8000;
pub(crate) const OF: Flags = 0x0001;

/// The RFLAGS bits that [`Flags`] carries.
pub(crate) const ARITHMETIC: u64 = 0x8d5;

/// RFLAGS bits outside the arithmetic ones.
pub(crate) mod bit {
    pub(crate) const TF: u64 = 1 << 8;
    pub(crate) const IF: u64 = 1 << 9;
    pub(crate) const DF: u64 = 1 << 10;
    pub(crate) const IOPL: u64 = 3 << 12;
    pub(crate) const NT: u64 = 1 << 14;
    pub(crate) const RF: u64 = 1 << 16;
    pub(crate) const VM: u64 = 1 << 17;
    pub(crate) const AC: u64 = 1 << 18;
    pub(crate) const ID: u64 = 1 << 21;
}

/// RFLAGS form of captured flags.
#[inline(always)]
pub(crate) fn to_rflags(f: Flags) -> u64 {
    u64::from(f >> 8) & 0xd5 | u64::from(f & 1) << 11
}

/// Captured form of RFLAGS.
#[inline(always)]
pub(crate) fn from_rflags(rflags: u64) -> Flags {
    ((rflags as u16 & 0xd5) | 2) << 8 | (rflags >> 11 & 1) as u16
}

/// Evaluates condition code `CC` (the low four bits of the Jcc, SETcc and CMOVcc opcodes).
#[inline(always)]
pub(crate) fn condition<const CC: u8>(f: Flags) -> bool {
    let less = (f >> 15 ^ f) & 1 != 0;
    let yes = match CC >> 1 {
        0 => f & OF != 0,
        1 => f & CF != 0,
        2 => f & ZF != 0,
        3 => f & (CF | ZF) != 0,
        4 => f & SF != 0,
        5 => f & PF != 0,
        6 => less,
        _ => less || f & ZF != 0,
    };
    yes != (CC & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captured_flags_survive_the_round_trip() {
        for rflags in [0, 1, 4, 0x10, 0x40, 0x80, 0x800, ARITHMETIC] {
            assert_eq!(to_rflags(from_rflags(rflags)), rflags);
        }
    }

    #[test]
    fn conditions_pair_with_their_negation() {
        for rflags in 0..0x1000u64 {
            let f = from_rflags(rflags);
            assert_ne!(condition::<0xc>(f), condition::<0xd>(f));
            assert_ne!(condition::<0xe>(f), condition::<0xf>(f));
            assert_eq!(condition::<0x6>(f), rflags & 0x41 != 0);
            assert_eq!(condition::<0xc>(f), (rflags >> 7 ^ rflags >> 11) & 1 != 0);
        }
    }
}

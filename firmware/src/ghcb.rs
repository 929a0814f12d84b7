//! The guest's words in the GHCB protocol (AMD 56421): values of the GHCB MSR and the layout of the block.
//!
//! Pure encoding and decoding; what executes VMGEXIT is in the ROM.

use cloister_attestation::abi::TERMINATION_SET;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::machine::PortAccess;
use crate::termination::{Stop, TerminationReason};

/// The MSR that carries the GHCB's address or, in the MSR protocol, a request and its answer.
pub const MSR: u32 = 0xC001_0130;
/// Protocol version that this firmware speaks: the first with SNP.
pub const VERSION: u64 = 2;

const INFO_MASK: u64 = 0xFFF;
const SEV_INFO_REQUEST: u64 = 0x002;
const SEV_INFO_RESPONSE: u64 = 0x001;
const REGISTER_REQUEST: u64 = 0x012;
const REGISTER_RESPONSE: u64 = 0x013;
const STATE_CHANGE_REQUEST: u64 = 0x014;
const STATE_CHANGE_RESPONSE: u64 = 0x015;
const FEATURES_REQUEST: u64 = 0x080;
const FEATURES_RESPONSE: u64 = 0x081;
const TERMINATE: u64 = 0x100;

const FEATURE_SNP: u64 = 1 << 0;
const FRAME: u64 = 0x000F_FFFF_FFFF_F000;

const fn broken(detail: &'static str) -> Stop {
    Stop::because(TerminationReason::GhcbProtocol, detail)
}

/// A request by the MSR protocol, and how to judge the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Protocol versions that the host speaks.
    SevInfo,
    /// Hypervisor features.
    Features,
    /// Use the page at this address as this processor's GHCB.
    Register(u64),
    /// Make the page at this address private.
    MakePrivate(u64),
    /// Make the page at this address shared.
    MakeShared(u64),
}

impl Request {
    /// What to write to the MSR.
    pub const fn encode(self) -> u64 {
        match self {
            Self::SevInfo => SEV_INFO_REQUEST,
            Self::Features => FEATURES_REQUEST,
            Self::Register(gpa) => (gpa & FRAME) | REGISTER_REQUEST,
            Self::MakePrivate(gpa) => (1 << 52) | (gpa & FRAME) | STATE_CHANGE_REQUEST,
            Self::MakeShared(gpa) => (2 << 52) | (gpa & FRAME) | STATE_CHANGE_REQUEST,
        }
    }

    /// Judges what is in the MSR after VMGEXIT.
    pub const fn check(self, response: u64) -> Result<(), Stop> {
        let info = response & INFO_MASK;
        match self {
            Self::SevInfo => {
                let (max, min) = (response >> 48, response >> 32 & 0xFFFF);
                if info != SEV_INFO_RESPONSE || min > VERSION || max < VERSION {
                    return Err(broken("host does not speak GHCB version 2"));
                }
            }
            Self::Features => {
                if info != FEATURES_RESPONSE || (response >> 12) & FEATURE_SNP == 0 {
                    return Err(broken("host does not offer the SNP feature"));
                }
            }
            Self::Register(gpa) => {
                if response != (gpa & FRAME) | REGISTER_RESPONSE {
                    return Err(broken("host refused the GHCB's address"));
                }
            }
            Self::MakePrivate(_) | Self::MakeShared(_) => {
                if info != STATE_CHANGE_RESPONSE || response >> 32 != 0 {
                    return Err(Stop::because(
                        TerminationReason::PageStateChangeRefused,
                        "host refused a page state change",
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The termination request for `reason`.
pub const fn terminate(reason: TerminationReason) -> u64 {
    TERMINATE | (TERMINATION_SET as u64) << 12 | (reason.code() as u64) << 16
}

/// The block itself, as far as this firmware uses it; the rest is padding. Offsets: AMD 56421, table "GHCB layout".
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Ghcb {
    reserved_0: [u8; 0x1F8],
    /// RAX.
    pub rax: u64,
    reserved_200: [u8; 0x108],
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    reserved_318: [u8; 0x78],
    /// SW_EXITCODE.
    pub exit_code: u64,
    /// SW_EXITINFO1.
    pub exit_info_1: u64,
    /// SW_EXITINFO2.
    pub exit_info_2: u64,
    /// SW_SCRATCH.
    pub scratch: u64,
    reserved_3b0: [u8; 0x40],
    /// One bit for each quadword of the save area that is valid.
    pub valid: [u64; 2],
    reserved_400: [u8; 0x400],
    /// Shared buffer.
    pub buffer: [u8; 2032],
    reserved_ff0: [u8; 10],
    /// Protocol version.
    pub version: u16,
    /// Usage: 0 is the layout above.
    pub usage: u32,
}
const _: () = {
    assert!(size_of::<Ghcb>() == 4096);
    assert!(core::mem::offset_of!(Ghcb, rax) == 0x1F8);
    assert!(core::mem::offset_of!(Ghcb, rcx) == 0x308);
    assert!(core::mem::offset_of!(Ghcb, exit_code) == 0x390);
    assert!(core::mem::offset_of!(Ghcb, valid) == 0x3F0);
    assert!(core::mem::offset_of!(Ghcb, buffer) == 0x800);
    assert!(core::mem::offset_of!(Ghcb, version) == 0xFFA);
};

/// Bit of `valid` for the quadword at `offset`: (word, mask).
const fn valid_bit(offset: usize) -> (usize, u64) {
    (offset / 512, 1 << (offset / 8 % 64))
}

const RAX: (usize, u64) = valid_bit(0x1F8);
const RCX: (usize, u64) = valid_bit(0x308);
const RDX: (usize, u64) = valid_bit(0x310);
const EXIT: [(usize, u64); 3] = [valid_bit(0x390), valid_bit(0x398), valid_bit(0x3A0)];

/// SW_EXITCODE of IOIO.
const IOIO: u64 = 0x7B;
/// SW_EXITCODE of RDMSR and WRMSR.
const MSR_ACCESS: u64 = 0x7C;

/// SW_EXITINFO1 (APM volume 2, "IN/OUT intercept information").
const fn port_exit_info_1(access: PortAccess) -> u64 {
    const IN: u64 = 1 << 0;
    const ADDRESS_64: u64 = 1 << 9;
    // One bit for each width, from bit 4 upwards.
    let size = (access.width.bytes() as u64) << 4;
    let direction = if access.out.is_some() { 0 } else { IN };
    (access.port as u64) << 16 | size | ADDRESS_64 | direction
}

/// A port access as an NAE event: RAX, exit code, exit information, valid bits. The caller writes them to the block.
pub fn port_request(access: PortAccess) -> Registers {
    Registers {
        rax: access.out.map_or(0, u64::from),
        exit_code: IOIO,
        exit_info_1: port_exit_info_1(access),
        valid: valid_bits(&[RAX]),
        ..Registers::default()
    }
}

/// The exit's own quadwords and these.
fn valid_bits(with: &[(usize, u64)]) -> [u64; 2] {
    let mut valid = [0; 2];
    for (word, mask) in EXIT.iter().chain(with) {
        if let Some(slot) = valid.get_mut(*word) {
            *slot |= mask;
        }
    }
    valid
}

/// WRMSR as an NAE event.
pub fn msr_write_request(index: u32, value: u64) -> Registers {
    const WRITE: u64 = 1;
    Registers {
        rax: value & 0xFFFF_FFFF,
        rcx: u64::from(index),
        rdx: value.wrapping_shr(32),
        exit_code: MSR_ACCESS,
        exit_info_1: WRITE,
        exit_info_2: 0,
        valid: valid_bits(&[RAX, RCX, RDX]),
    }
}

/// Judges the answer to a WRMSR.
pub fn msr_write_response(answer: &Registers) -> Result<(), Stop> {
    if answer.exit_info_1 & 0xFFFF_FFFF != 0 {
        return Err(broken("host refused to write an MSR"));
    }
    Ok(())
}

/// Judges the answer; the value of an IN.
pub fn port_response(access: PortAccess, answer: &Registers) -> Result<u32, Stop> {
    // SW_EXITINFO1[31:0]: 0 is success, anything else an error or an exception to raise.
    if answer.exit_info_1 & 0xFFFF_FFFF != 0 {
        return Err(broken("host failed a port access"));
    }
    if access.out.is_some() {
        return Ok(0);
    }
    if answer.valid.get(RAX.0).is_none_or(|word| word & RAX.1 == 0) {
        return Err(broken("host answered an IN without a value"));
    }
    Ok((answer.rax & access.width.mask()) as u32)
}

/// The part of the block that a request fills and an answer is read from, once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// RAX.
    pub rax: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// SW_EXITCODE.
    pub exit_code: u64,
    /// SW_EXITINFO1.
    pub exit_info_1: u64,
    /// SW_EXITINFO2.
    pub exit_info_2: u64,
    /// Valid bits.
    pub valid: [u64; 2],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Width;

    #[test]
    fn requests_are_encoded_as_linux_encodes_them() {
        for (request, expected) in [
            (Request::SevInfo, 0x002),
            (Request::Features, 0x080),
            (Request::Register(0x1_1000), 0x1_1012),
            (Request::MakePrivate(0x1_1000), 0x0010_0000_0001_1014),
            (Request::MakeShared(0x1_1000), 0x0020_0000_0001_1014),
        ] {
            assert_eq!(request.encode(), expected, "{request:?}");
        }
        assert_eq!(terminate(TerminationReason::KernelHashMismatch), 0x1_2100);
        assert_eq!(terminate(TerminationReason::GhcbProtocol), 0xE_2100);
    }

    #[test]
    fn answers_are_accepted_only_if_they_say_yes() {
        let page = 0x1_1000;
        for (request, answer, ok) in [
            (Request::SevInfo, 0x0002_0001_3300_0001, true),
            (Request::SevInfo, 0x0001_0001_3300_0001, false),
            (Request::SevInfo, 0x0004_0003_3300_0001, false),
            (Request::SevInfo, 0x0002_0001_3300_0002, false),
            (Request::Features, 0x3081, true),
            (Request::Features, 0x2081, false),
            (Request::Features, 0x3080, false),
            (Request::Register(page), 0x1_1013, true),
            (Request::Register(page), 0x1_2013, false),
            (Request::Register(page), !0xFFF | 0x013, false),
            (Request::MakeShared(page), 0x015, true),
            (Request::MakeShared(page), 0x014, false),
            (Request::MakePrivate(page), 0x1_0000_0015, false),
        ] {
            assert_eq!(request.check(answer).is_ok(), ok, "{request:?} {answer:#x}");
        }
    }

    #[test]
    fn port_accesses_are_encoded_as_the_intercept_would_report_them() {
        let write = port_request(PortAccess { port: 0x3F8, width: Width::Byte, out: Some(0x41) });
        assert_eq!((write.exit_code, write.exit_info_1, write.rax), (0x7B, 0x03F8_0210, 0x41));
        assert_eq!(write.valid, [1 << 63, 1 << 50 | 1 << 51 | 1 << 52]);
        let read = port_request(PortAccess { port: 0x514, width: Width::Dword, out: None });
        assert_eq!(read.exit_info_1, 0x0514_0241);
    }

    #[test]
    fn a_written_msr_is_encoded_as_the_intercept_would_report_it_and_may_be_refused() {
        let write = msr_write_request(0x2FF, 0x1_0000_0C06);
        assert_eq!((write.exit_code, write.exit_info_1, write.exit_info_2), (0x7C, 1, 0));
        assert_eq!((write.rcx, write.rdx, write.rax), (0x2FF, 1, 0xC06));
        assert_eq!(write.valid, [1 << 63, 1 << 33 | 1 << 34 | 1 << 50 | 1 << 51 | 1 << 52]);
        assert_eq!(msr_write_response(&Registers { exit_info_1: 0, ..write }), Ok(()));
        let refused = msr_write_response(&Registers { exit_info_1: 1, ..write }).unwrap_err();
        assert_eq!(refused.reason, TerminationReason::GhcbProtocol);
    }

    #[test]
    fn an_in_without_a_value_or_with_an_error_is_refused() {
        let access = PortAccess { port: 0x511, width: Width::Byte, out: None };
        let good = Registers { rax: 0x1234_5678, exit_info_1: 0, ..port_request(access) };
        assert_eq!(port_response(access, &good), Ok(0x78));
        let refused = |answer: Registers| port_response(access, &answer).unwrap_err().reason;
        assert_eq!(refused(Registers { exit_info_1: 1, ..good }), TerminationReason::GhcbProtocol);
        assert_eq!(refused(Registers { valid: [0, 0], ..good }), TerminationReason::GhcbProtocol);
    }
}

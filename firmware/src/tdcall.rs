//! The guest's words to the TDX module and, through it, to the host (TDX module ABI specification, "Guest-Side (TDCALL)
//! Interface Functions"; GHCI, "TDG.VP.VMCALL").
//!
//! Pure encoding and decoding; what executes TDCALL is in the ROM. The module's answers are trusted, the host's are not.

use cloister_attestation::abi::TDX_FATAL_FIRMWARE;

use crate::layout::{GIB, LARGE_PAGE, PAGE, Range};
use crate::machine::{PageSize, PortAccess, Validation};
use crate::termination::{Stop, TerminationReason};

/// General registers of a TDCALL: all but RSP and RBP, in the order in which the ROM's code loads and stores them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs, reason = "registers by their names")]
pub struct Registers {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}
const _: () = assert!(size_of::<Registers>() == 14 * 8);

const VP_VMCALL: u64 = 0;
const MR_RTMR_EXTEND: u64 = 2;
const MEM_PAGE_ACCEPT: u64 = 6;

const IO: u64 = 30;
const MAP_GPA: u64 = 0x1_0001;
const REPORT_FATAL_ERROR: u64 = 0x1_0003;

/// R10 to R15: what the host sees, and may change.
const SIX_REGISTERS: u64 = 0xFC00;
/// RDX, RBX, RSI, RDI and R8 to R15.
const ALL_REGISTERS: u64 = 0xFFCC;

/// TDG.VP.VMCALL completion status: some of a range is done, the rest is to be asked for again.
const RETRY: u64 = 1;

/// How often an answer to try again is believed.
pub const TRIES: u32 = 1 << 16;

const fn failed(detail: &'static str) -> Stop {
    Stop::because(TerminationReason::TdcallFailed, detail)
}

const fn vmcall(function: u64) -> Registers {
    Registers {
        rax: VP_VMCALL,
        rcx: SIX_REGISTERS,
        rdx: 0,
        rbx: 0,
        rsi: 0,
        rdi: 0,
        r8: 0,
        r9: 0,
        r10: 0,
        r11: function,
        r12: 0,
        r13: 0,
        r14: 0,
        r15: 0,
    }
}

/// What to call with for a port access.
pub fn port_request(access: PortAccess) -> Registers {
    Registers {
        r12: u64::from(access.width.bytes()),
        r13: u64::from(access.out.is_some()),
        r14: u64::from(access.port),
        r15: u64::from(access.out.unwrap_or(0)),
        ..vmcall(IO)
    }
}

/// What was read, cut to the width: the host's word.
pub fn port_response(access: PortAccess, answer: &Registers) -> Result<u32, Stop> {
    if answer.rax != 0 || answer.r10 != 0 {
        return Err(failed("host refused a port access"));
    }
    Ok((answer.r11 & access.width.mask()) as u32)
}

/// MapGPA of `range`; `shared_bit` is the mask if it is to become shared, 0 if private.
pub const fn map_gpa(range: Range, shared_bit: u64) -> Registers {
    Registers { r12: range.start | shared_bit, r13: range.len(), ..vmcall(MAP_GPA) }
}

/// What is left of `range` after the host's answer; it may stop anywhere, but only go forwards.
pub fn map_gpa_response(range: Range, shared_bit: u64, answer: &Registers) -> Result<Range, Stop> {
    let refused =
        Stop::because(TerminationReason::PageStateChangeRefused, "host refused a page state change");
    if answer.rax != 0 {
        return Err(refused);
    }
    match answer.r10 {
        0 => Ok(Range::new(range.end, range.end)),
        RETRY => {
            let next = answer.r11 & !shared_bit;
            let forwards = (range.start..range.end).contains(&next) && next.is_multiple_of(PAGE);
            if forwards { Ok(Range::new(next, range.end)) } else { Err(refused) }
        }
        _ => Err(refused),
    }
}

/// TDG.MEM.PAGE.ACCEPT.
pub const fn accept(gpa: u64, size: PageSize) -> Registers {
    let level = match size {
        PageSize::Small => 0,
        PageSize::Large => 1,
        PageSize::Huge => 2,
    };
    Registers { rax: MEM_PAGE_ACCEPT, rcx: gpa | level, ..vmcall(0) }
}

/// TDX_OPERAND_BUSY, the upper half of a completion status as all of these; the lower ones tell details.
const OPERAND_BUSY: u32 = 0x8000_0200;

/// What TDG.MEM.PAGE.ACCEPT said; `None` if the host holds the page at this moment.
pub fn accepted(size: PageSize, answer: &Registers) -> Option<Validation> {
    const OPERAND_INVALID: u32 = 0xC000_0100;
    const PAGE_ALREADY_ACCEPTED: u32 = 0x0000_0B0A;
    const PAGE_SIZE_MISMATCH: u32 = 0xC000_0B0B;
    match (answer.rax >> 32) as u32 {
        0 => Some(Validation::Changed),
        OPERAND_BUSY => None,
        PAGE_ALREADY_ACCEPTED => Some(Validation::Unchanged),
        PAGE_SIZE_MISMATCH => Some(Validation::SizeMismatch),
        // A module that has no pages of 1 GiB.
        OPERAND_INVALID if size == PageSize::Huge => Some(Validation::SizeMismatch),
        status => Some(Validation::Failed(status)),
    }
}

const _: () = assert!(PageSize::Large.bytes() == LARGE_PAGE && PageSize::Huge.bytes() == GIB);

/// TDG.MR.RTMR.EXTEND with the 48 bytes at `gpa`, which is a multiple of 64.
pub const fn extend(gpa: u64, rtmr: u8) -> Registers {
    let mut registers = vmcall(0);
    registers.rax = MR_RTMR_EXTEND;
    registers.rcx = gpa;
    registers.rdx = rtmr as u64;
    registers
}

/// What TDG.MR.RTMR.EXTEND said; `None` if another processor extends the register at this moment.
pub const fn extended(answer: &Registers) -> Option<Result<(), Stop>> {
    match (answer.rax >> 32) as u32 {
        0 => Some(Ok(())),
        OPERAND_BUSY => None,
        _ => Some(Err(Stop::because(TerminationReason::MeasurementFailed, "an RTMR could not be extended"))),
    }
}

/// ReportFatalError, with as many of the words as fit into eight registers.
pub fn fatal(stop: &Stop) -> Registers {
    let mut text = [0_u64; 8];
    for (word, bytes) in text.iter_mut().zip(stop.detail.as_bytes().chunks(8)) {
        *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    }
    let [r14, r15, rbx, rdi, rsi, r8, r9, rdx] = text;
    Registers {
        rcx: ALL_REGISTERS,
        r12: u64::from(TDX_FATAL_FIRMWARE) | u64::from(stop.reason.code()),
        r14,
        r15,
        rbx,
        rdi,
        rsi,
        r8,
        r9,
        rdx,
        ..vmcall(REPORT_FATAL_ERROR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Width;

    #[test]
    fn port_accesses_are_numbered_as_the_ghci_says() {
        let access = PortAccess { port: 0x3F8, width: Width::Byte, out: Some(0x41) };
        let Registers { rax, rcx, r10, r11, r12, r13, r14, r15, .. } = port_request(access);
        assert_eq!((rax, rcx, r10, r11), (0, 0xFC00, 0, 30));
        assert_eq!((r12, r13, r14, r15), (1, 1, 0x3F8, 0x41));
        let access = PortAccess { port: 0xCFC, width: Width::Dword, out: None };
        assert_eq!((port_request(access).r12, port_request(access).r13), (4, 0));
    }

    #[test]
    fn answers_are_cut_to_their_width_and_refusals_are_refused() {
        let answer = Registers { r11: u64::MAX, ..Registers::default() };
        for (width, value) in [(Width::Byte, 0xFF), (Width::Word, 0xFFFF), (Width::Dword, 0xFFFF_FFFF)] {
            let access = PortAccess { port: 0, width, out: None };
            assert_eq!(port_response(access, &answer), Ok(value));
            for bad in [Registers { rax: 1, ..answer }, Registers { r10: 1 << 63, ..answer }] {
                assert_eq!(port_response(access, &bad).unwrap_err().reason, TerminationReason::TdcallFailed);
            }
        }
    }

    #[test]
    fn a_mapping_goes_forwards_or_ends() {
        const SHARED: u64 = 1 << 47;
        let range = Range::new(0x1000, 0x5000);
        let request = map_gpa(range, SHARED);
        assert_eq!((request.r11, request.r12, request.r13), (0x1_0001, 0x1000 | SHARED, 0x4000));
        let answer =
            |r10, r11| map_gpa_response(range, SHARED, &Registers { r10, r11, ..Registers::default() });
        assert!(answer(0, 0).unwrap().is_empty());
        assert_eq!(answer(RETRY, 0x3000 | SHARED), Ok(Range::new(0x3000, 0x5000)));
        for (r10, r11) in [(RETRY, 0), (RETRY, 0x5000), (RETRY, 0x3001), (1 << 63, 0x3000), (2, 0x3000)] {
            let stop = answer(r10, r11).unwrap_err();
            assert_eq!(stop.reason, TerminationReason::PageStateChangeRefused, "{r10:#x} {r11:#x}");
        }
    }

    #[test]
    fn acceptance_is_judged_by_the_class_of_the_status() {
        use PageSize::{Huge, Large, Small};
        for (size, level, status, expected) in [
            (Small, 0, 0, Some(Validation::Changed)),
            (Large, 1, 0xC000_0B0B_0000_0001, Some(Validation::SizeMismatch)),
            (Huge, 2, 0xC000_0100_0000_0001, Some(Validation::SizeMismatch)),
            (Large, 1, 0xC000_0100_0000_0001, Some(Validation::Failed(0xC000_0100))),
            (Small, 0, 0x0000_0B0A_0000_0000, Some(Validation::Unchanged)),
            (Small, 0, 0x8000_0200_0000_0001, None),
        ] {
            let request = accept(0x4000_0000, size);
            assert_eq!((request.rax, request.rcx), (6, 0x4000_0000 | level));
            let answer = Registers { rax: status, ..Registers::default() };
            assert_eq!(accepted(size, &answer), expected, "{status:#x}");
        }
    }

    #[test]
    fn the_end_has_a_code_and_words() {
        let stop = Stop::because(TerminationReason::MemoryMapRefused, "memory map is not sorted");
        let Registers { rcx, r11, r12, r14, r15, rbx, rdi, .. } = fatal(&stop);
        assert_eq!((rcx, r11, r12), (0xFFCC, 0x1_0003, 0x8000_0205));
        let text = [r14, r15, rbx, rdi].map(u64::to_le_bytes).concat();
        assert_eq!(&text[..25], b"memory map is not sorted\0");
    }
}

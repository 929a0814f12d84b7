//! Exceptions of the floating-point units are the guest's own: none of them ever reaches the process that emulates it.

mod common;

use common::{DATA, Machine};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

const FCW: usize = 0;
const FSW: usize = 2;
const MXCSR: usize = 24;
const NE: u64 = 1 << 5;
/// Divide-by-zero, as a flag and as a mask.
const ZE: u16 = 1 << 2;
const SUMMARY: u16 = 1 << 7;

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Loads the image at DATA with FXRSTOR, then executes `then`.
fn machine(fcw: u16, fsw: u16, ne: bool, then: Program) -> Machine {
    let mut m = Machine::new(|a| {
        a.fxrstor(ptr(DATA))?;
        then(a)?;
        a.fxsave(ptr(DATA + 0x200))?;
        a.hlt()
    });
    let mut image = [0; 512];
    image[FCW..FCW + 2].copy_from_slice(&fcw.to_le_bytes());
    image[FSW..FSW + 2].copy_from_slice(&fsw.to_le_bytes());
    image[MXCSR..MXCSR + 4].copy_from_slice(&0x1f80u32.to_le_bytes());
    m.ram.write(DATA, &image);
    m.handler(16, 0);
    m.cpu.state.cr0 = if ne { m.cpu.state.cr0 | NE } else { m.cpu.state.cr0 & !NE };
    m.cpu.state_changed();
    m
}

fn saved(m: &Machine, at: usize) -> u16 {
    let bytes = m.ram.read(DATA + 0x200 + at as u64, 2);
    u16::from_le_bytes([bytes[0], bytes[1]])
}

/// Waiting instructions of each sort: arithmetic, loads, stores, MMX, state.
const WAITING: [(&str, Program); 10] = [
    ("fld1", |a| a.fld1()),
    ("fadd", |a| a.fadd_2(st0, st1)),
    ("fld m64", |a| a.fld(qword_ptr(DATA + 0x800))),
    ("fistp", |a| a.fistp(dword_ptr(DATA + 0x800))),
    ("fldcw", |a| a.fldcw(word_ptr(DATA))),
    ("fnop", |a| a.fnop()),
    ("paddb", |a| a.paddb(mm0, mm1)),
    ("emms", |a| a.emms()),
    ("cvtpi2ps", |a| a.cvtpi2ps(xmm0, mm0)),
    ("wait", |a| a.wait()),
];

#[test]
fn an_unmasked_flag_is_pending_whatever_the_summary_bit_says() {
    for (name, program) in WAITING {
        for summary in [0, SUMMARY] {
            let mut m = machine(0x37f & !ZE, ZE | summary, true, program);
            m.run();
            assert_eq!(m.vector(), 16, "{name}, summary {summary:#x}");
            // A masked one is not pending, and a summary without a flag says nothing.
            for (fcw, fsw) in [(0x37f, ZE | summary), (0x37f & !ZE, summary)] {
                let mut m = machine(fcw, fsw, true, program);
                m.run();
                assert_eq!(m.vector(), 0, "{name}, FCW {fcw:#x}, FSW {fsw:#x}");
            }
        }
    }
}

#[test]
fn without_numeric_errors_the_instruction_runs_and_the_flag_stays() {
    for (name, program) in WAITING {
        let mut m = machine(0x37f & !ZE, ZE, false, program);
        m.run();
        assert_eq!(m.vector(), 0, "{name}");
        assert_eq!(saved(&m, FSW) & (ZE | SUMMARY), ZE | SUMMARY, "{name}");
    }
    // What the instruction itself raises comes on top.
    let mut m = machine(0x37f & !ZE, ZE, false, |a| a.fld(dword_ptr(DATA + 0x800)));
    m.ram.write(DATA + 0x800, &0x7f80_0001_u32.to_le_bytes());
    m.run();
    assert_eq!(saved(&m, FSW) & (ZE | 1), ZE | 1, "a signalling NaN is an invalid operation");
}

#[test]
fn instructions_that_do_not_wait_see_and_clear_what_is_pending() {
    for ne in [true, false] {
        let mut m = machine(0x37f & !ZE, ZE, ne, |a| a.fnstsw(word_ptr(DATA + 0x800)));
        m.run();
        assert_eq!(m.ram.read(DATA + 0x800, 1)[0] & (ZE | SUMMARY) as u8, (ZE | SUMMARY) as u8);
        for (name, program) in [("fnclex", (|a| a.fnclex()) as Program), ("fninit", |a| a.fninit())] {
            let mut m = machine(0x37f & !ZE, ZE, ne, program);
            m.run();
            assert_eq!((m.vector(), saved(&m, FSW) & (ZE | SUMMARY)), (0, 0), "{name}");
        }
        for bytes in [[0xdb, 0xe0], [0xdb, 0xe1], [0xdb, 0xe4]] {
            // FNENI, FNDISI, FNSETPM: nothing since the 387.
            let mut m = machine(0x37f & !ZE, ZE, ne, |a| {
                a.nop()?;
                a.nop()
            });
            let at = m.ram.read(common::CODE, 64).windows(2).position(|two| two == [0x90; 2]).unwrap();
            m.ram.write(common::CODE + at as u64, &bytes);
            m.run();
            assert_eq!(m.vector(), 0, "{bytes:x?}");
        }
    }
}

#[test]
fn loading_an_environment_replaces_what_was_pending() {
    let program: Program = |a| a.fldenv(ptr(DATA + 0x800));
    let environment = |fsw: u16| {
        let mut bytes = [0; 28];
        bytes[0..2].copy_from_slice(&(0x37f & !ZE).to_le_bytes());
        bytes[4..6].copy_from_slice(&fsw.to_le_bytes());
        bytes[8..10].copy_from_slice(&[0xff; 2]);
        bytes
    };
    // Nothing pending before, something afterwards: the next waiting instruction tells.
    let mut m = machine(0x37f, 0, true, |a| {
        a.fldenv(ptr(DATA + 0x800))?;
        a.fld1()
    });
    m.ram.write(DATA + 0x800, &environment(ZE));
    m.run();
    assert_eq!(m.vector(), 16);
    let mut m = machine(0x37f & !ZE, ZE, false, program);
    m.ram.write(DATA + 0x800, &environment(0));
    m.run();
    assert_eq!((m.vector(), saved(&m, FSW) & (ZE | SUMMARY)), (0, 0));
}

#[test]
fn bits_of_mxcsr_that_do_not_exist_do_no_harm() {
    for program in [(|a: &mut CodeAssembler| a.addps(xmm0, xmm1)) as Program, |a| a.fld1()] {
        let mut m = Machine::new(|a| {
            program(a)?;
            a.hlt()
        });
        // As a save area of the guest's own may say.
        m.cpu.state.fpu.0[MXCSR..MXCSR + 4].copy_from_slice(&0xffff_1f80u32.to_le_bytes());
        m.run();
    }
}

#[test]
fn an_unmasked_sse_exception_is_19_or_6() {
    for (osxmmexcpt, vector) in [(1 << 10, 19), (0, 6)] {
        let mut m = Machine::new(|a| {
            a.ldmxcsr(dword_ptr(DATA))?;
            a.divss(xmm0, xmm1)?;
            a.hlt()
        });
        m.ram.write(DATA, &(0x1f80u32 & !(1 << 9)).to_le_bytes());
        m.cpu.state.fpu.0[160..164].copy_from_slice(&1f32.to_le_bytes());
        m.cpu.state.cr4 = m.cpu.state.cr4 & !(1 << 10) | osxmmexcpt;
        m.cpu.state_changed();
        m.handler(19, 0);
        m.handler(6, 0);
        m.run();
        assert_eq!(m.vector(), vector);
    }
}

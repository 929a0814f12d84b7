//! From reset through every mode.

mod common;

use common::{CODE, Machine, load};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softkvm_cpu::testing::{self, FlatEnv, Ram};

#[test]
fn a_loop_in_long_mode_runs_to_its_end() {
    let ram = Ram::new(1 << 20);
    let (mut env, mut cpu) = FlatEnv::new(&ram);
    load(&ram, CODE, 64, |a| {
        let mut top = a.create_label();
        a.mov(rcx, 1000u64)?;
        a.xor(eax, eax)?;
        a.set_label(&mut top)?;
        a.add(rax, rcx)?;
        a.push(rax)?;
        a.pop(rbx)?;
        a.dec(rcx)?;
        a.jne(top)?;
        a.mov(qword_ptr(0x20000), rax)?;
        a.hlt()
    });
    testing::long_mode(&mut cpu, &ram, CODE);
    cpu.run(&mut env);
    assert!(env.halted);
    assert_eq!(ram.read_u64(0x20000), 500_500);
    assert_eq!(cpu.state.gpr[3], 500_500);
}

#[test]
fn real_mode_reaches_long_mode_by_itself() {
    let ram = Ram::new(1 << 20);
    let (mut env, mut cpu) = FlatEnv::new(&ram);
    // Tables as `long_mode` makes them; the processor then starts over from real mode.
    testing::long_mode(&mut cpu, &ram, 0);
    cpu.state = softkvm_cpu::CpuState::reset();
    ram.write(0x9000, &[63, 0, 0, 0x40, 0, 0]);
    load(&ram, 0x8000, 16, |a| {
        a.cli()?;
        a.lgdt(word_ptr(0x9000))?;
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        // jmp 0x38:0x8100, with a 32-bit offset
        a.db(&[0x66, 0xea, 0x00, 0x81, 0x00, 0x00, 0x38, 0x00])
    });
    load(&ram, 0x8100, 32, |a| {
        a.mov(eax, 0x10)?;
        a.mov(ds, eax)?;
        a.mov(ss, eax)?;
        a.mov(esp, 0x80000)?;
        a.mov(eax, cr4)?;
        a.or(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(eax, testing::PAGE_TABLES as i32)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.or(eax, 0x100)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000u32)?;
        a.mov(cr0, eax)?;
        // jmp 8:0x8200
        a.db(&[0xea, 0x00, 0x82, 0x00, 0x00, 0x08, 0x00])
    });
    load(&ram, 0x8200, 64, |a| {
        a.mov(rax, 0x1234_5678_9abc_def0u64)?;
        a.mov(qword_ptr(0x20000), rax)?;
        a.hlt()
    });
    cpu.state.seg[1].base = 0;
    cpu.state.seg[1].selector = 0;
    cpu.state.rip = 0x8000;
    cpu.state_changed();
    cpu.run(&mut env);
    assert!(env.halted, "{:x?}", cpu.state);
    assert_eq!(ram.read_u64(0x20000), 0x1234_5678_9abc_def0);
}

/// 32-bit protected mode without paging, flat.
fn protected_mode(m: &mut Machine, program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
    load(&m.ram, CODE, 32, program);
    let s = &mut m.cpu.state;
    s.efer = 0;
    s.cr0 = 0x31;
    s.seg[1].attributes = 0xc9b;
    s.rip = CODE;
    m.cpu.state_changed();
}

#[test]
fn decimal_adjustments_give_the_manual_s_results() {
    // Instruction, AX before, CF and AF before, AX after, CF, AF after (SDM volume 2, operation sections).
    type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    type Row = (&'static str, Program, u16, (u64, u64), u16, (u64, u64));
    let cases: [Row; 12] = [
        ("daa", |a| a.daa(), 0x00ae, (0, 0), 0x0014, (1, 1)),
        ("daa", |a| a.daa(), 0x0042, (0, 0), 0x0042, (0, 0)),
        ("daa", |a| a.daa(), 0x0099, (0, 1), 0x009f, (0, 1)),
        ("das", |a| a.das(), 0x00ee, (0, 1), 0x0088, (1, 1)),
        ("das", |a| a.das(), 0x0003, (0, 1), 0x00fd, (1, 1)),
        ("aaa", |a| a.aaa(), 0x000b, (0, 0), 0x0101, (1, 1)),
        ("aaa", |a| a.aaa(), 0x0104, (0, 0), 0x0104, (0, 0)),
        ("aas", |a| a.aas(), 0x02ff, (0, 0), 0x0109, (1, 1)),
        ("aam", |a| a.aam(10), 0x0048, (0, 0), 0x0702, (0, 0)),
        ("aam 16", |a| a.aam(16), 0x0048, (0, 0), 0x0408, (0, 0)),
        ("aad", |a| a.aad(10), 0x0702, (0, 0), 0x0048, (0, 0)),
        ("salc", |a| a.db(&[0xd6]), 0x1200, (1, 0), 0x12ff, (1, 0)),
    ];
    for (name, program, ax_before, (cf, af), ax_after, (cf_after, af_after)) in cases {
        let mut m = Machine::new(|a| a.nop());
        protected_mode(&mut m, |a| {
            program(a)?;
            a.hlt()
        });
        m.cpu.state.gpr[0] = u64::from(ax_before);
        m.cpu.state.rflags = 2 | cf | af << 4;
        m.run();
        let got = (m.cpu.state.gpr[0] as u16, m.cpu.state.rflags & 1, m.cpu.state.rflags >> 4 & 1);
        assert_eq!(got, (ax_after, cf_after, af_after), "{name} of {ax_before:#x}");
    }
}

#[test]
fn segment_limits_hold_in_protected_mode_only() {
    for (limit, faults) in [(0xfff, true), (0xffff_ffff, false)] {
        let mut m = Machine::new(|a| a.nop());
        protected_mode(&mut m, |a| {
            a.mov(eax, dword_ptr(0xffd))?;
            a.hlt()
        });
        m.cpu.state.seg[3].limit = limit;
        m.cpu.run(&mut m.env);
        // Without an IDT the #GP becomes a shutdown.
        assert_eq!((m.env.shut_down, m.env.halted), (faults, !faults), "limit {limit:#x}");
    }
}

#[test]
fn far_calls_and_returns_change_code_segments() {
    let mut m = Machine::new(|a| a.nop());
    protected_mode(&mut m, |a| {
        // call 0x38:0x18000
        a.db(&[0x9a, 0x00, 0x80, 0x01, 0x00, 0x38, 0x00])?;
        a.hlt()
    });
    load(&m.ram, 0x1_8000, 32, |a| {
        a.mov(eax, cs)?;
        a.mov(ebx, esp)?;
        a.retf()
    });
    m.run();
    assert_eq!((m.cpu.state.gpr[0] & 0xffff, m.cpu.state.gpr[3]), (0x38, 0x80000 - 8));
    assert_eq!((m.cpu.state.seg[1].selector, m.cpu.state.gpr[4]), (8, 0x80000));
}

#[test]
fn leaving_long_mode_needs_its_rules() {
    // Clearing CR0.PG in 64-bit code, and CR4.PAE in long mode, are #GP.
    for program in [
        (|a: &mut CodeAssembler| {
            a.mov(rax, cr0)?;
            a.btr(rax, 31)?;
            a.mov(cr0, rax)
        }) as fn(&mut CodeAssembler) -> Result<(), IcedError>,
        |a| {
            a.mov(rax, cr4)?;
            a.btr(rax, 5)?;
            a.mov(cr4, rax)
        },
        |a| {
            // EFER.LME with paging on.
            a.mov(ecx, 0xc000_0080u32)?;
            a.rdmsr()?;
            a.btr(eax, 8)?;
            a.wrmsr()
        },
        |a| {
            // A reserved bit of EFER.
            a.mov(ecx, 0xc000_0080u32)?;
            a.rdmsr()?;
            a.bts(eax, 16)?;
            a.wrmsr()
        },
    ] {
        let mut m = Machine::new(program);
        m.handler(13, 0);
        m.run();
        assert_eq!((m.vector(), m.stack(0)), (13, 0));
    }
}

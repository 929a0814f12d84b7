//! Self-modifying code, string instructions, and operations that other processors watch.

mod common;

use std::sync::Arc;

use common::{CODE, DATA, Machine};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softkvm_cpu::testing::{self, FlatEnv};

#[test]
fn a_store_into_the_instruction_ahead_takes_effect() {
    // `mov byte [next + 1], 5` where next is `mov eax, 1`.
    let mut m = Machine::new(|a| {
        a.mov(rdi, CODE + 10 + 3 + 1)?;
        a.mov(byte_ptr(rdi), 5)?;
        a.mov(eax, 1)?;
        a.hlt()
    });
    m.run();
    assert_eq!(m.cpu.state.gpr[0], 5);
}

#[test]
fn code_rewritten_in_a_loop_runs_as_rewritten() {
    // Each round adds the round number: the immediate of `add rax, imm32` is the counter.
    let function = 0x1_8000u64;
    let mut m = Machine::new(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 100)?;
        a.set_label(&mut top)?;
        a.mov(dword_ptr(function + 2), ecx)?;
        a.call(function)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.hlt()
    });
    m.ram.write(function, &[0x48, 0x05, 0, 0, 0, 0, 0xc3]);
    m.run();
    assert_eq!(m.cpu.state.gpr[0], 5050);
}

#[test]
fn code_changed_from_outside_is_seen_at_the_next_run() {
    let mut m = Machine::new(|a| {
        a.mov(eax, 1)?;
        a.hlt()
    });
    m.run();
    m.ram.write(CODE + 1, &[2]);
    m.cpu.state.rip = CODE;
    m.run();
    assert_eq!(m.cpu.state.gpr[0], 2);
}

#[test]
fn an_instruction_across_two_pages_is_decoded_whole_and_followed_when_it_changes() {
    let at = 0x1_8000u64 - 3;
    let mut m = Machine::new(|a| {
        a.call(at)?;
        a.mov(ebx, eax)?;
        a.mov(byte_ptr(0x1_8000u64), 0x44)?;
        a.call(at)?;
        a.hlt()
    });
    // mov eax, imm32 with the last two bytes on the next page.
    m.ram.write(at, &[0xb8, 0x11, 0x22, 0x33, 0, 0xc3]);
    m.run();
    assert_eq!((m.cpu.state.gpr[3], m.cpu.state.gpr[0]), (0x33_2211, 0x44_2211));
}

#[test]
fn rep_stos_commits_what_it_did_before_a_fault() {
    let (table, linear) = (0x3_0000, 0x40_0000u64);
    let mut m = Machine::new(|a| {
        a.rep().stosq()?;
        a.hlt()
    });
    m.split(linear, table, 7);
    m.ram.write_u64(Machine::entry(table, linear), 0x5_0007);
    m.ram.write_u64(Machine::entry(table, linear + 0x1000), 0);
    m.handler(14, 0);
    m.cpu.state.gpr[0] = 0x0102_0304_0506_0708;
    m.cpu.state.gpr[1] = 32;
    m.cpu.state.gpr[7] = linear + 0x1000 - 10 * 8;
    m.run();
    assert_eq!((m.vector(), m.cpu.state.cr2), (14, linear + 0x1000));
    assert_eq!((m.cpu.state.gpr[1], m.cpu.state.gpr[7]), (22, linear + 0x1000));
    assert_eq!(m.stack(1), CODE, "the instruction goes on from where it faulted");
    assert_eq!(m.ram.read_u64(0x5_0ff8), 0x0102_0304_0506_0708);
}

#[test]
fn overlapping_rep_movs_repeats_its_pattern() {
    let mut m = Machine::new(|a| {
        a.rep().movsb()?;
        a.hlt()
    });
    m.ram.write(DATA, b"abc");
    m.cpu.state.gpr[1] = 3000;
    m.cpu.state.gpr[6] = DATA;
    m.cpu.state.gpr[7] = DATA + 3;
    m.run();
    let bytes = m.ram.read(DATA, 3003);
    assert!(bytes.chunks(3).all(|c| c == b"abc"));
}

#[test]
fn string_io_goes_through_the_environment() {
    let mut m = Machine::new(|a| {
        a.mov(ecx, 3)?;
        a.mov(edx, 0x3f8)?;
        a.rep().insw()?;
        a.mov(ecx, 2)?;
        a.rep().outsb()?;
        a.hlt()
    });
    m.env.port_value = 0x1234;
    m.ram.write(DATA + 0x100, b"hi");
    m.cpu.state.gpr[6] = DATA + 0x100;
    m.cpu.state.gpr[7] = DATA;
    m.run();
    assert_eq!(m.ram.read(DATA, 6), [0x34, 0x12, 0x34, 0x12, 0x34, 0x12]);
    assert_eq!(m.env.writes, [(0x3f8, u64::from(b'h')), (0x3f8, u64::from(b'i'))]);
}

/// Two processors run the same program on the same memory.
fn both(program: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Machine {
    let m = Machine::new(|a| program(a));
    let ram = Arc::clone(&m.ram);
    let threads: Vec<_> = (0..2)
        .map(|n| {
            let ram = Arc::clone(&ram);
            std::thread::spawn(move || {
                let (mut env, mut cpu) = FlatEnv::new(&ram);
                testing::long_mode(&mut cpu, &ram, CODE);
                cpu.state.gpr[4] = 0x6_0000 + n * 0x1_0000;
                cpu.run(&mut env);
                assert!(env.halted);
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("the processor does not panic");
    }
    m
}

#[test]
fn locked_operations_of_two_processors_lose_nothing() {
    const ROUNDS: i32 = 200_000;
    // An aligned counter, one across a cache line, and one across a page.
    for at in [DATA, DATA + 60, DATA + 0xffc] {
        let m = both(|a| {
            let mut top = a.create_label();
            a.mov(ecx, ROUNDS)?;
            a.set_label(&mut top)?;
            a.lock().add(qword_ptr(at), 1)?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.hlt()
        });
        assert_eq!(m.ram.read_u64(at), 2 * ROUNDS as u64, "at {at:#x}");
    }
}

#[test]
fn cmpxchg16b_is_atomic() {
    const ROUNDS: u64 = 50_000;
    let m = both(|a| {
        let (mut top, mut again) = (a.create_label(), a.create_label());
        a.mov(esi, ROUNDS as i32)?;
        a.mov(rdi, DATA)?;
        a.set_label(&mut top)?;
        a.mov(rax, qword_ptr(rdi))?;
        a.mov(rdx, qword_ptr(rdi + 8))?;
        a.set_label(&mut again)?;
        a.lea(rbx, rax + 1)?;
        a.lea(rcx, rdx + 1)?;
        a.lock().cmpxchg16b(xmmword_ptr(rdi))?;
        a.jne(again)?;
        a.dec(esi)?;
        a.jne(top)?;
        a.hlt()
    });
    assert_eq!((m.ram.read_u64(DATA), m.ram.read_u64(DATA + 8)), (2 * ROUNDS, 2 * ROUNDS));
}

#[test]
fn a_misaligned_cmpxchg16b_is_refused() {
    let mut m = Machine::new(|a| {
        a.mov(rdi, DATA + 8)?;
        a.cmpxchg16b(xmmword_ptr(rdi))?;
        a.hlt()
    });
    m.handler(13, 0);
    m.run();
    assert_eq!((m.vector(), m.stack(0)), (13, 0));
}

#[test]
fn segment_bases_reach_memory() {
    let mut m = Machine::new(|a| {
        a.wrgsbase(rdi)?;
        a.mov(rax, qword_ptr(0x10).gs())?;
        a.swapgs()?;
        a.rdgsbase(rbx)?;
        a.hlt()
    });
    m.cpu.state.cr4 |= 1 << 16;
    m.cpu.state.kernel_gs_base = 0x77;
    m.cpu.state.gpr[7] = DATA;
    m.ram.write_u64(DATA + 0x10, 99);
    m.run();
    assert_eq!((m.cpu.state.gpr[0], m.cpu.state.gpr[3]), (99, 0x77));
}

//! How fast the processor is: hot loops of several characters, and code that is always new.
//!
//! `cargo run --release -p softkvm-cpu --example mips`

use std::time::Instant;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softkvm_cpu::testing::{self, FlatEnv, Ram};

const CODE: u64 = 0x10_0000;
const ROUNDS: u64 = 3_000_000;

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Register arithmetic and a branch.
fn arithmetic(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rcx, ROUNDS)?;
    a.set_label(&mut top)?;
    a.add(rax, rcx)?;
    a.xor(rdx, rax)?;
    a.shl(rdx, 3)?;
    a.lea(rbx, rax + rdx * 4 + 7)?;
    a.imul_2(rsi, rbx)?;
    a.sub(rsi, 5)?;
    a.and(rsi, 0xffff)?;
    a.inc(rdi)?;
    a.cmp(rcx, rdi)?;
    a.dec(rcx)?;
    a.jne(top)?;
    a.hlt()
}

/// What kernels do: calls, a little arithmetic, structure fields, short branches.
fn calls(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut top, mut function, mut skip, mut done) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.mov(rcx, ROUNDS)?;
    a.mov(rdi, 0x20_0000u64)?;
    a.set_label(&mut top)?;
    a.mov(rsi, rcx)?;
    a.call(function)?;
    a.add(rbx, rax)?;
    a.dec(rcx)?;
    a.jne(top)?;
    a.jmp(done)?;
    a.set_label(&mut function)?;
    a.push(rbp)?;
    a.mov(rbp, rsp)?;
    a.push(rbx)?;
    a.mov(rax, qword_ptr(rdi + 8))?;
    a.mov(edx, dword_ptr(rdi + rax * 4 + 16))?;
    a.test(rsi, 1)?;
    a.je(skip)?;
    a.add(qword_ptr(rdi + 32), 1)?;
    a.set_label(&mut skip)?;
    a.mov(qword_ptr(rdi + 24), rsi)?;
    a.movzx(eax, byte_ptr(rdi + 40))?;
    a.cmp(byte_ptr(rdi + 41), 0)?;
    a.pop(rbx)?;
    a.pop(rbp)?;
    a.ret()?;
    a.set_label(&mut done)?;
    a.hlt()
}

/// Loads and stores over 1 MiB.
fn memory(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rcx, ROUNDS)?;
    a.mov(rdi, 0x20_0000u64)?;
    a.set_label(&mut top)?;
    a.mov(rax, rcx)?;
    a.and(eax, 0xf_fff8)?;
    a.mov(rdx, qword_ptr(rdi + rax))?;
    a.add(rdx, rcx)?;
    a.mov(qword_ptr(rdi + rax), rdx)?;
    a.dec(rcx)?;
    a.jne(top)?;
    a.hlt()
}

/// SSE as a C library uses it.
fn vectors(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rcx, ROUNDS / 4)?;
    a.mov(rdi, 0x20_0000u64)?;
    a.set_label(&mut top)?;
    a.movdqu(xmm0, xmmword_ptr(rdi))?;
    a.pxor(xmm1, xmm1)?;
    a.pcmpeqb(xmm0, xmm1)?;
    a.pmovmskb(eax, xmm0)?;
    a.movups(xmmword_ptr(rdi + 64), xmm0)?;
    a.addsd(xmm2, xmm1)?;
    a.dec(rcx)?;
    a.jne(top)?;
    a.hlt()
}

/// Straight-line code that never repeats: 2 MiB of it.
fn fresh(ram: &Ram) -> u64 {
    let mut a = CodeAssembler::new(64).expect("64-bit code");
    let mut block = || -> Result<(), IcedError> {
        for i in 0..60_000i32 {
            a.mov(rax, qword_ptr(rdi + (i & 0xff0)))?;
            a.add(rax, i)?;
            a.lea(rbx, rax + rcx * 2)?;
            a.mov(qword_ptr(rdi + (i & 0x7f8)), rbx)?;
            a.test(eax, eax)?;
            let mut next = a.create_label();
            a.je(next)?;
            a.inc(edx)?;
            a.set_label(&mut next)?;
            a.nop()?;
        }
        a.hlt()
    };
    block().expect("valid code");
    let bytes = a.assemble(0x100_0000).expect("encodable code");
    ram.write(0x100_0000, &bytes);
    0x100_0000
}

fn run(name: &str, ram: &std::sync::Arc<Ram>, rip: u64) {
    let (mut env, mut cpu) = FlatEnv::new(ram);
    testing::long_mode(&mut cpu, ram, rip);
    cpu.state.gpr[7] = 0x20_0000;
    let start = Instant::now();
    cpu.run(&mut env);
    let seconds = start.elapsed().as_secs_f64();
    let mips = cpu.retired() as f64 / seconds / 1e6;
    println!("{name:12} {:>12} instructions {seconds:8.3} s {mips:8.1} MIPS", cpu.retired());
    assert!(env.halted);
}

fn main() {
    let ram = Ram::new(64 << 20);
    let programs: [(&str, Program); 4] =
        [("arithmetic", arithmetic), ("calls", calls), ("memory", memory), ("vectors", vectors)];
    for (name, program) in programs {
        let mut a = CodeAssembler::new(64).expect("64-bit code");
        program(&mut a).expect("valid code");
        ram.write(CODE, &a.assemble(CODE).expect("encodable code"));
        run(name, &ram, CODE);
    }
    let rip = fresh(&ram);
    run("fresh", &ram, rip);
}

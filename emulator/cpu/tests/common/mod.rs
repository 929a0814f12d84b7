//! A small assembler and a 64-bit machine for the tests.

#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use softkvm_cpu::Cpu;
use softkvm_cpu::testing::{self, FlatEnv, Ram};

/// Where programs begin.
pub const CODE: u64 = 0x1_0000;
/// Where programs keep data.
pub const DATA: u64 = 0x2_0000;

/// Assembles at `at`, loads it there; returns where it ends.
pub fn load(
    ram: &Ram,
    at: u64,
    bits: u32,
    f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> u64 {
    let mut a = CodeAssembler::new(bits).expect("valid bitness");
    f(&mut a).expect("valid code");
    let bytes = a.assemble(at).expect("encodable code");
    ram.write(at, &bytes);
    at + bytes.len() as u64
}

/// A processor in 64-bit mode, its program at [`CODE`].
pub struct Machine {
    pub ram: Arc<Ram>,
    pub env: FlatEnv,
    pub cpu: Cpu,
}

impl Machine {
    pub fn new(program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        let ram = Ram::new(4 << 20);
        let (env, mut cpu) = FlatEnv::new(&ram);
        load(&ram, CODE, 64, program);
        testing::long_mode(&mut cpu, &ram, CODE);
        Self { ram, env, cpu }
    }

    /// Runs to HLT.
    pub fn run(&mut self) -> &mut Self {
        self.cpu.run(&mut self.env);
        assert!(self.env.halted, "no HLT: {:x?}", self.cpu.state);
        self
    }

    /// A handler that stores a marker, its error code if it has one, and CR2, and halts.
    pub fn handler(&mut self, vector: u8, ist: u8) {
        use iced_x86::code_asm::*;
        let at = 0xc000 + u64::from(vector) * 64;
        load(&self.ram, at, 64, |a| {
            a.mov(qword_ptr(DATA + 0xf00), i32::from(vector))?;
            a.mov(r15, cr2)?;
            a.hlt()
        });
        testing::set_gate(&self.ram, vector, at, ist, 3);
    }

    /// The vector whose handler ran last.
    pub fn vector(&self) -> u64 {
        self.ram.read_u64(DATA + 0xf00)
    }

    /// Word `n` of the stack.
    pub fn stack(&self, n: u64) -> u64 {
        self.ram.read_u64(self.cpu.state.gpr[4] + n * 8)
    }

    /// Replaces the 2 MiB mapping of `linear` by 4 KiB pages with `flags`, table at `table`.
    pub fn split(&self, linear: u64, table: u64, flags: u64) {
        self.ram.write_u64(testing::PAGE_TABLES + 0x2000 + (linear >> 21) * 8, table | 7);
        for i in 0..512 {
            self.ram.write_u64(table + i * 8, ((linear & !0x1f_ffff) + i * 0x1000) | flags);
        }
    }

    /// The 4 KiB entry of `linear` in the table at `table`.
    pub fn entry(table: u64, linear: u64) -> u64 {
        table + (linear >> 12 & 511) * 8
    }
}

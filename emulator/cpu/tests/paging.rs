//! The page walker: faults and their error codes, accessed and dirty bits, C-bit, supervisor protections.

mod common;

use common::{CODE, Machine};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softkvm_cpu::testing;
use softkvm_cpu::{Access, MemoryEncryption};

/// Table of 4 KiB pages for 4 MiB to 6 MiB, which is beyond RAM's code and data.
const TABLE: u64 = 0x3_0000;
const LINEAR: u64 = 0x40_0000;
/// Where `LINEAR` leads.
const TARGET: u64 = 0x5_0000;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const NX: u64 = 1 << 63;
const ERROR_PRESENT: u64 = 1;
const ERROR_WRITE: u64 = 2;
const ERROR_USER: u64 = 4;
const ERROR_RESERVED: u64 = 8;
const ERROR_FETCH: u64 = 16;

/// A machine whose program does one access, and whose page at `LINEAR` has the entry given.
fn machine(entry: u64, program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Machine {
    let mut m = Machine::new(program);
    m.split(LINEAR, TABLE, 7);
    m.ram.write_u64(Machine::entry(TABLE, LINEAR), entry);
    m.handler(14, 0);
    m
}

fn read(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, qword_ptr(LINEAR + 8))?;
    a.hlt()
}

fn fetch(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, LINEAR + 8)?;
    a.jmp(rax)
}

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

fn store(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(qword_ptr(LINEAR + 8), rbx)?;
    a.hlt()
}

#[test]
fn refused_accesses_fault_with_the_right_error_code() {
    let cases: [(&str, u64, Program, u64, u64); 8] = [
        ("absent, read", 0, read, 0, 0),
        ("absent, write", 0, store, 0, ERROR_WRITE),
        ("read-only, write with WP", TARGET | P | U, store, 0, ERROR_PRESENT | ERROR_WRITE),
        ("no-execute, fetch", TARGET | P | W | U | NX, fetch, 0, ERROR_PRESENT | ERROR_FETCH),
        ("reserved bit, read", TARGET | P | W | 1 << 50, read, 0, ERROR_PRESENT | ERROR_RESERVED),
        ("user page, fetch with SMEP", TARGET | P | W | U, fetch, 1 << 20, ERROR_PRESENT | ERROR_FETCH),
        ("user page, read with SMAP", TARGET | P | W | U, read, 1 << 21, ERROR_PRESENT),
        ("user page, write with SMAP", TARGET | P | W | U, store, 1 << 21, ERROR_PRESENT | ERROR_WRITE),
    ];
    for (name, entry, program, extra, error) in cases {
        let mut m = machine(entry, program);
        // Everything else is for the supervisor, or SMEP and SMAP would stop the program itself.
        m.ram.write_u64(testing::PAGE_TABLES + 0x2000, 0xe3);
        m.cpu.state.cr4 |= extra;
        m.cpu.state_changed();
        m.run();
        assert_eq!(m.vector(), 14, "{name}");
        assert_eq!(m.stack(0), error, "{name}");
        assert_eq!(m.cpu.state.cr2, LINEAR + 8, "{name}");
        let rip = if error & ERROR_FETCH != 0 { LINEAR + 8 } else { CODE };
        assert_eq!(m.stack(1), rip, "{name}");
    }
}

#[test]
fn user_accesses_to_supervisor_pages_say_so() {
    let mut m = machine(TARGET | P | W, read);
    m.cpu.state.cpl = 3;
    m.cpu.state.seg[1].selector = 0x23;
    m.cpu.state.seg[1].attributes = 0xafb;
    m.cpu.state.seg[2].selector = 0x1b;
    m.cpu.state.seg[2].attributes = 0xcf3;
    m.ram.write_u64(testing::TSS + 4, 0x7_0000);
    m.cpu.state_changed();
    m.run();
    assert_eq!((m.vector(), m.stack(0)), (14, ERROR_PRESENT | ERROR_USER));
    assert_eq!(m.cpu.state.cpl, 0);
    assert_eq!(m.stack(2), 0x23);
}

#[test]
fn stac_lets_the_supervisor_through_smap() {
    let mut m = machine(TARGET | P | W | U, |a| {
        a.stac()?;
        a.mov(rax, qword_ptr(LINEAR))?;
        a.clac()?;
        a.mov(rbx, qword_ptr(LINEAR))?;
        a.hlt()
    });
    m.ram.write_u64(testing::PAGE_TABLES + 0x2000, 0xe3);
    m.ram.write_u64(TARGET, 77);
    m.cpu.state.cr4 |= 1 << 21;
    m.cpu.state_changed();
    m.run();
    assert_eq!(m.cpu.state.gpr[0], 77);
    assert_eq!((m.vector(), m.stack(0)), (14, ERROR_PRESENT));
}

#[test]
fn accessed_and_dirty_are_set_when_due() {
    for (program, bits) in [(read as Program, 0x20), (store, 0x60)] {
        let mut m = machine(TARGET | P | W, program);
        m.run();
        assert_eq!(m.ram.read_u64(Machine::entry(TABLE, LINEAR)), TARGET | P | W | bits);
    }
    // A write after a read must still find the dirty bit clear and set it.
    let mut m = machine(TARGET | P | W, |a| {
        a.mov(rax, qword_ptr(LINEAR))?;
        a.mov(qword_ptr(LINEAR), rax)?;
        a.hlt()
    });
    m.run();
    assert_eq!(m.ram.read_u64(Machine::entry(TABLE, LINEAR)), TARGET | P | W | 0x60);
}

#[test]
fn invlpg_is_needed_and_enough() {
    let mut m = machine(TARGET | P | W, |a| {
        a.mov(rax, qword_ptr(LINEAR))?;
        a.mov(rcx, 0x6_0003u64)?;
        a.mov(qword_ptr(Machine::entry(TABLE, LINEAR)), rcx)?;
        a.mov(rbx, qword_ptr(LINEAR))?;
        a.invlpg(byte_ptr(LINEAR))?;
        a.mov(rdx, qword_ptr(LINEAR))?;
        a.hlt()
    });
    m.ram.write_u64(TARGET, 1);
    m.ram.write_u64(0x6_0000, 2);
    m.run();
    let [old, _, new, still, ..] = m.cpu.state.gpr;
    assert_eq!((old, still, new), (1, 1, 2));
}

#[test]
fn an_access_across_two_pages_faults_on_the_second() {
    let mut m = machine(TARGET | P | W, |a| {
        a.mov(rax, LINEAR + 0xffc)?;
        a.mov(qword_ptr(rax), rsp)?;
        a.hlt()
    });
    m.ram.write_u64(Machine::entry(TABLE, LINEAR + 0x1000), 0);
    m.run();
    assert_eq!((m.vector(), m.cpu.state.cr2), (14, LINEAR + 0x1000));
    assert_eq!(m.ram.read(TARGET + 0xffc, 4), [0; 4], "the first half must not be written");
}

#[test]
fn non_canonical_addresses_are_general_protection_or_stack_faults() {
    for (vector, base) in [(13, 3usize), (12, 5)] {
        let mut m = Machine::new(|a| {
            if base == 3 { a.mov(rax, qword_ptr(rbx)) } else { a.mov(rax, qword_ptr(rbp)) }?;
            a.hlt()
        });
        m.handler(vector, 0);
        m.cpu.state.gpr[base] = 1 << 47;
        m.run();
        assert_eq!((m.vector(), m.stack(0)), (u64::from(vector), 0));
    }
}

#[test]
fn the_c_bit_decides_the_view_of_data_only() {
    const C: u64 = 1 << 51;
    for (entry, private) in [(TARGET | P | W, false), (TARGET | P | W | C, true)] {
        let mut m = machine(entry, read);
        m.cpu.state.memory_encryption = MemoryEncryption::CBit(51);
        m.run();
        let of = |gpa: u64| m.env.requests.iter().filter(move |r| r.gpa >> 12 == gpa >> 12);
        assert!(of(TARGET).all(|r| r.private == private && !r.walk && r.access == Access::Read));
        assert_eq!(of(TARGET).count(), 1);
        // Walks and fetches are private although neither CR3 nor the code's mapping has the bit.
        assert!(of(TABLE).all(|r| r.private && r.walk));
        assert!(of(CODE).all(|r| r.private && r.access == Access::Execute));
    }
}

#[test]
fn a_stop_in_the_middle_restarts_the_instruction() {
    let mut m = machine(TARGET | P | W, |a| {
        a.inc(rbx)?;
        a.add(qword_ptr(LINEAR), 5)?;
        a.push(rbx)?;
        a.hlt()
    });
    m.ram.write_u64(TARGET, 10);
    m.env.missing = vec![TARGET >> 12, TARGET >> 12];
    for _ in 0..2 {
        m.cpu.run(&mut m.env);
        assert!(!m.env.halted);
        assert_eq!((m.cpu.state.rip, m.cpu.state.gpr[3]), (CODE + 3, 1));
    }
    m.run();
    assert_eq!(m.ram.read_u64(TARGET), 15);
    assert_eq!(m.stack(0), 1);
}

#[test]
fn legacy_and_pae_tables_translate() {
    // The same access through 32-bit tables and PAE tables, from compatibility-free 32-bit code.
    for pae in [false, true] {
        let mut m = Machine::new(|a| a.nop());
        common::load(&m.ram, CODE, 32, |a| {
            a.mov(eax, dword_ptr(LINEAR + 4))?;
            a.mov(dword_ptr(LINEAR + 8), eax)?;
            a.hlt()
        });
        let root = 0x8_0000u64;
        if pae {
            m.ram.write_u64(root, (root + 0x1000) | 1);
            m.ram.write_u64(root + 0x1000, 0x83);
            m.ram.write_u64(root + 0x1000 + (LINEAR >> 21) * 8, (root + 0x2000) | 3);
            m.ram.write_u64(root + 0x2000, TARGET | 3);
        } else {
            m.ram.write(root, &0x83u32.to_le_bytes());
            m.ram.write(root + (LINEAR >> 22) * 4, &(root as u32 + 0x1003).to_le_bytes());
            m.ram.write(root + 0x1000, &(TARGET as u32 | 3).to_le_bytes());
        }
        m.ram.write(TARGET + 4, &0xabcd_1234u32.to_le_bytes());
        let s = &mut m.cpu.state;
        s.efer = 0;
        s.cr3 = root;
        s.cr4 = if pae { 0x20 } else { 0x10 };
        s.seg[1].attributes = 0xc9b;
        m.cpu.state_changed();
        m.run();
        assert_eq!(m.ram.read(TARGET + 8, 4), 0xabcd_1234u32.to_le_bytes(), "pae {pae}");
        assert_eq!(m.cpu.state.gpr[0], 0xabcd_1234);
    }
}

#[test]
fn unmapped_guest_physical_addresses_are_mmio() {
    let mut m = machine(0x1000_0000 | P | W, |a| {
        a.mov(eax, dword_ptr(LINEAR + 4))?;
        a.mov(qword_ptr(LINEAR + 0x10), rcx)?;
        a.hlt()
    });
    m.cpu.state.gpr[1] = 0x1122_3344_5566_7788;
    m.run();
    assert_eq!(m.cpu.state.gpr[0], 0xffff_ffff);
    assert_eq!(m.env.writes, [(0x1000_0010, 0x1122_3344_5566_7788)]);
}

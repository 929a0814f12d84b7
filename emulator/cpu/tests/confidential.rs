//! The instructions of SEV-SNP and TDX reach the environment with the page that they name.

mod common;

use common::{CODE, DATA, Machine};
use softkvm_cpu::MemoryEncryption;
use softkvm_cpu::testing;

const C: u64 = 1 << 51;

/// PVALIDATE, RMPADJUST, RMPQUERY, both encodings of VMGEXIT, TDCALL.
#[test]
fn every_encoding_is_recognised() {
    let cases: [(&[u8], &str); 6] = [
        (&[0xf2, 0x0f, 0x01, 0xff], "pvalidate"),
        (&[0xf3, 0x0f, 0x01, 0xfe], "rmpadjust"),
        (&[0xf3, 0x0f, 0x01, 0xfd], "rmpquery"),
        (&[0xf3, 0x0f, 0x01, 0xd9], "vmgexit"),
        (&[0xf2, 0x0f, 0x01, 0xd9], "vmgexit"),
        (&[0x66, 0x0f, 0x01, 0xcc], "tdcall"),
    ];
    for (bytes, name) in cases {
        let mut m = Machine::new(|a| a.hlt());
        m.ram.write(CODE, bytes);
        m.ram.write(CODE + 4, &[0xf4]);
        m.cpu.state.gpr[0] = DATA;
        m.run();
        assert_eq!(m.env.confidential.first().map(|c| c.0), Some(name), "{bytes:02x?}");
    }
}

#[test]
fn pvalidate_names_the_page_without_touching_it() {
    let (table, linear, target) = (0x3_0000, 0x40_0123u64, 0x5_0000u64);
    let mut m = Machine::new(|a| a.hlt());
    m.ram.write(CODE, &[0xf2, 0x0f, 0x01, 0xff, 0xf4]);
    m.split(linear, table, 7);
    m.ram.write_u64(Machine::entry(table, linear), target | C | 3);
    m.cpu.state.memory_encryption = MemoryEncryption::CBit(51);
    m.cpu.state.gpr[0] = linear;
    m.run();
    assert_eq!(m.env.confidential, [("pvalidate", linear, target, true)]);
    assert!(m.env.requests.iter().all(|r| r.gpa >> 12 != target >> 12), "the page must not be resolved");
    assert_eq!((m.cpu.state.gpr[0], m.cpu.state.rflags & 1), (0, 1), "the environment's RAX and CF arrive");
}

#[test]
fn an_unmapped_page_faults_before_the_environment_is_asked() {
    let mut m = Machine::new(|a| a.hlt());
    m.ram.write(CODE, &[0xf2, 0x0f, 0x01, 0xff, 0xf4]);
    m.handler(14, 0);
    m.ram.write_u64(testing::PAGE_TABLES + 0x1000 + 8, 0);
    m.cpu.state.gpr[0] = 0x4000_0000;
    m.run();
    assert_eq!((m.vector(), m.cpu.state.cr2), (14, 0x4000_0000));
    assert!(m.env.confidential.is_empty());
}

#[test]
fn user_code_may_not_validate() {
    let mut m = Machine::new(|a| a.hlt());
    m.ram.write(CODE, &[0xf2, 0x0f, 0x01, 0xff, 0xf4]);
    m.handler(13, 0);
    m.cpu.state.cpl = 3;
    m.cpu.state.seg[1].selector = 0x23;
    m.cpu.state.seg[1].attributes = 0xafb;
    m.ram.write_u64(testing::TSS + 4, 0x7_0000);
    m.cpu.state_changed();
    m.run();
    assert_eq!((m.vector(), m.env.confidential.len()), (13, 0));
}

//! Page 0, executed: wherever a host makes a processor enter it in real mode, the processor stays in it and does nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cloister_firmware::vectors;
use softkvm_cpu::testing::{FlatEnv, Ram};
use softkvm_cpu::{Cpu, CpuState, Stop};

const PAGE: usize = 4096;
/// What SS:SP = 0:0 and real mode's 16-bit addresses reach.
const REACHED: usize = 0x1_0000;
/// What the launch's stack segment gets pushed to. In a guest it is never valid; here it is, or nothing would run.
const LAUNCH_STACK: usize = 0xF000;
/// `jmp .`.
const STOP: [u8; 2] = [0xEB, 0xFE];
/// Where nothing of the firmware's is: a processor that gets there runs the host's code.
const HOSTS: u8 = 0xA5;
/// More blocks than lead from one end of page 0 to the other.
const BLOCKS: u32 = 1000;

const CS: usize = 1;

fn memory() -> Arc<Ram> {
    let ram = Ram::new(REACHED);
    ram.write(0, &[HOSTS; REACHED]);
    let mut page = [HOSTS; PAGE];
    vectors::fill(&mut page);
    ram.write(0, &page);
    ram
}

/// Runs a processor in its launched state, but at this place, until it has had time to get anywhere.
fn run(ram: &Arc<Ram>, base: u64, offset: u64) -> (FlatEnv, Cpu) {
    let (mut env, mut cpu) = FlatEnv::new(ram);
    cpu.state = CpuState::reset();
    cpu.state.seg[CS].selector = (base >> 4) as u16;
    cpu.state.seg[CS].base = base;
    cpu.state.rip = offset;
    cpu.state_changed();
    env.port_value = BLOCKS;
    env.on_attention = Some(|env, _| {
        env.port_value -= 1;
        env.attention.store(1, Ordering::Relaxed);
        if env.port_value == 0 { Err(Stop::Exit) } else { Ok(()) }
    });
    env.attention.store(1, Ordering::Relaxed);
    cpu.run(&mut env);
    if env.halted {
        // The host enters it again.
        cpu.run(&mut env);
    }
    (env, cpu)
}

/// The processor stands still in page 0, and wrote nothing that anybody reads.
fn assert_stopped(ram: &Ram, env: &FlatEnv, cpu: &Cpu, what: &str) {
    assert!(!env.shut_down, "{what}: shut down");
    let at = (cpu.state.seg[CS].base + cpu.state.rip) as usize;
    assert!(at < PAGE, "{what}: at {at:#x}");
    assert_eq!(env.port_value, 0, "{what}: it left for another reason");
    assert_eq!(ram.read(at as u64, 2), STOP, "{what}: at {at:#x}");
    assert!(env.writes.is_empty(), "{what}: {:x?}", env.writes);
    let (found, filled) = (ram.read(0, REACHED), memory().read(0, REACHED));
    let changed = (2..LAUNCH_STACK).find(|&at| found[at] != filled[at]);
    assert_eq!(changed, None, "{what}: memory was written");
}

#[test]
fn from_every_offset_a_processor_comes_to_a_stop_in_the_page() {
    for offset in 0..PAGE as u64 {
        let ram = memory();
        let (env, cpu) = run(&ram, 0, offset);
        assert_stopped(&ram, &env, &cpu, &format!("offset {offset:#x}"));
    }
}

#[test]
fn every_vector_comes_to_a_stop_in_the_page() {
    const CODE: u64 = 0x8000;
    for vector in 0..=255_u8 {
        let ram = memory();
        ram.write(CODE, &[0xCD, vector]);
        let (env, cpu) = run(&ram, 0, CODE);
        // The instruction itself is not part of what is compared.
        ram.write(CODE, &[HOSTS; 2]);
        assert_stopped(&ram, &env, &cpu, &format!("vector {vector:#x}"));
        assert_ne!(cpu.state.gpr[4] & 0xFFFF, 0, "vector {vector:#x} was delivered");
    }
}

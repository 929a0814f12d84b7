//! Exceptions and interrupts: frames, stacks, windows, nesting.

mod common;

use std::sync::atomic::Ordering;

use common::{CODE, Machine, load};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softkvm_cpu::testing;
use softkvm_cpu::{Event, Exception};

const IST_STACK: u64 = 0x9_0008;

#[test]
fn an_ist_gate_switches_stacks_and_iret_comes_back() {
    let mut m = Machine::new(|a| {
        a.mov(ebx, 7)?;
        a.int3()?;
        a.mov(ecx, 9)?;
        a.hlt()
    });
    load(&m.ram, 0xc000, 64, |a| {
        a.mov(rdi, rsp)?;
        a.mov(rsi, qword_ptr(rsp + 24))?;
        a.iretq()
    });
    testing::set_gate(&m.ram, 3, 0xc000, 2, 0);
    m.ram.write_u64(testing::TSS + 0x24 + 8, IST_STACK);
    let top = m.cpu.state.gpr[4];
    m.run();
    // The stack is aligned to 16 bytes before the frame of five words.
    assert_eq!(m.cpu.state.gpr[7], (IST_STACK & !15) - 40);
    assert_eq!(m.cpu.state.gpr[6], top);
    assert_eq!((m.cpu.state.gpr[1], m.cpu.state.gpr[4]), (9, top));
}

#[test]
fn errors_while_delivering_escalate_to_double_fault_and_shutdown() {
    let program = |a: &mut CodeAssembler| a.ud2();
    // #UD without a handler is #GP (not contributory with #UD), whose handler is missing too: #DF.
    let mut m = Machine::new(program);
    m.handler(8, 0);
    m.run();
    assert_eq!((m.vector(), m.stack(0)), (8, 0));
    let mut m = Machine::new(program);
    m.cpu.run(&mut m.env);
    assert!(m.env.shut_down && !m.env.halted);
}

#[test]
fn a_fault_pushes_its_own_address_and_a_trap_the_next() {
    for (program, vector, at) in [
        ((|a: &mut CodeAssembler| a.ud2()) as fn(&mut CodeAssembler) -> Result<(), IcedError>, 6, 0),
        (|a| a.int3(), 3, 1),
        (|a| a.int(0x21), 0x21, 2),
        (|a| a.div(ecx), 0, 0),
    ] {
        let mut m = Machine::new(program);
        m.handler(vector, 0);
        m.run();
        assert_eq!((m.vector(), m.stack(0)), (u64::from(vector), CODE + at));
    }
}

#[test]
fn gate_privilege_is_checked_for_software_interrupts_only() {
    let mut m = Machine::new(|a| a.int(0x80));
    m.handler(0x80, 0);
    m.handler(13, 0);
    testing::set_gate(&m.ram, 0x80, 0xc000, 0, 0);
    m.cpu.state.cpl = 3;
    m.cpu.state.seg[1].selector = 0x23;
    m.cpu.state.seg[1].attributes = 0xafb;
    m.cpu.state.seg[2].selector = 0x1b;
    m.cpu.state.seg[2].attributes = 0xcf3;
    m.ram.write_u64(testing::TSS + 4, 0x7_0000);
    m.cpu.state_changed();
    m.run();
    assert_eq!((m.vector(), m.stack(0)), (13, 0x80 << 3 | 2));
}

#[test]
fn an_interrupt_waits_for_the_instruction_after_sti() {
    let mut m = Machine::new(|a| {
        a.sti()?;
        a.inc(ebx)?;
        a.inc(ebx)?;
        a.hlt()
    });
    m.handler(0x40, 0);
    m.env.on_attention = Some(|env, cpu| {
        if cpu.interrupt_window_open() {
            cpu.deliver(env, Event::Interrupt(0x40));
        } else {
            cpu.request_interrupt_window();
        }
        Ok(())
    });
    m.env.attention.store(1, Ordering::Relaxed);
    m.run();
    assert_eq!(m.vector(), 0x40);
    assert_eq!(m.cpu.state.gpr[3], 1, "one instruction after STI, not two");
    assert_eq!(m.stack(0), CODE + 3);
    assert_eq!(m.cpu.state.rflags & 0x200, 0, "an interrupt gate clears IF");
}

#[test]
fn attention_is_noticed_in_a_loop_without_exits() {
    let mut m = Machine::new(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(rax)?;
        a.jmp(top)
    });
    let attention = m.env.attention.clone();
    let kicker = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        attention.store(1, Ordering::Relaxed);
    });
    m.cpu.run(&mut m.env);
    kicker.join().expect("the kicker does not panic");
    assert!(m.cpu.state.gpr[0] > 0);
}

#[test]
fn single_stepping_traps_after_each_instruction() {
    let mut m = Machine::new(|a| {
        a.pushfq()?;
        a.or(dword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.inc(ebx)?;
        a.inc(ebx)?;
        a.hlt()
    });
    load(&m.ram, 0xc000, 64, |a| {
        a.inc(r12)?;
        a.cmp(r12, 2)?;
        let mut back = a.create_label();
        a.jne(back)?;
        a.and(dword_ptr(rsp + 16), -0x101)?;
        a.set_label(&mut back)?;
        a.iretq()
    });
    testing::set_gate(&m.ram, 1, 0xc000, 0, 0);
    m.run();
    assert_eq!((m.cpu.state.gpr[12], m.cpu.state.gpr[3]), (2, 2));
    assert_ne!(m.cpu.state.dr6 & 1 << 14, 0);
}

#[test]
fn an_interrupt_whose_stack_is_missing_stays_pending() {
    let mut m = Machine::new(|a| {
        a.nop()?;
        a.hlt()
    });
    m.handler(0x50, 1);
    m.ram.write_u64(testing::TSS + 0x24, 0x30_1000);
    m.env.missing = vec![0x300];
    m.cpu.state.rflags |= 0x200;
    m.cpu.deliver(&mut m.env, Event::Interrupt(0x50));
    assert_eq!(m.cpu.pending_event(), Some(Event::Interrupt(0x50)));
    assert_eq!(m.cpu.state.rip, CODE);
    m.run();
    assert_eq!(m.vector(), 0x50);
    assert_eq!(m.cpu.pending_event(), None);
}

#[test]
fn queued_exceptions_carry_their_error_code() {
    let mut m = Machine::new(|a| a.hlt());
    m.handler(29, 0);
    m.cpu.deliver(&mut m.env, Event::Exception(Exception::vc(0x72)));
    m.run();
    assert_eq!((m.vector(), m.stack(0), m.stack(1)), (29, 0x72, CODE));
}

#[test]
fn syscall_and_sysret_change_privilege_and_mask_flags() {
    let mut m = Machine::new(|a| {
        a.mov(rcx, 0x1_8000u64)?;
        a.mov(r11, 0x206u64)?;
        a.sysretq()
    });
    load(&m.ram, 0x1_8000, 64, |a| a.syscall());
    load(&m.ram, 0x1_9000, 64, |a| a.hlt());
    m.cpu.state.star = 0x0013_0008 << 32;
    m.cpu.state.lstar = 0x1_9000;
    m.cpu.state.sfmask = 0x200;
    m.run();
    let s = &m.cpu.state;
    assert_eq!((s.cpl, s.seg[1].selector, s.seg[2].selector), (0, 8, 0x10));
    assert_eq!((s.gpr[1], s.gpr[11], s.rflags & 0x204), (0x1_8002, 0x206, 4));
}

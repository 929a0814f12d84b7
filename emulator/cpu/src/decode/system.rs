//! The system operations' table, and the last resort.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::Form;
use crate::cpu::{Cpu, Result};
use crate::op::{Exec, Insn, Op, SS};
use crate::ops::{confidential, control, io, msr, segments};

pub(crate) use crate::ops::control::unimplemented;
pub(crate) use crate::ops::segments::pop_seg;

/// MOV with a segment, control or debug register.
pub(super) fn mov(i: &Instruction) -> Form {
    let (a, b) = (i.op0_register(), i.op1_register());
    let from_register = i.op1_kind() == OpKind::Register;
    if i.op0_kind() == OpKind::Register && a.is_segment_register() {
        Form::System(segments::mov_to_seg)
    } else if from_register && b.is_segment_register() {
        Form::System(mov_from_seg)
    } else if i.op0_kind() == OpKind::Register && a.is_cr() {
        Form::System(control::mov_to_cr)
    } else if from_register && b.is_cr() {
        Form::System(control::mov_from_cr)
    } else if i.op0_kind() == OpKind::Register && a.is_dr() {
        Form::System(control::mov_to_dr)
    } else if from_register && b.is_dr() {
        Form::System(control::mov_from_dr)
    } else {
        Form::Unimplemented
    }
}

/// MOV from a segment register: the operand size to a register, 16 bits to memory.
fn mov_from_seg(cpu: &mut Cpu, op: &Op, insn: &Insn) -> Result<()> {
    use crate::access::{Ea, General};
    let selector = cpu.state.seg[insn.iced.op1_register().number() % 6].selector;
    if insn.iced.op0_kind() == OpKind::Register {
        return cpu.set_operand(op, &insn.iced, 0, u64::from(selector));
    }
    let linear = General::linear(cpu, op, 2, true)?;
    cpu.store(linear, selector)
}

/// Far JMP and CALL.
pub(super) fn far(op: &mut Op, i: &Instruction) -> Form {
    op.aux = match i.code() {
        Code::Jmp_ptr1616 | Code::Jmp_m1616 | Code::Call_ptr1616 | Code::Call_m1616 => 2,
        Code::Jmp_m1664 | Code::Call_m1664 => 8,
        _ => 4,
    };
    if i.mnemonic() == Mnemonic::Jmp {
        Form::System(segments::jmp_far)
    } else {
        Form::System(segments::call_far)
    }
}

/// `aux` and handler of the system operations.
pub(super) fn select(op: &mut Op, i: &Instruction) -> Form {
    use Mnemonic::*;
    let (aux, exec): (u8, Exec) = match i.mnemonic() {
        In => (port_bytes(i, 0), io::port_in),
        Out => (port_bytes(i, 1), io::port_out),
        Les | Lds | Lss | Lfs | Lgs => (0, segments::load_far_pointer),
        Retf => (
            match i.code() {
                Code::Retfw | Code::Retfw_imm16 => 2,
                Code::Retfd | Code::Retfd_imm16 => 4,
                _ => 8,
            },
            segments::ret_far,
        ),
        Iret => (2, segments::iret),
        Iretd => (4, segments::iret),
        Iretq => (8, segments::iret),
        Syscall => (0, segments::syscall),
        Sysret => (4, segments::sysret),
        Sysretq => (8, segments::sysret),
        Sysenter => (0, segments::sysenter),
        Sysexit => (4, segments::sysexit),
        Sysexitq => (8, segments::sysexit),
        Swapgs => (0, segments::swapgs),
        Lar => (0, segments::lar),
        Lsl => (0, segments::lsl),
        Verr => (0, segments::verr),
        Verw => (0, segments::verw),
        Arpl => (0, segments::arpl),
        Lgdt | Lidt => (0, segments::load_table),
        Sgdt | Sidt => (0, segments::store_table),
        Sldt | Str | Smsw => (0, segments::store_selector),
        Lldt => (0, segments::lldt),
        Ltr => (0, segments::ltr),
        Rdfsbase | Rdgsbase | Wrfsbase | Wrgsbase => (0, segments::segment_base),
        Lmsw => (0, control::lmsw),
        Clts => (0, control::clts),
        Invlpg => (0, control::invlpg),
        Invpcid => (0, control::invpcid),
        Invd | Wbinvd | Wbnoinvd => (0, control::wbinvd),
        Cli => (0, control::cli),
        Sti => (0, control::sti),
        Clac => (0, control::alignment_check),
        Stac => (1, control::alignment_check),
        Hlt => (0, control::hlt),
        Monitor | Mwait => (0, control::mwait),
        Pause => (0, control::pause),
        Cpuid => (0, control::cpuid),
        Rdtsc | Rdtscp => (0, control::rdtsc),
        Rdpmc => (0, control::rdpmc),
        Rdpid => (0, control::rdpid),
        Rdmsr => (0, msr::rdmsr),
        Wrmsr => (0, msr::wrmsr),
        Int => (0, control::int_n),
        Int3 => (0, control::int3),
        Int1 => (0, control::int1),
        Into => (0, control::into),
        Bound => (0, control::bound),
        Serialize => (0, control::serialize),
        Pvalidate => (0, confidential::pvalidate),
        Rmpadjust => (0, confidential::rmpadjust),
        Rmpquery => (0, confidential::rmpquery),
        Vmgexit => (0, confidential::vmgexit),
        Vmmcall => (0, confidential::vmmcall),
        Vmcall => (0, confidential::vmcall),
        Tdcall => (0, confidential::tdcall),
        _ if crate::native::supports(i) => return Form::Native,
        _ => return Form::Unimplemented,
    };
    op.aux = aux;
    if matches!(i.mnemonic(), Retf | Iret | Iretd | Iretq) {
        op.seg = SS;
    }
    Form::System(exec)
}

fn port_bytes(i: &Instruction, operand: u32) -> u8 {
    i.op_register(operand).size() as u8
}

//! From bytes to blocks of operations.
//!
//! iced-x86 reads the bytes; the tables here choose a handler by mnemonic, operand kinds, width and addressing
//! form. What has no form of its own becomes a system operation, runs natively, or is #UD.

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use crate::cpu::mode;
use crate::op::{DS, Exec, Handler, Insn, NONE, Op, RIP, chain, thread};
use crate::ops::branch;
use crate::ops::operand::gpr_index;

mod form;
mod system;
mod table;

/// Most operations in a block.
pub(crate) const MAX_OPS: usize = 64;

/// What [`decode`] makes of a run of bytes.
pub(crate) struct Decoded {
    pub(crate) ops: Vec<Op>,
    pub(crate) insns: Vec<Insn>,
    /// Operations whose `imm` becomes the address of an instruction.
    pub(crate) with_insn: Vec<(usize, usize)>,
    /// Bytes decoded; 0 if the first instruction needs more bytes.
    pub(crate) length: u16,
    /// Instructions decoded.
    pub(crate) count: u16,
}

/// What an instruction becomes.
pub(crate) enum Form {
    /// An operation.
    Op(Handler),
    /// An operation that needs its whole instruction.
    WithInsn(Handler),
    /// A system operation: ends the block.
    System(Exec),
    /// Runs natively on the host.
    Native,
    /// Not for us.
    Unimplemented,
}

/// The mnemonic, for diagnosis.
pub(crate) fn name(m: Mnemonic) -> &'static str {
    let table: &'static std::sync::Mutex<std::collections::HashMap<Mnemonic, &'static str>> = {
        static NAMES: std::sync::LazyLock<
            std::sync::Mutex<std::collections::HashMap<Mnemonic, &'static str>>,
        > = std::sync::LazyLock::new(Default::default);
        &NAMES
    };
    let mut names = table.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // One leak per mnemonic of the instruction set, at most.
    names.entry(m).or_insert_with(|| format!("{m:?}").leak())
}

/// Decodes a block. `single` stops after one instruction.
pub(crate) fn decode(bytes: &[u8], code: u8, single: bool) -> Decoded {
    let bitness = match code {
        mode::CODE64 => 64,
        mode::CODE32 => 32,
        _ => 16,
    };
    let mut decoder = Decoder::with_ip(bitness, bytes, 0, DecoderOptions::AMD);
    let mut out = Decoded {
        ops: Vec::with_capacity(16),
        insns: Vec::new(),
        with_insn: Vec::new(),
        length: 0,
        count: 0,
    };
    let most = if single { 1 } else { MAX_OPS };
    let mut insn = Instruction::default();
    let mut open = true;
    while open && usize::from(out.count) < most && decoder.can_decode() {
        let start = decoder.position() as u16;
        decoder.decode_out(&mut insn);
        if insn.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        let end = decoder.position() as u16;
        open = push(&mut out, &insn, code, start, end);
        out.length = end;
        out.count += 1;
    }
    if open {
        let end = out.length;
        out.ops.push(Op { run: chain(branch::fall_through), start: end, end, ..crate::op::IDLE });
    }
    out
}

/// Appends one instruction; false if the block ends with it.
fn push(out: &mut Decoded, i: &Instruction, code: u8, start: u16, end: u16) -> bool {
    let mut op = Op { start, end, address: address_size(i, code), ..crate::op::IDLE };
    if i.is_invalid() {
        out.ops.push(Op { run: thread(branch::undefined), ..op });
        return false;
    }
    operands(&mut op, i, end);
    let form = table::select(&mut op, i, code);
    let number = out.ops.len();
    let (run, exec, ends) = match form {
        Form::Op(run) => (run, None, ends_block(i)),
        Form::WithInsn(run) => (run, Some(system::unimplemented as Exec), ends_block(i)),
        Form::System(exec) => (thread(crate::ops::system::system), Some(exec), true),
        Form::Native => (thread(crate::native::run), Some(system::unimplemented as _), false),
        Form::Unimplemented => (thread(crate::ops::system::system), Some(system::unimplemented as _), true),
    };
    op.run = run;
    out.ops.push(op);
    if let Some(exec) = exec {
        out.with_insn.push((number, out.insns.len()));
        out.insns.push(Insn { iced: *i, exec, native: crate::native::Plan::of(i) });
    }
    !ends
}

/// Control transfers, whatever their form.
fn ends_block(i: &Instruction) -> bool {
    i.flow_control() != iced_x86::FlowControl::Next
}

/// Log2 of the address size of memory operands, of string pointers, of LOOP's counter.
fn address_size(i: &Instruction, code: u8) -> u8 {
    let log2 = |bytes: usize| match bytes {
        8 => 3,
        4 => 2,
        _ => 1,
    };
    let code_size = match code {
        mode::CODE64 => 3,
        mode::CODE32 => 2,
        _ => 1,
    };
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Memory => {
                let register =
                    if i.memory_base() != Register::None { i.memory_base() } else { i.memory_index() };
                return match register {
                    Register::None if i.memory_displ_size() == 0 => code_size,
                    Register::None => log2(i.memory_displ_size() as usize),
                    r => log2(r.size()),
                };
            }
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 1,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 2,
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => return 3,
            _ => {}
        }
    }
    use Code::*;
    match i.code() {
        Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX | Loopne_rel8_16_CX
        | Loopne_rel8_32_CX | Jcxz_rel8_16 | Jcxz_rel8_32 => 1,
        Loop_rel8_16_ECX | Loop_rel8_32_ECX | Loop_rel8_64_ECX | Loope_rel8_16_ECX | Loope_rel8_32_ECX
        | Loope_rel8_64_ECX | Loopne_rel8_16_ECX | Loopne_rel8_32_ECX | Loopne_rel8_64_ECX
        | Jecxz_rel8_16 | Jecxz_rel8_32 | Jecxz_rel8_64 => 2,
        Loop_rel8_16_RCX | Loop_rel8_64_RCX | Loope_rel8_16_RCX | Loope_rel8_64_RCX | Loopne_rel8_16_RCX
        | Loopne_rel8_64_RCX | Jrcxz_rel8_16 | Jrcxz_rel8_64 => 3,
        _ => code_size,
    }
}

/// Fills the operand fields that most forms share.
fn operands(op: &mut Op, i: &Instruction, end: u16) {
    let number = |r: Register| if r.is_gpr() { gpr_index(r) } else { r.number() as u8 };
    if i.op_count() > 0 && i.op0_kind() == OpKind::Register {
        op.dst = number(i.op0_register());
    }
    if i.op_count() > 1 && i.op1_kind() == OpKind::Register {
        op.src = number(i.op1_register());
    }
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Memory => memory(op, i, end),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                op.imm = i.near_branch_target()
            }
            OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI => op.seg = segment(i),
            OpKind::Register | OpKind::Immediate8_2nd => {}
            OpKind::FarBranch16 | OpKind::FarBranch32 => {}
            _ => {
                if let Ok(v) = i.try_immediate(n) {
                    op.imm = v;
                }
            }
        }
    }
}

fn segment(i: &Instruction) -> u8 {
    match i.memory_segment() {
        Register::None => DS,
        r => r.number() as u8,
    }
}

fn memory(op: &mut Op, i: &Instruction, end: u16) {
    op.seg = segment(i);
    op.base = match i.memory_base() {
        Register::None => NONE,
        Register::RIP | Register::EIP => RIP,
        r => r.number() as u8 & 15,
    };
    op.disp = match op.base {
        RIP => i.memory_displacement64().wrapping_sub(u64::from(end)) as i32,
        _ => i.memory_displacement64() as i32,
    };
    if i.memory_index().is_gpr() {
        op.index = i.memory_index().number() as u8 & 15;
        op.scale = i.memory_index_scale().trailing_zeros() as u8;
    }
}

/// Length of an instruction of this process's, for a signal handler that skips it: nothing is allocated.
pub fn length_of_host_instruction(code: &[u8]) -> Option<usize> {
    let instruction = Decoder::new(64, code, DecoderOptions::NONE).decode();
    (!instruction.is_invalid()).then(|| instruction.len())
}

//! Random instructions: every encoding that iced-x86 knows, of the sets that the processor implements.

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Encoder, FlowControl, Instruction, Mnemonic,
    OpCodeOperandKind as K, OpKind, Register,
};

use crate::state::Random;

/// One encoding, ready to be filled with operands.
#[derive(Clone, Copy)]
pub struct Form {
    pub code: Code,
    pub kinds: [K; 4],
    pub count: usize,
}

fn implemented(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL186
            | F::INTEL286
            | F::INTEL386
            | F::INTEL486
            | F::X64
            | F::CMOV
            | F::CX8
            | F::CMPXCHG16B
            | F::FPU
            | F::FPU287
            | F::FPU387
            | F::MMX
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::AES
            | F::PCLMULQDQ
            | F::SHA
            | F::BMI1
            | F::BMI2
            | F::ADX
            | F::POPCNT
            | F::LZCNT
            | F::MOVBE
    )
}

/// What cannot be compared: privileged, system-dependent, or with the instruction's address in its result; LDMXCSR,
/// because the host may know a bit that the processor does not (misaligned SSE mode); MASKMOVQ, which is not implemented.
fn excluded(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        m,
        Fxsave
            // The host may know an MXCSR bit that the processor does not (misaligned SSE mode).
            | Ldmxcsr
            // Not implemented: no compiler has emitted it for decades.
            | Maskmovq
            | Fxsave64
            | Fxrstor
            | Fxrstor64
            | Fnstenv
            | Fstenv
            | Fnsave
            | Fsave
            | Fldenv
            | Frstor
            | Popf
            | Popfd
            | Popfq
            | Enter
            | Sgdt
            | Sidt
            | Sldt
            | Str
            | Smsw
            | Lar
            | Lsl
            | Verr
            | Verw
            | Cpuid
            | Lss
            | Lfs
            | Lgs
            | Rsm
            | Getsec
            | Wait
            | Sysenter
            | Sysexit
            | Prefetchnta
            | Prefetcht0
            | Prefetcht1
            | Prefetcht2
            | Fstdw
            | Fstsg
            | Fsetpm
            | Frstpm
            | Ud0
            | Ud1
            | Cli
            | Sti
            | In
            | Out
            | Insb
            | Insw
            | Insd
            | Outsb
            | Outsw
            | Outsd
    )
}

fn known(kind: K) -> bool {
    !matches!(
        kind,
        K::seg_reg
            | K::cr_reg
            | K::dr_reg
            | K::tr_reg
            | K::es
            | K::cs
            | K::ss
            | K::ds
            | K::fs
            | K::gs
            | K::mem_offs
    ) && make(kind).is_some()
}

/// What a kind becomes.
enum Operand {
    Gpr(u8),
    Fixed(Register),
    Xmm,
    Mm,
    St,
    Memory,
    /// Or memory instead.
    OrMemory(&'static Operand),
    Immediate(OpKind),
    Implied(OpKind),
}

fn make(kind: K) -> Option<Operand> {
    use Operand::*;
    Some(match kind {
        K::r8_or_mem => OrMemory(&Gpr(1)),
        K::r16_or_mem => OrMemory(&Gpr(2)),
        K::r32_or_mem => OrMemory(&Gpr(4)),
        K::r64_or_mem => OrMemory(&Gpr(8)),
        K::xmm_or_mem => OrMemory(&Xmm),
        K::mm_or_mem => OrMemory(&Mm),
        K::r8_reg | K::r8_opcode => Gpr(1),
        K::r16_reg | K::r16_rm | K::r16_opcode => Gpr(2),
        K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv => Gpr(4),
        K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv => Gpr(8),
        K::xmm_reg | K::xmm_rm => Xmm,
        K::mm_reg | K::mm_rm => Mm,
        K::sti_opcode => St,
        K::mem => Memory,
        K::al => Fixed(Register::AL),
        K::cl => Fixed(Register::CL),
        K::ax => Fixed(Register::AX),
        K::dx => Fixed(Register::DX),
        K::eax => Fixed(Register::EAX),
        K::rax => Fixed(Register::RAX),
        K::st0 => Fixed(Register::ST0),
        K::imm8 | K::imm8_const_1 => Immediate(OpKind::Immediate8),
        K::imm8sex16 => Immediate(OpKind::Immediate8to16),
        K::imm8sex32 => Immediate(OpKind::Immediate8to32),
        K::imm8sex64 => Immediate(OpKind::Immediate8to64),
        K::imm16 => Immediate(OpKind::Immediate16),
        K::imm32 => Immediate(OpKind::Immediate32),
        K::imm32sex64 => Immediate(OpKind::Immediate32to64),
        K::imm64 => Immediate(OpKind::Immediate64),
        K::seg_rSI => Implied(OpKind::MemorySegRSI),
        K::es_rDI => Implied(OpKind::MemoryESRDI),
        K::seg_rDI => Implied(OpKind::MemorySegRDI),
        _ => return None,
    })
}

/// Every form worth testing.
pub fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for code in Code::values() {
        let info = code.op_code();
        let mut i = Instruction::default();
        i.set_code(code);
        let usable = info.is_instruction()
            && info.mode64()
            && !info.is_privileged()
            && i.flow_control() == FlowControl::Next
            && !excluded(code.mnemonic())
            && code.cpuid_features().iter().all(|f| implemented(*f))
            && info.op_kinds().iter().all(|k| known(*k));
        if usable {
            let mut kinds = [K::None; 4];
            kinds[..info.op_kinds().len()].copy_from_slice(info.op_kinds());
            forms.push(Form { code, kinds, count: info.op_kinds().len() });
        }
    }
    forms
}

fn gpr(random: &mut Random, bytes: u8) -> Register {
    // The stack pointer and the registers that hold addresses are seldom results.
    const USUAL: [u32; 11] = [0, 1, 2, 3, 8, 9, 10, 11, 14, 15, 5];
    let n = if random.one_in(12) { random.below(16) as u32 } else { random.pick(&USUAL) };
    match bytes {
        1 => Register::AL + random.below(20) as u32,
        2 => Register::AX + n,
        4 => Register::EAX + n,
        _ => Register::RAX + n,
    }
}

fn memory(random: &mut Random, i: &mut Instruction) {
    let base = random.pick(&[
        Register::RBP,
        Register::R12,
        Register::R13,
        Register::RSI,
        Register::RDI,
        Register::RSP,
    ]);
    i.set_memory_base(base);
    if random.one_in(3) {
        i.set_memory_index(Register::R14);
        i.set_memory_index_scale(1 << random.below(4));
    }
    i.set_memory_displ_size(1);
    i.set_memory_displacement64(random.below(64).wrapping_sub(32));
}

fn operand(random: &mut Random, i: &mut Instruction, n: u32, o: &Operand) {
    let register = |i: &mut Instruction, r| {
        i.set_op_kind(n, OpKind::Register);
        i.set_op_register(n, r);
    };
    match o {
        Operand::Gpr(bytes) => register(i, gpr(random, *bytes)),
        Operand::Fixed(r) => register(i, *r),
        Operand::Xmm => register(i, Register::XMM0 + random.below(16) as u32),
        Operand::Mm => register(i, Register::MM0 + random.below(8) as u32),
        Operand::St => register(i, Register::ST0 + random.below(8) as u32),
        Operand::Memory => {
            i.set_op_kind(n, OpKind::Memory);
            memory(random, i);
        }
        Operand::OrMemory(_) if random.one_in(2) => {
            i.set_op_kind(n, OpKind::Memory);
            memory(random, i);
        }
        Operand::OrMemory(other) => operand(random, i, n, other),
        Operand::Immediate(kind) => {
            i.set_op_kind(n, *kind);
            let v = random.interesting();
            match kind {
                OpKind::Immediate8 => i.set_immediate8(v as u8),
                OpKind::Immediate8to16 => i.set_immediate8to16(v as i8 as i16),
                OpKind::Immediate8to32 => i.set_immediate8to32(v as i8 as i32),
                OpKind::Immediate8to64 => i.set_immediate8to64(v as i8 as i64),
                OpKind::Immediate16 => i.set_immediate16(v as u16),
                OpKind::Immediate32 => i.set_immediate32(v as u32),
                OpKind::Immediate32to64 => i.set_immediate32to64(v as i32 as i64),
                _ => i.set_immediate64(v),
            }
        }
        Operand::Implied(kind) => i.set_op_kind(n, *kind),
    }
}

/// A conditional or unconditional branch over `bytes` bytes, and the flags that it reads (as [`iced_x86::RflagsBits`]).
pub fn branch_over(random: &mut Random, bytes: u8) -> (Vec<u8>, u32) {
    let condition = random.below(16) as u8;
    let encoded = match random.below(8) {
        0 => vec![0xeb, bytes],
        // LOOPNE, LOOPE, LOOP and JRCXZ.
        1 | 2 => vec![0xe0 + (condition & 3), bytes],
        3 | 4 => vec![0x0f, 0x80 + condition, bytes, 0, 0, 0],
        _ => vec![0x70 + condition, bytes],
    };
    let reads = Decoder::new(64, &encoded, DecoderOptions::NONE).decode().rflags_read();
    (encoded, reads)
}

/// A random instruction of a form, encoded; `None` if the combination has no encoding.
pub fn instruction(random: &mut Random, form: &Form) -> Option<(Instruction, Vec<u8>)> {
    let mut i = Instruction::default();
    i.set_code(form.code);
    for (n, kind) in form.kinds[..form.count].iter().enumerate() {
        if *kind == K::imm8_const_1 {
            i.set_op_kind(n as u32, OpKind::Immediate8);
            i.set_immediate8(1);
            continue;
        }
        operand(random, &mut i, n as u32, &make(*kind)?);
    }
    if i.is_string_instruction() && random.one_in(2) {
        let compares = i.rflags_modified() != 0;
        if compares && random.one_in(2) {
            i.set_has_repne_prefix(true);
        } else {
            i.set_has_rep_prefix(true);
        }
    }
    if form.code.op_code().can_use_lock_prefix() && i.op0_kind() == OpKind::Memory && random.one_in(3) {
        i.set_has_lock_prefix(true);
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&i, 0).ok()?;
    Some((i, encoder.take_buffer()))
}

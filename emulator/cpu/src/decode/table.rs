//! The table of mnemonics.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::form::{self, EaForm, Kind, Shape, by_ea, by_wide_width, by_width};
use super::{Form, segment, system};
use crate::access::{Base, BaseIndex, General};
use crate::op::{Handler, Op, thread};
use crate::ops::operand::operand_bytes;
use crate::ops::{alu, bits, branch, data, decimal, fpu, misc, stack, string};

pub(super) fn select(op: &mut Op, i: &Instruction, code: u8) -> Form {
    use Mnemonic::*;
    let bytes = if i.op_count() > 0 { operand_bytes(i, 0) } else { 0 };
    let s = Shape {
        kinds: (form::kind(i, 0), form::kind(i, 1)),
        bytes,
        ea: form::ea_form(op, code),
        locked: i.has_lock_prefix(),
    };
    match i.mnemonic() {
        Mov => form::mov(op, i, &s),
        Add => form::binary::<alu::Add>(&s),
        Adc => form::binary::<alu::Adc>(&s),
        Sub => form::binary::<alu::Sub>(&s),
        Sbb => form::binary::<alu::Sbb>(&s),
        And => form::binary::<alu::And>(&s),
        Or => form::binary::<alu::Or>(&s),
        Xor => form::binary::<alu::Xor>(&s),
        Cmp => form::binary::<alu::Cmp>(&s),
        Test => form::binary::<alu::Test>(&s),
        Inc => form::unary::<alu::Inc>(&s),
        Dec => form::unary::<alu::Dec>(&s),
        Neg => form::unary::<alu::Neg>(&s),
        Not => form::unary::<alu::Not>(&s),
        Rol => form::shift::<alu::Rol>(&s),
        Ror => form::shift::<alu::Ror>(&s),
        Rcl => form::shift::<alu::Rcl>(&s),
        Rcr => form::shift::<alu::Rcr>(&s),
        Shl | Sal => form::shift::<alu::Shl>(&s),
        Shr => form::shift::<alu::Shr>(&s),
        Sar => form::shift::<alu::Sar>(&s),
        Lea => form::lea(op, &s),
        Movzx => form::extend::<false>(i, &s),
        Movsx | Movsxd => form::extend::<true>(i, &s),
        Push | Pop => form::push_pop(op, i, &s, code),
        Jmp | Call | Ret | Loop | Loope | Loopne | Jcxz | Jecxz | Jrcxz => form::near_branch(op, i, &s, code),
        Jo | Jno | Jb | Jae | Je | Jne | Jbe | Ja | Js | Jns | Jp | Jnp | Jl | Jge | Jle | Jg => {
            form::near_branch(op, i, &s, code)
        }
        Seto | Setno | Setb | Setae | Sete | Setne | Setbe | Seta | Sets | Setns | Setp | Setnp | Setl
        | Setge | Setle | Setg | Cmovo | Cmovno | Cmovb | Cmovae | Cmove | Cmovne | Cmovbe | Cmova
        | Cmovs | Cmovns | Cmovp | Cmovnp | Cmovl | Cmovge | Cmovle | Cmovg => form::conditional(i, &s),
        Imul => form::multiply(i, &s),
        Mul => match s.kinds.0 {
            Kind::Reg => by_width!(s.bytes, alu::mul_r),
            _ => by_ea!(s.bytes, s.ea, alu::mul_m),
        },
        Div => match s.kinds.0 {
            Kind::Reg => by_width!(s.bytes, alu::div_r),
            _ => by_ea!(s.bytes, s.ea, alu::div_m),
        },
        Idiv => match s.kinds.0 {
            Kind::Reg => by_width!(s.bytes, alu::idiv_r),
            _ => by_ea!(s.bytes, s.ea, alu::idiv_m),
        },
        Bt => form::bit(op, &s, bits::TEST),
        Bts => form::bit(op, &s, bits::SET),
        Btr => form::bit(op, &s, bits::RESET),
        Btc => form::bit(op, &s, bits::COMPLEMENT),
        Bsf => form::scan(op, &s, bits::BSF),
        Bsr => form::scan(op, &s, bits::BSR),
        Tzcnt => form::scan(op, &s, bits::TZCNT),
        Lzcnt => form::scan(op, &s, bits::LZCNT),
        Popcnt => form::scan(op, &s, bits::POPCNT),
        Shld => form::double_shift(op, i, &s, 0),
        Shrd => form::double_shift(op, i, &s, 1),
        Xchg | Xadd | Cmpxchg => form::exchange(op, i, &s),
        Bswap => by_wide_width!(s.bytes, data::bswap),
        Movbe if s.kinds.0 == Kind::Reg => by_ea!(s.bytes, s.ea, data::movbe_rm),
        Movbe => by_ea!(s.bytes, s.ea, data::movbe_mr),
        Movnti => by_ea!(s.bytes, s.ea, data::mov_mr),
        Stosb | Stosw | Stosd | Stosq | Movsb | Movsw | Movsq | Lodsb | Lodsw | Lodsd | Lodsq | Scasb
        | Scasw | Scasd | Scasq | Cmpsb | Cmpsw | Cmpsq | Insb | Insw | Insd | Outsb | Outsw | Outsd => {
            strings(op, i)
        }
        // The same mnemonics name SSE2 instructions.
        Movsd if i.code() == Code::Movsd_m32_m32 => strings(op, i),
        Cmpsd if i.code() == Code::Cmpsd_m32_m32 => strings(op, i),
        _ => simple(op, i, &s).unwrap_or_else(|| system::select(op, i)),
    }
}

/// Instructions with few or no operands.
fn simple(op: &mut Op, i: &Instruction, s: &Shape) -> Option<Form> {
    use Mnemonic::*;
    let with_aux = |op: &mut Op, aux: u8, f: Handler| {
        op.aux = aux;
        Form::Op(f)
    };
    op.aux = if s.locked { bits::LOCKED } else { 0 };
    Some(match i.mnemonic() {
        // Hints, and what lies in the encodings reserved for hints: RDSSP must leave its register alone without CET.
        Nop | Endbr64 | Endbr32 | Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetch
        | Prefetchw | Prefetchwt1 | Reservednop | Clflush | Clflushopt | Clwb | Cldemote | Prefetchit0
        | Prefetchit1 | Rdsspd | Rdsspq => Form::Op(thread(data::nop)),
        Wait => Form::Op(thread(crate::native::wait)),
        Fxsave | Fxsave64 => Form::Op(thread(fpu::fxsave)),
        Fxrstor | Fxrstor64 => Form::Op(thread(fpu::fxrstor)),
        Ldmxcsr => Form::Op(thread(fpu::ldmxcsr)),
        Stmxcsr => Form::Op(thread(fpu::stmxcsr)),
        Maskmovdqu => masked_move(op, i),
        Movups | Movupd | Movdqu | Lddqu => move_16(op, s, 0),
        Movaps | Movapd | Movdqa | Movntps | Movntpd | Movntdq | Movntdqa => move_16(op, s, 1),
        Pxor | Xorps | Xorpd
            if s.kinds == (Kind::Reg, Kind::Reg) && op.dst == op.src && i.op0_register().is_xmm() =>
        {
            Form::Op(thread(fpu::zero))
        }
        Mfence | Lfence | Sfence => Form::Op(thread(crate::ops::control::fence)),
        Cbw => Form::Op(thread(data::convert::<u8, u16>)),
        Cwde => Form::Op(thread(data::convert::<u16, u32>)),
        Cdqe => Form::Op(thread(data::convert::<u32, u64>)),
        Cwd => Form::Op(thread(data::spread::<u16>)),
        Cdq => Form::Op(thread(data::spread::<u32>)),
        Cqo => Form::Op(thread(data::spread::<u64>)),
        Clc => with_aux(op, 0, thread(data::carry)),
        Stc => with_aux(op, 1, thread(data::carry)),
        Cmc => with_aux(op, 2, thread(data::carry)),
        Cld => with_aux(op, 0, thread(data::direction)),
        Std => with_aux(op, 1, thread(data::direction)),
        Lahf => Form::Op(thread(data::lahf)),
        Sahf => Form::Op(thread(data::sahf)),
        Xlatb => {
            op.seg = segment(i);
            op.address = match i.memory_base() {
                Register::RBX => 3,
                Register::EBX => 2,
                _ => 1,
            };
            Form::Op(thread(data::xlat))
        }
        Cmpxchg8b => Form::Op(thread(bits::cmpxchg8b)),
        Cmpxchg16b => Form::Op(thread(bits::cmpxchg16b)),
        Pushf => Form::Op(thread(stack::pushf::<u16>)),
        Pushfd => Form::Op(thread(stack::pushf::<u32>)),
        Pushfq => Form::Op(thread(stack::pushf::<u64>)),
        Popf => Form::System(stack::popf::<u16>),
        Popfd => Form::System(stack::popf::<u32>),
        Popfq => Form::System(stack::popf::<u64>),
        Pusha => Form::Op(thread(stack::pusha::<u16>)),
        Pushad => Form::Op(thread(stack::pusha::<u32>)),
        Popa => Form::Op(thread(stack::popa::<u16>)),
        Popad => Form::Op(thread(stack::popa::<u32>)),
        Leave => match i.code() {
            Code::Leavew => Form::Op(thread(stack::leave::<u16>)),
            Code::Leaved => Form::Op(thread(stack::leave::<u32>)),
            _ => Form::Op(thread(stack::leave::<u64>)),
        },
        Enter => match i.code() {
            Code::Enterw_imm16_imm8 => Form::WithInsn(thread(stack::enter::<u16>)),
            Code::Enterd_imm16_imm8 => Form::WithInsn(thread(stack::enter::<u32>)),
            _ => Form::WithInsn(thread(stack::enter::<u64>)),
        },
        Daa => Form::Op(thread(decimal::daa)),
        Das => Form::Op(thread(decimal::das)),
        Aaa => Form::Op(thread(decimal::aaa)),
        Aas => Form::Op(thread(decimal::aas)),
        Aam => Form::Op(thread(decimal::aam)),
        Aad => Form::Op(thread(decimal::aad)),
        Salc => Form::Op(thread(decimal::salc)),
        Rdrand => {
            op.aux = 0;
            by_wide_width!(s.bytes, misc::random)
        }
        Rdseed => {
            op.aux = 1;
            by_wide_width!(s.bytes, misc::random)
        }
        Ud0 | Ud1 | Ud2 => Form::Op(thread(branch::undefined)),
        _ => return None,
    })
}

fn move_16(op: &mut Op, s: &Shape, aligned: u8) -> Form {
    op.aux = aligned;
    Form::Op(match (s.kinds, s.ea) {
        ((Kind::Reg, Kind::Reg), _) => thread(fpu::mov16_rr),
        ((Kind::Reg, _), EaForm::Base) => thread(fpu::mov16_rm::<Base>),
        ((Kind::Reg, _), EaForm::BaseIndex) => thread(fpu::mov16_rm::<BaseIndex>),
        ((Kind::Reg, _), _) => thread(fpu::mov16_rm::<General>),
        (_, EaForm::Base) => thread(fpu::mov16_mr::<Base>),
        (_, EaForm::BaseIndex) => thread(fpu::mov16_mr::<BaseIndex>),
        _ => thread(fpu::mov16_mr::<General>),
    })
}

/// MASKMOVDQU: the first operand is the implied memory.
fn masked_move(op: &mut Op, i: &Instruction) -> Form {
    op.dst = i.op1_register().number() as u8;
    op.src = i.op2_register().number() as u8;
    op.seg = segment(i);
    op.address = match i.op0_kind() {
        OpKind::MemorySegRDI => 3,
        OpKind::MemorySegEDI => 2,
        _ => 1,
    };
    Form::Op(thread(fpu::maskmovdqu))
}

fn strings(op: &mut Op, i: &Instruction) -> Form {
    use Mnemonic::*;
    op.aux = match (i.has_rep_prefix(), i.has_repne_prefix()) {
        (true, _) => string::REPEAT_EQUAL,
        (_, true) => string::REPEAT_NOT_EQUAL,
        _ => string::ONCE,
    };
    match i.mnemonic() {
        Stosb => Form::Op(thread(string::stos::<u8>)),
        Stosw => Form::Op(thread(string::stos::<u16>)),
        Stosd => Form::Op(thread(string::stos::<u32>)),
        Stosq => Form::Op(thread(string::stos::<u64>)),
        Movsb => Form::Op(thread(string::movs::<u8>)),
        Movsw => Form::Op(thread(string::movs::<u16>)),
        Movsd => Form::Op(thread(string::movs::<u32>)),
        Movsq => Form::Op(thread(string::movs::<u64>)),
        Lodsb => Form::Op(thread(string::lods::<u8>)),
        Lodsw => Form::Op(thread(string::lods::<u16>)),
        Lodsd => Form::Op(thread(string::lods::<u32>)),
        Lodsq => Form::Op(thread(string::lods::<u64>)),
        Scasb => Form::Op(thread(string::scas::<u8>)),
        Scasw => Form::Op(thread(string::scas::<u16>)),
        Scasd => Form::Op(thread(string::scas::<u32>)),
        Scasq => Form::Op(thread(string::scas::<u64>)),
        Cmpsb => Form::Op(thread(string::cmps::<u8>)),
        Cmpsw => Form::Op(thread(string::cmps::<u16>)),
        Cmpsd => Form::Op(thread(string::cmps::<u32>)),
        Cmpsq => Form::Op(thread(string::cmps::<u64>)),
        Insb => Form::Op(thread(string::ins::<u8>)),
        Insw => Form::Op(thread(string::ins::<u16>)),
        Insd => Form::Op(thread(string::ins::<u32>)),
        Outsb => Form::Op(thread(string::outs::<u8>)),
        Outsw => Form::Op(thread(string::outs::<u16>)),
        _ => Form::Op(thread(string::outs::<u32>)),
    }
}

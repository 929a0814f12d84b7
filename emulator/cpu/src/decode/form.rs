//! Handlers by shape: operand kinds, width, addressing form, condition.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::{Form, system};
use crate::access::{Base, BaseIndex, General};
use crate::cpu::mode;
use crate::op::{FS, NONE, Op, SS, chain, thread};
use crate::ops::alu::{self, By, Of, One};
use crate::ops::operand::operand_bytes;
use crate::ops::{bits, branch, data, stack};

/// Addressing forms with handlers of their own.
#[derive(Clone, Copy)]
pub(super) enum EaForm {
    Base,
    BaseIndex,
    General,
}

pub(super) fn ea_form(op: &Op, code: u8) -> EaForm {
    let plain = code == mode::CODE64 && op.seg < FS && op.address == 3 && op.base < 16;
    match (plain, op.index) {
        (true, NONE) => EaForm::Base,
        (true, _) => EaForm::BaseIndex,
        _ => EaForm::General,
    }
}

/// Handler by width.
macro_rules! by_width {
    ($bytes:expr, $($f:ident)::+ $(, $g:tt)*) => {
        Form::Op(match $bytes {
            1 => thread($($f)::+::<u8 $(, $g)*>),
            2 => thread($($f)::+::<u16 $(, $g)*>),
            4 => thread($($f)::+::<u32 $(, $g)*>),
            _ => thread($($f)::+::<u64 $(, $g)*>),
        })
    };
    ($bytes:expr, <$o:ty>:: $f:ident) => {
        Form::Op(match $bytes {
            1 => thread(<$o>::$f::<u8>),
            2 => thread(<$o>::$f::<u16>),
            4 => thread(<$o>::$f::<u32>),
            _ => thread(<$o>::$f::<u64>),
        })
    };
}

/// Handler by width, for instructions without a byte form.
macro_rules! by_wide_width {
    ($bytes:expr, $($f:ident)::+) => { by_wide_width!($bytes, $($f)::+, thread) };
    ($bytes:expr, $($f:ident)::+, $how:ident) => {
        Form::Op(match $bytes {
            2 => $how($($f)::+::<u16>),
            4 => $how($($f)::+::<u32>),
            _ => $how($($f)::+::<u64>),
        })
    };
}

/// Handler by width and addressing form.
macro_rules! by_ea {
    ($bytes:expr, $ea:expr, <$o:ty>:: $f:ident) => {
        Form::Op(match ($bytes, $ea) {
            (1, EaForm::Base) => thread(<$o>::$f::<u8, Base>),
            (1, EaForm::BaseIndex) => thread(<$o>::$f::<u8, BaseIndex>),
            (1, EaForm::General) => thread(<$o>::$f::<u8, General>),
            (2, EaForm::Base) => thread(<$o>::$f::<u16, Base>),
            (2, EaForm::BaseIndex) => thread(<$o>::$f::<u16, BaseIndex>),
            (2, EaForm::General) => thread(<$o>::$f::<u16, General>),
            (4, EaForm::Base) => thread(<$o>::$f::<u32, Base>),
            (4, EaForm::BaseIndex) => thread(<$o>::$f::<u32, BaseIndex>),
            (4, EaForm::General) => thread(<$o>::$f::<u32, General>),
            (_, EaForm::Base) => thread(<$o>::$f::<u64, Base>),
            (_, EaForm::BaseIndex) => thread(<$o>::$f::<u64, BaseIndex>),
            (_, EaForm::General) => thread(<$o>::$f::<u64, General>),
        })
    };
    ($bytes:expr, $ea:expr, $m:ident :: $f:ident $(, $g:tt)*) => {
        Form::Op(match ($bytes, $ea) {
            (1, EaForm::Base) => thread($m::$f::<u8, Base $(, $g)*>),
            (1, EaForm::BaseIndex) => thread($m::$f::<u8, BaseIndex $(, $g)*>),
            (1, EaForm::General) => thread($m::$f::<u8, General $(, $g)*>),
            (2, EaForm::Base) => thread($m::$f::<u16, Base $(, $g)*>),
            (2, EaForm::BaseIndex) => thread($m::$f::<u16, BaseIndex $(, $g)*>),
            (2, EaForm::General) => thread($m::$f::<u16, General $(, $g)*>),
            (4, EaForm::Base) => thread($m::$f::<u32, Base $(, $g)*>),
            (4, EaForm::BaseIndex) => thread($m::$f::<u32, BaseIndex $(, $g)*>),
            (4, EaForm::General) => thread($m::$f::<u32, General $(, $g)*>),
            (_, EaForm::Base) => thread($m::$f::<u64, Base $(, $g)*>),
            (_, EaForm::BaseIndex) => thread($m::$f::<u64, BaseIndex $(, $g)*>),
            (_, EaForm::General) => thread($m::$f::<u64, General $(, $g)*>),
        })
    };
}

/// Dispatches on a condition code known at decode time.
macro_rules! by_condition {
    ($cc:expr, $c:ident => $body:expr) => {
        by_condition!(@ $cc, $c, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    };
    (@ $cc:expr, $c:ident, $body:expr, $($n:literal)*) => {
        match $cc {
            $($n => { const $c: u8 = $n; $body })*
            _ => { const $c: u8 = 15; $body }
        }
    };
}

/// The low four bits of the opcode of a conditional instruction.
pub(super) fn condition_code(i: &Instruction) -> u8 {
    use iced_x86::ConditionCode as C;
    match i.condition_code() {
        C::o | C::None => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
    }
}

/// Operand kinds as the forms know them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Reg,
    Mem,
    Imm,
    None,
}

pub(super) fn kind(i: &Instruction, n: u32) -> Kind {
    if n >= i.op_count() {
        return Kind::None;
    }
    match i.op_kind(n) {
        OpKind::Register => Kind::Reg,
        OpKind::Memory => Kind::Mem,
        _ => Kind::Imm,
    }
}

/// Everything that the selection looks at.
pub(super) struct Shape {
    pub(super) kinds: (Kind, Kind),
    pub(super) bytes: u64,
    pub(super) ea: EaForm,
    pub(super) locked: bool,
}

pub(super) fn binary<O: alu::Binary>(s: &Shape) -> Form {
    match s.kinds {
        (Kind::Reg, Kind::Reg) => by_width!(s.bytes, <Of<O>>::rr),
        (Kind::Reg, Kind::Mem) => by_ea!(s.bytes, s.ea, <Of<O>>::rm),
        (Kind::Reg, _) => by_width!(s.bytes, <Of<O>>::ri),
        (_, Kind::Reg) if s.locked => by_ea!(s.bytes, s.ea, <Of<O>>::mr_locked),
        (_, Kind::Reg) => by_ea!(s.bytes, s.ea, <Of<O>>::mr),
        _ if s.locked => by_ea!(s.bytes, s.ea, <Of<O>>::mi_locked),
        _ => by_ea!(s.bytes, s.ea, <Of<O>>::mi),
    }
}

pub(super) fn unary<O: alu::Unary>(s: &Shape) -> Form {
    match s.kinds.0 {
        Kind::Reg => by_width!(s.bytes, <One<O>>::r),
        _ if s.locked => by_ea!(s.bytes, s.ea, <One<O>>::m_locked),
        _ => by_ea!(s.bytes, s.ea, <One<O>>::m),
    }
}

pub(super) fn shift<O: alu::Shift>(s: &Shape) -> Form {
    match s.kinds {
        (Kind::Reg, Kind::Reg) => by_width!(s.bytes, <By<O>>::rc),
        (Kind::Reg, _) => by_width!(s.bytes, <By<O>>::ri),
        (_, Kind::Reg) => by_ea!(s.bytes, s.ea, <By<O>>::mc),
        _ => by_ea!(s.bytes, s.ea, <By<O>>::mi),
    }
}

pub(super) fn mov(op: &mut Op, i: &Instruction, s: &Shape) -> Form {
    let moffs = i.memory_displ_size() == 8 && op.base == NONE && op.index == NONE;
    match s.kinds {
        (Kind::Reg, Kind::Reg) if !i.op0_register().is_gpr() || !i.op1_register().is_gpr() => system::mov(i),
        (Kind::Reg, Kind::Mem) if i.op0_register().is_segment_register() => system::mov(i),
        (Kind::Mem, Kind::Reg) if i.op1_register().is_segment_register() => system::mov(i),
        (Kind::Reg, Kind::Reg) => by_width!(s.bytes, data::mov_rr),
        (Kind::Reg, Kind::Mem) if moffs => {
            op.imm = i.memory_displacement64();
            by_width!(s.bytes, data::mov_r_moffs)
        }
        (Kind::Mem, Kind::Reg) if moffs => {
            op.imm = i.memory_displacement64();
            by_width!(s.bytes, data::mov_moffs_r)
        }
        (Kind::Reg, Kind::Mem) => by_ea!(s.bytes, s.ea, data::mov_rm),
        (Kind::Reg, _) => by_width!(s.bytes, data::mov_ri),
        (_, Kind::Reg) => by_ea!(s.bytes, s.ea, data::mov_mr),
        _ => by_ea!(s.bytes, s.ea, data::mov_mi),
    }
}

/// MOVZX, MOVSX, MOVSXD.
pub(super) fn extend<const SIGNED: bool>(i: &Instruction, s: &Shape) -> Form {
    macro_rules! pick {
        ($s:ty, $d:ty) => {
            match (s.kinds.1, s.ea) {
                (Kind::Reg, _) => thread(data::extend_rr::<$s, $d, SIGNED>),
                (_, EaForm::Base) => thread(data::extend_rm::<$s, $d, SIGNED, Base>),
                (_, EaForm::BaseIndex) => thread(data::extend_rm::<$s, $d, SIGNED, BaseIndex>),
                _ => thread(data::extend_rm::<$s, $d, SIGNED, General>),
            }
        };
    }
    Form::Op(match (operand_bytes(i, 1), operand_bytes(i, 0)) {
        (1, 2) => pick!(u8, u16),
        (1, 4) => pick!(u8, u32),
        (1, _) => pick!(u8, u64),
        (2, 2) => pick!(u16, u16),
        (2, 4) => pick!(u16, u32),
        (2, _) => pick!(u16, u64),
        (_, 2) => pick!(u32, u16),
        (_, 4) => pick!(u32, u32),
        _ => pick!(u32, u64),
    })
}

pub(super) fn multiply(i: &Instruction, s: &Shape) -> Form {
    match (i.op_count(), s.kinds) {
        (1, (Kind::Reg, _)) => by_width!(s.bytes, alu::imul_r),
        (1, _) => by_ea!(s.bytes, s.ea, alu::imul_m),
        (2, (_, Kind::Reg)) => by_width!(s.bytes, alu::imul_rr),
        (2, _) => by_ea!(s.bytes, s.ea, alu::imul_rm),
        (_, (_, Kind::Reg)) => by_width!(s.bytes, alu::imul_rri),
        _ => by_ea!(s.bytes, s.ea, alu::imul_rmi),
    }
}

pub(super) fn lea(op: &Op, s: &Shape) -> Form {
    match (s.ea, s.bytes, op.base) {
        (EaForm::Base, 8, 0..16) => Form::Op(thread(data::lea_flat::<u64, Base>)),
        (EaForm::BaseIndex, 8, 0..16) => Form::Op(thread(data::lea_flat::<u64, BaseIndex>)),
        (EaForm::Base, 4, 0..16) => Form::Op(thread(data::lea_flat::<u32, Base>)),
        (EaForm::BaseIndex, 4, 0..16) => Form::Op(thread(data::lea_flat::<u32, BaseIndex>)),
        (_, 2, _) => Form::Op(thread(data::lea::<u16>)),
        (_, 4, _) => Form::Op(thread(data::lea::<u32>)),
        _ => Form::Op(thread(data::lea::<u64>)),
    }
}

pub(super) fn bit(op: &mut Op, s: &Shape, what: u8) -> Form {
    op.aux = what | if s.locked { bits::LOCKED } else { 0 };
    match s.kinds {
        (Kind::Reg, Kind::Reg) => by_wide_width!(s.bytes, bits::bit_rr),
        (Kind::Reg, _) => by_wide_width!(s.bytes, bits::bit_ri),
        (_, Kind::Reg) => by_wide_width!(s.bytes, bits::bit_mr),
        _ => by_wide_width!(s.bytes, bits::bit_mi),
    }
}

pub(super) fn scan(op: &mut Op, s: &Shape, what: u8) -> Form {
    op.aux = what;
    match s.kinds.1 {
        Kind::Reg => by_width!(s.bytes, bits::scan_rr),
        _ => by_ea!(s.bytes, s.ea, bits::scan_rm),
    }
}

pub(super) fn double_shift(op: &mut Op, i: &Instruction, s: &Shape, right: u8) -> Form {
    op.aux = right | if i.op2_kind() == OpKind::Register { 2 } else { 0 };
    match s.kinds.0 {
        Kind::Reg => by_wide_width!(s.bytes, bits::double_r),
        _ => by_wide_width!(s.bytes, bits::double_m),
    }
}

pub(super) fn exchange(op: &mut Op, i: &Instruction, s: &Shape) -> Form {
    op.aux = if s.locked { bits::LOCKED } else { 0 };
    match (i.mnemonic(), s.kinds) {
        (Mnemonic::Xchg, (Kind::Reg, Kind::Reg)) => by_width!(s.bytes, data::xchg_rr),
        (Mnemonic::Xchg, (Kind::Reg, _)) => {
            op.src = op.dst;
            by_ea!(s.bytes, s.ea, data::xchg_mr)
        }
        (Mnemonic::Xchg, _) => by_ea!(s.bytes, s.ea, data::xchg_mr),
        (Mnemonic::Xadd, (Kind::Reg, _)) => by_width!(s.bytes, bits::xadd_r),
        (Mnemonic::Xadd, _) => by_width!(s.bytes, bits::xadd_m),
        (_, (Kind::Reg, _)) => by_width!(s.bytes, bits::cmpxchg_r),
        _ => by_ea!(s.bytes, s.ea, bits::cmpxchg_m),
    }
}

/// Width of the stack slot that an instruction moves, from how it moves the stack pointer.
pub(super) fn stack_bytes(i: &Instruction) -> u64 {
    u64::from(i.stack_pointer_increment().unsigned_abs())
}

pub(super) fn push_pop(op: &mut Op, i: &Instruction, s: &Shape, code: u8) -> Form {
    let push = i.mnemonic() != Mnemonic::Pop;
    let bytes = stack_bytes(i);
    let segment = s.kinds.0 == Kind::Reg && i.op0_register().is_segment_register();
    if segment && !push {
        op.seg = SS;
        op.aux = bytes as u8;
        return Form::System(system::pop_seg);
    }
    if segment {
        op.seg = SS;
        op.src = i.op0_register().number() as u8;
        return by_wide_width!(bytes, stack::push_seg);
    }
    let form = match (push, s.kinds.0) {
        (true, Kind::Mem) => by_ea!(bytes, s.ea, stack::push_m),
        (false, Kind::Mem) => by_ea!(bytes, s.ea, stack::pop_m),
        (true, Kind::Reg) if bytes == 8 && code == mode::CODE64 => Form::Op(thread(stack::push64)),
        (false, Kind::Reg) if bytes == 8 && code == mode::CODE64 => Form::Op(thread(stack::pop64)),
        (true, Kind::Reg) => by_wide_width!(bytes, stack::push_r),
        (false, _) => by_wide_width!(bytes, stack::pop_r),
        (true, _) => by_wide_width!(bytes, stack::push_i),
    };
    if s.kinds.0 != Kind::Mem {
        op.seg = SS;
    }
    form
}

/// Operand size of a near branch: where RIP is truncated.
pub(super) fn branch_bytes(i: &Instruction) -> u64 {
    match i.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        OpKind::NearBranch64 => 8,
        _ => operand_bytes(i, 0),
    }
}

pub(super) fn near_branch(op: &mut Op, i: &Instruction, s: &Shape, code: u8) -> Form {
    use Mnemonic::*;
    let bytes = branch_bytes(i);
    if i.is_jmp_far_indirect() || i.is_call_far_indirect() || i.is_jmp_far() || i.is_call_far() {
        return system::far(op, i);
    }
    match (i.mnemonic(), s.kinds.0) {
        (Jmp, Kind::Reg) => by_wide_width!(bytes, branch::jmp_r, chain),
        (Jmp, Kind::Mem) => by_ea!(bytes, s.ea, branch::jmp_m),
        (Jmp, _) => by_wide_width!(bytes, branch::jmp, chain),
        (Call, Kind::Reg) => by_wide_width!(bytes, branch::call_r, chain),
        (Call, Kind::Mem) => by_ea!(bytes, s.ea, branch::call_m),
        (Call, _) => {
            op.seg = SS;
            by_wide_width!(bytes, branch::call, chain)
        }
        (Ret, _) => {
            op.seg = SS;
            // The immediate of RET is unsigned; stack_pointer_increment includes the address.
            let bytes = match i.code() {
                Code::Retnw | Code::Retnw_imm16 => 2,
                Code::Retnd | Code::Retnd_imm16 => 4,
                _ => 8,
            };
            op.imm = if i.op_count() == 0 { 0 } else { u64::from(i.immediate16()) };
            by_wide_width!(bytes, branch::ret, chain)
        }
        (Loop | Loope | Loopne, _) => {
            op.aux = match i.mnemonic() {
                Loop => 0,
                Loope => 1,
                _ => 2,
            };
            by_wide_width!(bytes, branch::loop_cx, chain)
        }
        (Jcxz | Jecxz | Jrcxz, _) => by_wide_width!(bytes, branch::jcxz, chain),
        _ => {
            let _ = code;
            by_condition!(condition_code(i), CC => Form::Op(match bytes {
                2 => chain(branch::jcc::<u16, CC>),
                4 => chain(branch::jcc::<u32, CC>),
                _ => chain(branch::jcc::<u64, CC>),
            }))
        }
    }
}

pub(super) fn conditional(i: &Instruction, s: &Shape) -> Form {
    if i.op_count() == 1 {
        return by_condition!(condition_code(i), CC => Form::Op(match (s.kinds.0, s.ea) {
            (Kind::Reg, _) => thread(data::set_r::<CC>),
            (_, EaForm::Base) => thread(data::set_m::<Base, CC>),
            (_, EaForm::BaseIndex) => thread(data::set_m::<BaseIndex, CC>),
            _ => thread(data::set_m::<General, CC>),
        }));
    }
    by_condition!(condition_code(i), CC => match s.kinds.1 {
        Kind::Reg => Form::Op(match s.bytes {
            2 => thread(data::cmov_rr::<u16, CC>),
            4 => thread(data::cmov_rr::<u32, CC>),
            _ => thread(data::cmov_rr::<u64, CC>),
        }),
        _ => Form::Op(match (s.bytes, s.ea) {
            (2, _) => thread(data::cmov_rm::<u16, General, CC>),
            (4, EaForm::Base) => thread(data::cmov_rm::<u32, Base, CC>),
            (4, _) => thread(data::cmov_rm::<u32, General, CC>),
            (_, EaForm::Base) => thread(data::cmov_rm::<u64, Base, CC>),
            _ => thread(data::cmov_rm::<u64, General, CC>),
        }),
    })
}

pub(super) use {by_ea, by_wide_width, by_width};

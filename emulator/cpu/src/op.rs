//! What a decoded instruction becomes.

use iced_x86::Instruction;

use crate::cpu::{Cpu, Leave, Result};
use crate::native::Plan;

/// Carries out an operation and, unless it leaves, those after it. Made by [`thread`] only.
///
/// # Safety
/// The operation must be inside a block whose last operation leaves.
pub(crate) type Handler = unsafe fn(&mut Cpu, *const Op) -> Result<()>;

/// Threads an operation: when `f` is done the next operation runs, without a return to the run loop between them.
///
/// The call is the last thing that happens and compiles to a jump; where it does not, the stack grows by a frame
/// per operation of one block, which is bounded.
pub(crate) fn thread<F: Fn(&mut Cpu, &Op) -> Result<()> + Copy>(_: F) -> Handler {
    const { assert!(size_of::<F>() == 0, "only functions, not pointers to them") };
    /// # Safety
    /// As [`Handler`].
    unsafe fn run<F: Fn(&mut Cpu, &Op) -> Result<()> + Copy>(cpu: &mut Cpu, op: *const Op) -> Result<()> {
        // SAFETY: a function item has no bytes, and `thread` has seen one of this type.
        let f = unsafe { *core::ptr::NonNull::<F>::dangling().as_ref() };
        cpu.current = op;
        // SAFETY: `op` points into a living block.
        f(cpu, unsafe { &*op })?;
        // SAFETY: the operation did not leave, so it is not the block's last.
        unsafe {
            let next = op.add(1);
            ((*next).run)(cpu, next)
        }
    }
    run::<F>
}

/// Chains a branch: when it is done and nothing wants the run loop, the successor's first operation runs.
pub(crate) fn chain<F: Fn(&mut Cpu, &Op) -> Result<()> + Copy>(_: F) -> Handler {
    const { assert!(size_of::<F>() == 0, "only functions, not pointers to them") };
    /// # Safety
    /// As [`Handler`].
    unsafe fn run<F: Fn(&mut Cpu, &Op) -> Result<()> + Copy>(cpu: &mut Cpu, op: *const Op) -> Result<()> {
        // SAFETY: a function item has no bytes, and `chain` has seen one of this type.
        let f = unsafe { *core::ptr::NonNull::<F>::dangling().as_ref() };
        cpu.current = op;
        // SAFETY: `op` points into a living block.
        let done = f(cpu, unsafe { &*op });
        if done != Err(Leave::Branch) {
            return done;
        }
        match cpu.chained() {
            // SAFETY: the first operation of a living block.
            Some(first) => unsafe { ((*first).run)(cpu, first) },
            None => Err(Leave::Branch),
        }
    }
    run::<F>
}

/// Absent base or index register.
pub(crate) const NONE: u8 = 0xff;
/// The base is the address of the next instruction.
pub(crate) const RIP: u8 = 0xfe;

pub(crate) const ES: u8 = 0;
pub(crate) const CS: u8 = 1;
pub(crate) const SS: u8 = 2;
pub(crate) const DS: u8 = 3;
pub(crate) const FS: u8 = 4;

/// One decoded instruction, or two fused ones.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Op {
    pub(crate) run: Handler,
    /// Immediate; branch distance from the block's start; address of an [`Insn`] or of native code.
    pub(crate) imm: u64,
    pub(crate) disp: i32,
    /// Offset of the instruction from the block's start.
    pub(crate) start: u16,
    /// Offset of the next instruction from the block's start; 0 marks [`IDLE`].
    pub(crate) end: u16,
    pub(crate) dst: u8,
    pub(crate) src: u8,
    pub(crate) base: u8,
    pub(crate) index: u8,
    /// Log2 of the index scale.
    pub(crate) scale: u8,
    /// Segment of the memory operand.
    pub(crate) seg: u8,
    /// Log2 of the address size in bytes: 1, 2 or 3.
    pub(crate) address: u8,
    /// Free for the handler.
    pub(crate) aux: u8,
}

const _: () = assert!(size_of::<Op>() == 32);

/// # Safety
/// None needed; the signature is [`Handler`]'s.
unsafe fn idle(_: &mut Cpu, _: *const Op) -> Result<()> {
    Err(Leave::Branch)
}

/// The operation between operations.
pub(crate) static IDLE: Op = Op {
    run: idle,
    imm: 0,
    disp: 0,
    start: 0,
    end: 0,
    dst: 0,
    src: 0,
    base: NONE,
    index: NONE,
    scale: 0,
    seg: DS,
    address: 3,
    aux: 0,
};

/// Carries out a system operation, with RIP at the instruction. `Ok` steps over it.
pub(crate) type Exec = fn(&mut Cpu, &Op, &Insn) -> Result<()>;

/// The full instruction, for operations that are not worth a form of their own.
pub(crate) struct Insn {
    pub(crate) iced: Instruction,
    /// System operations: what [`crate::ops::system`] calls.
    pub(crate) exec: Exec,
    /// Native operations: how the instruction runs on the host.
    pub(crate) native: Plan,
}

impl Op {
    /// The instruction behind the operation.
    ///
    /// # Safety
    /// `imm` must have been set to an [`Insn`] of the same block by the decoder.
    #[inline(always)]
    pub(crate) unsafe fn insn(&self) -> &Insn {
        // SAFETY: the caller promises it; the block outlives its running operation.
        unsafe { &*(self.imm as usize as *const Insn) }
    }

    pub(crate) fn length(&self) -> u8 {
        (self.end - self.start) as u8
    }
}

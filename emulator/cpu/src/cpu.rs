//! The processor: its parts, the run loop, and what the machine around it may call.

use core::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::bits::{attr, cr0, cr4, efer};
use crate::block::{Block, Blocks};
use crate::env::{Attention, Env, Stop};
use crate::flags::{self, Flags};
use crate::native::{Native, Pad};
use crate::op::{IDLE, Op};
use crate::paging::WalkCache;
use crate::state::{CpuState, Exception};
use crate::tlb::{self, Tlb};

/// What [`Cpu::deliver`] puts into the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An external interrupt.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An exception queued by user space (KVM_SET_VCPU_EVENTS) or by the machine.
    Exception(Exception),
}

/// Why an operation did not simply end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// The operation is complete, RIP is final, the block ends here.
    Branch,
    /// Nothing is committed; [`Cpu::stop`] says why.
    Stop,
}

pub(crate) type Result<T> = core::result::Result<T, Leave>;

/// What decoding depends on; part of a block's key.
pub(crate) mod mode {
    pub(crate) const CODE16: u8 = 0;
    pub(crate) const CODE32: u8 = 1;
    pub(crate) const CODE64: u8 = 2;
    /// Blocks hold one instruction: single step, or an interrupt shadow.
    pub(crate) const SINGLE: u8 = 4;
    /// CPL 3; links between blocks must not cross it, since execute permission differs.
    pub(crate) const USER: u8 = 8;
}

/// Blocks that run without a return to the run loop. Bounds the stack should a chained call not become a jump.
const CHAIN: u32 = 256;

/// One processor: architectural state, TLB, decoded blocks.
pub struct Cpu {
    /// The architectural registers. After changing paging or mode registers from outside, call
    /// [`Cpu::state_changed`].
    pub state: CpuState,
    attention: Arc<Attention>,
    /// The arithmetic flags while `run` runs; `state.rflags` gets them in [`Cpu::sync_flags`].
    pub(crate) flags: Flags,
    pub(crate) tlb: Tlb,
    /// The TLB set of explicit data accesses.
    pub(crate) set: usize,
    pub(crate) mode: u8,
    /// Anything that makes the run loop look closer before the next block.
    slow: bool,
    pub(crate) epoch: u64,
    /// The operation that runs now; [`IDLE`] between blocks and in system operations.
    pub(crate) current: *const Op,
    /// Length of the instruction that runs now, for [`Stop::ExitRetired`] and system operations.
    pub(crate) length: u8,
    pub(crate) stop: Stop,
    pub(crate) walk_cache: WalkCache,
    pub(crate) blocks: Blocks,
    pub(crate) block: *mut Block,
    pub(crate) native: Native,
    pub(crate) pad: Pad,
    env: Option<NonNull<dyn Env>>,
    pending: Option<Event>,
    window_wanted: bool,
    /// [`Cpu::step`] runs: one instruction, one string iteration.
    pub(crate) stepping: bool,
    pub(crate) noted: std::collections::HashSet<&'static str>,
    retired: u64,
    pub(crate) pauses: u32,
    /// Blocks that may still run before a return to the run loop.
    chain: u32,
}

// SAFETY: the raw pointers lead to blocks that this processor owns, to guest memory that any thread may access,
// and to the environment, which is only set inside `run` and `deliver`.
unsafe impl Send for Cpu {}

impl Cpu {
    /// A processor after RESET.
    pub fn new(attention: Arc<Attention>) -> Self {
        let mut cpu = Self {
            state: CpuState::reset(),
            attention,
            flags: 0,
            tlb: Tlb::new(),
            set: tlb::SUPERVISOR,
            mode: 0,
            slow: false,
            epoch: 1,
            current: &raw const IDLE,
            length: 0,
            stop: Stop::Exit,
            walk_cache: WalkCache::EMPTY,
            blocks: Blocks::new(),
            block: core::ptr::null_mut(),
            native: Native::new(),
            pad: Pad::NEW,
            env: None,
            pending: None,
            window_wanted: false,
            stepping: false,
            noted: std::collections::HashSet::new(),
            retired: 0,
            pauses: 0,
            chain: 0,
        };
        cpu.state_changed();
        cpu
    }

    /// Runs until the environment answers with a stop that leaves the processor.
    pub fn run(&mut self, env: &mut dyn Env) {
        self.epoch += 1;
        self.flags = flags::from_rflags(self.state.rflags);
        self.update_mode();
        self.set_env(env);
        while self.enter(env).is_ok() {}
        self.env = None;
        self.sync_flags();
    }

    /// Runs one instruction, or one iteration of a string instruction, before anything may interrupt it; `true` if it
    /// completed (an exception counts as completion), `false` if the environment stopped it again.
    ///
    /// This is how an instruction whose accesses user space has answered is finished.
    pub fn step(&mut self, env: &mut dyn Env) -> bool {
        self.epoch += 1;
        self.flags = flags::from_rflags(self.state.rflags);
        self.stepping = true;
        self.update_mode();
        self.set_env(env);
        let (shadow, trap) = (self.state.interrupt_shadow, self.state.rflags & flags::bit::TF != 0);
        let left = match self.next_block() {
            Ok(block) => self.execute(block),
            Err(leave) => leave,
        };
        self.stepping = false;
        let completed = match (left, self.stop) {
            (Leave::Branch, _) => {
                // A trap that cannot be delivered now stays pending.
                let _ = self.single_done(shadow, trap);
                true
            }
            (Leave::Stop, Stop::Exit | Stop::Mmio) => {
                let _ = self.stopped();
                false
            }
            (Leave::Stop, _) => {
                let _ = self.stopped();
                true
            }
        };
        self.env = None;
        self.block = core::ptr::null_mut();
        self.update_mode();
        self.sync_flags();
        completed
    }

    /// Instructions completed so far, for statistics; string iterations and blocks left early are approximated.
    pub fn retired(&self) -> u64 {
        self.retired
    }

    /// Drops every TLB entry. No host pointer that `resolve` returned is used after this.
    pub fn flush_tlb(&mut self) {
        self.tlb.flush(false);
        self.walk_cache = WalkCache::EMPTY;
        self.epoch += 1;
    }

    /// Registers were changed from outside (KVM_SET_SREGS, a VMSA load): recompute what is derived.
    pub fn state_changed(&mut self) {
        self.flags = flags::from_rflags(self.state.rflags);
        self.update_mode();
        self.flush_tlb();
    }

    /// An interrupt could be delivered now: IF set, no interrupt shadow.
    pub fn interrupt_window_open(&self) -> bool {
        self.state.rflags & flags::bit::IF != 0 && !self.state.interrupt_shadow && self.pending.is_none()
    }

    /// Calls [`Env::attention`] at the next block boundary with an open interrupt window.
    pub fn request_interrupt_window(&mut self) {
        self.window_wanted = true;
        self.slow = true;
    }

    /// Delivers an event through the IDT now. Exceptions during delivery become double faults as the architecture says.
    ///
    /// If the environment stops the delivery (a missing stack page, say), the event stays pending and the next
    /// `run` begins with it.
    pub fn deliver(&mut self, env: &mut dyn Env, event: Event) {
        let outer = self.env;
        self.set_env(env);
        self.flags = flags::from_rflags(self.state.rflags);
        self.epoch += 1;
        if self.deliver_event(event).is_err() {
            self.pending = Some(event);
            self.slow = true;
        }
        self.sync_flags();
        self.env = outer;
    }

    /// The event that [`Cpu::deliver`] could not finish, if any.
    pub fn pending_event(&self) -> Option<Event> {
        self.pending
    }

    // ---- the environment ----

    fn set_env(&mut self, env: &mut dyn Env) {
        let env: NonNull<dyn Env + '_> = NonNull::from(env);
        // SAFETY: only the lifetime bound changes; the pointer is cleared before the borrow ends.
        self.env =
            Some(unsafe { core::mem::transmute::<NonNull<dyn Env + '_>, NonNull<dyn Env + 'static>>(env) });
    }

    /// Brings the arithmetic flags into `state.rflags`.
    pub(crate) fn sync_flags(&mut self) {
        self.state.rflags = self.state.rflags & !flags::ARITHMETIC | flags::to_rflags(self.flags) | 2;
    }

    /// Calls the environment with complete architectural state.
    pub(crate) fn ask<R>(
        &mut self,
        f: impl FnOnce(&mut dyn Env, &mut CpuState) -> core::result::Result<R, Stop>,
    ) -> core::result::Result<R, Stop> {
        let Some(mut env) = self.env else { return Err(Stop::Exit) };
        self.sync_flags();
        // SAFETY: `current` points to IDLE or into the block that runs.
        let (start, end) = unsafe { ((*self.current).start, (*self.current).end) };
        self.state.instruction_length = end.wrapping_sub(start) as u8;
        let start = u64::from(start);
        self.state.rip = self.state.rip.wrapping_add(start);
        // SAFETY: set from an exclusive borrow that `run` or `deliver` holds, and no other use of it is live.
        let answer = f(unsafe { env.as_mut() }, &mut self.state);
        self.state.rip = self.state.rip.wrapping_sub(start);
        self.flags = flags::from_rflags(self.state.rflags);
        answer
    }

    /// As [`Cpu::ask`], leaving the operation on a stop.
    pub(crate) fn env<R>(
        &mut self,
        f: impl FnOnce(&mut dyn Env, &mut CpuState) -> core::result::Result<R, Stop>,
    ) -> Result<R> {
        self.ask(f).map_err(|stop| self.leave(stop))
    }

    /// Leaves the operation.
    #[cold]
    pub(crate) fn leave(&mut self, stop: Stop) -> Leave {
        self.stop = stop;
        Leave::Stop
    }

    /// Leaves the operation with an exception.
    #[cold]
    pub(crate) fn fault(&mut self, exception: Exception) -> Leave {
        self.leave(Stop::Fault(exception))
    }

    /// #GP(0).
    #[cold]
    pub(crate) fn gp0(&mut self) -> Leave {
        self.fault(Exception::GP0)
    }

    /// #UD.
    #[cold]
    pub(crate) fn ud(&mut self) -> Leave {
        self.fault(Exception::UD)
    }

    /// Says once on stderr that the guest wants something the processor does not have.
    #[cold]
    pub(crate) fn note(&mut self, what: &'static str) {
        if self.noted.insert(what) {
            eprintln!("softkvm-cpu: {what} at {:#x} is not implemented", self.state.rip);
        }
    }

    // ---- derived state ----

    pub(crate) fn long_mode(&self) -> bool {
        self.state.efer & efer::LMA != 0
    }

    pub(crate) fn code64(&self) -> bool {
        self.mode & 3 == mode::CODE64
    }

    pub(crate) fn protected(&self) -> bool {
        self.state.cr0 & cr0::PE != 0
    }

    /// Recomputes everything that hangs on CS, CPL, EFLAGS and the control registers, but not the TLB.
    pub(crate) fn update_mode(&mut self) {
        let s = &self.state;
        let cs = s.seg[1].attributes;
        let code = match (s.efer & efer::LMA != 0 && cs & attr::L != 0, cs & attr::DB != 0) {
            (true, _) => mode::CODE64,
            (_, true) => mode::CODE32,
            _ => mode::CODE16,
        };
        let single = s.interrupt_shadow || s.rflags & flags::bit::TF != 0 || self.stepping;
        let user = s.cpl == 3;
        self.mode = code | if single { mode::SINGLE } else { 0 } | if user { mode::USER } else { 0 };
        self.set = match (user, s.rflags & flags::bit::AC != 0 && s.cr4 & cr4::SMAP != 0) {
            (true, _) => tlb::USER,
            (_, true) => tlb::SUPERVISOR_AC,
            _ => tlb::SUPERVISOR,
        };
        self.slow = single || self.window_wanted || self.pending.is_some();
    }

    /// Sets RIP with the truncation of the current code size.
    #[inline(always)]
    pub(crate) fn set_rip(&mut self, rip: u64) {
        self.state.rip = match self.mode & 3 {
            mode::CODE64 => rip,
            mode::CODE32 => rip & 0xffff_ffff,
            _ => rip & 0xffff_ffff,
        };
    }

    /// The linear address of the next instruction.
    #[inline(always)]
    pub(crate) fn linear_rip(&self) -> u64 {
        if self.code64() {
            self.state.rip
        } else {
            self.state.seg[1].base.wrapping_add(self.state.rip) & 0xffff_ffff
        }
    }

    /// Makes the run loop look around before the next block.
    pub(crate) fn force_boundary(&mut self) {
        self.slow = true;
    }

    /// A long-running instruction should pause for the run loop.
    pub(crate) fn wants_attention(&self) -> bool {
        self.stepping || self.window_wanted || self.attention.load(Ordering::Relaxed) != 0
    }

    // ---- the run loop ----

    /// Runs blocks until something leaves them; `Err` leaves `run`.
    fn enter(&mut self, env: &mut dyn Env) -> core::result::Result<(), ()> {
        if let Some(event) = self.pending.take() {
            if self.deliver_event(event).is_err() {
                self.pending = Some(event);
                return Err(());
            }
            self.update_mode();
        }
        loop {
            if self.slow || self.attention.load(Ordering::Relaxed) != 0 {
                self.boundary(env)?;
            }
            let single = self.mode & mode::SINGLE != 0;
            let (shadow, trap) = (self.state.interrupt_shadow, self.state.rflags & flags::bit::TF != 0);
            let done = match self.next_block() {
                Ok(block) => self.execute(block),
                Err(_) => Leave::Stop,
            };
            match done {
                Leave::Branch if !single => {}
                Leave::Branch => self.single_done(shadow, trap)?,
                Leave::Stop => self.stopped()?,
            }
        }
    }

    /// Runs one block.
    #[inline(always)]
    fn execute(&mut self, block: NonNull<Block>) -> Leave {
        self.block = block.as_ptr();
        self.chain = CHAIN;
        // SAFETY: blocks live until the cache is emptied, which happens in `next_block` only. A block's last
        // operation always leaves.
        let left = unsafe {
            self.retired += u64::from(block.as_ref().count);
            let first = block.as_ref().first();
            ((*first).run)(self, first)
        };
        if left != Err(Leave::Stop) {
            self.current = &raw const IDLE;
            return Leave::Branch;
        }
        // SAFETY: `current` is IDLE or the operation that stopped.
        let current = unsafe { &*self.current };
        if current.end != 0 {
            self.state.rip = self.state.rip.wrapping_add(u64::from(current.start));
            self.length = (current.end - current.start) as u8;
        }
        self.current = &raw const IDLE;
        Leave::Stop
    }

    /// The first operation of the next block, if it is known and nothing wants the run loop.
    #[inline(always)]
    pub(crate) fn chained(&mut self) -> Option<*const Op> {
        if self.slow || self.attention.load(Ordering::Relaxed) != 0 || self.chain == 0 {
            return None;
        }
        // SAFETY: `block` is the block that runs; only this thread touches blocks.
        let block = unsafe { (*self.block).successor(self.state.rip, self.stamp()) }?;
        self.chain -= 1;
        self.block = block.as_ptr();
        // SAFETY: a successor is a living block.
        unsafe {
            self.retired += u64::from(block.as_ref().count);
            Some(block.as_ref().first())
        }
    }

    /// An operation stopped; `Err` leaves `run`.
    #[cold]
    fn stopped(&mut self) -> core::result::Result<(), ()> {
        // The block that stopped has not reached its own end: its successor is not the next block.
        self.block = core::ptr::null_mut();
        match self.stop {
            Stop::Fault(exception) => {
                let delivered = self.deliver_event(Event::Exception(exception));
                self.update_mode();
                delivered.map_err(|_| ())
            }
            Stop::ExitRetired => {
                self.set_rip(self.state.rip.wrapping_add(u64::from(self.length)));
                self.state.interrupt_shadow = false;
                self.update_mode();
                Err(())
            }
            Stop::Exit | Stop::Mmio => {
                self.update_mode();
                Err(())
            }
        }
    }

    /// A one-instruction block completed: end the interrupt shadow, trap.
    #[cold]
    fn single_done(&mut self, shadow: bool, trap: bool) -> core::result::Result<(), ()> {
        if shadow {
            self.state.interrupt_shadow = false;
        }
        self.update_mode();
        if trap {
            self.state.dr6 |= 1 << 14;
            self.stop = Stop::Fault(Exception::bare(1));
            return self.stopped();
        }
        Ok(())
    }

    /// Something wants the processor's attention between two blocks.
    #[cold]
    fn boundary(&mut self, env: &mut dyn Env) -> core::result::Result<(), ()> {
        if self.native.full {
            self.block = core::ptr::null_mut();
            self.blocks.clear();
            self.native.clear();
            self.update_mode();
        }
        let window = self.window_wanted && self.interrupt_window_open();
        if window || self.attention.load(Ordering::Relaxed) != 0 {
            if window {
                self.window_wanted = false;
            }
            self.sync_flags();
            self.env = None;
            let answer = env.attention(self);
            self.set_env(env);
            self.flags = flags::from_rflags(self.state.rflags);
            self.block = core::ptr::null_mut();
            self.update_mode();
            if answer.is_err() || self.pending.is_some() {
                return Err(());
            }
        }
        Ok(())
    }

    /// Finds the block at RIP: by what the last block knows, or the hard way.
    #[inline(always)]
    fn next_block(&mut self) -> Result<NonNull<Block>> {
        if !self.block.is_null() {
            // SAFETY: `block` is null or a block that the cache owns; only this thread touches blocks.
            let known = unsafe { (*self.block).successor(self.state.rip, self.stamp()) };
            if let Some(block) = known {
                return Ok(block);
            }
        }
        self.look_up()
    }
}

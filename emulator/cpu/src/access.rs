//! Guest memory by linear address: TLB hits inline, everything else out of line.

use std::sync::Mutex;

use crate::bits::{attr, cr4};
use crate::cpu::{Cpu, Leave, Result};
use crate::env::{Access, PageRequest, Stop};
use crate::flags::Flags;
use crate::mem::{self, Width};
use crate::op::{FS, NONE, Op, RIP, SS};
use crate::paging::{Mode, Translation};
use crate::state::{Exception, MemoryEncryption};
use crate::tlb::{self, Fill};

const PAGE: u64 = 4096;

/// Page-crossing LOCKed operations, of all processors (a bus lock).
static BUS: Mutex<()> = Mutex::new(());

/// Where an access ends up.
pub(crate) enum Target {
    Host(*mut u8),
    Mmio(u64),
}

/// How an operation's memory operand is addressed, resolved at decode time.
pub(crate) trait Ea {
    /// Linear address of an operand of `bytes` bytes.
    fn linear(cpu: &mut Cpu, op: &Op, bytes: u64, write: bool) -> Result<u64>;
}

/// 64-bit `[base + disp]`, no segment base.
pub(crate) struct Base;
/// 64-bit `[base + index * scale + disp]`, no segment base.
pub(crate) struct BaseIndex;
/// Anything.
pub(crate) struct General;

impl Ea for Base {
    #[inline(always)]
    fn linear(cpu: &mut Cpu, op: &Op, _: u64, _: bool) -> Result<u64> {
        Ok(cpu.state.gpr[usize::from(op.base & 15)].wrapping_add(op.disp as i64 as u64))
    }
}

impl Ea for BaseIndex {
    #[inline(always)]
    fn linear(cpu: &mut Cpu, op: &Op, _: u64, _: bool) -> Result<u64> {
        let index = cpu.state.gpr[usize::from(op.index & 15)] << (op.scale & 3);
        Ok(cpu.state.gpr[usize::from(op.base & 15)].wrapping_add(index).wrapping_add(op.disp as i64 as u64))
    }
}

impl Ea for General {
    #[inline(always)]
    fn linear(cpu: &mut Cpu, op: &Op, bytes: u64, write: bool) -> Result<u64> {
        let offset = cpu.offset(op);
        cpu.segmented(op.seg, offset, bytes, write)
    }
}

impl Cpu {
    /// Offset of the memory operand within its segment.
    #[inline]
    pub(crate) fn offset(&self, op: &Op) -> u64 {
        let mut a = op.disp as i64 as u64;
        a = match op.base {
            NONE => a,
            RIP => a.wrapping_add(self.state.rip).wrapping_add(u64::from(op.end)),
            b => a.wrapping_add(self.state.gpr[usize::from(b & 15)]),
        };
        if op.index != NONE {
            a = a.wrapping_add(self.state.gpr[usize::from(op.index & 15)] << (op.scale & 3));
        }
        match op.address {
            3 => a,
            2 => a & 0xffff_ffff,
            _ => a & 0xffff,
        }
    }

    /// Linear address of an operand, with the segment's checks.
    #[inline]
    pub(crate) fn segmented(&mut self, seg: u8, offset: u64, bytes: u64, write: bool) -> Result<u64> {
        if self.code64() {
            return Ok(if seg >= FS {
                offset.wrapping_add(self.state.seg[usize::from(seg)].base)
            } else {
                offset
            });
        }
        self.segmented_legacy(seg, offset, bytes, write).ok_or(Leave::Stop)
    }

    /// `None` is a stop, as in `load_slow`.
    #[cold]
    #[inline(never)]
    fn segmented_legacy(&mut self, seg: u8, offset: u64, bytes: u64, write: bool) -> Option<u64> {
        let s = &self.state.seg[usize::from(seg)];
        let a = s.attributes;
        let (first, last) = (offset, offset + bytes - 1);
        let code = a & attr::CODE != 0;
        let typed = if !self.protected() {
            true
        } else if write {
            !code && a & attr::RW != 0
        } else {
            !code || a & attr::RW != 0
        };
        let limit = u64::from(s.limit);
        let inside = if !code && a & attr::DC != 0 {
            first > limit && last <= if a & attr::DB != 0 { 0xffff_ffff } else { 0xffff }
        } else {
            last <= limit
        };
        if a & attr::P == 0 || !typed || !inside {
            let vector = if seg == SS { 12 } else { 13 };
            self.fault(Exception { vector, error: Some(0), cr2: None });
            return None;
        }
        Some(s.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// The fault for a non-canonical address: #SS for stack references, else #GP.
    #[cold]
    pub(crate) fn non_canonical(&mut self) -> Leave {
        // SAFETY: `current` points to IDLE or into the running block.
        let seg = unsafe { (*self.current).seg };
        let vector = if seg == SS { 12 } else { 13 };
        self.fault(Exception { vector, error: Some(0), cr2: None })
    }

    /// Puts a page into the TLB. The only place that asks for a page on behalf of an instruction.
    #[cold]
    pub(crate) fn fill(&mut self, linear: u64, access: Access, set: usize) -> Result<Target> {
        let user = set == tlb::USER;
        let mode = Mode { access, user, smap_off: set == tlb::SUPERVISOR_AC };
        let t = self.walk(linear, mode)?;
        // SEV: instruction fetches are private whatever the page tables say (AMD APM volume 2, 15.34.5).
        let fetch =
            access == Access::Execute && matches!(self.state.memory_encryption, MemoryEncryption::CBit(_));
        let private = t.private || fetch;
        let request = PageRequest { gpa: t.gpa, gva: linear, access, private, user, walk: false };
        let page = match self.ask(|env, cpu| env.resolve(cpu, &request)) {
            Ok(page) => page,
            Err(Stop::Mmio) => return Ok(Target::Mmio(t.gpa)),
            Err(stop) => return Err(self.leave(stop)),
        };
        let write = t.write_ready && (page.writable || access == Access::Write);
        self.tlb.insert(
            set,
            &Fill {
                linear,
                host: page.host,
                read: access != Access::Execute,
                write: write && access != Access::Execute && !self.blocks.is_code(page.host as u64),
                exec: access == Access::Execute,
                global: t.global,
                span: t.span,
            },
        );
        Ok(Target::Host(page.host.wrapping_add((linear & (PAGE - 1)) as usize)))
    }

    /// Where an access that stays within a page ends up. Stores announce themselves to the block cache.
    pub(crate) fn target(&mut self, linear: u64, n: u64, access: Access, set: usize) -> Result<Target> {
        let entry = self.tlb.entry(set, linear);
        let tag = if access == Access::Write { entry.write } else { entry.read };
        if tag == linear & !(PAGE - 1) {
            return Ok(Target::Host(entry.addend.wrapping_add(linear) as *mut u8));
        }
        let target = self.fill(linear, access, set)?;
        if let (Target::Host(p), Access::Write) = (&target, access) {
            self.code_write(*p as u64, n as usize);
        }
        Ok(target)
    }

    /// Translates without touching the page (PVALIDATE and its kin).
    pub(crate) fn translate(&mut self, linear: u64, access: Access) -> Result<Translation> {
        let user = self.set == tlb::USER;
        let smap_off = self.set == tlb::SUPERVISOR_AC;
        self.walk(linear, Mode { access, user, smap_off })
    }

    // ---- loads ----

    /// Loads an operand.
    #[inline(always)]
    pub(crate) fn load<W: Width>(&mut self, linear: u64) -> Result<W> {
        let entry = self.tlb.entry(self.set, linear);
        if entry.read == tlb::tag(linear, W::BYTES) {
            // SAFETY: the tag grants reads of every byte of the access.
            return Ok(unsafe { W::load(entry.addend.wrapping_add(linear) as *const u8) });
        }
        self.load_slow(linear, self.set).ok_or(Leave::Stop)
    }

    /// `None` is a stop: an option of a word travels in registers, a result does not.
    #[cold]
    #[inline(never)]
    fn load_slow<W: Width>(&mut self, linear: u64, set: usize) -> Option<W> {
        self.load_anywhere(linear, set).ok()
    }

    fn load_anywhere<W: Width>(&mut self, linear: u64, set: usize) -> Result<W> {
        let mut bytes = [0; 8];
        if linear % PAGE + W::BYTES <= PAGE
            && let Target::Host(p) = self.target(linear, W::BYTES, Access::Read, set)?
        {
            // SAFETY: the page was granted and the access stays inside it.
            return Ok(unsafe { W::load(p) });
        }
        self.read_bytes_as(linear, &mut bytes[..W::BYTES as usize], set)?;
        Ok(W::truncate(u64::from_le_bytes(bytes)))
    }

    /// Loads from a system structure: supervisor access whatever the CPL.
    pub(crate) fn load_system<W: Width>(&mut self, linear: u64) -> Result<W> {
        let linear = if self.long_mode() { linear } else { linear & 0xffff_ffff };
        self.load_anywhere(linear, tlb::SUPERVISOR)
    }

    /// Reads a range.
    pub(crate) fn read_bytes(&mut self, linear: u64, bytes: &mut [u8]) -> Result<()> {
        self.read_bytes_as(linear, bytes, self.set)
    }

    pub(crate) fn read_bytes_as(&mut self, mut linear: u64, mut bytes: &mut [u8], set: usize) -> Result<()> {
        while !bytes.is_empty() {
            let n = bytes.len().min((PAGE - linear % PAGE) as usize);
            let (head, rest) = bytes.split_at_mut(n);
            match self.target(linear, n as u64, Access::Read, set)? {
                // SAFETY: the page was granted and the piece stays inside it.
                Target::Host(p) => unsafe { mem::copy(head.as_mut_ptr(), p, n) },
                Target::Mmio(gpa) => self.env(|env, cpu| env.mmio_read(cpu, gpa, head))?,
            }
            linear = self.wrap(linear.wrapping_add(n as u64));
            bytes = rest;
        }
        Ok(())
    }

    /// Reads a vector operand: one or two host accesses where the page allows.
    #[inline]
    pub(crate) fn read_wide(&mut self, linear: u64, bytes: &mut [u8]) -> Result<()> {
        let n = bytes.len() as u64;
        let entry = self.tlb.entry(self.set, linear);
        if entry.read == tlb::tag(linear, n.max(1)) {
            let p = entry.addend.wrapping_add(linear) as *const u8;
            // SAFETY: the tag grants reads of every byte of the access.
            unsafe {
                match bytes.len() {
                    4 => bytes.copy_from_slice(&u32::load(p).to_le_bytes()),
                    8 => bytes.copy_from_slice(&u64::load(p).to_le_bytes()),
                    16 => bytes.copy_from_slice(&mem::load_16(p)),
                    len => mem::copy(bytes.as_mut_ptr(), p, len),
                }
            }
            return Ok(());
        }
        self.read_bytes(linear, bytes)
    }

    /// Writes a vector operand.
    #[inline]
    pub(crate) fn write_wide(&mut self, linear: u64, bytes: &[u8]) -> Result<()> {
        let n = bytes.len() as u64;
        let entry = self.tlb.entry(self.set, linear);
        if entry.write == tlb::tag(linear, n.max(1)) {
            let p = entry.addend.wrapping_add(linear) as *mut u8;
            // SAFETY: the tag grants writes of every byte of the access.
            unsafe {
                match *bytes {
                    [a, b, c, d] => u32::store(p, u32::from_le_bytes([a, b, c, d])),
                    [a, b, c, d, e, f, g, h] => u64::store(p, u64::from_le_bytes([a, b, c, d, e, f, g, h])),
                    _ if bytes.len() == 16 => mem::store_16(p, bytes.as_ptr()),
                    _ => mem::copy(p, bytes.as_ptr(), bytes.len()),
                }
            }
            return Ok(());
        }
        self.write_bytes(linear, bytes)
    }

    fn wrap(&self, linear: u64) -> u64 {
        if self.long_mode() { linear } else { linear & 0xffff_ffff }
    }

    // ---- stores ----

    /// Stores an operand.
    #[inline(always)]
    pub(crate) fn store<W: Width>(&mut self, linear: u64, v: W) -> Result<()> {
        let entry = self.tlb.entry(self.set, linear);
        if entry.write == tlb::tag(linear, W::BYTES) {
            // SAFETY: the tag grants writes of every byte of the access.
            unsafe { W::store(entry.addend.wrapping_add(linear) as *mut u8, v) };
            return Ok(());
        }
        self.store_slow(linear, v, self.set)
    }

    #[cold]
    #[inline(never)]
    fn store_slow<W: Width>(&mut self, linear: u64, v: W, set: usize) -> Result<()> {
        if linear % PAGE + W::BYTES <= PAGE
            && let Target::Host(p) = self.target(linear, W::BYTES, Access::Write, set)?
        {
            // SAFETY: the page was granted and the access stays inside it.
            unsafe { W::store(p, v) };
            return Ok(());
        }
        self.write_bytes_as(linear, &v.zero_extend().to_le_bytes()[..W::BYTES as usize], set)
    }

    /// Stores to a system structure or an exception frame at a new privilege level.
    pub(crate) fn store_as<W: Width>(&mut self, linear: u64, v: W, set: usize) -> Result<()> {
        let linear = self.wrap(linear);
        self.store_slow(linear, v, set)
    }

    /// Proves that a range can be written, so that nothing faults after state has changed.
    pub(crate) fn probe_write(&mut self, linear: u64, n: u64, set: usize) -> Result<()> {
        let first = n.min(PAGE - linear % PAGE);
        self.target(linear, first, Access::Write, set)?;
        if first < n {
            self.target(self.wrap(linear.wrapping_add(first)), n - first, Access::Write, set)?;
        }
        Ok(())
    }

    /// Writes a range; nothing is written unless all of it can be.
    pub(crate) fn write_bytes(&mut self, linear: u64, bytes: &[u8]) -> Result<()> {
        self.write_bytes_as(linear, bytes, self.set)
    }

    pub(crate) fn write_bytes_as(&mut self, mut linear: u64, mut bytes: &[u8], set: usize) -> Result<()> {
        if linear % PAGE + bytes.len() as u64 > PAGE {
            self.probe_write(linear, bytes.len() as u64, set)?;
        }
        while !bytes.is_empty() {
            let n = bytes.len().min((PAGE - linear % PAGE) as usize);
            let (head, rest) = bytes.split_at(n);
            match self.target(linear, n as u64, Access::Write, set)? {
                // SAFETY: the page was granted and the piece stays inside it.
                Target::Host(p) => unsafe { mem::copy(p, head.as_ptr(), n) },
                Target::Mmio(gpa) => self.env(|env, cpu| env.mmio_write(cpu, gpa, head))?,
            }
            linear = self.wrap(linear.wrapping_add(n as u64));
            bytes = rest;
        }
        Ok(())
    }

    // ---- read-modify-write ----

    /// Replaces an operand by `f(operand, flags)`; returns what was there. Flags change only on success.
    #[inline(always)]
    pub(crate) fn modify<W: Width>(
        &mut self,
        linear: u64,
        locked: bool,
        mut f: impl FnMut(W, &mut Flags) -> W,
    ) -> Result<W> {
        let entry = self.tlb.entry(self.set, linear);
        if entry.write == tlb::tag(linear, W::BYTES) {
            let p = entry.addend.wrapping_add(linear) as *mut u8;
            // SAFETY: the tag grants writes of every byte of the access.
            return Ok(unsafe { self.modify_host(p, locked, f) });
        }
        self.modify_slow(linear, locked, &mut f).ok_or(Leave::Stop)
    }

    /// # Safety
    /// `p` must be writable for the width.
    #[inline(always)]
    unsafe fn modify_host<W: Width>(
        &mut self,
        p: *mut u8,
        locked: bool,
        mut f: impl FnMut(W, &mut Flags) -> W,
    ) -> W {
        loop {
            // SAFETY: the caller promises the access.
            let old = unsafe { W::load(p) };
            let mut flags = self.flags;
            let new = f(old, &mut flags);
            if locked {
                // SAFETY: the caller promises the access.
                if unsafe { W::compare_exchange(p, old, new) } != old {
                    continue;
                }
            } else {
                // SAFETY: the caller promises the access.
                unsafe { W::store(p, new) };
            }
            self.flags = flags;
            return old;
        }
    }

    /// `None` is a stop, as in `load_slow`.
    #[cold]
    #[inline(never)]
    fn modify_slow<W: Width>(
        &mut self,
        linear: u64,
        locked: bool,
        f: &mut dyn FnMut(W, &mut Flags) -> W,
    ) -> Option<W> {
        self.modify_anywhere(linear, locked, f).ok()
    }

    fn modify_anywhere<W: Width>(
        &mut self,
        linear: u64,
        locked: bool,
        f: &mut dyn FnMut(W, &mut Flags) -> W,
    ) -> Result<W> {
        if linear % PAGE + W::BYTES <= PAGE
            && let Target::Host(p) = self.target(linear, W::BYTES, Access::Write, self.set)?
        {
            // SAFETY: the page was granted and the access stays inside it.
            return Ok(unsafe { self.modify_host(p, locked, f) });
        }
        let n = W::BYTES as usize;
        self.probe_write(linear, W::BYTES, self.set)?;
        let _bus = locked.then(|| BUS.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        let mut bytes = [0; 8];
        self.read_bytes(linear, &mut bytes[..n])?;
        let old = W::truncate(u64::from_le_bytes(bytes));
        let mut flags = self.flags;
        let new = f(old, &mut flags);
        self.write_bytes(linear, &new.zero_extend().to_le_bytes()[..n])?;
        self.flags = flags;
        Ok(old)
    }

    // ---- the stack ----

    /// Mask of the stack pointer: 64-bit code, or SS.B.
    #[inline(always)]
    pub(crate) fn stack_mask(&self) -> u64 {
        if self.code64() {
            u64::MAX
        } else if self.state.seg[usize::from(SS)].attributes & attr::DB != 0 {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// Sets the stack pointer, merging when it is narrower than 64 bits.
    #[inline(always)]
    pub(crate) fn set_sp(&mut self, v: u64) {
        let mask = self.stack_mask();
        let sp = &mut self.state.gpr[4];
        *sp = match mask {
            0xffff => *sp & !0xffff | v & 0xffff,
            _ => v & mask,
        };
    }

    #[inline(always)]
    pub(crate) fn push<W: Width>(&mut self, v: W) -> Result<()> {
        let sp = self.state.gpr[4].wrapping_sub(W::BYTES) & self.stack_mask();
        let linear = self.segmented(SS, sp, W::BYTES, true)?;
        self.store(linear, v)?;
        self.set_sp(sp);
        Ok(())
    }

    /// The value at `[SP + skip]`.
    #[inline(always)]
    pub(crate) fn stack_load<W: Width>(&mut self, skip: u64) -> Result<W> {
        let sp = self.state.gpr[4].wrapping_add(skip) & self.stack_mask();
        let linear = self.segmented(SS, sp, W::BYTES, false)?;
        self.load(linear)
    }

    #[inline(always)]
    pub(crate) fn pop<W: Width>(&mut self) -> Result<W> {
        let v = self.stack_load(0)?;
        self.set_sp(self.state.gpr[4].wrapping_add(W::BYTES));
        Ok(v)
    }

    /// Forgets what CR4 or CR0 paging bits made of the TLB.
    pub(crate) fn paging_changed(&mut self, keep_global: bool) {
        self.tlb.flush(keep_global && self.state.cr4 & cr4::PGE != 0);
        self.epoch += 1;
    }
}

//! Segment descriptors: fetching, checking, loading.

use crate::bits::attr;
use crate::cpu::{Cpu, Leave, Result};
use crate::mem::Width;
use crate::op::{CS, FS, SS};
use crate::state::{Exception, Segment};

/// A descriptor as it lies in the GDT or LDT.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) raw: u64,
    /// Linear address of the descriptor, for the accessed and busy bits.
    at: u64,
}

impl Descriptor {
    pub(crate) fn attributes(self) -> u16 {
        (self.raw >> 40 & 0xff) as u16 | (self.raw >> 44 & 0xf00) as u16
    }

    pub(crate) fn dpl(self) -> u8 {
        (self.raw >> 45 & 3) as u8
    }

    pub(crate) fn has(self, bit: u16) -> bool {
        self.attributes() & bit != 0
    }

    pub(crate) fn is_code(self) -> bool {
        self.has(attr::S) && self.has(attr::CODE)
    }

    /// System descriptor type, or `None` for code and data.
    pub(crate) fn system_type(self) -> Option<u16> {
        (!self.has(attr::S)).then_some(self.attributes() & 15)
    }

    pub(crate) fn segment(self, selector: u16) -> Segment {
        let base = self.raw >> 16 & 0xff_ffff | self.raw >> 32 & 0xff00_0000;
        let limit = (self.raw & 0xffff | self.raw >> 32 & 0xf_0000) as u32;
        let limit = if self.raw >> 55 & 1 != 0 { limit << 12 | 0xfff } else { limit };
        Segment { selector, base, limit, attributes: self.attributes() }
    }
}

/// A flat segment of SYSCALL, SYSENTER and their returns.
pub(crate) fn flat(selector: u16, attributes: u16) -> Segment {
    Segment { selector, base: 0, limit: 0xffff_ffff, attributes }
}

impl Cpu {
    /// An exception with a selector error code.
    #[cold]
    pub(crate) fn selector_fault(&mut self, vector: u8, selector: u16) -> Leave {
        self.fault(Exception { vector, error: Some(u32::from(selector & !3)), cr2: None })
    }

    /// Fetches a descriptor; `vector` is the exception if the selector points outside its table.
    pub(crate) fn descriptor(&mut self, selector: u16, vector: u8) -> Result<Descriptor> {
        let (base, limit) = if selector & 4 == 0 {
            (self.state.gdtr.base, u32::from(self.state.gdtr.limit))
        } else if self.state.ldtr.attributes & attr::P != 0 {
            (self.state.ldtr.base, self.state.ldtr.limit)
        } else {
            return Err(self.selector_fault(vector, selector));
        };
        let index = u32::from(selector & !7);
        if index + 7 > limit {
            return Err(self.selector_fault(vector, selector));
        }
        let at = base.wrapping_add(u64::from(index));
        Ok(Descriptor { raw: self.load_system::<u64>(at)?, at })
    }

    /// Sets the accessed bit of a code or data descriptor, or the busy bit of a TSS.
    pub(crate) fn mark_descriptor(&mut self, d: &mut Descriptor, bit: u64) -> Result<()> {
        if d.raw & bit == 0 {
            d.raw |= bit;
            let byte = (d.raw >> 40) as u8;
            self.store_as(d.at.wrapping_add(5), byte, crate::tlb::SUPERVISOR)?;
        }
        Ok(())
    }

    pub(crate) fn mark_accessed(&mut self, d: &mut Descriptor) -> Result<()> {
        self.mark_descriptor(d, 1 << 40)
    }

    /// The upper half of a 16-byte system descriptor's base.
    pub(crate) fn wide_base(&mut self, d: &Descriptor) -> Result<u64> {
        if !self.long_mode() {
            return Ok(0);
        }
        Ok(u64::from(self.load_system::<u32>(d.at.wrapping_add(8))?) << 32)
    }

    /// What a segment register other than CS becomes when `selector` is loaded.
    pub(crate) fn data_segment(&mut self, seg: u8, selector: u16, cpl: u8) -> Result<Segment> {
        if !self.protected() {
            let old = self.state.seg[usize::from(seg) % 6];
            return Ok(Segment { selector, base: u64::from(selector) << 4, ..old });
        }
        let rpl = (selector & 3) as u8;
        if selector & !3 == 0 {
            let allowed = seg != SS || self.code64() && cpl < 3 && rpl == cpl;
            if !allowed {
                return Err(self.gp0());
            }
            let attributes = if seg == SS { u16::from(cpl) << 5 } else { 0 };
            return Ok(Segment { selector, attributes, ..Segment::default() });
        }
        let mut d = self.descriptor(selector, 13)?;
        let ok = if seg == SS {
            d.has(attr::S) && !d.is_code() && d.has(attr::RW) && rpl == cpl && d.dpl() == cpl
        } else {
            let conforming = d.is_code() && d.has(attr::DC);
            d.has(attr::S) && (!d.is_code() || d.has(attr::RW)) && (conforming || d.dpl() >= cpl.max(rpl))
        };
        if !ok {
            return Err(self.selector_fault(13, selector));
        }
        if !d.has(attr::P) {
            return Err(self.selector_fault(if seg == SS { 12 } else { 11 }, selector));
        }
        self.mark_accessed(&mut d)?;
        Ok(d.segment(selector))
    }

    /// Loads a segment register other than CS.
    pub(crate) fn load_segment(&mut self, seg: u8, selector: u16) -> Result<()> {
        let segment = self.data_segment(seg, selector, self.state.cpl)?;
        self.state.seg[usize::from(seg) % 6] = segment;
        Ok(())
    }

    /// Checks a code segment for a direct transfer to privilege `cpl`; `rpl` rules differ for returns.
    pub(crate) fn code_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        returning: bool,
    ) -> Result<(Descriptor, Segment)> {
        if selector & !3 == 0 {
            return Err(self.gp0());
        }
        let mut d = self.descriptor(selector, 13)?;
        let rpl = (selector & 3) as u8;
        let privileged =
            if d.has(attr::DC) { d.dpl() <= cpl } else { d.dpl() == cpl && (returning || rpl <= cpl) };
        let width_ok = !(self.long_mode() && d.has(attr::L) && d.has(attr::DB));
        if !d.is_code() || !privileged || !width_ok {
            return Err(self.selector_fault(13, selector));
        }
        if !d.has(attr::P) {
            return Err(self.selector_fault(11, selector));
        }
        self.mark_accessed(&mut d)?;
        Ok((d, d.segment(selector & !3 | u16::from(cpl))))
    }

    /// After a return to lower privilege, data segments that it may not use become null.
    pub(crate) fn drop_privileged_segments(&mut self) {
        for seg in [0, 3, FS, 5] {
            let s = &mut self.state.seg[usize::from(seg)];
            let a = s.attributes;
            let dpl = (a >> 5 & 3) as u8;
            let conforming = a & attr::CODE != 0 && a & attr::DC != 0;
            if a & attr::P != 0 && !conforming && dpl < self.state.cpl {
                *s = Segment::default();
            }
        }
    }

    /// Is `rip` a place that code in `cs` can run from?
    pub(crate) fn check_target(&mut self, cs: &Segment, rip: u64) -> Result<()> {
        let ok = if self.long_mode() && cs.attributes & attr::L != 0 {
            crate::bits::canonical(rip)
        } else {
            rip <= u64::from(cs.limit)
        };
        if ok { Ok(()) } else { Err(self.gp0()) }
    }

    /// Commits CS, RIP and the derived privilege.
    pub(crate) fn enter_code(&mut self, cs: Segment, rip: u64, cpl: u8) {
        let rebased = cs.base != self.state.seg[usize::from(CS)].base;
        self.state.seg[usize::from(CS)] = cs;
        self.state.rip = rip;
        self.state.cpl = cpl;
        if rebased {
            // Blocks know their successors by RIP, which another base makes another address.
            self.epoch += 1;
        }
        self.update_mode();
    }

    /// Reads `n` consecutive values from the stack without popping them.
    pub(crate) fn stack_values<const N: usize>(&mut self, bytes: u64) -> Result<[u64; N]> {
        let mut values = [0; N];
        for (i, v) in values.iter_mut().enumerate() {
            let skip = i as u64 * bytes;
            *v = match bytes {
                2 => self.stack_load::<u16>(skip)?.zero_extend(),
                4 => self.stack_load::<u32>(skip)?.zero_extend(),
                _ => self.stack_load::<u64>(skip)?,
            };
        }
        Ok(values)
    }

    /// Pushes at the operand size.
    pub(crate) fn push_sized(&mut self, bytes: u64, v: u64) -> Result<()> {
        match bytes {
            2 => self.push(v as u16),
            4 => self.push(v as u32),
            _ => self.push(v),
        }
    }
}

/// Refuses what needs a task switch or a call gate.
impl Cpu {
    #[cold]
    pub(crate) fn gate_refused(&mut self, selector: u16) -> Leave {
        self.note("a task switch or call gate");
        self.fault(Exception { vector: 13, error: Some(u32::from(selector & !3)), cr2: None })
    }
}

//! Exceptions and interrupts: from event to the first instruction of the handler.

use crate::bits::{attr, canonical, cr0};
use crate::cpu::{Cpu, Event, Leave, Result};
use crate::env::Stop;
use crate::flags::bit;
use crate::op::{CS, SS};
use crate::state::{Exception, Segment};
use crate::tlb;

/// Where a vector comes from; decides privilege checks and error-code bits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// INT n, INT3, INTO: the gate's DPL counts.
    Software,
    /// INT1, exceptions and hardware interrupts.
    Hardware,
}

/// A gate of the IDT, whatever its size.
struct Gate {
    selector: u16,
    offset: u64,
    ist: u8,
    kind: u8,
    dpl: u8,
    present: bool,
}

const DOUBLE_FAULT: u8 = 8;

/// The classes of AMD APM volume 2, table 8-4.
fn contributory(vector: u8) -> bool {
    matches!(vector, 0 | 10..=13 | 21 | 28..=30)
}

fn page_fault_class(vector: u8) -> bool {
    matches!(vector, 14 | 20)
}

/// Exceptions whose saved RIP is the faulting instruction, which push RF set.
fn is_fault(vector: u8) -> bool {
    !matches!(vector, 1..=4 | 8 | 18)
}

impl Cpu {
    /// Delivers an event; on `Err` nothing is delivered and [`Cpu::stop`] says why.
    pub(crate) fn deliver_event(&mut self, event: Event) -> core::result::Result<(), ()> {
        let mut exception = match event {
            Event::Interrupt(vector) => {
                return match self.vector(vector, None, Source::Hardware, true) {
                    Ok(()) => Ok(()),
                    Err(_) => self.nested(None),
                };
            }
            Event::Nmi => {
                return match self.vector(2, None, Source::Hardware, true) {
                    Ok(()) => {
                        self.state.nmi_blocked = true;
                        Ok(())
                    }
                    Err(_) => self.nested(None),
                };
            }
            Event::Exception(exception) => exception,
        };
        if exception.vector == 3 || exception.vector == 4 {
            // Only from outside: INT3 and INTO have their own way in.
            exception.error = None;
        }
        self.exception(exception)
    }

    /// Delivery failed: with an exception of its own, or with a stop.
    fn nested(&mut self, first: Option<u8>) -> core::result::Result<(), ()> {
        let Stop::Fault(second) = self.stop else { return Err(()) };
        let double = first.is_some_and(|first| {
            contributory(first) && contributory(second.vector)
                || page_fault_class(first) && (contributory(second.vector) || page_fault_class(second.vector))
        });
        if first == Some(DOUBLE_FAULT) {
            self.sync_flags();
            let _ = self.ask(|env, state| {
                env.shutdown(state);
                Ok(())
            });
            self.stop = Stop::Exit;
            return Err(());
        }
        self.exception(if double {
            Exception { vector: DOUBLE_FAULT, error: Some(0), cr2: None }
        } else {
            second
        })
    }

    fn exception(&mut self, e: Exception) -> core::result::Result<(), ()> {
        if let Some(cr2) = e.cr2 {
            self.state.cr2 = cr2;
        }
        match self.vector(e.vector, e.error, Source::Hardware, false) {
            Ok(()) => Ok(()),
            Err(_) => self.nested(Some(e.vector)),
        }
    }

    /// INT n, INT3, INTO, INT1: RIP is past the instruction when the handler returns.
    pub(crate) fn software_interrupt(&mut self, vector: u8, privileged: bool) -> Result<()> {
        let at = self.state.rip;
        self.set_rip(at.wrapping_add(u64::from(self.length)));
        let source = if privileged { Source::Hardware } else { Source::Software };
        let done = self.vector(vector, None, source, true);
        if done.is_err() {
            self.state.rip = at;
            return done;
        }
        Err(Leave::Branch)
    }

    /// Goes through the IDT or the real-mode vector table.
    fn vector(&mut self, vector: u8, error: Option<u32>, source: Source, trap: bool) -> Result<()> {
        self.sync_flags();
        self.epoch += 1;
        if self.state.cr0 & cr0::PE == 0 {
            return self.vector_real(vector);
        }
        let ext = u32::from(source == Source::Hardware);
        let idt_error = u32::from(vector) << 3 | 2 | ext;
        let gate = self.gate(vector, idt_error)?;
        if source == Source::Software && gate.dpl < self.state.cpl {
            return Err(self.fault(Exception { vector: 13, error: Some(idt_error & !1), cr2: None }));
        }
        if !gate.present {
            return Err(self.fault(Exception { vector: 11, error: Some(idt_error), cr2: None }));
        }
        let (cs, cpl) = self.handler_segment(&gate, ext)?;
        let rf = if !trap && is_fault(vector) { bit::RF } else { 0 };
        let saved_rflags = self.state.rflags | rf;
        if self.long_mode() {
            self.enter_handler_64(&gate, cs, cpl, saved_rflags, error)?;
        } else {
            self.enter_handler_32(&gate, cs, cpl, saved_rflags, error)?;
        }
        let interrupt_gate = gate.kind & 1 == 0;
        self.state.rflags &=
            !(bit::TF | bit::NT | bit::RF | bit::VM | if interrupt_gate { bit::IF } else { 0 });
        self.state.interrupt_shadow = false;
        self.update_mode();
        Ok(())
    }

    fn vector_real(&mut self, vector: u8) -> Result<()> {
        if u32::from(vector) * 4 + 3 > u32::from(self.state.idtr.limit) {
            return Err(self.gp0());
        }
        let entry = self.load_system::<u32>(self.state.idtr.base.wrapping_add(u64::from(vector) * 4))?;
        let saved = self.state.gpr[4];
        let frame =
            [self.state.rflags as u16, self.state.seg[usize::from(CS)].selector, self.state.rip as u16];
        for v in frame {
            if let Err(leave) = self.push(v) {
                self.state.gpr[4] = saved;
                return Err(leave);
            }
        }
        self.state.rflags &= !(bit::IF | bit::TF | bit::AC | bit::RF);
        let selector = (entry >> 16) as u16;
        let cs = &mut self.state.seg[usize::from(CS)];
        (cs.selector, cs.base) = (selector, u64::from(selector) << 4);
        self.state.rip = u64::from(entry & 0xffff);
        self.state.interrupt_shadow = false;
        self.update_mode();
        Ok(())
    }

    fn gate(&mut self, vector: u8, error: u32) -> Result<Gate> {
        let long = self.long_mode();
        let size = if long { 16 } else { 8 };
        let at = u64::from(vector) * size;
        let refuse = Exception { vector: 13, error: Some(error), cr2: None };
        if at + size - 1 > u64::from(self.state.idtr.limit) {
            return Err(self.fault(refuse));
        }
        let base = self.state.idtr.base.wrapping_add(at);
        let low = self.load_system::<u64>(base)?;
        let high = if long { self.load_system::<u32>(base.wrapping_add(8))? } else { 0 };
        let gate = Gate {
            selector: (low >> 16) as u16,
            offset: low & 0xffff | low >> 32 & 0xffff_0000 | u64::from(high) << 32,
            ist: if long { (low >> 32 & 7) as u8 } else { 0 },
            kind: (low >> 40 & 31) as u8,
            dpl: (low >> 45 & 3) as u8,
            present: low >> 47 & 1 != 0,
        };
        let known = if long { matches!(gate.kind, 14 | 15) } else { matches!(gate.kind, 6 | 7 | 14 | 15) };
        if !known {
            if gate.kind == 5 && !long {
                self.note("a task gate");
            }
            return Err(self.fault(refuse));
        }
        Ok(gate)
    }

    /// The handler's code segment and privilege.
    fn handler_segment(&mut self, gate: &Gate, ext: u32) -> Result<(Segment, u8)> {
        let refuse = |vector, selector: u16| Exception {
            vector,
            error: Some(u32::from(selector & !3) | ext),
            cr2: None,
        };
        if gate.selector & !3 == 0 {
            return Err(self.fault(refuse(13, 0)));
        }
        let mut d = self.descriptor(gate.selector, 13)?;
        let long_ok = !self.long_mode() || d.has(attr::L) && !d.has(attr::DB);
        if !d.is_code() || d.dpl() > self.state.cpl || !long_ok {
            return Err(self.fault(refuse(13, gate.selector)));
        }
        if !d.has(attr::P) {
            return Err(self.fault(refuse(11, gate.selector)));
        }
        self.mark_accessed(&mut d)?;
        let cpl = if d.has(attr::DC) { self.state.cpl } else { d.dpl() };
        Ok((d.segment(gate.selector & !3 | u16::from(cpl)), cpl))
    }

    fn enter_handler_64(
        &mut self,
        gate: &Gate,
        cs: Segment,
        cpl: u8,
        rflags: u64,
        error: Option<u32>,
    ) -> Result<()> {
        let inner = cpl != self.state.cpl;
        let top = if gate.ist != 0 {
            self.tss_stack_64(0x24 + (u64::from(gate.ist) - 1) * 8)?
        } else if inner {
            self.tss_stack_64(4 + u64::from(cpl) * 8)?
        } else {
            self.state.gpr[4]
        };
        if !canonical(gate.offset) {
            return Err(self.gp0());
        }
        let set = if cpl == 3 { tlb::USER } else { tlb::SUPERVISOR };
        let ss = self.state.seg[usize::from(SS)].selector;
        let old_cs = self.state.seg[usize::from(CS)].selector;
        let frame = [u64::from(ss), self.state.gpr[4], rflags, u64::from(old_cs), self.state.rip];
        let mut sp = top & !15;
        if !canonical(sp.wrapping_sub(8)) {
            return Err(self.fault(Exception { vector: 12, error: Some(0), cr2: None }));
        }
        for v in frame.into_iter().chain(error.map(u64::from)) {
            sp = sp.wrapping_sub(8);
            self.store_as(sp, v, set)?;
        }
        self.state.gpr[4] = sp;
        if inner {
            let null =
                Segment { selector: u16::from(cpl), attributes: u16::from(cpl) << 5, ..Segment::default() };
            self.state.seg[usize::from(SS)] = null;
        }
        self.enter_code(cs, gate.offset, cpl);
        Ok(())
    }

    fn tss_stack_64(&mut self, offset: u64) -> Result<u64> {
        if offset + 7 > u64::from(self.state.tr.limit) {
            let selector = self.state.tr.selector;
            return Err(self.selector_fault(10, selector));
        }
        self.load_system::<u64>(self.state.tr.base.wrapping_add(offset))
    }

    fn enter_handler_32(
        &mut self,
        gate: &Gate,
        cs: Segment,
        cpl: u8,
        rflags: u64,
        error: Option<u32>,
    ) -> Result<()> {
        let wide = gate.kind & 8 != 0;
        let bytes = if wide { 4 } else { 2 };
        let saved = (self.state.gpr[4], self.state.seg[usize::from(SS)], self.state.cpl);
        let old_cs = self.state.seg[usize::from(CS)].selector;
        let mut frame = Vec::with_capacity(6);
        if cpl != self.state.cpl {
            let (ss, sp) = self.tss_stack_32(cpl)?;
            let segment = self.data_segment(SS, ss, cpl)?;
            frame.extend([u64::from(saved.1.selector), saved.0 & 0xffff_ffff]);
            self.state.seg[usize::from(SS)] = segment;
            self.state.gpr[4] = sp;
            self.state.cpl = cpl;
            self.update_mode();
        }
        frame.extend([rflags, u64::from(old_cs), self.state.rip]);
        frame.extend(error.map(u64::from));
        for v in frame {
            if let Err(leave) = self.push_sized(bytes, v) {
                (self.state.gpr[4], self.state.seg[usize::from(SS)], self.state.cpl) = saved;
                self.update_mode();
                return Err(leave);
            }
        }
        self.enter_code(cs, gate.offset & if wide { 0xffff_ffff } else { 0xffff }, cpl);
        Ok(())
    }

    /// SS and ESP of an inner privilege level, from a 32- or 16-bit TSS.
    fn tss_stack_32(&mut self, cpl: u8) -> Result<(u16, u64)> {
        let (base, wide) = (self.state.tr.base, self.state.tr.attributes & 8 != 0);
        let at = if wide { 4 + u64::from(cpl) * 8 } else { 2 + u64::from(cpl) * 4 };
        if at + 7 > u64::from(self.state.tr.limit) {
            let selector = self.state.tr.selector;
            return Err(self.selector_fault(10, selector));
        }
        if wide {
            let sp = self.load_system::<u32>(base.wrapping_add(at))?;
            Ok((self.load_system::<u16>(base.wrapping_add(at + 4))?, u64::from(sp)))
        } else {
            let sp = self.load_system::<u16>(base.wrapping_add(at))?;
            Ok((self.load_system::<u16>(base.wrapping_add(at + 2))?, u64::from(sp)))
        }
    }
}

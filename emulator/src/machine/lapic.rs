//! The local APIC, xAPIC and x2APIC, with all three timer modes (Intel SDM volume 3, chapter "APIC").
//!
//! Registers are named by their x2APIC number (MSR 0x800 + n); the xAPIC page has the same registers at n << 4.

/// Register numbers.
pub mod reg {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const PPR: u32 = 0x0a;
    pub const EOI: u32 = 0x0b;
    pub const LDR: u32 = 0x0d;
    pub const DFR: u32 = 0x0e;
    pub const SVR: u32 = 0x0f;
    pub const ISR: u32 = 0x10;
    pub const TMR: u32 = 0x18;
    pub const IRR: u32 = 0x20;
    pub const ESR: u32 = 0x28;
    pub const LVT_CMCI: u32 = 0x2f;
    pub const ICR: u32 = 0x30;
    pub const ICR2: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_THERMAL: u32 = 0x33;
    pub const LVT_PERF: u32 = 0x34;
    pub const LVT_LINT0: u32 = 0x35;
    pub const LVT_LINT1: u32 = 0x36;
    pub const LVT_ERROR: u32 = 0x37;
    pub const TIMER_INITIAL: u32 = 0x38;
    pub const TIMER_CURRENT: u32 = 0x39;
    pub const TIMER_DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
}

/// IA32_APIC_BASE bits.
pub const BASE_BSP: u64 = 1 << 8;
/// x2APIC mode.
pub const BASE_X2APIC: u64 = 1 << 10;
/// Globally enabled.
pub const BASE_ENABLE: u64 = 1 << 11;
/// Where the page is by default.
pub const DEFAULT_ADDRESS: u64 = 0xfee0_0000;

const LVT_MASKED: u32 = 1 << 16;
/// Delivery mode of an interrupt whose vector the PIC gives.
const MODE_EXTINT: u8 = 7;
/// Version 0x14, six LVT entries, no EOI-broadcast suppression.
const VERSION_VALUE: u32 = 0x0005_0014;

/// What a register write asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing more.
    None,
    /// Send this interrupt command.
    Ipi(u64),
    /// End of this interrupt; `true` for a level-triggered one, which an IOAPIC wants to hear of.
    Eoi(u8, bool),
    /// The timer was reprogrammed.
    Timer,
}

/// The write is not allowed: #GP in x2APIC mode, ignored otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// One 256-bit vector register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Vectors([u32; 8]);

impl Vectors {
    fn set(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] |= 1 << (vector & 31);
    }
    fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] &= !(1 << (vector & 31));
    }
    fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] & (1 << (vector & 31)) != 0
    }
    fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|&w| w != 0)?;
        Some((word as u32 * 32 + 31 - self.0[word].leading_zeros()) as u8)
    }
}

/// A local APIC.
#[derive(Clone, Debug)]
pub struct Lapic {
    id: u32,
    /// IA32_APIC_BASE.
    pub base: u64,
    tpr: u32,
    ldr: u32,
    dfr: u32,
    svr: u32,
    esr: u32,
    icr: u64,
    isr: Vectors,
    tmr: Vectors,
    irr: Vectors,
    /// LVT registers by number - LVT_TIMER, CMCI last.
    lvt: [u32; 6],
    timer_initial: u32,
    timer_divide: u32,
    /// Nanoseconds of a bus cycle (KVM_CAP_X86_APIC_BUS_CYCLES_NS).
    bus_ns: u64,
    /// Host-independent ns (VM TSC) at which the count started.
    timer_started: u64,
    /// When the timer fires next, in VM TSC ns.
    timer_deadline: Option<u64>,
    /// IA32_TSC_DEADLINE, in guest TSC.
    pub tsc_deadline: u64,
}

impl Lapic {
    /// After reset. KVM lets the first vCPU's LINT0 take the PIC's interrupts, as a PC's firmware would.
    pub fn new(id: u32, bus_ns: u64) -> Self {
        let mut lvt = [LVT_MASKED; 6];
        if id == 0 {
            lvt[(reg::LVT_LINT0 - reg::LVT_TIMER) as usize] = u32::from(MODE_EXTINT) << 8;
        }
        Self {
            id,
            base: DEFAULT_ADDRESS | BASE_ENABLE | if id == 0 { BASE_BSP } else { 0 },
            tpr: 0,
            ldr: 0,
            dfr: !0,
            svr: 0xff,
            esr: 0,
            icr: 0,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            lvt,
            timer_initial: 0,
            timer_divide: 0,
            bus_ns,
            timer_started: 0,
            timer_deadline: None,
            tsc_deadline: 0,
        }
    }

    /// INIT leaves the base register and the ID.
    pub fn init(&mut self) {
        let base = self.base;
        *self = Self::new(self.id, self.bus_ns);
        self.base = base;
    }

    /// APIC ID.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// x2APIC mode?
    pub fn x2apic(&self) -> bool {
        self.base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE | BASE_X2APIC
    }

    /// IA32_APIC_BASE write; refused for the transitions that the architecture forbids.
    pub fn set_base(&mut self, value: u64) -> Result<(), Refused> {
        let mode = |v: u64| (v & BASE_ENABLE != 0, v & BASE_X2APIC != 0);
        match (mode(self.base), mode(value)) {
            (_, (false, true)) | ((true, true), (true, false)) | ((false, false), (true, true)) => {
                return Err(Refused);
            }
            _ => {}
        }
        self.base = value;
        if self.x2apic() {
            self.ldr = ((self.id >> 4) << 16) | (1 << (self.id & 15));
        }
        Ok(())
    }

    /// IA32_APIC_BASE as user space sets it: any mode that exists.
    pub fn set_base_from_user(&mut self, value: u64) -> Result<(), Refused> {
        if value & (BASE_ENABLE | BASE_X2APIC) == BASE_X2APIC {
            return Err(Refused);
        }
        self.base = value;
        if self.x2apic() {
            self.ldr = ((self.id >> 4) << 16) | (1 << (self.id & 15));
        }
        Ok(())
    }

    fn enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0 && self.svr & 0x100 != 0
    }

    fn ppr(&self) -> u32 {
        let service = self.isr.highest().map_or(0, u32::from) & 0xf0;
        if self.tpr & 0xf0 >= service { self.tpr & 0xff } else { service }
    }

    /// CR8.
    pub fn cr8(&self) -> u64 {
        u64::from(self.tpr >> 4)
    }

    /// Sets CR8.
    pub fn set_cr8(&mut self, value: u64) {
        self.tpr = ((value & 0xf) as u32) << 4;
    }

    /// The vector that should interrupt the processor now.
    pub fn pending(&self) -> Option<u8> {
        let vector = self.irr.highest().filter(|_| self.enabled())?;
        (u32::from(vector) & 0xf0 > self.ppr() & 0xf0).then_some(vector)
    }

    /// Any request at all, deliverable or not: what ends a HLT is `pending`, this is for diagnostics.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.irr.clear(vector);
        self.isr.set(vector);
        Some(vector)
    }

    /// A fixed interrupt arrives.
    pub fn accept(&mut self, vector: u8, level: bool) -> bool {
        if !self.enabled() || vector < 16 {
            return false;
        }
        if level {
            self.tmr.set(vector);
        } else {
            self.tmr.clear(vector);
        }
        self.irr.set(vector);
        true
    }

    fn lvt_index(register: u32) -> Option<usize> {
        (reg::LVT_TIMER..=reg::LVT_ERROR).contains(&register).then(|| (register - reg::LVT_TIMER) as usize)
    }

    /// The local interrupt of an LVT entry, if it is not masked: (vector, delivery mode).
    pub fn local(&self, register: u32) -> Option<(u8, u8)> {
        let entry = *self.lvt.get(Self::lvt_index(register)?)?;
        (entry & LVT_MASKED == 0).then_some((entry as u8, (entry >> 8 & 7) as u8))
    }

    /// Do the PIC's interrupts reach the processor? They do through LINT0, and past an APIC that is off.
    pub fn accepts_extint(&self) -> bool {
        let through = self.local(reg::LVT_LINT0).is_some_and(|(_, mode)| mode == MODE_EXTINT);
        through || self.base & BASE_ENABLE == 0
    }

    /// Is this APIC addressed? (SDM, "Determining IPI Destination").
    pub fn matches(&self, destination: u32, logical: bool) -> bool {
        if self.x2apic() {
            return match (destination, logical) {
                (u32::MAX, _) => true,
                (d, false) => d == self.id,
                (d, true) => d >> 16 == self.ldr >> 16 && d & self.ldr & 0xffff != 0,
            };
        }
        match (destination, logical) {
            (0xff | u32::MAX, _) => true,
            (d, false) => d == self.id,
            (d, true) => {
                let ldr = self.ldr >> 24;
                if self.dfr >> 28 == 0xf {
                    d & ldr & 0xff != 0
                } else {
                    (d >> 4) & 0xf == ldr >> 4 && d & ldr & 0xf != 0
                }
            }
        }
    }

    /// Reads a register. `now` is the VM's TSC in ns.
    pub fn read(&self, register: u32, now: u64) -> Result<u64, Refused> {
        Ok(u64::from(match register {
            reg::ID if self.x2apic() => self.id,
            reg::ID => self.id << 24,
            reg::VERSION => VERSION_VALUE,
            reg::TPR => self.tpr,
            reg::PPR => self.ppr(),
            reg::EOI if !self.x2apic() => 0,
            reg::LDR => self.ldr,
            reg::DFR if !self.x2apic() => self.dfr,
            reg::SVR => self.svr,
            0x10..=0x17 => self.isr.0[(register - reg::ISR) as usize],
            0x18..=0x1f => self.tmr.0[(register - reg::TMR) as usize],
            0x20..=0x27 => self.irr.0[(register - reg::IRR) as usize],
            reg::ESR => self.esr,
            reg::LVT_CMCI => LVT_MASKED,
            reg::ICR if self.x2apic() => return Ok(self.icr),
            reg::ICR => self.icr as u32,
            reg::ICR2 if !self.x2apic() => (self.icr >> 32) as u32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[(register - reg::LVT_TIMER) as usize],
            reg::TIMER_INITIAL => self.timer_initial,
            reg::TIMER_CURRENT => self.current_count(now),
            reg::TIMER_DIVIDE => self.timer_divide,
            _ => return Err(Refused),
        }))
    }

    /// Writes a register. `now` is the VM's TSC in ns.
    pub fn write(&mut self, register: u32, value: u64, now: u64) -> Result<Effect, Refused> {
        let low = value as u32;
        if self.x2apic() && register != reg::ICR && value >> 32 != 0 {
            return Err(Refused);
        }
        match register {
            reg::TPR => self.tpr = low & 0xff,
            reg::EOI if self.x2apic() && value != 0 => return Err(Refused),
            reg::EOI => return Ok(self.end_of_interrupt()),
            reg::LDR if !self.x2apic() => self.ldr = low & 0xff00_0000,
            reg::DFR if !self.x2apic() => self.dfr = low | 0x0fff_ffff,
            reg::SVR => self.svr = low & 0x3ff,
            reg::ESR if self.x2apic() && value != 0 => return Err(Refused),
            reg::ESR => self.esr = 0,
            reg::LVT_CMCI => {}
            reg::ICR if self.x2apic() => {
                self.icr = value & !(1 << 12);
                return Ok(Effect::Ipi(self.icr));
            }
            reg::ICR => {
                self.icr = (self.icr & !0xffff_ffff) | u64::from(low & !(1 << 12));
                // The xAPIC destination is eight bits at the top.
                return Ok(Effect::Ipi((self.icr & 0xffff_ffff) | (self.icr >> 56 << 32)));
            }
            reg::ICR2 if !self.x2apic() => self.icr = (self.icr & 0xffff_ffff) | (u64::from(low) << 32),
            reg::LVT_TIMER..=reg::LVT_ERROR => return Ok(self.write_lvt(register, low)),
            reg::TIMER_INITIAL => {
                if self.timer_mode() == 2 {
                    return Ok(Effect::None);
                }
                self.timer_initial = low;
                self.timer_started = now;
                self.timer_deadline = (low != 0).then(|| now.saturating_add(self.period_ns()));
                return Ok(Effect::Timer);
            }
            reg::TIMER_DIVIDE => {
                self.timer_divide = low & 0xb;
                return Ok(Effect::Timer);
            }
            reg::SELF_IPI if self.x2apic() => {
                return Ok(Effect::Ipi(u64::from(low & 0xff) | (1 << 18)));
            }
            _ => return Err(Refused),
        }
        Ok(Effect::None)
    }

    fn write_lvt(&mut self, register: u32, value: u32) -> Effect {
        const WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
        let index = (register - reg::LVT_TIMER) as usize;
        let before = self.lvt[index];
        self.lvt[index] = value & WRITABLE[index];
        if register != reg::LVT_TIMER {
            return Effect::None;
        }
        if (before ^ value) & 0x6_0000 != 0 {
            self.timer_deadline = None;
            self.timer_initial = 0;
            self.tsc_deadline = 0;
        }
        Effect::Timer
    }

    fn end_of_interrupt(&mut self) -> Effect {
        match self.isr.highest() {
            Some(vector) => {
                self.isr.clear(vector);
                Effect::Eoi(vector, self.tmr.has(vector))
            }
            None => Effect::None,
        }
    }

    fn timer_mode(&self) -> u32 {
        self.lvt[0] >> 17 & 3
    }

    fn divisor(&self) -> u64 {
        let code = (self.timer_divide & 3) | (self.timer_divide >> 1 & 4);
        if code == 7 { 1 } else { 2 << code }
    }

    /// The APIC bus runs at 1 GHz by default, as KVM's does.
    fn tick_ns(&self) -> u64 {
        self.divisor().saturating_mul(self.bus_ns)
    }

    fn period_ns(&self) -> u64 {
        u64::from(self.timer_initial).saturating_mul(self.tick_ns())
    }

    fn current_count(&self, now: u64) -> u32 {
        match self.timer_deadline {
            Some(at) if self.timer_mode() < 2 => (at.saturating_sub(now) / self.tick_ns()) as u32,
            _ => 0,
        }
    }

    /// IA32_TSC_DEADLINE write. `guest_tsc` is the guest's TSC at `now`.
    pub fn set_tsc_deadline(&mut self, value: u64, guest_tsc: u64, now: u64) {
        if self.timer_mode() != 2 {
            return;
        }
        self.tsc_deadline = value;
        self.timer_deadline = (value != 0).then(|| now.saturating_add(value.saturating_sub(guest_tsc)));
    }

    /// When the timer fires next, in VM TSC ns.
    pub fn deadline(&self) -> Option<u64> {
        self.timer_deadline
    }

    /// Fires the timer if it is due; `true` if it did (the deadline has changed).
    pub fn run_timer(&mut self, now: u64) -> bool {
        let Some(at) = self.timer_deadline.filter(|&at| at <= now) else { return false };
        self.timer_deadline = match self.timer_mode() {
            1 if self.period_ns() != 0 => {
                // Missed periods are not made up for.
                let period = self.period_ns();
                Some(at + period * ((now - at) / period + 1))
            }
            _ => None,
        };
        self.tsc_deadline = 0;
        if let Some((vector, _)) = self.local(reg::LVT_TIMER) {
            self.accept(vector, false);
        }
        true
    }

    /// KVM_GET_LAPIC: the register page. x2APIC IDs in `x2apic_id_format` as KVM_CAP_X2APIC_API asks.
    pub fn page(&self, now: u64, full_id: bool) -> [u8; 1024] {
        let mut page = [0u8; 1024];
        for register in 0..0x40u32 {
            let value = match register {
                reg::ID if self.x2apic() && full_id => self.id,
                reg::ID => self.id << 24,
                reg::ICR => self.icr as u32,
                reg::ICR2 => (self.icr >> 32) as u32,
                _ => self.read(register, now).unwrap_or(0) as u32,
            };
            let at = (register as usize) << 4;
            page[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        page
    }

    /// KVM_SET_LAPIC.
    pub fn set_page(&mut self, page: &[u8; 1024], now: u64) {
        let get = |register: u32| {
            let at = (register as usize) << 4;
            page.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
        };
        self.tpr = get(reg::TPR);
        if !self.x2apic() {
            self.ldr = get(reg::LDR);
            self.dfr = get(reg::DFR);
        }
        self.svr = get(reg::SVR);
        self.esr = get(reg::ESR);
        self.icr = u64::from(get(reg::ICR)) | (u64::from(get(reg::ICR2)) << 32);
        for i in 0..8u32 {
            self.isr.0[i as usize] = get(reg::ISR + i);
            self.tmr.0[i as usize] = get(reg::TMR + i);
            self.irr.0[i as usize] = get(reg::IRR + i);
        }
        for i in 0..6u32 {
            self.lvt[i as usize] = get(reg::LVT_TIMER + i);
        }
        self.timer_divide = get(reg::TIMER_DIVIDE);
        self.timer_initial = get(reg::TIMER_INITIAL);
        if self.timer_mode() != 2 {
            self.timer_started = now;
            self.timer_deadline = (self.timer_initial != 0).then(|| now.saturating_add(self.period_ns()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled() -> Lapic {
        let mut lapic = Lapic::new(1, 1);
        lapic.write(reg::SVR, 0x1ff, 0).unwrap();
        lapic
    }

    #[test]
    fn higher_class_interrupts_first_and_masks_the_lower() {
        let mut lapic = enabled();
        assert!(lapic.accept(0x41, false) && lapic.accept(0x52, true));
        assert_eq!(lapic.acknowledge(), Some(0x52));
        assert_eq!(lapic.acknowledge(), None, "0x41 waits for the EOI of 0x52");
        assert_eq!(lapic.write(reg::EOI, 0, 0), Ok(Effect::Eoi(0x52, true)));
        assert_eq!(lapic.acknowledge(), Some(0x41));
    }

    #[test]
    fn task_priority_holds_back_its_class() {
        let mut lapic = enabled();
        lapic.accept(0x41, false);
        lapic.set_cr8(4);
        assert_eq!(lapic.pending(), None);
        lapic.set_cr8(3);
        assert_eq!(lapic.pending(), Some(0x41));
    }

    #[test]
    fn a_disabled_apic_accepts_nothing() {
        assert!(!Lapic::new(0, 1).accept(0x41, false));
    }

    #[test]
    fn base_transitions_are_the_architectures() {
        let mut lapic = Lapic::new(0, 1);
        let xapic = DEFAULT_ADDRESS | BASE_ENABLE;
        assert_eq!(lapic.set_base(xapic | BASE_X2APIC), Ok(()));
        assert_eq!(lapic.set_base(xapic), Err(Refused), "x2APIC to xAPIC");
        assert_eq!(lapic.set_base(DEFAULT_ADDRESS), Ok(()));
        assert_eq!(lapic.set_base(xapic | BASE_X2APIC), Err(Refused), "disabled to x2APIC");
    }

    #[test]
    fn timers_fire_once_or_periodically() {
        let mut lapic = enabled();
        lapic.write(reg::TIMER_DIVIDE, 0xb, 0).unwrap();
        lapic.write(reg::LVT_TIMER, 0x30, 0).unwrap();
        lapic.write(reg::TIMER_INITIAL, 100, 1000).unwrap();
        assert_eq!(lapic.read(reg::TIMER_CURRENT, 1040), Ok(60));
        assert!(!lapic.run_timer(1099) && lapic.run_timer(1100));
        assert_eq!((lapic.acknowledge(), lapic.deadline()), (Some(0x30), None));

        lapic.write(reg::LVT_TIMER, 0x30 | 1 << 17, 0).unwrap();
        lapic.write(reg::TIMER_INITIAL, 100, 2000).unwrap();
        assert!(lapic.run_timer(2350));
        assert_eq!(lapic.deadline(), Some(2400), "late periods are dropped");

        lapic.write(reg::LVT_TIMER, 0x30 | 2 << 17, 0).unwrap();
        lapic.set_tsc_deadline(9000, 5000, 3000);
        assert_eq!(lapic.deadline(), Some(7000));
    }

    #[test]
    fn logical_destinations_match_by_cluster_in_x2apic_mode() {
        let mut lapic = Lapic::new(0x25, 1);
        lapic.set_base(DEFAULT_ADDRESS | BASE_ENABLE | BASE_X2APIC).unwrap();
        assert!(lapic.matches(0x2_0020, true));
        assert!(!lapic.matches(0x1_0020, true) && !lapic.matches(0x2_0010, true));
        assert!(lapic.matches(0x25, false) && lapic.matches(u32::MAX, true) && !lapic.matches(0x24, false));
    }

    #[test]
    fn the_register_page_survives_a_round_trip() {
        let mut lapic = enabled();
        lapic.accept(0x61, true);
        lapic.write(reg::LVT_ERROR, 0xfe, 0).unwrap();
        let page = lapic.page(0, false);
        let mut other = Lapic::new(1, 1);
        other.set_page(&page, 0);
        assert_eq!(other.page(0, false), page);
        assert_eq!(other.acknowledge(), Some(0x61));
    }
}

//! The I/O APIC (Intel 82093AA), with local APICs in KVM: each pin's interrupt leaves as an MSI.
//!
//! The only device behind a pin is COM1, whose interrupt is an edge. KVM tells of the end of level-triggered
//! interrupts only where pins are in its routing table, which nothing here needs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::msi::{Message, MsiSink};

/// Pins, which is also what KVM is told of the split interrupt controller.
pub const PINS: usize = 24;

const REG_SELECT: u64 = 0x00;
const REG_WINDOW: u64 = 0x10;
const INDEX_ID: u8 = 0x00;
const INDEX_VERSION: u8 = 0x01;
const INDEX_ARBITRATION: u8 = 0x02;
const INDEX_REDIRECTION: u8 = 0x10;
const VERSION: u32 = ((PINS as u32 - 1) << 16) | 0x11;

const RTE_REMOTE_IRR: u64 = 1 << 14;
const RTE_LEVEL: u64 = 1 << 15;
const RTE_MASKED: u64 = 1 << 16;
const RTE_DELIVERY_STATUS: u64 = 1 << 12;
const RTE_READ_ONLY: u64 = RTE_REMOTE_IRR | RTE_DELIVERY_STATUS;

const MSI_ADDRESS: u64 = 0xfee0_0000;
const MSI_LOGICAL: u64 = 1 << 2;
const MSI_LEVEL_ASSERTED: u32 = 1 << 14 | 1 << 15;

#[derive(Debug)]
struct State {
    select: u8,
    id: u32,
    entries: [u64; PINS],
    /// Edges that arrived while their pin was masked.
    pending: [bool; PINS],
}

/// The device.
pub struct IoApic {
    state: Mutex<State>,
    sink: Arc<dyn MsiSink>,
}

/// The MSI of a redirection table entry.
fn message(entry: u64) -> Message {
    let destination = entry >> 56;
    let logical = if entry & 1 << 11 != 0 { MSI_LOGICAL } else { 0 };
    let level = if entry & RTE_LEVEL != 0 { MSI_LEVEL_ASSERTED } else { 0 };
    // Vector and delivery mode have the same place in both.
    Message { address: MSI_ADDRESS | destination << 12 | logical, data: (entry & 0x7ff) as u32 | level }
}

impl IoApic {
    /// An I/O APIC with all pins masked.
    pub fn new(sink: Arc<dyn MsiSink>) -> Self {
        let state = State { select: 0, id: 0, entries: [RTE_MASKED; PINS], pending: [false; PINS] };
        Self { state: Mutex::new(state), sink }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An edge at `pin`.
    pub fn pulse(&self, pin: u8) {
        let mut state = self.state();
        if let Some(pending) = state.pending.get_mut(usize::from(pin)) {
            *pending = true;
            self.deliver(&mut state, usize::from(pin));
        }
    }

    fn deliver(&self, state: &mut State, pin: usize) {
        let (Some(entry), Some(pending)) = (state.entries.get_mut(pin), state.pending.get_mut(pin)) else {
            return;
        };
        let blocked = *entry & RTE_MASKED != 0 || (*entry & RTE_LEVEL != 0 && *entry & RTE_REMOTE_IRR != 0);
        if !*pending || blocked {
            return;
        }
        *pending = false;
        if *entry & RTE_LEVEL != 0 {
            *entry |= RTE_REMOTE_IRR;
        }
        self.sink.signal(message(*entry));
    }

    /// A processor ended the interrupt `vector`.
    pub fn end_of_interrupt(&self, vector: u8) {
        let mut state = self.state();
        for pin in 0..PINS {
            let Some(entry) = state.entries.get_mut(pin) else { continue };
            if *entry & RTE_LEVEL != 0 && *entry as u8 == vector {
                *entry &= !RTE_REMOTE_IRR;
                self.deliver(&mut state, pin);
            }
        }
    }

    /// A load; only whole 32-bit registers exist.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.state();
        let value = match offset {
            REG_SELECT => u32::from(state.select),
            REG_WINDOW => state.register(),
            _ => 0,
        };
        data.fill(0);
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }

    /// A store; narrower ones than 32 bits are taken as zero-extended.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        bytes.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let value = u32::from_le_bytes(bytes);
        let mut state = self.state();
        match offset {
            REG_SELECT => state.select = value as u8,
            REG_WINDOW => {
                if let Some(pin) = state.set_register(value) {
                    self.deliver(&mut state, pin);
                }
            }
            _ => {}
        }
    }
}

impl State {
    /// The pin and half (0 low, 1 high) that the selected register is of.
    fn redirection(&self) -> Option<(usize, u32)> {
        let index = self.select.checked_sub(INDEX_REDIRECTION)?;
        let pin = usize::from(index / 2);
        (pin < PINS).then_some((pin, u32::from(index % 2)))
    }

    fn register(&self) -> u32 {
        match self.select {
            INDEX_ID | INDEX_ARBITRATION => self.id,
            INDEX_VERSION => VERSION,
            _ => match self.redirection() {
                Some((pin, half)) => {
                    (self.entries.get(pin).copied().unwrap_or_default() >> (32 * half)) as u32
                }
                None => 0,
            },
        }
    }

    /// Writes the selected register; returns the pin whose entry changed.
    fn set_register(&mut self, value: u32) -> Option<usize> {
        if self.select == INDEX_ID {
            self.id = value & 0x0f00_0000;
        }
        let (pin, half) = self.redirection()?;
        let entry = self.entries.get_mut(pin)?;
        let written = u64::from(value) << (32 * half);
        let kept = *entry & !(0xffff_ffff << (32 * half));
        *entry = (kept | written) & !RTE_READ_ONLY | *entry & RTE_READ_ONLY;
        if *entry & RTE_LEVEL == 0 {
            *entry &= !RTE_REMOTE_IRR;
        }
        Some(pin)
    }
}

#[cfg(test)]
mod tests {
    use super::super::msi::tests::Recorder;
    use super::*;

    fn set(ioapic: &IoApic, index: u8, value: u32) {
        ioapic.write(REG_SELECT, &[index]);
        ioapic.write(REG_WINDOW, &value.to_le_bytes());
    }

    fn get(ioapic: &IoApic, index: u8) -> u32 {
        let mut data = [0; 4];
        ioapic.write(REG_SELECT, &[index]);
        ioapic.read(REG_WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    fn ioapic() -> (IoApic, Arc<Recorder>) {
        let recorder = Arc::new(Recorder::default());
        (IoApic::new(recorder.clone()), recorder)
    }

    #[test]
    fn an_edge_becomes_the_message_of_its_entry() {
        let (ioapic, sent) = ioapic();
        set(&ioapic, 0x10 + 2 * 4 + 1, 0x0300_0000);
        set(&ioapic, 0x10 + 2 * 4, 0x0000_0031);
        ioapic.pulse(4);
        ioapic.pulse(5);
        assert_eq!(sent.take(), [Message { address: 0xfee0_3000, data: 0x31 }]);
        set(&ioapic, 0x10 + 2 * 4, 0x0000_0931); // logical, lowest priority
        ioapic.pulse(4);
        assert_eq!(sent.take(), [Message { address: 0xfee0_3004, data: 0x131 }]);
    }

    #[test]
    fn a_masked_edge_waits_for_its_pin() {
        let (ioapic, sent) = ioapic();
        ioapic.pulse(4);
        assert_eq!(sent.take(), []);
        set(&ioapic, 0x10 + 2 * 4, 0x31);
        assert_eq!(sent.take().len(), 1);
        set(&ioapic, 0x10 + 2 * 4, 0x31);
        assert_eq!(sent.take(), [], "delivered once");
    }

    #[test]
    fn a_level_interrupt_waits_for_its_end() {
        let (ioapic, sent) = ioapic();
        set(&ioapic, 0x10 + 2 * 9, 0x8000 | 0x41);
        ioapic.pulse(9);
        ioapic.pulse(9);
        assert_eq!(sent.take(), [Message { address: 0xfee0_0000, data: 0xc041 }]);
        assert_eq!(get(&ioapic, 0x10 + 2 * 9) & 1 << 14, 1 << 14);
        ioapic.end_of_interrupt(0x42);
        assert_eq!(sent.take(), []);
        ioapic.end_of_interrupt(0x41);
        assert_eq!(sent.take().len(), 1);
    }

    #[test]
    fn registers_read_back_and_unknown_ones_are_harmless() {
        let (ioapic, sent) = ioapic();
        assert_eq!(get(&ioapic, 1), 0x0017_0011);
        set(&ioapic, 0, 0xffff_ffff);
        assert_eq!(get(&ioapic, 0), 0x0f00_0000);
        set(&ioapic, 0x10, 0xffff_ffff);
        assert_eq!(u64::from(get(&ioapic, 0x10)) & RTE_READ_ONLY, 0);
        for index in [3, 0x0f, 0x10 + 48, 0xff] {
            set(&ioapic, index, 0xffff_ffff);
            assert_eq!(get(&ioapic, index), 0);
        }
        ioapic.pulse(24);
        ioapic.pulse(255);
        ioapic.write(0x20, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(sent.take(), []);
    }
}

//! The IOAPIC of KVM_CREATE_IRQCHIP (Intel 82093AA data sheet).

use kvm_bindings::kvm_ioapic_state;

use crate::machine::irq::Message;

/// Inputs.
pub const PINS: u32 = 24;
/// Where it is by default.
const DEFAULT_ADDRESS: u64 = 0xfec0_0000;
/// How much of the address space it answers.
const BYTES: u64 = 0x100;
/// Version 0x11, 24 entries.
const VERSION: u32 = 0x11 | (PINS - 1) << 16;

const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;

/// The IOAPIC.
#[derive(Clone, Debug)]
pub struct IoApic {
    address: u64,
    select: u32,
    id: u32,
    irr: u32,
    table: [u64; PINS as usize],
}

impl Default for IoApic {
    fn default() -> Self {
        Self { address: DEFAULT_ADDRESS, select: 0, id: 0, irr: 0, table: [MASKED; PINS as usize] }
    }
}

impl IoApic {
    /// Is this one of its addresses?
    pub fn owns(&self, gpa: u64) -> bool {
        (self.address..self.address + BYTES).contains(&gpa)
    }

    /// A read of one register.
    pub fn read(&self, gpa: u64) -> u32 {
        match gpa & 0xff {
            0x00 => self.select,
            0x10 => match self.select {
                // The arbitration ID follows the ID.
                0 | 2 => self.id << 24,
                1 => VERSION,
                register => match self.table.get(Self::entry(register)) {
                    Some(entry) if register & 1 != 0 => (entry >> 32) as u32,
                    Some(entry) => *entry as u32,
                    None => 0,
                },
            },
            _ => 0,
        }
    }

    fn entry(register: u32) -> usize {
        (register.wrapping_sub(0x10) >> 1) as usize
    }

    /// A write of one register; the messages that it lets out.
    pub fn write(&mut self, gpa: u64, value: u32) -> Option<(u32, Message)> {
        match (gpa & 0xff, self.select) {
            (0x00, _) => self.select = value & 0xff,
            (0x10, 0) => self.id = value >> 24 & 0xf,
            (0x10, register @ 0x10..) => return self.write_entry(register, value),
            _ => {}
        }
        None
    }

    fn write_entry(&mut self, register: u32, value: u32) -> Option<(u32, Message)> {
        let pin = Self::entry(register) as u32;
        let entry = self.table.get_mut(pin as usize)?;
        if register & 1 != 0 {
            *entry = *entry & 0xffff_ffff | u64::from(value) << 32;
        } else {
            let read_only = DELIVERY_STATUS | REMOTE_IRR;
            let kept = *entry & (!0xffff_ffff | read_only);
            *entry = kept | u64::from(value) & 0x1_ffff & !read_only;
            if *entry & LEVEL == 0 {
                *entry &= !REMOTE_IRR;
            }
        }
        // An input that was high while it was masked is not lost if it is a level.
        if *entry & LEVEL != 0 { self.offer(pin) } else { None }
    }

    /// Sets the level of an input; the message that it causes.
    pub fn set_input(&mut self, pin: u32, level: bool) -> Option<(u32, Message)> {
        let entry = *self.table.get(pin as usize)?;
        let bit = 1 << pin;
        let before = self.irr & bit != 0;
        if !level {
            self.irr &= !bit;
            return None;
        }
        self.irr |= bit;
        if entry & LEVEL == 0 && before { None } else { self.offer(pin) }
    }

    /// The message of an input that is high, unless it is masked or its last message still waits for its EOI.
    fn offer(&self, pin: u32) -> Option<(u32, Message)> {
        let entry = *self.table.get(pin as usize)?;
        if self.irr & 1 << pin == 0 || entry & (MASKED | REMOTE_IRR) != 0 {
            return None;
        }
        let message = Message {
            destination: (entry >> 56) as u32,
            logical: entry & 1 << 11 != 0,
            mode: (entry >> 8 & 7) as u8,
            vector: entry as u8,
            level: entry & LEVEL != 0,
        };
        Some((pin, message))
    }

    /// A message of `pin` reached a LAPIC: a level now waits for its EOI.
    pub fn delivered(&mut self, pin: u32) {
        if let Some(entry) = self.table.get_mut(pin as usize).filter(|entry| **entry & LEVEL != 0) {
            *entry |= REMOTE_IRR;
        }
    }

    /// A LAPIC's EOI of a level-triggered vector; the messages of the inputs that are still high.
    pub fn end_of_interrupt(&mut self, vector: u8) -> Vec<(u32, Message)> {
        let mut again = Vec::new();
        for pin in 0..PINS {
            let Some(entry) = self.table.get_mut(pin as usize) else { continue };
            if *entry as u8 == vector && *entry & (LEVEL | REMOTE_IRR) == LEVEL | REMOTE_IRR {
                *entry &= !REMOTE_IRR;
                again.extend(self.offer(pin));
            }
        }
        again
    }

    /// KVM_GET_IRQCHIP.
    pub fn state(&self) -> kvm_ioapic_state {
        let mut state = kvm_ioapic_state {
            base_address: self.address,
            ioregsel: self.select,
            id: self.id,
            irr: self.irr,
            ..kvm_ioapic_state::default()
        };
        for (to, from) in state.redirtbl.iter_mut().zip(self.table) {
            to.bits = from;
        }
        state
    }

    /// KVM_SET_IRQCHIP; the messages of inputs that the new state holds high.
    pub fn set_state(&mut self, state: &kvm_ioapic_state) -> Vec<(u32, Message)> {
        // SAFETY: every member of the union is made of integers and 64 bits wide.
        let table = state.redirtbl.map(|entry| unsafe { entry.bits });
        *self = Self {
            address: state.base_address.min(u64::MAX - BYTES),
            select: state.ioregsel & 0xff,
            id: state.id & 0xf,
            irr: state.irr & ((1 << PINS) - 1),
            table,
        };
        (0..PINS).filter_map(|pin| self.offer(pin)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_entry(pin: u32, entry: u64) -> IoApic {
        let mut chip = IoApic::default();
        for (half, value) in [(1, (entry >> 32) as u32), (0, entry as u32)] {
            chip.write(DEFAULT_ADDRESS, 0x10 + 2 * pin + half);
            chip.write(DEFAULT_ADDRESS + 0x10, value);
        }
        chip
    }

    #[test]
    fn an_edge_sends_one_message_with_the_entrys_fields() {
        let mut chip = with_entry(4, 0x0300_0000_0000_0931);
        let expected = Message { destination: 3, logical: true, mode: 1, vector: 0x31, level: false };
        assert_eq!(chip.set_input(4, true), Some((4, expected)));
        assert_eq!(chip.set_input(4, true), None, "no edge");
        chip.set_input(4, false);
        assert!(chip.set_input(4, true).is_some());
    }

    #[test]
    fn a_level_waits_for_its_eoi_and_comes_again_while_it_is_high() {
        let mut chip = with_entry(9, LEVEL | 0x55);
        assert!(chip.set_input(9, true).is_some());
        chip.delivered(9);
        assert_eq!(chip.set_input(9, true), None, "remote IRR");
        assert!(chip.end_of_interrupt(0x54).is_empty());
        assert_eq!(chip.end_of_interrupt(0x55).len(), 1);
        chip.delivered(9);
        chip.set_input(9, false);
        assert!(chip.end_of_interrupt(0x55).is_empty());
    }

    #[test]
    fn a_masked_level_is_sent_when_it_is_unmasked_and_a_masked_edge_is_lost() {
        for (trigger, sent) in [(LEVEL, true), (0, false)] {
            let mut chip = with_entry(2, MASKED | trigger | 0x40);
            assert_eq!(chip.set_input(2, true), None);
            chip.write(DEFAULT_ADDRESS, 0x14);
            assert_eq!(chip.write(DEFAULT_ADDRESS + 0x10, (trigger | 0x40) as u32).is_some(), sent);
        }
    }

    #[test]
    fn registers_outside_of_the_table_read_as_zero_and_take_nothing() {
        let mut chip = IoApic::default();
        chip.write(DEFAULT_ADDRESS, 0x40);
        assert_eq!(chip.write(DEFAULT_ADDRESS + 0x10, !0), None);
        assert_eq!(chip.read(DEFAULT_ADDRESS + 0x10), 0);
        assert!(chip.owns(DEFAULT_ADDRESS + 0xff) && !chip.owns(DEFAULT_ADDRESS + 0x100));
    }

    #[test]
    fn the_guest_cannot_write_the_status_bits() {
        let mut chip = with_entry(1, LEVEL | REMOTE_IRR | DELIVERY_STATUS | 0x31);
        chip.write(DEFAULT_ADDRESS, 0x12);
        assert_eq!(chip.read(DEFAULT_ADDRESS + 0x10), (LEVEL | 0x31) as u32);
        assert!(chip.set_input(1, true).is_some());
    }
}

//! The interrupt chips of KVM_CREATE_IRQCHIP and the timer of KVM_CREATE_PIT2: what a PC has besides its local APICs.
//!
//! One lock holds the PICs and the IOAPIC; the LAPICs' locks are taken inside it, never the other way round.

pub mod ioapic;
pub mod pic;
pub mod pit;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};

use self::ioapic::IoApic;
use self::pic::Pic;
use self::pit::Pit;
use super::clock::host_ns;
use super::irq::{Message, Route};
use super::vcpu::attention;
use super::vm::Vm;
use crate::uapi::errno::Errno;

/// Who drives an input. The inputs of a line are ORed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Source {
    /// KVM_IRQ_LINE and irqfds.
    Client = 1,
    /// The interval timer.
    Pit = 2,
}

/// Inputs of all chips: the IOAPIC's, then the PICs'.
const INPUTS: usize = (ioapic::PINS + pic::PINS) as usize;

#[derive(Debug, Default)]
struct Chips {
    pic: Pic,
    ioapic: IoApic,
    /// Which [`Source`]s hold each input high.
    sources: HashMap<(u32, u32), u8>,
}

/// The chips of a VM that asked for them.
#[derive(Debug, Default)]
pub struct Irqchips {
    chips: Mutex<Chips>,
    pit: Mutex<Option<Pit>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The chips' methods do not panic: nothing is half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// KVM's default routing: GSI n to pin n of the IOAPIC, and to the PICs where they have it.
pub fn default_routes() -> HashMap<u32, Vec<Route>> {
    let pic = |gsi: u32| {
        let chip = if gsi < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
        (gsi < pic::PINS).then_some(Route::Pin(chip, gsi & 7))
    };
    (0..ioapic::PINS)
        .map(|gsi| (gsi, pic(gsi).into_iter().chain([Route::Pin(KVM_IRQCHIP_IOAPIC, gsi)]).collect()))
        .collect()
}

/// Is there such a pin?
pub fn pin_exists(chip: u32, pin: u32) -> bool {
    match chip {
        KVM_IRQCHIP_PIC_MASTER | KVM_IRQCHIP_PIC_SLAVE => pin < pic::PINS / 2,
        KVM_IRQCHIP_IOAPIC => pin < ioapic::PINS,
        _ => false,
    }
}

impl Chips {
    /// The level of an input after one of its sources changed.
    fn level(&mut self, chip: u32, pin: u32, source: Source, level: bool) -> bool {
        debug_assert!(self.sources.len() <= INPUTS, "pins are checked where routes are made");
        let sources = self.sources.entry((chip, pin)).or_default();
        *sources = if level { *sources | source as u8 } else { *sources & !(source as u8) };
        *sources != 0
    }

    /// Sends the IOAPIC's messages; `true` if a LAPIC took one.
    fn send(&mut self, vm: &Vm, messages: impl IntoIterator<Item = (u32, Message)>) -> bool {
        let mut taken = false;
        for (pin, message) in messages {
            if vm.deliver(&vm.ioapic_message(message), None) {
                self.ioapic.delivered(pin);
                taken = true;
            }
        }
        taken
    }
}

impl Irqchips {
    /// Drives an input; whether an interrupt came of it.
    pub fn set_pin(&self, vm: &Vm, chip: u32, pin: u32, source: Source, level: bool) -> bool {
        let mut chips = lock(&self.chips);
        let level = chips.level(chip, pin, source, level);
        if chip == KVM_IRQCHIP_IOAPIC {
            let message = chips.ioapic.set_input(pin, level);
            return chips.send(vm, message);
        }
        let before = chips.pic.output();
        chips.pic.set_input(pin + if chip == KVM_IRQCHIP_PIC_SLAVE { 8 } else { 0 }, level);
        let output = chips.pic.output();
        drop(chips);
        if output && !before {
            notify_extint(vm);
        }
        output
    }

    /// Does the PIC ask for the processor?
    pub fn pic_output(&self) -> bool {
        lock(&self.chips).pic.output()
    }

    /// The PIC's vector.
    pub fn pic_acknowledge(&self) -> u8 {
        lock(&self.chips).pic.acknowledge()
    }

    /// A LAPIC's EOI of a level-triggered vector.
    pub fn end_of_interrupt(&self, vm: &Vm, vector: u8) {
        let mut chips = lock(&self.chips);
        let again = chips.ioapic.end_of_interrupt(vector);
        chips.send(vm, again);
    }

    /// A read of a port; `None` if it is none of the chips'. They answer bytes: wider reads find zeros above.
    pub fn read_port(&self, vm: &Vm, port: u16) -> Option<u8> {
        if Pic::owns(port) {
            return Some(lock(&self.chips).pic.read(port));
        }
        let mut pit = lock(&self.pit);
        let pit = pit.as_mut().filter(|pit| pit.owns(port))?;
        Some(pit.read(port, vm.clock.tsc()))
    }

    /// A write to a port; `false` if it is none of the chips'.
    pub fn write_port(&self, vm: &Vm, port: u16, value: u8) -> bool {
        if Pic::owns(port) {
            let mut chips = lock(&self.chips);
            chips.pic.write(port, value);
            let output = chips.pic.output();
            drop(chips);
            if output {
                notify_extint(vm);
            }
            return true;
        }
        let mut guard = lock(&self.pit);
        let Some(pit) = guard.as_mut().filter(|pit| pit.owns(port)) else { return false };
        if pit.write(port, value, vm.clock.tsc()) {
            vm.timers.arm_pit(vm.me(), next_tick(vm, pit));
        }
        true
    }

    /// A read of the IOAPIC's registers; `false` if the address is elsewhere.
    pub fn read_memory(&self, gpa: u64, data: &mut [u8]) -> bool {
        let chips = lock(&self.chips);
        if !chips.ioapic.owns(gpa) {
            return false;
        }
        let value = u64::from(chips.ioapic.read(gpa)).to_le_bytes();
        for (i, to) in data.iter_mut().enumerate() {
            *to = value.get(i).copied().unwrap_or(0);
        }
        true
    }

    /// A write to the IOAPIC's registers; `false` if the address is elsewhere.
    pub fn write_memory(&self, vm: &Vm, gpa: u64, data: &[u8]) -> bool {
        let mut chips = lock(&self.chips);
        if !chips.ioapic.owns(gpa) {
            return false;
        }
        let value = data.iter().take(4).rev().fold(0u32, |acc, &b| acc << 8 | u32::from(b));
        let message = chips.ioapic.write(gpa, value);
        chips.send(vm, message);
        true
    }

    /// KVM_GET_IRQCHIP: fills in the chip that `state` names.
    pub fn get(&self, state: &mut kvm_irqchip) -> Result<(), Errno> {
        let chips = lock(&self.chips);
        match state.chip_id {
            id @ (KVM_IRQCHIP_PIC_MASTER | KVM_IRQCHIP_PIC_SLAVE) => {
                state.chip.pic = chips.pic.state(id == KVM_IRQCHIP_PIC_SLAVE);
            }
            KVM_IRQCHIP_IOAPIC => state.chip.ioapic = chips.ioapic.state(),
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// KVM_SET_IRQCHIP.
    pub fn set(&self, vm: &Vm, state: &kvm_irqchip) -> Result<(), Errno> {
        let mut chips = lock(&self.chips);
        match state.chip_id {
            id @ (KVM_IRQCHIP_PIC_MASTER | KVM_IRQCHIP_PIC_SLAVE) => {
                // SAFETY: `chip_id` says which member of the union counts, and all are made of integers.
                chips.pic.set_state(id == KVM_IRQCHIP_PIC_SLAVE, unsafe { &state.chip.pic });
                drop(chips);
                notify_extint(vm);
            }
            KVM_IRQCHIP_IOAPIC => {
                // SAFETY: as above.
                let messages = chips.ioapic.set_state(unsafe { &state.chip.ioapic });
                chips.send(vm, messages);
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// KVM_CREATE_PIT2.
    pub fn create_pit(&self, speaker_port: bool) -> Result<(), Errno> {
        let mut pit = lock(&self.pit);
        if pit.is_some() {
            return Err(Errno::EEXIST);
        }
        *pit = Some(Pit::new(speaker_port));
        Ok(())
    }

    /// KVM_GET_PIT2.
    pub fn pit_state(&self) -> Result<kvm_pit_state2, Errno> {
        lock(&self.pit).as_ref().map(Pit::state).ok_or(Errno::ENXIO)
    }

    /// KVM_SET_PIT2.
    pub fn set_pit_state(&self, vm: &Vm, state: &kvm_pit_state2) -> Result<(), Errno> {
        let mut guard = lock(&self.pit);
        let pit = guard.as_mut().ok_or(Errno::ENXIO)?;
        pit.set_state(state, vm.clock.tsc());
        vm.timers.arm_pit(vm.me(), next_tick(vm, pit));
        Ok(())
    }

    /// The timer thread says that channel 0 is due: interrupt 0, and when (host ns) the next one is.
    pub fn pit_due(&self, vm: &Vm) -> Option<u64> {
        for level in [true, false] {
            vm.set_gsi(0, Source::Pit, level);
        }
        let guard = lock(&self.pit);
        guard.as_ref().and_then(|pit| next_tick(vm, pit))
    }
}

/// Host ns of channel 0's next tick.
fn next_tick(vm: &Vm, pit: &Pit) -> Option<u64> {
    let now = vm.clock.tsc();
    let at = pit.next_tick(now)?;
    Some(host_ns().saturating_add(at.saturating_sub(now)))
}

/// The PIC's line goes to the first vCPU whose LAPIC lets it through.
fn notify_extint(vm: &Vm) {
    if let Some(vcpu) = vm.vcpus().iter().find(|vcpu| vcpu.lapic().accepts_extint()) {
        vcpu.notify(attention::IRQ);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::vm::VmType;

    #[test]
    fn the_default_routes_reach_every_pin_once() {
        let routes = default_routes();
        assert_eq!(routes.len(), 24);
        assert_eq!(routes[&9], [Route::Pin(KVM_IRQCHIP_PIC_SLAVE, 1), Route::Pin(KVM_IRQCHIP_IOAPIC, 9)]);
        assert_eq!(routes[&16], [Route::Pin(KVM_IRQCHIP_IOAPIC, 16)]);
        assert!(routes.values().flatten().all(|route| match route {
            Route::Pin(chip, pin) => pin_exists(*chip, *pin),
            Route::Msi(..) => false,
        }));
    }

    #[test]
    fn a_line_falls_when_its_last_source_lets_go() {
        let vm = Vm::new(VmType::Default);
        let chips = Irqchips::default();
        let (mask, open) = ((0x21u16, 0x20u16), [0x11u8, 0x08, 0x04, 0x01, 0x00]);
        chips.write_port(&vm, mask.1, open[0]);
        for value in &open[1..] {
            chips.write_port(&vm, mask.0, *value);
        }
        chips.write_port(&vm, 0x4d0, 1 << 3);
        for (source, level, output) in [
            (Source::Client, true, true),
            (Source::Pit, true, true),
            (Source::Client, false, true),
            (Source::Pit, false, false),
        ] {
            assert_eq!(
                chips.set_pin(&vm, KVM_IRQCHIP_PIC_MASTER, 3, source, level),
                output,
                "{source:?} {level}"
            );
        }
    }

    #[test]
    fn without_a_pit_its_ports_are_nobodys() {
        let (vm, chips) = (Vm::new(VmType::Default), Irqchips::default());
        assert_eq!(chips.read_port(&vm, 0x40), None);
        assert_eq!(chips.create_pit(false), Ok(()));
        assert_eq!(chips.create_pit(false), Err(Errno::EEXIST));
        assert!(chips.read_port(&vm, 0x40).is_some());
        assert_eq!(chips.read_port(&vm, 0x61), None);
    }
}

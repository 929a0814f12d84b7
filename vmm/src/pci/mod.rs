//! PCI: one bus, reached through ECAM and through ports 0xCF8/0xCFC.
//!
//! The host bridge is 00:00.0, devices follow. BARs are assigned here before the guest runs; a guest that
//! moves them is followed.

mod config_space;
mod host_bridge;
mod msix;

pub use config_space::{Capability, ConfigSpace, Identity};
pub use host_bridge::HostBridge;
pub use msix::{CAPABILITY_BYTES as MSIX_CAPABILITY_BYTES, Msix};

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::layout::ECAM;
use crate::limits::PCI_FUNCTIONS_MAX;

/// A single-function device.
pub trait Function: Send + Sync {
    /// Reads its configuration space; `data` stays inside an aligned 32-bit register.
    fn config_read(&self, register: u16, data: &mut [u8]);
    /// Writes its configuration space.
    fn config_write(&self, register: u16, data: &[u8]);
    /// Where its memory BAR is now, if it is enabled.
    fn bar(&self) -> Option<std::ops::Range<u64>>;
    /// Reads at an offset of its BAR.
    fn bar_read(&self, offset: u64, data: &mut [u8]);
    /// Writes at an offset of its BAR.
    fn bar_write(&self, offset: u64, data: &[u8]);
}

/// Of a bus.
const DEVICES: usize = 32;
const _: () = assert!(PCI_FUNCTIONS_MAX + 1 == DEVICES);
const ENABLE: u32 = 1 << 31;

/// Bus 0.
#[derive(Default)]
pub struct Bus {
    functions: Vec<Arc<dyn Function>>,
    /// CONFIG_ADDRESS.
    address: Mutex<u32>,
}

impl Bus {
    /// A bus with `functions` at devices 0, 1, …, of which there are 32.
    pub fn new(functions: Vec<Arc<dyn Function>>) -> io::Result<Self> {
        match functions.len() {
            0..=DEVICES => Ok(Self { functions, address: Mutex::new(0) }),
            more => Err(io::Error::other(format!("{more} PCI devices: a bus has {DEVICES}"))),
        }
    }

    fn function(&self, device: usize, function: u64) -> Option<&Arc<dyn Function>> {
        self.functions.get(device).filter(|_| function == 0)
    }

    /// A load from ECAM, at an offset of it.
    pub fn ecam_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let register = (offset & 0xfff) as u16;
        if let Some(function) = self.function((offset >> 15) as usize & 0x1f, offset >> 12 & 7)
            && in_one_register(register, data.len())
        {
            function.config_read(register, data);
        }
    }

    /// A store to ECAM.
    pub fn ecam_write(&self, offset: u64, data: &[u8]) {
        let register = (offset & 0xfff) as u16;
        if let Some(function) = self.function((offset >> 15) as usize & 0x1f, offset >> 12 & 7)
            && in_one_register(register, data.len())
        {
            function.config_write(register, data);
        }
    }

    /// An IN from port 0xCF8 + `offset`.
    pub fn port_read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        let address = *self.address.lock().unwrap_or_else(PoisonError::into_inner);
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&address.to_le_bytes()),
            (4..=7, _) => {
                if let Some(at) = ecam_offset(address, offset - 4) {
                    self.ecam_read(at, data);
                }
            }
            _ => {}
        }
    }

    /// An OUT to port 0xCF8 + `offset`.
    pub fn port_write(&self, offset: u16, data: &[u8]) {
        let mut address = self.address.lock().unwrap_or_else(PoisonError::into_inner);
        match (offset, data) {
            (0, &[a, b, c, d]) => *address = u32::from_le_bytes([a, b, c, d]),
            (4..=7, _) => {
                let at = ecam_offset(*address, offset - 4);
                drop(address);
                if let Some(at) = at {
                    self.ecam_write(at, data);
                }
            }
            _ => {}
        }
    }

    fn by_bar(&self, gpa: u64) -> Option<(&Arc<dyn Function>, u64)> {
        self.functions.iter().find_map(|function| {
            let bar = function.bar().filter(|bar| bar.contains(&gpa))?;
            Some((function, gpa - bar.start))
        })
    }

    /// A load from the BAR window.
    pub fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        match self.by_bar(gpa) {
            Some((function, offset)) => function.bar_read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A store to the BAR window.
    pub fn mmio_write(&self, gpa: u64, data: &[u8]) {
        if let Some((function, offset)) = self.by_bar(gpa) {
            function.bar_write(offset, data);
        }
    }
}

fn in_one_register(register: u16, len: usize) -> bool {
    len != 0 && usize::from(register % 4) + len <= 4
}

/// The ECAM offset that CONFIG_ADDRESS selects, if it is of bus 0.
fn ecam_offset(address: u32, byte: u16) -> Option<u64> {
    let (bus, device_function) = (address >> 16 & 0xff, u64::from(address >> 8 & 0xff));
    let offset = device_function << 12 | u64::from(address & 0xfc) | u64::from(byte);
    (address & ENABLE != 0 && bus == 0 && offset < ECAM.end - ECAM.start).then_some(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bus() -> Bus {
        Bus::new(vec![Arc::new(HostBridge::default())]).unwrap()
    }

    #[test]
    fn both_ways_reach_the_same_registers() {
        let bus = bus();
        let mut ecam = [0; 4];
        bus.ecam_read(0, &mut ecam);
        assert_eq!(ecam, [0x36, 0x1b, 0x08, 0x00]);
        let mut ports = [0; 2];
        bus.port_write(0, &0x8000_0000u32.to_le_bytes());
        bus.port_read(6, &mut ports);
        assert_eq!(ports, [0x08, 0x00]);
        bus.port_read(0, &mut ecam);
        assert_eq!(ecam, 0x8000_0000u32.to_le_bytes());
    }

    #[test]
    fn no_device_vanishes() {
        let bridge = || Arc::new(HostBridge::default()) as Arc<dyn Function>;
        assert!(Bus::new((0..32).map(|_| bridge()).collect()).is_ok());
        assert!(Bus::new((0..33).map(|_| bridge()).collect()).is_err());
    }

    #[test]
    fn what_is_not_there_reads_as_ones() {
        let bus = bus();
        for offset in [1 << 15, 1 << 12, 31 << 15 | 7 << 12, 0x2] {
            let mut data = [0; 4];
            bus.ecam_read(offset, &mut data);
            assert_eq!(data, [0xff; 4], "{offset:#x}");
            bus.ecam_write(offset, &[0; 4]);
        }
        for address in [0, 0x8001_0000, 0x8000_0800, 0x80ff_ff00] {
            let mut data = [0; 4];
            bus.port_write(0, &u32::to_le_bytes(address));
            bus.port_read(4, &mut data);
            assert_eq!(data, [0xff; 4], "{address:#x}");
        }
        let mut data = [0; 8];
        bus.mmio_read(0xc000_0000, &mut data);
        assert_eq!(data, [0xff; 8]);
    }
}

//! What the guest finds at its I/O ports and outside of RAM.
//!
//! [`Machine`] routes each access by a table of ranges. An access that no device claims reads as all ones and writes
//! nothing, as on a PC.

pub mod backend;
pub mod fw_cfg;
pub mod ioapic;
pub mod msi;
mod power;
mod rtc;
mod serial;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fw_cfg::FwCfg;
use ioapic::IoApic;
use power::Power;
use rtc::Rtc;
use serial::Com1;

use crate::layout;
use crate::outcome::Outcome;
use crate::pci::Bus;

/// All devices of a guest.
pub struct Machine {
    serial: Mutex<Com1>,
    fw_cfg: Mutex<FwCfg>,
    power: Mutex<Power>,
    rtc: Mutex<Rtc>,
    ioapic: Arc<IoApic>,
    pci: Bus,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    /// A machine whose COM1 writes to `serial`.
    pub fn new(serial: backend::Output, fw_cfg: FwCfg, ioapic: Arc<IoApic>, pci: Bus) -> Self {
        Self {
            serial: Mutex::new(serial::com1(serial, ioapic.clone())),
            fw_cfg: Mutex::new(fw_cfg),
            power: Mutex::new(Power::default()),
            rtc: Mutex::new(Rtc::new()),
            ioapic,
            pci,
        }
    }

    /// An IN instruction. Byte-wide devices give one byte after another (INS).
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        match port {
            port if layout::SERIAL_PORTS.contains(&port) => {
                let mut serial = lock(&self.serial);
                data.fill_with(|| serial.read((port - layout::SERIAL_PORTS.start()) as u8));
            }
            layout::FW_CFG_DATA_PORT => lock(&self.fw_cfg).read_data(data),
            port if layout::FW_CFG_DMA_PORTS.contains(&port) => {
                FwCfg::read_dma_signature(usize::from(port - layout::FW_CFG_DMA_PORTS.start()), data);
            }
            layout::RESET_CONTROL_PORT if data.len() == 1 => {
                data.fill(lock(&self.power).reset_control_read())
            }
            port if layout::PCI_CONFIG_PORTS.contains(&port) => {
                self.pci.port_read(port - layout::PCI_CONFIG_PORTS.start(), data);
            }
            port if layout::RTC_PORTS.contains(&port) => {
                let rtc = lock(&self.rtc);
                data.fill_with(|| rtc.read(port - layout::RTC_PORTS.start()));
            }
            port if layout::POWER_PORTS.contains(&port) => data.fill(0),
            _ => data.fill(0xff),
        }
    }

    /// An OUT instruction; some end the guest.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Option<Outcome> {
        match port {
            port if layout::SERIAL_PORTS.contains(&port) => {
                let offset = (port - layout::SERIAL_PORTS.start()) as u8;
                let mut serial = lock(&self.serial);
                for &byte in data {
                    // Its sink takes everything; what fails is an interrupt, which does not.
                    let _ = serial.write(offset, byte);
                }
            }
            layout::FW_CFG_SELECTOR_PORT => lock(&self.fw_cfg).select(data),
            port if layout::FW_CFG_DMA_PORTS.contains(&port) => {
                lock(&self.fw_cfg)
                    .write_dma_address(usize::from(port - layout::FW_CFG_DMA_PORTS.start()), data);
            }
            port if layout::RTC_PORTS.contains(&port) => {
                let mut rtc = lock(&self.rtc);
                data.iter().for_each(|&byte| rtc.write(port - layout::RTC_PORTS.start(), byte));
            }
            layout::KEYBOARD_COMMAND_PORT => return power::keyboard_command(data),
            // One byte; wider accesses are PCI's.
            layout::RESET_CONTROL_PORT if data.len() == 1 => return lock(&self.power).reset_control(data),
            port if layout::PCI_CONFIG_PORTS.contains(&port) => {
                self.pci.port_write(port - layout::PCI_CONFIG_PORTS.start(), data);
            }
            port if layout::POWER_PORTS.contains(&port) => return lock(&self.power).write(port, data),
            _ => {}
        }
        None
    }

    /// A load from outside of RAM.
    pub fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        match gpa {
            _ if layout::PCI_WINDOW.contains(&gpa) => self.pci.mmio_read(gpa, data),
            _ if layout::ECAM.contains(&gpa) => self.pci.ecam_read(gpa - layout::ECAM.start, data),
            _ if layout::IOAPIC.contains(&gpa) => self.ioapic.read(gpa - layout::IOAPIC.start, data),
            _ => data.fill(0xff),
        }
    }

    /// A store to outside of RAM.
    pub fn mmio_write(&self, gpa: u64, data: &[u8]) {
        match gpa {
            _ if layout::PCI_WINDOW.contains(&gpa) => self.pci.mmio_write(gpa, data),
            _ if layout::ECAM.contains(&gpa) => self.pci.ecam_write(gpa - layout::ECAM.start, data),
            _ if layout::IOAPIC.contains(&gpa) => self.ioapic.write(gpa - layout::IOAPIC.start, data),
            _ => {}
        }
    }

    /// A processor acknowledged a level-triggered interrupt.
    pub fn ioapic_eoi(&self, vector: u8) {
        self.ioapic.end_of_interrupt(vector);
    }
}

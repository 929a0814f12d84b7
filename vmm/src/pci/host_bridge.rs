//! 00:00.0: the host bridge, which only has to be there.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::{ConfigSpace, Function, Identity};

/// The device.
pub struct HostBridge(Mutex<ConfigSpace>);

impl Default for HostBridge {
    fn default() -> Self {
        // A generic PCI Express host bridge, under the identifier that guests know from QEMU's machines.
        let identity = Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: 0x06_0000,
            subsystem: (0x1af4, 0x1100),
        };
        Self(Mutex::new(ConfigSpace::new(identity)))
    }
}

impl Function for HostBridge {
    fn config_read(&self, register: u16, data: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(register, data);
    }

    fn config_write(&self, register: u16, data: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(register, data);
    }

    fn bar(&self) -> Option<Range<u64>> {
        None
    }

    fn bar_read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&self, _offset: u64, _data: &[u8]) {}
}

//! Message-signalled interrupts: the only way in which a device interrupts a guest here.

use std::sync::Arc;

use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;

/// An MSI's address and data (AMD APM volume 2, 16.11; PCI local bus specification 6.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// `0xFEEx_xxxx` and, with x2APIC identifiers, more of the destination above.
    pub address: u64,
    /// Vector, delivery mode, trigger.
    pub data: u32,
}

/// Delivers messages to local APICs.
pub trait MsiSink: Send + Sync {
    /// Delivers one; a destination that does not exist loses it.
    fn signal(&self, message: Message);
}

/// The local APICs in KVM.
pub struct KvmMsi(pub Arc<VmFd>);

impl MsiSink for KvmMsi {
    fn signal(&self, message: Message) {
        let msi = kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        // Fails only for a destination that the guest made up; hardware drops such messages as well.
        let _ = self.0.signal_msi(msi);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Keeps messages for a test to look at.
    #[derive(Default)]
    pub struct Recorder(pub Mutex<Vec<Message>>);

    impl MsiSink for Recorder {
        fn signal(&self, message: Message) {
            self.0.lock().unwrap().push(message);
        }
    }

    impl Recorder {
        pub fn take(&self) -> Vec<Message> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }
}

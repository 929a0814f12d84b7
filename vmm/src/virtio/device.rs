//! What a virtio device is to its transport and its worker.

use std::os::fd::RawFd;

use super::queue::Queues;

/// What a device is, fixed for its lifetime.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// virtio device type.
    pub kind: u16,
    /// For threads and messages.
    pub name: &'static str,
    /// PCI class code.
    pub class: u32,
    /// Greatest size of each queue.
    pub queue_sizes: &'static [u16],
    /// Device features; the transport adds its own.
    pub features: u64,
    /// The device-specific configuration, which never changes.
    pub config: Vec<u8>,
}

/// Why a device stopped serving its driver: it needs a reset.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum DeviceError {
    #[error("queue {queue}: {source}")]
    Queue { queue: usize, source: virtio_queue::Error },
    #[error("queue {queue}: {source}")]
    Memory { queue: usize, source: vm_memory::GuestMemoryError },
    #[error("queue {queue}: a malformed request: {reason}")]
    Malformed { queue: usize, reason: &'static str },
    #[error("{what}: {source}")]
    Host { what: &'static str, source: std::io::Error },
}

/// A device. Its methods run on its worker's thread.
pub trait Device: Send {
    /// What it is.
    fn info(&self) -> DeviceInfo;

    /// The driver put buffers into queue `index`.
    fn queue_ready(&mut self, index: usize, queues: &mut Queues) -> Result<(), DeviceError>;

    /// A descriptor whose readability the device waits for now.
    fn host_fd(&self) -> Option<RawFd> {
        None
    }

    /// That descriptor became readable.
    fn host_ready(&mut self, queues: &mut Queues) -> Result<(), DeviceError> {
        let _ = queues;
        Ok(())
    }

    /// The guest has ended: whatever was acknowledged is to outlive this process, and its host if it can.
    fn finish(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The driver reset the device, or is gone: forget what was between them.
    fn reset(&mut self) {}
}

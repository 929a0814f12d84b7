//! virtio 1.x devices on PCI.
//!
//! [`transport`] is the PCI function that a driver talks to; once the driver is ready, the device and its queues
//! move to a thread of their own ([`worker`]) and come back at reset. Devices see guest memory only through
//! [`queue::Queues`], which refuses what the guest did not share.

pub mod block;
mod chain;
pub mod console;
mod device;
mod queue;
pub mod rng;
mod transport;
pub mod vsock;
mod worker;

pub use device::{Device, DeviceError, DeviceInfo};
pub use queue::Queues;
pub use transport::{BAR_BYTES, VirtioPci};

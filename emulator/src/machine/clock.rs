//! Time. The guest's TSC counts nanoseconds: a 1 GHz TSC keeps a guest that runs on a slow processor from
//! timing out, and makes kvmclock's scale the identity.

use std::sync::atomic::{AtomicI64, Ordering};

/// TSC frequency, in kHz.
pub const TSC_KHZ: u32 = 1_000_000;

/// Host monotonic nanoseconds.
pub fn host_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is on this frame.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}

/// Host wall-clock nanoseconds since the epoch.
pub fn host_wall_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is on this frame.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now) };
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}

/// The VM's clocks.
#[derive(Debug)]
pub struct Clock {
    born_ns: u64,
    /// KVM_SET_CLOCK's adjustment of kvmclock, in ns.
    adjust_ns: AtomicI64,
}

impl Default for Clock {
    fn default() -> Self {
        Self { born_ns: host_ns(), adjust_ns: AtomicI64::new(0) }
    }
}

impl Clock {
    /// Nanoseconds since the VM was made: the TSC before a vCPU's own offset.
    pub fn tsc(&self) -> u64 {
        host_ns().wrapping_sub(self.born_ns)
    }

    /// kvmclock, in ns.
    pub fn kvmclock_ns(&self) -> u64 {
        self.tsc().wrapping_add_signed(self.adjust_ns.load(Ordering::Relaxed))
    }

    /// KVM_SET_CLOCK.
    pub fn set_kvmclock_ns(&self, ns: u64) {
        self.adjust_ns.store(ns.wrapping_sub(self.tsc()) as i64, Ordering::Relaxed);
    }

    /// The pvclock page contents (struct pvclock_vcpu_time_info) for a vCPU whose TSC is ours plus `offset`.
    pub fn pvclock(&self, version: u32, tsc_offset: u64) -> [u8; 32] {
        let tsc = self.tsc();
        let system = tsc.wrapping_add_signed(self.adjust_ns.load(Ordering::Relaxed));
        let mut page = [0u8; 32];
        page[0..4].copy_from_slice(&version.to_le_bytes());
        page[8..16].copy_from_slice(&tsc.wrapping_add(tsc_offset).to_le_bytes());
        page[16..24].copy_from_slice(&system.to_le_bytes());
        // ns = (delta << 1) * 2^31 >> 32: the identity.
        page[24..28].copy_from_slice(&0x8000_0000u32.to_le_bytes());
        page[28] = 1;
        // PVCLOCK_TSC_STABLE_BIT
        page[29] = 1;
        page
    }

    /// struct pvclock_wall_clock: the wall time at which kvmclock was zero.
    pub fn wall_clock(&self, version: u32) -> [u8; 12] {
        let boot = host_wall_ns().saturating_sub(self.kvmclock_ns());
        let mut page = [0u8; 12];
        page[0..4].copy_from_slice(&version.to_le_bytes());
        page[4..8].copy_from_slice(&((boot / 1_000_000_000) as u32).to_le_bytes());
        page[8..12].copy_from_slice(&((boot % 1_000_000_000) as u32).to_le_bytes());
        page
    }
}

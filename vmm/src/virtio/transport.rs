//! The PCI transport (virtio 1.2, 4.1): common configuration, notifications, ISR, device configuration, MSI-X.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::device::{Device, DeviceInfo};
use super::queue::{Interrupts, NO_VECTOR, Queues};
use super::worker::{self, Job, Stopped, Worker};
use crate::devices::msi::MsiSink;
use crate::memory::DeviceMemory;
use crate::output::GuestLog;
use crate::pci::{Capability, ConfigSpace, Function, Identity, MSIX_CAPABILITY_BYTES, Msix};

/// Size of the BAR that holds all of it.
pub const BAR_BYTES: u32 = 0x8000;
const COMMON: Range<u64> = 0x0000..0x0038;
const ISR: Range<u64> = 0x1000..0x1001;
const DEVICE: Range<u64> = 0x2000..0x3000;
const NOTIFY: Range<u64> = 0x3000..0x4000;
const MSIX_TABLE: Range<u64> = 0x4000..0x5000;
const MSIX_PBA: Range<u64> = 0x5000..0x6000;
const NOTIFY_MULTIPLIER: u32 = 4;

/// virtio_pci_cap.cfg_type.
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

const F_EVENT_IDX: u64 = 1 << 29;
const F_VERSION_1: u64 = 1 << 32;
const F_ACCESS_PLATFORM: u64 = 1 << 33;

/// How long a processor that resets a device waits for the device's thread. Afterwards the driver does.
const RESET_WAIT: Duration = Duration::from_millis(200);

const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;
const STATUS_NEEDS_RESET: u8 = 64;

/// Where the device is: at rest here, or on its thread.
enum Place {
    Idle(Box<dyn Device>),
    Running(Worker),
    /// The driver reset it, and its thread has not noticed yet: it may be at the host's slow disk. The status stays what it was
    /// until it has (virtio 1.2, 4.1.4.3.2: the driver waits for 0).
    Stopping(Worker),
    /// Lost with its thread.
    Gone,
}

struct State {
    config: ConfigSpace,
    place: Place,
    status: u8,
    feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<Queue>,
    /// Where the kicks are registered with KVM.
    ioevents: Option<u64>,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    info: DeviceInfo,
    features: u64,
    memory: Arc<DeviceMemory>,
    vm: Option<Arc<VmFd>>,
    msix: Arc<Msix>,
    interrupts: Arc<Interrupts>,
    kicks: Arc<Vec<EventFd>>,
    /// Bodies of the MSI-X and of the PCI configuration access capability.
    msix_at: u16,
    pci_cfg_at: u16,
    state: Mutex<State>,
    /// One for the guest's life: a reset does not make it new.
    log: Arc<GuestLog>,
}

/// A vendor capability that points into BAR 0 (virtio 1.2, 4.1.4).
fn capability(cfg_type: u8, range: Range<u64>, more: &[u8]) -> Capability {
    let len = (16 + more.len()) as u8;
    let (offset, length) = (range.start as u32, (range.end - range.start) as u32);
    let head = [len, cfg_type, 0, 0, 0, 0];
    let body = [&head[..], &offset.to_le_bytes(), &length.to_le_bytes(), more].concat();
    Capability { id: 9, body, writable: Vec::new() }
}

impl VirtioPci {
    /// Puts `device` behind a function whose BAR is at `bar`. `vm` takes the kicks; without one they arrive as MMIO.
    pub fn new(
        device: Box<dyn Device>,
        bar: u32,
        memory: DeviceMemory,
        vm: Option<Arc<VmFd>>,
        sink: Arc<dyn MsiSink>,
    ) -> std::io::Result<Self> {
        let info = device.info();
        let count = info.queue_sizes.len();
        let msix = Arc::new(Msix::new(count as u16 + 1, sink));
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1040 + info.kind,
            revision: 1,
            class: info.class,
            subsystem: (0x1af4, info.kind),
        };
        let mut config = ConfigSpace::new(identity).with_memory_bar(bar, BAR_BYTES);
        let msix_at = config.add_capability(&msix.capability(MSIX_TABLE.start as u32, MSIX_PBA.start as u32));
        config.add_capability(&capability(CFG_COMMON, COMMON, &[]));
        config.add_capability(&capability(CFG_ISR, ISR, &[]));
        config.add_capability(&capability(CFG_DEVICE, DEVICE, &[]));
        config.add_capability(&capability(CFG_NOTIFY, NOTIFY, &NOTIFY_MULTIPLIER.to_le_bytes()));
        let mut access = capability(CFG_PCI, 0..0, &[0; 4]);
        // BAR, offset, length and data are the driver's to write.
        access.writable = [&[0, 0, 0xff, 0, 0, 0][..], &[0xff; 8], &[0; 4]].concat();
        let pci_cfg_at = config.add_capability(&access);
        let queue = |&size: &u16| Queue::new(size).map_err(std::io::Error::other);
        let queues = info.queue_sizes.iter().map(queue).collect::<Result<_, _>>()?;
        let platform = if memory.is_confidential() { F_ACCESS_PLATFORM } else { 0 };
        Ok(Self {
            features: info.features | F_VERSION_1 | F_EVENT_IDX | platform,
            interrupts: Arc::new(Interrupts::new(msix.clone(), count)),
            kicks: Arc::new(worker::kicks(count)?),
            log: Arc::new(GuestLog::new(info.name)),
            memory: Arc::new(memory),
            vm,
            msix,
            msix_at,
            pci_cfg_at,
            state: Mutex::new(State {
                config,
                place: Place::Idle(device),
                status: 0,
                feature_select: 0,
                driver_feature_select: 0,
                driver_features: 0,
                queue_select: 0,
                queues,
                ioevents: None,
            }),
            info,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it is, for people.
    pub fn name(&self) -> String {
        format!("virtio-{}", self.info.name)
    }

    /// The guest has ended: the device's thread is to serve what it was given, and to end. Waits at most for `time`; tells
    /// whether it has.
    pub fn finish(&self, time: Duration) -> bool {
        let mut state = self.state();
        self.unregister_kicks(&mut state);
        match &state.place {
            Place::Running(worker) | Place::Stopping(worker) => {
                worker.finish();
                !matches!(worker.wait(time), Stopped::NotYet)
            }
            Place::Idle(_) | Place::Gone => true,
        }
    }

    fn common_read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.state();
        self.settle(&mut state, Duration::ZERO);
        let value = self.common_register(&state, offset & !3);
        let from = value.to_le_bytes();
        data.fill(0);
        data.iter_mut().zip(from.iter().skip(offset as usize & 3)).for_each(|(to, from)| *to = *from);
    }

    /// The aligned 32-bit register at `offset`, and for 64-bit fields the next one above it.
    fn common_register(&self, state: &State, offset: u64) -> u64 {
        let select = usize::from(state.queue_select);
        let queue = state.queues.get(select);
        let vector = |vector: &std::sync::atomic::AtomicU16| u64::from(vector.load(Ordering::Acquire));
        let needs_reset = self.interrupts.needs_reset.load(Ordering::Acquire);
        let status = state.status | if needs_reset { STATUS_NEEDS_RESET } else { 0 };
        let size = queue.map_or(0, |queue| u64::from(queue.size()));
        let enabled = queue.is_some_and(QueueT::ready);
        let queue_vector = self.interrupts.queue_vectors.get(select).map_or(u64::from(NO_VECTOR), vector);
        match offset {
            0x00 => u64::from(state.feature_select),
            0x04 => half(self.features, state.feature_select),
            0x08 => u64::from(state.driver_feature_select),
            0x0c => half(state.driver_features, state.driver_feature_select),
            0x10 => vector(&self.interrupts.config_vector) | (state.queues.len() as u64) << 16,
            0x14 => u64::from(status) | u64::from(state.queue_select) << 16,
            0x18 => size | queue_vector << 16,
            0x1c => u64::from(enabled) | u64::from(state.queue_select) << 16,
            0x20 => queue.map_or(0, QueueT::desc_table),
            0x24 => queue.map_or(0, QueueT::desc_table) >> 32,
            0x28 => queue.map_or(0, QueueT::avail_ring),
            0x2c => queue.map_or(0, QueueT::avail_ring) >> 32,
            0x30 => queue.map_or(0, QueueT::used_ring),
            0x34 => queue.map_or(0, QueueT::used_ring) >> 32,
            _ => 0,
        }
    }

    fn common_write(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let value = u64::from_le_bytes(bytes);
        let low = Some(value as u32);
        let mut guard = self.state();
        let state = &mut *guard;
        let select = usize::from(state.queue_select);
        match (offset, data.len()) {
            (0x00, 4) => state.feature_select = value as u32,
            (0x08, 4) => state.driver_feature_select = value as u32,
            (0x0c, 4) if state.status & STATUS_FEATURES_OK == 0 => {
                let shift = 32 * u64::from(state.driver_feature_select.min(2));
                if shift < 64 {
                    state.driver_features =
                        state.driver_features & !(0xffff_ffff << shift) | (value << shift);
                }
            }
            (0x10, 2) => self.interrupts.config_vector.store(self.vector(value), Ordering::Release),
            (0x14, 1) => self.set_status(state, value as u8),
            (0x16, 2) => state.queue_select = value as u16,
            (0x1a, 2) => {
                if let Some(vector) = self.interrupts.queue_vectors.get(select) {
                    vector.store(self.vector(value), Ordering::Release);
                }
            }
            // A running queue does not change any more.
            (0x18.., _) if state.status & STATUS_DRIVER_OK != 0 => {}
            (0x18.., len) => {
                let Some(queue) = state.queues.get_mut(select) else { return };
                match (offset, len) {
                    (0x18, 2) => queue.set_size(value as u16),
                    (0x1c, 2) => queue.set_ready(value == 1),
                    (0x20, 4) => queue.set_desc_table_address(low, None),
                    (0x24, 4) => queue.set_desc_table_address(None, low),
                    (0x28, 4) => queue.set_avail_ring_address(low, None),
                    (0x2c, 4) => queue.set_avail_ring_address(None, low),
                    (0x30, 4) => queue.set_used_ring_address(low, None),
                    (0x34, 4) => queue.set_used_ring_address(None, low),
                    (0x20, 8) => queue.set_desc_table_address(low, Some((value >> 32) as u32)),
                    (0x28, 8) => queue.set_avail_ring_address(low, Some((value >> 32) as u32)),
                    (0x30, 8) => queue.set_used_ring_address(low, Some((value >> 32) as u32)),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// A vector as the device keeps it: one that does not exist becomes none, which the driver reads back.
    fn vector(&self, value: u64) -> u16 {
        if value <= self.info.queue_sizes.len() as u64 { value as u16 } else { NO_VECTOR }
    }

    fn set_status(&self, state: &mut State, status: u8) {
        if status == 0 {
            return self.reset(state);
        }
        self.settle(state, Duration::ZERO);
        if let Place::Stopping(_) = state.place {
            return; // a reset is not over yet
        }
        let gained = status & !state.status;
        state.status |= status & !STATUS_NEEDS_RESET;
        if gained & STATUS_FEATURES_OK != 0 && !self.acceptable(state.driver_features) {
            state.status &= !STATUS_FEATURES_OK;
        }
        if gained & STATUS_DRIVER_OK != 0 {
            self.start(state);
        }
    }

    /// A driver may decline features, except those without which nothing works.
    fn acceptable(&self, features: u64) -> bool {
        let needed = F_VERSION_1 | self.features & F_ACCESS_PLATFORM;
        features & !self.features == 0 && features & needed == needed
    }

    fn start(&self, state: &mut State) {
        let mut queues = state.queues.clone_ready();
        if let Err(refused) = self.may_start(state, &queues) {
            self.log.warn(&refused);
            return self.interrupts.need_reset();
        }
        let event_idx = state.driver_features & F_EVENT_IDX != 0;
        queues.iter_mut().for_each(|queue| queue.set_event_idx(event_idx));
        self.register_kicks(state);
        let job = Job {
            queues: Queues::new(self.memory.clone(), queues, self.interrupts.clone()),
            kicks: self.kicks.clone(),
            interrupts: self.interrupts.clone(),
            log: self.log.clone(),
        };
        let Place::Idle(device) = std::mem::replace(&mut state.place, Place::Gone) else { return };
        state.place = match Worker::start(device, job) {
            Ok(worker) => Place::Running(worker),
            Err((device, error)) => {
                self.log.warn(&format_args!("no thread for the device: {error}"));
                self.interrupts.need_reset();
                Place::Idle(device)
            }
        };
    }

    /// Whether the driver has done what must be done before DRIVER_OK (virtio 1.2, 3.1.1).
    fn may_start(&self, state: &State, queues: &[Queue]) -> Result<(), String> {
        if !matches!(state.place, Place::Idle(_)) {
            return Err("the device is lost: its thread died".into());
        }
        if state.status & STATUS_FEATURES_OK == 0 {
            return Err("the driver set DRIVER_OK without FEATURES_OK".into());
        }
        match queues.iter().find(|queue| queue.ready() && !queue.is_valid(&*self.memory)) {
            None => Ok(()),
            Some(queue) => {
                let at = [queue.desc_table(), queue.avail_ring(), queue.used_ring()];
                Err(format!("the driver's queue is not in shared memory: rings at {at:#x?}")
                    .replace('\n', ""))
            }
        }
    }

    fn reset(&self, state: &mut State) {
        self.unregister_kicks(state);
        state.place = match std::mem::replace(&mut state.place, Place::Gone) {
            Place::Running(worker) => {
                worker.stop();
                Place::Stopping(worker)
            }
            other => other,
        };
        self.settle(state, RESET_WAIT);
        if !matches!(state.place, Place::Stopping(_)) {
            self.clear(state);
        }
    }

    /// Waits at most for `time` for a reset that is under way, and completes it.
    fn settle(&self, state: &mut State, time: Duration) {
        let Place::Stopping(worker) = &state.place else { return };
        state.place = match worker.wait(time) {
            Stopped::NotYet => return,
            Stopped::Device(device) => Place::Idle(device),
            Stopped::Lost => Place::Gone,
        };
        self.clear(state);
    }

    /// The registers as after a reset.
    fn clear(&self, state: &mut State) {
        state.status = 0;
        state.driver_features = 0;
        (state.feature_select, state.driver_feature_select, state.queue_select) = (0, 0, 0);
        state.queues.iter_mut().for_each(QueueT::reset);
        self.interrupts.needs_reset.store(false, Ordering::Release);
        self.interrupts.isr.store(0, Ordering::Release);
        let vectors = self.interrupts.queue_vectors.iter().chain([&self.interrupts.config_vector]);
        vectors.for_each(|vector| vector.store(NO_VECTOR, Ordering::Release));
    }

    /// Lets KVM turn kicks into events without an exit to here. Where it cannot, the exit does the same.
    fn register_kicks(&self, state: &mut State) {
        self.unregister_kicks(state);
        let Some((vm, bar)) = self.vm.as_ref().zip(state.config.bar()) else { return };
        for (kick, address) in self.kicks.iter().zip(notify_addresses(bar.start)) {
            if let Err(error) = vm.register_ioevent(kick, &address, NoDatamatch) {
                self.log.warn(&format_args!("KVM_IOEVENTFD: {error}"));
            }
        }
        state.ioevents = Some(bar.start);
    }

    fn unregister_kicks(&self, state: &mut State) {
        let Some((vm, bar)) = self.vm.as_ref().zip(state.ioevents.take()) else { return };
        for (kick, address) in self.kicks.iter().zip(notify_addresses(bar)) {
            // Fails only for what was not registered.
            let _ = vm.unregister_ioevent(kick, &address, NoDatamatch);
        }
    }
}

fn notify_addresses(bar: u64) -> impl Iterator<Item = IoEventAddress> {
    (bar + NOTIFY.start..).step_by(NOTIFY_MULTIPLIER as usize).map(IoEventAddress::Mmio)
}

fn half(value: u64, select: u32) -> u64 {
    match select {
        0 => value & 0xffff_ffff,
        1 => value >> 32,
        _ => 0,
    }
}

/// Queues are moved to the worker as copies: the transport keeps what the driver wrote, the worker its indices.
trait CloneReady {
    fn clone_ready(&self) -> Vec<Queue>;
}

impl CloneReady for Vec<Queue> {
    fn clone_ready(&self) -> Vec<Queue> {
        self.iter().filter_map(|queue| Queue::try_from(queue.state()).ok()).collect()
    }
}

impl Function for VirtioPci {
    fn config_read(&self, register: u16, data: &mut [u8]) {
        if let Some((offset, len)) = self.pci_cfg_window(register, data.len()) {
            return self.bar_read(offset, data.get_mut(..len).unwrap_or_default());
        }
        self.state().config.read(register, data);
    }

    fn config_write(&self, register: u16, data: &[u8]) {
        if let Some((offset, len)) = self.pci_cfg_window(register, data.len()) {
            return self.bar_write(offset, data.get(..len).unwrap_or_default());
        }
        let mut state = self.state();
        let bar = state.config.bar();
        state.config.write(register, data);
        if state.ioevents.is_some() && state.config.bar() != bar {
            self.register_kicks(&mut state);
        }
        let control = usize::from(self.msix_at)..usize::from(self.msix_at) + MSIX_CAPABILITY_BYTES;
        if control.contains(&(usize::from(register) + data.len() - 1)) {
            let mut bytes = [0; 2];
            state.config.read(self.msix_at, &mut bytes);
            drop(state);
            self.msix.set_control(u16::from_le_bytes(bytes));
        }
    }

    fn bar(&self) -> Option<Range<u64>> {
        self.state().config.bar()
    }

    fn bar_read(&self, offset: u64, data: &mut [u8]) {
        match offset {
            _ if COMMON.contains(&offset) => self.common_read(offset, data),
            _ if ISR.contains(&offset) => {
                data.fill(0);
                data.iter_mut()
                    .take(1)
                    .for_each(|byte| *byte = self.interrupts.isr.swap(0, Ordering::AcqRel));
            }
            _ if DEVICE.contains(&offset) => {
                let at = (offset - DEVICE.start) as usize;
                data.fill(0);
                data.iter_mut().zip(self.info.config.iter().skip(at)).for_each(|(to, from)| *to = *from);
            }
            _ if MSIX_TABLE.contains(&offset) => self.msix.table_read(offset - MSIX_TABLE.start, data),
            _ if MSIX_PBA.contains(&offset) => self.msix.pba_read(offset - MSIX_PBA.start, data),
            _ => data.fill(0),
        }
    }

    fn bar_write(&self, offset: u64, data: &[u8]) {
        match offset {
            _ if COMMON.contains(&offset) => self.common_write(offset, data),
            _ if MSIX_TABLE.contains(&offset) => self.msix.table_write(offset - MSIX_TABLE.start, data),
            _ if NOTIFY.contains(&offset) => {
                let index = (offset - NOTIFY.start) / u64::from(NOTIFY_MULTIPLIER);
                if let Some(kick) = self.kicks.get(index as usize) {
                    // Full means that it is readable already.
                    let _ = kick.write(1);
                }
            }
            _ => {}
        }
    }
}

impl VirtioPci {
    /// The BAR access that a configuration access to `pci_cfg_data` stands for (virtio 1.2, 4.1.4.9).
    fn pci_cfg_window(&self, register: u16, len: usize) -> Option<(u64, usize)> {
        let data_at = self.pci_cfg_at + 14;
        if register != data_at {
            return None;
        }
        let state = self.state();
        let u32_at = |at: u16| {
            let mut bytes = [0; 4];
            state.config.read(at, &mut bytes);
            u32::from_le_bytes(bytes)
        };
        let (bar, offset, length) =
            (u32_at(self.pci_cfg_at + 2) & 0xff, u32_at(self.pci_cfg_at + 6), u32_at(self.pci_cfg_at + 10));
        let valid = bar == 0 && matches!(length, 1 | 2 | 4) && len >= length as usize;
        (valid && offset.is_multiple_of(length)).then_some((u64::from(offset), length as usize))
    }
}

#[cfg(test)]
mod tests;

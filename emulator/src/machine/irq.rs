//! Interrupt messages, routing, irqfds and ioeventfds.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, RwLock, Weak};

use super::vm::Vm;
use crate::uapi::errno::Errno;

/// An interrupt message, as the LAPICs see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// APIC ID or logical destination.
    pub destination: u32,
    /// Logical destination mode.
    pub logical: bool,
    /// Delivery mode: 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 6 SIPI.
    pub mode: u8,
    /// Vector.
    pub vector: u8,
    /// Level-triggered.
    pub level: bool,
}

impl Message {
    /// From the MSI address and data (SDM, "Message Signalled Interrupts"). `high` holds bits 31:8 of the
    /// destination in its upper 24 bits when x2APIC IDs are in use.
    pub fn from_msi(low: u32, high: u32, data: u32) -> Self {
        Self {
            destination: (low >> 12 & 0xff) | (high & 0xffff_ff00),
            logical: low & 4 != 0,
            mode: (data >> 8 & 7) as u8,
            vector: data as u8,
            level: data & 0x8000 != 0,
        }
    }
}

/// Where a GSI goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// An MSI.
    Msi(u32, u32, u32),
    /// A pin of an in-kernel chip: (chip, pin). Needs a full irqchip.
    Pin(u32, u32),
}

/// An ioeventfd: where writes are swallowed and signalled.
#[derive(Clone, Debug)]
struct IoEvent {
    pio: bool,
    address: u64,
    bytes: u32,
    datamatch: Option<u64>,
    fd: RawFd,
}

struct IrqFd {
    gsi: u32,
    trigger: Arc<OwnedFd>,
    client: RawFd,
}

/// Routing table, irqfds and ioeventfds of a VM.
#[derive(Default)]
pub struct Irqs {
    routes: RwLock<HashMap<u32, Vec<Route>>>,
    io_events: RwLock<Vec<(IoEvent, Arc<OwnedFd>)>>,
    irq_fds: Mutex<Vec<IrqFd>>,
    poller: Mutex<Option<Arc<OwnedFd>>>,
}

/// A second descriptor for the same file, so that the client may close its own.
fn duplicate(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: F_DUPFD_CLOEXEC on any number is answered by the kernel; the result is checked and owned.
    unsafe {
        let new = crate::preload::real::fcntl()(fd, libc::F_DUPFD_CLOEXEC, std::ptr::null_mut());
        if new < 0 { Err(Errno::EBADF) } else { Ok(OwnedFd::from_raw_fd(new)) }
    }
}

fn signal(fd: &OwnedFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: eight bytes from this frame. A full counter means that the other side is already signalled.
    unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), 8) };
}

impl Irqs {
    /// KVM_SET_GSI_ROUTING.
    pub fn set_routes(&self, routes: HashMap<u32, Vec<Route>>) {
        if let Ok(mut table) = self.routes.write() {
            *table = routes;
        }
    }

    /// The routes of a GSI.
    pub fn routes(&self, gsi: u32) -> Vec<Route> {
        self.routes.read().ok().and_then(|table| table.get(&gsi).cloned()).unwrap_or_default()
    }

    /// Does the routing table send a level-triggered interrupt with this vector? Its EOI then goes to the client's IOAPIC.
    pub fn wants_eoi(&self, vector: u8) -> bool {
        self.routes.read().is_ok_and(|table| {
            table
                .values()
                .flatten()
                .any(|r| matches!(r, Route::Msi(_, _, data) if *data as u8 == vector && data & 0x8000 != 0))
        })
    }

    /// KVM_IOEVENTFD.
    pub fn io_event(&self, args: &kvm_bindings::kvm_ioeventfd) -> Result<(), Errno> {
        const DATAMATCH: u32 = 1 << kvm_bindings::kvm_ioeventfd_flag_nr_datamatch;
        const PIO: u32 = 1 << kvm_bindings::kvm_ioeventfd_flag_nr_pio;
        const DEASSIGN: u32 = 1 << kvm_bindings::kvm_ioeventfd_flag_nr_deassign;
        if args.flags & !(DATAMATCH | PIO | DEASSIGN) != 0 || !matches!(args.len, 0 | 1 | 2 | 4 | 8) {
            return Err(Errno::EINVAL);
        }
        if args.addr.checked_add(u64::from(args.len)).is_none()
            || (args.len == 0 && args.flags & DATAMATCH != 0)
        {
            return Err(Errno::EINVAL);
        }
        let event = IoEvent {
            pio: args.flags & PIO != 0,
            address: args.addr,
            bytes: args.len,
            datamatch: (args.flags & DATAMATCH != 0).then_some(args.datamatch),
            fd: args.fd,
        };
        let mut table = self.io_events.write().map_err(|_| Errno::EIO)?;
        let same = |other: &IoEvent| {
            other.pio == event.pio
                && other.address == event.address
                && other.bytes == event.bytes
                && other.datamatch == event.datamatch
        };
        if args.flags & DEASSIGN != 0 {
            let index = table
                .iter()
                .position(|(other, _)| same(other) && other.fd == event.fd)
                .ok_or(Errno::ENOENT)?;
            table.remove(index);
            return Ok(());
        }
        if table.iter().any(|(other, _)| same(other)) {
            return Err(Errno::EEXIST);
        }
        let fd = Arc::new(duplicate(args.fd)?);
        table.push((event, fd));
        Ok(())
    }

    /// A guest write: `true` if an ioeventfd took it.
    pub fn io_event_write(&self, pio: bool, address: u64, data: &[u8]) -> bool {
        let Ok(table) = self.io_events.read() else { return false };
        let value = data.iter().rev().fold(0u64, |acc, &b| acc << 8 | u64::from(b));
        let hit = table.iter().find(|(event, _)| {
            event.pio == pio
                && event.address == address
                && (event.bytes == 0 || event.bytes as usize == data.len())
                && event.datamatch.is_none_or(|wanted| wanted == value)
        });
        if let Some((_, fd)) = hit {
            signal(fd);
        }
        hit.is_some()
    }

    /// KVM_IRQFD.
    pub fn irq_fd(&self, vm: &Arc<Vm>, args: &kvm_bindings::kvm_irqfd) -> Result<(), Errno> {
        if args.flags & !(kvm_bindings::KVM_IRQFD_FLAG_DEASSIGN) != 0 {
            // Resampling needs a level-triggered in-kernel pin.
            return Err(Errno::EINVAL);
        }
        let client = RawFd::try_from(args.fd).map_err(|_| Errno::EBADF)?;
        let mut list = self.irq_fds.lock().map_err(|_| Errno::EIO)?;
        if args.flags & kvm_bindings::KVM_IRQFD_FLAG_DEASSIGN != 0 {
            if let (Some(epoll), Some(index)) =
                (self.epoll()?, list.iter().position(|f| f.client == client && f.gsi == args.gsi))
            {
                let gone = list.remove(index);
                // SAFETY: both descriptors are ours.
                unsafe {
                    libc::epoll_ctl(
                        epoll.as_raw_fd(),
                        libc::EPOLL_CTL_DEL,
                        gone.trigger.as_raw_fd(),
                        std::ptr::null_mut(),
                    )
                };
            }
            return Ok(());
        }
        if list.iter().any(|f| f.client == client && f.gsi == args.gsi) {
            return Err(Errno::EBUSY);
        }
        let trigger = Arc::new(duplicate(client)?);
        let epoll = self.start_poller(vm)?;
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: trigger.as_raw_fd() as u64 };
        // SAFETY: both descriptors are ours; the event is on this frame.
        if unsafe {
            libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, trigger.as_raw_fd(), &raw mut event)
        } != 0
        {
            return Err(Errno::last());
        }
        list.push(IrqFd { gsi: args.gsi, trigger, client });
        Ok(())
    }

    fn epoll(&self) -> Result<Option<Arc<OwnedFd>>, Errno> {
        Ok(self.poller.lock().map_err(|_| Errno::EIO)?.clone())
    }

    fn start_poller(&self, vm: &Arc<Vm>) -> Result<Arc<OwnedFd>, Errno> {
        let mut poller = self.poller.lock().map_err(|_| Errno::EIO)?;
        if let Some(epoll) = &*poller {
            return Ok(Arc::clone(epoll));
        }
        // SAFETY: the result is checked and owned.
        let epoll = unsafe {
            let raw = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if raw < 0 {
                return Err(Errno::last());
            }
            Arc::new(OwnedFd::from_raw_fd(raw))
        };
        let (weak, thread_epoll) = (Arc::downgrade(vm), Arc::clone(&epoll));
        std::thread::Builder::new()
            .name("softkvm-irqfd".into())
            .spawn(move || poll_irq_fds(&weak, &thread_epoll))
            .map_err(|_| Errno::ENOMEM)?;
        *poller = Some(Arc::clone(&epoll));
        Ok(epoll)
    }

    fn gsi_of(&self, fd: RawFd) -> Vec<u32> {
        self.irq_fds
            .lock()
            .map(|list| list.iter().filter(|f| f.trigger.as_raw_fd() == fd).map(|f| f.gsi).collect())
            .unwrap_or_default()
    }
}

/// Forwards eventfds to their GSIs until the VM is gone.
fn poll_irq_fds(vm: &Weak<Vm>, epoll: &OwnedFd) {
    loop {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
        // The timeout bounds how long the thread outlives its VM.
        // SAFETY: the buffer is on this frame and its length is given.
        let ready = unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), 16, 1000) };
        let Some(vm) = vm.upgrade() else { return };
        for event in events.iter().take(usize::try_from(ready).unwrap_or(0)) {
            let fd = event.u64 as RawFd;
            let mut counter = [0u8; 8];
            // SAFETY: eight bytes on this frame. EAGAIN (already drained) is fine.
            if unsafe { libc::read(fd, counter.as_mut_ptr().cast(), 8) } == 8 {
                for gsi in vm.irqs.gsi_of(fd) {
                    vm.raise_gsi(gsi);
                }
            }
        }
    }
}

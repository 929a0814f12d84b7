//! A virtual machine.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};

use super::attributes::Attributes;
use super::clock::Clock;
use super::gmem::PAGE;
use super::irq::{Irqs, Message, Route};
use super::irqchip::{Irqchips, Source, default_routes};
use super::memory::{Gfn, Slot, Slots, for_each_page, page_bits};
use super::tee::Tee;
use super::timer::Timers;
use super::vcpu::VcpuShared;
use crate::uapi::caps;
use crate::uapi::errno::Errno;
use crate::uapi::user;

/// KVM_CREATE_VM's machine type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmType {
    /// KVM_X86_DEFAULT_VM.
    Default,
    /// KVM_X86_SW_PROTECTED_VM: private memory without a TEE.
    SwProtected,
    /// KVM_X86_SNP_VM.
    Snp,
    /// KVM_X86_TDX_VM.
    Tdx,
}

/// Which interrupt chips are "in the kernel".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Irqchip {
    /// None: the client injects vectors.
    None = 0,
    /// LAPICs only (KVM_CAP_SPLIT_IRQCHIP).
    Split = 1,
    /// LAPICs, PICs and the IOAPIC (KVM_CREATE_IRQCHIP).
    Full = 2,
}

/// A virtual machine.
pub struct Vm {
    me: Weak<Self>,
    /// Its type.
    pub vm_type: VmType,
    slots: RwLock<Arc<Slots>>,
    attributes: RwLock<Attributes>,
    vcpus: RwLock<Vec<Arc<VcpuShared>>>,
    vcpu_ids: OnceLock<u32>,
    irqchip: AtomicU32,
    irqchips: OnceLock<Irqchips>,
    /// Routing, irqfds, ioeventfds.
    pub irqs: Irqs,
    /// Time.
    pub clock: Clock,
    /// LAPIC timers.
    pub timers: Timers,
    /// KVM_CAP_X2APIC_API: 32-bit IDs in KVM_GET_LAPIC and MSIs.
    pub x2apic_ids: AtomicBool,
    /// KVM_CAP_EXIT_HYPERCALL's mask.
    pub hypercall_exits: AtomicU64,
    /// KVM_CAP_X86_APIC_BUS_CYCLES_NS.
    pub apic_bus_ns: AtomicU64,
    /// Its TEE.
    pub tee: Tee,
    /// Broken beyond repair, or torn down: every further ioctl is EIO.
    pub dead: AtomicBool,
    /// Serialises changes of slots.
    change: Mutex<()>,
}

impl Vm {
    /// A VM without memory and vCPUs.
    pub fn new(vm_type: VmType) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            vm_type,
            slots: RwLock::default(),
            attributes: RwLock::default(),
            vcpus: RwLock::default(),
            vcpu_ids: OnceLock::new(),
            irqchip: AtomicU32::new(Irqchip::None as u32),
            irqchips: OnceLock::new(),
            irqs: Irqs::default(),
            clock: Clock::default(),
            timers: Timers::default(),
            x2apic_ids: AtomicBool::new(false),
            hypercall_exits: AtomicU64::new(0),
            apic_bus_ns: AtomicU64::new(1),
            tee: Tee::of(vm_type),
            dead: AtomicBool::new(false),
            change: Mutex::new(()),
        })
    }

    /// Does this VM have private memory?
    pub fn has_private_memory(&self) -> bool {
        self.vm_type != VmType::Default
    }

    /// Are the LAPICs in the kernel?
    pub fn lapic_in_kernel(&self) -> bool {
        self.irqchip.load(Ordering::Relaxed) != Irqchip::None as u32
    }

    /// Are the PICs and the IOAPIC in the kernel?
    pub fn irqchips(&self) -> Option<&Irqchips> {
        self.irqchips.get()
    }

    /// For those who must find the VM later without keeping it alive.
    pub fn me(&self) -> Weak<Self> {
        self.me.clone()
    }

    /// KVM_CAP_SPLIT_IRQCHIP and KVM_CREATE_IRQCHIP: before the first vCPU, once.
    pub fn create_irqchip(&self, which: Irqchip) -> Result<(), Errno> {
        let _serial = self.change.lock().map_err(|_| Errno::EIO)?;
        if self.lapic_in_kernel() {
            return Err(Errno::EEXIST);
        }
        if !self.vcpus().is_empty() {
            return Err(Errno::EINVAL);
        }
        // A TD's end-of-interrupt is its own: KVM's IOAPIC would never learn of it.
        if which == Irqchip::Full && self.tdx().is_some() {
            return Err(Errno::EINVAL);
        }
        if which == Irqchip::Full {
            self.irqchips.set(Irqchips::default()).map_err(|_| Errno::EEXIST)?;
            self.irqs.set_routes(default_routes());
        }
        self.irqchip.store(which as u32, Ordering::Relaxed);
        Ok(())
    }

    /// vCPU IDs are below this.
    pub fn vcpu_ids(&self) -> u32 {
        self.vcpu_ids.get().copied().unwrap_or(caps::MAX_VCPUS as u32)
    }

    /// KVM_CAP_MAX_VCPU_ID: once, or again with the same value.
    pub fn limit_vcpu_ids(&self, ids: u32) -> Result<(), Errno> {
        if *self.vcpu_ids.get_or_init(|| ids) == ids { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// The memslots, for a signal handler: nothing if somebody is changing them.
    pub fn slots_now(&self) -> Option<Arc<Slots>> {
        self.slots.try_read().ok().map(|slots| Arc::clone(&slots))
    }

    /// The memslots as they are now.
    pub fn slots(&self) -> Arc<Slots> {
        self.slots.read().map(|slots| Arc::clone(&slots)).unwrap_or_default()
    }

    /// The vCPUs.
    pub fn vcpus(&self) -> Vec<Arc<VcpuShared>> {
        self.vcpus.read().map(|list| list.clone()).unwrap_or_default()
    }

    /// Enters a vCPU; EEXIST if its ID is taken.
    pub fn add_vcpu(&self, vcpu: Arc<VcpuShared>) -> Result<(), Errno> {
        let mut list = self.vcpus.write().map_err(|_| Errno::EIO)?;
        if list.iter().any(|other| other.id == vcpu.id) {
            return Err(Errno::EEXIST);
        }
        list.push(vcpu);
        Ok(())
    }

    /// Removes a vCPU whose file is closed.
    pub fn remove_vcpu(&self, id: u32) {
        if let Ok(mut list) = self.vcpus.write() {
            list.retain(|vcpu| vcpu.id != id);
        }
    }

    /// KVM_SET_USER_MEMORY_REGION(2), after argument checks that need no VM.
    pub fn set_slot(&self, mut slot: Slot) -> Result<(), Errno> {
        let _serial = self.change.lock().map_err(|_| Errno::EIO)?;
        let before = self.slots();
        let old = before.by_id(slot.id);
        if slot.bytes == 0 {
            let old = old.ok_or(Errno::EINVAL)?;
            if self.tdx().is_some() {
                // KVM removes a memslot's pages from secure EPT; the RMP keeps them until guest_memfd gives them up.
                super::confidential::taken_back(self, old.gpa, old.bytes);
            }
            self.replace(before.without(slot.id));
            return Ok(());
        }
        if let Some(old) = old {
            // Only the address, and flags other than read-only, of an existing slot may change; never one with guest_memfd.
            let same = old.bytes == slot.bytes
                && old.hva == slot.hva
                && (old.flags ^ slot.flags) & kvm_bindings::KVM_MEM_READONLY == 0
                && old.gmem.is_none();
            if !same {
                return Err(Errno::EINVAL);
            }
        }
        if slot.flags & kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES != 0 {
            slot.dirty = Some(page_bits(slot.bytes));
        }
        self.replace(before.without(slot.id).with(slot)?);
        Ok(())
    }

    fn replace(&self, slots: Slots) {
        if let Ok(mut current) = self.slots.write() {
            *current = Arc::new(slots);
        }
        self.flush_all();
    }

    /// KVM_GET_DIRTY_LOG: takes the bits of a slot.
    pub fn take_dirty(&self, id: u32) -> Result<Vec<u64>, Errno> {
        let slots = self.slots();
        let bits = slots.by_id(id).and_then(|slot| slot.dirty.as_ref()).ok_or(Errno::ENOENT)?;
        // Write permissions go first: a write between the read of a bit and the flush would otherwise be lost.
        let taken = bits.iter().map(|word| word.swap(0, Ordering::AcqRel)).collect::<Vec<_>>();
        self.flush_all();
        Ok(taken.iter().zip(bits.iter()).map(|(&t, late)| t | late.load(Ordering::Acquire)).collect())
    }

    /// Is this frame private?
    pub fn is_private(&self, gpa: u64) -> bool {
        self.has_private_memory() && self.attributes.read().is_ok_and(|a| a.is_private(Gfn::of(gpa)))
    }

    /// Are all frames of a range private?
    pub fn all_private(&self, gpa: u64, bytes: u64) -> bool {
        self.attributes.read().is_ok_and(|a| a.all_private(Gfn::of(gpa), bytes / PAGE))
    }

    /// KVM_SET_MEMORY_ATTRIBUTES.
    pub fn set_private(&self, gpa: u64, bytes: u64, private: bool) {
        if let Ok(mut attributes) = self.attributes.write() {
            attributes.set(Gfn::of(gpa), bytes / PAGE, private);
        }
        if !private {
            super::confidential::taken_back(self, gpa, bytes);
        }
        self.flush_all();
    }

    /// Drops every vCPU's TLB and waits until none can use an old entry. Not from inside KVM_RUN.
    pub fn flush_all(&self) {
        let vcpus = self.vcpus();
        let tickets: Vec<_> = vcpus.iter().map(|vcpu| vcpu.request_flush()).collect();
        for (vcpu, ticket) in vcpus.iter().zip(tickets) {
            vcpu.wait_flushed(ticket);
        }
    }

    /// Asks the other vCPUs to drop their TLBs soon, without waiting: for changes that the guest itself made
    /// and orders by its own means.
    pub fn flush_others(&self, me: u32) {
        for vcpu in self.vcpus().iter().filter(|vcpu| vcpu.id != me) {
            vcpu.request_flush();
        }
    }

    /// Delivers an interrupt message. `skip` leaves out one vCPU ("all but self").
    pub fn deliver(&self, message: &Message, skip: Option<u32>) -> bool {
        let mut hit = false;
        for vcpu in self.vcpus() {
            if skip == Some(vcpu.id) || !vcpu.matches(message) {
                continue;
            }
            hit = true;
            vcpu.receive(message);
            if message.mode == 1 {
                break;
            }
        }
        hit
    }

    /// Drives a GSI; how many interrupts came of it, `None` if it leads nowhere. An MSI is sent by the rising level.
    pub fn set_gsi(&self, gsi: u32, source: Source, level: bool) -> Option<u32> {
        let mut taken = None;
        for route in self.irqs.routes(gsi) {
            let hit = match (route, self.irqchips()) {
                (Route::Msi(low, high, data), _) => level && self.deliver(&self.msi(low, high, data), None),
                (Route::Pin(chip, pin), Some(chips)) => chips.set_pin(self, chip, pin, source, level),
                (Route::Pin(..), None) => continue,
            };
            taken = Some(taken.unwrap_or(0) + u32::from(hit));
        }
        taken
    }

    /// An irqfd was signalled: a pulse.
    pub fn raise_gsi(&self, gsi: u32) {
        for level in [true, false] {
            self.set_gsi(gsi, Source::Client, level);
        }
    }

    /// An IOAPIC's message has eight bits of destination: 0xff is everybody.
    pub fn ioapic_message(&self, message: Message) -> Message {
        let everybody = message.destination == 0xff;
        Message { destination: if everybody { u32::MAX } else { message.destination }, ..message }
    }

    /// An MSI, with the upper destination bits if KVM_CAP_X2APIC_API turned them on.
    pub fn msi(&self, low: u32, high: u32, data: u32) -> Message {
        let high = if self.x2apic_ids.load(Ordering::Relaxed) { high } else { 0 };
        let mut message = Message::from_msi(low, high, data);
        if message.destination == 0xff && high == 0 {
            message.destination = u32::MAX;
        }
        message
    }

    /// Reads the shared (or only) view. EFAULT outside of memory.
    pub fn read_shared(&self, gpa: u64, data: &mut [u8]) -> Result<(), Errno> {
        let slots = self.slots();
        let total = data.len();
        for_each_page(gpa, total, |at, done, take| {
            let slot = slots.find(at).ok_or(Errno::EFAULT)?;
            let part = data.get_mut(done..done + take).ok_or(Errno::EFAULT)?;
            user::read_bytes(slot.shared(at) as usize, part)
        })
    }

    /// Writes the shared (or only) view. EFAULT outside of memory.
    pub fn write_shared(&self, gpa: u64, data: &[u8]) -> Result<(), Errno> {
        let slots = self.slots();
        for_each_page(gpa, data.len(), |at, done, take| {
            let slot = slots.find(at).ok_or(Errno::EFAULT)?;
            slot.mark_dirty(at);
            let part = data.get(done..done + take).ok_or(Errno::EFAULT)?;
            user::write_bytes(slot.shared(at) as usize, part)
        })
    }

    /// Copies out of the private view (the machine's own accesses: VMSA, launch, secure processor).
    pub fn read_private(&self, gpa: u64, data: &mut [u8]) -> Result<(), Errno> {
        let slots = self.slots();
        let total = data.len();
        for_each_page(gpa, total, |at, done, take| {
            let host = private_host(&slots, at)?;
            // SAFETY: inside live private memory.
            unsafe { std::ptr::copy_nonoverlapping(host, data.as_mut_ptr().add(done), take) };
            Ok(())
        })
    }

    /// Copies into the private view.
    pub fn write_private(&self, gpa: u64, data: &[u8]) -> Result<(), Errno> {
        let slots = self.slots();
        for_each_page(gpa, data.len(), |at, done, take| {
            let host = private_host(&slots, at)?;
            // SAFETY: inside live private memory.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr().add(done), host, take) };
            Ok(())
        })
    }
}

fn private_host(slots: &Slots, gpa: u64) -> Result<*mut u8, Errno> {
    let (memory, offset) = slots.find(gpa).and_then(|slot| slot.private(gpa)).ok_or(Errno::EFAULT)?;
    memory.host(offset).ok_or(Errno::EFAULT)
}

/// KVM_SET_GSI_ROUTING's table as routes by GSI.
pub fn routes_by_gsi(entries: &[(u32, Route)]) -> HashMap<u32, Vec<Route>> {
    let mut table: HashMap<u32, Vec<Route>> = HashMap::new();
    for &(gsi, route) in entries {
        table.entry(gsi).or_default().push(route);
    }
    table
}

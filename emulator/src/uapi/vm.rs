//! Ioctls on a VM.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings as k;
use kvm_bindings::{
    kvm_clear_dirty_log, kvm_clock_data, kvm_create_guest_memfd, kvm_dirty_log, kvm_enable_cap,
    kvm_enc_region, kvm_ioeventfd, kvm_irq_level, kvm_irq_routing, kvm_irq_routing_entry, kvm_irqchip,
    kvm_irqfd, kvm_memory_attributes, kvm_msi, kvm_pit_config, kvm_pit_state2, kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
};

use super::errno::Errno;
use super::{Row, caps, io, ior, iow, iowr, user};
use crate::machine::clock::TSC_KHZ;
use crate::machine::gmem::{GuestMemfd, PAGE};
use crate::machine::irq::Route;
use crate::machine::irqchip::{Irqchips, Source, pin_exists};
use crate::machine::memory::{Slot, page_bits};
use crate::machine::tee::Tee;
use crate::machine::vcpu::Vcpu;
use crate::machine::vm::{Irqchip, Vm, routes_by_gsi};
use crate::preload::fds::{self, Object};

super::user::abi!(
    kvm_clear_dirty_log,
    kvm_clock_data,
    kvm_create_guest_memfd,
    kvm_dirty_log,
    kvm_enable_cap,
    kvm_enc_region,
    kvm_ioeventfd,
    kvm_irq_level,
    kvm_irq_routing_entry,
    kvm_irqchip,
    kvm_irqfd,
    kvm_memory_attributes,
    kvm_msi,
    kvm_pit_config,
    kvm_pit_state2,
    kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
);

/// The VM ioctls.
pub const TABLE: &[Row<Arc<Vm>>] = &[
    (io(0x03), |vm, arg| Ok(caps::check_vm(vm, arg as u32))),
    (io(0x41), create_vcpu),
    (iow::<kvm_dirty_log>(0x42), get_dirty_log),
    (iow::<kvm_userspace_memory_region>(0x46), set_region),
    (iow::<kvm_userspace_memory_region2>(0x49), set_region2),
    // The TSS and the identity map are for CPUs that cannot run real mode in hardware.
    (io(0x47), |_, _| Ok(0)),
    (iow::<u64>(0x48), |vm, arg| {
        user::read::<u64>(arg)?;
        if vm.vcpus().is_empty() { Ok(0) } else { Err(Errno::EINVAL) }
    }),
    (io(0x60), |vm, _| vm.create_irqchip(Irqchip::Full).map(|()| 0)),
    (iow::<kvm_irq_level>(0x61), |vm, arg| irq_line(vm, arg, false)),
    (iowr::<kvm_irqchip>(0x62), |vm, arg| {
        let mut state: kvm_irqchip = user::read(arg)?;
        require_chips(vm)?.get(&mut state)?;
        user::write(arg, &state).map(|()| 0)
    }),
    (ior::<kvm_irqchip>(0x63), |vm, arg| {
        let state: kvm_irqchip = user::read(arg)?;
        require_chips(vm)?.set(vm, &state).map(|()| 0)
    }),
    (io(0x64), |vm, _| create_pit(vm, k::KVM_PIT_SPEAKER_DUMMY)),
    (iowr::<kvm_irq_level>(0x67), |vm, arg| irq_line(vm, arg, true)),
    (iow::<kvm_irq_routing>(0x6a), set_routing),
    (iow::<kvm_irqfd>(0x76), |vm, arg| {
        require_lapic(vm)?;
        vm.irqs.irq_fd(vm, &user::read(arg)?).map(|()| 0)
    }),
    (iow::<kvm_pit_config>(0x77), |vm, arg| {
        let config: kvm_pit_config = user::read(arg)?;
        create_pit(vm, config.flags)
    }),
    (iow::<kvm_ioeventfd>(0x79), |vm, arg| vm.irqs.io_event(&user::read(arg)?).map(|()| 0)),
    (iow::<kvm_clock_data>(0x7b), |vm, arg| {
        let data: kvm_clock_data = user::read(arg)?;
        vm.clock.set_kvmclock_ns(data.clock);
        Ok(0)
    }),
    (ior::<kvm_clock_data>(0x7c), |vm, arg| {
        let data = kvm_clock_data {
            clock: vm.clock.kvmclock_ns(),
            flags: k::KVM_CLOCK_TSC_STABLE,
            ..kvm_clock_data::default()
        };
        user::write(arg, &data).map(|()| 0)
    }),
    (ior::<kvm_pit_state2>(0x9f), |vm, arg| user::write(arg, &require_chips(vm)?.pit_state()?).map(|()| 0)),
    (iow::<kvm_pit_state2>(0xa0), |vm, arg| {
        let state: kvm_pit_state2 = user::read(arg)?;
        require_chips(vm)?.set_pit_state(vm, &state).map(|()| 0)
    }),
    (io(0xa2), |_, arg| set_tsc_khz(arg)),
    (io(0xa3), |_, _| Ok(TSC_KHZ as i32)),
    (iow::<kvm_enable_cap>(0xa3), enable_cap),
    (iow::<kvm_msi>(0xa5), signal_msi),
    (iowr::<libc::c_ulong>(0xba), |vm, arg| match &vm.tee {
        Tee::None => Err(Errno::ENOTTY),
        Tee::Snp(snp) => super::sev::vm_command(vm, snp, arg),
        Tee::Tdx(tdx) => super::tdx::vm_command(vm, tdx, arg),
    }),
    (ior::<kvm_enc_region>(0xbb), |vm, arg| encrypted_region(vm, arg)),
    (ior::<kvm_enc_region>(0xbc), |vm, arg| encrypted_region(vm, arg)),
    (iow::<kvm_memory_attributes>(0xd2), set_attributes),
    (iowr::<kvm_create_guest_memfd>(0xd4), create_guest_memfd),
];

fn require_lapic(vm: &Vm) -> Result<(), Errno> {
    if vm.lapic_in_kernel() { Ok(()) } else { Err(Errno::EINVAL) }
}

/// The state ioctls of the chips and the timer: ENXIO without them.
fn require_chips(vm: &Vm) -> Result<&Irqchips, Errno> {
    vm.irqchips().ok_or(Errno::ENXIO)
}

/// KVM_CREATE_PIT and KVM_CREATE_PIT2: ENOENT without the PIC, EEXIST the second time.
fn create_pit(vm: &Vm, flags: u32) -> Result<i32, Errno> {
    let chips = vm.irqchips().ok_or(Errno::ENOENT)?;
    chips.create_pit(flags & k::KVM_PIT_SPEAKER_DUMMY != 0).map(|()| 0)
}

/// KVM_SET_TSC_KHZ: the one frequency that the machine has.
pub fn set_tsc_khz(khz: usize) -> Result<i32, Errno> {
    if khz == 0 || khz == TSC_KHZ as usize {
        return Ok(0);
    }
    crate::note_once!("KVM_SET_TSC_KHZ({khz}): the TSC runs at {TSC_KHZ} kHz and nothing else");
    Err(Errno::EINVAL)
}

fn create_vcpu(vm: &Arc<Vm>, id: usize) -> Result<i32, Errno> {
    if id >= vm.vcpu_ids() as usize {
        return Err(Errno::EINVAL);
    }
    vm.tee.may_create_vcpu(vm)?;
    let vcpu = Vcpu::new(vm, id as u32)?;
    let fd = vcpu.lock().ctx.run.client_fd()?;
    Ok(fds::publish(fd, Object::Vcpu(vcpu)))
}

fn set_region(vm: &Arc<Vm>, arg: usize) -> Result<i32, Errno> {
    let r: kvm_userspace_memory_region = user::read(arg)?;
    let region = kvm_userspace_memory_region2 {
        slot: r.slot,
        flags: r.flags,
        guest_phys_addr: r.guest_phys_addr,
        memory_size: r.memory_size,
        userspace_addr: r.userspace_addr,
        ..kvm_userspace_memory_region2::default()
    };
    if r.flags & k::KVM_MEM_GUEST_MEMFD != 0 {
        return Err(Errno::EINVAL);
    }
    apply_region(vm, &region)
}

fn set_region2(vm: &Arc<Vm>, arg: usize) -> Result<i32, Errno> {
    apply_region(vm, &user::read(arg)?)
}

fn apply_region(vm: &Arc<Vm>, r: &kvm_userspace_memory_region2) -> Result<i32, Errno> {
    let mut known = k::KVM_MEM_LOG_DIRTY_PAGES;
    known |= if vm.has_private_memory() { k::KVM_MEM_GUEST_MEMFD } else { k::KVM_MEM_READONLY };
    let private = r.flags & k::KVM_MEM_GUEST_MEMFD != 0;
    if r.flags & !known != 0 || (private && r.flags & k::KVM_MEM_LOG_DIRTY_PAGES != 0) {
        return Err(Errno::EINVAL);
    }
    let unaligned = (r.guest_phys_addr | r.memory_size | r.userspace_addr) & (PAGE - 1) != 0;
    let wraps = r.guest_phys_addr.checked_add(r.memory_size).is_none_or(|end| end > 1 << 52)
        || r.userspace_addr.checked_add(r.memory_size).is_none_or(|end| end > 1 << 47);
    if unaligned || wraps || r.slot & 0xffff >= caps::MAX_SLOTS || r.slot >> 16 != 0 {
        return Err(Errno::EINVAL);
    }
    let gmem = match private && r.memory_size != 0 {
        true => Some(bind_memory(vm, r)?),
        false => None,
    };
    let slot = Slot {
        id: r.slot,
        gpa: r.guest_phys_addr,
        bytes: r.memory_size,
        hva: r.userspace_addr,
        flags: r.flags,
        gmem,
        dirty: None,
        readable: page_bits(r.memory_size),
        writable: page_bits(r.memory_size),
    };
    vm.set_slot(slot).map(|()| 0)
}

fn bind_memory(vm: &Arc<Vm>, r: &kvm_userspace_memory_region2) -> Result<(Arc<GuestMemfd>, u64), Errno> {
    let fd = RawFd::try_from(r.guest_memfd).map_err(|_| Errno::EBADF)?;
    let Some(Object::Gmem(memory)) = fds::get(fd) else { return Err(Errno::EINVAL) };
    let end = r.guest_memfd_offset.checked_add(r.memory_size).ok_or(Errno::EINVAL)?;
    if r.guest_memfd_offset & (PAGE - 1) != 0 || end > memory.bytes() || !memory.belongs_to(vm) {
        return Err(Errno::EINVAL);
    }
    let taken = vm.slots().iter().filter_map(|slot| slot.gmem.as_ref().map(|g| (slot, g))).any(
        |(slot, (m, offset))| {
            slot.id != r.slot
                && Arc::ptr_eq(m, &memory)
                && *offset < end
                && r.guest_memfd_offset < offset + slot.bytes
        },
    );
    if taken { Err(Errno::EEXIST) } else { Ok((memory, r.guest_memfd_offset)) }
}

fn create_guest_memfd(vm: &Arc<Vm>, arg: usize) -> Result<i32, Errno> {
    let args: kvm_create_guest_memfd = user::read(arg)?;
    if !vm.has_private_memory() || args.flags != 0 || args.size == 0 || args.size & (PAGE - 1) != 0 {
        return Err(Errno::EINVAL);
    }
    let client = fds::memfd(c"guest_memfd", args.size)?;
    let own = client.try_clone().map_err(|_| Errno::ENOMEM)?;
    let memory = GuestMemfd::new(Arc::downgrade(vm), own, args.size)?;
    Ok(fds::publish(client, Object::Gmem(Arc::new(memory))))
}

fn set_attributes(vm: &Arc<Vm>, arg: usize) -> Result<i32, Errno> {
    let a: kvm_memory_attributes = user::read(arg)?;
    let private = u64::from(k::KVM_MEMORY_ATTRIBUTE_PRIVATE);
    let end = a.address.checked_add(a.size);
    if !vm.has_private_memory() || a.flags != 0 || a.attributes & !private != 0 {
        return Err(Errno::EINVAL);
    }
    if a.size == 0 || end.is_none() || (a.address | a.size) & (PAGE - 1) != 0 {
        return Err(Errno::EINVAL);
    }
    vm.set_private(a.address, a.size, a.attributes & private != 0);
    Ok(0)
}

fn get_dirty_log(vm: &Arc<Vm>, arg: usize) -> Result<i32, Errno> {
    let log: kvm_dirty_log = user::read(arg)?;
    // SAFETY: both members of the union are 64 bits.
    let bitmap = unsafe { log.__bindgen_anon_1.padding2 } as usize;
    user::write_array(bitmap, &vm.take_dirty(log.slot)?)?;
    Ok(0)
}

/// KVM_IRQ_LINE; with KVM_IRQ_LINE_STATUS the client learns how many interrupts came of it, -1 if the GSI leads nowhere.
fn irq_line(vm: &Arc<Vm>, arg: usize, status: bool) -> Result<i32, Errno> {
    let mut line: kvm_irq_level = user::read(arg)?;
    if !vm.lapic_in_kernel() {
        return Err(Errno::ENXIO);
    }
    // SAFETY: both members of the union are 32 bits.
    let gsi = unsafe { line.__bindgen_anon_1.irq };
    let taken = vm.set_gsi(gsi, Source::Client, line.level != 0);
    if status {
        line.__bindgen_anon_1.status = taken.map_or(-1, |n| n as i32);
        user::write(arg, &line)?;
    }
    Ok(0)
}

fn set_routing(vm: &Arc<Vm>, arg: usize) -> Result<i32, Errno> {
    require_lapic(vm)?;
    let [count, flags] = {
        let header: [u64; 2] = [u64::from(user::read::<u32>(arg)?), u64::from(user::read::<u32>(arg + 4)?)];
        header
    };
    if count > u64::from(caps::MAX_GSIS) || flags != 0 {
        return Err(Errno::EINVAL);
    }
    let mut routes = Vec::new();
    for entry in user::read_array::<kvm_irq_routing_entry>(arg + 8, count as usize)? {
        if entry.gsi >= caps::MAX_GSIS || entry.flags & !k::KVM_MSI_VALID_DEVID != 0 {
            return Err(Errno::EINVAL);
        }
        // SAFETY: the union is made of integers; `type_` says which member counts.
        let route = unsafe {
            match entry.type_ {
                k::KVM_IRQ_ROUTING_MSI => {
                    let msi = entry.u.msi;
                    Route::Msi(msi.address_lo, msi.address_hi, msi.data)
                }
                k::KVM_IRQ_ROUTING_IRQCHIP if entry.flags == 0 && vm.irqchips().is_some() => {
                    let pin = entry.u.irqchip;
                    if !pin_exists(pin.irqchip, pin.pin) {
                        return Err(Errno::EINVAL);
                    }
                    Route::Pin(pin.irqchip, pin.pin)
                }
                _ => return Err(Errno::EINVAL),
            }
        };
        routes.push((entry.gsi, route));
    }
    vm.irqs.set_routes(routes_by_gsi(&routes));
    Ok(0)
}

fn signal_msi(vm: &Arc<Vm>, arg: usize) -> Result<i32, Errno> {
    require_lapic(vm)?;
    let msi: kvm_msi = user::read(arg)?;
    if msi.flags & !k::KVM_MSI_VALID_DEVID != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(i32::from(vm.deliver(&vm.msi(msi.address_lo, msi.address_hi, msi.data), None)))
}

fn enable_cap(vm: &Arc<Vm>, arg: usize) -> Result<i32, Errno> {
    let cap: kvm_enable_cap = user::read(arg)?;
    if cap.flags != 0 {
        return Err(Errno::EINVAL);
    }
    let [value, ..] = cap.args;
    match cap.cap {
        k::KVM_CAP_SPLIT_IRQCHIP if value <= 24 => vm.create_irqchip(Irqchip::Split)?,
        k::KVM_CAP_X2APIC_API if value & !3 == 0 => vm.x2apic_ids.store(value & 1 != 0, Ordering::Relaxed),
        k::KVM_CAP_EXIT_HYPERCALL if value & !(1 << 12) == 0 => {
            vm.hypercall_exits.store(value, Ordering::Relaxed)
        }
        k::KVM_CAP_MAX_VCPU_ID if value <= caps::MAX_VCPUS as u64 => vm.limit_vcpu_ids(value as u32)?,
        k::KVM_CAP_X86_APIC_BUS_CYCLES_NS => set_bus_cycle(vm, value)?,
        other => {
            crate::note_once!("KVM_ENABLE_CAP({other}, {value:#x}) is not supported");
            return Err(Errno::EINVAL);
        }
    }
    Ok(0)
}

/// KVM_CAP_X86_APIC_BUS_CYCLES_NS: with LAPICs in the kernel, and before the first vCPU.
fn set_bus_cycle(vm: &Vm, nanoseconds: u64) -> Result<(), Errno> {
    if nanoseconds == 0 || nanoseconds > u64::from(u32::MAX) {
        return Err(Errno::EINVAL);
    }
    if !vm.lapic_in_kernel() {
        return Err(Errno::ENXIO);
    }
    if !vm.vcpus().is_empty() {
        return Err(Errno::EINVAL);
    }
    vm.apic_bus_ns.store(nanoseconds, Ordering::Relaxed);
    Ok(())
}

/// With guest_memfd nothing has to be pinned; the arguments are checked all the same.
fn encrypted_region(vm: &Arc<Vm>, arg: usize) -> Result<i32, Errno> {
    let region: kvm_enc_region = user::read(arg)?;
    match vm.snp() {
        Some(_) if region.addr.checked_add(region.size).is_some() => Ok(0),
        Some(_) => Err(Errno::EINVAL),
        None => Err(Errno::ENOTTY),
    }
}

//! Ioctls on a vCPU.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings as k;
use kvm_bindings::{
    kvm_cpuid_entry2, kvm_cpuid2, kvm_debugregs, kvm_enable_cap, kvm_fpu, kvm_interrupt, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_msrs, kvm_regs, kvm_signal_mask, kvm_sregs, kvm_sregs2,
    kvm_tpr_access_ctl, kvm_vapic_addr, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use softkvm_cpu::Exception;

use super::errno::Errno;
use super::regs::{self, Outside};
use super::system::give_cpuid;
use super::{Row, io, ior, iow, iowr, user};
use crate::machine::clock::TSC_KHZ;
use crate::machine::env::VcpuEnv;
use crate::machine::vcpu::{Inner, Vcpu, attention};

super::user::abi!(
    kvm_debugregs,
    kvm_fpu,
    kvm_interrupt,
    kvm_lapic_state,
    kvm_mp_state,
    kvm_regs,
    kvm_sregs,
    kvm_sregs2,
    kvm_tpr_access_ctl,
    kvm_vapic_addr,
    kvm_vcpu_events,
    kvm_xcrs,
);

/// KVM_MAX_CPUID_ENTRIES.
const MAX_ENTRIES: usize = 256;

type This = Arc<Vcpu>;

/// The vCPU ioctls.
pub const TABLE: &[Row<This>] = &[
    (io(0x80), |v, arg| if arg == 0 { v.run().map(|()| 0) } else { Err(Errno::EINVAL) }),
    (ior::<kvm_regs>(0x81), |v, arg| user::write(arg, &regs::to_regs(&open(v)?.cpu.state)).map(|()| 0)),
    (iow::<kvm_regs>(0x82), set_regs),
    (ior::<kvm_sregs>(0x83), |v, arg| {
        let inner = open(v)?;
        user::write(arg, &regs::to_sregs(&inner.cpu.state, &outside(v, &inner))).map(|()| 0)
    }),
    (iow::<kvm_sregs>(0x84), |v, arg| set_sregs(v, &user::read(arg)?)),
    (ior::<kvm_sregs2>(0xcc), |v, arg| {
        let inner = open(v)?;
        user::write(arg, &regs::to_sregs2(&inner.cpu.state, &outside(v, &inner))).map(|()| 0)
    }),
    (iow::<kvm_sregs2>(0xcd), |v, arg| set_sregs(v, &regs::common(&user::read(arg)?))),
    (iow::<kvm_interrupt>(0x86), interrupt),
    (iowr::<kvm_msrs>(0x88), |v, arg| each_msr(v, arg, get_msr)),
    (iow::<kvm_msrs>(0x89), |v, arg| each_msr(v, arg, set_msr)),
    (iow::<kvm_signal_mask>(0x8b), set_signal_mask),
    (ior::<kvm_fpu>(0x8c), |v, arg| user::write(arg, &regs::to_fpu(&open(v)?.cpu.state)).map(|()| 0)),
    (iow::<kvm_fpu>(0x8d), |v, arg| {
        let fpu: kvm_fpu = user::read(arg)?;
        regs::from_fpu(&mut open(v)?.cpu.state, &fpu);
        Ok(0)
    }),
    (ior::<kvm_lapic_state>(0x8e), get_lapic),
    (iow::<kvm_lapic_state>(0x8f), set_lapic),
    (iow::<kvm_cpuid2>(0x90), set_cpuid),
    (iowr::<kvm_cpuid2>(0x91), get_cpuid),
    // TPR access reporting and the vAPIC page speed up guests on hardware without APIC virtualisation: there is nothing to do.
    (iowr::<kvm_tpr_access_ctl>(0x92), |_, _| Ok(0)),
    (iow::<kvm_vapic_addr>(0x93), |_, _| Ok(0)),
    (ior::<kvm_mp_state>(0x98), get_mp_state),
    (iow::<kvm_mp_state>(0x99), set_mp_state),
    (io(0x9a), |v, _| {
        v.shared.raise_nmi();
        Ok(0)
    }),
    (iow::<u64>(0x9c), |_, arg| setup_mce(arg)),
    (ior::<kvm_vcpu_events>(0x9f), get_events),
    (iow::<kvm_vcpu_events>(0xa0), set_events),
    (ior::<kvm_debugregs>(0xa1), |v, arg| {
        let inner = open(v)?;
        let s = &inner.cpu.state;
        user::write(arg, &kvm_debugregs { db: s.dr, dr6: s.dr6, dr7: s.dr7, ..kvm_debugregs::default() })
            .map(|()| 0)
    }),
    (iow::<kvm_debugregs>(0xa2), |v, arg| {
        let d: kvm_debugregs = user::read(arg)?;
        if d.flags != 0 || (d.dr6 | d.dr7) >> 32 != 0 {
            return Err(Errno::EINVAL);
        }
        let mut inner = open(v)?;
        let s = &mut inner.cpu.state;
        (s.dr, s.dr6, s.dr7) = (d.db, d.dr6, d.dr7);
        Ok(0)
    }),
    (io(0xa2), |v, arg| match v.vm.tdx() {
        // The module keeps a TD's TSC.
        Some(_) => Err(Errno::EINVAL),
        None => super::vm::set_tsc_khz(arg),
    }),
    (io(0xa3), |_, _| Ok(TSC_KHZ as i32)),
    (iow::<kvm_enable_cap>(0xa3), |_, _| Err(Errno::EINVAL)),
    (ior::<kvm_xsave>(0xa4), get_xsave),
    (ior::<kvm_xsave>(0xcf), get_xsave),
    (iow::<kvm_xsave>(0xa5), set_xsave),
    (ior::<kvm_xcrs>(0xa6), |v, arg| {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
        xcrs.xcrs[0].value = open(v)?.cpu.state.xcr0;
        user::write(arg, &xcrs).map(|()| 0)
    }),
    (iow::<kvm_xcrs>(0xa7), set_xcrs),
    (io(0xad), |_, _| Ok(0)),
    (iowr::<libc::c_ulong>(0xba), |v, arg| match v.vm.tdx() {
        Some(tdx) => super::tdx::vcpu_command(v, tdx, arg),
        None => Err(Errno::EINVAL),
    }),
];

/// The registers; EINVAL once they belong to a confidential guest.
fn open(vcpu: &This) -> Result<std::sync::MutexGuard<'_, Inner>, Errno> {
    let inner = vcpu.lock();
    if inner.ctx.state_protected { Err(Errno::EINVAL) } else { Ok(inner) }
}

fn outside(vcpu: &This, inner: &Inner) -> Outside {
    let lapic = vcpu.shared.lapic();
    Outside { cr8: lapic.cr8(), apic_base: lapic.base, pending_interrupt: inner.ctx.injected_interrupt }
}

fn set_regs(vcpu: &This, arg: usize) -> Result<i32, Errno> {
    let r: kvm_regs = user::read(arg)?;
    let mut inner = open(vcpu)?;
    regs::from_regs(&mut inner.cpu.state, &r);
    inner.ctx.queued.exception = None;
    inner.cpu.state_changed();
    Ok(0)
}

fn set_sregs(vcpu: &This, r: &kvm_sregs) -> Result<i32, Errno> {
    let mut inner = open(vcpu)?;
    regs::from_sregs(&mut inner.cpu.state, r)?;
    {
        let mut lapic = vcpu.shared.lapic();
        lapic.set_base_from_user(r.apic_base).map_err(|_| Errno::EINVAL)?;
        lapic.set_cr8(r.cr8);
    }
    let pending = r.interrupt_bitmap.iter().enumerate().find(|(_, word)| **word != 0);
    inner.ctx.injected_interrupt = pending.map(|(i, word)| (i as u32 * 64 + word.trailing_zeros()) as u8);
    inner.cpu.state_changed();
    Ok(0)
}

fn interrupt(vcpu: &This, arg: usize) -> Result<i32, Errno> {
    let request: kvm_interrupt = user::read(arg)?;
    let vector = u8::try_from(request.irq).map_err(|_| Errno::EINVAL)?;
    // With a split irqchip the client's PIC uses it.
    if vcpu.vm.irqchips().is_some() {
        return Err(Errno::ENXIO);
    }
    let mut inner = vcpu.lock();
    if inner.ctx.injected_interrupt.is_some() {
        return Err(Errno::EEXIST);
    }
    inner.ctx.injected_interrupt = Some(vector);
    Ok(0)
}

type MsrAccess = fn(&mut Inner, &mut kvm_msr_entry) -> bool;

/// KVM_GET_MSRS and KVM_SET_MSRS stop at the first MSR that does not exist and return how many were done.
fn each_msr(vcpu: &This, arg: usize, access: MsrAccess) -> Result<i32, Errno> {
    let count = user::read::<u32>(arg)? as usize;
    if count >= 256 {
        return Err(Errno::E2BIG);
    }
    let base = arg + size_of::<kvm_msrs>();
    let mut inner = vcpu.lock();
    for done in 0..count {
        let at = base + done * size_of::<kvm_msr_entry>();
        let mut entry: kvm_msr_entry = user::read(at)?;
        if !access(&mut inner, &mut entry) {
            return Ok(done as i32);
        }
        user::write(at, &entry)?;
    }
    Ok(count as i32)
}

/// The MSRs that the processor core owns.
fn core_msr(inner: &mut Inner, index: u32) -> Option<&mut u64> {
    let s = &mut inner.cpu.state;
    Some(match index {
        0x174 => &mut s.sysenter_cs,
        0x175 => &mut s.sysenter_esp,
        0x176 => &mut s.sysenter_eip,
        0x277 => &mut s.pat,
        0xc000_0080 => &mut s.efer,
        0xc000_0081 => &mut s.star,
        0xc000_0082 => &mut s.lstar,
        0xc000_0083 => &mut s.cstar,
        0xc000_0084 => &mut s.sfmask,
        0xc000_0100 => &mut s.seg[4].base,
        0xc000_0101 => &mut s.seg[5].base,
        0xc000_0102 => &mut s.kernel_gs_base,
        0xc000_0103 => &mut s.tsc_aux,
        _ => return None,
    })
}

fn get_msr(inner: &mut Inner, entry: &mut kvm_msr_entry) -> bool {
    if inner.ctx.vm.tdx().is_some() {
        let value = crate::tdx::msr::kvm_read(&mut VcpuEnv::new(&mut inner.ctx), entry.index);
        return value.map(|v| entry.data = v).is_some();
    }
    let value = match core_msr(inner, entry.index) {
        Some(register) => Some(*register),
        None => VcpuEnv::new(&mut inner.ctx).machine_rdmsr(entry.index),
    };
    value.is_some_and(|v| {
        entry.data = v;
        true
    })
}

fn set_msr(inner: &mut Inner, entry: &mut kvm_msr_entry) -> bool {
    if inner.ctx.vm.tdx().is_some() {
        let mut env = VcpuEnv::new(&mut inner.ctx);
        return crate::tdx::msr::kvm_write(&mut env, entry.index, entry.data).unwrap_or(false);
    }
    if inner.ctx.state_protected {
        return false;
    }
    if let Some(register) = core_msr(inner, entry.index) {
        *register = entry.data;
        inner.cpu.state_changed();
        return true;
    }
    match entry.index {
        0x1b => inner.ctx.shared.lapic().set_base_from_user(entry.data).is_ok(),
        index if crate::machine::msr::kind(index).is_some() => inner.ctx.msrs.write(index, entry.data, true),
        index => VcpuEnv::new(&mut inner.ctx).machine_wrmsr(index, entry.data).unwrap_or(false),
    }
}

fn set_signal_mask(vcpu: &This, arg: usize) -> Result<i32, Errno> {
    let mask = if arg == 0 {
        None
    } else if user::read::<u32>(arg)? == 8 {
        Some(user::read::<u64>(arg + 4)?)
    } else {
        return Err(Errno::EINVAL);
    };
    vcpu.lock().ctx.signal_mask = mask;
    Ok(0)
}

fn get_lapic(vcpu: &This, arg: usize) -> Result<i32, Errno> {
    // A TD's APIC page is its own.
    if !vcpu.vm.lapic_in_kernel() || vcpu.vm.tdx().is_some() {
        return Err(Errno::EINVAL);
    }
    let full = vcpu.vm.x2apic_ids.load(Ordering::Relaxed);
    let page = vcpu.shared.lapic().page(vcpu.vm.clock.tsc(), full);
    user::write_bytes(arg, &page).map(|()| 0)
}

fn set_lapic(vcpu: &This, arg: usize) -> Result<i32, Errno> {
    // A TD's APIC page is its own.
    if !vcpu.vm.lapic_in_kernel() || vcpu.vm.tdx().is_some() {
        return Err(Errno::EINVAL);
    }
    let mut page = [0u8; 1024];
    user::read_bytes(arg, &mut page)?;
    let inner = vcpu.lock();
    vcpu.shared.lapic().set_page(&page, vcpu.vm.clock.tsc());
    inner.ctx.rearm();
    Ok(0)
}

fn set_cpuid(vcpu: &This, arg: usize) -> Result<i32, Errno> {
    let count = user::read::<u32>(arg)? as usize;
    if count > MAX_ENTRIES {
        return Err(Errno::E2BIG);
    }
    let entries = user::read_array::<kvm_cpuid_entry2>(arg + size_of::<kvm_cpuid2>(), count)?;
    let mut inner = vcpu.lock();
    // A TD's address width is KVM_TDX_INIT_VM's.
    let widths = entries.iter().find(|e| e.function == 0x8000_0008);
    if let Some(widths) = widths.filter(|_| vcpu.vm.tdx().is_none()) {
        inner.cpu.state.physical_address_bits = (widths.eax as u8).clamp(36, 52);
    }
    inner.ctx.cpuid = entries;
    inner.cpu.state_changed();
    Ok(0)
}

fn get_cpuid(vcpu: &This, arg: usize) -> Result<i32, Errno> {
    let table = vcpu.lock().ctx.cpuid.clone();
    give_cpuid(arg, &table).inspect_err(|_| {
        // The kernel also tells how many there are.
        let _ = user::write(arg, &(table.len() as u32));
    })
}

fn get_mp_state(vcpu: &This, arg: usize) -> Result<i32, Errno> {
    let state = kvm_mp_state { mp_state: vcpu.shared.mp_state.load(Ordering::SeqCst) };
    user::write(arg, &state).map(|()| 0)
}

fn set_mp_state(vcpu: &This, arg: usize) -> Result<i32, Errno> {
    let state: kvm_mp_state = user::read(arg)?;
    let simple = matches!(state.mp_state, k::KVM_MP_STATE_RUNNABLE | k::KVM_MP_STATE_HALTED);
    let waits = matches!(state.mp_state, k::KVM_MP_STATE_UNINITIALIZED | k::KVM_MP_STATE_INIT_RECEIVED);
    if !(simple || waits && vcpu.vm.lapic_in_kernel()) {
        return Err(Errno::EINVAL);
    }
    vcpu.shared.mp_state.store(state.mp_state, Ordering::SeqCst);
    vcpu.shared.notify(attention::INJECT);
    Ok(0)
}

fn setup_mce(arg: usize) -> Result<i32, Errno> {
    let capabilities: u64 = user::read(arg)?;
    // At most the ten banks that are stored, and no capability beyond MCG_CTL_P and MCG_SER_P.
    if capabilities & 0xff <= 10 && capabilities & !0x0100_01ff == 0 { Ok(0) } else { Err(Errno::EINVAL) }
}

fn get_events(vcpu: &This, arg: usize) -> Result<i32, Errno> {
    let inner = vcpu.lock();
    let mut events = kvm_vcpu_events {
        flags: k::KVM_VCPUEVENT_VALID_NMI_PENDING | k::KVM_VCPUEVENT_VALID_SHADOW,
        ..kvm_vcpu_events::default()
    };
    if let Some(e) = inner.ctx.queued.exception {
        events.exception.injected = 1;
        events.exception.nr = e.vector;
        events.exception.has_error_code = u8::from(e.error.is_some());
        events.exception.error_code = e.error.unwrap_or(0);
    }
    if let Some(vector) = inner.ctx.injected_interrupt {
        events.interrupt.injected = 1;
        events.interrupt.nr = vector;
    }
    events.interrupt.shadow = u8::from(inner.cpu.state.interrupt_shadow);
    events.nmi.pending = vcpu.shared.nmis.load(Ordering::SeqCst).min(255) as u8;
    events.nmi.masked = u8::from(inner.cpu.state.nmi_blocked);
    user::write(arg, &events).map(|()| 0)
}

fn set_events(vcpu: &This, arg: usize) -> Result<i32, Errno> {
    let events: kvm_vcpu_events = user::read(arg)?;
    let known = k::KVM_VCPUEVENT_VALID_NMI_PENDING
        | k::KVM_VCPUEVENT_VALID_SIPI_VECTOR
        | k::KVM_VCPUEVENT_VALID_SHADOW
        | k::KVM_VCPUEVENT_VALID_SMM;
    if events.flags & !known != 0 || (events.exception.injected != 0 && events.exception.nr > 31) {
        return Err(Errno::EINVAL);
    }
    let mut inner = vcpu.lock();
    inner.ctx.queued.exception = (events.exception.injected != 0).then_some(Exception {
        vector: events.exception.nr,
        error: (events.exception.has_error_code != 0).then_some(events.exception.error_code),
        cr2: None,
    });
    inner.ctx.injected_interrupt = (events.interrupt.injected != 0).then_some(events.interrupt.nr);
    if events.flags & k::KVM_VCPUEVENT_VALID_SHADOW != 0 {
        inner.cpu.state.interrupt_shadow = events.interrupt.shadow != 0;
    }
    inner.cpu.state.nmi_blocked = events.nmi.masked != 0;
    if events.flags & k::KVM_VCPUEVENT_VALID_NMI_PENDING != 0 {
        vcpu.shared.nmis.store(u32::from(events.nmi.pending).min(2), Ordering::SeqCst);
    }
    Ok(0)
}

fn get_xsave(vcpu: &This, arg: usize) -> Result<i32, Errno> {
    user::write_bytes(arg, &regs::to_xsave(&open(vcpu)?.cpu.state)).map(|()| 0)
}

fn set_xsave(vcpu: &This, arg: usize) -> Result<i32, Errno> {
    let mut area = [0u8; 4096];
    user::read_bytes(arg, &mut area)?;
    let mut inner = open(vcpu)?;
    regs::from_xsave(&mut inner.cpu.state, &area)?;
    inner.cpu.state_changed();
    Ok(0)
}

fn set_xcrs(vcpu: &This, arg: usize) -> Result<i32, Errno> {
    let xcrs: kvm_xcrs = user::read(arg)?;
    if xcrs.nr_xcrs > 16 || xcrs.flags != 0 {
        return Err(Errno::EINVAL);
    }
    let mut inner = open(vcpu)?;
    for xcr in xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).filter(|x| x.xcr == 0) {
        if xcr.value & 1 == 0 || xcr.value & !7 != 0 {
            return Err(Errno::EINVAL);
        }
        inner.cpu.state.xcr0 = xcr.value;
    }
    inner.cpu.state_changed();
    Ok(0)
}

//! KVM_TDX_* out of order, in the wrong state and with wrong fields. The expected answers are Linux's
//! (`arch/x86/kvm/vmx/tdx.c`), and the module's where KVM passes its status on.

use kvm_bindings::{
    KVM_CAP_READONLY_MEM, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_VM_TYPES, KVM_CAP_X86_APIC_BUS_CYCLES_NS,
    KVM_X86_TDX_VM, Msrs, kvm_cpuid_entry2, kvm_enable_cap, kvm_lapic_state, kvm_msr_entry, kvm_regs,
};
use kvm_ioctls::Kvm;

use super::ioctl::{self, Capabilities, Command, Cpuid, MemRegion, id};
use super::machine::{self, Td, create_vm, init_vm, strict};
use super::scenarios::Lines;

fn answer(what: &str, result: Result<(), (i32, u64)>) -> String {
    match result {
        Ok(()) => format!("{what}: 0"),
        Err((errno, 0)) => format!("{what}: errno {errno}"),
        Err((errno, module)) => format!("{what}: errno {errno}, module {module:#x}"),
    }
}

fn errno<T>(what: &str, result: Result<T, kvm_ioctls::Error>) -> String {
    format!("{what}: {}", result.err().map_or(0, |e| e.errno()))
}

fn capabilities(entries: u32) -> Box<Capabilities> {
    Box::new(Capabilities {
        attributes: 0,
        xfam: 0,
        vmcalls: [0; 4],
        reserved: [0; 250],
        entries,
        padding: 0,
        table: [kvm_cpuid_entry2::default(); 64],
    })
}

pub(super) fn around_init_vm() -> Lines {
    let vm = create_vm()?;
    let mut lines = Vec::new();
    let mut caps = capabilities(1);
    lines.push(answer("CAPABILITIES with room for 1", ioctl::with(&vm, id::CAPABILITIES, 0, &mut *caps)));
    let mut caps = capabilities(64);
    lines.push(answer("CAPABILITIES with a flag", ioctl::with(&vm, id::CAPABILITIES, 1, &mut *caps)));
    lines.push(answer("CAPABILITIES", ioctl::with(&vm, id::CAPABILITIES, 0, &mut *caps)));
    lines.push(format!("attributes {:#x} xfam {:#x} calls {:x?}", caps.attributes, caps.xfam, caps.vmcalls));
    let widths = caps.table.iter().take(caps.entries as usize).find(|e| e.function == 0x8000_0008);
    lines.push(format!("configurable 80000008h {:#x}", widths.map_or(0, |e| e.eax)));
    let mut command = Command { id: id::CAPABILITIES, hw_error: 1, ..Command::default() };
    lines.push(answer("a command with hw_error", ioctl::run(&vm, &mut command).map_err(|e| (e.0, 0))));
    lines.push(answer("unknown command", ioctl::plain(&vm, 99, 0)));
    lines.push(answer("INIT_VCPU on the VM", ioctl::plain(&vm, id::INIT_VCPU, 0)));
    lines.push(answer("FINALIZE_VM first", ioctl::plain(&vm, id::FINALIZE_VM, 0)));
    lines.push(errno("KVM_CREATE_VCPU first", vm.create_vcpu(0)));
    type Spoil = (&'static str, fn(&mut ioctl::InitVm));
    let spoilers: [Spoil; 10] = [
        ("DEBUG", |i| i.attributes |= 1),
        ("unknown attribute", |i| i.attributes |= 1 << 40),
        ("AVX in XFAM", |i| i.xfam = 7),
        ("reserved word", |i| i.reserved[3] = 1),
        ("padding", |i| i.padding = 1),
        ("257 entries", |i| i.entries = 257),
        ("no address width", |i| i.table[0].eax = 0),
        ("address width 57", |i| i.table[0].eax = 57 << 16),
        ("a leaf that is not configurable", |i| i.table[1].function = 0x15),
        ("a bit that is not configurable", |i| i.table[1].ecx |= 1 << 31),
    ];
    for (what, spoil) in spoilers {
        let mut init = init_vm(&strict());
        spoil(&mut init);
        lines.push(answer(&format!("INIT_VM with {what}"), ioctl::with(&vm, id::INIT_VM, 0, &mut init)));
    }
    lines.push(answer("INIT_VM with a flag", ioctl::with(&vm, id::INIT_VM, 1, &mut init_vm(&strict()))));
    lines.push(answer("INIT_VM", ioctl::with(&vm, id::INIT_VM, 0, &mut init_vm(&strict()))));
    lines.push(answer("INIT_VM again", ioctl::with(&vm, id::INIT_VM, 0, &mut init_vm(&strict()))));
    Ok(lines)
}

pub(super) fn on_a_vcpu() -> Lines {
    let vm = create_vm()?;
    ioctl::with(&vm, id::INIT_VM, 0, &mut init_vm(&strict())).map_err(|e| format!("{e:?}"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(|e| e.to_string())?;
    let mut lines = Vec::new();
    lines.push(answer("FINALIZE_VM on the vCPU", ioctl::plain(&vcpu, id::FINALIZE_VM, 0)));
    lines.push(answer("INIT_VCPU before KVM_SET_CPUID2", ioctl::plain(&vcpu, id::INIT_VCPU, 0)));
    let mut own = Cpuid { entries: 3, padding: 0, table: [kvm_cpuid_entry2::default(); 64] };
    lines.push(answer("GET_CPUID with room for 3", ioctl::with(&vcpu, id::GET_CPUID, 0, &mut own)));
    lines.push(format!("it tells the number: {}", own.entries > 3));
    let mut own = Cpuid { entries: 64, ..own };
    lines.push(answer("GET_CPUID", ioctl::with(&vcpu, id::GET_CPUID, 0, &mut own)));
    machine::set_cpuid(&vcpu)?;
    let mut region = MemRegion { source: 0, gpa: 0, pages: 1 };
    lines.push(answer(
        "INIT_MEM_REGION before INIT_VCPU",
        ioctl::with(&vcpu, id::INIT_MEM_REGION, 0, &mut region),
    ));
    let mut flagged = Command { id: id::INIT_VCPU, flags: 1, ..Command::default() };
    lines.push(answer("INIT_VCPU with a flag", ioctl::run(&vcpu, &mut flagged)));
    lines.push(answer("INIT_VCPU", ioctl::plain(&vcpu, id::INIT_VCPU, 0)));
    lines.push(answer("INIT_VCPU again", ioctl::plain(&vcpu, id::INIT_VCPU, 0)));
    lines.push(errno("KVM_RUN before FINALIZE_VM", vcpu.run()));
    lines.push(answer("FINALIZE_VM", ioctl::plain(&vm, id::FINALIZE_VM, 0)));
    lines.push(answer("FINALIZE_VM again", ioctl::plain(&vm, id::FINALIZE_VM, 0)));
    let mut own = Cpuid { entries: 64, ..own };
    lines.push(answer("GET_CPUID after FINALIZE_VM", ioctl::with(&vcpu, id::GET_CPUID, 0, &mut own)));
    let mut late = vm.create_vcpu(1).map_err(|e| e.errno());
    lines.push(match &mut late {
        Ok(_) => "KVM_CREATE_VCPU after FINALIZE_VM: 0".into(),
        Err(errno) => format!("KVM_CREATE_VCPU after FINALIZE_VM: {errno}"),
    });
    Ok(lines)
}

pub(super) fn regions() -> Lines {
    let td = Td::build(&strict(), &[])?;
    let page = vec![0u8; 3 * 4096];
    let source = (page.as_ptr() as u64).next_multiple_of(4096);
    let try_region = |what: &str, flags: u32, region: MemRegion| {
        let mut left = region;
        let result = ioctl::with(&td.vcpu, id::INIT_MEM_REGION, flags, &mut left);
        format!("{} left {}", answer(what, result), left.pages)
    };
    let at = |gpa: u64, pages: u64| MemRegion { source, gpa, pages };
    let mut lines = vec![
        try_region("unknown flag", 2, at(0x3_0000, 1)),
        try_region("unaligned GPA", 0, at(0x3_0800, 1)),
        try_region("unaligned source", 0, MemRegion { source: source + 1, ..at(0x3_0000, 1) }),
        try_region("no pages", 0, at(0x3_0000, 0)),
        try_region("shared GPA", 0, at(0x3_0000 | machine::SHARED_BIT, 1)),
        try_region("wrapping", 0, at(0x3_0000, u64::MAX)),
        try_region("no memslot", 0, at(0x7000_0000, 1)),
        try_region("shared attribute", 0, at(machine::SHARED, 1)),
        try_region("source that is not there", 0, MemRegion { source: 0x1000, ..at(0x3_0000, 1) }),
        try_region("a page that is there", 0, at(0x1000, 1)),
        try_region("INIT_MEM_REGION of two pages, measured", 1, at(0x3_0000, 2)),
        try_region("one more, and one that is there", 0, at(0x2_f000, 2)),
    ];
    td.finalize()?;
    lines.push(try_region("after FINALIZE_VM", 0, at(0x4_0000, 1)));
    Ok(lines)
}

pub(super) fn ordinary() -> Lines {
    let kvm = Kvm::new().map_err(|e| e.to_string())?;
    let vm = create_vm()?;
    let cap = |cap, value| kvm_enable_cap { cap, args: [value, 0, 0, 0], ..kvm_enable_cap::default() };
    let types = kvm.check_extension_raw(libc::c_ulong::from(KVM_CAP_VM_TYPES));
    let mut lines = vec![
        format!("VM types with TDX: {}", types >> KVM_X86_TDX_VM & 1),
        format!("read-only memslots: {}", vm.check_extension_raw(libc::c_ulong::from(KVM_CAP_READONLY_MEM))),
        errno("bus cycle 0", vm.enable_cap(&cap(KVM_CAP_X86_APIC_BUS_CYCLES_NS, 0))),
        errno("bus cycle 40 ns", vm.enable_cap(&cap(KVM_CAP_X86_APIC_BUS_CYCLES_NS, 40))),
        errno("split irqchip again", vm.enable_cap(&cap(KVM_CAP_SPLIT_IRQCHIP, 24))),
    ];
    let other = kvm.create_vm_with_type(u64::from(KVM_X86_TDX_VM)).map_err(|e| e.to_string())?;
    lines.push(errno("KVM_CREATE_IRQCHIP", other.create_irq_chip()));
    lines.push(errno("bus cycle without LAPICs", other.enable_cap(&cap(KVM_CAP_X86_APIC_BUS_CYCLES_NS, 40))));
    ioctl::with(&other, id::INIT_VM, 0, &mut init_vm(&strict())).map_err(|e| format!("{e:?}"))?;
    lines.push(errno("KVM_CREATE_VCPU without LAPICs", other.create_vcpu(0)));
    let td = Td::build(&strict(), &[])?;
    lines.push(errno("bus cycle with a vCPU", td.vm.enable_cap(&cap(KVM_CAP_X86_APIC_BUS_CYCLES_NS, 40))));
    lines.push(errno("KVM_GET_REGS", td.vcpu.get_regs()));
    lines.push(errno("KVM_SET_REGS", td.vcpu.set_regs(&kvm_regs::default())));
    lines.push(errno("KVM_GET_SREGS", td.vcpu.get_sregs()));
    lines.push(errno("KVM_GET_XSAVE", td.vcpu.get_xsave()));
    lines.push(errno("KVM_GET_LAPIC", td.vcpu.get_lapic()));
    lines.push(errno("KVM_SET_LAPIC", td.vcpu.set_lapic(&kvm_lapic_state::default())));
    lines.push(errno("KVM_SET_TSC_KHZ on the vCPU", td.vcpu.set_tsc_khz(1_000_000)));
    let set = |index| {
        let msrs = Msrs::from_entries(&[kvm_msr_entry { index, data: 0, ..Default::default() }]);
        msrs.map_err(|e| format!("{e:?}")).and_then(|m| td.vcpu.set_msrs(&m).map_err(|e| e.to_string()))
    };
    lines.push(format!(
        "MSRs set: {:?} MTRRdefType, {:?} APIC_BASE, {:?} STAR",
        set(0x2ff)?,
        set(0x1b)?,
        set(0xc000_0081)?
    ));
    Ok(lines)
}

pub(super) fn terminate() -> Lines {
    let mut td = Td::build(&strict(), &[])?;
    td.finalize()?;
    Ok(vec![
        answer("TERMINATE_VM", ioctl::plain(&td.vm, id::TERMINATE_VM, 0)),
        answer("TERMINATE_VM again", ioctl::plain(&td.vm, id::TERMINATE_VM, 0)),
        answer("CAPABILITIES after it", ioctl::with(&td.vm, id::CAPABILITIES, 0, &mut *capabilities(64))),
        format!("KVM_RUN after it: {}", td.run_one().err().unwrap_or(0)),
    ])
}

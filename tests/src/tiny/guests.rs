//! The guests and what is noted of each.

use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_PIT_SPEAKER_DUMMY, kvm_cpuid_entry2, kvm_irqchip,
    kvm_pit_config, kvm_xsave,
};

use super::code;
use super::machine::{CODE, Events, Machine};

/// CF, PF, ZF, SF, OF: AF is left undefined by some of the instructions.
const FLAGS: u64 = 0x8c5;

/// A name, and what runs it.
type Guest = (&'static str, fn() -> Events);

/// Every guest.
pub const ALL: &[Guest] = &[
    ("real-mode arithmetic and ports", real_arithmetic),
    ("string I/O", string_io),
    ("MMIO and a read-only slot", mmio),
    ("64-bit arithmetic", || long(code::long_arithmetic(), 10)),
    ("string instructions", || long(code::strings(), 10)),
    ("SSE and x87", || long(code::vectors(), 7)),
    ("exceptions, error codes and CR2", || exceptions(code::exceptions(), 5)),
    ("exceptions of system instructions", || exceptions(code::more_exceptions(), 4)),
    ("self-modifying code", || long(code::self_modifying(), 0)),
    ("interrupt injection", interrupt),
    ("CPUID and MSRs", identity),
    ("dirty log", dirty_log),
    ("immediate exit", immediate_exit),
    ("memory that the client cannot use", unusable_memory),
    ("memory that the client takes away", taken_memory),
    ("PIC and interval timer", timer_ticks),
    ("IOAPIC, a level and its EOI", level_interrupt),
    ("refused orders of the interrupt chips' ioctls", irqchip_orders),
    ("state components of KVM_SET_XSAVE", xsave_components),
    ("triple fault", || long(code::triple_fault(), 0)),
];

fn real_arithmetic() -> Events {
    let mut machine = Machine::real_mode(code::real_arithmetic())?;
    machine.run(20)?;
    machine.note_registers(0)?;
    Ok(machine.events)
}

fn string_io() -> Events {
    let mut machine = Machine::real_mode(code::string_io())?;
    machine.run(20)?;
    machine.note_registers(0)?;
    // KVM may move several elements in one exit: only what moved counts.
    let word = machine.read_u64(0x2000);
    let regs = machine.events.pop().unwrap_or_default();
    let outs: String =
        machine.events.iter().filter(|e| e.starts_with("out")).map(|e| e.replace("out 0x31 ", "")).collect();
    let bytes: Vec<&str> = outs.split(['[', ']', ',', ' ']).filter(|s| !s.is_empty()).collect();
    Ok(vec![format!("memory {word:x}"), format!("written {bytes:?}"), regs])
}

fn mmio() -> Events {
    let mut machine = Machine::long_mode(code::mmio(), None)?;
    machine.write(super::machine::RAM_BYTES as u64, &0x5566_7788u64.to_le_bytes());
    machine.run(30)?;
    machine.note_registers(0)?;
    Ok(machine.events)
}

fn long(code: &[u8], results: u64) -> Events {
    let mut machine = Machine::long_mode(code, None)?;
    machine.run(20)?;
    if machine.events.last().is_some_and(|e| e == "shutdown") {
        return Ok(machine.events);
    }
    machine.note_registers(FLAGS)?;
    machine.note_results(results);
    Ok(machine.events)
}

/// `records` of vector, error code (or RIP) and CR2.
fn exceptions(code: &[u8], records: u64) -> Events {
    let mut machine = Machine::long_mode(code, Some(0))?;
    let mut regs = machine.vcpu.get_regs().map_err(|e| e.to_string())?;
    regs.rip = CODE + 1024;
    machine.vcpu.set_regs(&regs).map_err(|e| e.to_string())?;
    machine.run(20)?;
    machine.note_results(3 * records);
    Ok(machine.events)
}

fn interrupt() -> Events {
    let mut machine = Machine::long_mode(code::interruptible(), Some(0))?;
    machine.set_handler(0x20, CODE + 512);
    let mut regs = machine.vcpu.get_regs().map_err(|e| e.to_string())?;
    regs.rip = CODE + 1024;
    machine.vcpu.set_regs(&regs).map_err(|e| e.to_string())?;
    // The guest stops at a port with interrupts enabled; the vector goes in there.
    machine.run_one()?;
    inject(&machine, 0x20)?;
    machine.run(5)?;
    machine.note_results(1);
    Ok(machine.events)
}

/// KVM_INTERRUPT, which kvm-ioctls does not offer.
fn inject(machine: &Machine, vector: u32) -> Result<(), String> {
    use std::os::fd::AsRawFd;
    const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;
    // SAFETY: the argument is a u32 on this frame, as KVM_INTERRUPT reads.
    match unsafe { libc::ioctl(machine.vcpu.as_raw_fd(), KVM_INTERRUPT, &raw const vector) } {
        0 => Ok(()),
        _ => Err(format!("KVM_INTERRUPT: {}", std::io::Error::last_os_error())),
    }
}

fn identity() -> Events {
    let mut machine = Machine::long_mode(code::identity(), None)?;
    let entries = [
        kvm_cpuid_entry2 {
            function: 0,
            eax: 1,
            ebx: 0x6874_7541,
            ecx: 0x444d_4163,
            edx: 0x6974_6e65,
            ..Default::default()
        },
        kvm_cpuid_entry2 { function: 0x4000_0002, eax: 1, ebx: 2, ecx: 3, edx: 4, ..Default::default() },
        kvm_cpuid_entry2 { function: 0x8000_0000, eax: 0x8000_0001, ..Default::default() },
        kvm_cpuid_entry2 { function: 0x8000_0001, edx: 1 << 29 | 1 << 20, ..Default::default() },
    ];
    let table = CpuId::from_entries(&entries).map_err(|e| format!("{e:?}"))?;
    machine.vcpu.set_cpuid2(&table).map_err(|e| e.to_string())?;
    machine.run(20)?;
    machine.note_results(5);
    Ok(machine.events)
}

fn dirty_log() -> Events {
    let mut machine = Machine::long_mode(code::strings(), None)?;
    machine.vm.get_dirty_log(0, super::machine::RAM_BYTES).map_err(|e| e.to_string())?;
    machine.run(20)?;
    let bits = machine.vm.get_dirty_log(0, super::machine::RAM_BYTES).map_err(|e| e.to_string())?;
    machine.note(format!("page 8 dirty {}, page 9 dirty {}", bits[0] >> 8 & 1, bits[0] >> 9 & 1));
    let again = machine.vm.get_dirty_log(0, super::machine::RAM_BYTES).map_err(|e| e.to_string())?;
    machine.note(format!("page 8 dirty again {}", again[0] >> 8 & 1));
    Ok(machine.events)
}

/// A page of RAM away from everything else.
const APART: u64 = 0x4000;
/// `mov 0x4000, %al` and `mov %al, 0x4000`, in real mode.
const LOAD: &[u8] = &[0xa0, 0x00, 0x40];
const STORE: &[u8] = &[0xa2, 0x00, 0x40];
const HALT: &[u8] = &[0xf4];

/// An access is EFAULT, and done when the client has made it possible.
fn unusable_memory() -> Events {
    let mut events = Vec::new();
    let all = libc::PROT_READ | libc::PROT_WRITE;
    for protection in [libc::PROT_NONE, libc::PROT_READ, all] {
        for access in [LOAD, STORE] {
            let mut machine = Machine::real_mode(&[access, HALT].concat())?;
            machine.protect(APART, protection)?;
            machine.run(1)?;
            machine.protect(APART, all)?;
            machine.run(1)?;
            machine.note_registers(0)?;
            events.extend(machine.events);
        }
    }
    // A page that was read may still not be written.
    let mut machine = Machine::real_mode(&[LOAD, STORE, HALT].concat())?;
    machine.protect(APART, libc::PROT_READ)?;
    machine.run(1)?;
    machine.note_registers(0)?;
    events.extend(machine.events);
    Ok(events)
}

/// As above, for memory that has been in use: between two accesses the client protects it, or truncates its file.
fn taken_memory() -> Events {
    let out: &[u8] = &[0xe6, 0x31];
    let mut events = Vec::new();
    for (first, second) in [(LOAD, LOAD), (STORE, STORE), (STORE, LOAD)] {
        for truncate in [false, true] {
            let mut machine = Machine::real_mode(&[first, out, second, HALT].concat())?;
            let file = machine.map_file(APART)?;
            machine.run_one()?;
            if truncate {
                file.set_len(0).map_err(|error| error.to_string())?;
            } else {
                machine.protect(APART, libc::PROT_NONE)?;
            }
            machine.run_one()?;
            events.extend(machine.events);
        }
    }
    Ok(events)
}

fn immediate_exit() -> Events {
    let mut machine = Machine::long_mode(code::spin(), None)?;
    machine.vcpu.set_kvm_immediate_exit(1);
    machine.run(2)?;
    machine.note_registers(0)?;
    Ok(machine.events)
}

/// Where the chips' guests begin, and where their handler is.
const CHIPS_START: u64 = 1024;
const CHIPS_HANDLER: u64 = 512;

fn with_chips(code: &[u8]) -> Result<Machine, String> {
    let mut machine = Machine::build(code, |vm| {
        vm.create_irq_chip().map_err(|e| format!("KVM_CREATE_IRQCHIP: {e}"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(|e| format!("KVM_CREATE_PIT2: {e}"))
    })?;
    machine.enter_long_mode(None)?;
    machine.set_handler(0x20, CODE + CHIPS_HANDLER);
    let mut regs = machine.vcpu.get_regs().map_err(|e| e.to_string())?;
    regs.rip = CODE + CHIPS_START;
    machine.vcpu.set_regs(&regs).map_err(|e| e.to_string())?;
    Ok(machine)
}

fn timer_ticks() -> Events {
    let mut machine = with_chips(code::timer_ticks())?;
    machine.run_one()?;
    machine.run_one()?;
    let mut pic = kvm_irqchip { chip_id: KVM_IRQCHIP_PIC_MASTER, ..Default::default() };
    machine.vm.get_irqchip(&mut pic).map_err(|e| e.to_string())?;
    // SAFETY: the chip's ID was that of a PIC.
    let pic = unsafe { pic.chip.pic };
    machine.note(format!("PIC base {:#x} imr {:#x} isr {:#x}", pic.irq_base, pic.imr, pic.isr));
    let [zero, _, two] = machine.vm.get_pit2().map_err(|e| e.to_string())?.channels;
    machine.note(format!("PIT {} {} {}, gate 2 {}", zero.count, zero.mode, zero.rw_mode, two.gate));
    Ok(machine.events)
}

fn level_interrupt() -> Events {
    let mut machine = with_chips(code::level_interrupt())?;
    machine.run_one()?;
    machine.vm.set_irq_line(9, true).map_err(|e| e.to_string())?;
    machine.run_one()?;
    machine.run_one()?;
    machine.vm.set_irq_line(9, false).map_err(|e| e.to_string())?;
    machine.run_one()?;
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    machine.vm.get_irqchip(&mut chip).map_err(|e| e.to_string())?;
    // SAFETY: the chip's ID was the IOAPIC's, and the entry is 64 bits either way.
    let (irr, entry) = unsafe { (chip.chip.ioapic.irr, chip.chip.ioapic.redirtbl[9].bits) };
    // The data sheet clears remote IRR with the EOI (a unit test holds us to it); a KVM was seen to show it still set.
    let entry = entry & !(1 << 14);
    machine.note(format!("IOAPIC irr {irr:#x} entry 9 {entry:#x}"));
    machine.note_results(1);
    Ok(machine.events)
}

fn irqchip_orders() -> Events {
    let mut machine = Machine::real_mode(code::real_arithmetic())?;
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    let mut wrong = kvm_irqchip { chip_id: 7, ..Default::default() };
    let errno = |result: Result<(), kvm_ioctls::Error>| result.err().map_or(0, |e| e.errno());
    let pit = kvm_pit_config::default;
    let without = [
        errno(machine.vm.set_irq_line(4, true)),
        errno(machine.vm.get_irqchip(&mut chip)),
        errno(machine.vm.get_pit2().map(drop)),
        errno(machine.vm.create_pit2(pit())),
        errno(machine.vm.create_irq_chip()),
    ];
    machine.note(format!("without chips, with a vCPU: {without:?}"));
    let other = kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm()).map_err(|e| e.to_string())?;
    let with = [
        errno(other.create_irq_chip()),
        errno(other.create_irq_chip()),
        errno(other.get_irqchip(&mut wrong)),
        errno(other.get_pit2().map(drop)),
        errno(other.create_pit2(pit())),
        errno(other.create_pit2(pit())),
        errno(other.set_irq_line(4, true)),
        errno(other.set_irq_line(400, true)),
    ];
    machine.note(format!("with chips: {with:?}"));
    Ok(machine.events)
}

/// XSTATE_BV says which parts of the area count: the others take their initial values.
fn xsave_components() -> Events {
    const FCW: usize = 0;
    const MXCSR: usize = 6;
    const XMM0: usize = 40;
    const XSTATE_BV: usize = 128;
    const XCOMP_BV_HIGH: usize = 131;
    const RESERVED: usize = 140;
    let mut events = Vec::new();
    for (what, words) in [
        ("all", &[(FCW, 0x27f), (MXCSR, 0x3f80), (XMM0, 0x1234), (XSTATE_BV, 3)][..]),
        ("none", &[(FCW, 0x27f), (MXCSR, 0x3f80), (XMM0, 0x1234)]),
        ("zeros", &[]),
        ("x87 only", &[(FCW, 0x27f), (MXCSR, 0x3f80), (XMM0, 0x1234), (XSTATE_BV, 1)]),
        ("SSE only", &[(FCW, 0x27f), (MXCSR, 0x3f80), (XMM0, 0x1234), (XSTATE_BV, 2)]),
        ("MXCSR with a reserved bit", &[(MXCSR, 0x1_1f80), (XSTATE_BV, 2)]),
        ("MXCSR with a reserved bit that does not count", &[(MXCSR, 0x1_1f80), (XSTATE_BV, 1)]),
        ("a component that nobody has", &[(XSTATE_BV + 1, 1 << 30)]),
        ("compacted", &[(XCOMP_BV_HIGH, 1 << 31)]),
        ("a reserved word", &[(RESERVED, 1)]),
    ] {
        // A processor of its own each: KVM_GET_FPU would show what the last area left of an unnamed component.
        let machine = Machine::real_mode(code::real_arithmetic())?;
        let mut area = kvm_xsave::default();
        words.iter().for_each(|&(at, word)| area.region[at] = word);
        // SAFETY: the area has the 4 KiB that KVM reads: no dynamic feature is enabled.
        let set = unsafe { machine.vcpu.set_xsave(&area) };
        let fpu = machine.vcpu.get_fpu().map_err(|e| e.to_string())?;
        let mxcsr = machine.vcpu.get_xsave().map_err(|e| e.to_string())?.region[MXCSR];
        events.push(format!(
            "{what}: errno {}, fcw {:#x} xmm0 {:02x?} mxcsr {mxcsr:#x}, {:#x} by KVM_GET_FPU",
            set.err().map_or(0, |e| e.errno()),
            fpu.fcw,
            &fpu.xmm[0][..2],
            fpu.mxcsr
        ));
    }
    Ok(events)
}

//! From the first instruction that may do I/O to the kernel's entry point.

use zerocopy::FromBytes;

use crate::accept;
use crate::acpi;
use crate::boot_params::{self, Contents};
use crate::console;
use crate::cpuid_page;
use crate::fw_cfg::{FwCfg, Key};
use crate::hashes::Artifact;
use crate::kernel::{self, Elf, Plan, SetupHeader};
use crate::layout::{BOOT_PARAMS, CMDLINE, CPUID, Range, SETUP};
use crate::machine::{Guest, Machine, Width};
use crate::memory_map::{E820Entry, ENTRIES_MAX, Ram};
use crate::memory_types;
use crate::placement::FreeRam;
use crate::sha256::{Compress, compress_portably, compress_with_extensions};
use crate::termination::{Stop, TerminationReason};
use crate::trust::Trust;

/// Where Linux is entered, and with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handoff {
    /// 64-bit entry point.
    pub entry: u64,
    /// Address of `boot_params`.
    pub boot_params: u64,
}

/// Takes everything that the host offers, checks it, and prepares the kernel's start.
pub fn boot<M: Machine>(machine: &mut M) -> Result<Handoff, Stop> {
    let mut compress: Compress = compress_portably;
    if let Guest::Snp { c_bit } = machine.guest()
        && cpuid_page::check(machine.ram(CPUID)?, c_bit)?.sha
    {
        compress = compress_with_extensions;
    }
    if machine.guest().is_confidential() {
        accept::take_vectors(machine)?;
    }
    memory_types::set(machine)?;
    let fw_cfg = FwCfg::open(machine)?;
    let ram = memory_map(machine, &fw_cfg)?;
    let cpus = cpu_count(machine, &fw_cfg)?;
    if machine.guest().is_confidential() {
        accept::accept(machine, &ram)?;
    } else {
        map_all(machine)?;
    }
    machine.set_ram_end(ram.below_4g_end);
    let mut trust = Trust::establish(machine, compress)?;

    program_ecam(machine)?;
    let tables = acpi::install(machine, cpus)?;
    trust.measure_platform(machine, cpus, &ram, tables)?;

    let mut free = FreeRam::below(ram.below_4g_end);
    let kernel = load_kernel(machine, &fw_cfg, &mut free, &mut trust)?;
    load_cmdline(machine, &fw_cfg, kernel.cmdline_max, &mut trust)?;
    let initrd = load_initrd(machine, &fw_cfg, &mut free, &kernel, &mut trust)?;

    boot_params::write(machine, &ram, &Contents { header: kernel.header, initrd, rsdp: tables.start })?;
    console::line(machine, trust.words());
    accept::take_back(machine)?;
    Ok(Handoff { entry: kernel.entry, boot_params: BOOT_PARAMS.start })
}

fn memory_map<M: Machine>(machine: &mut M, fw_cfg: &FwCfg) -> Result<Ram, Stop> {
    let missing = Stop::because(TerminationReason::FwCfgFailed, "fw_cfg has no etc/e820");
    let (key, size) = fw_cfg.file(machine, "etc/e820")?.ok_or(missing)?;
    let mut bytes = [0; ENTRIES_MAX * size_of::<E820Entry>()];
    let bytes = bytes
        .get_mut(..size as usize)
        .ok_or(Stop::because(TerminationReason::MemoryMapRefused, "memory map is empty or too long"))?;
    fw_cfg.read(machine, key, bytes)?;
    let entries = <[E820Entry]>::ref_from_bytes(bytes).map_err(|_| {
        Stop::because(TerminationReason::MemoryMapRefused, "memory map is no list of entries")
    })?;
    let ram_size = fw_cfg.read_u64(machine, Key::RAM_SIZE)?;
    Ram::check(entries, ram_size)
}

fn cpu_count<M: Machine>(machine: &mut M, fw_cfg: &FwCfg) -> Result<u16, Stop> {
    match fw_cfg.read_u16(machine, Key::CPU_COUNT)? {
        count @ 1..=acpi::CPUS_MAX => Ok(count),
        _ => Err(Stop::because(TerminationReason::CpuCountRefused, "processor count out of range")),
    }
}

/// Linux is entered with the first 4 GiB mapped; accepting memory has the same effect in an SNP guest.
fn map_all<M: Machine>(machine: &mut M) -> Result<(), Stop> {
    (0..4).try_for_each(|gib| machine.map(gib))
}

/// A kernel in its place.
struct Kernel {
    header: SetupHeader,
    entry: u64,
    initrd_limit: u64,
    cmdline_max: u64,
}

fn load_kernel<M: Machine>(
    machine: &mut M,
    fw_cfg: &FwCfg,
    free: &mut FreeRam,
    trust: &mut Trust,
) -> Result<Kernel, Stop> {
    let setup_size = u64::from(fw_cfg.read_u32(machine, Key::SETUP_SIZE)?);
    let size = u64::from(fw_cfg.read_u32(machine, Key::KERNEL_SIZE)?);
    if size == 0 {
        return Err(Stop::because(TerminationReason::KernelUnusable, "no kernel"));
    }
    if setup_size == 0 {
        load_elf(machine, fw_cfg, free, size, trust)
    } else {
        load_bzimage(machine, fw_cfg, free, setup_size, size, trust)
    }
}

fn load_bzimage<M: Machine>(
    machine: &mut M,
    fw_cfg: &FwCfg,
    free: &mut FreeRam,
    setup_size: u64,
    size: u64,
    trust: &mut Trust,
) -> Result<Kernel, Stop> {
    if setup_size > SETUP.len() {
        return Err(Stop::because(TerminationReason::KernelUnusable, "kernel's setup part is too long"));
    }
    let setup = Range::new(SETUP.start, SETUP.start.saturating_add(setup_size));
    let mut hash = trust.hash();
    fw_cfg.load(machine, Key::SETUP_DATA, setup, &mut hash)?;
    let plan = kernel::plan_bzimage(machine.ram(setup)?, size, free)?;
    let Plan { header, footprint, initrd_limit, cmdline_max, image } = plan;
    fw_cfg.load(machine, Key::KERNEL_DATA, image, &mut hash)?;
    trust.settle(machine, Artifact::Kernel, hash)?;
    free.keep_above(footprint.end)?;
    Ok(Kernel { header, entry: plan.entry()?, initrd_limit, cmdline_max })
}

/// An ELF kernel is taken whole to the top of RAM, hashed there, and only then spread to its places.
fn load_elf<M: Machine>(
    machine: &mut M,
    fw_cfg: &FwCfg,
    free: &mut FreeRam,
    size: u64,
    trust: &mut Trust,
) -> Result<Kernel, Stop> {
    let mut below_file = *free;
    let file = below_file.take_high(size, u64::MAX)?;
    let mut hash = trust.hash();
    fw_cfg.load(machine, Key::KERNEL_DATA, file, &mut hash)?;
    trust.settle(machine, Artifact::Kernel, hash)?;

    let elf = Elf::parse(machine.ram(file)?)?;
    let mut end = 0;
    let mut entry_inside = false;
    for index in 0..elf.segments() {
        let Some(segment) = elf.segment(machine.ram(file)?, index, &below_file)? else { continue };
        place(machine, &file, &segment)?;
        end = end.max(segment.memory.end);
        entry_inside |= segment.memory.start <= elf.entry && elf.entry < segment.memory.end;
    }
    if !entry_inside {
        return Err(Stop::because(TerminationReason::KernelUnusable, "kernel's entry point is outside it"));
    }
    free.keep_above(end)?;
    Ok(Kernel {
        header: kernel::header_for_elf(),
        entry: elf.entry,
        initrd_limit: kernel::ELF_INITRD_LIMIT,
        cmdline_max: kernel::ELF_CMDLINE_MAX,
    })
}

/// Copies a segment from the file's place to its own, both in RAM and disjoint, and zeroes the rest of it.
fn place<M: Machine>(machine: &mut M, file: &Range, segment: &kernel::Segment) -> Result<(), Stop> {
    let bad = Stop::because(TerminationReason::KernelUnusable, "kernel has a bad program header");
    let to = segment.memory.start;
    let all = machine.ram(Range::new(to, file.end))?;
    let offset = |gpa: u64| gpa.checked_sub(to).and_then(|offset| usize::try_from(offset).ok()).ok_or(bad);
    let from = offset(file.start.checked_add(segment.file.start).ok_or(bad)?)?;
    let length = usize::try_from(segment.file.len()).map_err(|_| bad)?;
    let end = from.checked_add(length).filter(|&end| end <= all.len()).ok_or(bad)?;
    all.copy_within(from..end, 0);
    all.get_mut(length..offset(segment.memory.end)?).ok_or(bad)?.fill(0);
    Ok(())
}

fn load_cmdline<M: Machine>(
    machine: &mut M,
    fw_cfg: &FwCfg,
    max: u64,
    trust: &mut Trust,
) -> Result<(), Stop> {
    let bad = |detail| Stop::because(TerminationReason::KernelUnusable, detail);
    let size = u64::from(fw_cfg.read_u32(machine, Key::CMDLINE_SIZE)?);
    if size > CMDLINE.len() || size > max.saturating_add(1) {
        return Err(bad("command line is too long for the kernel"));
    }
    machine.ram(CMDLINE)?.fill(0);
    let mut hash = trust.hash();
    if size == 0 {
        // QEMU measures an absent command line as its NUL alone.
        hash.update(&[0]);
    } else {
        let to = Range::new(CMDLINE.start, CMDLINE.start.saturating_add(size));
        fw_cfg.load(machine, Key::CMDLINE_DATA, to, &mut hash)?;
        if machine.ram(to)?.last() != Some(&0) {
            return Err(bad("command line does not end in NUL"));
        }
    }
    trust.settle(machine, Artifact::Cmdline, hash)
}

fn load_initrd<M: Machine>(
    machine: &mut M,
    fw_cfg: &FwCfg,
    free: &mut FreeRam,
    kernel: &Kernel,
    trust: &mut Trust,
) -> Result<Option<Range>, Stop> {
    let size = u64::from(fw_cfg.read_u32(machine, Key::INITRD_SIZE)?);
    if size == 0 {
        trust.settle_absent(Artifact::Initrd)?;
        return Ok(None);
    }
    let to = free.take_high(size, kernel.initrd_limit)?;
    let mut hash = trust.hash();
    fw_cfg.load(machine, Key::INITRD_DATA, to, &mut hash)?;
    trust.settle(machine, Artifact::Initrd, hash)?;
    Ok(Some(to))
}

/// QEMU's q35 leaves it to the firmware to say where PCI configuration space is; cloister's is fixed.
fn program_ecam<M: Machine>(machine: &mut M) -> Result<(), Stop> {
    const ADDRESS: u16 = 0xCF8;
    const DATA: u16 = 0xCFC;
    const ENABLE: u32 = 1 << 31;
    const Q35_HOST_BRIDGE: u32 = 0x29C0_8086;
    const PCIEXBAR: u32 = 0x60;
    const PCIEXBAR_HIGH: u32 = 0x64;
    const PCIEXBAR_ON: u32 = crate::layout::ECAM.start as u32 | 1;

    machine.write_port(ADDRESS, Width::Dword, ENABLE)?;
    if machine.read_port(DATA, Width::Dword)? != Q35_HOST_BRIDGE {
        return Ok(());
    }
    for (register, value) in [(PCIEXBAR_HIGH, 0), (PCIEXBAR, PCIEXBAR_ON)] {
        machine.write_port(ADDRESS, Width::Dword, ENABLE | register)?;
        machine.write_port(DATA, Width::Dword, value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

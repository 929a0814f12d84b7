//! CPUID: what the machine offers, and how a vCPU's table answers.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::machine::lapic;
use crate::tdx;

/// Bit 51, as on Genoa.
pub const C_BIT: u8 = 51;
/// Physical address bits of the guest.
pub const PHYSICAL_BITS: u8 = 48;
/// Family 19h, model 11h (Genoa), stepping 1.
pub const SIGNATURE: u32 = 0x00a1_0f11;

const fn entry(function: u32, index: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index,
        flags: 0,
        eax: regs[0],
        ebx: regs[1],
        ecx: regs[2],
        edx: regs[3],
        padding: [0; 3],
    }
}

const fn text(s: &[u8; 12]) -> [u32; 3] {
    const fn word(s: &[u8; 12], at: usize) -> u32 {
        u32::from_le_bytes([s[at], s[at + 1], s[at + 2], s[at + 3]])
    }
    [word(s, 0), word(s, 4), word(s, 8)]
}

/// Whose processor the machine says that it has.
struct Maker {
    vendor: &'static [u8; 12],
    signature: u32,
    brand: &'static str,
    /// EAX of leaf 8000_0008h.
    widths: u32,
    highest_extended: u32,
}

const AMD: Maker = Maker {
    vendor: b"AuthenticAMD",
    signature: SIGNATURE,
    brand: "softkvm emulated EPYC (Genoa instruction subset)",
    widths: PHYSICAL_BITS as u32 | 48 << 8,
    highest_extended: 0x8000_0021,
};

const INTEL: Maker = Maker {
    vendor: b"GenuineIntel",
    signature: tdx::cpuid::SIGNATURE,
    brand: "softkvm emulated Xeon (Sapphire Rapids subset)",
    // With the guest-physical width that KVM adds: five levels of EPT.
    widths: 52 | 48 << 8 | 52 << 16,
    highest_extended: 0x8000_0008,
};

fn brand(entries: &mut Vec<kvm_cpuid_entry2>, text: &str) {
    let mut name = [0u8; 48];
    for (to, from) in name.iter_mut().zip(text.as_bytes()) {
        *to = *from;
    }
    for (i, chunk) in name.chunks_exact(16).enumerate() {
        let word =
            |at: usize| chunk.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        entries.push(entry(0x8000_0002 + i as u32, 0, [word(0), word(4), word(8), word(12)]));
    }
}

/// KVM_GET_SUPPORTED_CPUID.
pub fn supported() -> Vec<kvm_cpuid_entry2> {
    supported_by(if super::tee::tdx_offered() { &INTEL } else { &AMD })
}

fn supported_by(maker: &Maker) -> Vec<kvm_cpuid_entry2> {
    let vendor = text(maker.vendor);
    let kvm = text(b"KVMKVMKVM\0\0\0");
    let f = features;
    // Leaf 0xD exists with XSAVE only: an SNP guest's kernel takes one without XSAVEC for a forgery.
    let highest = if f(1, 0, 2) & (1 << 26) != 0 { 0xd } else { 7 };
    let mut list = vec![
        entry(0, 0, [highest, vendor[0], vendor[2], vendor[1]]),
        // X2APIC, TSC deadline and HYPERVISOR are the machine's, not the core's; as are APIC and MTRR/PAT/MCA in EDX.
        entry(
            1,
            0,
            [
                maker.signature,
                8 << 8,
                f(1, 0, 2) | 1 << 21 | 1 << 24 | 1 << 31,
                f(1, 0, 3) | 1 << 9 | 1 << 7 | 1 << 12 | 1 << 14 | 1 << 16,
            ],
        ),
        entry(7, 0, [0, f(7, 0, 1), f(7, 0, 2), f(7, 0, 3)]),
        entry(0x4000_0000, 0, [0x4000_0001, kvm[0], kvm[1], kvm[2]]),
        // CLOCKSOURCE, NOP_IO_DELAY, CLOCKSOURCE2, MSI_EXT_DEST_ID, CLOCKSOURCE_STABLE
        entry(0x4000_0001, 0, [1 | 1 << 1 | 1 << 3 | 1 << 15 | 1 << 24, 0, 0, 0]),
        entry(0x8000_0000, 0, [maker.highest_extended, vendor[0], vendor[2], vendor[1]]),
        entry(
            0x8000_0001,
            0,
            [
                maker.signature,
                0,
                f(0x8000_0001, 0, 2),
                f(0x8000_0001, 0, 3) | 1 << 9 | 1 << 7 | 1 << 12 | 1 << 14 | 1 << 16,
            ],
        ),
        // Invariant TSC
        entry(0x8000_0007, 0, [0, 0, 0, 1 << 8]),
        entry(0x8000_0008, 0, [maker.widths, 0, 0, 0]),
    ];
    if maker.highest_extended >= 0x8000_0021 {
        // LFENCE serialises, null selector clears base
        list.push(entry(0x8000_0021, 0, [1 << 2 | 1 << 6, 0, 0, 0]));
    }
    brand(&mut list, maker.brand);
    if features(1, 0, 2) & (1 << 26) != 0 {
        list.extend(xsave_leaves());
    }
    if super::tee::snp_offered() {
        // SEV, SEV-ES, SEV-SNP, VMPL; C-bit, one physical bit lost, four VMPLs; 16 encrypted guests.
        let ebx = u32::from(C_BIT) | 1 << 6 | 4 << 12;
        list.push(entry(0x8000_001f, 0, [1 << 1 | 1 << 3 | 1 << 4 | 1 << 5, ebx, 16, 1]));
    }
    for e in &mut list {
        if matches!(e.function, 7 | 0xd) {
            e.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        }
    }
    list.sort_by_key(|e| (e.function, e.index));
    list
}

fn xsave_leaves() -> Vec<kvm_cpuid_entry2> {
    let avx = features(1, 0, 2) & (1 << 28) != 0;
    let (mask, size) = if avx { (7, 832) } else { (3, 576) };
    let mut list = vec![entry(0xd, 0, [mask, 576, size, 0]), entry(0xd, 1, [features(0xd, 1, 0), 0, 0, 0])];
    if avx {
        list.push(entry(0xd, 2, [256, 576, 0, 0]));
    }
    list
}

/// The processor core's feature bits in one register (0 EAX to 3 EDX).
fn features(leaf: u32, subleaf: u32, register: usize) -> u32 {
    softkvm_cpu::features()
        .iter()
        .filter(|row| row.leaf == leaf && row.subleaf == subleaf && row.register as usize == register)
        .fold(0, |bits, row| bits | row.bits)
}

/// How a vCPU's table answers: exact entry or zeros (AMD has no "highest basic leaf" fallback), with the bits that follow
/// the machine's state.
pub fn lookup(
    table: &[kvm_cpuid_entry2],
    leaf: u32,
    subleaf: u32,
    cr4: u64,
    xcr0: u64,
    apic_base: u64,
) -> [u32; 4] {
    let found = table.iter().find(|e| {
        e.function == leaf && (e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 || e.index == subleaf)
    });
    let Some(e) = found else { return [0; 4] };
    let mut regs = [e.eax, e.ebx, e.ecx, e.edx];
    let set = |word: &mut u32, bit: u32, on: bool| *word = *word & !(1 << bit) | u32::from(on) << bit;
    match (leaf, subleaf) {
        (1, _) => {
            if regs[2] & (1 << 26) != 0 {
                set(&mut regs[2], 27, cr4 & (1 << 18) != 0);
            }
            set(&mut regs[3], 9, apic_base & lapic::BASE_ENABLE != 0);
        }
        (0xd, 0) => {
            regs[1] = if xcr0 & 4 != 0 { 832 } else { 576 };
        }
        _ => {}
    }
    regs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supported_table_has_each_leaf_once_and_names_its_maxima() {
        for list in [&AMD, &INTEL].map(supported_by) {
            for pair in list.windows(2) {
                assert!((pair[0].function, pair[0].index) < (pair[1].function, pair[1].index));
            }
            for base in [0u32, 0x8000_0000] {
                let max = lookup(&list, base, 0, 0, 1, 0)[0];
                let of_range = list.iter().filter(|e| e.function & 0xf000_0000 == base);
                // SEV's leaf is there if the machine has SEV, whoever made it.
                assert!(of_range.filter(|e| e.function != 0x8000_001f).all(|e| e.function <= max));
            }
        }
    }

    #[test]
    fn osxsave_and_apic_follow_the_machine() {
        let list = [entry(1, 0, [0, 0, 1 << 26, 1 << 9])];
        assert_eq!(lookup(&list, 1, 0, 0, 1, 0), [0, 0, 1 << 26, 0]);
        assert_eq!(lookup(&list, 1, 0, 1 << 18, 1, lapic::BASE_ENABLE), [0, 0, 3 << 26, 1 << 9]);
        assert_eq!(lookup(&list, 2, 0, 0, 1, 0), [0; 4]);
    }
}

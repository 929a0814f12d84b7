//! MTRRs, as a PC's firmware leaves them: RAM is write-back, the hole below 4 GiB is not cached.
//!
//! Memory types are no matter of trust, since the host keeps these registers. But kernels look at them: Linux 6.1 gives up
//! PAT where MTRRs are off, and as an SNP guest it then dies as soon as it encrypts or decrypts a page in place, for which
//! it wants PAT's write-protected type. A TD is left alone: its private memory is write-back whatever they say, and a
//! kernel that finds them enabled may set CR0.CD to change them, which raises #VE in a TD.

use crate::cpuid_page;
use crate::layout::{CPUID, RAM_ABOVE_4G, RAM_BELOW_4G_END};
use crate::machine::{Guest, Machine};
use crate::termination::Stop;

/// Leaf 1, EDX: MTRRs.
const MTRR_BIT: u32 = 1 << 12;
const BASE_0: u32 = 0x200;
const MASK_0: u32 = 0x201;
const DEFAULT_TYPE: u32 = 0x2FF;
const WRITE_BACK: u64 = 6;
const UNCACHED: u64 = 0;
const ENABLED: u64 = 1 << 11;
const VALID: u64 = 1 << 11;

/// Sets them on this processor, if it has any.
pub fn set<M: Machine>(machine: &mut M) -> Result<(), Stop> {
    if let Guest::Td { .. } = machine.guest() {
        return Ok(());
    }
    if leaf(machine, 1)?.is_none_or(|[.., edx]| edx & MTRR_BIT == 0) {
        return Ok(());
    }
    let address_bits = leaf(machine, 0x8000_0008)?.map_or(36, |[eax, ..]| eax & 0xFF);
    for (index, value) in registers(address_bits) {
        machine.write_msr(index, value)?;
    }
    Ok(())
}

/// MSRs and their values, in the order in which they are written: no range is in force before the last one.
fn registers(address_bits: u32) -> [(u32, u64); 3] {
    const HOLE: u64 = RAM_ABOVE_4G - RAM_BELOW_4G_END;
    const _: () = assert!(HOLE.is_power_of_two() && RAM_BELOW_4G_END.is_multiple_of(HOLE));
    let addresses = u64::MAX.wrapping_shr(64_u32.saturating_sub(address_bits.clamp(36, 52)));
    let mask = addresses & !(HOLE - 1);
    [(BASE_0, RAM_BELOW_4G_END | UNCACHED), (MASK_0, mask | VALID), (DEFAULT_TYPE, ENABLED | WRITE_BACK)]
}

/// EAX, EBX, ECX and EDX of a CPUID leaf, if there is one: an SNP guest's host does not get to answer.
fn leaf<M: Machine>(machine: &mut M, leaf: u32) -> Result<Option<[u32; 4]>, Stop> {
    match machine.guest() {
        Guest::Snp { .. } => Ok(cpuid_page::leaf(machine.ram(CPUID)?, leaf)),
        _ => Ok(machine.cpuid(leaf)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn ram_is_write_back_and_the_hole_is_not_cached() {
        for (bits, mask) in [(36, 0xF_C000_0800), (48, 0xFFFF_C000_0800), (52, 0xF_FFFF_C000_0800)] {
            assert_eq!(registers(bits), [(0x200, 0xC000_0000), (0x201, mask), (0x2FF, 0xC06)], "{bits}");
        }
        for (absurd, sane) in [(0, 36), (255, 52)] {
            assert_eq!(registers(absurd), registers(sane));
        }
    }

    #[test]
    fn every_guest_but_a_td_has_them_set_if_its_processor_has_them() {
        for guest in [Fake::plain, Fake::snp, Fake::td] {
            for has in [false, true] {
                let mut machine = guest();
                machine.set_mtrr(has);
                machine.set_ram_end(crate::fake::RAM);
                set(&mut machine).unwrap();
                let td = matches!(machine.guest(), Guest::Td { .. });
                let expected = if has && !td { registers(48).to_vec() } else { Vec::new() };
                assert_eq!(machine.msr_writes, expected, "{:?}, {has}", machine.guest());
            }
        }
    }
}

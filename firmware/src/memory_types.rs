//! MTRRs, as a PC's firmware leaves them: RAM is write-back, the hole below 4 GiB is not cached.
//!
//! Memory types are no matter of trust, since the host keeps these registers. But kernels look at them: Linux 6.1 gives up
//! PAT where MTRRs are off, and as an SNP guest it then dies as soon as it encrypts or decrypts a page in place, for which
//! it wants PAT's write-protected type. A TD is left alone: its private memory is write-back whatever they say, and a
//! kernel that finds them enabled may set CR0.CD to change them, which raises #VE in a TD.

use crate::cpuid_page;
use crate::layout::CPUID;
use crate::machine::{Guest, Machine};
use crate::termination::Stop;
use cloister_attestation::abi::memory_types;

/// Leaf 1, EDX: MTRRs.
const MTRR_BIT: u32 = 1 << 12;

/// Sets them on this processor, if it has any.
pub fn set<M: Machine>(machine: &mut M) -> Result<(), Stop> {
    if let Guest::Td { .. } = machine.guest() {
        return Ok(());
    }
    if leaf(machine, 1)?.is_none_or(|[.., edx]| edx & MTRR_BIT == 0) {
        return Ok(());
    }
    let address_bits = leaf(machine, 0x8000_0008)?.map_or(36, |[eax, ..]| eax & 0xFF);
    for (index, value) in memory_types(address_bits) {
        machine.write_msr(index, value)?;
    }
    Ok(())
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
    fn every_guest_but_a_td_has_them_set_if_its_processor_has_them() {
        for guest in [Fake::plain, Fake::snp, Fake::td] {
            for has in [false, true] {
                let mut machine = guest();
                machine.set_mtrr(has);
                machine.set_ram_end(crate::fake::RAM);
                set(&mut machine).unwrap();
                let td = matches!(machine.guest(), Guest::Td { .. });
                let expected = if has && !td { memory_types(48).to_vec() } else { Vec::new() };
                assert_eq!(machine.msr_writes, expected, "{:?}, {has}", machine.guest());
            }
        }
    }
}

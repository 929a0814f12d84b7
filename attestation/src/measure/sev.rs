//! The launch digest of plain SEV and SEV-ES guests: SHA-256 of what was put into memory, in order.

use sha2::{Digest, Sha256};

use super::KernelHashes;
use super::snp::{Rom, VcpuModel, VmmFlavour, Vmsa};

/// Why a SEV launch cannot be predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SevMeasureError {
    /// A kernel was given and the ROM has nowhere to put its hashes.
    #[error("the ROM has no area for kernel hashes, so a kernel cannot be measured")]
    NoKernelHashArea,
    /// Several CPUs were asked for and the ROM does not say where they start.
    #[error("the ROM has no SEV-ES reset block, so application processors have nowhere to start")]
    NoResetBlock,
}

/// The digest of a SEV launch: the ROM, then the kernel hash table.
pub fn sev_digest(rom: &Rom<'_>, kernel: Option<&KernelHashes>) -> Result<[u8; 32], SevMeasureError> {
    Ok(update(rom, kernel)?.finalize().into())
}

/// The digest of a SEV-ES launch: as [`sev_digest`], then one VMSA per vCPU.
pub fn sev_es_digest(
    rom: &Rom<'_>,
    kernel: Option<&KernelHashes>,
    vcpus: u32,
    cpu: VcpuModel,
    flavour: VmmFlavour,
) -> Result<[u8; 32], SevMeasureError> {
    let mut hash = update(rom, kernel)?;
    for index in 0..vcpus {
        let eip = match index {
            0 => Vmsa::RESET_VECTOR,
            _ => rom.ap_reset_eip().ok_or(SevMeasureError::NoResetBlock)?,
        };
        hash.update(Vmsa::at_reset(flavour, eip, cpu, 0).as_page());
    }
    Ok(hash.finalize().into())
}

fn update(rom: &Rom<'_>, kernel: Option<&KernelHashes>) -> Result<Sha256, SevMeasureError> {
    let mut hash = Sha256::new_with_prefix(rom.bytes());
    if let Some(kernel) = kernel {
        rom.kernel_hash_area().ok_or(SevMeasureError::NoKernelHashArea)?;
        hash.update(kernel.to_table());
    }
    Ok(hash)
}

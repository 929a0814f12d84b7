//! What `/dev/sev` says about the secure processor: the answers of its platform commands, in the kernel's layouts
//! (linux: `include/uapi/linux/psp-sev.h`).

use super::platform::Platform;
use crate::snp::page::put;
use crate::snp::request::{ABI_MAJOR, ABI_MINOR, BUILD};

/// State of the platform after SEV_INIT_EX and SNP_INIT_EX.
const INIT: u8 = 1;

/// struct sev_user_data_status: api_major, api_minor, state, flags (u32), build, guest_count (u32). It counts guests of SEV
/// and SEV-ES, of which there are none here.
pub fn platform_status() -> [u8; 12] {
    /// SEV-ES is initialised (bit 8).
    const CONFIG_ES: u32 = 1 << 8;
    let mut status = [0u8; 12];
    status[..3].copy_from_slice(&[ABI_MAJOR, ABI_MINOR, INIT]);
    put(&mut status, 3, &CONFIG_ES.to_le_bytes());
    status[7] = BUILD;
    status
}

/// struct sev_user_data_snp_status: api_major, api_minor, state, is_rmp_initialized (bit 0), then as u32 build_id, flags and
/// guest_count, then as u64 current_tcb_version and reported_tcb_version.
pub fn snp_platform_status(platform: &Platform, guests: u32) -> [u8; 32] {
    let mut status = [0u8; 32];
    let tcb = platform.model.tcb.packed().to_le_bytes();
    status[..4].copy_from_slice(&[ABI_MAJOR, ABI_MINOR, INIT, 1]);
    put(&mut status, 4, &u32::from(BUILD).to_le_bytes());
    // Neither chip ID nor chip key is masked, and no VLEK is loaded: the flags stay zero.
    put(&mut status, 12, &guests.to_le_bytes());
    put(&mut status, 16, &tcb);
    put(&mut status, 24, &tcb);
    status
}

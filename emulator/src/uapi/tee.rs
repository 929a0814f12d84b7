//! Which confidential machine this is. Told by the launcher (`softkvm --tee`) through the environment.

use std::sync::OnceLock;

/// The environment variable that `softkvm --tee` sets.
pub const TEE_VARIABLE: &str = "SOFTKVM_TEE";
/// The environment variable that `softkvm --state` sets: the directory of the emulated keys.
pub const STATE_VARIABLE: &str = "SOFTKVM_STATE";

/// Does this machine have SEV-SNP?
pub fn snp_offered() -> bool {
    static OFFERED: OnceLock<bool> = OnceLock::new();
    *OFFERED.get_or_init(|| !matches!(std::env::var(TEE_VARIABLE).as_deref(), Ok("none" | "tdx")))
}

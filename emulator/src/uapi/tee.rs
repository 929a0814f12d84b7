//! Which confidential machine this is. Told by the launcher (`softkvm --tee`) through the environment.

use std::sync::OnceLock;

use crate::tdx::launch::attribute;
use crate::tdx::quoting::platform::platform;

/// The environment variable that `softkvm --tee` sets.
pub const TEE_VARIABLE: &str = "SOFTKVM_TEE";
/// The environment variable that `softkvm --state` sets: the directory of the emulated keys.
pub const STATE_VARIABLE: &str = "SOFTKVM_STATE";

/// The TEE of this machine. A machine has one: no processor has both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// No TEE.
    None,
    /// An AMD machine.
    Snp,
    /// An Intel machine.
    Tdx,
}

/// What this machine offers.
pub fn offered() -> Offered {
    static OFFERED: OnceLock<Offered> = OnceLock::new();
    *OFFERED.get_or_init(|| match std::env::var(TEE_VARIABLE).as_deref() {
        Ok("none") => Offered::None,
        Ok("tdx") => Offered::Tdx,
        _ => Offered::Snp,
    })
}

/// Does this machine have SEV-SNP?
pub fn snp_offered() -> bool {
    offered() == Offered::Snp
}

/// Does this machine have TDX?
pub fn tdx_offered() -> bool {
    offered() == Offered::Tdx
}

/// ATTRIBUTES that KVM lets a client set: SEPT_VE_DISABLE alone, unless the model's host is a hostile one.
pub fn td_attributes() -> u64 {
    let debug = platform().is_some_and(|platform| platform.model.kvm_allows_debug);
    attribute::SEPT_VE_DISABLE | if debug { attribute::DEBUG } else { 0 }
}

//! The launch measurements of our own ROM, computed by programs that share nothing with ours.

mod snp;
mod tdx;

use anyhow::Result;

use crate::demo::Parts;
pub use snp::{by_sev_snp_measure, witness};
pub use tdx::mrtd_apart;

/// Compares `cloister-attest measure` with every witness.
pub fn check() -> Result<()> {
    let parts = Parts::build(&crate::kernel::Options::default())?;
    snp::check(&parts)?;
    tdx::check(&parts)
}

//! What an SEV-SNP launch is made of, and its digest.
//!
//! [`Rom`] reads the metadata that a firmware image carries, [`LaunchPlan`] turns it into the ordered
//! page commands of the launch, and [`LaunchPlan::digest`] is what the secure processor will report as
//! MEASUREMENT (SEV-SNP firmware ABI 56860, 8.17 SNP_LAUNCH_UPDATE).

mod cpu;
mod digest;
#[cfg(feature = "std")]
pub mod explain;
mod plan;
mod rom;
#[cfg(feature = "std")]
mod transcript;
mod vmsa;

pub use crate::measure::Contents;
pub use crate::measure::Guid;
pub use cpu::{CPU_MODELS, VcpuModel};
pub use digest::{DigestChain, LaunchDigest};
pub use plan::{LaunchInputs, LaunchPlan, MeasuredRange, PageCommand, PageType, PlanError};
pub use rom::{Rom, RomError, Section, SectionKind};
#[cfg(feature = "std")]
pub use transcript::{InputDigests, LaunchTranscript, RESTRICTED_INJECTION, ReferenceValue, TranscriptRange};
pub use vmsa::{Segment, VmmFlavour, Vmsa};

#[cfg(test)]
mod vectors;

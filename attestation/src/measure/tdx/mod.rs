//! What a TDX launch is made of, its MRTD, and the RTMRs that our firmware leaves behind.
//!
//! [`Tdvf`] reads the metadata that a firmware image carries, [`LaunchPlan`] turns it into the ordered page
//! commands of the launch, [`LaunchPlan::mrtd`] is what the TDX module will report as MRTD, and [`events`] is the one
//! table of what the firmware measures into RTMR0 to RTMR3, for the firmware that extends and logs them and for the
//! verifier that predicts them. Nothing here reads files or needs `std`.

pub mod events;
#[cfg(feature = "std")]
pub mod explain;
#[cfg(feature = "alloc")]
mod mrtd;
#[cfg(feature = "alloc")]
mod plan;
#[cfg(feature = "std")]
mod reference;
#[cfg(feature = "alloc")]
mod tdvf;
#[cfg(feature = "std")]
mod transcript;

#[cfg(feature = "alloc")]
pub use events::platform_description;
pub use events::{Event, MemoryRange, Rtmrs};
#[cfg(feature = "alloc")]
pub use mrtd::{CHUNK_BYTES, Mrtd, MrtdBuilder, PageOrder};
#[cfg(feature = "alloc")]
pub use plan::{LaunchPlan, MeasuredRange, PageCommand, PlanError};
#[cfg(feature = "std")]
pub use reference::{PredictedEvent, ReferenceInputs, ReferenceValue, RtmrInputs};
#[cfg(feature = "alloc")]
pub use tdvf::{Section, SectionKind, Tdvf, TdvfError};
#[cfg(feature = "std")]
pub use transcript::{LaunchTranscript, TranscriptRange};

#[cfg(test)]
mod witness;

//! The launch transcript of a TD: what was added, range by range, as JSON.
//!
//! Two transcripts that differ in one range show which input made MRTD differ.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256, Sha384};

use super::mrtd::PageOrder;
use super::plan::LaunchPlan;
use super::tdvf::{SectionKind, Tdvf};
use crate::measure::{document, hex_string};

/// One KVM_TDX_INIT_MEM_REGION.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TranscriptRange {
    /// First byte, in `0x` form.
    pub gpa: String,
    /// Bytes.
    pub len: u64,
    /// Which section of the firmware it is for.
    pub kind: SectionKind,
    /// SHA-384 of the contents, where they go into MRTD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha384: Option<String>,
    /// What MRTD would be if the launch ended after this range.
    pub mrtd: String,
}

/// What `cloister run --tee tdx --transcript` writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchTranscript {
    /// Of this format: 1.
    #[serde(deserialize_with = "document::version_1")]
    pub version: u32,
    /// `tdx`.
    #[serde(deserialize_with = "document::tdx")]
    pub tee: String,
    /// SHA-256 of the firmware.
    pub firmware: String,
    /// In which order pages are added and measured.
    pub page_order: PageOrder,
    /// Every range, in the order of the launch.
    pub ranges: Vec<TranscriptRange>,
    /// MRTD at the end.
    pub mrtd: String,
}

impl LaunchTranscript {
    /// The transcript of `plan`, which was made from `tdvf`.
    pub fn new(tdvf: &Tdvf<'_>, plan: &LaunchPlan<'_>, page_order: PageOrder) -> Self {
        let mut ranges = Vec::new();
        let mrtd = plan.walk(page_order, |step| {
            let command = step.command;
            ranges.push(TranscriptRange {
                gpa: command.gpa.to_string(),
                len: command.len,
                kind: command.kind,
                sha384: command.measured_bytes().map(|bytes| hex_string(&Sha384::digest(bytes))),
                mrtd: step.mrtd.to_string(),
            });
        });
        Self {
            version: 1,
            tee: "tdx".to_string(),
            firmware: hex_string(&Sha256::digest(tdvf.bytes())),
            page_order,
            ranges,
            mrtd: mrtd.to_string(),
        }
    }
}

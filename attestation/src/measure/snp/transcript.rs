//! The launch transcript: what was measured, range by range, as JSON.
//!
//! Two transcripts that differ in one range show which input made a digest differ.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256, Sha384};

use super::plan::{LaunchInputs, LaunchPlan, MeasuredRange, PageType};
use super::rom::Rom;
use crate::measure::{KernelHashes, document, hex_string, parallel};

/// SHA-256 of what the launch was made from, in lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct InputDigests {
    pub firmware: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// With its terminating NUL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
}

impl InputDigests {
    /// Those of a ROM and what it loads. Where there is a kernel there are an initrd and a command line, be they empty.
    pub fn new(rom: &Rom<'_>, kernel: Option<&KernelHashes>) -> Self {
        Self {
            firmware: hex_string(&Sha256::digest(rom.bytes())),
            kernel: kernel.map(|hashes| hex_string(&hashes.kernel)),
            initrd: kernel.map(|hashes| hex_string(&hashes.initrd)),
            cmdline: kernel.map(|hashes| hex_string(&hashes.cmdline)),
        }
    }
}

/// SEV_FEATURES bit 3 (AMD APM volume 2, 15.36.16 and table B-4): the host injects #HV and nothing else.
pub const RESTRICTED_INJECTION: u64 = 1 << 3;

/// What `cloister-attest measure snp --json` prints and a key broker compares reports with:
///
/// ```json
/// {"version": 1, "tee": "snp", "measurement": "<96 digits>", "vmm": "cloister", "cpus": 2,
///  "cpu_sig": "0xa10f11", "guest_features": "0x1", "restricted_injection": false, "pages": 70,
///  "inputs": {"firmware": "<64 digits>", "kernel": "…", "initrd": "…", "cmdline": "…"}}
/// ```
///
/// `measurement` is what MEASUREMENT of the report must be; everything else says what it was computed from, so that
/// a person or a build system can find the guest that it stands for. Hashes are SHA-256; the kernel's, initrd's
/// and command line's are absent where the firmware loads nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceValue {
    /// Of this format: 1.
    pub version: u32,
    /// `snp`.
    pub tee: String,
    /// The launch digest, in lower-case hexadecimal.
    pub measurement: String,
    /// Whose reset state the VMSAs have.
    pub vmm: String,
    /// How many processors.
    pub cpus: u32,
    /// CPUID Fn0000_0001_EAX, `0x…`.
    pub cpu_sig: String,
    /// SEV_FEATURES of the VMSAs, `0x…`.
    pub guest_features: String,
    /// Whether the VMSAs keep the host from injecting exceptions and interrupts (SEV_FEATURES bit 3). A report has no field
    /// for it: the measurement alone tells.
    #[serde(default)]
    pub restricted_injection: bool,
    /// 4 KiB pages that are measured, VMSAs included.
    pub pages: u64,
    /// Hashes of the inputs.
    pub inputs: InputDigests,
}

impl ReferenceValue {
    /// The values for `plan`, which was made from `inputs`, one for each of these numbers of vCPUs that it has.
    pub fn by_vcpus(
        inputs: &LaunchInputs<'_>,
        plan: &LaunchPlan<'_>,
        vcpus: RangeInclusive<u32>,
    ) -> Vec<Self> {
        let of_inputs = || InputDigests::new(inputs.rom, inputs.kernel.as_ref());
        // Each takes its time over the whole firmware.
        let (input_digests, launch_digests) = parallel::both(of_inputs, || plan.digests());
        let pages_of_others = plan.pages().saturating_sub(u64::from(inputs.vcpus));
        let value = |(count, digest): (u32, super::LaunchDigest)| Self {
            version: 1,
            tee: "snp".to_owned(),
            measurement: digest.to_string(),
            vmm: inputs.flavour.name().to_owned(),
            cpus: count,
            cpu_sig: format!("{:#x}", inputs.cpu.0),
            guest_features: format!("{:#x}", inputs.sev_features),
            restricted_injection: inputs.sev_features & RESTRICTED_INJECTION != 0,
            pages: pages_of_others.saturating_add(count.into()),
            inputs: input_digests.clone(),
        };
        (1..).zip(launch_digests).filter(|(count, _)| vcpus.contains(count)).map(value).collect()
    }
}

/// A range of pages that were added with one command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TranscriptRange {
    /// First byte, `0x…`.
    pub gpa: String,
    /// Bytes.
    pub len: u64,
    /// PAGE_TYPE.
    #[serde(rename = "type")]
    pub page_type: PageType,
    /// SHA-384 of all bytes of the range, where its contents are measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contents_sha384: Option<String>,
    /// SHA-384 of each page, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pages_sha384: Vec<String>,
    /// The launch digest after this range.
    pub digest: String,
}

/// The document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchTranscript {
    /// Of this format: 1.
    #[serde(deserialize_with = "document::version_1")]
    pub version: u32,
    /// `snp`.
    #[serde(deserialize_with = "document::snp")]
    pub tee: String,
    /// Whose reset state the VMSAs have.
    pub vmm: String,
    /// Guest policy of SNP_LAUNCH_START, where it is known. Not part of the digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// How many processors.
    pub vcpus: u32,
    /// CPUID Fn0000_0001_EAX.
    pub cpu_sig: String,
    /// SEV_FEATURES of the VMSAs.
    pub sev_features: String,
    /// Hashes of the inputs.
    pub inputs: InputDigests,
    /// Everything measured, in order.
    pub ranges: Vec<TranscriptRange>,
    /// 4 KiB pages in all.
    pub pages: u64,
    /// What the attestation report will say.
    pub launch_digest: String,
}

impl LaunchTranscript {
    /// Writes down `plan`, which was made from `inputs`.
    pub fn new(inputs: &LaunchInputs<'_>, plan: &LaunchPlan<'_>, policy: Option<u64>) -> Self {
        let mut ranges = Vec::new();
        let launch_digest = plan.walk(|range| {
            ranges.push(TranscriptRange {
                gpa: range.gpa.to_string(),
                len: range.len,
                page_type: range.page_type,
                contents_sha384: contents_sha384(&range),
                pages_sha384: match range.page_digests {
                    [_] => Vec::new(),
                    several => several.iter().map(|digest| hex_string(digest)).collect(),
                },
                digest: range.digest.to_string(),
            });
        });
        Self {
            version: 1,
            tee: "snp".to_owned(),
            vmm: inputs.flavour.name().to_owned(),
            policy: policy.map(|policy| format!("{policy:#x}")),
            vcpus: inputs.vcpus,
            cpu_sig: format!("{:#x}", inputs.cpu.0),
            sev_features: format!("{:#x}", inputs.sev_features),
            inputs: InputDigests::new(inputs.rom, inputs.kernel.as_ref()),
            ranges,
            pages: plan.pages(),
            launch_digest: launch_digest.to_string(),
        }
    }
}

fn contents_sha384(range: &MeasuredRange<'_>) -> Option<String> {
    let contents = range.contents?;
    Some(match range.page_digests {
        [page] => hex_string(page),
        _ => hex_string(&Sha384::digest(contents)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_transcript_of_another_format_is_not_read() {
        let good = json!({
            "version": 1, "tee": "snp", "vmm": "cloister", "vcpus": 1, "cpu_sig": "0xa10f11", "sev_features": "0x1",
            "inputs": {"firmware": ""}, "ranges": [{"gpa": "0x0", "len": 4096, "type": "secrets", "digest": ""}],
            "pages": 1, "launch_digest": "",
        });
        let read = |value: serde_json::Value| serde_json::from_value::<LaunchTranscript>(value).is_ok();
        assert!(read(good.clone()));
        for (path, value) in
            [("/version", json!(2)), ("/version", json!(0)), ("/tee", json!("tdx")), ("/tee", json!("SNP"))]
        {
            let mut other = good.clone();
            *other.pointer_mut(path).unwrap() = value;
            assert!(!read(other), "{path}");
        }
        for path in ["", "/inputs", "/ranges/0"] {
            let mut other = good.clone();
            other.pointer_mut(path).unwrap()["more"] = 1.into();
            assert!(!read(other), "{path}");
        }
    }
}

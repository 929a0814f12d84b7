//! The reference value of a TDX guest, as JSON.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256, Sha384};

use super::events::{Event, MemoryRange, Rtmr, SEPARATOR_BYTES, platform_description};
use super::mrtd::PageOrder;
use super::plan::LaunchPlan;
use super::tdvf::Tdvf;
use crate::measure::{hex_string, parallel};

/// What decides the RTMRs of a guest with our firmware.
#[derive(Clone, Debug)]
pub struct RtmrInputs<'a> {
    /// How many processors.
    pub cpus: u32,
    /// Guest RAM, in ascending order.
    pub ram: &'a [MemoryRange],
    /// The ACPI tables that the firmware will build; without them RTMR0 is not known.
    pub acpi: Option<&'a [u8]>,
    /// The kernel file; without one the firmware measures nothing after RTMR0.
    pub kernel: Option<&'a [u8]>,
    /// The initrd file.
    pub initrd: Option<&'a [u8]>,
    /// The command line, without its NUL.
    pub cmdline: &'a str,
}

/// An event that the firmware will measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PredictedEvent {
    /// Which one.
    pub event: Event,
    /// SHA-384 of what it measures; `None` where the inputs do not decide.
    pub digest: Option<[u8; 48]>,
}

impl RtmrInputs<'_> {
    /// What the firmware will measure, in order.
    pub fn events(&self) -> Vec<PredictedEvent> {
        let platform = platform_description(self.cpus, self.ram);
        let cmdline = [self.cmdline.as_bytes(), &[0]].concat();
        let initrd = self.kernel.and(self.initrd);
        let rows: [(Event, Option<&[u8]>); 7] = [
            (Event::PLATFORM, Some(&platform)),
            (Event::ACPI, self.acpi),
            (Event::SEPARATOR_0, Some(&SEPARATOR_BYTES)),
            (Event::KERNEL, self.kernel),
            (Event::SEPARATOR_1, Some(&SEPARATOR_BYTES)),
            (Event::COMMAND_LINE, self.kernel.map(|_| &cmdline[..])),
            (Event::INITRD, initrd),
        ];
        let happens =
            |(event, measured): &(Event, Option<&[u8]>)| *event != Event::INITRD || measured.is_some();
        let predicted = |(event, measured): (Event, Option<&[u8]>)| PredictedEvent {
            event,
            digest: measured.map(|bytes| Sha384::digest(bytes).into()),
        };
        rows.into_iter().filter(happens).map(predicted).collect()
    }

    /// The RTMRs as this firmware leaves them; `None` where the inputs do not decide, and of any firmware but ours: what
    /// another measures is not known here.
    pub fn rtmrs_under(&self, tdvf: &Tdvf<'_>) -> [Option<[u8; 48]>; 4] {
        if tdvf.is_cloister() { self.rtmrs() } else { [None; 4] }
    }

    /// Those of each of several launches with one ROM, which differ in processors and their tables alone: these are in RTMR0.
    pub fn rtmrs_of_each(launches: &[Self], tdvf: &Tdvf<'_>) -> Vec<[Option<[u8; 48]>; 4]> {
        let Some(first) = launches.first() else { return Vec::new() };
        let [_, others @ ..] = first.rtmrs_under(tdvf);
        let with_rtmr0 = |launch: &Self| {
            let without_files = Self { kernel: None, initrd: None, ..launch.clone() };
            let [rtmr0, ..] = without_files.rtmrs_under(tdvf);
            let [rtmr1, rtmr2, rtmr3] = others;
            [rtmr0, rtmr1, rtmr2, rtmr3]
        };
        launches.iter().map(with_rtmr0).collect()
    }

    /// The RTMRs as our firmware leaves them; `None` where the inputs do not decide.
    pub fn rtmrs(&self) -> [Option<[u8; 48]>; 4] {
        let mut rtmrs = [Some(Rtmr::ZERO); 4];
        for PredictedEvent { event, digest } in self.events() {
            let Some(rtmr) = rtmrs.get_mut(usize::from(event.rtmr)) else { continue };
            *rtmr = rtmr.zip(digest).map(|(mut value, digest)| {
                value.extend(&digest);
                value
            });
        }
        rtmrs.map(|rtmr| rtmr.map(|value| value.0))
    }
}

/// SHA-256 of what a guest was made from, in lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ReferenceInputs {
    pub firmware: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acpi: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// With its terminating NUL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
}

/// What `cloister-attest measure tdx --json` prints and a key broker compares quotes with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceValue {
    /// Of this format: 1.
    pub version: u32,
    /// `tdx`.
    pub tee: String,
    /// MRTD, in lower-case hexadecimal.
    pub mrtd: String,
    /// RTMR0 to RTMR3; null where the inputs do not decide, and all of them where the firmware is not ours.
    pub rtmrs: [Option<String>; 4],
    /// In which order the VMM adds and measures pages.
    pub page_order: PageOrder,
    /// How many processors.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// 4 KiB pages that are added before the guest runs.
    pub pages: u64,
    /// Hashes of the inputs.
    pub inputs: ReferenceInputs,
}

fn sha256(bytes: &[u8]) -> String {
    hex_string(&Sha256::digest(bytes))
}

impl ReferenceValue {
    /// The values for a firmware's plan, one for each of `launches`, which differ in processors and their tables alone.
    pub fn of_each(
        tdvf: &Tdvf<'_>,
        plan: &LaunchPlan<'_>,
        order: PageOrder,
        launches: &[RtmrInputs<'_>],
    ) -> Vec<Self> {
        let Some(first) = launches.first().map(|first| Self::new(tdvf, plan, order, first)) else {
            return Vec::new();
        };
        let value = |(launch, rtmrs): (&RtmrInputs<'_>, [Option<[u8; 48]>; 4])| Self {
            cpus: launch.cpus,
            rtmrs: rtmrs.map(|rtmr| rtmr.map(|value| hex_string(&value))),
            inputs: ReferenceInputs { acpi: launch.acpi.map(sha256), ..first.inputs.clone() },
            ..first.clone()
        };
        launches.iter().zip(RtmrInputs::rtmrs_of_each(launches, tdvf)).map(value).collect()
    }

    /// The value for a firmware's plan, and for what it will measure.
    pub fn new(tdvf: &Tdvf<'_>, plan: &LaunchPlan<'_>, order: PageOrder, inputs: &RtmrInputs<'_>) -> Self {
        // Each takes its time over the whole firmware.
        let (firmware, mrtd) = parallel::both(|| sha256(tdvf.bytes()), || plan.mrtd(order).to_string());
        let cmdline: Vec<u8> = [inputs.cmdline.as_bytes(), &[0]].concat();
        Self {
            version: 1,
            tee: "tdx".to_string(),
            mrtd,
            rtmrs: inputs.rtmrs_under(tdvf).map(|rtmr| rtmr.map(|value| hex_string(&value))),
            page_order: order,
            cpus: inputs.cpus,
            memory: inputs.ram.iter().fold(0, |sum, range| sum.saturating_add(range.len)),
            pages: plan.pages(),
            inputs: ReferenceInputs {
                firmware,
                acpi: inputs.acpi.map(sha256),
                kernel: inputs.kernel.map(sha256),
                initrd: inputs.kernel.and(inputs.initrd).map(sha256),
                cmdline: inputs.kernel.map(|_| sha256(&cmdline)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tdvf::tests::{BFV, CLOISTER_ROWS, TD_HOB, rom_of, rom_with};
    use super::*;

    #[test]
    fn each_of_several_launches_has_the_value_of_its_own() {
        let ram = [MemoryRange { gpa: 0, len: 512 << 20 }];
        let launch = |(cpus, acpi): (u32, &'static [u8])| RtmrInputs {
            cpus,
            ram: &ram,
            acpi: Some(acpi),
            kernel: Some(b"kernel"),
            initrd: Some(b"initrd"),
            cmdline: "quiet",
        };
        let launches = [(1, &b"one"[..]), (2, b"two"), (7, b"seven")].map(launch);
        for (rom, known) in [(rom_of(0x1_0000, &CLOISTER_ROWS), 4), (rom_with(&[BFV, TD_HOB]), 0)] {
            let tdvf = Tdvf::parse(&rom).unwrap();
            let plan = LaunchPlan::new(&tdvf).unwrap();
            let each = ReferenceValue::of_each(&tdvf, &plan, PageOrder::TwoPass, &launches);
            assert_eq!(each.len(), launches.len());
            for (value, launch) in each.iter().zip(&launches) {
                assert_eq!(*value, ReferenceValue::new(&tdvf, &plan, PageOrder::TwoPass, launch));
                assert_eq!(value.rtmrs.iter().flatten().count(), known);
            }
            assert!(each[0].inputs != each[1].inputs && (known == 0 || each[0].rtmrs[0] != each[1].rtmrs[0]));
            assert!(ReferenceValue::of_each(&tdvf, &plan, PageOrder::TwoPass, &[]).is_empty());
        }
    }
}

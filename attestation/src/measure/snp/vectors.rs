//! The predictions against digests that other tools computed (`../shared/vectors/measure`).

use std::path::PathBuf;

use serde_json::Value;
use sha2::{Digest, Sha384};

use super::*;
use crate::measure::sev::{SevMeasureError, sev_digest, sev_es_digest};
use crate::measure::{Gpa, KernelHashes};

fn vector(name: &str) -> Option<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors/measure").join(name);
    let bytes = std::fs::read(&path).ok();
    if bytes.is_none() {
        eprintln!("SKIPPED: no {}", path.display());
    }
    bytes
}

fn json(name: &str) -> Option<Value> {
    vector(name).map(|bytes| serde_json::from_slice(&bytes).unwrap())
}

fn kernel_of(case: &Value) -> Option<KernelHashes> {
    let bytes = |key: &str| case[key].as_str().map(|text| hex::decode(text).unwrap());
    let initrd = bytes("initrd_hex");
    let cmdline = case["cmdline"].as_str().unwrap_or_default();
    bytes("kernel_hex").map(|kernel| KernelHashes::of(&kernel, initrd.as_deref(), cmdline))
}

fn flavour(name: &str) -> VmmFlavour {
    VmmFlavour::ALL.iter().find(|(known, _)| name.eq_ignore_ascii_case(known)).unwrap().1
}

fn inputs_of<'a>(case: &Value, rom: &'a Rom<'a>) -> LaunchInputs<'a> {
    LaunchInputs {
        rom,
        kernel: kernel_of(case),
        vcpus: case["vcpus"].as_u64().unwrap() as u32,
        cpu: case["vcpu_type"].as_str().map_or(VcpuModel(0), |name| VcpuModel::by_name(name).unwrap()),
        sev_features: case["guest_features"].as_u64().unwrap(),
        flavour: flavour(case["vmm"].as_str().unwrap()),
    }
}

#[test]
fn launch_digests_are_those_of_sev_snp_measure() {
    let Some(vectors) = json("snp-launch-digests.json") else { return };
    for case in vectors["vectors"].as_array().unwrap() {
        let Some(bytes) = vector(case["ovmf"].as_str().unwrap()) else { return };
        let rom = Rom::parse(&bytes).unwrap();
        let inputs = inputs_of(case, &rom);
        let kernel = inputs.kernel.as_ref();
        let digest = match case["mode"].as_str().unwrap() {
            "snp" => LaunchPlan::new(&inputs).unwrap().digest().to_string(),
            "seves" => {
                let digest = sev_es_digest(&rom, kernel, inputs.vcpus, inputs.cpu, inputs.flavour);
                hex::encode(digest.unwrap())
            }
            "sev" => hex::encode(sev_digest(&rom, kernel).unwrap()),
            mode => panic!("mode {mode}"),
        };
        assert_eq!(digest, case["expected"].as_str().unwrap(), "{}", case["name"]);
    }
}

#[test]
fn launches_without_room_for_kernel_hashes_are_refused() {
    let Some(vectors) = json("snp-launch-digests.json") else { return };
    for case in vectors["must_fail"].as_array().unwrap() {
        let Some(bytes) = vector(case["ovmf"].as_str().unwrap()) else { return };
        let rom = Rom::parse(&bytes).unwrap();
        let kernel = kernel_of(case);
        if case["mode"] == "sev" {
            assert_eq!(sev_digest(&rom, kernel.as_ref()), Err(SevMeasureError::NoKernelHashArea));
        } else {
            let flavour = VmmFlavour::Qemu;
            let inputs =
                LaunchInputs { rom: &rom, kernel, vcpus: 1, cpu: VcpuModel(0), sev_features: 1, flavour };
            assert_eq!(LaunchPlan::new(&inputs).unwrap_err(), PlanError::NoKernelHashSection);
        }
    }
}

#[test]
fn ovmf_metadata_is_read_as_other_tools_read_it() {
    let Some(vectors) = json("snp-launch-digests.json") else { return };
    for (name, expected) in vectors["ovmf_metadata"].as_object().unwrap() {
        let Some(bytes) = vector(name) else { return };
        let rom = Rom::parse(&bytes).unwrap();
        let number = |value: &Value| u64::from_str_radix(&value.as_str().unwrap()[2..], 16).unwrap();
        assert_eq!(rom.gpa(), Gpa(number(&expected["gpa"])), "{name}");
        assert_eq!(rom.ap_reset_eip().map(u64::from), Some(number(&expected["reset_eip"])), "{name}");
        let kind = |kind: &str| match kind {
            "SNP_SEC_MEM" => SectionKind::SecMem,
            "SNP_SECRETS" => SectionKind::Secrets,
            "CPUID" => SectionKind::Cpuid,
            "SVSM_CAA" => SectionKind::SvsmCaa,
            "SNP_KERNEL_HASHES" => SectionKind::KernelHashes,
            kind => panic!("section {kind}"),
        };
        let section = |s: &Value| Section {
            gpa: Gpa(number(&s["gpa"])),
            len: number(&s["size"]),
            kind: kind(s["type"].as_str().unwrap()),
        };
        let sections: Vec<_> = expected["sections"].as_array().unwrap().iter().map(section).collect();
        assert_eq!(rom.sections(), sections, "{name}");
    }
}

#[test]
fn the_digest_of_the_rom_alone_is_that_of_other_tools() {
    let Some(vectors) = json("snp-launch-digests.json") else { return };
    for (name, expected) in vectors["snp_ovmf_hash"].as_object().unwrap() {
        let Some(bytes) = vector(name) else { return };
        let rom = Rom::parse(&bytes).unwrap();
        let mut chain = DigestChain::default();
        chain.pages(PageType::Normal, rom.gpa(), rom.bytes());
        assert_eq!(chain.value().to_string(), expected.as_str().unwrap(), "{name}");
    }
}

#[test]
fn vmsa_pages_are_those_that_kvm_measures() {
    let Some(vectors) = json("snp-vmsa.json") else { return };
    for (name, expected) in vectors["pages"].as_object().unwrap() {
        let cpu = VcpuModel::by_name(name).unwrap();
        assert_eq!(format!("{:#x}", cpu.0), expected["cpu_sig"].as_str().unwrap(), "{name}");
        for (eip, key) in [(Vmsa::RESET_VECTOR, "bsp_sha384"), (0x80_b004, "ap_sha384")] {
            for flavour in [VmmFlavour::Qemu, VmmFlavour::Cloister] {
                let digest = Sha384::digest(Vmsa::at_reset(flavour, eip, cpu, 1).as_page());
                assert_eq!(hex::encode(digest), expected[key].as_str().unwrap(), "{name} {key}");
            }
        }
    }
    let Some(page) = vector("vmsa-qemu-milan-bsp.bin") else { return };
    let milan = VcpuModel::by_name("EPYC-Milan").unwrap();
    assert_eq!(Vmsa::at_reset(VmmFlavour::Qemu, Vmsa::RESET_VECTOR, milan, 1).as_page(), page);
}

#[test]
fn a_transcript_ends_with_the_digest_of_its_plan_and_reads_back() {
    let Some(vectors) = json("snp-launch-digests.json") else { return };
    let case = &vectors["vectors"][9];
    let Some(bytes) = vector(case["ovmf"].as_str().unwrap()) else { return };
    let rom = Rom::parse(&bytes).unwrap();
    let inputs = inputs_of(case, &rom);
    let plan = LaunchPlan::new(&inputs).unwrap();
    let transcript = LaunchTranscript::new(&inputs, &plan, Some(0x30000));
    assert_eq!(transcript.launch_digest, case["expected"].as_str().unwrap());
    assert_eq!(transcript.ranges.last().unwrap().digest, transcript.launch_digest);
    assert_eq!(transcript.ranges.len(), plan.commands().len() + plan.vmsas().len());
    assert_eq!(transcript.pages, transcript.ranges.iter().map(|r| r.len / 4096).sum::<u64>());
    let text = serde_json::to_string_pretty(&transcript).unwrap();
    assert_eq!(serde_json::from_str::<LaunchTranscript>(&text).unwrap(), transcript);
}

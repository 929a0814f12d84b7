//! `measure` and what `inspect` says of firmware, on every row of `../shared/vectors/measure`.

mod common;

use std::path::Path;

use common::{attest, json, run, vectors, write};
use serde_json::Value;
use sha2::{Digest, Sha256, Sha384};

/// The command line for a row; its inputs are written into `temporary`.
fn arguments(case: &Value, folder: &Path, temporary: &Path) -> Vec<String> {
    let tee = tee(case);
    let number = |key: &str| case[key].as_u64().map(|n| n.to_string());
    let firmware = folder.join(case["ovmf"].as_str().unwrap());
    let mut arguments = ["measure", tee, "--json", "--firmware"].map(str::to_owned).to_vec();
    arguments.push(firmware.to_str().unwrap().to_owned());
    // What a TEE does not measure cannot be given.
    let measured = |flag: &str| match tee {
        "sev" => flag == "--cmdline",
        "sev-es" => flag != "--guest-features",
        _ => true,
    };
    for (flag, value) in [
        ("--cpus", number("vcpus")),
        ("--cpu-model", case["vcpu_type"].as_str().map(str::to_owned)),
        ("--guest-features", case["guest_features"].as_u64().map(|f| format!("{f:#x}"))),
        ("--vmm", case["vmm"].as_str().map(str::to_lowercase)),
        ("--cmdline", case["cmdline"].as_str().map(str::to_owned)),
    ] {
        let value = value.filter(|_| measured(flag));
        arguments.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
    }
    for input in ["kernel", "initrd"] {
        if let Some(digits) = case[format!("{input}_hex")].as_str() {
            let path = write(temporary, input, hex::decode(digits).unwrap());
            arguments.extend([format!("--{input}"), path]);
        }
    }
    arguments
}

fn tee(case: &Value) -> &str {
    match case["mode"].as_str().unwrap() {
        "seves" => "sev-es",
        mode => mode,
    }
}

#[test]
fn measurements_are_those_of_other_tools() {
    let Some(folder) = vectors("measure") else { return };
    let vectors = json(&folder.join("snp-launch-digests.json"));
    let temporary = tempfile::tempdir().unwrap();
    for case in vectors["vectors"].as_array().unwrap() {
        let arguments = arguments(case, &folder, temporary.path());
        let (code, value) = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((code, &value["measurement"]), (0, &case["expected"]), "{}", case["name"]);
        assert_eq!(value["tee"], tee(case));
    }
}

#[test]
fn a_range_of_cpus_has_one_value_for_each_number() {
    let Some(folder) = vectors("measure") else { return };
    let temporary = tempfile::tempdir().unwrap();
    let rom = folder.join("ovmf_AmdSev_suffix.bin");
    let measure = |tee: &str, more: &[&str]| {
        run(&[&["measure", tee, "--json", "--firmware", rom.to_str().unwrap()][..], more].concat())
    };
    for tee in ["snp", "sev-es"] {
        let (code, values) = measure(tee, &["--cpus", "3-5"]);
        assert_eq!((code, values.as_array().unwrap().len()), (0, 3), "{tee}");
        for (cpus, value) in ["3", "4", "5"].iter().zip(values.as_array().unwrap()) {
            assert_eq!(*value, measure(tee, &["--cpus", cpus]).1, "{tee} with {cpus} CPUs");
        }
        assert_eq!(measure(tee, &["--cpus", "2-2"]).1.as_array().unwrap().len(), 1, "{tee}");
        assert_eq!(measure(tee, &["--cpus", "5-3"]).0, 2, "{tee}");
    }
    let (corim, transcript) = (temporary.path().join("corim"), temporary.path().join("transcript"));
    assert_eq!(measure("snp", &["--cpus", "1-2", "--corim", corim.to_str().unwrap()]).0, 0);
    assert!(corim.exists());
    assert_eq!(measure("snp", &["--cpus", "1-2", "--transcript", transcript.to_str().unwrap()]).0, 2);
    assert!(!transcript.exists());
}

#[test]
fn what_a_tee_does_not_measure_cannot_be_given() {
    let Some(folder) = vectors("measure") else { return };
    let rom = folder.join("ovmf_AmdSev_suffix.bin");
    for (tee, option, value, accepted) in [
        ("sev", "--cpus", "2", false),
        ("sev", "--vmm", "ec2", false),
        ("sev", "--cpu-sig", "a00f11", false),
        ("sev", "--guest-features", "1", false),
        ("sev-es", "--guest-features", "20", false),
        ("sev-es", "--transcript", "/nonexistent", false),
        ("sev-es", "--cpus", "2", true),
        ("sev-es", "--cpu-sig", "a00f11", true),
    ] {
        let (code, _) = run(&["measure", tee, "--firmware", rom.to_str().unwrap(), option, value]);
        assert_eq!(code == 0, accepted, "{tee} {option}");
    }
}

#[test]
fn launches_that_cannot_be_measured_are_refused_with_the_missing_thing() {
    let Some(folder) = vectors("measure") else { return };
    let vectors = json(&folder.join("snp-launch-digests.json"));
    let temporary = tempfile::tempdir().unwrap();
    let cases = vectors["must_fail"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for (case, expected) in cases.iter().zip(["no section for kernel hashes", "no area for kernel hashes"]) {
        let arguments = arguments(case, &folder, temporary.path());
        let output = attest(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{}", case["name"]);
        assert!(said.contains(expected), "{}: {said}", case["name"]);
    }
}

#[test]
fn firmware_is_read_as_other_tools_read_it() {
    let Some(folder) = vectors("measure") else { return };
    let vectors = json(&folder.join("snp-launch-digests.json"));
    let roms = vectors["ovmf_metadata"].as_object().unwrap();
    assert_eq!(roms.len(), 2);
    for (name, expected) in roms {
        let path = folder.join(name);
        let (code, rom) = run(&["inspect", "--json", path.to_str().unwrap()]);
        assert_eq!((code, &rom["kind"]), (0, &"firmware ROM".into()), "{name}");
        assert_eq!(rom["bytes"], expected["size"], "{name}");
        assert_eq!(rom["sev"]["gpa"], expected["gpa"], "{name}");
        assert_eq!(rom["sev"]["ap_reset_eip"], expected["reset_eip"], "{name}");
        let kind = |section: &Value| match section["type"].as_str().unwrap() {
            "sec_mem" => "SNP_SEC_MEM",
            "secrets" => "SNP_SECRETS",
            "cpuid" => "CPUID",
            "svsm_caa" => "SVSM_CAA",
            "kernel_hashes" => "SNP_KERNEL_HASHES",
            kind => panic!("section {kind}"),
        };
        let sections = rom["sev"]["sections"].as_array().unwrap().iter().map(|section| {
            let size = format!("{:#x}", section["len"].as_u64().unwrap());
            serde_json::json!({"gpa": section["gpa"], "size": size, "type": kind(section)})
        });
        assert_eq!(sections.collect::<Vec<_>>(), *expected["sections"].as_array().unwrap(), "{name}");
    }
}

/// The transcript of a launch with the firmware that has a place for kernel hashes.
fn transcript(folder: &Path, vmm: &str, cpu: &str) -> Value {
    let temporary = tempfile::tempdir().unwrap();
    let (rom, path) = (folder.join("ovmf_AmdSev_suffix.bin"), write(temporary.path(), "transcript", ""));
    let launch = ["--firmware", rom.to_str().unwrap(), "--vmm", vmm, "--cpu-model", cpu, "--cpus", "2"];
    let (code, reference) =
        run(&[&["measure", "snp", "--json", "--transcript", &path][..], &launch].concat());
    let transcript = json(path.as_ref());
    assert_eq!((code, &reference["measurement"]), (0, &transcript["launch_digest"]));
    transcript
}

#[test]
fn a_predicted_transcript_has_the_digests_of_other_tools() {
    let Some(folder) = vectors("measure") else { return };
    let hashes = &json(&folder.join("snp-launch-digests.json"))["snp_ovmf_hash"];
    let pages = &json(&folder.join("snp-vmsa.json"))["pages"];
    assert_eq!((hashes.as_object().unwrap().len(), pages.as_object().unwrap().len()), (1, 2));
    for (cpu, expected) in pages.as_object().unwrap() {
        let transcript = transcript(&folder, "qemu", cpu);
        assert_eq!(transcript["cpu_sig"], expected["cpu_sig"], "{cpu}");
        let ranges = transcript["ranges"].as_array().unwrap();
        // The digest after the ROM, before anything else is measured.
        assert_eq!(ranges[0]["digest"], hashes["ovmf_AmdSev_suffix.bin"], "{cpu}");
        let vmsas: Vec<_> = ranges.iter().filter(|range| range["type"] == "vmsa").collect();
        let digests: Vec<_> = vmsas.iter().map(|range| &range["contents_sha384"]).collect();
        assert_eq!(digests, [&expected["bsp_sha384"], &expected["ap_sha384"]], "{cpu}");
    }
    let page = std::fs::read(folder.join("vmsa-qemu-milan-bsp.bin")).unwrap();
    let milan = &transcript(&folder, "qemu", "EPYC-Milan")["ranges"];
    let vmsa = milan.as_array().unwrap().iter().find(|range| range["type"] == "vmsa").unwrap();
    assert_eq!(vmsa["contents_sha384"], hex::encode(Sha384::digest(page)));
    let ec2 = &transcript(&folder, "ec2", "EPYC-Milan")["ranges"];
    assert!(ec2.as_array().unwrap().iter().all(|range| range["contents_sha384"] != vmsa["contents_sha384"]));
}

/// OVMF of the Ubuntu package ovmf 2025.02-3ubuntu2, which is not among the vectors: whoever has it puts it into `tdx-acpi`.
const OVMF_SHA256: &str = "9e807cb2cd4313406a3aa4becc0836671a5c64ca7bdc08a45e15260184b446bf";

#[test]
fn mrtd_of_ovmf_is_that_of_other_tools() {
    let Some(folder) = vectors("measure/tdx-acpi") else { return };
    let firmware = folder.join("OVMF.fd");
    for row in ["canonical-defaults", "q35-with-hpet"] {
        let found = std::fs::read(&firmware).ok().map(|bytes| hex::encode(Sha256::digest(bytes)));
        if found.as_deref() != Some(OVMF_SHA256) {
            let (path, found) = (firmware.display(), found.unwrap_or("no file".into()));
            eprintln!("SKIPPED: tdx-acpi/{row}: {path} must have SHA-256 {OVMF_SHA256}, found {found}");
            continue;
        }
        let expected = json(&folder.join(row).join("expected.json"));
        let (code, value) = run(&["measure", "tdx", "--json", "--firmware", firmware.to_str().unwrap()]);
        assert_eq!((code, &value["mrtd"]), (0, &expected["mrtd"]), "{row}");
    }
}

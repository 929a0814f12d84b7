//! SNP launches of guests of a few instructions: what is measured, and who refuses what.

mod common;

use std::path::Path;

use cloister_attestation::measure::snp::{
    LaunchInputs, LaunchPlan, LaunchTranscript, Rom, VcpuModel, VmmFlavour,
};
use common::{Asm, Scratch, arg, cloister, snp_available, stderr};

/// Runs an SNP guest; its exit code and what the VMM said.
fn run(rom: &Path, more: &[&str]) -> (Option<i32>, String) {
    let fixed =
        ["--tee", "snp", "--memory", "16M", "--console", "null", "--serial", "null", "--firmware", arg(rom)];
    let output = cloister(&[&fixed[..], more].concat());
    (output.status.code(), stderr(&output))
}

#[test]
fn a_guest_runs_from_private_memory_and_its_transcript_holds_the_predicted_digest() {
    if !snp_available() {
        return;
    }
    let scratch = Scratch::new();
    let bytes = Asm::default().terminate(2, 9).snp_rom();
    let (rom, transcript) = (scratch.file("rom", &bytes), scratch.path("transcript"));
    let ended = run(&rom, &["--transcript", arg(&transcript)]);
    assert_eq!(ended, (Some(1), "cloister: guest terminated: 2:9 kernel image unusable".into()));

    let text = std::fs::read_to_string(transcript).unwrap();
    let transcript: LaunchTranscript = serde_json::from_str(&text).unwrap();
    let signature = u32::from_str_radix(transcript.cpu_sig.trim_start_matches("0x"), 16).unwrap();
    let rom = Rom::parse(&bytes).unwrap();
    let inputs = LaunchInputs {
        rom: &rom,
        kernel: None,
        vcpus: 1,
        cpu: VcpuModel(signature),
        sev_features: 1,
        flavour: VmmFlavour::Qemu,
    };
    assert_eq!(transcript.launch_digest, LaunchPlan::new(&inputs).unwrap().digest().to_string());
    assert_eq!(transcript.pages, 6, "ROM, secrets, CPUID, two zero pages, one VMSA");
}

#[test]
fn termination_reasons_of_every_set_are_decoded() {
    if !snp_available() {
        return;
    }
    let scratch = Scratch::new();
    for (set, code, line) in [
        (0, 2, "cloister: guest terminated: 0:2 SEV-SNP features not supported"),
        (1, 2, "cloister: guest terminated: 1:2 PVALIDATE failed"),
        (2, 7, "cloister: guest terminated: 2:7 page validation failed (already validated or remapped)"),
        (9, 9, "cloister: guest terminated: 9:9 unknown reason"),
    ] {
        let rom = scratch.file("rom", &Asm::default().terminate(set, code).snp_rom());
        assert_eq!(run(&rom, &[]), (Some(1), line.into()));
    }
}

#[test]
fn the_secure_processor_s_refusals_are_spelt_out() {
    if !snp_available() {
        return;
    }
    let scratch = Scratch::new();
    let rom = scratch.file("rom", &Asm::default().terminate(2, 1).snp_rom());
    let (block, auth) = (scratch.file("block", &[0; 96]), scratch.file("auth", &[0; 4096]));
    let plain = scratch.file("plain", &Asm::default().power_off().rom());
    let id = ["--id-block", arg(&block), "--id-auth", arg(&auth)];
    for (rom, more, words) in [
        // An ABI version that no firmware has.
        (&rom, &["--snp-policy", "0x3ffff"][..], "POLICY_FAILURE"),
        (&rom, &id, "SNP_LAUNCH_FINISH was refused: secure processor status"),
        (&plain, &[], "the ROM carries no SEV metadata"),
        (&rom, &["--cpus", "2"], "no SEV-ES reset block"),
    ] {
        let (code, said) = run(rom, more);
        assert!(
            code == Some(1) && said.contains(words) && said.lines().count() == 1,
            "{more:?}: {code:?} {said}"
        );
    }
}

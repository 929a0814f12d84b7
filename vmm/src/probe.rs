//! `cloister probe`: what this host can launch, and what it lacks, in words.

use std::process::ExitCode;

use serde::Serialize;

use crate::launch::{self, sev, snp, tdx};
use crate::limits::CPUS_MAX;

/// The command's flags.
#[derive(clap::Args)]
pub struct ProbeArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a host can do. Printed as it is by `--json`.
#[derive(Debug, Serialize)]
struct Report {
    /// Version of this document.
    version: u32,
    kvm: bool,
    /// Greatest number of CPUs of a guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus_max: Option<usize>,
    /// Each kind of guest.
    tees: Vec<Tee>,
    /// The secure processor, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    secure_processor: Option<SecureProcessor>,
}

#[derive(Debug, Serialize)]
struct Tee {
    name: &'static str,
    usable: bool,
    /// What stands in the way.
    missing: Vec<String>,
}

#[derive(Debug, Serialize)]
struct SecureProcessor {
    api: String,
    build: u32,
    rmp_initialised: bool,
    guests: u32,
    current_tcb: String,
    reported_tcb: String,
    vlek: bool,
    chip_id_masked: bool,
}

/// Looks at the host and says what it found.
pub fn main(args: &ProbeArgs) -> ExitCode {
    let report = probe();
    if args.json {
        match serde_json::to_string_pretty(&report) {
            Ok(json) => println!("{json}"),
            Err(error) => {
                eprintln!("cloister: {error}");
                return ExitCode::FAILURE;
            }
        }
    } else {
        print(&report);
    }
    if report.tees.iter().any(|tee| tee.usable) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn probe() -> Report {
    let kvm = launch::open_kvm();
    let mut plain = Tee { name: "none", usable: false, missing: Vec::new() };
    let mut snp = Tee { name: "snp", usable: false, missing: Vec::new() };
    let mut tdx = Tee { name: "tdx", usable: false, missing: Vec::new() };
    let mut secure_processor = None;
    match &kvm {
        Ok(kvm) => {
            let lacks = launch::REQUIRED.iter().filter(|(capability, _)| !kvm.check_extension(*capability));
            plain.missing = lacks.map(|(_, words)| (*words).to_owned()).collect();
            snp.missing = plain.missing.clone();
            snp.missing.extend(snp::missing(kvm).map(str::to_owned));
            tdx.missing = plain.missing.clone();
            tdx.missing.extend(tdx::missing(kvm).map(str::to_owned));
        }
        Err(error) => {
            for tee in [&mut plain, &mut snp, &mut tdx] {
                tee.missing.push(error.to_string());
            }
        }
    }
    match snp::open_sev().map(|device| sev::platform_status(&device)) {
        Ok(Ok(status)) => {
            let status = SecureProcessor::from(status);
            if !status.rmp_initialised {
                snp.missing
                    .push("an initialised RMP (enable SNP in the BIOS, and the kernel's IOMMU)".to_owned());
            }
            secure_processor = Some(status);
        }
        Ok(Err(error)) => snp.missing.push(error.to_string()),
        Err(error) => snp.missing.push(error.to_string()),
    }
    for tee in [&mut plain, &mut snp, &mut tdx] {
        tee.usable = tee.missing.is_empty();
    }
    let cpus_max = kvm.as_ref().ok().map(|kvm| kvm.get_max_vcpus().min(CPUS_MAX as usize));
    Report { version: 1, kvm: kvm.is_ok(), cpus_max, tees: vec![plain, snp, tdx], secure_processor }
}

impl From<sev::PlatformStatus> for SecureProcessor {
    fn from(status: sev::PlatformStatus) -> Self {
        let sev::PlatformStatus {
            api_major,
            api_minor,
            rmp,
            build,
            flags,
            guests,
            current_tcb,
            reported_tcb,
            ..
        } = status;
        Self {
            api: format!("{api_major}.{api_minor}"),
            build,
            rmp_initialised: rmp & 1 != 0,
            guests,
            current_tcb: format!("{current_tcb:#018x}"),
            reported_tcb: format!("{reported_tcb:#018x}"),
            vlek: flags & 4 != 0,
            chip_id_masked: flags & 1 != 0,
        }
    }
}

fn print(report: &Report) {
    for tee in &report.tees {
        let verdict = if tee.usable { "yes" } else { "no" };
        println!("{:<5} {verdict}", tee.name);
        for missing in &tee.missing {
            println!("      missing: {missing}");
        }
    }
    if let Some(cpus) = report.cpus_max {
        println!("CPUs  up to {cpus} per guest");
    }
    if let Some(status) = &report.secure_processor {
        println!(
            "AMD secure processor: API {} build {}, {} guests, TCB {} (reported {})",
            status.api, status.build, status.guests, status.current_tcb, status.reported_tcb
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_not_usable_has_a_reason() {
        for tee in probe().tees {
            assert_eq!(tee.usable, tee.missing.is_empty(), "{tee:?}");
        }
    }

    #[test]
    fn the_status_is_read_bit_by_bit() {
        let status =
            sev::PlatformStatus { api_major: 1, api_minor: 55, rmp: 1, flags: 0b101, ..Default::default() };
        let status = SecureProcessor::from(status);
        assert_eq!((status.api.as_str(), status.rmp_initialised), ("1.55", true));
        assert!(status.vlek && status.chip_id_masked);
    }
}

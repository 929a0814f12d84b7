//! `inspect` for firmware: what a ROM asks of its launch, under SEV-SNP and under TDX.

use cloister_attestation::measure::snp::Rom;
use cloister_attestation::measure::tdx::{Tdvf, TdvfError};
use cloister_attestation::snp::Hex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What a ROM says. One that is unusable for one TEE may be meant for the other.
pub fn rom(bytes: &[u8]) -> anyhow::Result<Value> {
    let rom = Rom::parse(bytes);
    let tdvf = Tdvf::parse(bytes);
    if let (Err(error), Err(_)) = (&rom, &tdvf) {
        return Err((*error).into());
    }
    Ok(json!({
        "kind": "firmware ROM",
        "sha256": Hex::<32>(Sha256::digest(bytes).into()),
        "bytes": bytes.len(),
        "sev": match &rom {
            Ok(rom) => sev(rom),
            Err(error) => json!({"error": error.to_string()}),
        },
        "tdx": match &tdvf {
            Ok(tdvf) => tdx(tdvf),
            Err(TdvfError::NoMetadata) => Value::Null,
            Err(error) => json!({"error": error.to_string()}),
        },
    }))
}

fn sev(rom: &Rom<'_>) -> Value {
    let sections = rom.sections().iter();
    let sections = sections.map(|s| json!({"gpa": s.gpa.to_string(), "len": s.len, "type": s.kind}));
    json!({
        "gpa": rom.gpa().to_string(),
        "ap_reset_eip": rom.ap_reset_eip().map(|eip| format!("{eip:#x}")),
        "kernel_hash_area": rom.kernel_hash_area().map(|gpa| gpa.to_string()),
        "sections": sections.collect::<Vec<_>>(),
    })
}

fn tdx(tdvf: &Tdvf<'_>) -> Value {
    let sections = tdvf.sections().iter().map(|section| {
        json!({
            "gpa": section.gpa.to_string(),
            "len": section.len,
            "type": section.kind,
            "data": section.data.len(),
            "measured": section.measured,
            "page_aug": section.page_aug,
        })
    });
    json!({ "sections": sections.collect::<Vec<_>>() })
}

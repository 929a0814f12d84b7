//! `inspect`: what a file is and what it says. Nothing of it is verified.

use std::path::PathBuf;

use anyhow::{Context, bail};
use cloister_attestation::measure::snp::{LaunchTranscript, Rom};
use cloister_attestation::measure::tdx;
use cloister_attestation::snp::{Hex, Report, ReportClaims, TcbClaims, Vek, VekKind, table};
use cloister_attestation::tdx::{EventLog, Quote, SignedText};
use cloister_attestation::x509::{Certificate, Crl, certificates, crls};
use serde_json::{Value, json};

use crate::{inspect_rom, inspect_tdx, output, read};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A report, quote, certificate table, certificates, CRL, TDX collateral, event log, firmware ROM, launch transcript or
    /// reference value
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let bytes = read(&args.file)?;
    let document = describe(&bytes).with_context(|| format!("{}", args.file.display()))?;
    output::print(&document, args.json)
}

/// What a kind of file looks like, and what it says.
struct Recogniser {
    /// Its name, for the message about files that are none of these.
    name: &'static str,
    /// Whether a file with this beginning (or length) can be nothing else. A cheap look, not a parse.
    looks: fn(&[u8]) -> bool,
    /// What it says; the error names what is wrong with a file that looked like one.
    describe: fn(&[u8]) -> anyhow::Result<Value>,
}

/// In the order of the looks: what is recognised by less comes later.
const RECOGNISERS: &[Recogniser] = &[
    Recogniser {
        name: "SEV-SNP report",
        looks: |bytes| bytes.len() == Report::BYTES && !is_der(bytes),
        describe: |bytes| report(&Report::parse(bytes)?),
    },
    Recogniser { name: "firmware ROM", looks: Rom::recognises, describe: inspect_rom::rom },
    Recogniser { name: "TDX quote", looks: Quote::recognises, describe: inspect_tdx::quote },
    Recogniser { name: "event log", looks: EventLog::recognises, describe: inspect_tdx::event_log },
    Recogniser {
        name: "TDX collateral",
        looks: |bytes| has_json_key(bytes, "tcb_info"),
        describe: inspect_tdx::collateral,
    },
    Recogniser {
        name: "TCB info",
        looks: |bytes| has_json_key(bytes, SignedText::TCB_INFO),
        describe: inspect_tdx::tcb_info_answer,
    },
    Recogniser {
        name: "QE identity",
        looks: |bytes| has_json_key(bytes, SignedText::QE_IDENTITY),
        describe: inspect_tdx::qe_identity_answer,
    },
    Recogniser {
        name: "launch transcript",
        looks: |bytes| has_json_key(bytes, "launch_digest"),
        describe: |bytes| {
            let transcript: LaunchTranscript = serde_json::from_slice(bytes)?;
            Ok(json!({"kind": "launch transcript", "transcript": transcript}))
        },
    },
    Recogniser {
        name: "launch transcript of a TD",
        looks: |bytes| has_json_key(bytes, "ranges"),
        describe: |bytes| {
            let transcript: tdx::LaunchTranscript = serde_json::from_slice(bytes)?;
            Ok(json!({"kind": "launch transcript", "transcript": transcript}))
        },
    },
    Recogniser {
        name: "reference value",
        looks: |bytes| has_json_key(bytes, "inputs"),
        describe: |bytes| {
            let value: Value = serde_json::from_slice(bytes)?;
            Ok(json!({"kind": "reference value", "value": value}))
        },
    },
    Recogniser {
        name: "CRL",
        looks: |bytes| crls(bytes).is_ok_and(|list| list.iter().all(|der| Crl::from_der(der).is_ok())),
        describe: |bytes| crl(&crls(bytes)?),
    },
    Recogniser {
        name: "certificates",
        looks: |bytes| is_der(bytes) || (!bytes.starts_with(b"0") && certificates(bytes).is_ok()),
        describe: |bytes| {
            Ok(json!({"kind": "certificates", "certificates": describe_all(&certificates(bytes)?)?}))
        },
    },
    Recogniser {
        name: "certificate table",
        looks: |bytes| table::parse(bytes).is_ok_and(|entries| !entries.is_empty()),
        describe: |bytes| certificate_table(&table::parse(bytes)?),
    },
];

fn describe(bytes: &[u8]) -> anyhow::Result<Value> {
    match RECOGNISERS.iter().find(|recogniser| (recogniser.looks)(bytes)) {
        Some(recogniser) => {
            (recogniser.describe)(bytes).with_context(|| format!("damaged {}", recogniser.name))
        }
        None if let Some(inner) = hex_text(bytes) => {
            let looks = RECOGNISERS.iter().find(|recogniser| (recogniser.looks)(&inner));
            let of = looks.map_or("bytes", |recogniser| recogniser.name);
            bail!("{} hexadecimal digits, of a {of}: give the bytes that they stand for", 2 * inner.len())
        }
        None => {
            let names: Vec<_> = RECOGNISERS.iter().map(|recogniser| recogniser.name).collect();
            bail!("none of these: {}", names.join(", "))
        }
    }
}

/// What hexadecimal digits stand for.
fn hex_text(bytes: &[u8]) -> Option<Vec<u8>> {
    hex::decode(bytes.trim_ascii()).ok().filter(|bytes| !bytes.is_empty())
}

/// A SEQUENCE with a length of two bytes, as everything has that is DER here. The first byte alone is the digit 0, too.
fn is_der(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x30, 0x82])
}

/// Whether this is a JSON object with that key.
fn has_json_key(bytes: &[u8], key: &str) -> bool {
    let object = || serde_json::from_slice::<serde_json::Map<String, Value>>(bytes).ok();
    bytes.trim_ascii_start().first() == Some(&b'{') && object().is_some_and(|object| object.contains_key(key))
}

/// What `verify --json` would print as its claims, and how it is signed.
fn report(report: &Report) -> anyhow::Result<Value> {
    let mut document = serde_json::to_value(ReportClaims::new(report, report.product()))?;
    document["kind"] = "SEV-SNP attestation report (not verified)".into();
    document["tee"] = "snp".into();
    document["product"] = json!(report.product());
    document["key_info"] = json!({
        "raw": format!("{:#x}", report.key_info()),
        "author_key_en": report.author_key_en(),
        "mask_chip_key": report.mask_chip_key(),
        "signing_key": report.signing_key().name(),
    });
    Ok(document)
}

pub fn describe_all(ders: &[impl AsRef<[u8]>]) -> anyhow::Result<Vec<Value>> {
    ders.iter().map(|der| Ok(certificate(&Certificate::from_der(der.as_ref())?))).collect()
}

pub fn certificate(certificate: &Certificate) -> Value {
    let kind =
        [VekKind::Vcek, VekKind::Vlek].into_iter().find(|k| k.common_name() == certificate.common_name());
    let vek = kind.map(|kind| match Vek::new(kind, certificate) {
        Ok(vek) => json!({
            "kind": kind,
            "product_name": vek.product_name,
            "tcb": TcbClaims::new(vek.tcb, Some(vek.product)),
            "hwid": vek.hwid.map(hex::encode),
            "csp_id": vek.csp_id,
        }),
        Err(error) => json!({"kind": kind, "error": error.to_string()}),
    });
    json!({
        "subject": certificate.subject().to_string(),
        "issuer": certificate.issuer().to_string(),
        "serial": hex::encode(certificate.serial()),
        "not_before": certificate.not_before(),
        "not_after": certificate.not_after(),
        "sha256": Hex(certificate.fingerprint()),
        "endorsement_key": vek,
        "pck": inspect_tdx::pck(certificate),
    })
}

pub fn crl(ders: &[impl AsRef<[u8]>]) -> anyhow::Result<Value> {
    let lists: anyhow::Result<Vec<_>> = ders
        .iter()
        .map(|der| {
            let crl = Crl::from_der(der.as_ref())?;
            Ok(json!({
                "issuer": crl.issuer().to_string(),
                "number": crl.number(),
                "this_update": crl.this_update(),
                "next_update": crl.next_update(),
                "revoked_serials": crl.revoked_serials().map(hex::encode).collect::<Vec<_>>(),
            }))
        })
        .collect();
    Ok(json!({"kind": "certificate revocation list (not verified)", "lists": lists?}))
}

fn certificate_table(entries: &[table::Entry<'_>]) -> anyhow::Result<Value> {
    let entries = entries.iter().map(|entry| {
        let contents = certificates(entry.blob).map_err(anyhow::Error::from).and_then(|c| describe_all(&c));
        json!({
            "guid": entry.kind.to_string(),
            "name": entry.kind.name(),
            "bytes": entry.blob.len(),
            "certificates": contents.unwrap_or_else(|error| vec![json!({"error": error.to_string()})]),
        })
    });
    Ok(json!({"kind": "certificate table", "entries": entries.collect::<Vec<_>>()}))
}

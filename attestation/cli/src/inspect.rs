//! `inspect`: what a file is and what it says. Nothing of it is verified.
//!
//! A damaged file is named as what it most likely is, with what is wrong with it.

use std::path::PathBuf;

use anyhow::{Context, bail};
use cloister_attestation::corim::Contents;
use cloister_attestation::measure::snp::Rom;
use cloister_attestation::snp::{Hex, IdAuth, IdBlock, Report, ReportClaims, TcbClaims, Vek, VekKind, table};
use cloister_attestation::tdx::{EventLog, Quote};
use cloister_attestation::x509::{Certificate, Crl, certificates, crls};
use serde_json::{Value, json};

use crate::inspect_documents as documents;
use crate::{envelope, input, inspect_rom, inspect_tdx, output};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A report, quote, certificate table, certificates, CRLs, TDX collateral, event log, firmware ROM, launch transcript,
    /// reference value, verdict, policy, ID block or its authentication, CoRIM or token
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let file = || format!("{}", args.file.display());
    let contents = envelope::open(input::read(&args.file, input::FIRMWARE)?).with_context(file)?;
    let mut document = describe(&contents.bytes).with_context(file)?;
    if !contents.layers.is_empty() {
        document["envelope"] = json!(contents.layers);
    }
    if let Some(table) = &contents.table {
        document["certificate_table"] = certificate_table(table).with_context(file)?;
    }
    output::print(&document, args.json)
}

/// What these bytes most likely are, be they damaged.
pub fn recognise(bytes: &[u8]) -> Option<&'static str> {
    RECOGNISERS.iter().find(|recogniser| (recogniser.looks)(bytes)).map(|recogniser| recogniser.name)
}

/// The name of what `verify snp` takes.
pub const REPORT: &str = "SEV-SNP report";
/// The name of what `verify tdx` takes.
pub const QUOTE: &str = "TDX quote";

/// What a kind of file looks like, and what it says.
struct Recogniser {
    /// Its name, for the message about files that are none of these.
    name: &'static str,
    /// Whether a file that looks like this is most likely one, be it damaged. A cheap look, not a parse.
    looks: fn(&[u8]) -> bool,
    /// What it says; the error names what is wrong with a file that looked like one.
    describe: fn(&[u8]) -> anyhow::Result<Value>,
}

/// In the order of the looks: what is recognised by less comes later.
const RECOGNISERS: &[Recogniser] = &[
    Recogniser { name: REPORT, looks: looks_like_a_report, describe: |bytes| report(&Report::parse(bytes)?) },
    Recogniser { name: "firmware ROM", looks: Rom::recognises, describe: inspect_rom::rom },
    Recogniser { name: QUOTE, looks: Quote::recognises, describe: inspect_tdx::quote },
    Recogniser {
        name: "SGX quote",
        looks: looks_like_an_sgx_quote,
        describe: |_| bail!("quotes of SGX enclaves are not read here: only those of TDs"),
    },
    Recogniser { name: "event log", looks: EventLog::recognises, describe: inspect_tdx::event_log },
    Recogniser {
        name: "JSON document",
        looks: documents::looks_like_json,
        describe: documents::json_document,
    },
    Recogniser { name: "certificate table", looks: looks_like_a_table, describe: certificate_table },
    Recogniser {
        name: "PEM file",
        looks: |bytes| bytes.windows(PEM_BEGIN.len()).any(|window| window == PEM_BEGIN),
        describe: pem,
    },
    Recogniser {
        name: "CRL",
        looks: |bytes| signed_der(bytes) == Some(SignedDer::Crl),
        describe: |bytes| crl(&[bytes]),
    },
    Recogniser {
        name: "certificate",
        looks: |bytes| signed_der(bytes) == Some(SignedDer::Certificate),
        describe: |bytes| Ok(json!({"kind": "certificates", "certificates": describe_all(&[bytes])?})),
    },
    Recogniser {
        name: "ID block",
        looks: |bytes| IdBlock::parse(bytes).is_ok(),
        describe: documents::id_block,
    },
    Recogniser {
        name: "ID authentication",
        looks: |bytes| IdAuth::parse(bytes).is_ok(),
        describe: documents::id_auth,
    },
    Recogniser { name: "CoRIM", looks: Contents::recognises, describe: documents::corim },
    Recogniser { name: "token (JWT)", looks: documents::looks_like_a_token, describe: documents::token },
    Recogniser { name: "policy", looks: documents::looks_like_a_policy, describe: documents::toml_policy },
];

fn describe(bytes: &[u8]) -> anyhow::Result<Value> {
    match RECOGNISERS.iter().find(|recogniser| (recogniser.looks)(bytes)) {
        Some(recogniser) => {
            (recogniser.describe)(bytes).with_context(|| format!("damaged {}", recogniser.name))
        }
        None => {
            let names: Vec<_> = RECOGNISERS.iter().map(|recogniser| recogniser.name).collect();
            bail!("none of these: {}", names.join(", "))
        }
    }
}

const PEM_BEGIN: &[u8] = b"-----BEGIN ";

/// The header of a quote of version 3, or of a later one whose TEE type is SGX's, with ECDSA and Intel's vendor ID.
fn looks_like_an_sgx_quote(bytes: &[u8]) -> bool {
    let word = |at: usize| bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word));
    // Version, then the type of the attestation key: 2 and 3 are ECDSA's.
    let versions = [3, 4, 5].map(|version| [2, 3].map(|key| key << 16 | version));
    let header = word(0).is_some_and(|first| versions.as_flattened().contains(&first)) && word(4) == Some(0);
    header && bytes.get(12..28).is_some_and(|vendor| *vendor == Quote::INTEL_QE_VENDOR_ID)
}

/// The right length, or about that and a version and the signature algorithm where a report has them.
fn looks_like_a_report(bytes: &[u8]) -> bool {
    let word = |at: usize| bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word));
    let close = bytes.len().abs_diff(Report::BYTES) <= Report::BYTES / 2;
    let reads = word(0).is_some_and(|version| (1..=16).contains(&version)) && word(0x34) == Some(1);
    signed_der(bytes).is_none() && (bytes.len() == Report::BYTES || close && reads)
}

fn looks_like_a_table(bytes: &[u8]) -> bool {
    table::recognises(bytes) || table::parse(bytes).is_ok_and(|entries| !entries.is_empty())
}

/// Signed structures of X.509.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SignedDer {
    Certificate,
    Crl,
}

/// Which of them DER begins as: a sequence in a sequence, and in that the version, which certificates tag and CRLs do not.
fn signed_der(bytes: &[u8]) -> Option<SignedDer> {
    const SEQUENCE: u8 = 0x30;
    let inside = |bytes: &[u8]| -> Option<usize> {
        match bytes {
            [SEQUENCE, 0..=0x7f, ..] => Some(2),
            [SEQUENCE, long @ 0x81..=0x84, ..] => Some(2 + usize::from(long & 0x7f)),
            _ => None,
        }
    };
    let outer = bytes.get(inside(bytes)?..)?;
    match outer.get(inside(outer)?..)? {
        [0xa0, ..] => Some(SignedDer::Certificate),
        [0x02, 0x01, 0x01, SEQUENCE, ..] => Some(SignedDer::Crl),
        _ => None,
    }
}

/// Certificates, CRLs, or both.
fn pem(bytes: &[u8]) -> anyhow::Result<Value> {
    match (certificates(bytes), crls(bytes)) {
        (Ok(found), Ok(lists)) => {
            let mut document = crl(&lists)?;
            document["kind"] = "certificates and revocation lists (not verified)".into();
            document["certificates"] = json!(describe_all(&found)?);
            Ok(document)
        }
        (Ok(found), Err(_)) => Ok(json!({"kind": "certificates", "certificates": describe_all(&found)?})),
        (Err(_), Ok(lists)) => crl(&lists),
        (Err(error), Err(_)) => Err(error.into()),
    }
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

fn certificate_table(bytes: &[u8]) -> anyhow::Result<Value> {
    let entries = table::parse(bytes)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_attestation::snp::table::{Entry, EntryKind, build};

    /// The beginnings of what OpenSSL makes of a certificate and of a CRL.
    const CERTIFICATE: &[u8] =
        &[0x30, 0x82, 0x05, 0x00, 0x30, 0x82, 0x03, 0x00, 0xa0, 0x03, 0x02, 0x01, 0x02];
    const CRL: &[u8] = &[0x30, 0x82, 0x03, 0x00, 0x30, 0x81, 0xf0, 0x02, 0x01, 0x01, 0x30, 0x41];

    fn report(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        (bytes[0], bytes[0x34]) = (3, 1);
        bytes
    }

    #[test]
    fn damaged_files_are_named_for_what_they_most_likely_are() {
        let entries = [Entry { kind: EntryKind::VCEK, blob: b"vcek" }];
        let table = build(&entries).unwrap();
        let policy = b"vmpl = [0]\nmeasurement = [\n".to_vec();
        let sgx =
            [&[3, 0, 2, 0, 0, 0, 0, 0, 9, 0, 13, 0][..], &Quote::INTEL_QE_VENDOR_ID, &[0; 404]].concat();
        for (bytes, parts) in [
            (report(Report::BYTES - 1), &["SEV-SNP report", "1184 bytes; here are 1183"][..]),
            (report(Report::BYTES + 1), &["SEV-SNP report", "here are 1185"]),
            (vec![0; Report::BYTES], &["SEV-SNP report", "version 0"]),
            (table[..30].to_vec(), &["certificate table", "does not end"]),
            (table[..50].to_vec(), &["certificate table", "not inside"]),
            (b"-----BEGIN CERTIFICATE-----\nAQ".to_vec(), &["PEM file", "an END line is missing"]),
            (
                b"-----BEGIN PRIVATE KEY-----\nAQID\n-----END PRIVATE KEY-----\n".to_vec(),
                &["PEM file", "PRIVATE KEY"],
            ),
            (CERTIFICATE.to_vec(), &["certificate", "not an X.509 certificate"]),
            (CRL.to_vec(), &["CRL", "not an X.509 CRL"]),
            (b"\n {\"tcb_info\": 1}".to_vec(), &["JSON document", "TDX collateral"]),
            (b"{\"tee\": \"snp\",".to_vec(), &["JSON document", "EOF"]),
            (b"{\"inputs\": 1}".to_vec(), &["JSON document", "none of these", "reference value"]),
            (b"{\"tee\": \"snp\", \"measurement\": \"00\"}".to_vec(), &["reference value", "missing field"]),
            (b"{\"tee\": \"sgx\", \"measurement\": \"00\"}".to_vec(), &["reference value", "sgx"]),
            (b" [ {\"tee\": \"snp\"}]".to_vec(), &["list of reference values", "missing field"]),
            (b"[{".to_vec(), &["JSON document", "EOF"]),
            (b"{\"vmpl\": \"0\"}".to_vec(), &["policy", "invalid type"]),
            (policy, &["policy", "TOML parse error"]),
            (b"[guest_policy]\ndebgu = \"allowed\"\n".to_vec(), &["policy", "debgu"]),
            (b"eyJhbGciOiJFUzI1NiJ9.e30".to_vec(), &["token", "three parts"]),
            (vec![0xd9, 0x01, 0xf5, 0xff], &["CoRIM"]),
            (sgx, &["SGX quote", "only those of TDs"]),
            (b"hello".to_vec(), &["none of these"]),
            (vec![], &["none of these"]),
        ] {
            let message = format!("{:#}", describe(&bytes).unwrap_err());
            assert!(parts.iter().all(|part| message.contains(part)), "{parts:?}: {message}");
        }
    }

    #[test]
    fn no_beginning_of_anything_panics() {
        for whole in [report(Report::BYTES), CERTIFICATE.to_vec(), CRL.to_vec(), b"{\"tee\": 1}".to_vec()] {
            for len in 0..whole.len() {
                let _ = describe(&whole[..len]);
            }
        }
    }
}

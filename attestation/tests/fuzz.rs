//! Fuzzing that needs neither nightly nor a C toolchain: right inputs of every kind, made wrong by mutations that know how
//! such inputs are built, for a bounded time. `cargo xtask fuzz --seconds N` runs it longer; each run continues from a
//! seed that it prints, and `CLOISTER_FUZZ_SEED` repeats one.
//!
//! A coverage-guided fuzzer would find its way into formats by itself, and here it need not: the corpus is whole, valid
//! evidence of every product, so that mutations start behind every check. Two promises are held: nothing panics, and
//! nothing that was changed is accepted.
#![allow(clippy::duplicate_mod, reason = "what either vendor makes is written by the same DER writer")]

mod pki;
mod tdx_pki;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use cloister_attestation::measure::snp::explain::{Question, explain};
use cloister_attestation::measure::snp::{
    LaunchInputs, LaunchPlan, LaunchTranscript, Rom, VcpuModel, VmmFlavour,
};
use cloister_attestation::measure::{KernelHashes, tdx};
use cloister_attestation::signature::RUSTCRYPTO;
use cloister_attestation::signing::SigningKey;
use cloister_attestation::snp::{
    Collateral, Evidence, GuestPolicy, IdAuth, IdBlock, Policy, Product, Report, RevocationRule, TrustRoots,
    Vek, VekKind, table, verify,
};
use cloister_attestation::tdx::{self as td, CollateralDocument, EventLog, Pck, QeIdentity, Quote, TcbInfo};
use cloister_attestation::x509::{Certificate, Crl, UnixTime, certificates, crls};
use pki::{CrlSpec, NOW, Scenario};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zerocopy::{FromBytes, IntoBytes};

/// An input's reader: where inputs come from, and what must hold of any.
struct Target {
    name: &'static str,
    corpus: fn() -> Vec<Vec<u8>>,
    /// Gets a mutated input and the one that it was made from.
    run: fn(&[u8], &[u8]),
}

/// New formats get a row here.
const TARGETS: &[Target] = &[
    Target { name: "report", corpus: reports, run: |bytes, _| drop(Report::parse(bytes)) },
    Target { name: "certificate table", corpus: tables, run: |bytes, _| drop(table::parse(bytes)) },
    Target { name: "certificate", corpus: evidence_certificates, run: |bytes, _| read_certificate(bytes) },
    Target {
        name: "CRL",
        corpus: || vec![CrlSpec::new(Product::Milan).der()],
        run: |bytes, _| read_crl(bytes),
    },
    Target {
        name: "trust root",
        corpus: evidence_certificates,
        run: |bytes, _| drop(TrustRoots::from_bytes(bytes)),
    },
    Target { name: "SNP verification", corpus: whole_evidence, run: verify_whole },
    Target { name: "quote", corpus: quotes, run: |bytes, _| drop(Quote::parse(bytes)) },
    Target { name: "collateral", corpus: collaterals, run: |bytes, _| read_collateral(bytes) },
    Target { name: "PCS answer", corpus: pcs_answers, run: |bytes, _| read_answer(bytes) },
    Target {
        name: "TCB info",
        corpus: tcb_infos,
        run: |bytes, _| read_text(bytes, |text| drop(TcbInfo::from_json(text))),
    },
    Target {
        name: "QE identity",
        corpus: qe_identities,
        run: |bytes, _| read_text(bytes, |text| drop(QeIdentity::from_json(text))),
    },
    Target { name: "PCK certificate", corpus: pck_certificates, run: |bytes, _| read_pck(bytes) },
    Target { name: "event log", corpus: event_logs, run: |bytes, _| read_log(bytes) },
    Target { name: "TDX verification", corpus: whole_tdx_evidence, run: verify_whole_tdx },
    Target {
        name: "TDX policy",
        corpus: || vec![serde_json::to_vec(&td::Policy::default()).unwrap()],
        run: |bytes, _| drop(serde_json::from_slice::<td::Policy>(bytes)),
    },
    Target { name: "TDX transcript", corpus: td_transcripts, run: |bytes, _| explain_td(bytes) },
    Target {
        name: "policy",
        corpus: policies,
        run: |bytes, _| drop(serde_json::from_slice::<Policy>(bytes)),
    },
    Target { name: "transcript", corpus: transcripts, run: |bytes, _| explain_transcript(bytes) },
    Target { name: "SNP ROM", corpus: || vec![snp_rom()], run: |bytes, _| measure_snp(bytes) },
    Target { name: "TDX ROM", corpus: || vec![tdx_rom()], run: |bytes, _| measure_tdx(bytes) },
    Target { name: "kernel hashes", corpus: hash_pages, run: |bytes, _| read_hashes(bytes) },
    Target { name: "ID authentication", corpus: id_blocks, run: verify_id_block },
    Target { name: "private key", corpus: private_keys, run: |bytes, _| read_key(bytes) },
];

fn reports() -> Vec<Vec<u8>> {
    let versions = (2..=5).flat_map(|version| Product::ALL.map(|product| (product, version)));
    versions
        .map(|(product, version)| Scenario::new(product, version, VekKind::Vcek).signed_report())
        .collect()
}

fn evidence_certificates() -> Vec<Vec<u8>> {
    let s = Scenario::new(Product::Turin, 5, VekKind::Vcek);
    let vlek = Scenario::new(Product::Milan, 5, VekKind::Vlek);
    vec![s.vek.der(), s.ask.der(), s.trusted.der(), vlek.vek.der()]
}

fn tables() -> Vec<Vec<u8>> {
    let certificates = evidence_certificates();
    let entry = |kind, index: usize| table::Entry { kind, blob: &certificates[index] };
    let entries =
        [entry(table::EntryKind::VCEK, 0), entry(table::EntryKind::ASK, 1), entry(table::EntryKind::ARK, 2)];
    vec![table::build(&entries).unwrap()]
}

fn read_certificate(bytes: &[u8]) {
    for der in certificates(bytes).unwrap_or_default() {
        let Ok(certificate) = Certificate::from_der(&der) else { continue };
        let _ = (Vek::new(VekKind::Vcek, &certificate), Vek::new(VekKind::Vlek, &certificate));
        let _ = (certificate.check_authority(0), certificate.may_sign_crls(), certificate.not_after());
    }
}

fn read_crl(bytes: &[u8]) {
    for der in crls(bytes).unwrap_or_default() {
        let Ok(crl) = Crl::from_der(&der) else { continue };
        let _ = (crl.number(), crl.next_update(), crl.revoked_serials().count());
    }
}

/// Several files in one input, each behind its length.
fn joined(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.iter().flat_map(|part| [&(part.len() as u16).to_le_bytes()[..], part].concat()).collect()
}

fn parted(bytes: &[u8]) -> Vec<&[u8]> {
    let mut parts: Vec<&[u8]> = Vec::new();
    let mut rest = bytes;
    while let Some((len, after)) = rest.split_first_chunk::<2>() {
        let (part, after) = after.split_at(usize::from(u16::from_le_bytes(*len)).min(after.len()));
        parts.push(part);
        rest = after;
    }
    parts
}

/// Report, endorsement key, intermediate and CRL.
fn whole_evidence() -> Vec<Vec<u8>> {
    let s = Scenario::new(Product::Turin, 5, VekKind::Vcek);
    vec![joined(&[s.signed_report(), s.vek.der(), s.ask.der(), CrlSpec::new(s.product).der()])]
}

fn verify_whole(bytes: &[u8], right: &[u8]) {
    static ROOTS: OnceLock<TrustRoots> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let root = Scenario::new(Product::Turin, 5, VekKind::Vcek).trusted.der();
        TrustRoots::from_bytes(&root).unwrap()
    });
    let parts = parted(bytes);
    let [report, certificates @ .., crl] = &parts[..] else { return };
    let evidence = Evidence { report, certificates, certificate_table: None };
    let policy = Policy { revocation: RevocationRule::Required, ..Policy::default() };
    let at: UnixTime = NOW.parse().unwrap();
    let accepted = verify(&evidence, roots, &Collateral { crls: &[crl] }, at, &policy).is_accepted();
    assert!(!accepted || bytes == right, "changed evidence is accepted");
}

fn quotes() -> Vec<Vec<u8>> {
    tdx_pki::KINDS.map(|(version, body)| tdx_pki::Scenario::new(version, body).quote_bytes()).to_vec()
}

fn collaterals() -> Vec<Vec<u8>> {
    vec![tdx_pki::Scenario::new(5, 3).collateral()]
}

fn read_collateral(bytes: &[u8]) {
    let collateral = td::Collateral::new(bytes, &tdx_pki::Scenario::new(5, 3).roots());
    let _ = (collateral.window(), collateral.reasons().codes());
}

/// A text of the collateral, verbatim.
fn documents(text: fn(CollateralDocument) -> String) -> Vec<Vec<u8>> {
    collaterals()
        .iter()
        .map(|bytes| text(CollateralDocument::from_json(bytes).unwrap()).into_bytes())
        .collect()
}

/// Signed documents, a chain in a header, and a CRL, as Intel's service answers.
fn pcs_answers() -> Vec<Vec<u8>> {
    let document = CollateralDocument::from_json(&collaterals()[0]).unwrap();
    let answer = |key, text: &str, signature| format!(r#"{{"{key}":{text},"signature":"{signature}"}}"#);
    let encoded = document.pck_crl_issuer_chain.replace(' ', "%20").replace('\n', "%0A");
    vec![
        answer("tcbInfo", &document.tcb_info, document.tcb_info_signature).into_bytes(),
        answer("enclaveIdentity", &document.qe_identity, document.qe_identity_signature).into_bytes(),
        format!("SGX-PCK-CRL-Issuer-Chain: {encoded}\n").into_bytes(),
        document.pck_crl.0,
    ]
}

/// Whatever stands in whose place.
fn read_answer(bytes: &[u8]) {
    let (tcb_info, qe_identity) = (td::SignedText::tcb_info(bytes), td::SignedText::qe_identity(bytes));
    assert!(tcb_info.is_err() || qe_identity.is_err());
    let right = pcs_answers();
    let [tcb_info, qe_identity, chain, crl] = [0, 1, 2, 3].map(|at| &right[at][..]);
    let answers = td::PcsAnswers {
        tcb_info,
        tcb_info_chain: chain,
        qe_identity,
        qe_identity_chain: chain,
        pck_crl: crl,
        pck_crl_chain: chain,
        root_crl: crl,
    };
    let _ = td::PcsAnswers { pck_crl_chain: bytes, ..answers }.document();
    let _ = td::PcsAnswers { root_crl: bytes, ..answers }.document();
}

fn tcb_infos() -> Vec<Vec<u8>> {
    documents(|document| document.tcb_info)
}

fn qe_identities() -> Vec<Vec<u8>> {
    documents(|document| document.qe_identity)
}

fn read_text(bytes: &[u8], read: fn(&str)) {
    if let Ok(text) = core::str::from_utf8(bytes) {
        read(text);
    }
}

fn pck_certificates() -> Vec<Vec<u8>> {
    vec![tdx_pki::CertSpec::pck().der(), tdx_pki::CertSpec::ca().der()]
}

fn read_pck(bytes: &[u8]) {
    if let Ok(certificate) = Certificate::from_der(bytes) {
        let _ = Pck::new(&certificate).map(|pck| (pck.fmspc, pck.configuration));
    }
}

fn event_logs() -> Vec<Vec<u8>> {
    let log = tdx_pki::quote::log(&tdx_pki::quote::usual_events());
    vec![[&log[..], &[0xff; 64]].concat(), log]
}

fn read_log(bytes: &[u8]) {
    let Ok(log) = EventLog::read(bytes) else { return };
    let _ = (log.replay(), td::EventLogClaims::new(&log));
    assert_eq!(log.inconsistencies().is_empty(), EventLog::parse(bytes).is_ok());
}

/// Quote, collateral and event log.
fn whole_tdx_evidence() -> Vec<Vec<u8>> {
    let evidence = |(version, body)| {
        let mut s = tdx_pki::Scenario::new(version, body);
        let log = s.quote.measure(&tdx_pki::quote::usual_events());
        joined(&[s.quote_bytes(), s.collateral(), log])
    };
    tdx_pki::KINDS.map(evidence).to_vec()
}

/// Not everything in collateral is signed: its text may be written otherwise, and certificates may come with others that nobody
/// needs. Quote and log must be the right ones to their last byte that means anything.
fn verify_whole_tdx(bytes: &[u8], right: &[u8]) {
    let s = tdx_pki::Scenario::new(5, 3);
    let [quote, collateral, log] = parted(bytes)[..] else { return };
    let collateral = td::Collateral::new(collateral, &s.roots());
    let evidence = td::Evidence { quote, event_log: Some(log) };
    let verdict = td::verify(&evidence, &collateral, s.time(), &td::Policy::default());
    assert!(!verdict.is_accepted() || same_claims(bytes, right), "changed evidence is accepted");
}

/// Whether what is accepted says what the right evidence says: mutations of what nobody signs may say nothing else.
fn same_claims(bytes: &[u8], right: &[u8]) -> bool {
    let report = |bytes: &[u8]| {
        let quote = Quote::parse(parted(bytes)[0]).unwrap();
        (quote.report().clone(), *quote.attestation_key())
    };
    let log = |bytes: &[u8]| td::EventLogClaims::new(&EventLog::parse(parted(bytes)[2]).unwrap());
    report(bytes) == report(right) && tdx_pki::quote::claims_no_more(&log(bytes), &log(right))
}

fn td_transcripts() -> Vec<Vec<u8>> {
    let bytes = tdx_rom();
    let tdvf = tdx::Tdvf::parse(&bytes).unwrap();
    let plan = tdx::LaunchPlan::new(&tdvf).unwrap();
    vec![serde_json::to_vec(&tdx::LaunchTranscript::new(&tdvf, &plan, tdx::PageOrder::TwoPass)).unwrap()]
}

fn explain_td(bytes: &[u8]) {
    let Ok(transcript) = serde_json::from_slice::<tdx::LaunchTranscript>(bytes) else { return };
    let rom = tdx_rom();
    let tdvf = tdx::Tdvf::parse(&rom).unwrap();
    let plan = tdx::LaunchPlan::new(&tdvf).unwrap();
    let order = tdx::PageOrder::TwoPass;
    let answer = tdx::explain::explain(&tdx::explain::Question {
        transcript: Some(&transcript),
        launch: Some(tdx::explain::Launch { tdvf: &tdvf, plan: &plan, order }),
        ..Default::default()
    });
    assert!(!answer.agree || transcript.mrtd == plan.mrtd(order).to_string());
}

fn policies() -> Vec<Vec<u8>> {
    let mut strict = Policy::default();
    strict.tcb.insert(Product::Genoa, Default::default());
    vec![serde_json::to_vec(&Policy::default()).unwrap(), serde_json::to_vec_pretty(&strict).unwrap()]
}

/// A ROM for both TEEs: one page of pattern, then metadata and the table of GUIDed entries.
fn rom(metadata: &[u8], guid: [u8; 16]) -> Vec<u8> {
    let mut rom: Vec<u8> = (0..2 * 4096).map(|at| (at / 5) as u8).collect();
    rom[4096..4096 + metadata.len()].copy_from_slice(metadata);
    let footer =
        [0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d];
    let mut table = [&4096u32.to_le_bytes()[..], &22u16.to_le_bytes(), &guid].concat();
    table.extend(40u16.to_le_bytes());
    table.extend(footer);
    let end = rom.len() - 32;
    rom[end - table.len()..end].copy_from_slice(&table);
    rom
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn snp_rom() -> Vec<u8> {
    let sections = [0x3000, 0x1000, 2, 0x4000, 0x1000, 3, 0x5000, 0x2000, 1, 0x8000, 0x1000, 0x10];
    let metadata = [b"ASEV", &words(&[64, 1, 4])[..], &words(&sections)].concat();
    let guid =
        [0x66, 0x65, 0x88, 0xdc, 0x4a, 0x98, 0x98, 0x47, 0xa7, 0x5e, 0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc];
    rom(&metadata, guid)
}

fn tdx_rom() -> Vec<u8> {
    let sections = [
        [0, 0x1000, 0xffff_e000, 0, 0x1000, 0, 0, 1],
        [0, 0, 0x80_9000, 0, 0x1000, 0, 2, 0],
        [0, 0, 0x81_0000, 0, 0x2000, 0, 3, 0],
    ];
    let metadata = [b"TDVF", &words(&[112, 1, 3])[..], &words(&sections.concat())].concat();
    let guid =
        [0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2];
    rom(&metadata, guid)
}

fn inputs<'a>(rom: &'a Rom<'a>) -> LaunchInputs<'a> {
    let (cpu, flavour) = (VcpuModel(0xa1_0f11), VmmFlavour::Cloister);
    LaunchInputs { rom, kernel: None, vcpus: 1, cpu, sev_features: 1, flavour }
}

/// Sections of a mutated ROM may be gigabytes: what is hashed is bounded here as it is for a VMM by its memory.
fn measure_snp(bytes: &[u8]) {
    let Ok(rom) = Rom::parse(bytes) else { return };
    if let Ok(plan) = LaunchPlan::new(&inputs(&rom))
        && plan.pages() < 256
    {
        let _ = plan.digest();
    }
}

fn measure_tdx(bytes: &[u8]) {
    let Ok(tdvf) = tdx::Tdvf::parse(bytes) else { return };
    if let Ok(plan) = tdx::LaunchPlan::new(&tdvf)
        && plan.pages() < 256
    {
        let _ = plan.mrtd(tdx::PageOrder::TwoPass);
    }
}

fn transcripts() -> Vec<Vec<u8>> {
    let bytes = snp_rom();
    let rom = Rom::parse(&bytes).unwrap();
    let plan = LaunchPlan::new(&inputs(&rom)).unwrap();
    vec![serde_json::to_vec(&LaunchTranscript::new(&inputs(&rom), &plan, None)).unwrap()]
}

fn explain_transcript(bytes: &[u8]) {
    let Ok(transcript) = serde_json::from_slice::<LaunchTranscript>(bytes) else { return };
    let right: LaunchTranscript = serde_json::from_slice(&transcripts()[0]).unwrap();
    let question = Question { transcript: Some(&transcript), ..Question::default() };
    let explanation = explain(&question, Some(&right));
    assert!(!explanation.agree || transcript.launch_digest == right.launch_digest);
}

fn hash_pages() -> Vec<Vec<u8>> {
    vec![KernelHashes::of(b"kernel", None, "quiet").to_page(0xc00).unwrap().to_vec()]
}

fn read_hashes(bytes: &[u8]) {
    for offset in [0, 0xc00, 0xfff, usize::MAX] {
        let _ = KernelHashes::from_page(bytes, offset);
    }
}

fn id_blocks() -> Vec<Vec<u8>> {
    let block = IdBlock::new([1; 48], [2; 16], [3; 16], 4, GuestPolicy(0x30000));
    let key = |byte| SigningKey::generate_p384(|bytes| bytes.fill(byte)).unwrap();
    let auth = block.sign(&key(1), Some(&key(2))).unwrap();
    vec![[block.as_bytes(), auth.as_bytes()].concat()]
}

fn verify_id_block(bytes: &[u8], right: &[u8]) {
    let Ok((block, rest)) = IdBlock::read_from_prefix(bytes) else { return };
    let Ok(auth) = IdAuth::read_from_bytes(rest) else { return };
    // Only what is signed: an author key that is taken away, or reserved bytes, are for the policy and the hardware.
    let accepted = auth.verify(&block, &RUSTCRYPTO).is_ok();
    assert!(!accepted || bytes[..96] == right[..96], "a changed block is accepted");
}

fn private_keys() -> Vec<Vec<u8>> {
    let pem = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBoAoGCCqGSM49\nAwEH\n-----END EC PRIVATE KEY-----\n";
    vec![pem.into(), pem.replace("EC PRIVATE", "PRIVATE").into()]
}

fn read_key(bytes: &[u8]) {
    if let Ok(text) = core::str::from_utf8(bytes) {
        let _ = SigningKey::from_pem(text);
    }
}

/// Changes `bytes` in one to four of the ways in which inputs go wrong.
fn mutate(bytes: &mut Vec<u8>, rng: &mut StdRng) {
    /// Values at the edges of what lengths and counts can be.
    const EDGES: [u32; 10] = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, u32::MAX];
    for _ in 0..rng.random_range(1..=4) {
        if bytes.is_empty() {
            bytes.push(rng.random());
        }
        let (len, at) = (bytes.len(), rng.random_range(0..bytes.len()));
        let span = rng.random_range(1..=16.min(len - at));
        match rng.random_range(0..9) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes[at] = bytes[at].wrapping_add(if rng.random() { 1 } else { 0xff }),
            3 => {
                // A length or count, in either byte order and any width.
                let edge = EDGES[rng.random_range(0..EDGES.len())];
                let width = [1, 2, 4][rng.random_range(0..3)].min(len - at);
                let value = if rng.random() { edge.to_le_bytes() } else { edge.to_be_bytes() };
                bytes[at..at + width].copy_from_slice(&value[..width]);
            }
            4 => bytes.truncate(at),
            5 => drop(bytes.drain(at..at + span)),
            6 => {
                let piece = bytes[at..at + span].to_vec();
                let to = rng.random_range(0..=len);
                bytes.splice(to..to, piece);
            }
            7 => {
                let from = rng.random_range(0..=len - span);
                bytes.copy_within(from..from + span, at);
            }
            _ => bytes[at..at + span].fill([0, 0xff][rng.random_range(0..2)]),
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn nothing_panics_and_nothing_changed_is_accepted() {
    let time = Duration::from_secs(number("CLOISTER_FUZZ_SECONDS").unwrap_or(3)) / TARGETS.len() as u32;
    let seed = number("CLOISTER_FUZZ_SEED").unwrap_or_else(rand::random);
    println!("CLOISTER_FUZZ_SEED={seed}");
    for target in TARGETS {
        let corpus = (target.corpus)();
        corpus.iter().for_each(|input| (target.run)(input, input));
        let mut rng = StdRng::seed_from_u64(seed);
        let (start, mut count) = (Instant::now(), 0u64);
        // However slow the machine, every target sees some inputs.
        while start.elapsed() < time || count < 20 {
            let right = &corpus[rng.random_range(0..corpus.len())];
            let mut input = right.clone();
            mutate(&mut input, &mut rng);
            count += 1;
            if catch_unwind(AssertUnwindSafe(|| (target.run)(&input, right))).is_err() {
                let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}.bin", target.name));
                std::fs::write(&path, &input).unwrap();
                panic!("{}: input {count} of seed {seed}, kept as {}", target.name, path.display());
            }
        }
        println!("{}: {count} inputs", target.name);
    }
}

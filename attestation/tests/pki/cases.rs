//! Every way to be wrong, one at a time, and the reasons that evidence is refused for then.

mod policy;

use cloister_attestation::snp::{
    BitRule, FirmwareVersion, Hex, Product, RevocationRule, TcbMaximum, TcbMinimum, TcbRules, UnknownBitRule,
    VekKind,
};

use super::*;

pub type Case = (&'static str, fn(&mut Scenario), &'static [&'static str]);

/// Extensions of the endorsement key's certificate, by their arc.
#[macro_export]
macro_rules! amd {
    ($arc:literal) => {
        concat!("1.3.6.1.4.1.3704.1.", $arc)
    };
}

pub fn flip_last(extension: &mut [u8]) {
    *extension.last_mut().unwrap() ^= 1;
}

fn basic(ca: u8) -> Vec<u8> {
    vec![0x30, 3, 1, 1, ca]
}

const FORM: &[Case] = &[
    ("version 1", |s| s.report[0] = 1, &["report-malformed"]),
    ("version 6", |s| s.report[0] = 6, &["report-malformed"]),
    ("one byte short", |s| s.report.truncate(1183), &["report-malformed"]),
    ("one byte long", |s| s.report.push(0), &["report-malformed"]),
    ("another algorithm", |s| s.report[0x34] = 2, &["report-malformed"]),
    ("reserved in use", |s| s.report[0x4c] = 1, &["report-malformed"]),
    ("reserved beside CPUID in use", |s| s.report[0x18b] = 1, &["report-malformed"]),
    ("mitigations before version 5", |s| s.report[0x1f8] = 1, &["report-malformed"]),
    ("reserved after the signature in use", |s| s.report[0x400] = 1, &["report-malformed"]),
    ("reserved KEY_INFO", |s| s.report[0x48] = 0x20, &["report-malformed"]),
    ("r is zero", |s| s.signature = Some(signature(0, 1)), &["signature-malformed"]),
    ("s is zero", |s| s.signature = Some(signature(1, 0)), &["signature-malformed"]),
    ("r beyond the curve", |s| s.signature = Some(signature(0xff, 1)), &["signature-malformed"]),
    ("s beyond the curve", |s| s.signature = Some(signature(1, 0xff)), &["signature-malformed"]),
    ("r too wide", |s| s.flips.push((SIGNED + 48, 1)), &["signature-malformed"]),
    ("s too wide", |s| s.flips.push((SIGNED + 143, 1)), &["signature-malformed"]),
    ("table is none", |s| s.raw_table = Some(vec![1; 40]), &["certificate-table-malformed"]),
    ("certificate is none", |s| s.more.push(b"0 certificate".to_vec()), &["certificate-malformed"]),
    ("too many certificates", |s| s.more = vec![s.ask.der(); 16], &["certificate-malformed"]),
    (
        "bytes after a certificate",
        |s| s.more.push([s.ask.der(), vec![0]].concat()),
        &["certificate-malformed"],
    ),
    ("CRL is none", |s| s.raw_crls.push(b"0 CRL".to_vec()), &["crl-malformed"]),
    (
        "delta CRL",
        |s| {
            let mut crl = CrlSpec::new(s.product);
            crl.extensions.push(("2.5.29.27".into(), true, vec![2, 1, 1]));
            s.crls.push(crl);
        },
        &["crl-malformed"],
    ),
];

fn signature(r: u8, s: u8) -> [u8; 144] {
    let mut signature = [0; 144];
    signature[..48].fill(r);
    signature[72..120].fill(s);
    signature
}

const SIGNATURE: &[Case] = &[
    ("measurement changed", |s| s.flips.push((0x90, 1)), &["report-signature"]),
    ("report data changed", |s| s.flips.push((0x8f, 0x80)), &["report-signature"]),
    ("guest policy changed", |s| s.flips.push((0x0a, 8)), &["report-signature"]),
    ("signature changed", |s| s.flips.push((SIGNED, 1)), &["report-signature"]),
    ("signed by another key", |s| s.report_signer = 2, &["report-signature"]),
    ("no key signed", |s| s.report[0x48] = 7 << 2, &["report-unsigned"]),
    ("chip key masked", |s| s.report[0x48] = 2, &["report-unsigned"]),
    (
        "chip key masked and nothing signed",
        |s| {
            s.report[0x48] = 2;
            s.signature = Some([0; 144]);
        },
        &["report-unsigned"],
    ),
    ("unknown key signed", |s| s.report[0x48] = 3 << 2, &["signing-key-unknown"]),
    ("VLEK claimed, VCEK given", |s| s.report[0x48] = 1 << 2, &["vek-missing"]),
    ("no VEK given", |s| s.send_vek = false, &["vek-missing"]),
    ("unknown processor", |s| s.set(0x188, &[0x1a, 0x58, 0]), &["product-unknown"]),
    ("no processor", |s| s.set(0x188, &[0, 0, 0]), &["product-unknown"]),
    ("TCB below the certificate's", |s| s.report[0x180] -= 1, &["tcb-mismatch"]),
    ("microcode is another", |s| s.report[0x187] -= 1, &["tcb-mismatch"]),
    ("chip is another", |s| s.report[0x1a0] ^= 1, &["chip-id-mismatch"]),
    ("end of chip ID is in use or another", |s| s.report[0x1df] ^= 1, &["chip-id-mismatch"]),
];

const VEK: &[Case] = &[
    ("no product name", |s| s.vek.remove(amd!("2")), &["vek-extension-malformed"]),
    (
        "unknown product name",
        |s| *s.vek.extension(amd!("2")) = b"\x16\x04Rome".to_vec(),
        &["product-unknown"],
    ),
    ("no structure version", |s| s.vek.remove(amd!("1")), &["vek-extension-malformed"]),
    ("structure version of another", |s| flip_last(s.vek.extension(amd!("1"))), &["vek-extension-malformed"]),
    ("no boot loader", |s| s.vek.remove(amd!("3.1")), &["vek-extension-malformed"]),
    ("no TEE", |s| s.vek.remove(amd!("3.2")), &["vek-extension-malformed"]),
    ("no SNP", |s| s.vek.remove(amd!("3.3")), &["vek-extension-malformed"]),
    ("no microcode", |s| s.vek.remove(amd!("3.8")), &["vek-extension-malformed"]),
    ("level is no integer", |s| s.vek.extension(amd!("3.3"))[0] = 4, &["vek-extension-malformed"]),
    ("reserved level in use", |s| flip_last(s.vek.extension(amd!("3.5"))), &["tcb-mismatch"]),
    ("boot loader of another", |s| flip_last(s.vek.extension(amd!("3.1"))), &["tcb-mismatch"]),
    ("SNP of another", |s| flip_last(s.vek.extension(amd!("3.3"))), &["tcb-mismatch"]),
    ("no HWID", |s| s.vek.remove(amd!("4")), &["vek-extension-malformed"]),
    ("HWID too short", |s| s.vek.extension(amd!("4")).truncate(7), &["vek-extension-malformed"]),
    ("HWID of another", |s| flip_last(s.vek.extension(amd!("4"))), &["chip-id-mismatch"]),
    (
        "HWID and CSP_ID",
        |s| {
            s.vek.extensions.push((amd!("5").into(), false, b"\x16\x01x".to_vec()));
        },
        &["vek-extension-malformed"],
    ),
    ("RSA key", |s| s.vek.key = Subject::Rsa(RsaKey::Small), &["certificate-profile"]),
    (
        "key off the curve",
        |s| {
            let der = s.vek.der();
            let at = der.windows(4).position(|w| w == [0x03, 0x62, 0x00, 0x04]).unwrap();
            let mut key = der[at - 20..at + 100].to_vec();
            let start = key.windows(4).position(|w| w == [0x30, 0x76, 0x30, 0x10]).unwrap();
            key = key[start..].to_vec();
            *key.last_mut().unwrap() ^= 1;
            s.vek.key = Subject::Raw(key);
        },
        &["certificate-profile"],
    ),
    (
        "is an authority",
        |s| s.vek.extensions.push((BASIC_CONSTRAINTS.into(), true, basic(0xff))),
        &["certificate-profile"],
    ),
    (
        "may only sign certificates",
        |s| {
            s.vek.extensions.push((KEY_USAGE.into(), true, key_usage(CERT_SIGN)));
        },
        &["certificate-profile"],
    ),
    ("not yet valid", |s| s.vek.not_before = "2026-11-21T07:00:01Z", &["certificate-not-yet-valid"]),
    ("expired", |s| s.vek.not_after = "2026-11-21T06:59:59Z", &["certificate-expired"]),
    ("signed by another", |s| s.vek.signer = RsaKey::Rogue, &["certificate-signature"]),
    ("salt of another length declared", |s| s.vek.algorithm = pss(SHA384, 32), &["certificate-signature"]),
    ("another hash declared", |s| s.vek.algorithm = pss(SHA256, 48), &["certificate-signature"]),
    (
        "two algorithms",
        |s| s.vek.outer_algorithm = Some(pss(SHA384, 32)),
        &["certificate-malformed", "vek-missing"],
    ),
    ("a certificate of version 1", |s| s.vek.version = 0, &["certificate-malformed", "vek-missing"]),
    (
        "unknown critical extension",
        |s| {
            s.vek.extensions.push(("1.2.3.4".into(), true, vec![5, 0]));
        },
        &["certificate-malformed", "vek-missing"],
    ),
    (
        "extension twice",
        |s| {
            let twice = s.vek.extensions[2].clone();
            s.vek.extensions.push(twice);
        },
        &["certificate-malformed", "vek-missing"],
    ),
    ("two common names", |s| s.vek.names.push("SEV-VCEK".into()), &["certificate-malformed", "vek-missing"]),
    ("named otherwise", |s| s.vek.names = vec!["VCEK".into()], &["vek-missing"]),
    ("issuer of another organisation", |s| s.vek.issuer_organisation = "AMD", &["intermediate-missing"]),
];

const CHAIN: &[Case] = &[
    ("no intermediate", |s| s.send_ask = false, &["intermediate-missing"]),
    (
        "intermediate named otherwise",
        |s| {
            s.ask.names = vec!["SEV-Rome".into()];
            s.vek.issuer = "SEV-Rome".into();
        },
        &["intermediate-missing"],
    ),
    (
        "intermediate of the other kind",
        |s| {
            s.ask = CertSpec::ask(s.product, VekKind::Vlek);
            s.vek.issuer = s.ask.names[0].clone();
        },
        &["intermediate-missing"],
    ),
    (
        "intermediate is no authority",
        |s| *s.ask.extension(BASIC_CONSTRAINTS) = vec![0x30, 0],
        &["certificate-profile"],
    ),
    ("intermediate without constraints", |s| s.ask.remove(BASIC_CONSTRAINTS), &["certificate-profile"]),
    (
        "intermediate may not sign",
        |s| *s.ask.extension(KEY_USAGE) = key_usage(CRL_SIGN),
        &["certificate-profile"],
    ),
    ("intermediate without key usage", |s| s.ask.remove(KEY_USAGE), &["certificate-profile"]),
    (
        "intermediate not yet valid",
        |s| s.ask.not_before = "2026-11-21T07:00:01Z",
        &["certificate-not-yet-valid"],
    ),
    ("intermediate expired", |s| s.ask.not_after = "2026-11-21T06:59:59Z", &["certificate-expired"]),
    ("intermediate signed by another", |s| s.ask.signer = RsaKey::Rogue, &["certificate-signature"]),
    ("intermediate of another root", |s| s.ask.issuer = "ARK-Rome".into(), &["root-untrusted"]),
    (
        "intermediate of another organisation's root",
        |s| s.ask.issuer_organisation = "AMD",
        &["root-untrusted"],
    ),
    (
        "intermediate with a short key",
        |s| {
            s.ask.key = Subject::Rsa(RsaKey::Small);
            s.vek.signer = RsaKey::Small;
        },
        &["certificate-signature"],
    ),
    (
        "root brought along",
        |s| {
            let mut rogue = CertSpec::ark(s.product);
            (rogue.key, rogue.signer) = (Subject::Rsa(RsaKey::Rogue), RsaKey::Rogue);
            s.more.push(rogue.der());
        },
        &["root-untrusted"],
    ),
    (
        "all of another root",
        |s| {
            let mut rogue = CertSpec::ark(s.product);
            (rogue.key, rogue.signer) = (Subject::Rsa(RsaKey::Rogue), RsaKey::Rogue);
            s.ask.signer = RsaKey::Rogue;
            s.more.push(rogue.der());
        },
        &["root-untrusted", "certificate-signature"],
    ),
    ("root expired", |s| s.trusted.not_after = "2026-11-21T06:59:59Z", &["certificate-expired"]),
    (
        "root of another product",
        |s| {
            let other = if s.product == Product::Milan { Product::Genoa } else { Product::Milan };
            s.trusted = CertSpec::ark(other);
        },
        &["root-untrusted"],
    ),
];

fn crl(s: &mut Scenario, change: fn(&mut CrlSpec)) {
    let mut crl = CrlSpec::new(s.product);
    change(&mut crl);
    s.crls.push(crl);
    s.policy.revocation = RevocationRule::Required;
}

const CRL: &[Case] = &[
    ("others revoked", |s| crl(s, |crl| crl.revoked = vec![vec![9], vec![1, 0, 2]]), &[]),
    (
        "intermediate revoked",
        |s| {
            s.ask.serial = vec![7];
            crl(s, |crl| crl.revoked = vec![vec![7]]);
        },
        &["certificate-revoked"],
    ),
    (
        "revoked by a stale list",
        |s| {
            s.ask.serial = vec![7];
            crl(s, |crl| {
                crl.revoked = vec![vec![7]];
                crl.next_update = Some("2026-11-02T00:00:00Z");
            });
            s.policy.revocation = RevocationRule::IfGiven;
        },
        &["certificate-revoked"],
    ),
    ("list missing", |s| s.policy.revocation = RevocationRule::Required, &["crl-missing"]),
    ("list of another root", |s| crl(s, |crl| crl.issuer = "ARK-Rome".into()), &["crl-missing"]),
    ("list of another organisation", |s| crl(s, |crl| crl.organisation = "AMD"), &["crl-missing"]),
    ("list out of date", |s| crl(s, |crl| crl.next_update = Some(NOW)), &["crl-expired"]),
    (
        "list from the future",
        |s| crl(s, |crl| crl.this_update = "2026-11-21T07:00:01Z"),
        &["crl-not-yet-valid"],
    ),
    ("list without an end", |s| crl(s, |crl| crl.next_update = None), &["crl-expired"]),
    (
        "list forged",
        |s| {
            crl(s, |crl| crl.signer = RsaKey::Rogue);
            s.policy.revocation = RevocationRule::IfGiven;
        },
        &["crl-signature"],
    ),
    (
        "root may not sign lists",
        |s| {
            *s.trusted.extension(KEY_USAGE) = key_usage(CERT_SIGN);
            crl(s, |_| {});
            s.policy.revocation = RevocationRule::IfGiven;
        },
        &["crl-signature"],
    ),
];

/// All groups of cases, with their names.
pub const ALL: &[(&str, &[Case])] = &[
    ("form", FORM),
    ("signature", SIGNATURE),
    ("endorsement key", VEK),
    ("chain", CHAIN),
    ("revocation", CRL),
    ("policy", policy::POLICY),
];

/// Evidence of one kind, and what can be wrong with no other.
pub type Group = (&'static str, (Product, u32, VekKind), &'static [Case]);

/// Those that only some evidence can have.
pub const SOME: &[Group] = &[
    ("Turin", (Product::Turin, 5, VekKind::Vcek), TURIN),
    ("Milan", (Product::Milan, 5, VekKind::Vcek), MILAN),
    ("VLEK of Milan without levels", (Product::Milan, 3, VekKind::Vlek), MILAN),
    ("Genoa", (Product::Genoa, 5, VekKind::Vcek), GENOA),
    ("Venice", (Product::Venice, 5, VekKind::Vcek), VENICE),
    ("version 2", (Product::Milan, 2, VekKind::Vcek), VERSION_2),
    ("VLEK of Milan", (Product::Milan, 3, VekKind::Vlek), VLEK),
    ("VLEK of Genoa", (Product::Genoa, 3, VekKind::Vlek), VLEK),
    ("VLEK of Turin", (Product::Turin, 3, VekKind::Vlek), VLEK),
    ("VLEK of Venice", (Product::Venice, 3, VekKind::Vlek), VLEK),
];

/// A minimum for the FMC, which only Turin has.
fn fmc_at_least(s: &mut Scenario, product: Product) {
    let rules = TcbRules { reported: TcbMinimum { fmc: 2, ..Default::default() }, ..Default::default() };
    s.policy.tcb.insert(product, rules);
}

const TURIN: &[Case] = &[
    ("no FMC in the certificate", |s| s.vek.remove(amd!("3.9")), &["vek-extension-malformed"]),
    ("another FMC", |s| s.report[0x180] += 1, &["tcb-mismatch"]),
    ("no reserved level on Turin", |s| s.vek.remove(amd!("3.5")), &[]),
    ("an FMC below the minimum", |s| fmc_at_least(s, Product::Turin), &["tcb-too-low"]),
];

const MILAN: &[Case] = &[
    ("a minimum that no Milan can have", |s| fmc_at_least(s, Product::Milan), &["tcb-too-low"]),
    ("no fourth level", |s| s.vek.remove(amd!("3.4")), &["vek-extension-malformed"]),
    ("no fifth level", |s| s.vek.remove(amd!("3.5")), &["vek-extension-malformed"]),
    ("no sixth level", |s| s.vek.remove(amd!("3.6")), &["vek-extension-malformed"]),
    ("no seventh level", |s| s.vek.remove(amd!("3.7")), &["vek-extension-malformed"]),
];

const GENOA: &[Case] = &[(
    "no reserved levels",
    |s| {
        s.vek.remove(amd!("3.4"));
        s.vek.remove(amd!("3.7"));
    },
    &["vek-extension-malformed"],
)];

const VENICE: &[Case] = &[
    (
        "only another root is trusted",
        |s| s.trusted = Scenario::new(Product::Turin, 5, VekKind::Vcek).trusted,
        &["root-untrusted"],
    ),
    ("microcode where there is none", |s| s.report[0x187] = 1, &["tcb-mismatch"]),
];

const VERSION_2: &[Case] = &[("a CPUID before version 3", |s| s.report[0x188] = 0x19, &["report-malformed"])];

const VLEK: &[Case] = &[
    (
        "another provider than allowed",
        |s| s.policy.csp_id = Some(vec!["CN=other.example".into()]),
        &["csp-id"],
    ),
    ("chip key masked, the provider's signed", |s| s.report[0x48] |= 2, &[]),
    (
        "chip key masked, another's signed",
        |s| {
            s.report[0x48] |= 2;
            s.report_signer = 2;
        },
        &["report-signature"],
    ),
    (
        "chip key masked, the provider's did not sign",
        |s| {
            s.report[0x48] |= 2;
            s.signature = Some([0; 144]);
        },
        &["report-unsigned"],
    ),
    ("no provider allowed", |s| s.policy.csp_id = Some(vec![]), &["csp-id"]),
    ("no VLEK allowed", |s| s.policy.signing_key = vec![VekKind::Vcek], &["signing-key"]),
    ("no CSP_ID", |s| s.vek.remove(amd!("5")), &["vek-extension-malformed"]),
    ("issued by an ASK", issued_by_an_ask, &["intermediate-missing"]),
];

fn issued_by_an_ask(s: &mut Scenario) {
    s.ask = CertSpec::ask(s.product, VekKind::Vcek);
    s.vek.issuer = s.ask.names[0].clone();
}

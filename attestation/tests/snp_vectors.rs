//! Real reports from Milan, Genoa and Turin machines (`../shared/vectors/snp`), each with its verdict, and what
//! is left of them after tampering.

#[path = "vectors/negatives.rs"]
mod negatives;

use std::path::PathBuf;
use std::sync::OnceLock;

use cloister_attestation::snp::{
    BitRule, Collateral, Evidence, Policy, Product, Report, RevocationRule, TrustRoots, Verdict, verify,
};
use cloister_attestation::x509::UnixTime;
use negatives::{NEGATIVES, NOW, sorted};
use serde_json::Value;

fn vector(name: &str) -> Option<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors/snp").join(name);
    let bytes = std::fs::read(&path).ok();
    if bytes.is_none() {
        eprintln!("SKIPPED: no {}", path.display());
    }
    bytes
}

fn amd() -> &'static TrustRoots {
    static AMD: OnceLock<TrustRoots> = OnceLock::new();
    AMD.get_or_init(TrustRoots::amd)
}

/// A report, its certificates, and when they were good.
struct Case {
    report: Vec<u8>,
    vek: Vec<u8>,
    table: bool,
    at: UnixTime,
    policy: Policy,
}

impl Case {
    fn load(name: &str) -> Option<Self> {
        let (vek, at) = match name {
            "milan-v2" | "milan-v2-idblock" | "milan-v3" | "genoa-v5-siena" => ("vcek.der", NOW),
            "milan-v3-vlek" => ("vlek.der", "2025-06-01T00:00:00Z"),
            "genoa-v3" => ("auxblob-certtable.bin", NOW),
            "turin-v5" => ("vcek.pem", NOW),
            other => panic!("no case {other}"),
        };
        let report = vector(&format!("{name}.report.bin"))?;
        let vek = vector(&format!("{name}.{vek}"))?;
        let table = name == "genoa-v3";
        Some(Self { report, vek, table, at: at.parse().unwrap(), policy: policy_for(name) })
    }

    fn verify_with(&self, roots: &TrustRoots, crls: &[&[u8]]) -> Verdict {
        let certificates = [&self.vek[..]];
        let evidence = Evidence {
            report: &self.report,
            certificates: if self.table { &[] } else { &certificates },
            certificate_table: self.table.then_some(&self.vek[..]),
        };
        verify(&evidence, roots, &Collateral { crls }, self.at, &self.policy)
    }

    fn verify(&self) -> Verdict {
        self.verify_with(amd(), &[])
    }

    fn refused(&self) -> Vec<&'static str> {
        codes(&self.verify())
    }
}

fn codes(verdict: &Verdict) -> Vec<&'static str> {
    assert_eq!(verdict.is_accepted(), verdict.reasons.is_empty());
    verdict.reasons.codes().into_iter().map(|code| code.as_str()).collect()
}

/// The least that has to be relaxed for a machine's report to be acceptable.
fn policy_for(name: &str) -> Policy {
    let mut policy = Policy::default();
    match name {
        "milan-v2" => policy.guest_policy.debug = BitRule::Allowed,
        "milan-v2-idblock" => policy.allow_provisional_firmware = true,
        "milan-v3-vlek" => {
            policy.vmpl = vec![1];
            policy.allow_provisional_firmware = true;
        }
        _ => {}
    }
    policy
}

const ACCEPTED: [&str; 7] =
    ["milan-v2", "milan-v2-idblock", "milan-v3", "milan-v3-vlek", "genoa-v3", "genoa-v5-siena", "turin-v5"];

#[test]
fn real_reports_are_accepted_with_their_claims() {
    let Some(expected) = vector("expected.json") else { return };
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    for name in ACCEPTED {
        let case = Case::load(name).unwrap();
        let verdict = case.verify();
        assert_eq!(codes(&verdict), [""; 0], "{name}: {:?}", verdict.reasons);
        let claims = serde_json::to_value(verdict.claims.unwrap()).unwrap();
        let expected = expected["cases"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap();
        let (fields, recheck) = (&expected["fields"], &expected["recheck"]);
        for field in ["measurement", "report_data", "host_data", "vmpl", "guest_svn", "id_key_digest"] {
            assert_eq!(claims[field], fields[field], "{name} {field}");
        }
        for (claim, field) in [
            (&claims["report_version"], "version"),
            (&claims["guest_policy"]["raw"], "policy"),
            (&claims["platform_info"]["raw"], "platform_info"),
            (&claims["tcb"]["current"]["raw"], "current_tcb"),
            (&claims["tcb"]["reported"]["raw"], "reported_tcb"),
            (&claims["tcb"]["committed"]["raw"], "committed_tcb"),
            (&claims["tcb"]["launch"]["raw"], "launch_tcb"),
            (&claims["firmware"]["current"], "current_version"),
            (&claims["firmware"]["committed"], "committed_version"),
        ] {
            assert_eq!(*claim, fields[field], "{name} {field}");
        }
        let kind = claims["endorsement_key"]["kind"].as_str().unwrap().to_uppercase();
        assert_eq!(kind, fields["signing_key"].as_str().unwrap(), "{name}");
        assert_eq!(claims["endorsement_key"]["product_name"], recheck["cert_product"], "{name}");
        assert_eq!(claims["endorsement_key"]["csp_id"], recheck["csp_id"], "{name}");
        let zeros = "0".repeat(128);
        assert_eq!(claims["chip_id"].as_str().unwrap_or(&zeros), fields["chip_id"], "{name}");
    }
}

#[test]
fn a_report_without_a_certificate_is_read_and_refused() {
    let Some(bytes) = vector("milan-v4-nocert.report.bin") else { return };
    let report = Report::parse(&bytes).unwrap();
    assert_eq!((report.version(), report.product()), (4, Some(Product::Milan)));
    let evidence = Evidence { report: &bytes, ..Evidence::default() };
    let now = NOW.parse().unwrap();
    let verdict = verify(&evidence, amd(), &Collateral::default(), now, &Policy::default());
    assert_eq!(codes(&verdict), ["vek-missing"]);
    assert!(verdict.claims.is_none());
}

#[test]
fn what_the_strict_default_refuses_is_refused() {
    for (name, expected) in [
        ("milan-v2", &["guest-policy-forbidden"][..]),
        ("milan-v2-idblock", &["firmware-provisional"]),
        ("milan-v3-vlek", &["vmpl", "firmware-provisional"]),
        ("milan-v3", &[]),
        ("genoa-v3", &[]),
        ("genoa-v5-siena", &[]),
        ("turin-v5", &[]),
    ] {
        let Some(mut case) = Case::load(name) else { return };
        case.policy = Policy::default();
        assert_eq!(case.refused(), expected, "{name}");
        assert!(case.verify().claims.is_some(), "{name} is authentic");
    }
}

#[test]
fn no_signed_bit_can_be_flipped() {
    for name in ["milan-v3", "turin-v5"] {
        let Some(case) = Case::load(name) else { return };
        // Each byte once, its bits in turn: the whole product takes minutes and finds nothing more.
        for at in 0..0x2a0 {
            let mut flipped =
                Case { report: case.report.clone(), vek: case.vek.clone(), ..Case::load(name).unwrap() };
            flipped.report[at] ^= 1 << (at % 8);
            let verdict = flipped.verify();
            assert!(!verdict.is_accepted() && verdict.claims.is_none(), "{name} byte {at:#x}");
        }
    }
}

#[test]
fn every_derived_negative_is_refused_for_its_reason() {
    for negative in NEGATIVES {
        let (Some(mut report), Some(mut vek)) = (vector(negative.report), vector(negative.vek)) else {
            return;
        };
        (negative.change)(&mut report, &mut vek);
        let certificates = [&vek[..]];
        let evidence = Evidence {
            report: &report,
            certificates: if negative.in_table() { &[] } else { &certificates },
            certificate_table: negative.in_table().then_some(&vek[..]),
        };
        let roots = negative.root.map(|root| TrustRoots::from_bytes(&vector(root).unwrap()).unwrap());
        let crls: Vec<_> = negative.crls.iter().map(|crl| vector(crl).unwrap()).collect();
        let crls: Vec<_> = crls.iter().map(Vec::as_slice).collect();
        let policy: Policy = toml::from_str(&negative.policy()).unwrap();
        let at = negative.at.parse().unwrap();
        let roots = roots.as_ref().unwrap_or(amd());
        let verdict = verify(&evidence, roots, &Collateral { crls: &crls }, at, &policy);
        assert_eq!(sorted(codes(&verdict)), sorted(negative.codes.to_vec()), "{}", negative.name);
    }
}

#[test]
fn certificates_hold_to_the_second() {
    for (name, at) in [
        ("milan-v3", "2025-01-15T21:21:54Z"),
        ("milan-v3", "2032-01-15T21:21:54Z"),
        ("milan-v3-vlek", "2025-12-10T22:14:21Z"),
    ] {
        let Some(mut case) = Case::load(name) else { return };
        case.at = at.parse().unwrap();
        assert_eq!(case.refused(), [""; 0], "{name} at {at}");
    }
}

#[test]
fn only_trusted_roots_count() {
    let Some(case) = Case::load("genoa-v3") else { return };
    assert_eq!(codes(&case.verify_with(&TrustRoots::none(), &[])), ["root-untrusted"]);
    let Some(case) = Case::load("milan-v3-vlek") else { return };
    let asvk_and_ark = vector("roots/ask_ark_milan_vlek.pem").unwrap();
    assert!(case.verify_with(&TrustRoots::from_bytes(&asvk_and_ark).unwrap(), &[]).is_accepted());
}

#[test]
fn a_crl_is_honoured_and_needed_where_the_policy_says_so() {
    let (Some(milan), Some(genoa)) = (vector("crl/milan-crl6.der"), vector("crl/genoa-crl4.der")) else {
        return;
    };
    let current = "2026-01-01T00:00:00Z";
    for (name, at, crls, code) in [
        ("milan-v3", current, &[&milan[..], &genoa][..], None),
        ("milan-v3", "2026-05-11T23:59:59Z", &[&milan], None),
        ("genoa-v3", "2025-06-01T00:00:00Z", &[&genoa], None),
        ("milan-v3", current, &[b"CRL"], Some("crl-malformed")),
    ] {
        let Some(mut case) = Case::load(name) else { return };
        case.at = at.parse().unwrap();
        case.policy.revocation = RevocationRule::Required;
        let verdict = case.verify_with(amd(), crls);
        assert_eq!(codes(&verdict), code.into_iter().collect::<Vec<_>>(), "{name} at {at}");
    }
    let mut forged = milan.clone();
    *forged.last_mut().unwrap() ^= 1;
    let Some(mut case) = Case::load("milan-v3") else { return };
    case.at = current.parse().unwrap();
    assert_eq!(codes(&case.verify_with(amd(), &[&forged])), ["crl-signature"]);
}

#[test]
fn a_turin_certificate_is_not_read_as_a_genoa_one() {
    use cloister_attestation::snp::{Vek, VekError, VekKind};
    use cloister_attestation::x509::{Certificate, certificates};
    let Some(case) = Case::load("turin-v5") else { return };
    let der = certificates(&case.vek).unwrap().pop().unwrap();
    let vek = Vek::new(VekKind::Vcek, &Certificate::from_der(&der).unwrap()).unwrap();
    let report = Report::parse(&case.report).unwrap();
    assert_eq!(report.reported_tcb(), vek.tcb);
    let (turin, genoa) = (Product::Turin, Product::Genoa);
    let parts = |product| report.reported_tcb().parts(product).map(|(p, _)| p.name()).collect::<Vec<_>>();
    assert!(parts(turin).contains(&"fmc") && !parts(genoa).contains(&"fmc"));
    // Its product name is what makes it a Turin one: a Genoa's structure version would be another.
    let genoa_named: Vec<u8> = {
        let at = der.windows(5).position(|window| window == b"Turin").unwrap();
        let mut der = der.to_vec();
        let found = der.windows(7).position(|w| w == [0x16, 5, b'T', b'u', b'r', b'i', b'n']).unwrap_or(at);
        der[found + 2..found + 7].copy_from_slice(b"Genoa");
        der
    };
    let error = Vek::new(VekKind::Vcek, &Certificate::from_der(&genoa_named).unwrap()).unwrap_err();
    assert_eq!(error, VekError::StructVersion { version: 1, product: Product::Genoa });
}

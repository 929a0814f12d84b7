//! The binary as scripts use it: exit codes and documents. Real evidence from `../shared/vectors`.

mod common;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use common::{attest, codes, json, run, vectors, write};

const NOW: &str = "2026-11-21T07:00:00Z";

#[test]
fn every_row_of_the_vectors_gives_its_verdict() {
    let Some(snp) = vectors("snp") else { return };
    let expected = json(&snp.join("expected.json"));
    let temporary = tempfile::tempdir().unwrap();
    let policy = |name: &str, text: &str| write(temporary.path(), name, text);
    let debug = policy("debug.toml", "[guest_policy]\ndebug = \"allowed\"\n");
    let provisional = policy("provisional.toml", "allow_provisional_firmware = true\n");
    let cloud = policy("cloud.toml", "allow_provisional_firmware = true\nvmpl = [0, 1]\n");
    for case in expected["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let (policy, at) = match name {
            "milan-v2" => (Some(&debug), NOW),
            "milan-v3-vlek" => (Some(&cloud), "2025-06-01T00:00:00Z"),
            _ if name.starts_with("milan-v2-idblock") => (Some(&provisional), NOW),
            _ => (None, NOW),
        };
        let report = snp.join(case["report"].as_str().unwrap());
        let mut arguments = vec!["verify", "snp", "--json", "--at", at, "--report", report.to_str().unwrap()];
        let vek = case["vek"].as_str().map(|vek| snp.join(vek).to_str().unwrap().to_owned());
        if let Some(vek) = &vek {
            arguments.push(if vek.contains("certtable") { "--cert-table" } else { "--vek" });
            arguments.push(vek);
        }
        if let Some(policy) = policy {
            arguments.extend(["--policy", policy]);
        }
        let (code, verdict) = run(&arguments);
        let accepted = case["verdict"].as_str().unwrap().starts_with("PASS");
        assert_eq!(code, if accepted { 0 } else { 1 }, "{name}: {verdict}");
        assert_eq!(verdict["verdict"], if accepted { "accepted" } else { "rejected" }, "{name}");
        assert_eq!(verdict["claims_version"], 2);
        assert_eq!(verdict["claims"].is_object(), accepted, "{name}");
        if accepted {
            assert_eq!(verdict["claims"]["measurement"], case["fields"]["measurement"], "{name}");
        }
    }
}

#[test]
fn what_speaks_against_evidence_is_named() {
    let Some(folder) = vectors("") else { return };
    let path = |name: &str| folder.join("snp").join(name).to_str().unwrap().to_owned();
    let (report, vek) = (path("genoa-v5-siena.report.bin"), path("genoa-v5-siena.vcek.der"));
    let (milan, crl) = (path("roots/ask_ark_milan.pem"), path("crl/genoa-crl4.der"));
    let data = format!("68656c6c6f2d6174746573746174696f6e{}", "00".repeat(47));
    let base = ["verify", "snp", "--json", "--at", NOW, "--report", &report, "--vek", &vek];
    let with = |more: &[&str]| run(&[&base[..], more].concat());
    let temporary = tempfile::tempdir().unwrap();
    let required = write(temporary.path(), "crl.toml", "revocation = \"required\"\n");
    let zeros = "00".repeat(64);
    for (more, expected) in [
        (&["--report-data", &data][..], &[][..]),
        (&["--report-data", &zeros], &["report-data"]),
        (&["--trust-root", &milan], &["intermediate-missing"]),
        (&["--crl", &crl], &[]),
        (&["--crl", &crl, "--policy", &required], &["crl-expired"]),
        (&["--policy", &required, "--report-data", &zeros], &["report-data", "crl-missing"]),
    ] {
        let (code, verdict) = with(more);
        assert_eq!(codes(&verdict), expected, "{more:?}");
        assert_eq!(code, i32::from(!expected.is_empty()), "{more:?}");
    }
}

#[test]
fn a_certificate_of_another_chip_does_not_hide_the_right_one() {
    let Some(folder) = vectors("snp") else { return };
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (report, table) = (path("genoa-v3.report.bin"), path("genoa-v3.auxblob-certtable.bin"));
    let vek = path("genoa-v5-siena.vcek.der");
    let base = ["verify", "snp", "--json", "--at", NOW, "--report", &report, "--vek", &vek];
    let (code, verdict) = run(&base);
    assert!(code == 1 && codes(&verdict).contains(&"report-signature"), "{verdict}");
    let (code, verdict) = run(&[&base[..], &["--cert-table", &table]].concat());
    assert_eq!((code, codes(&verdict)), (0, vec![]));
}

#[test]
fn a_policy_is_toml_or_json() {
    let Some(folder) = vectors("snp") else { return };
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (report, vek) = (path("genoa-v5-siena.report.bin"), path("genoa-v5-siena.vcek.der"));
    let temporary = tempfile::tempdir().unwrap();
    let base = ["verify", "snp", "--json", "--at", NOW, "--report", &report, "--vek", &vek, "--policy"];
    for (index, (policy, code, reasons)) in [
        ("[tcb.genoa.max_reported]\nsnp = 22\n", 1, &["tcb-too-high"][..]),
        (r#"{"tcb": {"genoa": {"max_reported": {"snp": 22}}}}"#, 1, &["tcb-too-high"]),
        ("\n  {\"tcb\": {\"genoa\": {\"max_reported\": {\"snp\": 255}}}}\n", 0, &[]),
        ("", 0, &[]),
        ("{}", 0, &[]),
        (r#"{"tcb": {"genoa": {"max_reported": {"snp": 256}}}}"#, 2, &[]),
        ("{", 2, &[]),
        ("max_guest_svn = -1", 2, &[]),
    ]
    .into_iter()
    .enumerate()
    {
        let file = write(temporary.path(), &format!("policy{index}"), policy);
        let (status, verdict) = run(&[&base[..], &[&file]].concat());
        assert_eq!(status, code, "{policy}");
        assert!(code == 2 || codes(&verdict) == reasons, "{policy}: {verdict}");
    }
}

#[test]
fn certificates_and_crls_may_be_in_one_file() {
    let Some(folder) = vectors("snp") else { return };
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (report, vek) = (path("genoa-v5-siena.report.bin"), path("genoa-v5-siena.vcek.der"));
    let crl = BASE64_STANDARD.encode(std::fs::read(path("crl/genoa-crl4.der")).unwrap());
    let chain = std::fs::read_to_string(path("roots/ask_ark_genoa.pem")).unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let text = format!("-----BEGIN X509 CRL-----\n{crl}\n-----END X509 CRL-----\n{chain}");
    let bundle = write(temporary.path(), "bundle.pem", text);
    let chain_only = path("roots/ask_ark_genoa.pem");
    let base = ["verify", "snp", "--json", "--at", NOW, "--report", &report, "--vek", &vek];
    let with = |more: &[&str]| run(&[&base[..], more].concat());
    let (code, verdict) = with(&["--chain", &bundle, "--crl", &bundle, "--trust-root", &bundle]);
    assert_eq!((code, codes(&verdict)), (0, vec![]));
    assert_eq!(verdict["claims"]["revocation"]["status"], "stale");
    let (code, verdict) = with(&["--crl", &chain_only]);
    assert_eq!((code, codes(&verdict)), (1, vec!["crl-malformed"]));
    let (code, document) = run(&["inspect", "--json", &bundle]);
    assert_eq!((code, document["kind"].as_str().unwrap().contains("and revocation")), (0, true));
    assert!(document["lists"][0]["issuer"].is_string() && document["certificates"][1]["subject"].is_string());
}

#[test]
fn unusable_input_is_told_from_refused_evidence() {
    let temporary = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| write(temporary.path(), name, text);
    let (empty, policy) = (file("empty", ""), file("policy.toml", "debug = \"allowed\"\n"));
    for (arguments, code) in [
        (&["verify", "snp", "--report", &empty][..], 1),
        (&["verify", "snp", "--report", "/nonexistent"], 2),
        (&["verify", "snp", "--report", &empty, "--policy", &policy], 2),
        (&["verify", "snp", "--report", &empty, "--trust-root", &empty], 2),
        (&["verify", "snp", "--report", &empty, "--report-data", "00"], 2),
        (&["verify", "snp", "--report", &empty, "--at", "now"], 2),
        (&["verify", "snp"], 2),
        (&["measure", "tdx", "--firmware", &empty], 2),
        (&["measure", "tdx", "--firmware", &empty, "--memory", "1"], 2),
        (&["measure", "snp", "--firmware", &empty], 2),
        (&["inspect", &empty], 2),
        (&[], 2),
    ] {
        let output = attest(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let said = if code == 1 { &output.stdout } else { &output.stderr };
        assert!(!said.is_empty(), "{arguments:?} says why");
    }
}

/// Private keys on P-384, made by OpenSSL for this test.
const ID_KEY: &str = "-----BEGIN PRIVATE KEY-----
MIG2AgEAMBAGByqGSM49AgEGBSuBBAAiBIGeMIGbAgEBBDAzLOIfLQg2inVNia/n
p+reHJwcT78eNO9faMMlFNGQQPYeUDA+Nq64X9bQzhjMzFehZANiAASLMg0B/a3o
Fmb7jF33/02jM8qvOntABKdEiR6mq30twmZxW3FbBcL6S8dwnod3j2MBEzWs3JHl
7nFT5Ng+mMTz5fUj8ycpQsdA08ih2MnAK4kzxB3tWbpAA5rt/iKBDaI=
-----END PRIVATE KEY-----
";
const AUTHOR_KEY: &str = "-----BEGIN PRIVATE KEY-----
MIG2AgEAMBAGByqGSM49AgEGBSuBBAAiBIGeMIGbAgEBBDApkZPfzZBZ07/qTssQ
Rpr/sa3NkTULU5UVixSRQJw+mE0Nf7ELQE12oqjHSGOx65mhZANiAAQwz0xVZFis
UBvDpTX0iBM0koaw7mcLpaaITcL5Jhqv5vPXTi0zWAOHtjTk18RkgDz6Mnhkh8n2
jmyV8Y6sdEQMZiykyYPqzs5cdql/x0xvY+VhzDcHmuUYw4XTz7LRQwo=
-----END PRIVATE KEY-----
";

#[test]
fn an_id_block_is_written_as_launches_take_it() {
    let temporary = tempfile::tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name).to_str().unwrap().to_owned();
    let (id, author) =
        (write(temporary.path(), "id.pem", ID_KEY), write(temporary.path(), "author.pem", AUTHOR_KEY));
    let (block, auth, digest) = (path("block"), path("auth"), "ab".repeat(48));
    let base = ["id-block", "--json", "--measurement", &digest, "--id-key", &id];
    let more = ["--author-key", &author, "--block", &block, "--auth", &auth, "--guest-svn", "3"];
    let (code, document) = run(&[&base[..], &more].concat());
    assert_eq!(code, 0);
    // Computed from the same keys by sev-snp-measure 0.0.13 (snp-create-id-block).
    assert_eq!(
        document["id_key_digest"],
        "4bd4365d6de96af4a0493c75e8f6517aa9317c683f3d35eaebd5b8c1aba36ea3e4086a878ca097635d36e8c143387dda"
    );
    assert_eq!(
        document["author_key_digest"],
        "9bb5593c1de7b85f8fe05dc93450e3bf72730290e08ea3253606a6b0708b3b1edfe1efcabac4ddbd7391ab753f3e361f"
    );
    let (block, auth) = (std::fs::read(block).unwrap(), std::fs::read(auth).unwrap());
    assert_eq!((block.len(), auth.len()), (96, 4096));
    assert_eq!((&block[..48], block[84]), (&[0xab; 48][..], 3));
    let (code, document) = run(&base);
    assert!(code == 0 && document["author_key_digest"].is_null());
    assert_eq!(run(&["id-block", "--measurement", &digest, "--id-key", "/nonexistent"]).0, 2);
    assert_eq!(run(&["id-block", "--measurement", "ab", "--id-key", &id]).0, 2);
}

#[test]
fn results_and_reference_values_are_written_for_other_tools() {
    let Some(folder) = vectors("") else { return };
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let temporary = tempfile::tempdir().unwrap();
    let output = |name: &str| temporary.path().join(name).to_str().unwrap().to_owned();
    let key = write(temporary.path(), "key.pem", ID_KEY);
    let (report, vek) = (path("snp/genoa-v5-siena.report.bin"), path("snp/genoa-v5-siena.vcek.der"));
    let token = output("token");
    let verify = ["verify", "snp", "--at", NOW, "--report", &report, "--ear", &token, "--sign-key", &key];
    for (more, code) in [(&["--vek", &vek][..], 0), (&[], 1)] {
        assert_eq!(run(&[&verify[..], more].concat()).0, code);
        let text = std::fs::read_to_string(&token).unwrap();
        assert_eq!(text.trim().split('.').count(), 3, "{text}");
    }
    assert_eq!(run(&["verify", "snp", "--report", &report, "--ear", &token]).0, 2, "a key is needed");
    let (rom, corim) = (path("measure/ovmf_AmdSev_suffix.bin"), output("corim"));
    let measure = ["measure", "snp", "--firmware", &rom, "--corim", &corim];
    assert_eq!(run(&measure).0, 0);
    let unsigned = std::fs::read(&corim).unwrap();
    assert_eq!(unsigned[..3], [0xd9, 0x01, 0xf5], "CBOR tag 501");
    assert_eq!(run(&[&measure[..], &["--sign-key", &key]].concat()).0, 0);
    assert_eq!(std::fs::read(&corim).unwrap()[0], 0xd2, "CBOR tag 18");
    assert_eq!(run(&["measure", "sev", "--firmware", &rom, "--corim", &corim]).0, 2);
    for (document, has) in [
        (&["policy"][..], "measurement"),
        (&["policy", "--tee", "snp"], "guest_policy"),
        (&["policy", "--tee", "tdx"], "td_attributes"),
        (&["claims"], "TdxClaims"),
    ] {
        let (code, schema) = run(&[&["schema"], document].concat());
        assert!(code == 0 && schema["$schema"].is_string(), "{document:?}");
        assert!(schema.to_string().contains(&format!("{has:?}:")), "{document:?}");
    }
    assert_eq!(run(&["schema", "verdict"]).0, 2);
}

#[test]
fn a_report_is_inspected_as_its_claims_would_be() {
    let Some(folder) = vectors("snp") else { return };
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    for (name, vek, signing_key) in [
        ("genoa-v5-siena", "vcek.der", "vcek"),
        ("turin-v5", "vcek.pem", "vcek"),
        ("milan-v3", "vcek.der", "vcek"),
    ] {
        let (report, vek) = (path(&format!("{name}.report.bin")), path(&format!("{name}.{vek}")));
        let (_, verdict) = run(&["verify", "snp", "--json", "--at", NOW, "--report", &report, "--vek", &vek]);
        let (code, document) = run(&["inspect", "--json", &report]);
        let of_verification = ["endorsement_key", "trust_root", "revocation", "verified_at"];
        let claims = verdict["claims"].as_object().unwrap();
        for (key, claim) in claims.iter().filter(|(key, _)| !of_verification.contains(&key.as_str())) {
            assert_eq!(&document[key], claim, "{name} {key}");
        }
        assert_eq!((code, document["key_info"]["signing_key"].as_str()), (0, Some(signing_key)));
        assert_eq!(document.as_object().unwrap().len(), claims.len() - of_verification.len() + 2, "{name}");
    }
    let (_, document) = run(&["inspect", "--json", &path("milan-v3-vlek.report.bin")]);
    assert_eq!(document["key_info"]["signing_key"], "vlek");
    // Version 2 does not say which product its TCB versions are of.
    let (_, document) = run(&["inspect", "--json", &path("milan-v2.report.bin")]);
    assert!(document["product"].is_null() && document["tcb"]["current"].as_object().unwrap().len() == 1);
}

#[test]
fn files_are_recognised() {
    let Some(folder) = vectors("") else { return };
    for (name, kind) in [
        ("snp/turin-v5.report.bin", "SEV-SNP attestation report (not verified)"),
        ("snp/genoa-v3.auxblob-certtable.bin", "certificate table"),
        ("snp/turin-v5.vcek.pem", "certificates"),
        ("snp/milan-v3-vlek.vlek.der", "certificates"),
        ("snp/roots/ask_ark_turin_vlek.pem", "certificates"),
        ("snp/crl/genoa-crl4.der", "certificate revocation list (not verified)"),
        ("tdx/v4-phala-uptodate.quote.bin", "TDX quote (not verified)"),
        ("tdx/v5-gotdx.quote.bin", "TDX quote (not verified)"),
        ("tdx/collateral/90c06f000000-2026-03.json", "TDX collateral (not verified)"),
        ("tdx/ccel/cos113.ccel.bin", "event log (not compared with a quote)"),
        ("measure/ovmf_AmdSev_suffix.bin", "firmware ROM"),
        ("measure/ovmf_OvmfX64_suffix.bin", "firmware ROM"),
    ] {
        let path = folder.join(name);
        let (code, document) = run(&["inspect", "--json", path.to_str().unwrap()]);
        assert_eq!((code, document["kind"].as_str()), (0, Some(kind)), "{name}");
    }
}

#[test]
fn what_the_program_writes_it_recognises() {
    let Some(folder) = vectors("") else { return };
    let temporary = tempfile::tempdir().unwrap();
    let output = |name: &str| temporary.path().join(name).to_str().unwrap().to_owned();
    let key = write(temporary.path(), "key.pem", ID_KEY);
    let rom = folder.join("measure/ovmf_AmdSev_suffix.bin").to_str().unwrap().to_owned();
    let (corim, signed, transcript) = (output("corim"), output("signed"), output("transcript"));
    let (token, block, auth) = (output("token"), output("block"), output("auth"));
    let digest = "ab".repeat(48);
    let base = ["measure", "snp", "--json", "--firmware", &rom, "--corim"];
    let (_, reference) = run(&[&base[..], &[&corim, "--transcript", &transcript]].concat());
    assert_eq!(run(&[&base[..], &[&signed, "--sign-key", &key]].concat()).0, 0);
    let id = ["id-block", "--measurement", &digest, "--id-key", &key, "--block", &block, "--auth", &auth];
    assert_eq!(run(&id).0, 0);
    let report = folder.join("snp/genoa-v5-siena.report.bin").to_str().unwrap().to_owned();
    let verify =
        ["verify", "snp", "--json", "--at", NOW, "--report", &report, "--ear", &token, "--sign-key", &key];
    let (_, verdict) = run(&verify);
    let (_, sev) = run(&["measure", "sev", "--json", "--firmware", &rom]);
    let (_, each) = run(&["measure", "sev-es", "--json", "--firmware", &rom, "--cpus", "1-2"]);
    let file = |name: &str, text: String| write(temporary.path(), name, text);
    let policy = "vmpl = [0, 1]\n[tcb.genoa.reported]\nsnp = 23\n".to_owned();
    let crl = std::fs::read_to_string(folder.join("snp/roots/ask_ark_genoa.pem")).unwrap();
    for (path, kind, has) in [
        (corim, "CoRIM (not verified)", "/measurements/measurement/0"),
        (signed, "CoRIM (not verified)", "/measurements/measurement/0"),
        (transcript, "launch transcript", "/transcript/launch_digest"),
        (file("reference.json", format!("\n{reference}")), "reference value", "/value/measurement"),
        (file("sev.json", sev.to_string()), "reference value", "/value/inputs/firmware"),
        (file("each.json", each.to_string()), "reference values", "/values/1/cpus"),
        (file("verdict.json", verdict.to_string()), "verdict (whoever wrote it)", "/verdict/reasons/0/code"),
        (token, "EAT attestation result (not verified)", "/claims/submods"),
        (block, "ID block (not compared with its signature)", "/guest_policy/smt"),
        (auth, "ID authentication (not compared with an ID block)", "/id_key_digest"),
        (file("policy.toml", policy), "policy", "/snp/tcb/genoa"),
        (file("policy.json", format!(r#"{{"rtmr0": ["{}"]}}"#, "00".repeat(48))), "policy", "/tdx/rtmr0"),
        (file("chain.pem", crl), "certificates", "/certificates/1/subject"),
    ] {
        let (code, document) = run(&["inspect", "--json", &path]);
        assert_eq!((code, document["kind"].as_str()), (0, Some(kind)), "{path}");
        assert!(document.pointer(has).is_some(), "{has}: {document:#}");
        assert_eq!(attest(&["inspect", &path]).status.code(), Some(0));
    }
}

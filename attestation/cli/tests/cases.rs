//! Inputs that people gave to programs like this one, and what they should get (`../shared/cases`); and that no input is read
//! without a limit.

mod common;

use std::process::{Command, Stdio};

use common::{attest, cases, codes, run, vectors, write};

const NOW: &str = "2026-11-21T07:00:00Z";

/// Everything on stderr, of a run that must end with this code.
fn complaint(arguments: &[&str], code: i32) -> String {
    let output = attest(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_report_is_taken_out_of_what_people_keep_it_in() {
    let Some(folder) = cases() else { return };
    for (name, layers) in [
        ("F6-azure-hcl-report.bin", &["Azure HCL blob"][..]),
        ("F6-report-0x-hex.txt", &["hexadecimal digits"]),
        ("F6-report-hex-lines.txt", &["hexadecimal digits"]),
        ("F6-report-pem-REPORT.pem", &["PEM armour", "Azure HCL blob"]),
    ] {
        let file = folder.join(name).to_str().unwrap().to_owned();
        let (code, document) = run(&["inspect", "--json", &file]);
        assert_eq!((code, &document["tee"]), (0, &"snp".into()), "{name}");
        assert_eq!(document["envelope"], serde_json::json!(layers), "{name}");
        // No certificate is given, and that is the only thing wrong with it.
        let (code, verdict) = run(&["verify", "snp", "--json", "--at", NOW, "--report", &file]);
        assert_eq!((code, codes(&verdict)), (1, vec!["vek-missing"]), "{name}");
    }
}

#[test]
fn an_envelope_changes_no_verdict() {
    let Some(folder) = vectors("snp") else { return };
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let report = std::fs::read(path("genoa-v3.report.bin")).unwrap();
    let table = std::fs::read(path("genoa-v3.auxblob-certtable.bin")).unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let file = write(temporary.path(), "extended", [report.clone(), table].concat());
    let verify = |file: &str| run(&["verify", "snp", "--json", "--at", NOW, "--report", file]);
    assert_eq!(verify(&file).0, 0, "the table behind the report is used");
    let mut changed = report;
    changed[0x90] ^= 1;
    let table = path("genoa-v3.auxblob-certtable.bin");
    let file = write(temporary.path(), "changed.hex", hex::encode(changed));
    let arguments = ["verify", "snp", "--json", "--at", NOW, "--report", &file, "--cert-table", &table];
    let (code, verdict) = run(&arguments);
    assert_eq!((code, codes(&verdict)), (1, vec!["report-signature"]));
}

#[test]
fn a_policy_that_can_accept_nothing_is_refused_when_it_is_read() {
    let Some(folder) = cases() else { return };
    for (name, field) in [
        ("F7-abi-overflow.toml", "min_abi"),
        ("F7-min-above-max.toml", "min_guest_svn"),
        ("F7-vmpl-256.toml", "vmpl"),
    ] {
        let policy = folder.join(name).to_str().unwrap().to_owned();
        // The evidence is not even looked at.
        let said = complaint(&["verify", "snp", "--report", "/nonexistent", "--policy", &policy], 2);
        assert!(said.contains(field) && !said.contains("nonexistent"), "{name}: {said}");
    }
}

#[test]
fn collateral_is_an_object_whatever_stands_before_it() {
    let (Some(folder), Some(tdx)) = (cases(), vectors("tdx")) else { return };
    let quote = tdx.join("v4-phala-uptodate.quote.bin").to_str().unwrap().to_owned();
    let verdict = |name: &str| {
        let collateral = folder.join(name).to_str().unwrap().to_owned();
        run(&["verify", "tdx", "--json", "--quote", &quote, "--collateral", &collateral, "--at", NOW]).1
    };
    assert!(codes(&verdict("F8-collateral-as-array.json")).contains(&"collateral-malformed"));
    let marked = verdict("F9-collateral-bom.json");
    assert!(!codes(&marked).contains(&"collateral-malformed"), "{marked:#}");
}

#[test]
fn a_wrong_answer_is_said_once() {
    let Some(folder) = cases() else { return };
    let page = folder.join("F2-404.html").to_str().unwrap().to_owned();
    let base = ["collateral", "--tcb-info", &page, "--tcb-info-chain", &page, "--qe-identity", &page];
    let more =
        ["--pck-crl", &page, "--pck-crl-chain", &page, "--root-crl", &page, "--output", "/nonexistent/x"];
    let said = complaint(&[&base[..], &more].concat(), 2);
    assert_eq!(said.matches("expected value").count(), 1, "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn a_byte_order_mark_means_nothing_in_any_text() {
    let Some(folder) = vectors("snp") else { return };
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let temporary = tempfile::tempdir().unwrap();
    let marked = |name: &str, text: &str| write(temporary.path(), name, format!("\u{feff}{text}"));
    let vek = marked("vek.pem", &std::fs::read_to_string(path("turin-v5.vcek.pem")).unwrap());
    let report = path("turin-v5.report.bin");
    for policy in [marked("p.toml", "vmpl = [0]\n"), marked("p.json", "{\"vmpl\": [0]}")] {
        let base = ["verify", "snp", "--json", "--at", NOW, "--report", &report, "--vek", &vek];
        let (code, verdict) = run(&[&base[..], &["--policy", &policy]].concat());
        assert_eq!((code, codes(&verdict)), (0, vec![]), "{policy}");
        assert_eq!(run(&["inspect", "--json", &policy]).1["kind"], "policy");
    }
}

#[test]
fn a_crl_of_another_root_is_not_as_good_as_none() {
    let Some(folder) = vectors("snp") else { return };
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (report, vek) = (path("genoa-v5-siena.report.bin"), path("genoa-v5-siena.vcek.der"));
    let (milan, genoa) = (path("crl/milan-crl6.der"), path("crl/genoa-crl4.der"));
    let temporary = tempfile::tempdir().unwrap();
    let optional = write(temporary.path(), "optional.toml", "revocation = \"optional\"\n");
    let while_current = "2025-06-01T00:00:00Z";
    let verify = |at: &str, more: &[&str]| {
        run(&[&["verify", "snp", "--json", "--at", at, "--report", &report, "--vek", &vek], more].concat()).1
    };
    let open = |verdict: &serde_json::Value| verdict["unchecked"].to_string().contains("revocation");
    let wrong = verify(NOW, &["--crl", &milan]);
    assert_eq!(codes(&wrong), ["crl-inapplicable"]);
    assert_eq!(codes(&verify(NOW, &["--crl", &milan, "--policy", &optional])), [""; 0]);
    let both = verify(NOW, &["--crl", &milan, "--crl", &genoa]);
    assert_eq!((codes(&both), open(&both)), (vec![], true), "a stale one decides nothing");
    // The VCEK is of 2026: a report of then is not authentic, but a current CRL is what is asked about.
    let v3 = path("genoa-v3.report.bin");
    let table = path("genoa-v3.auxblob-certtable.bin");
    let current = run(&[
        "verify",
        "snp",
        "--json",
        "--at",
        while_current,
        "--report",
        &v3,
        "--cert-table",
        &table,
        "--crl",
        &genoa,
    ])
    .1;
    assert_eq!((codes(&current), open(&current)), (vec![], false), "a current one does, asked for or not");
}

#[test]
fn clocks_may_differ_by_a_minute_or_by_what_is_said() {
    let Some(folder) = vectors("snp") else { return };
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (report, vek) = (path("genoa-v5-siena.report.bin"), path("genoa-v5-siena.vcek.der"));
    let (_, inspected) = run(&["inspect", "--json", &vek]);
    let begins = inspected["certificates"][0]["not_before"].as_str().unwrap().to_owned();
    let before = |seconds: u64| {
        let begins: cloister_attestation::x509::UnixTime = begins.parse().unwrap();
        cloister_attestation::x509::UnixTime(begins.0 - seconds).to_string()
    };
    let verify = |at: &str, more: &[&str]| {
        let base = ["verify", "snp", "--json", "--at", at, "--report", &report, "--vek", &vek];
        codes(&run(&[&base[..], more].concat()).1).join(",")
    };
    let temporary = tempfile::tempdir().unwrap();
    let exact = write(temporary.path(), "exact.toml", "clock_tolerance_seconds = 0\n");
    for (seconds, more, expected) in [
        (5, &[][..], ""),
        (60, &[], ""),
        (61, &[], "certificate-not-yet-valid"),
        (5, &["--policy", &exact], "certificate-not-yet-valid"),
        (5, &["--clock-tolerance", "0"], "certificate-not-yet-valid"),
        (300, &["--clock-tolerance", "300", "--policy", &exact], ""),
    ] {
        assert_eq!(verify(&before(seconds), more), expected, "{seconds} s {more:?}");
    }
    let said = complaint(&["verify", "snp", "--report", &report, "--clock-tolerance", "90000"], 2);
    assert!(said.contains("more than a day"), "{said}");
}

#[test]
fn nothing_undecided_is_accepted_from_who_wants_everything_decided() {
    let Some(folder) = vectors("snp") else { return };
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (report, vek) = (path("genoa-v5-siena.report.bin"), path("genoa-v5-siena.vcek.der"));
    let base = ["verify", "snp", "--at", NOW, "--report", &report, "--vek", &vek];
    let output = attest(&base);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text.starts_with("accepted, NOT DECIDED by the policy: measurement, report_data, tcb"), "{text}");
    let (code, verdict) = run(&[&base[..], &["--json", "--decided"]].concat());
    assert_eq!((code, codes(&verdict)), (1, vec!["undecided"]));
    let quiet = attest(&[&base[..], &["--quiet"]].concat());
    assert_eq!((quiet.status.code(), quiet.stdout.len()), (Some(0), 0));
}

#[test]
fn a_file_of_another_kind_is_no_verdict_about_a_guest() {
    let (Some(snp), Some(tdx)) = (vectors("snp"), vectors("tdx")) else { return };
    let path = |folder: &std::path::Path, name: &str| folder.join(name).to_str().unwrap().to_owned();
    let quote = path(&tdx, "v4-phala-uptodate.quote.bin");
    let (report, vek) = (path(&snp, "turin-v5.report.bin"), path(&snp, "turin-v5.vcek.pem"));
    let collateral = path(&tdx, "collateral/90c06f000000-2026-03.json");
    for (arguments, expected) in [
        (&["verify", "snp", "--report", &quote][..], "`verify tdx` takes it"),
        (&["verify", "snp", "--report", &vek], "PEM file"),
        (&["verify", "tdx", "--quote", &report, "--collateral", &collateral], "`verify snp` takes it"),
        (&["verify", "tdx", "--quote", &collateral, "--collateral", &collateral], "JSON document"),
    ] {
        let said = complaint(arguments, 2);
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn no_input_is_read_without_a_limit() {
    let temporary = tempfile::tempdir().unwrap();
    // Sparse: larger than this machine's memory, and no block of disk.
    let huge = temporary.path().join("huge");
    std::fs::File::create(&huge).unwrap().set_len(64 << 30).unwrap();
    let (huge, folder) = (huge.to_str().unwrap(), temporary.path().to_str().unwrap());
    for (file, why) in [(huge, "the most that"), ("/dev/zero", "is a device"), (folder, "is a directory")] {
        for arguments in [
            &["inspect", file][..],
            &["verify", "snp", "--report", file],
            &["verify", "snp", "--report", "/dev/null", "--policy", file],
            &["verify", "snp", "--report", "/dev/null", "--trust-root", file],
            &["verify", "tdx", "--quote", file, "--collateral", file],
            &["measure", "snp", "--firmware", file],
            &["measure", "tdx", "--firmware", file],
            &["explain", "--transcript", file],
        ] {
            let said = complaint(arguments, 2);
            assert!(said.contains(why), "{arguments:?}: {said}");
        }
    }
}

#[test]
fn evidence_may_come_through_a_pipe() {
    let Some(folder) = vectors("snp") else { return };
    let report = std::fs::File::open(folder.join("turin-v5.report.bin")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_cloister-attest"));
    command.args(["inspect", "--json", "-"]).stdin(report).stdout(Stdio::piped());
    assert!(command.spawn().unwrap().wait_with_output().unwrap().status.success());
    let said = complaint(&["verify", "tdx", "--quote", "-", "--collateral", "-"], 2);
    assert!(said.contains("named twice") || said.contains("standard input"), "{said}");
}

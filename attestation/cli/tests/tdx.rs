//! `verify tdx` and `inspect` as scripts use them, on real quotes from `../shared/vectors/tdx`.

mod common;

use std::path::Path;

use common::{codes, json, run, write};
use serde_json::Value;

fn vectors() -> Option<std::path::PathBuf> {
    common::vectors("tdx")
}

/// Verifies files by their names in `folder`; what is given besides is passed on.
fn verify(folder: &Path, quote: &str, collateral: &str, at: &str, more: &[&str]) -> (i32, Value) {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (quote, collateral) = (path(quote), path(collateral));
    let base = ["verify", "tdx", "--json", "--quote", &quote, "--collateral", &collateral, "--at", at];
    run(&[&base[..], more].concat())
}

/// What each row of `expected.json` must be refused for under the default policy, in order.
const VERDICTS: [&[&str]; 12] = [
    &[],
    &["tcb-level"],
    &[],
    &["tcb-level"],
    &[],
    &["tcb-status"],
    &["td-attributes-forbidden"],
    &["td-attributes-required"],
    &[],
    &["tcb-status"],
    &["certificate-not-yet-valid"],
    &["fmspc-mismatch"],
];

#[test]
fn every_row_of_the_vectors_gives_its_verdict() {
    let Some(folder) = vectors() else { return };
    let expected = json(&folder.join("expected.json"));
    let cases = expected["cases"].as_array().unwrap();
    assert_eq!(cases.len(), VERDICTS.len());
    for (case, reasons) in cases.iter().zip(VERDICTS) {
        let text = |key: &str| case[key].as_str().unwrap();
        let name = format!("{} with {}", text("quote"), text("collateral"));
        let (code, verdict) = verify(&folder, text("quote"), text("collateral"), text("at_iso"), &[]);
        assert_eq!(codes(&verdict), reasons, "{name}");
        assert_eq!(code, i32::from(!reasons.is_empty()), "{name}");
        assert_eq!(verdict["claims_version"], 2);
        // Status and advisories as an independent verifier found them.
        let claims = &verdict["claims"];
        if claims.is_object() {
            for end in ["not_before", "not_after"] {
                assert_eq!(claims["collateral"][end], case[end], "{name}");
            }
        }
        let found = format!(
            "OK {} {}",
            claims["tcb"]["status"].as_str().unwrap_or_default(),
            claims["tcb"]["advisories"]
                .as_array()
                .map(|list| { list.iter().map(|id| id.as_str().unwrap()).collect::<Vec<_>>().join(",") })
                .unwrap_or_default()
        );
        match text("dcap_qvl_0_7_0") {
            other if other.starts_with("OK") => assert_eq!(found, other, "{name}"),
            // What it refuses as part of verification is for a policy here.
            "ERR Debug mode is enabled" | "ERR SEPT_VE_DISABLE is not enabled" => {
                assert_eq!(claims["tcb"]["status"], case["recheck"]["platform"], "{name}");
            }
            _ => assert!(claims.is_null(), "{name}"),
        }
    }
}

#[test]
fn what_keeps_a_platform_from_every_level_is_named() {
    let Some(folder) = vectors() else { return };
    let collateral = "collateral/90c06f000000-2026-02-outdated.json";
    let (_, verdict) =
        verify(&folder, "v5-outdated-nolevel.quote.bin", collateral, "2026-03-01T00:00:00Z", &[]);
    let message = verdict["reasons"][0]["message"].as_str().unwrap();
    assert!(message.contains(": SGX component 8 has "), "{message}");
}

#[test]
fn quotes_hold_for_the_time_of_their_collateral_only() {
    let Some(folder) = vectors() else { return };
    let expected = json(&folder.join("expected.json"));
    for (case, _) in
        expected["cases"].as_array().unwrap().iter().zip(VERDICTS).filter(|(_, codes)| codes.is_empty())
    {
        let text = |key: &str| case[key].as_str().unwrap();
        let at = |time: &str| verify(&folder, text("quote"), text("collateral"), time, &[]);
        let limit = |key: &str| match text(key) {
            "tcb" | "qe" => "collateral",
            _ => "crl",
        };
        let name = text("quote");
        assert_eq!(at(text("not_before")).0, 0, "{name}");
        let (code, verdict) = at("2027-11-21T07:00:00Z");
        assert_eq!(code, 1, "{name}");
        assert!(
            codes(&verdict).contains(&"crl-expired") && codes(&verdict).contains(&"collateral-expired"),
            "{name}"
        );
        let (code, verdict) = at("2023-01-01T00:00:00Z");
        assert_eq!(code, 1, "{name}");
        let early = format!("{}-not-yet-valid", limit("not_before_limited_by"));
        assert!(codes(&verdict).contains(&early.as_str()), "{name}: {:?}", codes(&verdict));
    }
}

#[test]
fn an_event_log_is_compared_with_its_quote() {
    let Some(folder) = vectors() else { return };
    let ccel = |name: &str| folder.join("ccel").join(name).to_str().unwrap().to_owned();
    let (right, forged, table) = (
        ccel("cos113.ccel.bin"),
        ccel("cos113-dupe-separator-unpadded.ccel.bin"),
        ccel("cos113.ccel-acpi-table.bin"),
    );
    let cos = |more: &[&str]| {
        let collateral = "collateral/00806f050000-2025-02.json";
        verify(&folder, "v4-cos113.quote.bin", collateral, "2025-02-28T03:44:50Z", more)
    };
    let (code, verdict) = cos(&["--ccel", &right]);
    assert_eq!((code, codes(&verdict)), (0, vec![]));
    let events = verdict["claims"]["event_log"]["events"].as_array().unwrap();
    assert_eq!(events.len(), 43);
    let line = &events[40];
    assert!(line["measured_text"].as_str().unwrap().starts_with("/syslinux/vmlinuz.A init="));
    assert_eq!((&line["rtmr"], &line["log"]["label"]), (&2.into(), &"kernel_cmdline".into()));
    assert_eq!(events.iter().filter(|event| event["separator"] == true).count(), 2);
    // It contradicts itself, and leads elsewhere in two registers: all of it is said.
    let (_, verdict) = cos(&["--ccel", &forged]);
    assert_eq!(codes(&verdict), ["event-log-inconsistent", "event-log-replay", "event-log-replay"]);
    assert_eq!(codes(&cos(&["--ccel", &table]).1), ["event-log-malformed"]);
    let other = "collateral/b0c06f000000-2025-06.json";
    let (_, verdict) =
        verify(&folder, "v4-phala-uptodate.quote.bin", other, "2025-07-04T10:16:31Z", &["--ccel", &right]);
    // Neither guest extended RTMR3.
    assert_eq!(codes(&verdict), ["event-log-replay"; 3]);
    // The same log without its padding, and without its last event.
    let temporary = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(&right).unwrap();
    let unpadded = write(temporary.path(), "unpadded", &bytes[..18101]);
    assert_eq!(cos(&["--ccel", &unpadded]).0, 0);
    let shorter = write(temporary.path(), "shorter", &bytes[..18101 - 66 - 40]);
    assert_eq!(codes(&cos(&["--ccel", &shorter]).1), ["event-log-replay"]);
    // Labels and types are nobody's word: whoever changes them changes nothing that is claimed.
    let changed = |name: &str, from: &[u8], to: &[u8]| {
        let bytes = std::fs::read(ccel(name)).unwrap();
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        write(temporary.path(), "changed", [&bytes[..at], to, &bytes[at + from.len()..]].concat())
    };
    let (from, to) = (b"\x15\0\0\0grub_cmd: defaultA=2\0", b"\x1b\0\0\0kernel_cmdline: defaultA=2\0");
    let relabelled = changed("cos113.ccel.bin", from, to);
    let (code, verdict) = cos(&["--ccel", &relabelled]);
    assert_eq!((code, codes(&verdict)), (0, vec![]));
    let event = &verdict["claims"]["event_log"]["events"][25];
    assert_eq!(
        (&event["measured_text"], &event["log"]["label"]),
        (&"defaultA=2".into(), &"kernel_cmdline".into())
    );
    // The second separator of RTMR0, called an action.
    let separator =
        |kind: u32| [&1u32.to_le_bytes()[..], &kind.to_le_bytes(), &[1, 0, 0, 0, 0x0c, 0]].concat();
    let mut bytes = std::fs::read(&forged).unwrap();
    let places: Vec<_> = (0..bytes.len() - 14).filter(|&at| bytes[at..at + 14] == separator(4)).collect();
    for &at in &places[1..] {
        bytes[at..at + 14].copy_from_slice(&separator(0x8000_0007));
    }
    let disguised = write(temporary.path(), "disguised", bytes);
    assert_eq!(
        codes(&cos(&["--ccel", &disguised]).1),
        ["event-log-inconsistent", "event-log-replay", "event-log-replay"]
    );
    let required = write(temporary.path(), "required.toml", "event_log = \"required\"\n");
    assert_eq!(codes(&cos(&["--policy", &required]).1), ["event-log-missing"]);
}

#[test]
fn a_policy_decides_what_is_acceptable() {
    let Some(folder) = vectors() else { return };
    let temporary = tempfile::tempdir().unwrap();
    let policy = |name: &str, text: &str| write(temporary.path(), name, text);
    let relaunch = policy("relaunch.toml", "[tcb]\naccepted = [\"UpToDate\", \"TDRelaunchAdvised\"]\n");
    let advisory = policy(
        "advisory.toml",
        "[tcb]\naccepted = [\"TDRelaunchAdvised\"]\nrefused_advisories = [\"INTEL-SA-01036\"]\n",
    );
    let number =
        policy("number.toml", "[tcb]\naccepted = [\"TDRelaunchAdvised\"]\nmin_evaluation_number = 19\n");
    let debug = policy("debug.toml", "[td_attributes]\ndebug = \"allowed\"\n");
    let any = policy("padding.toml", "quote_padding = \"none\"\n");
    let (update, later) = ("v5-tdpreserve-update.quote.bin", "collateral/90c06f000000-2026-03.json");
    let (debugged, old) = ("v4-debug.quote.bin", "collateral/50806f000000-2023-06.json");
    let zeros = "00".repeat(64);
    let (phala, its) = ("v4-phala-uptodate.quote.bin", "collateral/b0c06f000000-2025-06.json");
    for (quote, collateral, at, more, expected) in [
        (update, later, "2026-03-31T22:20:07Z", &["--policy", &relaunch[..]][..], &[][..]),
        (update, later, "2026-03-31T22:20:07Z", &["--policy", &advisory], &["tcb-advisory"]),
        (update, later, "2026-03-31T22:20:07Z", &["--policy", &number], &["tcb-evaluation-number"; 2]),
        (debugged, old, "2023-06-28T08:03:58Z", &["--policy", &debug], &[]),
        (phala, its, "2025-07-04T10:16:31Z", &["--policy", &any], &["quote-padding"]),
        (phala, its, "2025-07-04T10:16:31Z", &["--report-data", &zeros], &["report-data"]),
    ] {
        let (code, verdict) = verify(&folder, quote, collateral, at, more);
        assert_eq!(codes(&verdict), expected, "{quote} {more:?}");
        assert_eq!(code, i32::from(!expected.is_empty()), "{quote} {more:?}");
    }
}

/// A private key on P-256, made by OpenSSL for this test.
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg5d2ejyLh47Gz7rZd
NC3kSUpJvPN8X5AYtGsCVl/HM6ahRANCAAQjs7p0xoVd4viuRufTyeQHo63HrURB
C77FwgQzy99FTGhRq7krBRiBMlFJDAWwXsL0s9qDfwYKHj9F+8QKlPUK
-----END PRIVATE KEY-----
";

/// The claims of a token, unverified.
fn token(path: &str) -> Value {
    use base64::Engine;
    let text = std::fs::read_to_string(path).unwrap();
    let payload = text.split('.').nth(1).unwrap();
    let json = base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap();
    serde_json::from_slice(&json).unwrap()
}

#[test]
fn a_token_affirms_nothing_that_a_policy_only_put_up_with() {
    let Some(folder) = vectors() else { return };
    let temporary = tempfile::tempdir().unwrap();
    let path = |name: &str| temporary.path().join(name).to_str().unwrap().to_owned();
    let (key, to) = (write(temporary.path(), "key.pem", KEY), path("token"));
    let ear = |quote: &str, collateral: &str, at: &str, rules: &str, open: &[&str]| {
        let (_, verdict) =
            verify(&folder, quote, collateral, at, &["--policy", &write(temporary.path(), "rules", rules)]);
        let claims = &verdict["claims"];
        // Everything pinned to what it is, but for what is left open.
        let pinned = ["mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mrconfigid"].into_iter();
        let pinned =
            pinned.filter(|name| !open.contains(name)).map(|name| format!("{name} = [{}]\n", claims[name]));
        let policy =
            format!("{}report_data = {}\n{rules}", pinned.collect::<String>(), claims["report_data"]);
        let policy = write(temporary.path(), "policy.toml", policy);
        let more = ["--policy", &policy, "--ear", &to, "--sign-key", &key];
        let (code, verdict) = verify(&folder, quote, collateral, at, &more);
        assert_eq!(code, 0, "{verdict}");
        let appraisal = token(&to)["submods"]["cpu0"].clone();
        let vector = &appraisal["ear_trustworthiness_vector"];
        let claim = |name: &str| vector[name].as_i64().unwrap();
        let values = ["executables", "hardware", "runtime-opaque"].map(claim);
        (appraisal["ear_status"].as_str().unwrap().to_owned(), values)
    };
    let found = |status: &str, values| (status.to_owned(), values);
    let (right, its, at) =
        ("v5-gotdx.quote.bin", "collateral/90c06f000000-2026-03.json", "2026-03-31T22:20:07Z");
    assert_eq!(ear(right, its, at, "", &[]), found("affirming", [3, 2, 2]));
    for open in ["mrtd", "rtmr0", "rtmr1", "rtmr2"] {
        assert_eq!(ear(right, its, at, "", &[open]), found("warning", [0, 2, 2]), "{open}");
    }
    assert_eq!(ear(right, its, at, "", &["rtmr3", "mrconfigid"]), found("affirming", [3, 2, 2]));
    let (debug, rules) = ("v4-debug.quote.bin", "[td_attributes]\ndebug = \"allowed\"\n");
    let old = "collateral/50806f000000-2023-06.json";
    assert_eq!(ear(debug, old, "2023-06-28T08:03:58Z", rules, &[]), found("warning", [3, 2, 32]));
    let (update, rules) = ("v5-tdpreserve-update.quote.bin", "[tcb]\naccepted = [\"TDRelaunchAdvised\"]\n");
    assert_eq!(ear(update, its, at, rules, &[]), found("warning", [3, 32, 2]));
    // The nonce and the end of a token.
    let with = |more: &[&str]| {
        let base = ["--ear", &to, "--sign-key", &key];
        verify(&folder, right, its, at, &[&base[..], more].concat()).0
    };
    let nonce = "0123456789abcdef";
    assert_eq!(with(&["--ear-nonce", nonce, "--ear-lifetime", "60"]), 0);
    let made = token(&to);
    assert_eq!(made["exp"].as_u64().unwrap(), made["iat"].as_u64().unwrap() + 60);
    assert_eq!(made["eat_nonce"], "ASNFZ4mrze8");
    assert_eq!(with(&[]), 0);
    assert!(token(&to)["exp"].is_null() && token(&to)["eat_nonce"].is_null());
    for wrong in [["--ear-nonce", "00"], ["--ear-nonce", "zz"], ["--ear-lifetime", "0"]] {
        assert_eq!(with(&wrong), 2, "{wrong:?}");
    }
    assert_eq!(verify(&folder, right, its, at, &["--ear-nonce", nonce]).0, 2, "without a token");
}

#[test]
fn tampered_quotes_and_collateral_are_refused_for_it() {
    let Some(folder) = vectors() else { return };
    let temporary = tempfile::tempdir().unwrap();
    let (name, collateral, at) =
        ("v5-gotdx.quote.bin", "collateral/90c06f000000-2026-03.json", "2026-03-31T22:20:07Z");
    let quote = std::fs::read(folder.join(name)).unwrap();
    let body = 54;
    let auth = body + 648 + 4;
    for (offset, expected) in [
        (0, "quote-malformed"),
        (12, "qe-vendor"),
        (28, "quote-signature"),
        (body + 136, "quote-signature"),
        (body + 647, "quote-signature"),
        (auth, "quote-signature"),
        (auth + 64, "attestation-key"),
        (auth + 134, "qe-report-signature"),
        (auth + 134 + 384, "qe-report-signature"),
        (auth + 134 + 448 + 2, "attestation-key"),
    ] {
        let mut tampered = quote.clone();
        tampered[offset] ^= 1;
        let path = write(temporary.path(), "tampered", tampered);
        let (code, verdict) = verify(&folder, &path, collateral, at, &[]);
        assert_eq!(code, 1, "{offset}");
        assert!(codes(&verdict).contains(&expected), "{offset}: {:?}", codes(&verdict));
        assert!(verdict["claims"].is_null(), "{offset}");
    }
    let document = std::fs::read_to_string(folder.join(collateral)).unwrap();
    for (from, to, expected) in [
        ("OutOfDate", "UpToDate", "tcb-info-signature"),
        ("\\\"isvprodid\\\":2", "\\\"isvprodid\\\":3", "qe-identity-signature"),
        ("\"tcb_info\"", "\"tcb_inf\"", "collateral-malformed"),
    ] {
        assert!(document.contains(from), "{from}");
        let path = write(temporary.path(), "collateral.json", document.replace(from, to));
        assert_eq!(codes(&verify(&folder, name, &path, at, &[]).1), [expected], "{from}");
    }
    // Written again, it says the same and is no longer what Intel signed.
    let mut value: Value = serde_json::from_str(&document).unwrap();
    let info: Value = serde_json::from_str(value["tcb_info"].as_str().unwrap()).unwrap();
    value["tcb_info"] = serde_json::to_string_pretty(&info).unwrap().into();
    let path = write(temporary.path(), "rewritten.json", value.to_string());
    assert_eq!(codes(&verify(&folder, name, &path, at, &[]).1), ["tcb-info-signature"]);
}

#[test]
fn collateral_is_made_of_what_intels_service_answers() {
    let Some(folder) = vectors() else { return };
    let name = "collateral/90c06f000000-2026-03.json";
    let document = json(&folder.join(name));
    let text = |field: &str| document[field].as_str().unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| write(temporary.path(), name, bytes);
    let answer = |key: &str, field: &str| {
        let signature = text(&format!("{field}_signature"));
        format!("{{\"{key}\":{},\"signature\":\"{signature}\"}}", text(field))
    };
    let headers = |name: &str, field: &str| {
        let chain = text(field).replace(' ', "%20").replace('\n', "%0A").replace('+', "%2B");
        format!("HTTP/1.1 200 OK\r\n{name}: {chain}\r\nContent-Type: application/json\r\n\r\n")
    };
    let tcb_info = file("tcb.json", answer("tcbInfo", "tcb_info").as_bytes());
    let qe_identity = file("qe.json", answer("enclaveIdentity", "qe_identity").as_bytes());
    let tcb_chain = file("tcb.headers", headers("TCB-Info-Issuer-Chain", "tcb_info_issuer_chain").as_bytes());
    let crl_chain =
        file("crl.headers", headers("SGX-PCK-CRL-Issuer-Chain", "pck_crl_issuer_chain").as_bytes());
    let crl = file("pck.crl", &hex::decode(text("pck_crl")).unwrap());
    let root_crl = file("root.crl", text("root_ca_crl").as_bytes());
    let output = temporary.path().join("made.json");
    let output = output.to_str().unwrap();
    let make = |tcb_info: &str, qe_identity: &str, chain: &str, crl: &str| {
        let arguments =
            ["collateral", "--tcb-info", tcb_info, "--qe-identity", qe_identity, "--tcb-info-chain"];
        let more = [
            chain,
            "--pck-crl",
            crl,
            "--pck-crl-chain",
            &crl_chain,
            "--root-crl",
            &root_crl,
            "--output",
            output,
        ];
        run(&[&arguments[..], &more].concat()).0
    };
    assert_eq!(make(&tcb_info, &qe_identity, &tcb_chain, &crl), 0);
    let (code, verdict) = verify(&folder, "v5-gotdx.quote.bin", output, "2026-03-31T22:20:07Z", &[]);
    assert_eq!((code, codes(&verdict)), (0, vec![]));
    // The very texts that Intel signed.
    for field in
        ["tcb_info", "qe_identity", "tcb_info_signature", "qe_identity_signature", "pck_crl", "root_ca_crl"]
    {
        let made = json(output.as_ref())[field].as_str().unwrap().to_lowercase();
        assert_eq!(made, text(field).to_lowercase(), "{field}");
    }
    for (tcb_info, qe_identity, chain, crl) in [
        (&qe_identity, &qe_identity, &tcb_chain, &crl),
        (&tcb_info, &tcb_info, &tcb_chain, &crl),
        (&tcb_info, &qe_identity, &tcb_info, &crl),
        (&tcb_info, &qe_identity, &tcb_chain, &tcb_chain),
    ] {
        assert_eq!(make(tcb_info, qe_identity, chain, crl), 2);
    }
    for (path, kind) in
        [(&tcb_info, "TDX TCB info (not verified)"), (&qe_identity, "TDX QE identity (not verified)")]
    {
        let (code, found) = run(&["inspect", "--json", path]);
        assert_eq!((code, &found["kind"]), (0, &kind.into()));
    }
    let (_, found) = run(&["inspect", "--json", output]);
    assert!(found["tcb_info"]["modules"][0]["levels"][0]["isv_svn"].is_u64(), "{found}");
    assert!(
        found["qe_identity"]["levels"][0]["isv_svn"].is_u64()
            && found["qe_identity"]["attributes_mask"].is_string()
    );
}

#[test]
fn files_that_are_nearly_something_are_named() {
    let Some(folder) = vectors() else { return };
    let temporary = tempfile::tempdir().unwrap();
    let quote = std::fs::read(folder.join("v5-gotdx.quote.bin")).unwrap();
    let digits = write(temporary.path(), "quote.hex", hex::encode(&quote) + "\n");
    let (code, document) = run(&["inspect", "--json", &digits]);
    assert_eq!((code, &document["envelope"][0]), (0, &"hexadecimal digits".into()));
    assert_eq!(document["kind"], "TDX quote (not verified)");
    // What verification reads, inspection does: white space before JSON.
    let name = "collateral/90c06f000000-2026-03.json";
    let spaced = write(
        temporary.path(),
        "spaced.json",
        [b"\r\n\t ".to_vec(), std::fs::read(folder.join(name)).unwrap()].concat(),
    );
    assert_eq!(run(&["inspect", &spaced]).0, 0);
    assert_eq!(verify(&folder, "v5-gotdx.quote.bin", &spaced, "2026-03-31T22:20:07Z", &[]).0, 0);
    let (_, found) = run(&["inspect", "--json", folder.join("v5-gotdx.quote.bin").to_str().unwrap()]);
    assert_eq!(found["pck_chain"][0]["pck"]["sgx_svns"].as_str().map(str::len), Some(32));
}

#[test]
fn an_xfam_is_allowed_as_it_is_printed_and_as_it_lies() {
    let Some(folder) = vectors() else { return };
    let temporary = tempfile::tempdir().unwrap();
    let name = "collateral/90c06f000000-2026-03.json";
    let with = |xfam: &str| {
        let policy = write(temporary.path(), "policy.toml", format!("xfam = [\"{xfam}\"]\n"));
        verify(&folder, "v5-gotdx.quote.bin", name, "2026-03-31T22:20:07Z", &["--policy", &policy])
    };
    let (_, verdict) = with("0x0");
    assert_eq!(codes(&verdict), ["xfam"]);
    let printed = verdict["claims"]["xfam"]["raw"].as_str().unwrap();
    let number = u64::from_str_radix(&printed[2..], 16).unwrap();
    for text in [printed.to_owned(), hex::encode(number.to_le_bytes())] {
        assert_eq!(with(&text).0, 0, "{text}");
    }
    assert_eq!(with(&format!("{number:016x}")).0, 1, "bytes in the other order are another value");
    assert_eq!(with(&printed[2..]).0, 2);
}

#[test]
fn only_the_given_root_is_trusted() {
    let Some(folder) = vectors() else { return };
    let amd = folder.join("../snp/roots/ask_ark_milan.pem");
    let quote = ("v5-gotdx.quote.bin", "collateral/90c06f000000-2026-03.json", "2026-03-31T22:20:07Z");
    assert_eq!(verify(&folder, quote.0, quote.1, quote.2, &["--trust-root", amd.to_str().unwrap()]).0, 2);
    // Intel's own, named, is as good as built in.
    let document = json(&folder.join(quote.1));
    let chain = document["tcb_info_issuer_chain"].as_str().unwrap();
    let root = &chain[chain.rfind("-----BEGIN").unwrap()..];
    let temporary = tempfile::tempdir().unwrap();
    let root = write(temporary.path(), "root.pem", root);
    assert_eq!(verify(&folder, quote.0, quote.1, quote.2, &["--trust-root", &root]).0, 0);
}

#[test]
fn unusable_input_is_told_from_refused_evidence() {
    let temporary = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| write(temporary.path(), name, text);
    let (empty, policy) = (file("empty", ""), file("policy.toml", "debug = \"allowed\"\n"));
    let base = ["verify", "tdx", "--quote", &empty, "--collateral", &empty];
    for (more, code) in [
        (&[][..], 1),
        (&["--policy", &policy], 2),
        (&["--trust-root", &empty], 2),
        (&["--report-data", "00"], 2),
        (&["--at", "now"], 2),
        (&["--ccel", "/nonexistent"], 2),
    ] {
        assert_eq!(run(&[&base[..], more].concat()).0, code, "{more:?}");
    }
    assert_eq!(run(&["verify", "tdx", "--quote", &empty]).0, 2);
    assert_eq!(run(&["verify", "tdx", "--quote", "/nonexistent", "--collateral", &empty]).0, 2);
}

#[test]
fn the_policy_in_the_book_is_one() {
    let book = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/verification-tdx.md");
    let book = std::fs::read_to_string(book).unwrap();
    let (_, policy) = book.split_once("```toml\n").unwrap();
    let (policy, _) = policy.split_once("```").unwrap();
    let policy = policy.replace("<96 digits>", &"00".repeat(48)).replace("<32 digits>", &"00".repeat(16));
    let temporary = tempfile::tempdir().unwrap();
    let (empty, policy) =
        (write(temporary.path(), "empty", ""), write(temporary.path(), "policy.toml", policy));
    assert_eq!(run(&["verify", "tdx", "--quote", &empty, "--collateral", &empty, "--policy", &policy]).0, 1);
}

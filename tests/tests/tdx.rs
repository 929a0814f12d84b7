//! softkvm's TDX machine: what tiny TDs and clients see of it, and what an independent verifier says of its quotes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cloister_tests::td::quote::SOCKET_VARIABLE;
use cloister_tests::tiny::Observed;
use dcap_qvl::QuoteCollateralV3;
use dcap_qvl::verify::{QuoteVerifier, VerifiedReport};

fn softkvm() -> Command {
    let mut path = std::env::current_exe().expect("own path");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    let path = path.join("softkvm");
    let name = path.display();
    assert!(path.exists(), "{name} is missing: run `cargo build -p softkvm` first (xtask test does)");
    Command::new(path)
}

fn td_guests(state: &Path, socket: Option<&Path>) -> BTreeMap<String, Vec<String>> {
    let mut command = softkvm();
    command.arg("--state").arg(state).args(["--tee", "tdx", "--", env!("CARGO_BIN_EXE_td-guests")]);
    if let Some(socket) = socket {
        command.env(SOCKET_VARIABLE, socket);
    }
    let output = command.output().expect("td-guests runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let all = text.lines().map(|line| serde_json::from_str::<Observed>(line).expect("a JSON object a line"));
    all.map(|o| (o.guest, o.events)).collect()
}

/// `td-guests.txt`: a heading per scenario, then its lines. The values are the specifications': the TDX module's statuses
/// and VE_INFO, the GHCI's answers, Linux's errnos.
fn expected() -> Vec<(&'static str, Vec<&'static str>)> {
    let text = include_str!("td-guests.txt");
    text.split("# ")
        .filter(|part| !part.is_empty())
        .filter_map(|part| {
            let mut lines = part.lines();
            Some((lines.next()?, lines.filter(|line| !line.is_empty()).collect()))
        })
        .collect()
}

#[test]
fn tds_and_their_clients_meet_what_the_module_and_linux_specify() {
    let state = tempfile::tempdir().expect("a directory for the emulated platform");
    let mut observed = td_guests(state.path(), None);
    observed.remove("TDREPORT and quote");
    let expected = expected();
    assert_eq!(observed.len(), expected.len(), "{:?}", observed.keys());
    for (scenario, lines) in expected {
        let seen = observed.get(scenario).unwrap_or_else(|| panic!("{scenario:?} did not run"));
        for (i, line) in lines.iter().enumerate() {
            assert_eq!(seen.get(i).map(String::as_str), Some(*line), "{scenario}, line {}", i + 1);
        }
        assert_eq!(seen.len(), lines.len(), "{scenario}: {seen:#?}");
    }
}

/// A running quoting service; ends with the test.
struct Qgs(Child);

impl Drop for Qgs {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An emulated platform with its collateral.
struct Platform {
    state: tempfile::TempDir,
}

impl Platform {
    /// With this model, or the default one.
    fn new(model: Option<&str>) -> Self {
        let state = tempfile::tempdir().expect("a directory for the emulated platform");
        if let Some(model) = model {
            std::fs::write(state.path().join("tdx-platform.json"), model).expect("the model is written");
        }
        Self { state }
    }

    fn quoting_service(&self) -> (Qgs, PathBuf) {
        let socket = self.state.path().join("qgs.socket");
        let child = softkvm()
            .arg("--state")
            .arg(self.state.path())
            .arg("qgs")
            .arg("--socket")
            .arg(&socket)
            .spawn()
            .expect("softkvm qgs starts");
        let started = Instant::now();
        while !socket.exists() {
            assert!(started.elapsed() < Duration::from_secs(60), "no socket at {}", socket.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        (Qgs(child), socket)
    }

    /// What the reporting TD notes: its MRTD and RTMR2 as calculated apart, its quote, refusals.
    fn evidence(&self) -> Vec<String> {
        let (_service, socket) = self.quoting_service();
        td_guests(self.state.path(), Some(&socket)).remove("TDREPORT and quote").expect("the scenario ran")
    }

    /// The root and the collateral. The AMD half of the export needs RSA keys that take their time: only the TDX half is read.
    fn collateral(&self) -> (Vec<u8>, QuoteCollateralV3) {
        let dir = self.state.path().join("export");
        let status = softkvm()
            .arg("--state")
            .arg(self.state.path())
            .args(["export-certs", "--only", "tdx"])
            .arg(&dir)
            .status()
            .expect("softkvm export-certs runs");
        assert!(status.success());
        let json = std::fs::read(dir.join("tdx-collateral.json")).expect("collateral");
        let root = std::fs::read(dir.join("tdx-root.der")).expect("root");
        (root, serde_json::from_slice(&json).expect("collateral in the shape that verifiers take"))
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs()
}

fn noted(lines: &[String], key: &str) -> Vec<u8> {
    let found =
        lines.iter().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("{key}: {lines:#?}"));
    hex::decode(found.trim()).expect("hex")
}

fn verify(root: Vec<u8>, quote: &[u8], collateral: &QuoteCollateralV3) -> Result<VerifiedReport, String> {
    QuoteVerifier::<dcap_qvl::configs::DefaultConfig>::new(root)
        .verify(quote, collateral, now())
        .map_err(|e| format!("{e:#}"))
}

#[test]
fn dcap_qvl_accepts_quotes_under_the_emulated_root_and_refuses_them_under_intels() {
    for (version, model) in [(4, None), (5, Some(r#"{"quote_version":5}"#))] {
        let platform = Platform::new(model);
        let lines = platform.evidence();
        let quote = noted(&lines, "quote ");
        assert_eq!(quote[..2], u16::to_le_bytes(version));
        let (root, collateral) = platform.collateral();
        let report = verify(root.clone(), &quote, &collateral).expect("a genuine quote");
        assert_eq!(report.status, "UpToDate", "version {version}");
        let td = match version {
            4 => *report.report.as_td10().expect("a TD 1.0 report"),
            _ => report.report.as_td15().expect("a TD 1.5 report").base,
        };
        assert_eq!(td.mr_td[..], noted(&lines, "mrtd "));
        assert_eq!(td.rt_mr2[..], noted(&lines, "rtmr2 "));
        assert_eq!((td.mr_config_id, td.mr_owner, td.mr_owner_config), ([0xa1; 48], [0xa2; 48], [0xa3; 48]));
        let error = QuoteVerifier::<dcap_qvl::configs::DefaultConfig>::new_prod()
            .verify(&quote, &collateral, now())
            .err()
            .map(|e| format!("{e:#}"));
        assert!(error.is_some(), "Intel's root must not vouch for this");
        let other = Platform::new(None);
        let (_, foreign) = other.collateral();
        assert!(verify(root, &quote, &foreign).is_err(), "collateral of another root");
        let refusals: Vec<_> =
            lines.iter().filter(|l| l.starts_with("forged") || l.starts_with("short")).collect();
        assert_eq!(refusals.len(), 5);
        assert!(refusals.iter().all(|l| l.ends_with("error 0x12003")), "{refusals:#?}");
    }
}

#[test]
fn only_a_hostile_hosts_kvm_makes_debuggable_tds() {
    let platform = Platform::new(Some(r#"{"kvm_allows_debug":true}"#));
    let observed = td_guests(platform.state.path(), None);
    let lines = &observed["KVM_TDX_* before and after KVM_TDX_INIT_VM"];
    for line in ["attributes 0x10000001 xfam 0x3 calls [0, 3, 0, 0]", "INIT_VM with DEBUG: 0"] {
        assert!(lines.iter().any(|seen| seen == line), "{line}: {lines:#?}");
    }
}

#[test]
fn a_bad_platform_shows_in_what_the_verifier_says() {
    let stale = r#"{"versions":{"sgx":[2,2,2,2,3,1,0,3,0,0,0,0,0,0,0,0],"pcesvn":11,"qe_isvsvn":4},
                    "tee_tcb_svn":[3,1,2,0,0,0,0,0,0,0,0,0,0,0,0,0]}"#;
    let cases = [
        ("older than the TCB info", stale, Ok("OutOfDate")),
        ("its PCK certificate revoked", r#"{"pck_revoked":true}"#, Err("evoked")),
        ("another signer's quoting enclave", r#"{"alien_qe":true}"#, Err("MRSIGNER")),
    ];
    for (what, model, expected) in cases {
        let platform = Platform::new(Some(model));
        let quote = noted(&platform.evidence(), "quote ");
        let (root, collateral) = platform.collateral();
        match (verify(root, &quote, &collateral), expected) {
            (Ok(report), Ok(status)) => {
                assert_eq!(report.status, status, "{what}");
                assert_eq!(report.advisory_ids, ["SOFTKVM-SA-00001"], "{what}");
            }
            (Err(error), Err(word)) => assert!(error.contains(word), "{what}: {error}"),
            (Ok(report), Err(_)) => panic!("{what}: accepted as {}", report.status),
            (Err(error), Ok(_)) => panic!("{what}: {error}"),
        }
    }
}

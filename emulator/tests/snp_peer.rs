//! Reports of the emulated secure processor before the `sev` crate: its layouts, its chain, its verification. It knows AMD's
//! roots and this platform's from the files that `export-certs` writes.

use std::path::Path;

use sev::certs::snp::{Certificate, Chain, Verifiable, builtin, ca};
use sev::firmware::guest::AttestationReport;
use sev::parser::ByteParser;
use softkvm::snp::launch::Launch;
use softkvm::snp::psp::platform::Platform;
use softkvm::snp::psp::report::{self, Signing};

fn certificate(directory: &Path, name: &str) -> Certificate {
    let pem = std::fs::read(directory.join(name)).expect("export-certs wrote it");
    Certificate::from_pem(&pem).expect("a certificate")
}

#[test]
fn every_version_of_a_report_is_accepted_with_the_exported_roots_and_refused_with_amds() {
    let state = tempfile::tempdir().expect("a directory for the platform");
    let mut platform = Platform::open(state.path()).expect("a platform");
    platform.certs.export(state.path()).expect("its certificates");
    let [ark, ask, vek] = ["ark.pem", "ask.pem", "vcek.pem"].map(|name| certificate(state.path(), name));
    let ours = Chain { ca: ca::Chain { ark, ask }, vek: vek.clone() };
    let amds = ca::Chain {
        ark: builtin::genoa::ark().expect("AMD's root"),
        ask: builtin::genoa::ask().expect("AMD's intermediate"),
    };
    let amds = Chain { ca: amds, vek };
    let (mut guest, data) = (Launch::default(), [0x5a; 64]);
    guest.policy = 0x3_0000;
    for version in 2..=5 {
        platform.model.report_version = version;
        let bytes = report::make(&platform, &guest, 0, &data, Signing::Vcek);
        let parsed = AttestationReport::from_bytes(&bytes).expect("a report");
        assert_eq!(parsed.version, version);
        assert_eq!((&parsed.report_data[..], &parsed.chip_id[..]), (&data[..], &platform.chip_id[..]));
        assert_eq!((parsed.reported_tcb.snp, parsed.reported_tcb.microcode), (23, 84));
        assert_eq!(parsed.measurement[..], guest.digest.0[..]);
        (&ours, &parsed).verify().expect("signed by the VCEK, under the exported root");
        assert!((&amds, &parsed).verify().is_err(), "AMD vouches for none of it");
        for byte in [0x50, 0x90, 0x29f, 0x2a0] {
            let mut forged = bytes;
            forged[byte] ^= 1;
            let accepted =
                AttestationReport::from_bytes(&forged).is_ok_and(|forged| (&ours, &forged).verify().is_ok());
            assert!(!accepted, "version {version}, byte {byte:#x}");
        }
    }
}

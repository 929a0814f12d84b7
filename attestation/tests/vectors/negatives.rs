//! What every verifier must refuse of real SEV-SNP evidence (`../shared/vectors/README.md`, "Derived negatives"), one
//! row a negative. The library's tests and those of the program run the same rows.

/// A report and its certificates, as files of `../shared/vectors/snp`; what is done to them; why they are refused then.
pub struct Negative {
    pub name: &'static str,
    pub report: &'static str,
    /// A certificate, or a certificate table.
    pub vek: &'static str,
    pub change: fn(report: &mut Vec<u8>, vek: &mut Vec<u8>),
    pub at: &'static str,
    /// Trusted instead of AMD's roots.
    pub root: Option<&'static str>,
    pub crls: &'static [&'static str],
    /// TOML.
    pub policy: &'static str,
    /// The reasons' codes, each once.
    pub codes: &'static [&'static str],
}

impl Negative {
    /// Its policy, to the second: cases are made at both ends of what holds.
    pub fn policy(&self) -> String {
        format!("clock_tolerance_seconds = 0\n{}", self.policy)
    }

    /// Whether the certificates are in a table.
    pub fn in_table(&self) -> bool {
        self.vek.ends_with("certtable.bin")
    }
}

pub fn sorted(mut codes: Vec<&str>) -> Vec<&str> {
    codes.sort_unstable();
    codes
}

pub const NOW: &str = "2026-11-21T07:00:00Z";
const CRL_REQUIRED: &str = "revocation = \"required\"\n";
const VLEK_POLICY: &str = "vmpl = [1]\nallow_provisional_firmware = true\n";

/// Evidence to which nothing has been done yet.
const fn genuine(name: &'static str, codes: &'static [&'static str]) -> Negative {
    Negative {
        name,
        report: "milan-v3.report.bin",
        vek: "milan-v3.vcek.der",
        change: |_, _| (),
        at: NOW,
        root: None,
        crls: &[],
        policy: "",
        codes,
    }
}

const fn flipped(name: &'static str, change: fn(&mut Vec<u8>, &mut Vec<u8>)) -> Negative {
    Negative { change, ..genuine(name, &["report-signature"]) }
}

const fn signature(name: &'static str, change: fn(&mut Vec<u8>, &mut Vec<u8>)) -> Negative {
    Negative { change, ..genuine(name, &["signature-malformed"]) }
}

const fn at(name: &'static str, at: &'static str, codes: &'static [&'static str]) -> Negative {
    Negative { at, ..genuine(name, codes) }
}

const fn crl(
    name: &'static str,
    at: &'static str,
    crls: &'static [&'static str],
    codes: &'static [&'static str],
) -> Negative {
    Negative { at, crls, policy: CRL_REQUIRED, ..genuine(name, codes) }
}

const fn vlek(name: &'static str) -> Negative {
    Negative {
        report: "milan-v3-vlek.report.bin",
        vek: "milan-v3-vlek.vlek.der",
        at: "2025-06-01T00:00:00Z",
        policy: VLEK_POLICY,
        ..genuine(name, &[])
    }
}

const fn turin(name: &'static str, codes: &'static [&'static str]) -> Negative {
    Negative { report: "turin-v5.report.bin", vek: "turin-v5.vcek.pem", ..genuine(name, codes) }
}

const fn genoa(name: &'static str, codes: &'static [&'static str]) -> Negative {
    Negative { report: "genoa-v3.report.bin", vek: "genoa-v3.auxblob-certtable.bin", ..genuine(name, codes) }
}

/// CRLs whose window has the genuine report in it.
const MILAN_CRL: &str = "crl/milan-crl6.der";
const GENOA_CRL: &str = "crl/genoa-crl4.der";
const IN_WINDOW: &str = "2026-01-01T00:00:00Z";
/// What a key that is another chip's is refused for.
const FOREIGN: &[&str] = &["tcb-mismatch", "chip-id-mismatch", "report-signature"];

const R: usize = 0x2a0;
const S: usize = R + 72;

pub const NEGATIVES: &[Negative] = &[
    // One bit of each field. (That no other bit can be flipped either is tried by the library's tests.)
    Negative { change: |r, _| r[0x000] ^= 8, ..genuine("VERSION", &["report-malformed"]) },
    flipped("GUEST_SVN", |r, _| r[0x004] ^= 1),
    flipped("POLICY", |r, _| r[0x008] ^= 1),
    flipped("FAMILY_ID", |r, _| r[0x010] ^= 1),
    flipped("IMAGE_ID", |r, _| r[0x02f] ^= 0x80),
    flipped("VMPL", |r, _| r[0x030] ^= 1),
    Negative { change: |r, _| r[0x034] ^= 2, ..genuine("SIGNATURE_ALGO", &["report-malformed"]) },
    flipped("CURRENT_TCB", |r, _| r[0x038] ^= 1),
    flipped("PLATFORM_INFO", |r, _| r[0x040] ^= 1),
    flipped("AUTHOR_KEY_EN", |r, _| r[0x048] ^= 1),
    Negative { change: |r, _| r[0x04c] ^= 1, ..genuine("reserved after KEY_INFO", &["report-malformed"]) },
    flipped("REPORT_DATA", |r, _| r[0x050] ^= 1),
    flipped("MEASUREMENT", |r, _| r[0x090] ^= 1),
    flipped("HOST_DATA", |r, _| r[0x0c0] ^= 1),
    flipped("ID_KEY_DIGEST", |r, _| r[0x0e0] ^= 1),
    flipped("AUTHOR_KEY_DIGEST", |r, _| r[0x110] ^= 1),
    flipped("REPORT_ID", |r, _| r[0x140] ^= 1),
    flipped("REPORT_ID_MA", |r, _| r[0x160] ^= 1),
    Negative {
        change: |r, _| r[0x180] ^= 1,
        ..genuine("REPORTED_TCB", &["tcb-mismatch", "report-signature"])
    },
    flipped("CPUID_STEP", |r, _| r[0x18a] ^= 1),
    Negative {
        change: |r, _| r[0x1a0] ^= 1,
        ..genuine("CHIP_ID", &["chip-id-mismatch", "report-signature"])
    },
    flipped("COMMITTED_TCB", |r, _| r[0x1e0] ^= 1),
    flipped("CURRENT_BUILD", |r, _| r[0x1e8] ^= 1),
    flipped("COMMITTED_BUILD", |r, _| r[0x1ec] ^= 1),
    flipped("LAUNCH_TCB", |r, _| r[0x1f0] ^= 1),
    Negative { change: |r, _| r[0x29f] ^= 1, ..genuine("the last signed byte", &["report-malformed"]) },
    // Signatures that are none.
    signature("r is zero", |r, _| r[R..R + 72].fill(0)),
    signature("s is zero", |r, _| r[S..S + 72].fill(0)),
    signature("r is beyond the curve's order", |r, _| r[R..R + 48].fill(0xff)),
    signature("s is beyond the curve's order", |r, _| r[S..S + 48].fill(0xff)),
    signature("byte 48 of r", |r, _| r[R + 48] = 1),
    signature("byte 71 of r", |r, _| r[R + 71] = 1),
    signature("byte 48 of s", |r, _| r[S + 48] = 1),
    signature("byte 71 of s", |r, _| r[S + 71] = 1),
    flipped("another r", |r, _| r[R] ^= 1),
    flipped("another s", |r, _| r[S] ^= 1),
    Negative { change: |r, _| r[0x330] = 1, ..genuine("after the signature", &["report-malformed"]) },
    // Keys of others.
    Negative { vek: "milan-v2.vcek.der", ..genuine("v3 with the key of v2", FOREIGN) },
    Negative { report: "milan-v2.report.bin", ..genuine("v2 with the key of v3", FOREIGN) },
    Negative {
        report: "milan-v2-idblock.report.bin",
        vek: "milan-v2-idblock.vcek-invalid-legacy.der",
        ..genuine("a raw HWID of another chip", FOREIGN_AND_FORGED)
    },
    Negative {
        report: "milan-v2-idblock.report.bin",
        vek: "milan-v2-idblock.vcek-invalid-new.der",
        ..genuine("a DER HWID of another chip", FOREIGN_AND_FORGED)
    },
    // An ASK does not vouch for a VLEK.
    Negative {
        root: Some("roots/ask_ark_milan.pem"),
        codes: &["intermediate-missing"],
        ..vlek("a VLEK under the ASK")
    },
    // Turin's TCB has an FMC, where others have the boot loader.
    Negative { change: |r, _| r[0x180] ^= 1, ..turin("another FMC", &["tcb-mismatch", "report-signature"]) },
    Negative {
        change: |_, vek| name_genoa(vek),
        ..turin("a Turin certificate that says Genoa", &["vek-extension-malformed"])
    },
    Negative {
        vek: "genoa-v5-siena.vcek.der",
        ..turin(
            "a Genoa key for Turin",
            &["product-mismatch", "tcb-mismatch", "chip-id-mismatch", "report-signature"],
        )
    },
    Negative {
        root: Some("roots/ask_ark_milan.pem"),
        ..genoa("only Milan's root is trusted", &["root-untrusted"])
    },
    Negative {
        change: |_, table| forge_ark(table),
        ..genoa("another root in the table", &["root-untrusted"])
    },
    // Times.
    at("a second early", "2025-01-15T21:21:53Z", &["certificate-not-yet-valid"]),
    at("a second late", "2032-01-15T21:21:55Z", &["certificate-expired"]),
    Negative {
        at: "2024-12-10T22:14:20Z",
        codes: &["certificate-not-yet-valid"],
        ..vlek("a VLEK a second early")
    },
    Negative { at: NOW, codes: &["certificate-expired"], ..vlek("a VLEK that has expired") },
    // CRLs, where the policy requires one.
    crl("at nextUpdate", "2026-05-12T00:00:00Z", &[MILAN_CRL], &["crl-expired"]),
    crl("before thisUpdate", "2025-05-06T12:39:05Z", &[MILAN_CRL], &["crl-not-yet-valid"]),
    crl("no CRL", IN_WINDOW, &[], &["crl-missing"]),
    crl("another root's CRL", IN_WINDOW, &[GENOA_CRL], &["crl-missing"]),
    Negative { crls: &[GENOA_CRL], policy: CRL_REQUIRED, ..genoa("Genoa's CRL is old", &["crl-expired"]) },
];

const FOREIGN_AND_FORGED: &[&str] =
    &["tcb-mismatch", "chip-id-mismatch", "report-signature", "certificate-signature"];

/// Makes Turin's certificate (PEM) one that names Genoa, as DER.
fn name_genoa(vek: &mut Vec<u8>) {
    let der = cloister_attestation::x509::certificates(vek).unwrap().pop().unwrap().into_owned();
    let name = der.windows(7).position(|w| w == [0x16, 5, b'T', b'u', b'r', b'i', b'n']).unwrap();
    *vek = der;
    vek[name + 2..name + 7].copy_from_slice(b"Genoa");
}

/// Changes a digit of the self-signed certificate in a table of PEM.
fn forge_ark(table: &mut [u8]) {
    use cloister_attestation::x509::{Certificate, certificates};
    let begin = b"-----BEGIN CERTIFICATE-----";
    let mut starts = (0..table.len()).filter(|&at| table[at..].starts_with(begin));
    let ark = starts.find(|&at| {
        let end = table[at..].windows(9).position(|w| w == b"-----END ").unwrap() + 25;
        let der = certificates(&table[at..at + end]).unwrap().pop().unwrap();
        Certificate::from_der(&der).unwrap().verify_self_signed().is_ok()
    });
    // Far behind the names, in the key.
    let digit = ark.unwrap() + 800;
    table[digit] = if table[digit] == b'A' { b'B' } else { b'A' };
}

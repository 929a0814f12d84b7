//! Evidence from the kernel: configfs-tsm first, which says of which TEE it is; `/dev/sev-guest` where a kernel has only that.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cloister_attestation::{snp, tdx};
use cloister_kbs::{SnpEvidence, TdxEvidence, Tee};

use crate::system;
use crate::tsm::{self, Configfs, Entry};

/// What proves this guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Of which TEE it is.
    pub provider: &'static Provider,
    /// The attestation report or quote, as it was signed.
    pub report: Vec<u8>,
    /// What comes with it: the certificate table of a report, the event log of a TD's firmware; may be empty.
    pub auxiliary: Vec<u8>,
    /// Who gave it.
    pub source: &'static str,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No interface.
    #[error(
        "this kernel offers no evidence: neither {} nor {SEV_GUEST} exists (modules: tsm, sev-guest)",
        tsm::BASE
    )]
    NoInterface,
    /// The interface failed.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another TEE.
    #[error("the kernel's provider is {0:?}; sev_guest and tdx_guest are supported")]
    Provider(String),
    /// Not a report or quote.
    #[error("the kernel's evidence of {provider} cannot be read: {why}")]
    Malformed {
        /// Who gave it.
        provider: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The kernel's interface has none to give.
    #[error(transparent)]
    Tsm(#[from] tsm::Error),
}

const SEV_GUEST: &str = "/dev/sev-guest";
/// The event log of a TD's firmware, as the kernel shows the area that ACPI's CCEL table points to.
const CCEL: &str = "/sys/firmware/acpi/tables/data/CCEL";

/// A configfs-tsm provider, and what is special about its TEE.
#[derive(Debug)]
pub struct Provider {
    /// As the kernel calls it.
    name: &'static str,
    /// As the KBS protocol calls its TEE.
    pub tee: Tee,
    /// MEASUREMENT or MRTD of a report or quote; why it is none.
    measurement: fn(&[u8]) -> Result<[u8; 48], String>,
    /// As the broker takes it.
    primary: fn(&Evidence) -> serde_json::Result<serde_json::Value>,
}

impl PartialEq for Provider {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Provider {}

static SNP: Provider = Provider {
    name: "sev_guest",
    tee: Tee::Snp,
    measurement: |bytes| {
        snp::Report::parse(bytes).map(|report| *report.measurement()).map_err(|e| e.to_string())
    },
    primary: |evidence| {
        serde_json::to_value(SnpEvidence {
            report: BASE64_STANDARD.encode(&evidence.report),
            certificate_table: BASE64_STANDARD.encode(trimmed(&evidence.auxiliary)),
        })
    },
};

static TDX: Provider = Provider {
    name: "tdx_guest",
    tee: Tee::Tdx,
    measurement: |bytes| {
        tdx::Quote::parse(bytes).map(|quote| quote.report().base.mrtd).map_err(|e| e.to_string())
    },
    primary: |evidence| {
        serde_json::to_value(TdxEvidence {
            quote: BASE64_STANDARD.encode(&evidence.report),
            cc_eventlog: BASE64_STANDARD.encode(&evidence.auxiliary),
        })
    },
};

/// The table without the zeros behind it, which the kernel's page granularity leaves.
fn trimmed(table: &[u8]) -> &[u8] {
    let end = table.iter().rposition(|&b| b != 0).map_or(0, |last| last.saturating_add(1));
    table.get(..end).unwrap_or_default()
}

impl Evidence {
    /// Evidence that has at least the form of such.
    fn new(
        provider: &'static Provider,
        report: Vec<u8>,
        auxiliary: Vec<u8>,
        source: &'static str,
    ) -> Result<Self, Error> {
        (provider.measurement)(&report).map_err(|why| Error::Malformed { provider: provider.name, why })?;
        Ok(Self { provider, report, auxiliary, source })
    }

    /// MEASUREMENT or MRTD.
    pub fn measurement(&self) -> [u8; 48] {
        // It was read once, in `new`.
        (self.provider.measurement)(&self.report).unwrap_or([0; 48])
    }

    /// `primary_evidence` of the KBS protocol.
    pub fn primary(&self) -> serde_json::Result<serde_json::Value> {
        (self.provider.primary)(self)
    }

    /// A JSON line for programs.
    pub fn summary(&self) -> String {
        serde_json::json!({
            "tee": self.provider.tee.as_ref(),
            "source": self.source,
            "report_bytes": self.report.len(),
            "auxiliary_bytes": self.auxiliary.len(),
            "measurement": hex::encode(self.measurement()),
        })
        .to_string()
    }
}

/// Which TEE this guest runs in, before it is asked for evidence.
pub fn tee() -> Result<Tee, Error> {
    if Path::new(tsm::BASE).is_dir() {
        return Ok(provider(&Entry::create(&Configfs)?)?.tee);
    }
    if Path::new(SEV_GUEST).exists() { Ok(SNP.tee) } else { Err(Error::NoInterface) }
}

/// A report or quote over `data`.
pub fn get(data: &[u8; 64]) -> Result<Evidence, Error> {
    if Path::new(tsm::BASE).is_dir() {
        from_tsm(data)
    } else if Path::new(SEV_GUEST).exists() {
        let (report, certificate_table) = system::sev_guest_report(SEV_GUEST, data)
            .map_err(|source| Error::Io { path: SEV_GUEST.into(), source })?;
        Evidence::new(&SNP, report, certificate_table, SEV_GUEST)
    } else {
        Err(Error::NoInterface)
    }
}

fn from_tsm(data: &[u8; 64]) -> Result<Evidence, Error> {
    let entry = Entry::create(&Configfs)?;
    let provider = provider(&entry)?;
    let tsm::Blobs { out, aux } = entry.evidence(data)?;
    let auxiliary = match provider.tee {
        // Need not exist: a verifier that needs it says so.
        Tee::Tdx => fs::read(CCEL).unwrap_or_default(),
        _ => aux,
    };
    Evidence::new(provider, out, auxiliary, "configfs-tsm")
}

fn provider(entry: &Entry<'_, Configfs>) -> Result<&'static Provider, Error> {
    let name = entry.provider()?;
    [&SNP, &TDX].into_iter().find(|provider| provider.name == name).ok_or(Error::Provider(name))
}

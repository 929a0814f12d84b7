//! Evidence from the kernel: configfs-tsm first, `/dev/sev-guest` where a kernel has only that.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::system;

/// What proves this guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The attestation report, as the secure processor signed it.
    pub report: Vec<u8>,
    /// The certificate table that came with it; may be empty.
    pub certificate_table: Vec<u8>,
    /// Who gave it.
    pub source: &'static str,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No interface.
    #[error("this kernel offers no evidence: neither {TSM} nor {SEV_GUEST} exists (modules: tsm, sev-guest)")]
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
    #[error("the kernel's provider is {0:?}; only sev_guest is supported")]
    Provider(String),
    /// Not a report.
    #[error("the kernel gave {0} bytes where a report has 1184")]
    Length(usize),
    /// Somebody else used the same entry.
    #[error("the report was overwritten while it was read")]
    Raced,
}

const TSM: &str = "/sys/kernel/config/tsm/report";
const SEV_GUEST: &str = "/dev/sev-guest";
const REPORT_BYTES: usize = 1184;

impl Evidence {
    /// MEASUREMENT, at offset 0x90 (AMD 56860, table "ATTESTATION_REPORT Structure").
    pub fn measurement(&self) -> &[u8] {
        self.report.get(0x90..0xc0).unwrap_or_default()
    }

    /// A JSON line for programs.
    pub fn summary(&self) -> String {
        serde_json::json!({
            "source": self.source,
            "report_bytes": self.report.len(),
            "certificate_table_bytes": self.certificate_table.len(),
            "measurement": hex::encode(self.measurement()),
        })
        .to_string()
    }
}

/// A report over `data`.
pub fn get(data: &[u8; 64]) -> Result<Evidence, Error> {
    let evidence = if Path::new(TSM).is_dir() {
        from_tsm(data)?
    } else if Path::new(SEV_GUEST).exists() {
        let (report, certificate_table) = system::sev_guest_report(SEV_GUEST, data)
            .map_err(|source| Error::Io { path: SEV_GUEST.into(), source })?;
        Evidence { report, certificate_table, source: "/dev/sev-guest" }
    } else {
        return Err(Error::NoInterface);
    };
    if evidence.report.len() != REPORT_BYTES {
        return Err(Error::Length(evidence.report.len()));
    }
    Ok(evidence)
}

/// An entry of configfs-tsm, removed when it is no longer needed (Documentation/ABI/testing/configfs-tsm).
struct Entry(PathBuf);

impl Drop for Entry {
    fn drop(&mut self) {
        // Left behind, it costs the kernel a few bytes.
        let _ = fs::remove_dir(&self.0);
    }
}

impl Entry {
    fn read(&self, attribute: &str) -> Result<Vec<u8>, Error> {
        let path = self.0.join(attribute);
        fs::read(&path).map_err(|source| Error::Io { path, source })
    }

    fn read_text(&self, attribute: &str) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(&self.read(attribute)?).trim().to_owned())
    }
}

fn from_tsm(data: &[u8; 64]) -> Result<Evidence, Error> {
    let path = Path::new(TSM).join(format!("cloister-{}", std::process::id()));
    fs::create_dir(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
    let entry = Entry(path);
    let provider = entry.read_text("provider")?;
    if provider != "sev_guest" {
        return Err(Error::Provider(provider));
    }
    let before = entry.read_text("generation")?;
    let inblob = entry.0.join("inblob");
    fs::write(&inblob, data).map_err(|source| Error::Io { path: inblob, source })?;
    let report = entry.read("outblob")?;
    let certificate_table = entry.read("auxblob").unwrap_or_default();
    // One write happened: ours. Another one would mean that the report is over somebody else's data.
    let (before, after) = (before.parse::<u64>(), entry.read_text("generation")?.parse::<u64>());
    match (before, after) {
        (Ok(before), Ok(after)) if after == before.wrapping_add(1) => {}
        _ => return Err(Error::Raced),
    }
    Ok(Evidence { report, certificate_table, source: "configfs-tsm" })
}

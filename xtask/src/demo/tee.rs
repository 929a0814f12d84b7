//! What differs between the demo's two kinds of guest.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{MEMORY, Parts};

/// Which confidential machine softkvm is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tee {
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

/// CPUID(1).EAX of softkvm's AMD processor.
const CPU_SIGNATURE: &str = "00a10f11";

impl Tee {
    /// Its name on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Snp => "snp",
            Self::Tdx => "tdx",
        }
    }

    /// The kernel line that says that it is active.
    pub fn active(self) -> &'static str {
        match self {
            Self::Snp => "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP",
            Self::Tdx => "Memory Encryption Features active: Intel TDX",
        }
    }

    /// `cloister-attest measure` of this TEE, for as many CPUs.
    pub fn measure(self, tool: &mut Command, cpus: u32) {
        tool.args(["measure", self.name(), "--json", "--cpus", &cpus.to_string()]);
        match self {
            Self::Snp => tool.args(["--cpu-sig", CPU_SIGNATURE]),
            Self::Tdx => tool.args(["--memory", MEMORY]),
        };
    }

    /// The measurement in a reference value.
    pub fn measurement(self, reference: &Value) -> Result<String> {
        let key = match self {
            Self::Snp => "measurement",
            Self::Tdx => "mrtd",
        };
        Ok(reference[key].as_str().with_context(|| format!("no {key} in the reference value"))?.to_owned())
    }

    /// The broker's `[trust]` and evidence policy for this TEE: certificates of `roots`, the policy in `dir`.
    pub fn trust(self, roots: &Path, dir: &Path) -> Result<String> {
        let (file, policy, key) = match self {
            Self::Snp => ("evidence.toml", include_str!("evidence.toml"), "evidence"),
            Self::Tdx => ("evidence-tdx.toml", include_str!("evidence-tdx.toml"), "evidence_tdx"),
        };
        fs::write(dir.join(file), policy)?;
        let trust = match self {
            Self::Snp => {
                format!(
                    "[trust]\nroots = [{:?}]\ncrls = [{:?}]\n",
                    roots.join("ark.pem"),
                    roots.join("crl.der")
                )
            }
            Self::Tdx => format!(
                "[trust.tdx]\nroots = [{:?}]\ncollateral = [{:?}]\n",
                roots.join("tdx-root.pem"),
                roots.join("tdx-collateral.json")
            ),
        };
        Ok(format!("{trust}\n[policy]\n{key} = {file:?}\n"))
    }
}

/// A quote generation service of the emulated platform. SNP guests need none: their secure processor signs.
pub struct QuoteService {
    child: Child,
    /// Where it listens.
    pub socket: PathBuf,
}

impl QuoteService {
    /// Starts one, if this TEE has quotes.
    pub fn start(tee: Tee, parts: &Parts, state: &Path, socket: PathBuf) -> Result<Option<Self>> {
        if tee == Tee::Snp {
            return Ok(None);
        }
        let mut qgs = parts.tool("softkvm");
        qgs.arg("--state").arg(state).arg("qgs").arg("--socket").arg(&socket).stdin(Stdio::null());
        let mut service = Self { child: qgs.spawn().context("softkvm qgs")?, socket };
        service.wait_until_ready()?;
        Ok(Some(service))
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            if UnixStream::connect(&self.socket).and_then(|mut stream| stream.flush()).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("softkvm qgs ended ({status})");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("softkvm qgs does not listen on {}", self.socket.display())
    }
}

impl Drop for QuoteService {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

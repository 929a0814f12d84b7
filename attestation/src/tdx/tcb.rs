//! TCB levels: what Intel says about a platform, its TDX module and its quoting enclave at the versions that they
//! have (Intel TDX DCAP, "TCB evaluation"; PCS API version 4, "Get TDX TCB Info", steps).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::documents::{EnclaveLevel, ModuleSigner, QeIdentity, TcbInfo};
use super::quote::{EnclaveReport, TdReport};
use crate::x509::UnixTime;

/// A status by Intel's name. Only the first seven are in documents; the others follow from two of them.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum TcbStatus {
    UpToDate,
    SWHardeningNeeded,
    ConfigurationNeeded,
    ConfigurationAndSWHardeningNeeded,
    OutOfDate,
    OutOfDateConfigurationNeeded,
    Revoked,
    /// The TD was launched when the TCB was out of date; it has been updated under the TD since.
    TDRelaunchAdvised,
    TDRelaunchAdvisedConfigurationNeeded,
}

impl fmt::Display for TcbStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a status says, one thing at a time, so that statuses can be merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Flaws {
    revoked: bool,
    out_of_date: bool,
    configuration: bool,
    sw_hardening: bool,
}

impl Flaws {
    fn of(status: TcbStatus) -> Self {
        use TcbStatus::*;
        Self {
            revoked: status == Revoked,
            out_of_date: matches!(status, OutOfDate | OutOfDateConfigurationNeeded),
            configuration: matches!(
                status,
                ConfigurationNeeded
                    | ConfigurationAndSWHardeningNeeded
                    | OutOfDateConfigurationNeeded
                    | TDRelaunchAdvisedConfigurationNeeded
            ),
            sw_hardening: matches!(status, SWHardeningNeeded | ConfigurationAndSWHardeningNeeded),
        }
    }

    /// The status of something that has both.
    fn merged(self, other: Self) -> Self {
        Self {
            revoked: self.revoked || other.revoked,
            out_of_date: self.out_of_date || other.out_of_date,
            configuration: self.configuration || other.configuration,
            sw_hardening: self.sw_hardening || other.sw_hardening,
        }
    }

    fn status(self) -> TcbStatus {
        match self {
            Self { revoked: true, .. } => TcbStatus::Revoked,
            Self { out_of_date: true, configuration: true, .. } => TcbStatus::OutOfDateConfigurationNeeded,
            Self { out_of_date: true, .. } => TcbStatus::OutOfDate,
            Self { configuration: true, sw_hardening: true, .. } => {
                TcbStatus::ConfigurationAndSWHardeningNeeded
            }
            Self { configuration: true, .. } => TcbStatus::ConfigurationNeeded,
            Self { sw_hardening: true, .. } => TcbStatus::SWHardeningNeeded,
            Self { .. } => TcbStatus::UpToDate,
        }
    }
}

impl TcbStatus {
    /// The status of something that has parts of both statuses.
    pub fn merged(self, other: Self) -> Self {
        Flaws::of(self).merged(Flaws::of(other)).status()
    }

    /// Whether there is something newer that mends something.
    pub fn is_out_of_date(self) -> bool {
        Flaws::of(self).out_of_date
    }

    /// What it would be if nothing newer had been published.
    pub fn before_out_of_date(self) -> Self {
        Flaws { out_of_date: false, ..Flaws::of(self) }.status()
    }

    /// The status of a TD that was launched under `self` and runs under `current`.
    pub fn relaunch(self, current: Self) -> Self {
        let (launch, now) = (Flaws::of(self), Flaws::of(current));
        let mended = launch.out_of_date && !now.out_of_date;
        match launch.merged(now) {
            all if all.revoked || !mended => all.status(),
            all if all.configuration => Self::TDRelaunchAdvisedConfigurationNeeded,
            _ => Self::TDRelaunchAdvised,
        }
    }

    /// Reads a status that a document may have.
    pub(super) fn documented<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Self::deserialize(deserializer)? {
            Self::TDRelaunchAdvised | Self::TDRelaunchAdvisedConfigurationNeeded => {
                Err(D::Error::custom("a relaunch is not a level's status"))
            }
            status => Ok(status),
        }
    }
}

/// A level that something reaches.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Level {
    /// What Intel says about it.
    pub status: TcbStatus,
    /// When it was the newest.
    pub date: UnixTime,
    /// What is known to be wrong with it.
    pub advisories: Vec<String>,
}

impl From<&EnclaveLevel> for Level {
    fn from(level: &EnclaveLevel) -> Self {
        Self { status: level.tcb_status, date: level.tcb_date, advisories: level.advisory_ids.clone() }
    }
}

/// Everything that Intel says about what a quote came from.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TcbVerdict {
    /// All of it in one status.
    pub status: TcbStatus,
    /// The oldest date of the levels that the TD was launched at.
    pub date: UnixTime,
    /// What is known to be wrong with those, each once.
    pub advisories: Vec<String>,
    /// The platform when the TD was launched, without the module.
    pub platform: Level,
    /// The TDX module when the TD was launched; `None` for those whose level is the platform's.
    pub module: Option<Level>,
    /// The quoting enclave.
    pub qe: Level,
    /// Platform, module and quoting enclave now, in one, where the report tells (TDX 1.5).
    pub current: Option<Level>,
}

/// The SVNs of a platform's parts, from its PCK certificate.
#[derive(Clone, Copy, Debug)]
pub struct PlatformSvns {
    /// Of the SGX components.
    pub sgx: [u8; 16],
    /// Of the provisioning certification enclave.
    pub pce: u16,
}

/// Why something has no level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// No level is as low as the platform.
    #[error("the platform is below every TCB level of its model ({svns})")]
    Platform {
        /// Which of its two TEE_TCB_SVNs.
        svns: &'static str,
    },
    /// A module of a major version that Intel does not list.
    #[error("there is no identity for TDX modules of major version {major} ({svns})")]
    UnknownModule {
        /// The version.
        major: u8,
        /// Which of its two TEE_TCB_SVNs.
        svns: &'static str,
    },
    /// No level is as low as the module.
    #[error("the TDX module {major}.{minor} is below every TCB level of its major version ({svns})")]
    Module {
        /// The major version.
        major: u8,
        /// The ISVSVN.
        minor: u8,
        /// Which of its two TEE_TCB_SVNs.
        svns: &'static str,
    },
    /// No level is as low as the quoting enclave.
    #[error("the quoting enclave's ISVSVN {0} is below every TCB level")]
    Qe(u16),
}

const LAUNCH: &str = "TEE_TCB_SVN";
const CURRENT: &str = "TEE_TCB_SVN2";

/// The part of TCB info that modules of this TEE_TCB_SVN are under: those of a major version above zero have
/// identities of their own.
fn module_identity<'a>(
    info: &'a TcbInfo,
    tee_tcb_svn: &[u8; 16],
    svns: &'static str,
) -> Result<Option<&'a super::documents::ModuleIdentity>, LevelError> {
    let [_, major, ..] = *tee_tcb_svn;
    if major == 0 {
        return Ok(None);
    }
    let id = format!("TDX_{major:02X}");
    let found = info.tdx_module_identities.iter().find(|identity| identity.id.eq_ignore_ascii_case(&id));
    found.map(Some).ok_or(LevelError::UnknownModule { major, svns })
}

/// Who must have signed the module that launched the TD.
pub(super) fn module_signer(info: &TcbInfo, report: &TdReport) -> Result<ModuleSigner, LevelError> {
    let identity = module_identity(info, &report.base.tee_tcb_svn, LAUNCH)?;
    Ok(identity.map_or_else(|| info.tdx_module.clone(), |identity| identity.signer()))
}

/// Platform and module at a TEE_TCB_SVN.
fn platform_and_module(
    info: &TcbInfo,
    svns: &PlatformSvns,
    tee_tcb_svn: &[u8; 16],
    name: &'static str,
) -> Result<(Level, Option<Level>), LevelError> {
    let reaches = |least: [u8; 16], own: &[u8; 16], skip: usize| {
        own.iter().zip(least).skip(skip).all(|(own, least)| *own >= least)
    };
    let [minor, major, ..] = *tee_tcb_svn;
    // The first two components are the module's, which then has levels of its own.
    let skip = if major > 0 { 2 } else { 0 };
    let platform = info.tcb_levels.iter().find(|level| {
        reaches(level.tcb.sgx(), &svns.sgx, 0)
            && svns.pce >= level.tcb.pcesvn
            && reaches(level.tcb.tdx(), tee_tcb_svn, skip)
    });
    let platform = platform.ok_or(LevelError::Platform { svns: name })?;
    let platform = Level {
        status: platform.tcb_status,
        date: platform.tcb_date,
        advisories: platform.advisory_ids.clone(),
    };
    let Some(identity) = module_identity(info, tee_tcb_svn, name)? else { return Ok((platform, None)) };
    let module = enclave_level(&identity.tcb_levels, u16::from(minor));
    let module = module.ok_or(LevelError::Module { major, minor, svns: name })?;
    Ok((platform, Some(module)))
}

/// The highest level that an ISVSVN reaches.
fn enclave_level(levels: &[EnclaveLevel], isv_svn: u16) -> Option<Level> {
    let reached = levels.iter().filter(|level| level.tcb.isvsvn <= isv_svn);
    reached.max_by_key(|level| level.tcb.isvsvn).map(Level::from)
}

/// Judges everything that a quote came from.
pub(super) fn evaluate(
    info: &TcbInfo,
    identity: &QeIdentity,
    svns: &PlatformSvns,
    report: &TdReport,
    qe: &EnclaveReport,
) -> Result<TcbVerdict, LevelError> {
    let qe = enclave_level(&identity.tcb_levels, qe.isv_svn()).ok_or(LevelError::Qe(qe.isv_svn()))?;
    let (platform, module) = platform_and_module(info, svns, &report.base.tee_tcb_svn, LAUNCH)?;
    let launch = merged([&platform, &qe].into_iter().chain(&module));
    let current = match &report.v15 {
        None => None,
        Some(v15) => {
            let (platform, module) = platform_and_module(info, svns, &v15.tee_tcb_svn2, CURRENT)?;
            Some(merged([&platform, &qe].into_iter().chain(&module)))
        }
    };
    Ok(TcbVerdict {
        status: current.as_ref().map_or(launch.status, |current| launch.status.relaunch(current.status)),
        date: launch.date,
        advisories: launch.advisories,
        platform,
        module,
        qe,
        current,
    })
}

/// All flaws, the oldest date, all advisories once.
fn merged<'a>(levels: impl Iterator<Item = &'a Level>) -> Level {
    let newest = UnixTime(u64::MAX);
    let mut all = Level { status: TcbStatus::UpToDate, date: newest, advisories: Vec::new() };
    for level in levels {
        all.status = all.status.merged(level.status);
        all.date = all.date.min(level.date);
        for advisory in &level.advisories {
            if !all.advisories.contains(advisory) {
                all.advisories.push(advisory.clone());
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::TcbStatus::{self, *};

    const IN_DOCUMENTS: [TcbStatus; 7] = [
        UpToDate,
        SWHardeningNeeded,
        ConfigurationNeeded,
        ConfigurationAndSWHardeningNeeded,
        OutOfDate,
        OutOfDateConfigurationNeeded,
        Revoked,
    ];

    #[test]
    fn merging_never_forgets_a_flaw() {
        for a in IN_DOCUMENTS {
            assert_eq!(a.merged(a), a);
            assert_eq!(a.merged(UpToDate), a);
            assert_eq!(a.merged(Revoked), Revoked);
            for b in IN_DOCUMENTS {
                assert_eq!(a.merged(b), b.merged(a));
            }
        }
        for (a, b, expected) in [
            (SWHardeningNeeded, OutOfDate, OutOfDate),
            (ConfigurationNeeded, OutOfDate, OutOfDateConfigurationNeeded),
            (ConfigurationAndSWHardeningNeeded, OutOfDate, OutOfDateConfigurationNeeded),
            (SWHardeningNeeded, ConfigurationNeeded, ConfigurationAndSWHardeningNeeded),
        ] {
            assert_eq!(a.merged(b), expected, "{a} {b}");
        }
    }

    #[test]
    fn a_relaunch_is_advised_where_only_the_launch_was_out_of_date() {
        for (launch, current, expected) in [
            (UpToDate, UpToDate, UpToDate),
            (UpToDate, OutOfDate, OutOfDate),
            (UpToDate, SWHardeningNeeded, SWHardeningNeeded),
            (OutOfDate, OutOfDate, OutOfDate),
            (OutOfDate, UpToDate, TDRelaunchAdvised),
            (OutOfDate, SWHardeningNeeded, TDRelaunchAdvised),
            (OutOfDate, ConfigurationNeeded, TDRelaunchAdvisedConfigurationNeeded),
            (OutOfDateConfigurationNeeded, UpToDate, TDRelaunchAdvisedConfigurationNeeded),
            (OutOfDateConfigurationNeeded, OutOfDate, OutOfDateConfigurationNeeded),
            (ConfigurationNeeded, OutOfDate, OutOfDateConfigurationNeeded),
            (Revoked, UpToDate, Revoked),
            (OutOfDate, Revoked, Revoked),
            (UpToDate, Revoked, Revoked),
        ] {
            assert_eq!(launch.relaunch(current), expected, "{launch} {current}");
        }
    }
}

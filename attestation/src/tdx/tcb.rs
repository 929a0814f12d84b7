//! TCB levels: what Intel says about a platform, its TDX module and its quoting enclave at the versions that they
//! have (Intel TDX DCAP, "TCB evaluation"; PCS API version 4, "Get TDX TCB Info", steps).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::documents::{EnclaveLevel, ModuleSigner, PlatformLevel, QeIdentity, TcbInfo};
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
    /// When it was the newest. Of several in one: the oldest date of those that are out of date, or, where none is, of all.
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
    /// Since when something newer has been published: the oldest date of what is out of date, at launch or now. Where
    /// nothing is, the oldest date of the levels that the TD was launched at.
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

/// A part of a platform that has a security version of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// An SGX component, 1 to 16, as in the PCK certificate.
    Sgx(usize),
    /// The provisioning certification enclave.
    PceSvn,
    /// A byte, 0 to 15, of one of the two TEE_TCB_SVNs.
    Tdx(&'static str, usize),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sgx(number) => write!(f, "SGX component {number}"),
            Self::PceSvn => f.write_str("PCESVN"),
            Self::Tdx(name, index) => write!(f, "{name}[{index}]"),
        }
    }
}

/// What keeps a platform from a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// Which part.
    pub part: Part,
    /// Its version.
    pub has: u16,
    /// The level's.
    pub needs: u16,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { part, has, needs } = self;
        write!(f, "{part} has {has}, needs {needs}")
    }
}

/// A level that a platform does not reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissedLevel {
    /// What Intel says about it.
    pub status: TcbStatus,
    /// Its date.
    pub date: UnixTime,
    /// The first part that is too old for it.
    pub first: Shortfall,
    /// How many more are.
    pub more: usize,
}

impl fmt::Display for MissedLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, date, first, more } = self;
        write!(f, "the closest, {status} of {date}: {first}")?;
        if *more > 0 { write!(f, ", and {more} more") } else { Ok(()) }
    }
}

/// Why something has no level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// No level is as low as the platform.
    #[error("the platform is below every TCB level of its model; {closest}")]
    Platform {
        /// The one from which the fewest parts keep it.
        closest: MissedLevel,
    },
    /// Nothing can be reached.
    #[error("the TCB info has no TCB levels for platforms")]
    NoLevels,
    /// A module of a major version that Intel does not list.
    #[error("there is no identity for TDX modules of major version {major} ({svns})")]
    UnknownModule {
        /// The version.
        major: u8,
        /// Which of its two TEE_TCB_SVNs.
        svns: &'static str,
    },
    /// No level is as low as the module.
    #[error(
        "the TDX module {major}.{minor} is below every TCB level of its major version ({svns}); the lowest is {}",
        lowest_level(*.lowest)
    )]
    Module {
        /// The major version.
        major: u8,
        /// The ISVSVN.
        minor: u8,
        /// Which of its two TEE_TCB_SVNs.
        svns: &'static str,
        /// The lowest level's ISVSVN, if there are levels.
        lowest: Option<u16>,
    },
    /// No level is as low as the quoting enclave.
    #[error("the quoting enclave's ISVSVN {isv_svn} is below every TCB level; the lowest is {}", lowest_level(*.lowest))]
    Qe {
        /// Its version.
        isv_svn: u16,
        /// The lowest level's, if there are levels.
        lowest: Option<u16>,
    },
}

fn lowest_level(level: Option<u16>) -> String {
    level.map_or_else(|| String::from("none"), |svn| format!("{svn}"))
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

/// What a platform has, as levels are compared with it.
struct Svns<'a> {
    sgx: &'a [u8; 16],
    pce: u16,
    tdx: &'a [u8; 16],
    /// Which of the two TEE_TCB_SVNs that is.
    tdx_name: &'static str,
    /// The first of its bytes that counts.
    tdx_from: usize,
}

impl Svns<'_> {
    /// The parts that are too old for a level, in Intel's order.
    fn shortfalls(&self, level: &PlatformLevel) -> impl Iterator<Item = Shortfall> {
        let sgx = (1..).zip(self.sgx.iter().zip(level.tcb.sgx()));
        let sgx = sgx.map(|(number, (has, needs))| (Part::Sgx(number), u16::from(*has), u16::from(needs)));
        let tdx = (0..).zip(self.tdx.iter().zip(level.tcb.tdx())).skip(self.tdx_from);
        let name = self.tdx_name;
        let tdx = tdx.map(move |(at, (has, needs))| (Part::Tdx(name, at), u16::from(*has), u16::from(needs)));
        let parts = sgx.chain([(Part::PceSvn, self.pce, level.tcb.pcesvn)]).chain(tdx);
        parts.filter(|(_, has, needs)| has < needs).map(|(part, has, needs)| Shortfall { part, has, needs })
    }

    /// Why none of these levels is reached: the one from which the fewest parts keep the platform, the lowest of them.
    fn unreached(&self, levels: &[PlatformLevel]) -> LevelError {
        let missed = levels.iter().rev().filter_map(|level| {
            let mut shortfalls = self.shortfalls(level);
            let (first, more) = (shortfalls.next()?, shortfalls.count());
            Some(MissedLevel { status: level.tcb_status, date: level.tcb_date, first, more })
        });
        let closest = missed.min_by_key(|missed| missed.more);
        closest.map_or(LevelError::NoLevels, |closest| LevelError::Platform { closest })
    }
}

/// Platform and module at a TEE_TCB_SVN.
fn platform_and_module(
    info: &TcbInfo,
    svns: &PlatformSvns,
    tee_tcb_svn: &[u8; 16],
    name: &'static str,
) -> Result<(Level, Option<Level>), LevelError> {
    let [minor, major, ..] = *tee_tcb_svn;
    // The first two components are the module's, which then has levels of its own.
    let skip = if major > 0 { 2 } else { 0 };
    let own = Svns { sgx: &svns.sgx, pce: svns.pce, tdx: tee_tcb_svn, tdx_name: name, tdx_from: skip };
    let platform = info.tcb_levels.iter().find(|level| own.shortfalls(level).next().is_none());
    let platform = platform.ok_or_else(|| own.unreached(&info.tcb_levels))?;
    let platform = Level {
        status: platform.tcb_status,
        date: platform.tcb_date,
        advisories: platform.advisory_ids.clone(),
    };
    let Some(identity) = module_identity(info, tee_tcb_svn, name)? else { return Ok((platform, None)) };
    let module = enclave_level(&identity.tcb_levels, u16::from(minor));
    let lowest = lowest_svn(&identity.tcb_levels);
    let module = module.ok_or(LevelError::Module { major, minor, svns: name, lowest })?;
    Ok((platform, Some(module)))
}

/// The highest level that an ISVSVN reaches.
fn enclave_level(levels: &[EnclaveLevel], isv_svn: u16) -> Option<Level> {
    let reached = levels.iter().filter(|level| level.tcb.isvsvn <= isv_svn);
    reached.max_by_key(|level| level.tcb.isvsvn).map(Level::from)
}

/// The ISVSVN of the lowest level.
fn lowest_svn(levels: &[EnclaveLevel]) -> Option<u16> {
    levels.iter().map(|level| level.tcb.isvsvn).min()
}

/// Judges everything that a quote came from.
pub(super) fn evaluate(
    info: &TcbInfo,
    identity: &QeIdentity,
    svns: &PlatformSvns,
    report: &TdReport,
    qe: &EnclaveReport,
) -> Result<TcbVerdict, LevelError> {
    let (levels, isv_svn) = (&identity.tcb_levels, qe.isv_svn());
    let unreached = || LevelError::Qe { isv_svn, lowest: lowest_svn(levels) };
    let qe = enclave_level(levels, isv_svn).ok_or_else(unreached)?;
    let (platform, module) = platform_and_module(info, svns, &report.base.tee_tcb_svn, LAUNCH)?;
    let launch = merged([&platform, &qe].into_iter().chain(&module));
    let current = match &report.v15 {
        None => None,
        Some(v15) => {
            let (platform, module) = platform_and_module(info, svns, &v15.tee_tcb_svn2, CURRENT)?;
            Some(merged([&platform, &qe].into_iter().chain(&module)))
        }
    };
    let out_of_date = [Some(&launch), current.as_ref()].into_iter().flatten();
    let out_of_date = out_of_date.filter(|level| level.status.is_out_of_date()).map(|level| level.date);
    Ok(TcbVerdict {
        date: out_of_date.min().unwrap_or(launch.date),
        status: current.as_ref().map_or(launch.status, |current| launch.status.relaunch(current.status)),
        advisories: launch.advisories,
        platform,
        module,
        qe,
        current,
    })
}

/// All flaws, all advisories once, and the oldest date of those that are out of date, or of all where none is: from that day
/// on there was something newer.
fn merged<'a>(levels: impl Iterator<Item = &'a Level> + Clone) -> Level {
    let oldest = |levels: &mut dyn Iterator<Item = &'a Level>| levels.map(|level| level.date).min();
    let date = oldest(&mut levels.clone().filter(|level| level.status.is_out_of_date()))
        .or_else(|| oldest(&mut levels.clone()))
        .unwrap_or(UnixTime(u64::MAX));
    let mut all = Level { status: TcbStatus::UpToDate, date, advisories: Vec::new() };
    for level in levels {
        all.status = all.status.merged(level.status);
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
    use super::TcbStatus::*;
    use super::*;

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
    fn the_date_is_since_when_something_newer_is_out() {
        let level = |status, date| Level { status, date: UnixTime(date), advisories: Vec::new() };
        for (levels, expected) in [
            (vec![level(UpToDate, 7), level(UpToDate, 5)], 5),
            (vec![level(UpToDate, 1), level(OutOfDate, 7)], 7),
            (vec![level(OutOfDate, 7), level(UpToDate, 1), level(OutOfDateConfigurationNeeded, 3)], 3),
            (vec![level(SWHardeningNeeded, 2), level(OutOfDate, 9)], 9),
        ] {
            assert_eq!(merged(levels.iter()).date, UnixTime(expected), "{levels:?}");
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

//! What a relying party accepts: one struct, read from TOML or JSON through serde.
//!
//! [`Policy::default`] is strict about how a TD is protected and says nothing about what runs in it: a TD that the
//! host may debug, profile or migrate, whose kernel the host may surprise with #VE, with service TDs bound to it
//! or attributes that nobody here knows, on a TCB that is not up to date, is refused. Which MRTD, RTMRs and
//! report data are right only the relying party knows. [`Policy::unchecked`] names what it left open.
//!
//! ```toml
//! mrtd = ["1f0c…"]                 # allow-lists, 48 bytes each
//! rtmr1 = ["77a0…"]
//! report_data = "00ff…"            # exactly these 64 bytes
//! event_log = "required"
//!
//! [td_attributes]                  # each bit: "forbidden", "allowed" or "required"
//! perfmon = "forbidden"
//!
//! [tcb]
//! accepted = ["UpToDate", "SWHardeningNeeded"]
//! refused_advisories = ["INTEL-SA-01036"]
//! min_evaluation_number = 18
//! out_of_date_grace_days = 30
//! ```

mod check;

use alloc::string::String;
use alloc::vec::Vec;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::bits::TdAttributes;
use super::event_log::EventLogQuirk;
use super::tcb::TcbStatus;
use crate::snp::{BitRule, Hex, bit_rules};
use crate::x509::Moment;

bit_rules! {
    /// Rules for ATTRIBUTES, which the TD was created with.
    TdAttributeRules of TdAttributes {
        debug: Forbidden,
        hgs_plus_prof: Forbidden,
        perf_prof: Forbidden,
        pmt_prof: Forbidden,
        icssd: Allowed,
        servtd_ext: Forbidden,
        lass: Allowed,
        sept_ve_disable: Required,
        migratable: Forbidden,
        pks: Allowed,
        kl: Allowed,
        tpa: Forbidden,
        perfmon: Allowed,
    }
}

/// What may follow a quote.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PaddingRule {
    /// Nothing.
    None,
    /// Zeros, as the buffers of kernels and clouds have them.
    #[default]
    Zero,
    /// Anything: it is not signed and means nothing.
    Any,
}

/// What follows a quote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Padding {
    None,
    Zero,
    Other,
}

impl Padding {
    pub fn of(bytes: &[u8]) -> Self {
        match bytes {
            [] => Self::None,
            bytes if bytes.iter().all(|&byte| byte == 0) => Self::Zero,
            _ => Self::Other,
        }
    }
}

/// Whether an event log is needed.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventLogRule {
    /// A log that is given must be the one that made the RTMRs; none need be.
    #[default]
    IfGiven,
    /// One must be given.
    Required,
}

/// Rules for what Intel says about the TCB.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TcbRules {
    /// Accepted statuses. Default: `UpToDate` only. `Revoked` is never accepted.
    pub accepted: Vec<TcbStatus>,
    /// Advisories that must not apply, neither to the TCB of the launch nor to that of now. Default: none.
    pub refused_advisories: Vec<String>,
    /// Least number of the TCB evaluation that TCB info and QE identity are of. Default: 0.
    pub min_evaluation_number: u32,
    /// For how many days a TCB that is out of date is as good as before, counted from the oldest date of its levels that
    /// are out of date, at launch or now. Default: 0.
    pub out_of_date_grace_days: u32,
}

impl Default for TcbRules {
    fn default() -> Self {
        Self {
            accepted: Vec::from([TcbStatus::UpToDate]),
            refused_advisories: Vec::new(),
            min_evaluation_number: 0,
            out_of_date_grace_days: 0,
        }
    }
}

/// Rules for platforms that were registered as a whole. What a certificate does not say is taken as clear.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlatformRules {
    /// Packages may be added to the platform. Default: Allowed.
    pub dynamic_platform: BitRule,
    /// Intel's registration service keeps the platform's keys. Default: Allowed.
    pub cached_keys: BitRule,
    /// SMT is on. Default: Allowed.
    pub smt_enabled: BitRule,
}

impl Default for PlatformRules {
    fn default() -> Self {
        let allowed = BitRule::Allowed;
        Self { dynamic_platform: allowed, cached_keys: allowed, smt_enabled: allowed }
    }
}

/// The whole policy. A list that is absent allows everything; an empty list allows nothing.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, remote = "Self")]
pub struct Policy {
    /// Allowed measurements of the TD's first memory.
    pub mrtd: Option<Vec<Hex<48>>>,
    /// Allowed values of RTMR0: the virtual firmware's configuration.
    pub rtmr0: Option<Vec<Hex<48>>>,
    /// Allowed values of RTMR1: what the firmware started.
    pub rtmr1: Option<Vec<Hex<48>>>,
    /// Allowed values of RTMR2: what that started, and how.
    pub rtmr2: Option<Vec<Hex<48>>>,
    /// Allowed values of RTMR3: whatever the guest measures.
    pub rtmr3: Option<Vec<Hex<48>>>,
    /// What the report data must be, all 64 bytes.
    pub report_data: Option<Hex<64>>,
    /// Allowed TDX modules.
    pub mrseam: Option<Vec<Hex<48>>>,
    /// Allowed identifiers of the guest's configuration.
    pub mrconfigid: Option<Vec<Hex<48>>>,
    /// Allowed owners.
    pub mrowner: Option<Vec<Hex<48>>>,
    /// Allowed identifiers of the owner's configuration.
    pub mrownerconfig: Option<Vec<Hex<48>>>,
    /// Allowed service TDs, those of the launch and those of now. A report without the field (TDX 1.0) is refused. Absent,
    /// the default: none may be bound.
    pub mrservicetd: Option<Vec<Hex<48>>>,
    /// Allowed XFAM: the 8 bytes as they lie in the quote (`e702060000000000`), or the number with `0x` as claims and
    /// `inspect` print it (`0x602e7`).
    #[serde(deserialize_with = "xfam_list")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<Vec<crate::schema::XfamText>>"))]
    pub xfam: Option<Vec<Hex<8>>>,
    /// Least TEE_TCB_SVN, byte by byte; in TDX 1.5 that of now, too.
    pub min_tee_tcb_svn: Option<Hex<16>>,
    /// Allowed platforms (PIID of the PCK certificate). A platform without one is refused.
    pub platform_instance_id: Option<Vec<Hex<16>>>,
    /// Allowed models of platform.
    pub fmspc: Option<Vec<Hex<6>>>,
    /// What may follow the quote. Default: zeros.
    pub quote_padding: PaddingRule,
    /// Whether an event log is needed. Default: `if-given`.
    pub event_log: EventLogRule,
    /// Inconsistencies that an event log may have since genuine firmware has them. Default: none.
    pub event_log_quirks: Vec<EventLogQuirk>,
    /// Seconds by which the clocks of whoever issued certificates, CRLs and collateral may differ from the verifier's; a day at
    /// most. Default: 60.
    pub clock_tolerance_seconds: u32,
    /// Rules for the TD's attributes.
    pub td_attributes: TdAttributeRules,
    /// Rules for what Intel says about the TCB.
    pub tcb: TcbRules,
    /// Rules for the platform.
    pub platform: PlatformRules,
}

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

/// As its fields say, but no policy that can accept nothing. (The derived function of that name, which serde's `remote` makes
/// an inherent one, does not look: read policies through the trait, as every format's crate does.)
impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let policy = Self::deserialize(deserializer)?;
        policy.check().map_err(D::Error::custom)?;
        Ok(policy)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            mrtd: None,
            rtmr0: None,
            rtmr1: None,
            rtmr2: None,
            rtmr3: None,
            report_data: None,
            mrseam: None,
            mrconfigid: None,
            mrowner: None,
            mrownerconfig: None,
            mrservicetd: None,
            xfam: None,
            min_tee_tcb_svn: None,
            platform_instance_id: None,
            fmspc: None,
            quote_padding: PaddingRule::default(),
            event_log: EventLogRule::default(),
            event_log_quirks: Vec::new(),
            clock_tolerance_seconds: Moment::DEFAULT_TOLERANCE_SECONDS,
            td_attributes: TdAttributeRules::default(),
            tcb: TcbRules::default(),
            platform: PlatformRules::default(),
        }
    }
}

/// Bytes or number: without the prefix that makes it a number, digits are bytes.
fn xfam_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Hex<8>>>, D::Error> {
    let Some(list) = Option::<Vec<String>>::deserialize(deserializer)? else { return Ok(None) };
    let value = |text: &String| match text.strip_prefix("0x") {
        None => text.parse().map_err(D::Error::custom),
        Some(digits) if (1..=16).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
            let number = u64::from_str_radix(digits, 16).map_err(D::Error::custom)?;
            Ok(Hex(number.to_le_bytes()))
        }
        Some(_) => Err(D::Error::custom("expected 1 to 16 hexadecimal digits behind 0x")),
    };
    list.iter().map(value).collect::<Result<_, _>>().map(Some)
}

impl Policy {
    /// What nobody decides if not this policy: without MRTD and report data, *some* TD is behind the quote.
    pub fn unchecked(&self) -> Vec<&'static str> {
        let open = [
            ("mrtd", self.mrtd.is_none()),
            ("rtmr0", self.rtmr0.is_none()),
            ("rtmr1", self.rtmr1.is_none()),
            ("rtmr2", self.rtmr2.is_none()),
            ("rtmr3", self.rtmr3.is_none()),
            ("report_data", self.report_data.is_none()),
            ("mrconfigid", self.mrconfigid.is_none()),
        ];
        open.into_iter().filter(|(_, open)| *open).map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_what_an_empty_document_means() {
        assert_eq!(serde_json::from_str::<Policy>("{}").unwrap(), Policy::default());
        let text = serde_json::to_string(&Policy::default()).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&text).unwrap(), Policy::default());
    }

    #[test]
    fn xfam_is_bytes_or_a_number() {
        let list = |text: &str| {
            let policy: Policy = serde_json::from_value(serde_json::json!({"xfam": [text]})).ok()?;
            Some(policy.xfam.unwrap()[0].0)
        };
        for (text, expected) in [
            ("e702060000000000", Some(0x602e7)),
            ("0x602e7", Some(0x602e7)),
            ("0x602E7", Some(0x602e7)),
            ("0x00000000000602e7", Some(0x602e7)),
            ("00000000000602e7", Some(0xe702_0600_0000_0000)),
            ("602e7", None),
            ("0x", None),
            ("0x+1", None),
            ("0X1", None),
            ("0x1_0", None),
            ("0x000000000000602e7", None),
        ] {
            assert_eq!(list(text), expected.map(u64::to_le_bytes), "{text}");
        }
    }

    #[test]
    fn misspelt_or_misshapen_rules_are_refused() {
        for text in [
            r#"{"mrdt": []}"#,
            r#"{"mrtd": ["00"]}"#,
            r#"{"rtmr4": []}"#,
            r#"{"report_data": "zz"}"#,
            r#"{"quote_padding": "some"}"#,
            r#"{"event_log": "maybe"}"#,
            r#"{"td_attributes": {"debgu": "forbidden"}}"#,
            r#"{"td_attributes": {"debug": "maybe"}}"#,
            r#"{"tcb": {"accepted": ["Fine"]}}"#,
            r#"{"tcb": {"min_evaluation_number": -1}}"#,
            r#"{"platform": {"smt": "allowed"}}"#,
        ] {
            assert!(serde_json::from_str::<Policy>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_attribute_has_a_rule() {
        let rules = TdAttributeRules::default();
        let names: Vec<_> = rules.rules(TdAttributes(0)).map(|(name, ..)| name).collect();
        let expected = TdAttributes::BITS.iter().map(|(name, _)| *name).chain(["unknown"]);
        assert_eq!(names, expected.collect::<Vec<_>>());
    }

    #[test]
    fn what_is_left_open_is_named() {
        let open = Policy::default().unchecked();
        assert_eq!(open, ["mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "report_data", "mrconfigid"]);
        let policy = Policy { mrtd: Some(vec![]), report_data: Some(Hex([0; 64])), ..Policy::default() };
        assert_eq!(policy.unchecked(), ["rtmr0", "rtmr1", "rtmr2", "rtmr3", "mrconfigid"]);
    }
}

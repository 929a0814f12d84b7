//! What a relying party accepts: one struct, read from TOML or JSON through serde.
//!
//! [`Policy::default`] is strict about how a guest is protected and says nothing about what runs in it:
//! a guest that the host may debug or migrate, firmware that the host could roll back, a report from
//! below VMPL 0, bits that nobody here knows, all are refused; which measurement, report data and TCB
//! are right only the relying party knows. [`Policy::unchecked`] names what it left open.
//!
//! ```toml
//! measurement = ["1f0c…"]          # allow-list, 48 bytes each
//! report_data = "00ff…"            # exactly these 64 bytes
//! vmpl = [0]
//! revocation = "required"          # a current CRL of the root must be given; or "if-given", "optional"
//!
//! [guest_policy]                   # each bit: "forbidden", "allowed" or "required"
//! debug = "forbidden"
//! smt = "allowed"
//! min_abi = "1.51"
//!
//! [platform_info]
//! alias_check_complete = "required"
//!
//! [tcb.genoa.reported]             # minima; another product is refused once one is listed
//! bootloader = 10
//! snp = 23
//! microcode = 84
//!
//! [tcb.genoa.max_reported]         # maxima; where they are the minima, exactly that
//! snp = 23
//!
//! [firmware]
//! min_committed = "1.55.39"
//! ```

mod check;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::bits::{GuestPolicy, PlatformInfo};
use super::report::FirmwareVersion;
use super::tcb::{Product, TcbPart};
use crate::x509::Moment;

/// `N` bytes, as hexadecimal digits in documents.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hex<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::measure::write_hex(f, &self.0)
    }
}

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const N: usize> core::str::FromStr for Hex<N> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = crate::measure::read_hex(text).and_then(|bytes| bytes.try_into().ok());
        let wrong = || format!("expected {N} bytes as {} hexadecimal digits", N.saturating_mul(2));
        bytes.map(Self).ok_or_else(wrong)
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Which kind of endorsement key signed.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VekKind {
    /// A chip's own.
    Vcek,
    /// A cloud provider's, loaded into its chips.
    Vlek,
}

impl VekKind {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vcek => "VCEK",
            Self::Vlek => "VLEK",
        }
    }

    /// The common name in its certificate.
    pub const fn common_name(self) -> &'static str {
        match self {
            Self::Vcek => "SEV-VCEK",
            Self::Vlek => "SEV-VLEK",
        }
    }
}

/// What a bit may be.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BitRule {
    /// It must be clear.
    Forbidden,
    /// Either.
    Allowed,
    /// It must be set.
    Required,
}

/// What bits may be that have no meaning here. That one of them must be set nobody can want.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownBitRule {
    /// They must be clear.
    #[default]
    Forbidden,
    /// Either.
    Allowed,
}

impl From<UnknownBitRule> for BitRule {
    fn from(rule: UnknownBitRule) -> Self {
        match rule {
            UnknownBitRule::Forbidden => Self::Forbidden,
            UnknownBitRule::Allowed => Self::Allowed,
        }
    }
}

/// Whether a CRL is needed.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RevocationRule {
    /// None need be given; of those that are, one must be of the chain's root. What it revokes is revoked, whatever its time.
    #[default]
    IfGiven,
    /// As `if-given`, and CRLs that are all of other roots are no error.
    Optional,
    /// A current CRL of the root must be given.
    Required,
}

macro_rules! bit_rules {
    ($(#[$doc:meta])* $type:ident of $bits:ident { $($name:ident: $default:ident,)* } $($(#[$extra_doc:meta])* $extra:ident: $extra_type:ty;)*) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(default, deny_unknown_fields)]
        pub struct $type {
            $(#[doc = concat!("Default: ", stringify!($default), ".")] pub $name: BitRule,)*
            /// Bits that are not known here. Default: Forbidden.
            pub unknown: $crate::snp::UnknownBitRule,
            $($(#[$extra_doc])* pub $extra: $extra_type,)*
        }

        impl Default for $type {
            fn default() -> Self {
                Self { $($name: BitRule::$default,)* unknown: Default::default(), $($extra: Default::default(),)* }
            }
        }

        impl $type {
            /// Every bit with its name, its value in `bits`, and its rule.
            pub fn rules(&self, bits: $bits) -> impl Iterator<Item = (&'static str, bool, BitRule)> {
                let unknown = bits.unknown() != 0;
                [$((stringify!($name), bits.$name(), self.$name),)* ("unknown", unknown, self.unknown.into())].into_iter()
            }
        }
    };
}

bit_rules! {
    /// Rules for the guest policy that the guest was launched with.
    GuestPolicyRules of GuestPolicy {
        smt: Allowed,
        migrate_ma: Forbidden,
        debug: Forbidden,
        single_socket: Allowed,
        cxl_allow: Forbidden,
        mem_aes_256_xts: Allowed,
        rapl_dis: Allowed,
        ciphertext_hiding_dram: Allowed,
        page_swap_disable: Allowed,
    }
    /// Least `major.minor` of the firmware ABI that the guest policy must demand.
    min_abi: Option<AbiVersion>;
    /// Greatest `major.minor` of the firmware ABI that the guest policy may demand.
    max_abi: Option<AbiVersion>;
}

bit_rules! {
    /// Rules for the machine that the guest runs on.
    PlatformInfoRules of PlatformInfo {
        smt_en: Allowed,
        tsme_en: Allowed,
        ecc_en: Allowed,
        rapl_dis: Allowed,
        ciphertext_hiding_dram_en: Allowed,
        alias_check_complete: Allowed,
        iommu_write_safe: Allowed,
        tio_en: Allowed,
    }
}

pub(crate) use bit_rules;

/// `major.minor` of the firmware ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct AbiVersion {
    pub major: u8,
    pub minor: u8,
}

impl fmt::Display for AbiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

fn numbers<const N: usize>(text: &str) -> Option<[u8; N]> {
    let parts: Option<Vec<u8>> = text.split('.').map(|part| part.parse().ok()).collect();
    parts?.try_into().ok()
}

macro_rules! dotted {
    ($type:ident { $($field:ident),* }, $form:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let [$($field),*] = numbers(&text).ok_or_else(|| D::Error::custom(concat!("expected ", $form)))?;
                Ok(Self { $($field),* })
            }
        }
    };
}

dotted!(AbiVersion { major, minor }, "\"major.minor\"");
dotted!(FirmwareVersion { major, minor, build }, "\"major.minor.build\"");

/// The least level of each part of a TCB version.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TcbMinimum {
    pub fmc: u8,
    pub bootloader: u8,
    pub tee: u8,
    pub snp: u8,
    pub microcode: u8,
}

impl TcbMinimum {
    /// The minima by part.
    pub const fn parts(&self) -> [(TcbPart, u8); 5] {
        [
            (TcbPart::Fmc, self.fmc),
            (TcbPart::Bootloader, self.bootloader),
            (TcbPart::Tee, self.tee),
            (TcbPart::Snp, self.snp),
            (TcbPart::Microcode, self.microcode),
        ]
    }
}

/// The greatest level of each part of a TCB version; absent, any.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TcbMaximum {
    pub fmc: Option<u8>,
    pub bootloader: Option<u8>,
    pub tee: Option<u8>,
    pub snp: Option<u8>,
    pub microcode: Option<u8>,
}

impl TcbMaximum {
    /// The maxima by part.
    pub const fn parts(&self) -> [(TcbPart, Option<u8>); 5] {
        [
            (TcbPart::Fmc, self.fmc),
            (TcbPart::Bootloader, self.bootloader),
            (TcbPart::Tee, self.tee),
            (TcbPart::Snp, self.snp),
            (TcbPart::Microcode, self.microcode),
        ]
    }
}

/// Minima and maxima for each TCB version in a report. A part for which both are the same must be exactly that.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TcbRules {
    /// For REPORTED_TCB: what the endorsement key vouches for.
    pub reported: TcbMinimum,
    /// For COMMITTED_TCB: what the host cannot go below any more.
    pub committed: TcbMinimum,
    /// For CURRENT_TCB: what runs.
    pub current: TcbMinimum,
    /// For LAUNCH_TCB: what ran when the guest was launched.
    pub launch: TcbMinimum,
    /// Maxima for REPORTED_TCB.
    pub max_reported: TcbMaximum,
    /// Maxima for COMMITTED_TCB.
    pub max_committed: TcbMaximum,
    /// Maxima for CURRENT_TCB.
    pub max_current: TcbMaximum,
    /// Maxima for LAUNCH_TCB.
    pub max_launch: TcbMaximum,
}

/// Least and greatest versions of the SEV-SNP firmware, as `major.minor.build`.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FirmwareRules {
    /// Least of the firmware that runs.
    pub min_current: Option<FirmwareVersion>,
    /// Greatest of the firmware that runs.
    pub max_current: Option<FirmwareVersion>,
    /// Least of the firmware that the host has committed to.
    pub min_committed: Option<FirmwareVersion>,
    /// Greatest of the firmware that the host has committed to.
    pub max_committed: Option<FirmwareVersion>,
}

/// Mitigations that must be in place, as bits of the mitigation vectors (reports of version 5).
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MitigationRules {
    /// When the guest was launched.
    pub launch: u64,
    /// Now.
    pub current: u64,
}

/// The whole policy. An optional list that is absent allows everything, `signing_key` and `vmpl` have defaults; an empty list
/// allows nothing.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, remote = "Self")]
pub struct Policy {
    /// Allowed launch digests.
    pub measurement: Option<Vec<Hex<48>>>,
    /// What the report data must be, all 64 bytes.
    pub report_data: Option<Hex<64>>,
    /// Allowed host data.
    pub host_data: Option<Vec<Hex<32>>>,
    /// Allowed family IDs of the ID block.
    pub family_id: Option<Vec<Hex<16>>>,
    /// Allowed image IDs of the ID block.
    pub image_id: Option<Vec<Hex<16>>>,
    /// Allowed digests of ID keys.
    pub id_key_digest: Option<Vec<Hex<48>>>,
    /// Allowed digests of author keys; a guest without an author key is refused. To trust an author for whatever
    /// ID keys it signs, list it here and leave `id_key_digest` out.
    pub author_key_digest: Option<Vec<Hex<48>>>,
    /// Allowed report IDs.
    pub report_id: Option<Vec<Hex<32>>>,
    /// Allowed report IDs of the migration agent.
    pub report_id_ma: Option<Vec<Hex<32>>>,
    /// Allowed chips.
    pub chip_id: Option<Vec<Hex<64>>>,
    /// Allowed providers of VLEKs, exactly as the certificate names them; a VCEK, which is no provider's, is refused.
    pub csp_id: Option<Vec<String>>,
    /// Allowed products.
    pub product: Option<Vec<Product>>,
    /// Allowed kinds of endorsement keys. Default: both.
    pub signing_key: Vec<VekKind>,
    /// Allowed VMPLs of whoever asked for the report. Default: 0 only.
    pub vmpl: Vec<u32>,
    /// Least version of the report. Default: 2.
    pub min_report_version: u32,
    /// Greatest version of the report. Default: any that is known here.
    pub max_report_version: Option<u32>,
    /// Least version of the guest. Default: 0.
    pub min_guest_svn: u32,
    /// Greatest version of the guest. Default: any.
    pub max_guest_svn: Option<u32>,
    /// Whether a VCEK's report may hide its chip. Default: no.
    pub allow_masked_chip_id: bool,
    /// Whether the host may run firmware that it has not committed to and could roll back. Default: no.
    pub allow_provisional_firmware: bool,
    /// Whether a CRL is needed. Default: `if-given`.
    pub revocation: RevocationRule,
    /// Seconds by which the clocks of whoever issued certificates and CRLs may differ from the verifier's; a day at most.
    /// Default: 60.
    pub clock_tolerance_seconds: u32,
    /// Rules for the guest policy.
    pub guest_policy: GuestPolicyRules,
    /// Rules for the platform.
    pub platform_info: PlatformInfoRules,
    /// Least and greatest firmware versions.
    pub firmware: FirmwareRules,
    /// Required mitigations.
    pub mitigations: MitigationRules,
    /// Least and greatest TCB versions by product. With any listed, the others are refused.
    #[cfg_attr(feature = "schema", schemars(extend("propertyNames" = {"enum": Product::ALL})))]
    pub tcb: BTreeMap<Product, TcbRules>,
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
            measurement: None,
            report_data: None,
            host_data: None,
            family_id: None,
            image_id: None,
            id_key_digest: None,
            author_key_digest: None,
            report_id: None,
            report_id_ma: None,
            chip_id: None,
            csp_id: None,
            product: None,
            signing_key: Vec::from([VekKind::Vcek, VekKind::Vlek]),
            vmpl: Vec::from([0]),
            min_report_version: 2,
            max_report_version: None,
            min_guest_svn: 0,
            max_guest_svn: None,
            allow_masked_chip_id: false,
            allow_provisional_firmware: false,
            revocation: RevocationRule::IfGiven,
            clock_tolerance_seconds: Moment::DEFAULT_TOLERANCE_SECONDS,
            guest_policy: GuestPolicyRules::default(),
            platform_info: PlatformInfoRules::default(),
            firmware: FirmwareRules::default(),
            mitigations: MitigationRules::default(),
            tcb: BTreeMap::new(),
        }
    }
}

/// In the list of what is not decided.
pub(super) const REVOCATION: &str = "revocation";

impl Policy {
    /// What nobody decides if not this policy: without the first and `report_data`, *some* guest is behind the report.
    ///
    /// Who pins the key that signed the guest's ID block, or its author, has decided what runs: the secure processor launches only
    /// the measurement of the block that the key signed. Which of that key's guests, old ones included, is then for
    /// `min_guest_svn`.
    pub fn unchecked(&self) -> Vec<&'static str> {
        let by_measurement = self.measurement.is_some();
        let by_key = self.id_key_digest.is_some() || self.author_key_digest.is_some();
        let open = [
            ("measurement", !by_measurement && !by_key),
            ("min_guest_svn", !by_measurement && by_key && self.min_guest_svn == 0),
            ("report_data", self.report_data.is_none()),
            ("tcb", self.tcb.is_empty()),
            (REVOCATION, self.revocation != RevocationRule::Required),
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
    fn misspelt_or_misshapen_rules_are_refused() {
        for text in [
            r#"{"mesurement": []}"#,
            r#"{"measurement": ["00"]}"#,
            r#"{"report_data": "zz"}"#,
            r#"{"guest_policy": {"debgu": "forbidden"}}"#,
            r#"{"guest_policy": {"debug": "maybe"}}"#,
            r#"{"guest_policy": {"unknown": "required"}}"#,
            r#"{"platform_info": {"unknown": "required"}}"#,
            r#"{"guest_policy": {"min_abi": "1"}}"#,
            r#"{"firmware": {"min_current": "1.300.0"}}"#,
            r#"{"tcb": {"rome": {}}}"#,
            r#"{"tcb": {"milan": {"reported": {"ucode": 1}}}}"#,
        ] {
            assert!(serde_json::from_str::<Policy>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_left_open_is_named() {
        let always = ["report_data", "tcb", "revocation"];
        let (digest, id) = ("00".repeat(48), "00".repeat(16));
        let read = |document: &str| -> Policy {
            serde_json::from_str(&document.replace("DIGEST", &digest).replace("ID", &id)).unwrap()
        };
        for (document, open) in [
            ("{}", &["measurement"][..]),
            (r#"{"measurement": ["DIGEST"]}"#, &[]),
            (r#"{"id_key_digest": ["DIGEST"]}"#, &["min_guest_svn"]),
            (r#"{"author_key_digest": ["DIGEST"], "min_guest_svn": 1}"#, &[]),
            (r#"{"id_key_digest": ["DIGEST"], "min_guest_svn": 1}"#, &[]),
            (r#"{"id_key_digest": ["DIGEST"], "measurement": ["DIGEST"]}"#, &[]),
            (r#"{"family_id": ["ID"], "image_id": ["ID"], "min_guest_svn": 1}"#, &["measurement"]),
        ] {
            assert_eq!(read(document).unchecked(), [open, &always].concat(), "{document}");
        }
        let rest = r#"{"measurement": ["DIGEST"], "tcb": {"milan": {}}, "revocation": "required"}"#;
        assert_eq!(read(rest).unchecked(), ["report_data"]);
        let optional = rest.replace("required", "optional");
        assert_eq!(read(&optional).unchecked(), ["report_data", "revocation"]);
    }

    #[test]
    fn hex_reads_exactly_its_bytes() {
        assert_eq!("0aFf".parse(), Ok(Hex([0x0a, 0xff])));
        for text in ["", "0a", "0aff0", "0aff00", "0a+f", "0ag0"] {
            assert!(text.parse::<Hex<2>>().is_err(), "{text}");
        }
        assert_eq!(Hex([0x0a, 0xff]).to_string(), "0aff");
    }

    #[test]
    fn every_bit_of_the_report_has_a_rule() {
        let names = |bits: &[(&'static str, u32)]| bits.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        let rules: Vec<_> =
            GuestPolicyRules::default().rules(GuestPolicy(0)).map(|(name, ..)| name).collect();
        assert_eq!(rules[..rules.len() - 1], names(GuestPolicy::BITS));
        let rules: Vec<_> =
            PlatformInfoRules::default().rules(PlatformInfo(0)).map(|(name, ..)| name).collect();
        assert_eq!(rules[..rules.len() - 1], names(PlatformInfo::BITS));
    }
}

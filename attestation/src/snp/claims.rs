//! What an authentic report says, as a document: claims of version 2.

use alloc::collections::BTreeMap;
use alloc::string::String;

use serde::Serialize;

use super::authenticate::Authentic;
use super::bits::{GuestPolicy, PlatformInfo};
use super::chain::Revocation;
use super::policy::{Hex, VekKind};
use super::report::{Cpuid, FirmwareVersion, Report};
use super::tcb::{Product, TcbPart, TcbVersion};
use crate::x509::UnixTime;

/// Bits by name.
pub type Bits = BTreeMap<&'static str, bool>;

/// The claims. Byte strings are lower-case hexadecimal.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", schemars(rename = "SnpClaims"))]
#[allow(missing_docs)]
pub struct Claims {
    /// `snp`.
    #[cfg_attr(feature = "schema", schemars(extend("const" = "snp")))]
    pub tee: &'static str,
    pub product: Product,
    #[serde(flatten)]
    pub report: ReportClaims,
    pub endorsement_key: VekClaims,
    pub trust_root: RootClaims,
    pub revocation: Revocation,
    /// The time that everything was checked at.
    pub verified_at: UnixTime,
}

/// What a report says, whoever made it.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct ReportClaims {
    pub report_version: u32,
    pub measurement: Hex<48>,
    pub report_data: Hex<64>,
    pub host_data: Hex<32>,
    pub vmpl: u32,
    pub guest_svn: u32,
    pub guest_policy: GuestPolicyClaims,
    pub platform_info: BitsClaims,
    pub family_id: Hex<16>,
    pub image_id: Hex<16>,
    pub id_key_digest: Hex<48>,
    /// Absent where there is no author key.
    pub author_key_digest: Option<Hex<48>>,
    pub report_id: Hex<32>,
    pub report_id_ma: Hex<32>,
    /// Absent where the host masks it.
    pub chip_id: Option<Hex<64>>,
    /// Absent from reports of version 2.
    pub cpuid: Option<Cpuid>,
    pub tcb: TcbVersionsClaims,
    pub firmware: FirmwareClaims,
    pub mitigations: MitigationClaims,
}

/// Bits with their raw value.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct BitsClaims {
    /// As `0x…`.
    pub raw: String,
    #[serde(flatten)]
    pub bits: Bits,
}

impl BitsClaims {
    /// `value`, whose bits have these names and numbers.
    pub fn new(value: u64, names: &[(&'static str, u32)]) -> Self {
        let set = |bit| value.checked_shr(bit).is_some_and(|bits| bits & 1 != 0);
        let bits = names.iter().map(|&(name, bit)| (name, set(bit))).collect();
        Self { raw: alloc::format!("{value:#x}"), bits }
    }
}

/// The guest policy.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct GuestPolicyClaims {
    #[serde(flatten)]
    pub bits: BitsClaims,
    pub abi_major: u8,
    pub abi_minor: u8,
}

/// A TCB version.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct TcbClaims {
    /// The eight bytes as they lie in the report.
    pub raw: Hex<8>,
    /// The parts that the product has; none where it is not known.
    #[serde(flatten)]
    pub parts: BTreeMap<&'static str, u8>,
}

impl TcbClaims {
    /// `version` as `product` reads it.
    pub fn new(version: TcbVersion, product: Option<Product>) -> Self {
        let parts = product.map(|product| version.parts(product)).into_iter().flatten();
        let named = parts.filter(|(part, _)| !matches!(part, TcbPart::Reserved(_)));
        Self { raw: Hex(version.0), parts: named.map(|(part, level)| (part.name(), level)).collect() }
    }
}

/// The four TCB versions of a report.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct TcbVersionsClaims {
    pub current: TcbClaims,
    pub reported: TcbClaims,
    pub committed: TcbClaims,
    pub launch: TcbClaims,
}

/// Versions of the SEV-SNP firmware.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct FirmwareClaims {
    pub current: FirmwareVersion,
    pub committed: FirmwareVersion,
}

/// Mitigation vectors as `0x…`; absent before version 5.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct MitigationClaims {
    pub launch: Option<String>,
    pub current: Option<String>,
}

/// The key that signed.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct VekClaims {
    pub kind: VekKind,
    /// The product's name with stepping, where the certificate has it.
    pub product_name: String,
    /// The provider of a VLEK.
    pub csp_id: Option<String>,
    pub not_before: UnixTime,
    pub not_after: UnixTime,
    /// SHA-256 of the certificate.
    pub sha256: Hex<32>,
}

/// The root that was trusted.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct RootClaims {
    pub subject: String,
    /// SHA-256 of the certificate.
    pub sha256: Hex<32>,
}

impl Authentic {
    /// What the report says, now to be believed.
    pub fn claims(&self) -> Claims {
        let vek = self.signer.certificate();
        Claims {
            tee: "snp",
            product: self.vek().product,
            report: ReportClaims::new(&self.report, Some(self.vek().product)),
            endorsement_key: VekClaims {
                kind: self.vek().kind,
                product_name: self.vek().product_name.clone(),
                csp_id: self.vek().csp_id.clone(),
                not_before: vek.not_before(),
                not_after: vek.not_after(),
                sha256: Hex(vek.fingerprint()),
            },
            trust_root: RootClaims {
                subject: self.root().subject_text().into(),
                sha256: Hex(self.root().fingerprint()),
            },
            revocation: self.revocation,
            verified_at: self.time.time,
        }
    }
}

impl ReportClaims {
    /// What `report` says, whose TCB versions are of `product`.
    pub fn new(report: &Report, product: Option<Product>) -> Self {
        let policy = report.guest_policy();
        Self {
            report_version: report.version(),
            measurement: Hex(*report.measurement()),
            report_data: Hex(*report.report_data()),
            host_data: Hex(*report.host_data()),
            vmpl: report.vmpl(),
            guest_svn: report.guest_svn(),
            guest_policy: GuestPolicyClaims {
                bits: BitsClaims::new(policy.0, GuestPolicy::BITS),
                abi_major: policy.abi_major(),
                abi_minor: policy.abi_minor(),
            },
            platform_info: BitsClaims::new(report.platform_info().0, PlatformInfo::BITS),
            family_id: Hex(*report.family_id()),
            image_id: Hex(*report.image_id()),
            id_key_digest: Hex(*report.id_key_digest()),
            author_key_digest: report.author_key_en().then(|| Hex(*report.author_key_digest())),
            report_id: Hex(*report.report_id()),
            report_id_ma: Hex(*report.report_id_ma()),
            chip_id: Some(Hex(*report.chip_id())).filter(|id| id.0 != [0; 64]),
            cpuid: report.cpuid(),
            tcb: tcb_versions(report, product),
            firmware: FirmwareClaims {
                current: report.current_version(),
                committed: report.committed_version(),
            },
            mitigations: MitigationClaims {
                launch: report.launch_mit_vector().map(|bits| alloc::format!("{bits:#x}")),
                current: report.current_mit_vector().map(|bits| alloc::format!("{bits:#x}")),
            },
        }
    }
}

fn tcb_versions(report: &Report, product: Option<Product>) -> TcbVersionsClaims {
    let claims = |version| TcbClaims::new(version, product);
    TcbVersionsClaims {
        current: claims(report.current_tcb()),
        reported: claims(report.reported_tcb()),
        committed: claims(report.committed_tcb()),
        launch: claims(report.launch_tcb()),
    }
}

//! The documents that Intel's provisioning certification service (PCS) publishes: TCB info (version 3) and the
//! quoting enclave's identity (version 2), and the one file that carries them with everything else.
//!
//! TCB info and identity are signed as text. The text is kept as it came and never written again; what is read
//! from it is read strictly, since a field that nobody here knows could change what the others mean.

use alloc::string::String;
use alloc::vec::Vec;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::tcb::TcbStatus;
use crate::measure::{hex_string, read_hex};
use crate::snp::Hex;
use crate::x509::UnixTime;

/// Real ones have some 20 KiB.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// Real ones have fewer than twenty.
const MAX_LEVELS: usize = 256;

/// Why a document cannot be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum CollateralError {
    /// Longer than anything real.
    #[error("{len} bytes are more than any collateral has")]
    TooLong { len: usize },
    /// Not the JSON that it should be.
    #[error("the {document} cannot be read: {error}")]
    Json { document: &'static str, error: serde_json::Error },
    /// Of another kind or version.
    #[error(
        "the {document} is {id:?} version {version}, expected {expected_id:?} version {expected_version}"
    )]
    Kind {
        document: &'static str,
        id: String,
        version: u32,
        expected_id: &'static str,
        expected_version: u32,
    },
    /// SVNs that are to be compared in another way than the one that is known.
    #[error("the TCB info is of type {0}, whose levels cannot be compared here (type 0 can)")]
    TcbType(u32),
    /// More levels than anything real.
    #[error("the {document} has more than {MAX_LEVELS} TCB levels")]
    Levels { document: &'static str },
}

/// The file that carries all collateral of a quote: certificate chains as PEM, CRLs and signatures as hexadecimal
/// digits, the signed documents as the very text that was signed. `dcap-qvl` writes it, and [`PcsAnswers::document`] makes
/// it of the answers of Intel's service.
///
/// [`PcsAnswers::document`]: super::PcsAnswers::document
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CollateralDocument {
    pub pck_crl_issuer_chain: String,
    pub root_ca_crl: HexBytes,
    pub pck_crl: HexBytes,
    pub tcb_info_issuer_chain: String,
    pub tcb_info: String,
    pub tcb_info_signature: Hex<64>,
    pub qe_identity_issuer_chain: String,
    pub qe_identity: String,
    pub qe_identity_signature: Hex<64>,
}

impl CollateralDocument {
    /// Reads the file.
    pub fn from_json(bytes: &[u8]) -> Result<Self, CollateralError> {
        json(bytes, "collateral")
    }
}

/// Bytes as hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HexBytes(pub Vec<u8>);

impl Serialize for HexBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex_string(&self.0))
    }
}

impl<'de> Deserialize<'de> for HexBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        read_hex(&text).map(Self).ok_or_else(|| D::Error::custom("expected hexadecimal digits, two a byte"))
    }
}

fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8], document: &'static str) -> Result<T, CollateralError> {
    if bytes.len() > MAX_BYTES {
        return Err(CollateralError::TooLong { len: bytes.len() });
    }
    crate::json::object(bytes).map_err(|error| CollateralError::Json { document, error })
}

/// What Intel says about a model of platform (PCS API version 4, "Get TDX TCB Info").
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TcbInfo {
    pub id: String,
    pub version: u32,
    pub issue_date: UnixTime,
    pub next_update: UnixTime,
    pub fmspc: Hex<6>,
    pub pce_id: Hex<2>,
    pub tcb_type: u32,
    pub tcb_evaluation_data_number: u32,
    pub tdx_module: ModuleSigner,
    #[serde(default)]
    pub tdx_module_identities: Vec<ModuleIdentity>,
    /// The highest level first.
    pub tcb_levels: Vec<PlatformLevel>,
}

impl TcbInfo {
    const NAME: &'static str = "TCB info";

    /// Reads the signed text.
    pub fn from_json(text: &str) -> Result<Self, CollateralError> {
        let mut info: Self = json(text.as_bytes(), Self::NAME)?;
        check_kind(Self::NAME, &info.id, info.version, "TDX", 3)?;
        if info.tcb_type != 0 {
            return Err(CollateralError::TcbType(info.tcb_type));
        }
        let modules = info.tdx_module_identities.iter().map(|identity| identity.tcb_levels.len());
        check_levels(Self::NAME, modules.chain([info.tcb_levels.len(), info.tdx_module_identities.len()]))?;
        // Whatever their order in the text: a platform has the highest level that it reaches. Intel's own
        // library orders them like this too.
        info.tcb_levels.sort_by_key(|level| core::cmp::Reverse(level.tcb.order()));
        Ok(info)
    }
}

/// Who must have signed the TDX module, and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ModuleSigner {
    pub mrsigner: Hex<48>,
    pub attributes: Hex<8>,
    pub attributes_mask: Hex<8>,
}

/// The same for modules of one major version, with the levels of their minor versions.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ModuleIdentity {
    /// `TDX_01`, `TDX_03`, …
    pub id: String,
    pub mrsigner: Hex<48>,
    pub attributes: Hex<8>,
    pub attributes_mask: Hex<8>,
    pub tcb_levels: Vec<EnclaveLevel>,
}

impl ModuleIdentity {
    /// Who must have signed it.
    pub fn signer(&self) -> ModuleSigner {
        let Self { mrsigner, attributes, attributes_mask, .. } = *self;
        ModuleSigner { mrsigner, attributes, attributes_mask }
    }
}

/// A TCB level of a platform.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct PlatformLevel {
    pub tcb: PlatformTcb,
    pub tcb_date: UnixTime,
    #[serde(deserialize_with = "TcbStatus::documented")]
    pub tcb_status: TcbStatus,
    #[serde(default, rename = "advisoryIDs")]
    pub advisory_ids: Vec<String>,
}

/// What a platform must have for a level.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct PlatformTcb {
    pub sgxtcbcomponents: [Component; 16],
    pub pcesvn: u16,
    pub tdxtcbcomponents: [Component; 16],
}

impl PlatformTcb {
    fn order(&self) -> ([u8; 16], u16, [u8; 16]) {
        (self.sgx(), self.pcesvn, self.tdx())
    }

    /// Least SVNs of the SGX components.
    pub fn sgx(&self) -> [u8; 16] {
        self.sgxtcbcomponents.each_ref().map(|component| component.svn)
    }

    /// Least SVNs of the TDX components.
    pub fn tdx(&self) -> [u8; 16] {
        self.tdxtcbcomponents.each_ref().map(|component| component.svn)
    }
}

/// A component of a TCB.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Its security version.
    pub svn: u8,
    /// Who updates it.
    #[serde(default)]
    #[allow(dead_code, reason = "an entry that the document may have")]
    category: Option<Remark>,
    /// What it is.
    #[serde(default, rename = "type")]
    #[allow(dead_code, reason = "an entry that the document may have")]
    kind: Option<Remark>,
}

/// Text for people, which is not kept: documents have some hundred of them.
#[derive(Clone, Copy, Debug)]
struct Remark;

impl<'de> Deserialize<'de> for Remark {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = Remark;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("text")
            }

            fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Remark, E> {
                Ok(Remark)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// A TCB level of an enclave or of a TDX module.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct EnclaveLevel {
    pub tcb: EnclaveTcb,
    pub tcb_date: UnixTime,
    #[serde(deserialize_with = "TcbStatus::documented")]
    pub tcb_status: TcbStatus,
    #[serde(default, rename = "advisoryIDs")]
    pub advisory_ids: Vec<String>,
}

/// What an enclave or a module must have for a level.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct EnclaveTcb {
    pub isvsvn: u16,
}

/// What the TD quoting enclave must be (PCS API version 4, "Get TD QE Identity").
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct QeIdentity {
    pub id: String,
    pub version: u32,
    pub issue_date: UnixTime,
    pub next_update: UnixTime,
    pub tcb_evaluation_data_number: u32,
    pub miscselect: Hex<4>,
    pub miscselect_mask: Hex<4>,
    pub attributes: Hex<16>,
    pub attributes_mask: Hex<16>,
    pub mrsigner: Hex<32>,
    pub isvprodid: u16,
    pub tcb_levels: Vec<EnclaveLevel>,
}

impl QeIdentity {
    const NAME: &'static str = "QE identity";

    /// Reads the signed text.
    pub fn from_json(text: &str) -> Result<Self, CollateralError> {
        let mut identity: Self = json(text.as_bytes(), Self::NAME)?;
        check_kind(Self::NAME, &identity.id, identity.version, "TD_QE", 2)?;
        check_levels(Self::NAME, [identity.tcb_levels.len()].into_iter())?;
        identity.tcb_levels.sort_by_key(|level| core::cmp::Reverse(level.tcb.isvsvn));
        Ok(identity)
    }
}

fn check_kind(
    document: &'static str,
    id: &str,
    version: u32,
    expected_id: &'static str,
    expected_version: u32,
) -> Result<(), CollateralError> {
    if (id, version) == (expected_id, expected_version) {
        return Ok(());
    }
    Err(CollateralError::Kind {
        document,
        id: id.chars().take(32).collect(),
        version,
        expected_id,
        expected_version,
    })
}

fn check_levels(
    document: &'static str,
    mut counts: impl Iterator<Item = usize>,
) -> Result<(), CollateralError> {
    match counts.any(|count| count > MAX_LEVELS) {
        true => Err(CollateralError::Levels { document }),
        false => Ok(()),
    }
}

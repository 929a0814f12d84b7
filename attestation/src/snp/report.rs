//! The attestation report: ATTESTATION_REPORT of the SEV-SNP firmware ABI (56860, table 23), versions
//! 2 to 5.
//!
//! A [`Report`] *is* its 1184 bytes, so that what is verified is what was received; the accessors
//! read them. Nothing in a report is true before its signature is verified.

use core::fmt;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::bits::{GuestPolicy, PlatformInfo};
use super::tcb::{Product, TcbVersion};

/// An attestation report of a known version, well-formed, with the bytes that it came in.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Report {
    version: U32,
    guest_svn: U32,
    policy: U64,
    family_id: [u8; 16],
    image_id: [u8; 16],
    vmpl: U32,
    signature_algo: U32,
    current_tcb: [u8; 8],
    platform_info: U64,
    key_info: U32,
    reserved_0x4c: [u8; 4],
    report_data: [u8; 64],
    measurement: [u8; 48],
    host_data: [u8; 32],
    id_key_digest: [u8; 48],
    author_key_digest: [u8; 48],
    report_id: [u8; 32],
    report_id_ma: [u8; 32],
    reported_tcb: [u8; 8],
    cpuid_fam_id: u8,
    cpuid_mod_id: u8,
    cpuid_step: u8,
    reserved_0x18b: [u8; 21],
    chip_id: [u8; 64],
    committed_tcb: [u8; 8],
    current_version: [u8; 3],
    reserved_0x1eb: u8,
    committed_version: [u8; 3],
    reserved_0x1ef: u8,
    launch_tcb: [u8; 8],
    launch_mit_vector: U64,
    current_mit_vector: U64,
    reserved_0x208: [u8; 152],
    signature_r: [u8; 72],
    signature_s: [u8; 72],
    reserved_0x330: [u8; 368],
}
const _: () = assert!(size_of::<Report>() == Report::BYTES);
const _: () = assert!(core::mem::offset_of!(Report, report_data) == 0x50);
const _: () = assert!(core::mem::offset_of!(Report, reported_tcb) == 0x180);
const _: () = assert!(core::mem::offset_of!(Report, chip_id) == 0x1a0);
const _: () = assert!(core::mem::offset_of!(Report, launch_tcb) == 0x1f0);
const _: () = assert!(core::mem::offset_of!(Report, signature_r) == Report::SIGNED_BYTES);

/// Why bytes are not a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// Too few or too many.
    #[error("a report has exactly {} bytes; here are {len}", Report::BYTES)]
    Length {
        /// How many there are.
        len: usize,
    },
    /// Its layout is not known, so nothing in it can be.
    #[error("report version {0} is not known (2 to 5 are)")]
    Version(u32),
    /// Not ECDSA P-384 with SHA-384.
    #[error("signature algorithm {0} is not known (1 is ECDSA P-384 with SHA-384)")]
    SignatureAlgorithm(u32),
    /// A field that this version reserves is in use.
    #[error("a reserved field of a version {version} report is not zero, at {offset:#x}")]
    Reserved {
        /// The report's version.
        version: u32,
        /// Of the first offending byte.
        offset: usize,
    },
}

/// Which key signed a report (KEY_INFO.SIGNING_KEY).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigningKey {
    /// The versioned chip endorsement key.
    Vcek,
    /// The versioned loaded endorsement key of a cloud provider.
    Vlek,
    /// None: the report is not signed.
    None,
    /// A value that the ABI does not define.
    Unknown(u8),
}

/// A version of the SEV-SNP firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct FirmwareVersion {
    pub major: u8,
    pub minor: u8,
    pub build: u8,
}

impl SigningKey {
    /// Its name in documents; the ABI has none for the others.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::Vcek => Some("vcek"),
            Self::Vlek => Some("vlek"),
            Self::None => Some("none"),
            Self::Unknown(_) => None,
        }
    }
}

impl fmt::Display for FirmwareVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.build)
    }
}

/// Family, model and stepping of the processor.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(serde::Serialize))]
#[allow(missing_docs)]
pub struct Cpuid {
    pub family: u8,
    pub model: u8,
    pub stepping: u8,
}

impl fmt::Display for Cpuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}/{:02x}/{:02x}", self.family, self.model, self.stepping)
    }
}

/// Defined bits of KEY_INFO.
const KEY_INFO_DEFINED: u32 = 0x1f;

impl Report {
    /// Its size.
    pub const BYTES: usize = 1184;
    /// The versions that are known here.
    pub const VERSIONS: core::ops::RangeInclusive<u32> = 2..=5;
    /// How many bytes, from the first, the signature covers.
    pub const SIGNED_BYTES: usize = 0x2a0;

    /// Reads a report. Everything that its version reserves must be zero: a reserved field in use is a
    /// layout that nobody here knows.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReportError> {
        let report = Self::read_from_bytes(bytes).map_err(|_| ReportError::Length { len: bytes.len() })?;
        let version = report.version();
        if !Self::VERSIONS.contains(&version) {
            return Err(ReportError::Version(version));
        }
        let unsigned = matches!(report.signing_key(), SigningKey::None);
        let algorithm = report.signature_algo.get();
        if algorithm != 1 && !(unsigned && algorithm == 0) {
            return Err(ReportError::SignatureAlgorithm(algorithm));
        }
        report.check_reserved(version)?;
        Ok(report)
    }

    fn check_reserved(&self, version: u32) -> Result<(), ReportError> {
        let reserved = |offset| ReportError::Reserved { version, offset };
        if self.key_info.get() & !KEY_INFO_DEFINED != 0 {
            return Err(reserved(0x48));
        }
        let cpuid = match version {
            2 => 0x188..0x1a0,
            _ => 0x18b..0x1a0,
        };
        let mitigations = match version {
            2..=4 => 0x1f8..Self::SIGNED_BYTES,
            _ => 0x208..Self::SIGNED_BYTES,
        };
        for range in [0x4c..0x50, cpuid, 0x1eb..0x1ec, 0x1ef..0x1f0, mitigations, 0x330..Self::BYTES] {
            let start = range.start;
            let field = self.as_bytes().get(range).unwrap_or_default();
            if let Some(at) = field.iter().position(|&byte| byte != 0) {
                return Err(reserved(start.saturating_add(at)));
            }
        }
        Ok(())
    }

    /// The bytes that the signature covers.
    pub fn signed_bytes(&self) -> &[u8] {
        self.as_bytes().get(..Self::SIGNED_BYTES).unwrap_or_default()
    }

    /// The product of the processor that made the report; version 2 does not say.
    pub fn product(&self) -> Option<Product> {
        let cpuid = self.cpuid()?;
        Product::from_cpuid(cpuid.family, cpuid.model)
    }

    /// CPUID_FAM_ID, CPUID_MOD_ID and CPUID_STEP; from version 3 on.
    pub fn cpuid(&self) -> Option<Cpuid> {
        let (family, model, stepping) = (self.cpuid_fam_id, self.cpuid_mod_id, self.cpuid_step);
        (self.version() >= 3).then_some(Cpuid { family, model, stepping })
    }

    /// KEY_INFO, whole.
    pub fn key_info(&self) -> u32 {
        self.key_info.get()
    }

    /// KEY_INFO.SIGNING_KEY.
    pub fn signing_key(&self) -> SigningKey {
        match (self.key_info.get() >> 2) & 7 {
            0 => SigningKey::Vcek,
            1 => SigningKey::Vlek,
            7 => SigningKey::None,
            other => SigningKey::Unknown(other as u8),
        }
    }

    /// KEY_INFO.AUTHOR_KEY_EN: AUTHOR_KEY_DIGEST holds the digest of the author key.
    pub fn author_key_en(&self) -> bool {
        self.key_info.get() & 1 != 0
    }

    /// KEY_INFO.MASK_CHIP_KEY: the VCEK is not used, and the signature is zero instead.
    pub fn mask_chip_key(&self) -> bool {
        self.key_info.get() & 2 != 0
    }

    /// Whether there is anything where the signature is.
    pub fn has_signature(&self) -> bool {
        [&self.signature_r, &self.signature_s].into_iter().flatten().any(|&byte| byte != 0)
    }

    /// The signature's `r` and `s`, big-endian; `None` where they are wider than P-384's scalars.
    pub fn signature(&self) -> Option<([u8; 48], [u8; 48])> {
        let scalar = |field: &[u8; 72]| {
            let (low, high) = field.split_first_chunk::<48>()?;
            let mut scalar = *low;
            scalar.reverse();
            high.iter().all(|&byte| byte == 0).then_some(scalar)
        };
        Some((scalar(&self.signature_r)?, scalar(&self.signature_s)?))
    }

    /// LAUNCH_MIT_VECTOR; from version 5 on.
    pub fn launch_mit_vector(&self) -> Option<u64> {
        (self.version() >= 5).then_some(self.launch_mit_vector.get())
    }

    /// CURRENT_MIT_VECTOR; from version 5 on.
    pub fn current_mit_vector(&self) -> Option<u64> {
        (self.version() >= 5).then_some(self.current_mit_vector.get())
    }

    /// POLICY: what the guest's owner allowed the host.
    pub fn guest_policy(&self) -> GuestPolicy {
        GuestPolicy(self.policy.get())
    }

    /// PLATFORM_INFO: what the host's machine has and does.
    pub fn platform_info(&self) -> PlatformInfo {
        PlatformInfo(self.platform_info.get())
    }

    /// Version of the running firmware.
    pub fn current_version(&self) -> FirmwareVersion {
        firmware_version(self.current_version)
    }

    /// Version of the firmware that the host has committed to and cannot go below.
    pub fn committed_version(&self) -> FirmwareVersion {
        firmware_version(self.committed_version)
    }
}

fn firmware_version([build, minor, major]: [u8; 3]) -> FirmwareVersion {
    FirmwareVersion { major, minor, build }
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $read:expr;)*) => {
        impl Report { $($(#[$doc])* pub fn $name(&self) -> $type { let read: fn(&Self) -> $type = $read; read(self) })* }
    };
}

fields! {
    /// VERSION: 2 to 5.
    version: u32 = |r| r.version.get();
    /// GUEST_SVN: the guest's own version, of its ID block.
    guest_svn: u32 = |r| r.guest_svn.get();
    /// FAMILY_ID of the ID block.
    family_id: &[u8; 16] = |r| &r.family_id;
    /// IMAGE_ID of the ID block.
    image_id: &[u8; 16] = |r| &r.image_id;
    /// VMPL of whoever asked for the report.
    vmpl: u32 = |r| r.vmpl.get();
    /// REPORT_DATA: what the guest wanted to have signed.
    report_data: &[u8; 64] = |r| &r.report_data;
    /// MEASUREMENT: the launch digest.
    measurement: &[u8; 48] = |r| &r.measurement;
    /// HOST_DATA: what the host gave at launch.
    host_data: &[u8; 32] = |r| &r.host_data;
    /// ID_KEY_DIGEST: SHA-384 of the key that signed the ID block.
    id_key_digest: &[u8; 48] = |r| &r.id_key_digest;
    /// AUTHOR_KEY_DIGEST: SHA-384 of the key that signed the ID key.
    author_key_digest: &[u8; 48] = |r| &r.author_key_digest;
    /// REPORT_ID: of this guest, for its lifetime.
    report_id: &[u8; 32] = |r| &r.report_id;
    /// REPORT_ID_MA: of this guest's migration agent.
    report_id_ma: &[u8; 32] = |r| &r.report_id_ma;
    /// CHIP_ID; zero where the host masks it.
    chip_id: &[u8; 64] = |r| &r.chip_id;
    /// CURRENT_TCB: what runs.
    current_tcb: TcbVersion = |r| TcbVersion(r.current_tcb);
    /// REPORTED_TCB: what the endorsement key was derived from.
    reported_tcb: TcbVersion = |r| TcbVersion(r.reported_tcb);
    /// COMMITTED_TCB: what the host cannot go below.
    committed_tcb: TcbVersion = |r| TcbVersion(r.committed_tcb);
    /// LAUNCH_TCB: what ran when the guest was launched or imported.
    launch_tcb: TcbVersion = |r| TcbVersion(r.launch_tcb);
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report").field("version", &self.version()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(version: u32) -> [u8; Report::BYTES] {
        let mut bytes = [0; Report::BYTES];
        bytes[0..4].copy_from_slice(&version.to_le_bytes());
        bytes[0x34] = 1;
        bytes
    }

    #[test]
    fn known_versions_are_read_and_keep_their_bytes() {
        for version in 2..=5 {
            let mut bytes = report(version);
            bytes[0x50] = 0xab;
            let report = Report::parse(&bytes).unwrap();
            assert_eq!(report.as_bytes(), bytes);
            assert_eq!((report.version(), report.report_data()[0]), (version, 0xab));
        }
    }

    #[test]
    fn other_versions_lengths_and_algorithms_are_refused() {
        for version in [0, 1, 6, u32::MAX] {
            assert_eq!(Report::parse(&report(version)), Err(ReportError::Version(version)));
        }
        for len in [0, Report::BYTES - 1, Report::BYTES + 1] {
            assert_eq!(Report::parse(&vec![0; len]), Err(ReportError::Length { len }));
        }
        let mut bytes = report(3);
        bytes[0x34] = 2;
        assert_eq!(Report::parse(&bytes), Err(ReportError::SignatureAlgorithm(2)));
    }

    #[test]
    fn what_a_version_reserves_must_be_zero() {
        let reserved_in = |version: u32, offset: usize| match offset {
            0x4c..0x50 | 0x18b..0x1a0 | 0x1eb | 0x1ef | 0x208..0x2a0 | 0x330.. => true,
            0x188..0x18b => version == 2,
            0x1f8..0x208 => version < 5,
            _ => false,
        };
        for version in 2..=5 {
            for offset in 0x50..Report::BYTES {
                let mut bytes = report(version);
                bytes[offset] = 1;
                let expected = match reserved_in(version, offset) {
                    true => Some(ReportError::Reserved { version, offset }),
                    false => None,
                };
                assert_eq!(Report::parse(&bytes).err(), expected, "version {version} offset {offset:#x}");
            }
        }
        let mut bytes = report(3);
        bytes[0x48] = 0x20;
        assert_eq!(Report::parse(&bytes), Err(ReportError::Reserved { version: 3, offset: 0x48 }));
    }

    #[test]
    fn a_signature_is_little_endian_and_no_wider_than_its_curve() {
        let mut bytes = report(3);
        assert!(!Report::parse(&bytes).unwrap().has_signature());
        bytes[0x2a0] = 1;
        bytes[0x2a0 + 72] = 2;
        assert!(Report::parse(&bytes).unwrap().has_signature());
        let (r, s) = Report::parse(&bytes).unwrap().signature().unwrap();
        assert_eq!((r[47], s[47]), (1, 2));
        for high in [0x2a0 + 48, 0x2a0 + 71, 0x2a0 + 72 + 48] {
            let mut wide = bytes;
            wide[high] = 1;
            assert_eq!(Report::parse(&wide).unwrap().signature(), None);
        }
    }
}

//! The certificate of a provisioning certification key (PCK) and Intel's extension in it.
//!
//! Extension: "Intel SGX PCK Certificate and Certificate Revocation List Profile Specification", section 1.3.5.

use alloc::vec::Vec;

use const_oid::ObjectIdentifier;
use der::asn1::{AnyRef, OctetStringRef};
use der::{Decode, Reader, SliceReader, Tag, Tagged};
use serde::Serialize;

use super::tcb::PlatformSvns;
use crate::signature::Backend;
use crate::snp::Hex;
use crate::x509::Certificate;

const fn oid(text: &str) -> ObjectIdentifier {
    ObjectIdentifier::new_unwrap(text)
}

const SGX_EXTENSIONS: ObjectIdentifier = oid("1.2.840.113741.1.13.1");
const PPID: ObjectIdentifier = oid("1.2.840.113741.1.13.1.1");
const TCB: ObjectIdentifier = oid("1.2.840.113741.1.13.1.2");
const PCE_SVN: ObjectIdentifier = oid("1.2.840.113741.1.13.1.2.17");
const CPU_SVN: ObjectIdentifier = oid("1.2.840.113741.1.13.1.2.18");
const PCE_ID: ObjectIdentifier = oid("1.2.840.113741.1.13.1.3");
const FMSPC: ObjectIdentifier = oid("1.2.840.113741.1.13.1.4");
const SGX_TYPE: ObjectIdentifier = oid("1.2.840.113741.1.13.1.5");
const PLATFORM_INSTANCE_ID: ObjectIdentifier = oid("1.2.840.113741.1.13.1.6");
const CONFIGURATION: ObjectIdentifier = oid("1.2.840.113741.1.13.1.7");
const DYNAMIC_PLATFORM: ObjectIdentifier = oid("1.2.840.113741.1.13.1.7.1");
const CACHED_KEYS: ObjectIdentifier = oid("1.2.840.113741.1.13.1.7.2");
const SMT_ENABLED: ObjectIdentifier = oid("1.2.840.113741.1.13.1.7.3");
/// 1 to 16 of [`TCB`] are the SVNs of the SGX components.
const COMPONENTS: [ObjectIdentifier; 16] = [
    oid("1.2.840.113741.1.13.1.2.1"),
    oid("1.2.840.113741.1.13.1.2.2"),
    oid("1.2.840.113741.1.13.1.2.3"),
    oid("1.2.840.113741.1.13.1.2.4"),
    oid("1.2.840.113741.1.13.1.2.5"),
    oid("1.2.840.113741.1.13.1.2.6"),
    oid("1.2.840.113741.1.13.1.2.7"),
    oid("1.2.840.113741.1.13.1.2.8"),
    oid("1.2.840.113741.1.13.1.2.9"),
    oid("1.2.840.113741.1.13.1.2.10"),
    oid("1.2.840.113741.1.13.1.2.11"),
    oid("1.2.840.113741.1.13.1.2.12"),
    oid("1.2.840.113741.1.13.1.2.13"),
    oid("1.2.840.113741.1.13.1.2.14"),
    oid("1.2.840.113741.1.13.1.2.15"),
    oid("1.2.840.113741.1.13.1.2.16"),
];
/// More than the extension has.
const MAX_ENTRIES: usize = 64;

/// Why a certificate cannot be a PCK's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PckError {
    /// It has no such extension.
    #[error("the SGX extension is missing")]
    NoExtension,
    /// It is not a list of identifiers and values, or has one twice.
    #[error("the SGX extension cannot be read: {0}")]
    Der(der::Error),
    /// The same entry twice: which one is meant?
    #[error("the SGX extension has entry {0} twice")]
    Duplicate(ObjectIdentifier),
    /// More entries than there are.
    #[error("the SGX extension has more than {MAX_ENTRIES} entries")]
    TooMany,
    /// An entry that every PCK certificate has is missing.
    #[error("{0} is missing from the SGX extension")]
    Missing(&'static str),
    /// An entry is of another type or size.
    #[error("{0} in the SGX extension cannot be read")]
    Value(&'static str),
    /// Not an EC key on P-256.
    #[error("the key is not an EC key on P-256")]
    Key,
}

/// Entries of the extension that a platform with several packages has.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PlatformConfiguration {
    /// Packages may be added to it.
    pub dynamic_platform: bool,
    /// Intel's registration service keeps its keys.
    pub cached_keys: bool,
    /// SMT was on when it was registered.
    pub smt_enabled: bool,
}

/// A PCK: what its certificate says, whoever issued it.
#[derive(Clone, Debug)]
pub struct Pck {
    /// The model of platform.
    pub fmspc: Hex<6>,
    /// The provisioning certification enclave.
    pub pce_id: Hex<2>,
    /// The TCB that the key was derived from.
    pub svns: PlatformSvns,
    /// The same SVNs of the SGX components, as the processor writes them.
    pub cpu_svn: Hex<16>,
    /// The processor package.
    pub ppid: Hex<16>,
    /// 0 standard, 1 scalable, 2 scalable with integrity.
    pub sgx_type: u8,
    /// The platform, if it is one that was registered as a whole.
    pub platform_instance_id: Option<Hex<16>>,
    /// What is known of such a platform.
    pub configuration: Option<PlatformConfiguration>,
    point: Vec<u8>,
}

impl Pck {
    /// Reads the certificate.
    pub fn new(certificate: &Certificate) -> Result<Self, PckError> {
        let extension = certificate.extension(SGX_EXTENSIONS).ok_or(PckError::NoExtension)?;
        let entries = Entries::read(extension)?;
        let tcb = entries.list(TCB, "TCB")?;
        let mut sgx = [0; 16];
        for (svn, oid) in sgx.iter_mut().zip(COMPONENTS) {
            *svn = tcb.decode(oid, "an SGX TCB component")?;
        }
        let configuration = match entries.find(CONFIGURATION) {
            None => None,
            Some(_) => {
                let list = entries.list(CONFIGURATION, "Configuration")?;
                Some(PlatformConfiguration {
                    dynamic_platform: list.decode(DYNAMIC_PLATFORM, "dynamicPlatform")?,
                    cached_keys: list.decode(CACHED_KEYS, "cachedKeys")?,
                    smt_enabled: list.decode(SMT_ENABLED, "smtEnabled")?,
                })
            }
        };
        Ok(Self {
            fmspc: entries.octets(FMSPC, "FMSPC")?,
            pce_id: entries.octets(PCE_ID, "PCEID")?,
            svns: PlatformSvns { sgx, pce: tcb.decode(PCE_SVN, "PCESVN")? },
            cpu_svn: tcb.octets(CPU_SVN, "CPUSVN")?,
            ppid: entries.octets(PPID, "PPID")?,
            sgx_type: entries.enumerated(SGX_TYPE, "SGXType")?,
            platform_instance_id: match entries.find(PLATFORM_INSTANCE_ID) {
                None => None,
                Some(_) => Some(entries.octets(PLATFORM_INSTANCE_ID, "PlatformInstanceID")?),
            },
            configuration,
            point: certificate.p256_point().ok_or(PckError::Key)?.to_vec(),
        })
    }

    /// Whether this key signed `message`.
    pub fn signed(&self, message: &[u8], signature_rs: &[u8; 64], backend: &Backend) -> bool {
        (backend.p256)(&self.point, message, signature_rs)
    }
}

/// SEQUENCE OF SEQUENCE { id OBJECT IDENTIFIER, value ANY }.
struct Entries<'a>(Vec<(ObjectIdentifier, AnyRef<'a>)>);

impl<'a> Entries<'a> {
    fn read(der: &'a [u8]) -> Result<Self, PckError> {
        let list = AnyRef::from_der(der).map_err(PckError::Der)?;
        match list.tag() {
            Tag::Sequence => Self::read_contents(list.value()),
            tag => Err(PckError::Der(tag.value_error().into())),
        }
    }

    fn read_contents(contents: &'a [u8]) -> Result<Self, PckError> {
        let mut reader = SliceReader::new(contents).map_err(PckError::Der)?;
        let mut entries: Vec<(ObjectIdentifier, AnyRef<'a>)> = Vec::new();
        while !reader.is_finished() {
            let entry = reader.sequence(|entry| Ok((entry.decode()?, entry.decode()?)));
            let entry = entry.map_err(PckError::Der)?;
            if entries.iter().any(|(other, _)| *other == entry.0) {
                return Err(PckError::Duplicate(entry.0));
            }
            if entries.len() == MAX_ENTRIES {
                return Err(PckError::TooMany);
            }
            entries.push(entry);
        }
        Ok(Self(entries))
    }

    fn find(&self, oid: ObjectIdentifier) -> Option<AnyRef<'a>> {
        self.0.iter().find(|(own, _)| *own == oid).map(|(_, value)| *value)
    }

    fn get(&self, oid: ObjectIdentifier, name: &'static str) -> Result<AnyRef<'a>, PckError> {
        self.find(oid).ok_or(PckError::Missing(name))
    }

    fn list(&self, oid: ObjectIdentifier, name: &'static str) -> Result<Self, PckError> {
        let list = self.get(oid, name)?;
        if list.tag() != Tag::Sequence {
            return Err(PckError::Value(name));
        }
        Self::read_contents(list.value())
    }

    fn decode<T: der::Choice<'a> + der::DecodeValue<'a>>(
        &self,
        oid: ObjectIdentifier,
        name: &'static str,
    ) -> Result<T, PckError> {
        self.get(oid, name)?.decode_as().map_err(|_| PckError::Value(name))
    }

    fn octets<const N: usize>(&self, oid: ObjectIdentifier, name: &'static str) -> Result<Hex<N>, PckError> {
        let octets: &OctetStringRef = self.decode(oid, name)?;
        octets.as_bytes().try_into().map(Hex).map_err(|_| PckError::Value(name))
    }

    fn enumerated(&self, oid: ObjectIdentifier, name: &'static str) -> Result<u8, PckError> {
        let value = self.get(oid, name)?;
        match (value.tag(), value.value()) {
            (Tag::Enumerated, &[number @ 0..=127]) => Ok(number),
            _ => Err(PckError::Value(name)),
        }
    }
}

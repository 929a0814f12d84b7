//! The certificate of a versioned endorsement key (VCEK or VLEK) and AMD's extensions in it.
//!
//! Extensions: "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification"
//! (57230), section 3.1.

use alloc::string::String;
use alloc::vec::Vec;

use const_oid::ObjectIdentifier;
use der::Decode;
use der::asn1::{Ia5StringRef, OctetStringRef, Utf8StringRef};
use p384::ecdsa::{Signature, VerifyingKey};

use super::policy::VekKind;
use super::report::Report;
use super::tcb::{Product, TcbPart, TcbVersion};
use crate::signature::Backend;
use crate::x509::Certificate;

const fn oid(text: &str) -> ObjectIdentifier {
    ObjectIdentifier::new_unwrap(text)
}

const STRUCT_VERSION: ObjectIdentifier = oid("1.3.6.1.4.1.3704.1.1");
const PRODUCT_NAME: ObjectIdentifier = oid("1.3.6.1.4.1.3704.1.2");
const HWID: ObjectIdentifier = oid("1.3.6.1.4.1.3704.1.4");
const CSP_ID: ObjectIdentifier = oid("1.3.6.1.4.1.3704.1.5");
const EC_PUBLIC_KEY: ObjectIdentifier = oid("1.2.840.10045.2.1");
const SECP384R1: ObjectIdentifier = oid("1.3.132.0.34");

/// The extension of a TCB part.
const fn spl_extension(part: TcbPart) -> ObjectIdentifier {
    match part {
        TcbPart::Bootloader => oid("1.3.6.1.4.1.3704.1.3.1"),
        TcbPart::Tee => oid("1.3.6.1.4.1.3704.1.3.2"),
        TcbPart::Snp => oid("1.3.6.1.4.1.3704.1.3.3"),
        TcbPart::Reserved(4) => oid("1.3.6.1.4.1.3704.1.3.4"),
        TcbPart::Reserved(5) => oid("1.3.6.1.4.1.3704.1.3.5"),
        TcbPart::Reserved(6) => oid("1.3.6.1.4.1.3704.1.3.6"),
        TcbPart::Reserved(7) => oid("1.3.6.1.4.1.3704.1.3.7"),
        // No reserved part has this one: a level that is not zero is never met.
        TcbPart::Reserved(_) => oid("1.3.6.1.4.1.3704.1.3.0"),
        TcbPart::Microcode => oid("1.3.6.1.4.1.3704.1.3.8"),
        TcbPart::Fmc => oid("1.3.6.1.4.1.3704.1.3.9"),
    }
}

/// Whether a certificate for `product` without the extension of `part` is refused. Structure version 0 has an extension for
/// every byte of the TCB version, those that are nobody's yet included. Of version 1 that is known only for the parts that
/// have a name; a reserved one without an extension is taken as level zero.
const fn spl_needed(part: TcbPart, product: Product) -> bool {
    struct_version(product) == 0 || !matches!(part, TcbPart::Reserved(_))
}

/// Why a certificate cannot be an endorsement key's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VekError {
    /// An extension that every such certificate has is missing.
    #[error("the {0} extension is missing")]
    Missing(&'static str),
    /// An extension's value is of another type or size.
    #[error("the {0} extension cannot be read")]
    Value(&'static str),
    /// A product that is not known here.
    #[error("product name {0:?} is not known")]
    Product(String),
    /// A layout of extensions that does not belong to the product.
    #[error("structure version {version} does not belong to {product}")]
    StructVersion {
        /// The certificate's.
        version: u8,
        /// The product that it names.
        product: Product,
    },
    /// HWID is of a chip, CSP_ID of a provider: a VCEK has the first, a VLEK the second, none has both.
    #[error("a {} has {}", .0.name(), match .0 { VekKind::Vcek => "HWID and no CSP_ID", VekKind::Vlek => "CSP_ID and no HWID" })]
    Identity(VekKind),
    /// Not an EC key on P-384.
    #[error("the key is not an EC key on P-384")]
    Key,
}

/// An endorsement key: what its certificate says, whoever issued it.
#[derive(Clone, Debug)]
pub struct Vek {
    /// Of a chip or of a provider.
    pub kind: VekKind,
    /// Of which product.
    pub product: Product,
    /// Its name in the certificate, with stepping where it has one.
    pub product_name: String,
    /// The TCB version that the key was derived from.
    pub tcb: TcbVersion,
    /// The chip of a VCEK: 64 bytes, or 8 on Turin.
    pub hwid: Option<Vec<u8>>,
    /// The provider of a VLEK.
    pub csp_id: Option<String>,
    /// SEC1, uncompressed, on the curve.
    key: Vec<u8>,
}

impl Vek {
    /// Reads the certificate of a key of this kind.
    pub fn new(kind: VekKind, certificate: &Certificate) -> Result<Self, VekError> {
        let value = |oid, name| certificate.extension(oid).ok_or(VekError::Missing(name));
        let product_name =
            string(value(PRODUCT_NAME, "productName")?).ok_or(VekError::Value("productName"))?;
        let product = product_name.split('-').next().and_then(Product::by_name);
        let product = product.ok_or_else(|| VekError::Product(product_name.clone()))?;
        let version = value(STRUCT_VERSION, "structVersion")?;
        let version = u8::from_der(version).map_err(|_| VekError::Value("structVersion"))?;
        if version != struct_version(product) {
            return Err(VekError::StructVersion { version, product });
        }
        let hwid = certificate.extension(HWID).map(|value| hwid(value, product)).transpose()?;
        let csp_id = certificate.extension(CSP_ID);
        let csp_id = csp_id.map(|value| string(value).ok_or(VekError::Value("CSP_ID"))).transpose()?;
        if (hwid.is_some(), csp_id.is_some()) != (kind == VekKind::Vcek, kind == VekKind::Vlek) {
            return Err(VekError::Identity(kind));
        }
        let tcb = tcb(certificate, product)?;
        Ok(Self { kind, product, product_name, tcb, hwid, csp_id, key: key(certificate)? })
    }

    /// Whether this key signed `report`. `None` where the signature is none at all.
    pub fn signed(&self, report: &Report, backend: &Backend) -> Option<bool> {
        let (r, s) = report.signature()?;
        let signature = Signature::from_scalars(r, s).ok()?;
        Some((backend.p384)(&self.key, report.signed_bytes(), &signature.to_bytes()))
    }
}

/// The layout of extensions that AMD uses for a product.
const fn struct_version(product: Product) -> u8 {
    match product {
        Product::Milan | Product::Genoa => 0,
        Product::Turin | Product::Venice => 1,
    }
}

fn tcb(certificate: &Certificate, product: Product) -> Result<TcbVersion, VekError> {
    let mut tcb = TcbVersion([0; 8]);
    for (level, &part) in tcb.0.iter_mut().zip(product.tcb_layout()) {
        match certificate.extension(spl_extension(part)) {
            Some(value) => *level = u8::from_der(value).map_err(|_| VekError::Value(part.name()))?,
            None if spl_needed(part, product) => return Err(VekError::Missing(part.name())),
            None => {}
        }
    }
    Ok(tcb)
}

/// HWID is raw bytes in most certificates and an OCTET STRING in some.
fn hwid(value: &[u8], product: Product) -> Result<Vec<u8>, VekError> {
    let expected = product.chip_id_bytes();
    if value.len() == expected {
        return Ok(value.to_vec());
    }
    let inner = <&OctetStringRef>::from_der(value).map_err(|_| VekError::Value("HWID"))?;
    match inner.as_bytes() {
        bytes if bytes.len() == expected => Ok(bytes.to_vec()),
        _ => Err(VekError::Value("HWID")),
    }
}

fn string(value: &[u8]) -> Option<String> {
    let ia5 = || Ia5StringRef::from_der(value).map(|text| String::from(text.as_str()));
    let utf8 = || Utf8StringRef::from_der(value).map(|text| String::from(text.as_str()));
    ia5().or_else(|_| utf8()).ok()
}

fn key(certificate: &Certificate) -> Result<Vec<u8>, VekError> {
    let info = certificate.public_key();
    let curve = info.algorithm.parameters.as_ref().and_then(|curve| curve.decode_as().ok());
    if info.algorithm.oid != EC_PUBLIC_KEY || curve != Some(SECP384R1) {
        return Err(VekError::Key);
    }
    let point = info.subject_public_key.as_bytes().ok_or(VekError::Key)?;
    let key = VerifyingKey::from_sec1_bytes(point).map_err(|_| VekError::Key)?;
    Ok(key.to_sec1_point(false).as_bytes().to_vec())
}

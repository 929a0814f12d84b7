//! The quote: a TD report, signed by the quoting enclave's attestation key, with what ties that key to a
//! processor. Versions 4 and 5 (Intel TDX DCAP Quoting Library API, appendices A.3 and A.4).
//!
//! A [`Quote`] borrows the bytes that it was read from, so that what is verified is what was received. Nothing
//! in it is true before its signatures are verified.

use core::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::bits::{TdAttributes, Xfam};

/// Longer than any quote with any buffer around it.
const MAX_BYTES: usize = 64 << 10;
const ECDSA_P256: u16 = 2;
const TEE_TDX: u32 = 0x81;
/// Certification data: a QE report and what certifies it.
const QE_REPORT_CERTIFICATION_DATA: u16 = 6;
/// Certification data: the PCK certificate chain as PEM.
const PCK_CERT_CHAIN: u16 = 5;

/// Why bytes are not a TDX quote that can be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum QuoteError {
    /// Far more than any quote has.
    #[error("{len} bytes are more than any quote has")]
    TooLong { len: usize },
    /// It ends inside a field.
    #[error("the quote ends inside its {field}")]
    Truncated { field: &'static str },
    /// A length field that does not fit what it is the length of.
    #[error("the quote's {field} is longer than what is in it: {extra} bytes are left over")]
    LeftOver { field: &'static str, extra: usize },
    /// Its layout is not known, so nothing in it can be.
    #[error("quote version {0} is not known (4 and 5 are)")]
    Version(u16),
    /// Not a quote of a TD.
    #[error("TEE type {0:#x} is not TDX (0x81)")]
    TeeType(u32),
    /// Not ECDSA on P-256.
    #[error("attestation key type {0} is not known (2 is ECDSA on P-256)")]
    KeyType(u16),
    /// A body that is not known.
    #[error("quote body type {0} is not known (2, 3 and 4 are)")]
    BodyType(u16),
    /// A body of a known type with another type's size.
    #[error("a quote body of type {kind} has {expected} bytes; the quote says {len}")]
    BodyLength { kind: u16, expected: usize, len: usize },
    /// Certification data that is not what it must be in this place.
    #[error("certification data of type {found} where type {expected} belongs")]
    CertificationData { found: u16, expected: u16 },
}

/// The first fields of every quote.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    version: U16,
    attestation_key_type: U16,
    tee_type: U32,
    qe_svn: U16,
    pce_svn: U16,
    qe_vendor_id: [u8; 16],
    user_data: [u8; 20],
}
const _: () = assert!(size_of::<Header>() == 48);

/// What the body of a version 5 quote is.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BodyDescriptor {
    kind: U16,
    len: U32,
}
const _: () = assert!(size_of::<BodyDescriptor>() == 6);

/// A TD report as TDX 1.0 defines it.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Td10 {
    pub tee_tcb_svn: [u8; 16],
    pub mrseam: [u8; 48],
    pub mrsignerseam: [u8; 48],
    pub seam_attributes: [u8; 8],
    td_attributes: U64,
    xfam: U64,
    pub mrtd: [u8; 48],
    pub mrconfigid: [u8; 48],
    pub mrowner: [u8; 48],
    pub mrownerconfig: [u8; 48],
    pub rtmrs: [[u8; 48]; 4],
    pub report_data: [u8; 64],
}
const _: () = assert!(size_of::<Td10>() == 584);
const _: () = assert!(core::mem::offset_of!(Td10, mrtd) == 136);
const _: () = assert!(core::mem::offset_of!(Td10, report_data) == 520);

/// What TDX 1.5 adds.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Td15 {
    /// The TCB now; [`Td10::tee_tcb_svn`] is that of the TD's launch.
    pub tee_tcb_svn2: [u8; 16],
    /// What the service TDs bound to the TD are; zero if there are none.
    pub mrservicetd: [u8; 48],
}
const _: () = assert!(size_of::<Td10>() + size_of::<Td15>() == 648);

/// What TDX 1.5ex adds.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Td15Ex {
    /// Which VM of a partitioned TD asked for the report; 0 is the TD itself.
    pub vm_id: u8,
    /// Made anew with every launch, kept through migration.
    pub td_id: [u8; 32],
    /// Digest of what is known of the TD's devices.
    pub device_info: [u8; 48],
    /// The service TDs bound when the TD was created.
    pub init_servtd_hash: [u8; 48],
    /// Their attributes.
    pub init_servtd_attributes: [u8; 8],
    /// CPUSVN of the platform that the TD was created on.
    pub init_cpu_svn: [u8; 16],
    /// Its TEE_TCB_SVN.
    pub init_tee_tcb_svn: [u8; 16],
    /// Its model.
    pub init_tee_fmspc: [u8; 12],
    /// The service TDs bound now.
    pub cur_servtd_hash: [u8; 48],
    /// Their attributes.
    pub cur_servtd_attributes: [u8; 8],
}
const _: () = assert!(size_of::<Td10>() + size_of::<Td15>() + size_of::<Td15Ex>() == 885);

/// Which TD report a quote has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyType {
    /// Of TDX 1.0.
    Td10,
    /// Of TDX 1.5.
    Td15,
    /// Of TDX 1.5 with extensions.
    Td15Ex,
}

impl BodyType {
    /// Number in the body descriptor, name, size.
    const TABLE: [(Self, u16, &'static str, usize); 3] =
        [(Self::Td10, 2, "1.0", 584), (Self::Td15, 3, "1.5", 648), (Self::Td15Ex, 4, "1.5ex", 885)];

    fn by_number(number: u16) -> Option<(Self, usize)> {
        Self::TABLE.iter().find(|row| row.1 == number).map(|row| (row.0, row.3))
    }

    /// Which TDX it is of.
    pub fn name(self) -> &'static str {
        Self::TABLE.iter().find(|row| row.0 == self).map_or("", |row| row.2)
    }
}

impl fmt::Display for BodyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a quote says about a TD.
#[derive(Clone, PartialEq, Eq)]
pub struct TdReport {
    /// What every report has.
    pub base: Td10,
    /// What those of TDX 1.5 have besides.
    pub v15: Option<Td15>,
    /// What those of TDX 1.5ex have besides.
    pub ex: Option<Td15Ex>,
}

impl TdReport {
    /// Which report it is.
    pub fn kind(&self) -> BodyType {
        match (&self.v15, &self.ex) {
            (None, _) => BodyType::Td10,
            (Some(_), None) => BodyType::Td15,
            (Some(_), Some(_)) => BodyType::Td15Ex,
        }
    }

    /// ATTRIBUTES.
    pub fn td_attributes(&self) -> TdAttributes {
        TdAttributes(self.base.td_attributes.get())
    }

    /// XFAM.
    pub fn xfam(&self) -> Xfam {
        Xfam(self.base.xfam.get())
    }
}

/// The report of an SGX enclave, here the quoting enclave's (REPORTBODY, Intel SDM volume 3D, "REPORT").
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs)]
pub struct EnclaveReport {
    pub cpu_svn: [u8; 16],
    pub miscselect: [u8; 4],
    reserved1: [u8; 28],
    pub attributes: [u8; 16],
    pub mrenclave: [u8; 32],
    reserved2: [u8; 32],
    pub mrsigner: [u8; 32],
    reserved3: [u8; 96],
    isv_prod_id: U16,
    isv_svn: U16,
    reserved4: [u8; 60],
    pub report_data: [u8; 64],
}
const _: () = assert!(size_of::<EnclaveReport>() == 384);
const _: () = assert!(core::mem::offset_of!(EnclaveReport, report_data) == 320);

impl EnclaveReport {
    /// ISVPRODID.
    pub fn isv_prod_id(&self) -> u16 {
        self.isv_prod_id.get()
    }

    /// ISVSVN.
    pub fn isv_svn(&self) -> u16 {
        self.isv_svn.get()
    }

    /// ATTRIBUTES.DEBUG: whoever runs the enclave can look into it.
    pub fn is_debug(&self) -> bool {
        self.attributes.first().is_some_and(|byte| byte & 2 != 0)
    }
}

/// A quote of a known version and layout, with the bytes that it came in.
#[derive(Clone)]
pub struct Quote<'a> {
    bytes: &'a [u8],
    header: &'a Header,
    report: TdReport,
    signed: &'a [u8],
    signature: &'a [u8; 64],
    certification: &'a [u8],
    attestation_key: &'a [u8; 64],
    qe_report: &'a EnclaveReport,
    qe_report_signature: &'a [u8; 64],
    qe_auth_data: &'a [u8],
    pck_chain: &'a [u8],
    padding: &'a [u8],
}

impl<'a> Quote<'a> {
    /// The quoting enclave's vendor: Intel.
    pub const INTEL_QE_VENDOR_ID: [u8; 16] = 0x939a_7233_f79c_4ca9_940a_0db3_957f_0607_u128.to_be_bytes();

    /// Whether these bytes say that they are a TDX quote.
    pub fn recognises(bytes: &[u8]) -> bool {
        Header::ref_from_prefix(bytes)
            .is_ok_and(|(header, _)| (3..=6).contains(&header.version.get()) && header.tee_type == TEE_TDX)
    }

    /// Reads a quote. Every length in it must be exact; only bytes behind it are allowed and kept as
    /// [`padding`](Self::padding), since the kernel and clouds give fixed buffers.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, QuoteError> {
        if bytes.len() > MAX_BYTES {
            return Err(QuoteError::TooLong { len: bytes.len() });
        }
        let mut rest = Cursor(bytes);
        let header: &Header = rest.wire("header")?;
        check_header(header)?;
        let report = report(&mut rest, header.version.get())?;
        let signed = rest.before(bytes);
        let mut signature_data = rest.counted_u32("signature data")?;
        let padding = rest.0;
        let signature = signature_data.wire("signature")?;
        let certification = signature_data.0;
        let attestation_key = signature_data.wire("attestation key")?;
        let mut qe =
            signature_data.certification_data(QE_REPORT_CERTIFICATION_DATA, "QE certification data")?;
        signature_data.end("signature data")?;
        let qe_report = qe.wire("QE report")?;
        let qe_report_signature = qe.wire("QE report signature")?;
        let auth_len: &U16 = qe.wire("QE authentication data")?;
        let qe_auth_data = qe.take(usize::from(auth_len.get()), "QE authentication data")?;
        let pck_chain = qe.certification_data(PCK_CERT_CHAIN, "PCK certificate chain")?.0;
        qe.end("QE certification data")?;
        Ok(Self {
            bytes,
            header,
            report,
            signed,
            signature,
            certification,
            attestation_key,
            qe_report,
            qe_report_signature,
            qe_auth_data,
            pck_chain,
            padding,
        })
    }

    /// The bytes that it was read from.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Version of its layout.
    pub fn version(&self) -> u16 {
        self.header.version.get()
    }

    /// Whose quoting enclave made it.
    pub fn qe_vendor_id(&self) -> &'a [u8; 16] {
        &self.header.qe_vendor_id
    }

    /// Whatever the quoting enclave put into the header.
    pub fn user_data(&self) -> &'a [u8; 20] {
        &self.header.user_data
    }

    /// What it says about the TD.
    pub fn report(&self) -> &TdReport {
        &self.report
    }

    /// The bytes that the attestation key signed.
    pub fn signed_bytes(&self) -> &'a [u8] {
        self.signed
    }

    /// The signature of them, r and s.
    pub fn signature(&self) -> &'a [u8; 64] {
        self.signature
    }

    /// The attestation key and everything that vouches for it: the same in all quotes of a platform until its
    /// quoting enclave makes another key.
    pub fn certification(&self) -> &'a [u8] {
        self.certification
    }

    /// The attestation key, x and y.
    pub fn attestation_key(&self) -> &'a [u8; 64] {
        self.attestation_key
    }

    /// The quoting enclave's report.
    pub fn qe_report(&self) -> &'a EnclaveReport {
        self.qe_report
    }

    /// The signature of that report by the PCK, r and s.
    pub fn qe_report_signature(&self) -> &'a [u8; 64] {
        self.qe_report_signature
    }

    /// What the quoting enclave bound to its attestation key.
    pub fn qe_auth_data(&self) -> &'a [u8] {
        self.qe_auth_data
    }

    /// The PCK certificate and its issuers as PEM, possibly followed by a NUL.
    pub fn pck_chain(&self) -> &'a [u8] {
        self.pck_chain
    }

    /// What follows the quote. Nobody signed it.
    pub fn padding(&self) -> &'a [u8] {
        self.padding
    }
}

fn check_header(header: &Header) -> Result<(), QuoteError> {
    let version = header.version.get();
    if !matches!(version, 4 | 5) {
        return Err(QuoteError::Version(version));
    }
    if header.tee_type != TEE_TDX {
        return Err(QuoteError::TeeType(header.tee_type.get()));
    }
    if header.attestation_key_type != ECDSA_P256 {
        return Err(QuoteError::KeyType(header.attestation_key_type.get()));
    }
    Ok(())
}

fn report(rest: &mut Cursor<'_>, version: u16) -> Result<TdReport, QuoteError> {
    let (kind, len) = match version {
        4 => (BodyType::Td10, size_of::<Td10>()),
        _ => {
            let descriptor: &BodyDescriptor = rest.wire("body descriptor")?;
            let (number, len) = (descriptor.kind.get(), descriptor.len.get());
            let (kind, expected) = BodyType::by_number(number).ok_or(QuoteError::BodyType(number))?;
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            if len != expected {
                return Err(QuoteError::BodyLength { kind: number, expected, len });
            }
            (kind, len)
        }
    };
    let mut body = Cursor(rest.take(len, "body")?);
    let base = body.wire::<Td10>("body")?.clone();
    let v15 = (kind != BodyType::Td10).then(|| body.wire::<Td15>("body").cloned()).transpose()?;
    let ex = (kind == BodyType::Td15Ex).then(|| body.wire::<Td15Ex>("body").cloned()).transpose()?;
    Ok(TdReport { base, v15, ex })
}

/// What has not been read yet.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], QuoteError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(QuoteError::Truncated { field })?;
        self.0 = rest;
        Ok(taken)
    }

    fn wire<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &mut self,
        field: &'static str,
    ) -> Result<&'a T, QuoteError> {
        let (value, rest) = T::ref_from_prefix(self.0).map_err(|_| QuoteError::Truncated { field })?;
        self.0 = rest;
        Ok(value)
    }

    fn counted_u32(&mut self, field: &'static str) -> Result<Cursor<'a>, QuoteError> {
        let len: &U32 = self.wire(field)?;
        let len = usize::try_from(len.get()).unwrap_or(usize::MAX);
        self.take(len, field).map(Cursor)
    }

    fn certification_data(&mut self, expected: u16, field: &'static str) -> Result<Cursor<'a>, QuoteError> {
        let found = self.wire::<U16>(field)?.get();
        let data = self.counted_u32(field)?;
        if found == expected { Ok(data) } else { Err(QuoteError::CertificationData { found, expected }) }
    }

    fn end(&self, field: &'static str) -> Result<(), QuoteError> {
        if self.0.is_empty() { Ok(()) } else { Err(QuoteError::LeftOver { field, extra: self.0.len() }) }
    }

    /// What has been read of `whole`.
    fn before(&self, whole: &'a [u8]) -> &'a [u8] {
        whole.get(..whole.len().saturating_sub(self.0.len())).unwrap_or_default()
    }
}

//! The first question: did a processor of AMD's make this report, as far as its root can say?

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::chain::{self, ChainInputs, Issuers, Revocation};
use super::policy::VekKind;
use super::report::{Report, SigningKey};
use super::roots::TrustRoots;
use super::table;
use super::tcb::Product;
use super::vek::{Vek, VekError};
use crate::signature::Backend;
use crate::verdict::{Code, Reasons};
use crate::x509::{Certificate, Crl, Moment, certificates, crls};

/// More certificates than any evidence has.
const MAX_CERTIFICATES: usize = 16;

/// What a guest or its host presents. None of it is trusted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Evidence<'a> {
    /// The report, exactly as it was received.
    pub report: &'a [u8],
    /// Certificates in any order, each item DER or PEM: at least the endorsement key's, unless the table has it. There may be
    /// others: that of the key which signed the report is used, and of authorities one that is valid and not revoked. With the
    /// table's, 16 at most: no evidence costs more signatures than that of each as a key of the report's, as an authority under
    /// its root, and as a key under the (one or two) authorities that passed.
    pub certificates: &'a [&'a [u8]],
    /// The certificate table of an extended report.
    pub certificate_table: Option<&'a [u8]>,
}

/// What the vendor publishes beside its roots.
#[derive(Clone, Copy, Debug, Default)]
pub struct Collateral<'a> {
    /// CRLs, each item DER or PEM, of as many roots as there may be: those of the evidence's root count.
    pub crls: &'a [&'a [u8]],
}

/// A report that is authentic: only [`authenticate`] makes one.
#[derive(Clone, Debug)]
pub struct Authentic {
    pub(super) report: Report,
    pub(super) signer: VerifiedVek,
    pub(super) revocation: Revocation,
    pub(super) chip_id_masked: bool,
    pub(super) time: Moment,
}

impl Authentic {
    /// The report, now to be believed.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The product of the processor.
    pub fn product(&self) -> Product {
        self.signer.vek().product
    }

    /// The key that signed the report.
    pub fn vek(&self) -> &Vek {
        self.signer.vek()
    }

    /// The root at the end of the chain.
    pub fn root(&self) -> &Certificate {
        self.signer.root()
    }

    /// What is known about revocation.
    pub fn revocation(&self) -> Revocation {
        self.revocation
    }

    /// The endorsement key with its checked chain: the next report that it signs needs no certificates.
    pub fn verified_vek(&self) -> &VerifiedVek {
        &self.signer
    }
}

/// An endorsement key whose chain to a trusted root has been checked: only [`Authentic::verified_vek`] gives one. Cheap to
/// clone and to keep. CRLs are those that were given when it was checked: how long that is good enough for is for
/// whoever keeps it (a new CRL asks for a new [`authenticate`]).
#[derive(Clone, Debug)]
pub struct VerifiedVek(Arc<Chain>);

#[derive(Debug)]
struct Chain {
    vek: Vek,
    vek_certificate: Certificate,
    intermediate: Certificate,
    root: Certificate,
    revocation: Revocation,
    backend: Backend,
}

impl VerifiedVek {
    /// The key.
    pub fn vek(&self) -> &Vek {
        &self.0.vek
    }

    /// Its certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.0.vek_certificate
    }

    /// The root at the end of the chain.
    pub fn root(&self) -> &Certificate {
        &self.0.root
    }

    /// As [`authenticate`], for another report of the same key: everything is checked but the signatures of the
    /// certificates and CRLs.
    pub fn authenticate(&self, report: &[u8], time: impl Into<Moment>) -> Result<Authentic, Reasons> {
        let time = time.into();
        let Chain { vek, vek_certificate, intermediate, root, revocation, backend } = &*self.0;
        let mut reasons = Reasons::default();
        let report = reasons.note(Code::ReportMalformed, Report::parse(report));
        let signer = report.as_ref().and_then(|report| signing_key(report, &mut reasons));
        chain::check_windows(vek_certificate, intermediate, root, time, &mut reasons);
        let (Some(report), Some(kind)) = (report, signer) else { return Err(reasons) };
        if kind != vek.kind {
            let message = format!("a {} signed the report, and this is a {}", kind.name(), vek.kind.name());
            reasons.push(Code::VekMissing, message);
        }
        check_product(&report, vek, &mut reasons);
        check_binding(&report, vek, &mut reasons);
        check_signature(&report, vek, backend, &mut reasons);
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let (chip_id_masked, revocation) = (chip_id_masked(&report, kind), revocation.at(time));
        Ok(Authentic { report, signer: self.clone(), revocation, chip_id_masked, time })
    }
}

fn chip_id_masked(report: &Report, kind: VekKind) -> bool {
    kind == VekKind::Vcek && *report.chip_id() == [0; 64]
}

/// Checks the report's form, its signature, the endorsement key's certificate against report and root, and
/// what the root revoked, all at `time`. Refuses with every reason that was found.
pub fn authenticate(
    evidence: &Evidence<'_>,
    roots: &TrustRoots,
    collateral: &Collateral<'_>,
    time: impl Into<Moment>,
) -> Result<Authentic, Reasons> {
    authenticate_with(&Backend::default(), evidence, roots, collateral, time)
}

/// As [`authenticate`], with a backend of the caller's choice for ECDSA.
pub fn authenticate_with(
    backend: &Backend,
    evidence: &Evidence<'_>,
    roots: &TrustRoots,
    collateral: &Collateral<'_>,
    time: impl Into<Moment>,
) -> Result<Authentic, Reasons> {
    let time = time.into();
    let mut reasons = Reasons::default();
    let report = reasons.note(Code::ReportMalformed, Report::parse(evidence.report));
    let supplied = supplied_certificates(evidence, &mut reasons);
    let crls = supplied_crls(collateral, &mut reasons);
    let authentic = report.and_then(|report| {
        let kind = signing_key(&report, &mut reasons)?;
        let candidates = find_veks(kind, &report, &supplied, backend, time, &mut reasons);
        chain::check_supplied_roots(&supplied, roots, &mut reasons);
        let inputs = ChainInputs { supplied: &supplied, roots, crls: &crls, time, backend };
        let issuers = Issuers::new(kind, inputs);
        let found = candidates.iter().find_map(|candidate| Some((candidate, candidate.chain(&issuers)?)));
        let Some((Candidate { certificate, vek: Ok(vek), .. }, chain)) = found else {
            let best = candidates.iter().min_by_key(|candidate| candidate.rank());
            reasons.append(best.map(|best| best.faults(kind, &issuers)).unwrap_or_default());
            return None;
        };
        let signer = VerifiedVek(Arc::new(Chain {
            vek_certificate: (*certificate).clone(),
            intermediate: chain.intermediate.clone(),
            root: chain.root.clone(),
            revocation: chain.revocation,
            backend: *backend,
            vek: vek.clone(),
        }));
        let (chip_id_masked, revocation) = (chip_id_masked(&report, kind), chain.revocation);
        Some(Authentic { report, signer, revocation, chip_id_masked, time })
    });
    match authentic {
        Some(authentic) if reasons.is_empty() => Ok(authentic),
        _ => Err(reasons),
    }
}

/// A certificate that may be that of the key which signed the report.
struct Candidate<'a> {
    certificate: &'a Certificate,
    vek: Result<Vek, VekError>,
    /// Whether its key did sign the report.
    signed: bool,
    /// What speaks against it, its issuer aside.
    reasons: Reasons,
}

impl<'a> Candidate<'a> {
    fn new(
        kind: VekKind,
        certificate: &'a Certificate,
        report: &Report,
        backend: &Backend,
        time: Moment,
    ) -> Self {
        let mut reasons = Reasons::default();
        let vek = Vek::new(kind, certificate);
        let signed = match &vek {
            Ok(vek) => {
                check_product(report, vek, &mut reasons);
                check_binding(report, vek, &mut reasons);
                let signed = check_signature(report, vek, backend, &mut reasons);
                chain::check_leaf(certificate, time, &mut reasons);
                signed
            }
            Err(error) => {
                let code = match error {
                    VekError::Product(_) => Code::ProductUnknown,
                    VekError::Key => Code::CertificateProfile,
                    _ => Code::VekExtensionMalformed,
                };
                reasons.push(code, format!("{}: {error}", kind.common_name()));
                false
            }
        };
        Self { certificate, vek, signed, reasons }
    }

    /// Its chain, if nothing speaks against it.
    fn chain<'c>(&self, issuers: &Issuers<'c>) -> Option<chain::Chain<'c>> {
        let vek = self.vek.as_ref().ok().filter(|_| self.reasons.is_empty())?;
        issuers.chain(self.certificate, vek.product)
    }

    /// Where the reasons against it stand among those against others: whoever signed the report is meant, and of these the
    /// one with the fewest faults. Among equals it is not the order that decides.
    fn rank(&self) -> (bool, bool, usize, [u8; 32]) {
        (!self.signed, self.vek.is_err(), self.reasons.iter().len(), self.certificate.fingerprint())
    }

    /// Everything that speaks against it.
    fn faults(&self, kind: VekKind, issuers: &Issuers<'_>) -> Reasons {
        let mut reasons = self.reasons.clone();
        if let Ok(vek) = &self.vek
            && issuers.chain(self.certificate, vek.product).is_none()
        {
            issuers.faults(self.certificate, vek.product, kind, &mut reasons);
        }
        reasons
    }
}

fn supplied_certificates(evidence: &Evidence<'_>, reasons: &mut Reasons) -> Vec<Certificate> {
    let entries = evidence.certificate_table.map(table::parse);
    let entries = entries.and_then(|e| reasons.note(Code::CertificateTableMalformed, e)).unwrap_or_default();
    let entries = entries.iter().filter(|entry| entry.kind.name().is_some()).map(|entry| entry.blob);
    let mut supplied = Vec::new();
    for blob in evidence.certificates.iter().copied().chain(entries) {
        let Some(ders) = reasons.note(Code::CertificateMalformed, certificates(blob)) else { continue };
        for der in ders {
            if supplied.len() == MAX_CERTIFICATES {
                reasons
                    .push(Code::CertificateMalformed, format!("more than {MAX_CERTIFICATES} certificates"));
                return supplied;
            }
            supplied.extend(reasons.note(Code::CertificateMalformed, Certificate::from_der(&der)));
        }
    }
    supplied
}

fn supplied_crls(collateral: &Collateral<'_>, reasons: &mut Reasons) -> Vec<Crl> {
    let mut supplied = Vec::new();
    for blob in collateral.crls {
        let Some(ders) = reasons.note(Code::CrlMalformed, crls(blob)) else { continue };
        for der in ders {
            supplied.extend(reasons.note(Code::CrlMalformed, Crl::from_der(&der)));
        }
    }
    supplied
}

/// MASK_CHIP_KEY means that the VCEK is not used in attestation (56860, SNP_CONFIG), and that the firmware writes zeros instead
/// of a signature (7.3). It is the chip's key that is masked: a signature by a VLEK beside the flag is judged as what it is.
fn signing_key(report: &Report, reasons: &mut Reasons) -> Option<VekKind> {
    let kind = match report.signing_key() {
        SigningKey::Vcek => VekKind::Vcek,
        SigningKey::Vlek => VekKind::Vlek,
        SigningKey::None => {
            reasons.push(Code::ReportUnsigned, "no key signed the report (KEY_INFO.SIGNING_KEY)");
            return None;
        }
        SigningKey::Unknown(key) => {
            reasons.push(Code::SigningKeyUnknown, format!("KEY_INFO.SIGNING_KEY is {key}"));
            return None;
        }
    };
    if report.mask_chip_key() && (kind == VekKind::Vcek || !report.has_signature()) {
        reasons.push(Code::ReportUnsigned, "the host masks the chip's key (KEY_INFO.MASK_CHIP_KEY)");
        return None;
    }
    Some(kind)
}

/// Every certificate with the name of an endorsement key of this kind, each once: no more than [`MAX_CERTIFICATES`], at one
/// signature each.
fn find_veks<'a>(
    kind: VekKind,
    report: &Report,
    supplied: &'a [Certificate],
    backend: &Backend,
    time: Moment,
    reasons: &mut Reasons,
) -> Vec<Candidate<'a>> {
    let name = kind.common_name();
    let mut candidates: Vec<Candidate<'a>> = Vec::new();
    for certificate in supplied.iter().filter(|certificate| certificate.common_name() == name) {
        if !candidates.iter().any(|other| other.certificate == certificate) {
            candidates.push(Candidate::new(kind, certificate, report, backend, time));
        }
    }
    if candidates.is_empty() {
        reasons
            .push(Code::VekMissing, format!("a {} signed the report, and no {name} was given", kind.name()));
    }
    candidates
}

/// The signed CPUID decides which product it is; version 2 has none, there the certificate does.
fn check_product(report: &Report, vek: &Vek, reasons: &mut Reasons) {
    match (report.cpuid(), report.product()) {
        (Some(cpuid), None) => {
            let message = format!("family/model/stepping {cpuid} is no product that is known here");
            reasons.push(Code::ProductUnknown, message);
        }
        (_, Some(product)) if product != vek.product => {
            let message = format!("the report is of {product}, the certificate of {}", vek.product);
            reasons.push(Code::ProductMismatch, message);
        }
        _ => {}
    }
}

/// The certificate must be for this chip at this TCB, and no other.
fn check_binding(report: &Report, vek: &Vek, reasons: &mut Reasons) {
    let pairs = report.reported_tcb().parts(vek.product).zip(vek.tcb.0);
    for ((part, reported), certified) in pairs.filter(|((_, reported), certified)| reported != certified) {
        let name = part.name();
        let message = format!("REPORTED_TCB has {name} {reported}, the certificate {certified}");
        reasons.push(Code::TcbMismatch, message);
    }
    let Some(hwid) = &vek.hwid else { return };
    // A host may mask CHIP_ID; whether that is acceptable is for the policy.
    let masked = *report.chip_id() == [0; 64];
    let (id, rest) = report.chip_id().split_at_checked(hwid.len()).unwrap_or_default();
    if !masked && (id != hwid || rest.iter().any(|&byte| byte != 0)) {
        reasons.push(Code::ChipIdMismatch, "CHIP_ID is not the certificate's HWID");
    }
}

fn check_signature(report: &Report, vek: &Vek, backend: &Backend, reasons: &mut Reasons) -> bool {
    let signed = vek.signed(report, backend);
    match signed {
        Some(true) => {}
        Some(false) => {
            let message = format!("the report's signature is not by this {}", vek.kind.name());
            reasons.push(Code::ReportSignature, message);
        }
        None => reasons.push(Code::SignatureMalformed, "r or s is zero or no scalar of P-384"),
    }
    signed == Some(true)
}

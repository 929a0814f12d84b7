//! Chains of certificates: every one ends in one trusted root, at most one authority away from it.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::Serialize;

use super::roots::TrustRoots;
use crate::signature::Backend;
use crate::verdict::{Code, Reasons};
use crate::x509::{Certificate, Crl, Moment, UnixTime, certificates};

/// More certificates than any chain has.
const MAX_CERTIFICATES: usize = 4;

/// Which of Intel's authorities issued a PCK certificate.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PckCa {
    /// For platforms that were registered as a whole.
    Platform,
    /// For single processor packages.
    Processor,
}

impl PckCa {
    fn of(ca: &Certificate) -> Option<Self> {
        let is = |phrase: &str| ca.common_name().contains(phrase);
        match () {
            () if is("PCK Platform CA") => Some(Self::Platform),
            () if is("PCK Processor CA") => Some(Self::Processor),
            () => None,
        }
    }
}

/// When something holds, and what to say when it does not.
#[derive(Clone, Debug)]
pub(super) struct Window {
    name: String,
    from: UnixTime,
    to: UnixTime,
    kind: WindowKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WindowKind {
    /// Both ends included (RFC 5280, 4.1.2.5).
    Certificate,
    /// A CRL is replaced at its nextUpdate.
    Crl,
    /// TCB info and QE identity hold through their nextUpdate.
    Document,
}

impl Window {
    pub fn of_certificate(certificate: &Certificate) -> Self {
        let name = format!("the certificate {}", certificate.common_name());
        let (from, to) = (certificate.not_before(), certificate.not_after());
        Self { name, from, to, kind: WindowKind::Certificate }
    }

    /// A CRL that does not say how long it holds does not hold.
    pub fn of_crl(crl: &Crl, issuer: &Certificate) -> Self {
        let (from, to) = (crl.this_update(), crl.next_update().unwrap_or(UnixTime(0)));
        Self { name: format!("the CRL of {}", issuer.common_name()), from, to, kind: WindowKind::Crl }
    }

    pub fn of_document(name: &str, from: UnixTime, to: UnixTime) -> Self {
        Self { name: format!("the {name}"), from, to, kind: WindowKind::Document }
    }

    /// Refuses `time` outside of the window.
    pub fn check(&self, time: Moment, reasons: &mut Reasons) {
        let (early, late) = match self.kind {
            WindowKind::Certificate => (Code::CertificateNotYetValid, Code::CertificateExpired),
            WindowKind::Crl => (Code::CrlNotYetValid, Code::CrlExpired),
            WindowKind::Document => (Code::CollateralNotYetValid, Code::CollateralExpired),
        };
        let Self { name, from, to, kind } = self;
        if time.is_before(*from) {
            reasons.push(early, format!("{name} is valid from {from}, and it is {time}"));
        }
        let late_now = match kind {
            WindowKind::Crl => time.has_reached(*to),
            WindowKind::Certificate | WindowKind::Document => time.is_after(*to),
        };
        if late_now {
            reasons.push(late, format!("{name} was valid until {to}, and it is {time}"));
        }
    }

    /// From when to when.
    pub fn range(&self) -> (UnixTime, UnixTime) {
        (self.from, self.to)
    }
}

/// The certificates in `pem`, leaf first, each followed by its issuer. Those that are known by their bytes, such as the roots,
/// have been read before.
pub(super) fn read(
    role: &str,
    pem: &[u8],
    roots: &TrustRoots,
    known: Option<&Certificate>,
    reasons: &mut Reasons,
) -> Option<Vec<Certificate>> {
    let malformed = |error: &dyn core::fmt::Display| format!("{role}: {error}");
    let ders = certificates(pem).map_err(|error| malformed(&error));
    let ders = reasons.note(Code::CertificateMalformed, ders)?;
    if ders.len() > MAX_CERTIFICATES {
        let message = format!("{role}: {} certificates are more than any chain has", ders.len());
        reasons.push(Code::CertificateMalformed, message);
        return None;
    }
    let chain: Result<Vec<_>, _> = ders
        .iter()
        .map(|der| match roots.roots().iter().chain(known).find(|known| known.der() == &**der) {
            Some(known) => Ok(known.clone()),
            None => Certificate::from_der(der),
        })
        .collect();
    let chain = reasons.note(Code::CertificateMalformed, chain.map_err(|error| malformed(&error)))?;
    check_order(role, &chain, roots, reasons);
    Some(chain)
}

/// Every certificate has a purpose: it issued the one before it. A root that nobody trusts is somebody's forgery.
fn check_order(role: &str, chain: &[Certificate], roots: &TrustRoots, reasons: &mut Reasons) {
    for (subject, issuer) in chain.iter().zip(chain.iter().skip(1)) {
        if !subject.names_issuer(issuer) {
            let (subject, issuer) = (subject.common_name(), issuer.common_name());
            let message = format!("{role}: {subject} is followed by {issuer}, who is not its issuer");
            reasons.push(Code::IntermediateMissing, message);
        }
    }
    let Some((last, [_, ..])) = chain.split_last() else { return };
    let of_root = !last.names_issuer(last) && roots.roots().iter().any(|root| last.names_issuer(root));
    if !of_root && !roots.roots().contains(last) {
        let message = format!("{role} ends in {}, which is not trusted", last.common_name());
        reasons.push(Code::RootUntrusted, message);
    }
}

/// The trusted root that issued `certificate`.
pub(super) fn root_of(
    role: &str,
    certificate: &Certificate,
    roots: &[Certificate],
    backend: &Backend,
    reasons: &mut Reasons,
) -> Option<Certificate> {
    let mut failure = None;
    for root in roots.iter().filter(|root| certificate.names_issuer(root)) {
        match certificate.verify_signed_by(root, backend) {
            Ok(()) => return Some(root.clone()),
            Err(error) => failure = Some(error),
        }
    }
    let name = certificate.common_name();
    match failure {
        Some(error) => reasons.push(Code::CertificateSignature, format!("{role}: {name}: {error}")),
        None => reasons.push(Code::RootUntrusted, format!("{role}: no trusted root issued {name}")),
    }
    None
}

/// Refuses an authority for PCK certificates that is none, or that its root has revoked. Its signature is for
/// the caller to check.
pub(super) fn check_pck_ca(ca: &Certificate, root_crl: Option<&Crl>, reasons: &mut Reasons) -> Option<PckCa> {
    let name = ca.common_name();
    if let Err(error) = ca.check_authority(0) {
        reasons.push(Code::CertificateProfile, format!("{name}: {error}"));
    }
    check_revoked(ca, root_crl, reasons);
    let kind = PckCa::of(ca);
    if kind.is_none() {
        let message = format!("{name} is neither the PCK Platform CA nor the PCK Processor CA");
        reasons.push(Code::CertificateProfile, message);
    }
    kind
}

/// Refuses a certificate that signs data and may not.
pub(super) fn check_leaf(leaf: &Certificate, reasons: &mut Reasons) {
    let name = leaf.common_name();
    if leaf.is_authority() {
        reasons.push(Code::CertificateProfile, format!("{name} is the certificate of an authority"));
    }
    if !leaf.may_sign_data() {
        reasons.push(Code::CertificateProfile, format!("the key usage of {name} does not allow signing"));
    }
}

/// Refuses a certificate that is on its issuer's list.
pub(super) fn check_revoked(certificate: &Certificate, crl: Option<&Crl>, reasons: &mut Reasons) {
    if crl.is_some_and(|crl| crl.revokes(certificate)) {
        let message = format!("{} has been revoked by its issuer", certificate.common_name());
        reasons.push(Code::CertificateRevoked, message);
    }
}

/// Refuses a CRL that its issuer did not sign, or may not.
pub(super) fn check_crl(crl: &Crl, issuer: &Certificate, backend: &Backend, reasons: &mut Reasons) -> bool {
    let name = issuer.common_name();
    if let Err(error) = crl.verify_signed_by(issuer, backend) {
        reasons.push(Code::CrlSignature, format!("the CRL of {name}: {error}"));
        return false;
    }
    if !issuer.may_sign_crls() {
        reasons.push(Code::CrlSignature, format!("{name} may not sign CRLs"));
        return false;
    }
    true
}

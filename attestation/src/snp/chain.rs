//! The chain from a root to an endorsement key: ARK, ASK or ASVK, VCEK or VLEK.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::Serialize;

use super::policy::VekKind;
use super::roots::{TrustRoots, root_product};
use super::tcb::Product;
use crate::signature::Backend;
use crate::verdict::{Code, Reasons};
use crate::x509::{Certificate, Crl, UnixTime};

/// What is known about revocation.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "status")]
pub enum Revocation {
    /// No CRL of the root was given.
    NotChecked,
    /// One was, but it is of another time; what it revokes was honoured.
    Stale {
        /// When it was issued.
        this_update: UnixTime,
        /// When it was to be replaced, if it says.
        next_update: Option<UnixTime>,
    },
    /// A current one was, and the chain is not on it.
    Checked {
        /// When it was issued.
        this_update: UnixTime,
        /// When it is to be replaced.
        next_update: UnixTime,
    },
}

impl Revocation {
    /// What the same CRL is worth at another time.
    pub(super) fn at(self, time: UnixTime) -> Self {
        let (this_update, next_update) = match self {
            Self::NotChecked => return Self::NotChecked,
            Self::Stale { this_update, next_update } => (this_update, next_update),
            Self::Checked { this_update, next_update } => (this_update, Some(next_update)),
        };
        match next_update {
            Some(next_update) if (this_update..next_update).contains(&time) => {
                Self::Checked { this_update, next_update }
            }
            next_update => Self::Stale { this_update, next_update },
        }
    }
}

/// What the checks of a chain have to go by.
pub(super) struct ChainInputs<'a> {
    /// Whose certificate is to be believed.
    pub vek: &'a Certificate,
    /// Of which kind it is.
    pub kind: VekKind,
    /// Of which product it must be.
    pub product: Product,
    /// Everything else that came with the evidence.
    pub others: &'a [Certificate],
    /// What is trusted.
    pub roots: &'a TrustRoots,
    /// What the root revoked, according to whoever gave these.
    pub crls: &'a [Crl],
    /// Now.
    pub time: UnixTime,
    pub backend: &'a Backend,
}

/// A chain that ends in a trusted root, if no reason was noted beside it.
pub(super) struct Chain<'a> {
    pub intermediate: &'a Certificate,
    pub root: &'a Certificate,
    pub revocation: Revocation,
}

/// The common name of the authority that issues keys of this kind.
fn intermediate_name(kind: VekKind, product: Product) -> String {
    match kind {
        VekKind::Vcek => format!("SEV-{product}"),
        VekKind::Vlek => format!("SEV-VLEK-{product}"),
    }
}

/// Checks the chain; every check that can be made is made.
pub(super) fn check<'a>(inputs: &ChainInputs<'a>, reasons: &mut Reasons) -> Option<Chain<'a>> {
    check_leaf(inputs, reasons);
    check_supplied_roots(inputs, reasons);
    let intermediate = find_intermediate(inputs, reasons)?;
    check_window("intermediate", intermediate, inputs.time, reasons);
    if let Err(error) = intermediate.check_authority(0) {
        reasons.push(Code::CertificateProfile, format!("{}: {error}", intermediate.common_name()));
    }
    let root = find_root(inputs, intermediate, reasons)?;
    check_window("root", root, inputs.time, reasons);
    let revocation = check_revocation(inputs, root, intermediate, reasons);
    Some(Chain { intermediate, root, revocation })
}

fn check_leaf(inputs: &ChainInputs<'_>, reasons: &mut Reasons) {
    let vek = inputs.vek;
    check_window("endorsement key", vek, inputs.time, reasons);
    if vek.is_authority() {
        reasons.push(Code::CertificateProfile, "the endorsement key's certificate is that of an authority");
    }
    if !vek.may_sign_data() {
        reasons.push(Code::CertificateProfile, "the endorsement key's key usage does not allow signing");
    }
}

/// Checks that every certificate of a chain that was checked at another time is valid at this one.
pub(super) fn check_windows(
    vek: &Certificate,
    intermediate: &Certificate,
    root: &Certificate,
    time: UnixTime,
    reasons: &mut Reasons,
) {
    for (role, certificate) in [("endorsement key", vek), ("intermediate", intermediate), ("root", root)] {
        check_window(role, certificate, time, reasons);
    }
}

fn check_window(role: &str, certificate: &Certificate, time: UnixTime, reasons: &mut Reasons) {
    let (from, to) = (certificate.not_before(), certificate.not_after());
    let name = certificate.common_name();
    if time < from {
        let message = format!("the {role} certificate {name} is valid from {from}, and it is {time}");
        reasons.push(Code::CertificateNotYetValid, message);
    }
    if time > to {
        let message = format!("the {role} certificate {name} was valid until {to}, and it is {time}");
        reasons.push(Code::CertificateExpired, message);
    }
}

/// A root that comes with the evidence proves nothing; one that nobody trusts is somebody's forgery.
fn check_supplied_roots(inputs: &ChainInputs<'_>, reasons: &mut Reasons) {
    let supplied = inputs.others.iter().filter(|certificate| root_product(certificate).is_some());
    for root in supplied.filter(|root| !inputs.roots.roots().contains(root)) {
        let name = root.common_name();
        reasons
            .push(Code::RootUntrusted, format!("the evidence brings its own {name}, which is not trusted"));
    }
}

/// The first of `candidates` whose key signed `subject`, or the reason why there is none.
fn issuer_of<'a>(
    subject: &Certificate,
    candidates: Vec<&'a Certificate>,
    backend: &Backend,
) -> Result<&'a Certificate, Missing> {
    let mut first_error = None;
    for candidate in candidates {
        match subject.verify_signed_by(candidate, backend) {
            Ok(()) => return Ok(candidate),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.map_or(Missing::NoCandidate, Missing::Signature))
}

enum Missing {
    NoCandidate,
    Signature(crate::x509::SignatureError),
}

fn find_intermediate<'a>(inputs: &ChainInputs<'a>, reasons: &mut Reasons) -> Option<&'a Certificate> {
    let name = intermediate_name(inputs.kind, inputs.product);
    let all = inputs.others.iter().chain(inputs.roots.intermediates());
    let fits = |c: &&Certificate| c.common_name() == name && inputs.vek.names_issuer(c);
    match issuer_of(inputs.vek, all.filter(fits).collect(), inputs.backend) {
        Ok(intermediate) => return Some(intermediate),
        Err(Missing::NoCandidate) => {
            let message =
                format!("there is no {name} that the endorsement key's certificate names as issuer");
            reasons.push(Code::IntermediateMissing, message);
        }
        Err(Missing::Signature(error)) => {
            reasons.push(Code::CertificateSignature, format!("the endorsement key's certificate: {error}"));
        }
    }
    None
}

fn find_root<'a>(
    inputs: &ChainInputs<'a>,
    intermediate: &Certificate,
    reasons: &mut Reasons,
) -> Option<&'a Certificate> {
    let fits =
        |root: &&Certificate| root_product(root) == Some(inputs.product) && intermediate.names_issuer(root);
    match issuer_of(intermediate, inputs.roots.roots().iter().filter(fits).collect(), inputs.backend) {
        Ok(root) => return Some(root),
        Err(Missing::NoCandidate) => {
            let any = inputs.roots.roots().iter().any(|root| root_product(root) == Some(inputs.product));
            let hint = if any { "" } else { "; none for this product is trusted at all" };
            let message = format!("no trusted root for {} is the issuer of its chain{hint}", inputs.product);
            reasons.push(Code::RootUntrusted, message);
        }
        Err(Missing::Signature(error)) => {
            let message = format!("{} under the trusted root: {error}", intermediate.common_name());
            reasons.push(Code::CertificateSignature, message);
        }
    }
    None
}

/// CRLs of other roots say nothing here. All of this root's are honoured, whatever their time; only a current
/// one lets the chain count as checked.
fn check_revocation(
    inputs: &ChainInputs<'_>,
    root: &Certificate,
    intermediate: &Certificate,
    reasons: &mut Reasons,
) -> Revocation {
    let mut best = Revocation::NotChecked;
    for crl in inputs.crls.iter().filter(|crl| crl.issuer() == root.subject()) {
        if let Err(error) = crl.verify_signed_by(root, inputs.backend) {
            reasons.push(Code::CrlSignature, format!("the CRL of {}: {error}", root.common_name()));
            continue;
        }
        if !root.may_sign_crls() {
            reasons.push(Code::CrlSignature, format!("{} may not sign CRLs", root.common_name()));
            continue;
        }
        for certificate in [root, intermediate].into_iter().filter(|c| crl.revokes(c)) {
            let message = format!("{} has been revoked by its root", certificate.common_name());
            reasons.push(Code::CertificateRevoked, message);
        }
        best = better(best, status(crl, inputs.time));
    }
    best
}

fn status(crl: &Crl, time: UnixTime) -> Revocation {
    Revocation::Stale { this_update: crl.this_update(), next_update: crl.next_update() }.at(time)
}

/// A current CRL is better than a stale one, a later one than an earlier one.
fn better(a: Revocation, b: Revocation) -> Revocation {
    let rank = |revocation: &Revocation| match *revocation {
        Revocation::NotChecked => (0, UnixTime(0)),
        Revocation::Stale { this_update, .. } => (1, this_update),
        Revocation::Checked { this_update, .. } => (2, this_update),
    };
    if rank(&b) > rank(&a) { b } else { a }
}

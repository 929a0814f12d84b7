//! The chain from a root to an endorsement key: ARK, ASK or ASVK, VCEK or VLEK.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::OnceCell;

use serde::Serialize;

use super::policy::VekKind;
use super::roots::{TrustRoots, root_product};
use super::tcb::Product;
use crate::signature::Backend;
use crate::verdict::{Code, Reasons};
use crate::x509::{Certificate, Crl, Moment, UnixTime};

/// What is known about revocation.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "status")]
pub enum Revocation {
    /// No CRL was given.
    NotChecked,
    /// CRLs were, and none of them is of the root: they say nothing about this chain.
    Inapplicable,
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
    pub(super) fn at(self, time: Moment) -> Self {
        let (this_update, next_update) = match self {
            Self::NotChecked | Self::Inapplicable => return self,
            Self::Stale { this_update, next_update } => (this_update, next_update),
            Self::Checked { this_update, next_update } => (this_update, Some(next_update)),
        };
        match next_update {
            Some(next_update) if !time.is_before(this_update) && !time.has_reached(next_update) => {
                Self::Checked { this_update, next_update }
            }
            next_update => Self::Stale { this_update, next_update },
        }
    }
}

/// What the checks of a chain have to go by.
pub(super) struct ChainInputs<'a> {
    /// Everything that came with the evidence.
    pub supplied: &'a [Certificate],
    /// What is trusted.
    pub roots: &'a TrustRoots,
    /// What the root revoked, according to whoever gave these.
    pub crls: &'a [Crl],
    /// Now.
    pub time: Moment,
    pub backend: &'a Backend,
}

/// Authorities up to a trusted root.
#[derive(Clone, Copy)]
pub(super) struct Chain<'a> {
    pub intermediate: &'a Certificate,
    pub root: &'a Certificate,
    pub revocation: Revocation,
}

/// The authorities that may have issued keys of one kind: those that came with the evidence, then those that are known here.
///
/// Several may have one name, and one key: an expired one and its successor, or a forgery. Each is judged by itself and
/// at most once, so that strangers' certificates cost one signature of a root's each, however many keys' certificates
/// there are; and only those without a fault are asked whether they signed a key's certificate.
pub(super) struct Issuers<'a> {
    inputs: ChainInputs<'a>,
    candidates: Vec<Issuer<'a>>,
}

struct Issuer<'a> {
    certificate: &'a Certificate,
    product: Product,
    judged: OnceCell<(Reasons, Option<Chain<'a>>)>,
}

/// The product for which this is the name of the authority that issues keys of this kind.
fn authority_product(kind: VekKind, name: &str) -> Option<Product> {
    Product::by_name(name.strip_prefix(match kind {
        VekKind::Vcek => "SEV-",
        VekKind::Vlek => "SEV-VLEK-",
    })?)
}

impl<'a> Issuers<'a> {
    pub fn new(kind: VekKind, inputs: ChainInputs<'a>) -> Self {
        let mut candidates: Vec<Issuer<'a>> = Vec::new();
        for certificate in inputs.supplied.iter().chain(inputs.roots.intermediates()) {
            let known = || candidates.iter().any(|other| other.certificate == certificate);
            if let Some(product) = authority_product(kind, certificate.common_name())
                && !known()
            {
                candidates.push(Issuer { certificate, product, judged: OnceCell::new() });
            }
        }
        Self { inputs, candidates }
    }

    /// Those that the certificate of a key of `product` can mean.
    fn named<'s>(&'s self, vek: &'s Certificate, product: Product) -> impl Iterator<Item = &'s Issuer<'a>> {
        self.candidates
            .iter()
            .filter(move |issuer| issuer.product == product && vek.names_issuer(issuer.certificate))
    }

    fn judged<'s>(&self, issuer: &'s Issuer<'a>) -> &'s (Reasons, Option<Chain<'a>>) {
        issuer.judged.get_or_init(|| {
            let mut reasons = Reasons::default();
            let chain = check_authorities(&self.inputs, issuer, &mut reasons);
            (reasons, chain)
        })
    }

    /// The first chain to a trusted root that nothing speaks against.
    pub fn chain(&self, vek: &Certificate, product: Product) -> Option<Chain<'a>> {
        self.named(vek, product).find_map(|issuer| {
            let (reasons, chain) = self.judged(issuer);
            let signed = || vek.verify_signed_by(issuer.certificate, self.inputs.backend).is_ok();
            chain.filter(|_| reasons.is_empty() && signed())
        })
    }

    /// Why there is no [`chain`](Self::chain): what is wrong with the authority that did sign the certificate, or that none did.
    pub fn faults(&self, vek: &Certificate, product: Product, kind: VekKind, reasons: &mut Reasons) {
        let mut mismatch = None;
        let signed = self.named(vek, product).filter(|issuer| {
            let signed = vek.verify_signed_by(issuer.certificate, self.inputs.backend);
            mismatch = mismatch.or(signed.err());
            signed.is_ok()
        });
        let fewest = signed
            .map(|issuer| (&self.judged(issuer).0, issuer.certificate.fingerprint()))
            .min_by_key(|(faults, fingerprint)| (faults.iter().len(), *fingerprint));
        match (fewest, mismatch) {
            (Some((faults, _)), _) => reasons.append(faults.clone()),
            (None, Some(error)) => {
                let message = format!("the endorsement key's certificate: {error}");
                reasons.push(Code::CertificateSignature, message);
            }
            (None, None) => {
                let name = intermediate_name(kind, product);
                let message =
                    format!("there is no {name} that the endorsement key's certificate names as issuer");
                reasons.push(Code::IntermediateMissing, message);
            }
        }
    }
}

/// The common name of the authority that issues keys of this kind.
fn intermediate_name(kind: VekKind, product: Product) -> String {
    match kind {
        VekKind::Vcek => format!("SEV-{product}"),
        VekKind::Vlek => format!("SEV-VLEK-{product}"),
    }
}

/// Checks an intermediate and what is above it; every check that can be made is made.
fn check_authorities<'a>(
    inputs: &ChainInputs<'a>,
    issuer: &Issuer<'a>,
    reasons: &mut Reasons,
) -> Option<Chain<'a>> {
    let intermediate = issuer.certificate;
    check_window("intermediate", intermediate, inputs.time, reasons);
    if let Err(error) = intermediate.check_authority(0) {
        reasons.push(Code::CertificateProfile, format!("{}: {error}", intermediate.common_name()));
    }
    let root = find_root(inputs, issuer, reasons)?;
    check_window("root", root, inputs.time, reasons);
    let revocation = check_revocation(inputs, root, intermediate, reasons);
    Some(Chain { intermediate, root, revocation })
}

/// Checks what an endorsement key's certificate says of itself.
pub(super) fn check_leaf(vek: &Certificate, time: Moment, reasons: &mut Reasons) {
    check_window("endorsement key", vek, time, reasons);
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
    time: Moment,
    reasons: &mut Reasons,
) {
    for (role, certificate) in [("endorsement key", vek), ("intermediate", intermediate), ("root", root)] {
        check_window(role, certificate, time, reasons);
    }
}

fn check_window(role: &str, certificate: &Certificate, time: Moment, reasons: &mut Reasons) {
    let (from, to) = (certificate.not_before(), certificate.not_after());
    let name = certificate.common_name();
    if time.is_before(from) {
        let message = format!("the {role} certificate {name} is valid from {from}, and it is {time}");
        reasons.push(Code::CertificateNotYetValid, message);
    }
    if time.is_after(to) {
        let message = format!("the {role} certificate {name} was valid until {to}, and it is {time}");
        reasons.push(Code::CertificateExpired, message);
    }
}

/// A root that comes with the evidence proves nothing; one that nobody trusts is somebody's forgery.
pub(super) fn check_supplied_roots(supplied: &[Certificate], roots: &TrustRoots, reasons: &mut Reasons) {
    let supplied = supplied.iter().filter(|certificate| root_product(certificate).is_some());
    for root in supplied.filter(|root| !roots.roots().contains(root)) {
        let name = root.common_name();
        reasons
            .push(Code::RootUntrusted, format!("the evidence brings its own {name}, which is not trusted"));
    }
}

/// The trusted root that signed the intermediate; of several with one key, one that is valid now.
fn find_root<'a>(
    inputs: &ChainInputs<'a>,
    issuer: &Issuer<'_>,
    reasons: &mut Reasons,
) -> Option<&'a Certificate> {
    let (intermediate, product) = (issuer.certificate, issuer.product);
    let of_product = || inputs.roots.roots().iter().filter(|root| root_product(root) == Some(product));
    let mut mismatch = None;
    let mut signers = of_product().filter(|root| intermediate.names_issuer(root)).filter(|root| {
        let signed = intermediate.verify_signed_by(root, inputs.backend);
        mismatch = mismatch.or(signed.err());
        signed.is_ok()
    });
    let first = signers.next();
    let time = inputs.time;
    let valid = |root: &&Certificate| !time.is_before(root.not_before()) && !time.is_after(root.not_after());
    if let Some(root) = first.into_iter().chain(signers).find(valid).or(first) {
        return Some(root);
    }
    match mismatch {
        None => {
            let hint =
                if of_product().next().is_some() { "" } else { "; none for this product is trusted at all" };
            let message = format!("no trusted root for {product} is the issuer of its chain{hint}");
            reasons.push(Code::RootUntrusted, message);
        }
        Some(error) => {
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
    let mut best = match inputs.crls {
        [] => Revocation::NotChecked,
        _ => Revocation::Inapplicable,
    };
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

fn status(crl: &Crl, time: Moment) -> Revocation {
    Revocation::Stale { this_update: crl.this_update(), next_update: crl.next_update() }.at(time)
}

/// A current CRL is better than a stale one, a later one than an earlier one.
fn better(a: Revocation, b: Revocation) -> Revocation {
    let rank = |revocation: &Revocation| match *revocation {
        Revocation::NotChecked | Revocation::Inapplicable => (0, UnixTime(0)),
        Revocation::Stale { this_update, .. } => (1, this_update),
        Revocation::Checked { this_update, .. } => (2, this_update),
    };
    if rank(&b) > rank(&a) { b } else { a }
}

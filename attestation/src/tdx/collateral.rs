//! What Intel publishes beside its root: which keys it revoked, and what it says of platforms, modules and quoting
//! enclaves at their versions.
//!
//! Nothing about it depends on a quote. So it is read, and all of its signatures are checked, once; what
//! depends on the time is checked whenever a quote is, since collateral ages.

use alloc::format;
use alloc::vec::Vec;

use serde::Serialize;

use super::chain::{self, PckCa, Window};
use super::documents::{CollateralDocument, HexBytes, QeIdentity, TcbInfo};
use super::roots::TrustRoots;
use crate::signature::Backend;
use crate::snp::Hex;
use crate::verdict::{Code, Reasons};
use crate::x509::{Certificate, Crl, UnixTime};

/// Collateral whose signatures have been checked against trusted roots. What was wrong with it is kept as reasons
/// that every verdict over it will have.
#[derive(Clone, Debug)]
pub struct Collateral {
    pub(super) reasons: Reasons,
    pub(super) windows: Vec<Window>,
    pub(super) roots: TrustRoots,
    pub(super) backend: Backend,
    /// Only what is authentic, whatever its time.
    pub(super) root: Option<Certificate>,
    pub(super) root_crl: Option<Crl>,
    pub(super) pck_ca: Option<(Certificate, PckCa)>,
    pub(super) pck_crl: Option<Crl>,
    pub(super) tcb_info: Option<TcbInfo>,
    pub(super) qe_identity: Option<QeIdentity>,
}

/// What is known about revocation.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Crls {
    /// Number of the root's CRL.
    pub root_number: Option<u64>,
    /// Number of the PCK authority's CRL.
    pub pck_number: Option<u64>,
}

impl Collateral {
    /// Reads collateral as [`CollateralDocument`] describes it, and checks it against `roots`.
    pub fn new(document: &[u8], roots: &TrustRoots) -> Self {
        Self::with_backend(&Backend::default(), document, roots)
    }

    /// As [`Collateral::new`], with a backend of the caller's choice for every signature, those of the quotes that are
    /// verified over this collateral included.
    pub fn with_backend(backend: &Backend, document: &[u8], roots: &TrustRoots) -> Self {
        let mut collateral = Self::empty(backend, roots);
        let document = CollateralDocument::from_json(document);
        if let Some(document) = collateral.reasons.note(Code::CollateralMalformed, document) {
            collateral.read(&document);
        }
        collateral
    }

    /// As [`Collateral::with_backend`], for who has the parts of the document, such as the answers of a PCCS.
    pub fn from_document(backend: &Backend, document: &CollateralDocument, roots: &TrustRoots) -> Self {
        let mut collateral = Self::empty(backend, roots);
        collateral.read(document);
        collateral
    }

    fn empty(backend: &Backend, roots: &TrustRoots) -> Self {
        Self {
            reasons: Reasons::default(),
            windows: Vec::new(),
            roots: roots.clone(),
            backend: *backend,
            root: None,
            root_crl: None,
            pck_ca: None,
            pck_crl: None,
            tcb_info: None,
            qe_identity: None,
        }
    }

    /// What is wrong with it, whatever the quote and the time.
    pub fn reasons(&self) -> &Reasons {
        &self.reasons
    }

    /// What Intel says about the model of platform, if it is Intel who says it.
    pub fn tcb_info(&self) -> Option<&TcbInfo> {
        self.tcb_info.as_ref()
    }

    /// What Intel says about the quoting enclave, if it is Intel who says it.
    pub fn qe_identity(&self) -> Option<&QeIdentity> {
        self.qe_identity.as_ref()
    }

    /// The time in which all of it holds.
    pub fn window(&self) -> (UnixTime, UnixTime) {
        let ranges = || self.windows.iter().map(Window::range);
        let from = ranges().map(|(from, _)| from).max().unwrap_or(UnixTime(u64::MAX));
        let to = ranges().map(|(_, to)| to).min().unwrap_or(UnixTime(0));
        (from, to)
    }

    fn read(&mut self, document: &CollateralDocument) {
        let tcb_signer = self.signer("TCB info", &document.tcb_info_issuer_chain);
        // Intel signs both with one key; looking once is enough.
        let same = document.qe_identity_issuer_chain == document.tcb_info_issuer_chain;
        let qe_signer = match same {
            true => tcb_signer.clone(),
            false => self.signer("QE identity", &document.qe_identity_issuer_chain),
        };
        self.read_root_crl(&document.root_ca_crl);
        for signer in tcb_signer.iter().chain(qe_signer.iter().filter(|_| !same)) {
            chain::check_revoked(signer, self.root_crl.as_ref(), &mut self.reasons);
        }
        self.read_pck_crl(&document.pck_crl_issuer_chain, &document.pck_crl);
        if let Some(signer) = tcb_signer {
            let (text, signature) = (&document.tcb_info, &document.tcb_info_signature);
            self.tcb_info = self.signed(Code::TcbInfoSignature, &signer, text, signature, TcbInfo::from_json);
        }
        if let Some(signer) = qe_signer {
            let (text, signature) = (&document.qe_identity, &document.qe_identity_signature);
            self.qe_identity =
                self.signed(Code::QeIdentitySignature, &signer, text, signature, QeIdentity::from_json);
        }
        if let Some(info) = &self.tcb_info {
            self.windows.push(Window::of_document("TCB info", info.issue_date, info.next_update));
        }
        if let Some(identity) = &self.qe_identity {
            let window = Window::of_document("QE identity", identity.issue_date, identity.next_update);
            self.windows.push(window);
        }
    }

    /// The signer of a document: appointed by the root itself, for this.
    fn signer(&mut self, role: &str, pem: &str) -> Option<Certificate> {
        let chain = chain::read(role, pem.as_bytes(), &self.roots, None, &mut self.reasons)?;
        let (signer, others) = chain.split_first()?;
        let name = signer.common_name();
        let roots = self.roots.roots().to_vec();
        let by_another = others.iter().any(|other| signer.names_issuer(other) && !other.names_issuer(other));
        if by_another && !roots.iter().any(|root| signer.names_issuer(root)) {
            let message = format!("{role}: {name} was issued by {}, not by the root", signer.issuer());
            self.reasons.push(Code::CollateralSigner, message);
            return None;
        }
        let root = chain::root_of(role, signer, &roots, &self.backend, &mut self.reasons)?;
        if !name.contains("SGX TCB Signing") {
            let message = format!("{role}: {name} is not the key that the root appointed for it");
            self.reasons.push(Code::CollateralSigner, message);
        }
        chain::check_leaf(signer, &mut self.reasons);
        self.windows.push(Window::of_certificate(signer));
        match &self.root {
            None => {
                self.windows.push(Window::of_certificate(&root));
                self.root = Some(root);
            }
            Some(known) if *known != root => {
                let message = format!("{role}: {name} is under another root than the rest of the collateral");
                self.reasons.push(Code::RootUntrusted, message);
            }
            Some(_) => {}
        }
        Some(signer.clone())
    }

    fn signed<T>(
        &mut self,
        code: Code,
        signer: &Certificate,
        text: &str,
        signature: &Hex<64>,
        read: fn(&str) -> Result<T, super::documents::CollateralError>,
    ) -> Option<T> {
        let Some(point) = signer.p256_point() else {
            let message = format!("the key of {} is not on P-256", signer.common_name());
            self.reasons.push(Code::CertificateProfile, message);
            return None;
        };
        if !(self.backend.p256)(point, text.as_bytes(), &signature.0) {
            self.reasons.push(code, format!("the text was not signed by {}", signer.common_name()));
            return None;
        }
        self.reasons.note(Code::CollateralMalformed, read(text))
    }

    fn read_root_crl(&mut self, der: &HexBytes) {
        let Some(crl) = self.reasons.note(Code::CrlMalformed, Crl::from_der(&der.0)) else { return };
        let Some(root) = &self.root else { return };
        if crl.issuer() != root.subject() {
            let message = format!("the CRL of {} was given instead of {}'s", crl.issuer(), root.subject());
            self.reasons.push(Code::CrlMissing, message);
        } else if chain::check_crl(&crl, root, &self.backend, &mut self.reasons) {
            chain::check_revoked(root, Some(&crl), &mut self.reasons);
            self.windows.push(Window::of_crl(&crl, root));
            self.root_crl = Some(crl);
        }
    }

    fn read_pck_crl(&mut self, pem: &str, der: &HexBytes) {
        const ROLE: &str = "PCK CRL";
        let chain = chain::read(ROLE, pem.as_bytes(), &self.roots, None, &mut self.reasons);
        let crl = self.reasons.note(Code::CrlMalformed, Crl::from_der(&der.0));
        let Some((ca, crl)) = chain.as_ref().and_then(|chain| chain.first()).zip(crl) else { return };
        let Some(root) = &self.root else { return };
        let roots = core::slice::from_ref(root);
        if chain::root_of(ROLE, ca, roots, &self.backend, &mut self.reasons).is_none() {
            return;
        }
        let kind = chain::check_pck_ca(ca, self.root_crl.as_ref(), &mut self.reasons);
        self.windows.push(Window::of_certificate(ca));
        self.pck_ca = kind.map(|kind| (ca.clone(), kind));
        if crl.issuer() != ca.subject() {
            let message = format!("the CRL of {} was given instead of {}'s", crl.issuer(), ca.subject());
            self.reasons.push(Code::CrlMissing, message);
        } else if chain::check_crl(&crl, ca, &self.backend, &mut self.reasons) {
            self.windows.push(Window::of_crl(&crl, ca));
            self.pck_crl = Some(crl);
        }
    }
}

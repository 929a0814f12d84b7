//! The first question: did a processor of Intel's make this quote, as far as its root can say?

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use sha2::{Digest, Sha256};
use zerocopy::IntoBytes;

use super::chain::{self, PckCa, Window};
use super::claims::EventLogClaims;
use super::collateral::{Collateral, Crls};
use super::documents::{ModuleSigner, QeIdentity, TcbInfo};
use super::event_log::{EventLog, EventLogQuirk, Inconsistency};
use super::pck::{Pck, PckError};
use super::policy::Padding;
use super::quote::{EnclaveReport, Quote, TdReport};
use super::tcb::{self, TcbStatus, TcbVerdict};
use crate::signature::Backend;
use crate::verdict::{Code, Reasons};
use crate::x509::{Certificate, Moment, UnixTime};

/// Inconsistencies of one event log that are named: a log of nothing else has thousands.
const MAX_INCONSISTENCIES: usize = 16;

/// What a guest or its host presents. None of it is trusted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Evidence<'a> {
    /// The quote, exactly as it was received.
    pub quote: &'a [u8],
    /// The log of what the guest's firmware measured (the area that ACPI's CCEL table points to).
    pub event_log: Option<&'a [u8]>,
}

/// What a relying party says before anything is checked: what time it is, and what it lets pass in an event log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions<'a> {
    /// Now.
    pub time: Moment,
    /// Quirks that are no inconsistency of an event log. None, unless the policy names some.
    pub event_log_quirks: &'a [EventLogQuirk],
}

impl From<UnixTime> for Conditions<'_> {
    fn from(time: UnixTime) -> Self {
        Moment::from(time).into()
    }
}

impl From<Moment> for Conditions<'_> {
    fn from(time: Moment) -> Self {
        Self { time, event_log_quirks: &[] }
    }
}

/// A quote that is authentic: only [`authenticate`] makes one.
#[derive(Clone)]
pub struct Authentic {
    pub(super) version: u16,
    pub(super) report: TdReport,
    pub(super) user_data: [u8; 20],
    pub(super) padding: Padding,
    pub(super) qe_report: EnclaveReport,
    pub(super) platform: VerifiedPlatform,
    pub(super) tcb: TcbVerdict,
    pub(super) evaluation_numbers: (u32, u32),
    pub(super) window: (UnixTime, UnixTime),
    pub(super) crls: Crls,
    pub(super) event_log: Option<EventLogClaims>,
    pub(super) root: Certificate,
    pub(super) time: Moment,
}

impl Authentic {
    /// What the quote says about the TD, now to be believed.
    pub fn report(&self) -> &TdReport {
        &self.report
    }

    /// The platform's key.
    pub fn pck(&self) -> &Pck {
        self.platform.pck()
    }

    /// The platform, for the next quote of it.
    pub fn verified_platform(&self) -> &VerifiedPlatform {
        &self.platform
    }

    /// What Intel says about platform, module and quoting enclave.
    pub fn tcb(&self) -> &TcbVerdict {
        &self.tcb
    }

    /// The root at the end of every chain.
    pub fn root(&self) -> &Certificate {
        &self.root
    }
}

/// A platform whose PCK certificate and attestation key have been checked: only [`Authentic::verified_platform`]
/// gives one. Cheap to clone and to keep: its dates and its revocation are checked with every quote.
#[derive(Clone)]
pub struct VerifiedPlatform(Arc<Platform>);

/// The platform's key and who vouches for it.
struct Platform {
    /// The bytes of a quote that were checked.
    certification: Vec<u8>,
    certificate: Certificate,
    issuer: Certificate,
    ca: PckCa,
    pck: Pck,
    root: Certificate,
}

impl VerifiedPlatform {
    /// The platform's key.
    pub fn pck(&self) -> &Pck {
        &self.0.pck
    }

    /// Its certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.0.certificate
    }

    /// Who issued that.
    pub fn pck_ca(&self) -> PckCa {
        self.0.ca
    }

    /// As [`authenticate`]. The signatures of the PCK certificate and of the quoting enclave's report are not checked
    /// again where the quote has the very bytes that were checked before, under the same authority and root.
    pub fn authenticate<'c>(
        &self,
        evidence: &Evidence<'_>,
        collateral: &Collateral,
        conditions: impl Into<Conditions<'c>>,
    ) -> Result<Authentic, Reasons> {
        authenticate_with(Some(self), evidence, collateral, conditions.into())
    }

    /// Whether everything that vouches for this quote's attestation key is what was checked.
    fn vouches_for(&self, quote: &Quote<'_>, collateral: &Collateral) -> bool {
        let Platform { certification, issuer, root, .. } = &*self.0;
        certification == quote.certification()
            && collateral.root.as_ref() == Some(root)
            && collateral.pck_ca.as_ref().is_some_and(|(ca, _)| ca == issuer)
    }
}

/// Checks the quote's form and signatures, the platform's certificate against collateral and root, the TCB against
/// what Intel publishes, and the event log against the quote, all at `time`. Refuses with every reason that was
/// found.
pub fn authenticate<'c>(
    evidence: &Evidence<'_>,
    collateral: &Collateral,
    conditions: impl Into<Conditions<'c>>,
) -> Result<Authentic, Reasons> {
    authenticate_with(None, evidence, collateral, conditions.into())
}

fn authenticate_with(
    known: Option<&VerifiedPlatform>,
    evidence: &Evidence<'_>,
    collateral: &Collateral,
    conditions: Conditions<'_>,
) -> Result<Authentic, Reasons> {
    let time = conditions.time;
    let mut reasons = Reasons::default();
    let quote = reasons.note(Code::QuoteMalformed, Quote::parse(evidence.quote));
    reasons.append(collateral.reasons.clone());
    collateral.windows.iter().for_each(|window| window.check(time, &mut reasons));
    let authentic = quote.and_then(|quote| {
        let report = quote.report();
        let event_log = event_log(evidence, report, conditions.event_log_quirks, &mut reasons);
        check_quote(&quote, &collateral.backend, &mut reasons);
        let platform = match known.filter(|known| known.vouches_for(&quote, collateral)) {
            Some(known) => Some(known.clone()),
            None => {
                check_attestation_key(&quote, &mut reasons);
                platform(&quote, collateral, time, &mut reasons)
                    .map(|platform| VerifiedPlatform(Arc::new(platform)))
            }
        };
        if let Some(identity) = &collateral.qe_identity {
            check_qe_identity(quote.qe_report(), identity, &mut reasons);
        }
        let platform = platform?;
        check_pck(platform.certificate(), collateral, time, &mut reasons);
        let (info, identity) = (collateral.tcb_info.as_ref()?, collateral.qe_identity.as_ref()?);
        let tcb = evaluate(&quote, platform.pck(), info, identity, &mut reasons)?;
        Some(Authentic {
            version: quote.version(),
            user_data: *quote.user_data(),
            padding: Padding::of(quote.padding()),
            qe_report: quote.qe_report().clone(),
            platform,
            tcb,
            evaluation_numbers: (info.tcb_evaluation_data_number, identity.tcb_evaluation_data_number),
            window: collateral.window(),
            crls: Crls {
                root_number: collateral.root_crl.as_ref()?.number(),
                pck_number: collateral.pck_crl.as_ref()?.number(),
            },
            event_log,
            root: collateral.root.clone()?,
            time,
            report: report.clone(),
        })
    });
    match authentic {
        Some(authentic) if reasons.is_empty() => Ok(authentic),
        _ => Err(reasons),
    }
}

/// What can be said of a quote without a certificate: vendor, and what the attestation key signed.
fn check_quote(quote: &Quote<'_>, backend: &Backend, reasons: &mut Reasons) {
    if *quote.qe_vendor_id() != Quote::INTEL_QE_VENDOR_ID {
        reasons.push(Code::QeVendor, "the quoting enclave is not of Intel's vendor ID");
    }
    let point: Vec<u8> = core::iter::once(4).chain(quote.attestation_key().iter().copied()).collect();
    if !(backend.p256)(&point, quote.signed_bytes(), quote.signature()) {
        reasons.push(Code::QuoteSignature, "the quote's signature is not by its attestation key");
    }
}

/// The quoting enclave binds its key by a hash in its report.
fn check_attestation_key(quote: &Quote<'_>, reasons: &mut Reasons) {
    let bound =
        Sha256::new().chain_update(quote.attestation_key()).chain_update(quote.qe_auth_data()).finalize();
    let (hash, rest) = quote.qe_report().report_data.split_at(32);
    if hash != bound.as_slice() || rest.iter().any(|&byte| byte != 0) {
        reasons.push(Code::AttestationKey, "the quoting enclave's report is not about this attestation key");
    }
}

/// What time and collateral say about a PCK certificate, however often its signature has been checked.
fn check_pck(certificate: &Certificate, collateral: &Collateral, time: Moment, reasons: &mut Reasons) {
    let (name, issuer) = (certificate.common_name(), certificate.issuer());
    Window::of_certificate(certificate).check(time, reasons);
    let crl = collateral.pck_crl.as_ref();
    if crl.is_some_and(|crl| crl.issuer() != issuer) {
        reasons.push(Code::CrlMissing, format!("there is no CRL of {issuer}, who issued {name}"));
    }
    chain::check_revoked(certificate, crl, reasons);
}

fn platform(
    quote: &Quote<'_>,
    collateral: &Collateral,
    time: Moment,
    reasons: &mut Reasons,
) -> Option<Platform> {
    let known = collateral.pck_ca.as_ref().map(|(ca, _)| ca);
    let chain = chain::read("PCK chain", quote.pck_chain(), &collateral.roots, known, reasons)?;
    let (certificate, others) = chain.split_first()?;
    let name = certificate.common_name();
    if !name.contains("SGX PCK Certificate") {
        reasons.push(Code::CertificateProfile, format!("{name} is not the name of a PCK certificate"));
    }
    chain::check_leaf(certificate, reasons);
    let pck = match Pck::new(certificate) {
        Ok(pck) => Some(pck),
        Err(error @ PckError::Key) => {
            reasons.push(Code::CertificateProfile, format!("{name}: {error}"));
            None
        }
        Err(error) => {
            reasons.push(Code::PckExtensionMalformed, format!("{name}: {error}"));
            None
        }
    };
    if let Some(pck) = &pck
        && !pck.signed(quote.qe_report().as_bytes(), quote.qe_report_signature(), &collateral.backend)
    {
        reasons.push(Code::QeReportSignature, "the quoting enclave's report was not signed by this PCK");
    }
    let (issuer, ca) = issuer(certificate, others, collateral, time, reasons)?;
    Some(Platform {
        certification: quote.certification().to_owned(),
        certificate: certificate.clone(),
        issuer,
        ca,
        pck: pck?,
        root: collateral.root.clone()?,
    })
}

/// The authority that issued the PCK certificate: the one whose CRL there is.
fn issuer(
    certificate: &Certificate,
    others: &[Certificate],
    collateral: &Collateral,
    time: Moment,
    reasons: &mut Reasons,
) -> Option<(Certificate, PckCa)> {
    let name = certificate.common_name();
    let known = collateral.pck_ca.as_ref();
    let fits = |ca: &&Certificate| certificate.names_issuer(ca);
    let Some(ca) = others.iter().find(fits).or(known.map(|(ca, _)| ca).filter(fits)) else {
        let message = format!("there is no certificate of {}, who issued {name}", certificate.issuer());
        reasons.push(Code::IntermediateMissing, message);
        return None;
    };
    if let Err(error) = certificate.verify_signed_by(ca, &collateral.backend) {
        reasons.push(Code::CertificateSignature, format!("{name}: {error}"));
    }
    // The collateral's own has been judged with the collateral.
    let kind = match known {
        Some((known, kind)) if known == ca => *kind,
        _ => other_issuer(ca, collateral, time, reasons)?,
    };
    Some((ca.clone(), kind))
}

/// Another certificate of an authority than the collateral's: perhaps a renewed one of the same.
fn other_issuer(
    ca: &Certificate,
    collateral: &Collateral,
    time: Moment,
    reasons: &mut Reasons,
) -> Option<PckCa> {
    let root = collateral.root.as_ref()?;
    chain::root_of("PCK chain", ca, core::slice::from_ref(root), &collateral.backend, reasons)?;
    Window::of_certificate(ca).check(time, reasons);
    if let Some(crl) = collateral.pck_crl.as_ref().filter(|crl| crl.issuer() == ca.subject()) {
        chain::check_crl(crl, ca, &collateral.backend, reasons);
    }
    chain::check_pck_ca(ca, collateral.root_crl.as_ref(), reasons)
}

/// Whether `value` is what `expected` says wherever `mask` is set.
fn under_mask<const N: usize>(value: &[u8; N], expected: &[u8; N], mask: &[u8; N]) -> bool {
    value.iter().zip(expected).zip(mask).all(|((value, expected), mask)| value & mask == expected & mask)
}

fn check_qe_identity(qe: &EnclaveReport, identity: &QeIdentity, reasons: &mut Reasons) {
    let facts = [
        ("MRSIGNER", qe.mrsigner == identity.mrsigner.0),
        ("ISVPRODID", qe.isv_prod_id() == identity.isvprodid),
        ("MISCSELECT", under_mask(&qe.miscselect, &identity.miscselect.0, &identity.miscselect_mask.0)),
        ("ATTRIBUTES", under_mask(&qe.attributes, &identity.attributes.0, &identity.attributes_mask.0)),
        ("ATTRIBUTES.DEBUG", !qe.is_debug()),
    ];
    for (name, _) in facts.iter().filter(|(_, right)| !right) {
        reasons
            .push(Code::QeIdentity, format!("the quoting enclave's {name} is not as its identity demands"));
    }
}

fn evaluate(
    quote: &Quote<'_>,
    pck: &Pck,
    info: &TcbInfo,
    identity: &QeIdentity,
    reasons: &mut Reasons,
) -> Option<TcbVerdict> {
    let mut same_model = true;
    if pck.fmspc != info.fmspc {
        let message = format!("the platform's FMSPC is {}, the TCB info's {}", pck.fmspc, info.fmspc);
        reasons.push(Code::FmspcMismatch, message);
        same_model = false;
    }
    if pck.pce_id != info.pce_id {
        let message = format!("the platform's PCEID is {}, the TCB info's {}", pck.pce_id, info.pce_id);
        reasons.push(Code::PceidMismatch, message);
        same_model = false;
    }
    if !same_model {
        return None;
    }
    let report = quote.report();
    let signer = reasons.note(Code::TcbLevel, tcb::module_signer(info, report))?;
    check_module(report, &signer, reasons);
    let verdict = tcb::evaluate(info, identity, &pck.svns, report, quote.qe_report());
    let verdict = reasons.note(Code::TcbLevel, verdict)?;
    if verdict.status == TcbStatus::Revoked {
        reasons.push(Code::TcbRevoked, "the TCB has been revoked");
    }
    Some(verdict)
}

fn check_module(report: &TdReport, signer: &ModuleSigner, reasons: &mut Reasons) {
    if report.base.mrsignerseam != signer.mrsigner.0 {
        reasons.push(Code::TdxModule, "MRSIGNERSEAM is not the signer of Intel's TDX modules");
    }
    let (attributes, mask) = (&report.base.seam_attributes, &signer.attributes_mask.0);
    // Attributes that the mask leaves open have no meaning that anyone has published: they must be clear.
    let outside = attributes.iter().zip(mask).any(|(attributes, mask)| attributes & !mask != 0);
    if outside || !under_mask(attributes, &signer.attributes.0, mask) {
        reasons.push(Code::TdxModule, "SEAMATTRIBUTES are not those of Intel's TDX modules");
    }
}

/// Reads the event log, looks for contradictions, and compares its replay with the RTMRs of the quote.
fn event_log(
    evidence: &Evidence<'_>,
    report: &TdReport,
    quirks: &[EventLogQuirk],
    reasons: &mut Reasons,
) -> Option<EventLogClaims> {
    let log = reasons.note(Code::EventLogMalformed, EventLog::read(evidence.event_log?))?;
    let allowed = |found: &Inconsistency| found.quirk().is_some_and(|quirk| quirks.contains(&quirk));
    for found in log.inconsistencies().iter().filter(|found| !allowed(found)).take(MAX_INCONSISTENCIES) {
        reasons.push(Code::EventLogInconsistent, found);
    }
    let replayed = log.replay();
    for (index, _) in replayed.iter().zip(&report.base.rtmrs).enumerate().filter(|(_, (log, own))| log != own)
    {
        reasons.push(Code::EventLogReplay, format!("the event log does not lead to the quote's RTMR{index}"));
    }
    Some(EventLogClaims::new(&log))
}

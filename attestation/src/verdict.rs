//! The answer of a verification: accepted or rejected, and every reason.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Serialize, Serializer};

/// What is wrong when evidence is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The bytes are not what they should be.
    Malformed,
    /// They are, but the vendor does not stand behind them.
    Authenticity,
    /// The vendor did, or does not yet: something is outside of its time.
    Freshness,
    /// They are authentic, and not acceptable to this relying party.
    Policy,
}

macro_rules! codes {
    ($($(#[doc = $text:literal])+ $name:ident: $kind:ident = $code:literal;)*) => {
        /// Why evidence is refused. The names are stable; the messages beside them are for people.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($(#[doc = $text])+ $name,)* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// What is wrong when this is the reason.
            pub const fn kind(self) -> Kind {
                match self { $(Self::$name => Kind::$kind,)* }
            }

            /// What the code means.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$name => concat!($($text),+).trim_ascii(),)* }
            }
        }
    };
}

codes! {
    /// The quote has the wrong version, type or length, or a length in it is wrong.
    QuoteMalformed: Malformed = "quote-malformed";
    /// The collateral, the TCB info or the QE identity in it cannot be read.
    CollateralMalformed: Malformed = "collateral-malformed";
    /// The SGX extension of the PCK's certificate is missing or cannot be read.
    PckExtensionMalformed: Malformed = "pck-extension-malformed";
    /// The event log cannot be read.
    EventLogMalformed: Malformed = "event-log-malformed";
    /// The report has the wrong length, version, algorithm, or uses a reserved field.
    ReportMalformed: Malformed = "report-malformed";
    /// The report's r or s is zero or wider than a scalar of P-384.
    SignatureMalformed: Malformed = "signature-malformed";
    /// The certificate table cannot be read.
    CertificateTableMalformed: Malformed = "certificate-table-malformed";
    /// A certificate cannot be read.
    CertificateMalformed: Malformed = "certificate-malformed";
    /// A CRL cannot be read.
    CrlMalformed: Malformed = "crl-malformed";
    /// An extension of the endorsement key's certificate is missing or cannot be read.
    VekExtensionMalformed: Malformed = "vek-extension-malformed";

    /// The report is not signed: no signing key, or the host masks the chip's.
    ReportUnsigned: Authenticity = "report-unsigned";
    /// The report names a signing key that the ABI does not define.
    SigningKeyUnknown: Authenticity = "signing-key-unknown";
    /// The report's processor, or the certificate's product, is none that can be judged here.
    ProductUnknown: Authenticity = "product-unknown";
    /// The report's processor and the endorsement key's certificate are of different products.
    ProductMismatch: Authenticity = "product-mismatch";
    /// There is no certificate for the key that signed the report.
    VekMissing: Authenticity = "vek-missing";
    /// There is no ASK or ASVK that could have issued the endorsement key's certificate.
    IntermediateMissing: Authenticity = "intermediate-missing";
    /// The chain does not end in a trusted root.
    RootUntrusted: Authenticity = "root-untrusted";
    /// A certificate is not of the form that its place in the chain requires.
    CertificateProfile: Authenticity = "certificate-profile";
    /// A certificate was not signed by its issuer.
    CertificateSignature: Authenticity = "certificate-signature";
    /// The endorsement key's certificate is for another TCB than the report's REPORTED_TCB.
    TcbMismatch: Authenticity = "tcb-mismatch";
    /// The endorsement key's certificate is for another chip than the report's CHIP_ID.
    ChipIdMismatch: Authenticity = "chip-id-mismatch";
    /// The report was not signed by the endorsement key.
    ReportSignature: Authenticity = "report-signature";
    /// A CRL was not signed by its issuer, or is not of the form that it should be.
    CrlSignature: Authenticity = "crl-signature";
    /// A certificate of the chain has been revoked by its issuer.
    CertificateRevoked: Authenticity = "certificate-revoked";

    /// TCB info or QE identity were signed by someone whom the root did not appoint for it.
    CollateralSigner: Authenticity = "collateral-signer";
    /// TCB info was not signed by its signer.
    TcbInfoSignature: Authenticity = "tcb-info-signature";
    /// The QE identity was not signed by its signer.
    QeIdentitySignature: Authenticity = "qe-identity-signature";
    /// The quote was made by a quoting enclave of another vendor than Intel.
    QeVendor: Authenticity = "qe-vendor";
    /// The TCB info is of another model of platform than the quote's.
    FmspcMismatch: Authenticity = "fmspc-mismatch";
    /// The TCB info is for another provisioning certification enclave than the quote's.
    PceidMismatch: Authenticity = "pceid-mismatch";
    /// The quoting enclave's report was not signed by the PCK.
    QeReportSignature: Authenticity = "qe-report-signature";
    /// The quoting enclave's report is for another attestation key.
    AttestationKey: Authenticity = "attestation-key";
    /// The quoting enclave is not Intel's TD quoting enclave, or whoever runs it may look into it.
    QeIdentity: Authenticity = "qe-identity";
    /// The quote was not signed by the attestation key.
    QuoteSignature: Authenticity = "quote-signature";
    /// The TDX module has another signer or other attributes than it must have.
    TdxModule: Authenticity = "tdx-module";
    /// Platform, TDX module or quoting enclave are below every TCB level, or of no known kind.
    TcbLevel: Authenticity = "tcb-level";
    /// The TCB has been revoked: its keys are worth nothing.
    TcbRevoked: Authenticity = "tcb-revoked";
    /// The event log contradicts itself.
    EventLogInconsistent: Authenticity = "event-log-inconsistent";
    /// The event log is not the one that made the RTMRs.
    EventLogReplay: Authenticity = "event-log-replay";

    /// TCB info or QE identity are from the future.
    CollateralNotYetValid: Freshness = "collateral-not-yet-valid";
    /// TCB info or QE identity are out of date.
    CollateralExpired: Freshness = "collateral-expired";
    /// A certificate is not valid yet.
    CertificateNotYetValid: Freshness = "certificate-not-yet-valid";
    /// A certificate is no longer valid.
    CertificateExpired: Freshness = "certificate-expired";
    /// A CRL is required and none of the issuer's was given.
    CrlMissing: Freshness = "crl-missing";
    /// A CRL is required and the issuer's is not valid yet.
    CrlNotYetValid: Freshness = "crl-not-yet-valid";
    /// A CRL is required and the issuer's is out of date.
    CrlExpired: Freshness = "crl-expired";
    /// CRLs were given, and none of them is of the chain's root.
    CrlInapplicable: Freshness = "crl-inapplicable";

    /// REPORT_DATA is not what was expected.
    ReportData: Policy = "report-data";
    /// MEASUREMENT is none of those allowed.
    Measurement: Policy = "measurement";
    /// HOST_DATA is none of those allowed.
    HostData: Policy = "host-data";
    /// FAMILY_ID is none of those allowed.
    FamilyId: Policy = "family-id";
    /// IMAGE_ID is none of those allowed.
    ImageId: Policy = "image-id";
    /// ID_KEY_DIGEST is none of those allowed.
    IdKeyDigest: Policy = "id-key-digest";
    /// AUTHOR_KEY_DIGEST is none of those allowed, or there is no author key.
    AuthorKeyDigest: Policy = "author-key-digest";
    /// REPORT_ID is none of those allowed.
    ReportId: Policy = "report-id";
    /// REPORT_ID_MA is none of those allowed.
    ReportIdMa: Policy = "report-id-ma";
    /// CHIP_ID is none of those allowed.
    ChipId: Policy = "chip-id";
    /// The host masks CHIP_ID.
    ChipIdMasked: Policy = "chip-id-masked";
    /// The VLEK's CSP_ID is none of those allowed, or there is none.
    CspId: Policy = "csp-id";
    /// The product is none of those allowed.
    Product: Policy = "product";
    /// The kind of endorsement key is none of those allowed.
    SigningKey: Policy = "signing-key";
    /// The report's version is too low or too high.
    ReportVersion: Policy = "report-version";
    /// The report was asked for at a VMPL that is not allowed.
    Vmpl: Policy = "vmpl";
    /// GUEST_SVN is too low or too high.
    GuestSvn: Policy = "guest-svn";
    /// A bit of the guest policy that must be clear is set.
    GuestPolicyForbidden: Policy = "guest-policy-forbidden";
    /// A bit of the guest policy that must be set is clear.
    GuestPolicyRequired: Policy = "guest-policy-required";
    /// The guest policy asks for less of the firmware's ABI than required, or for more than allowed.
    GuestPolicyAbi: Policy = "guest-policy-abi";
    /// A bit of PLATFORM_INFO that must be clear is set.
    PlatformInfoForbidden: Policy = "platform-info-forbidden";
    /// A bit of PLATFORM_INFO that must be set is clear.
    PlatformInfoRequired: Policy = "platform-info-required";
    /// The firmware that runs is not the one that the host has committed to.
    FirmwareProvisional: Policy = "firmware-provisional";
    /// The firmware's version is too low or too high.
    FirmwareVersion: Policy = "firmware-version";
    /// A TCB or firmware version that cannot exceed the current one does.
    TcbOrder: Policy = "tcb-order";
    /// A part of a TCB version is too low.
    TcbTooLow: Policy = "tcb-too-low";
    /// A part of a TCB version is above the greatest that is allowed.
    TcbTooHigh: Policy = "tcb-too-high";
    /// The policy has no minimum TCB for this product though it has some for others.
    TcbNoMinimum: Policy = "tcb-no-minimum";
    /// A required mitigation is not in place.
    Mitigation: Policy = "mitigation";
    /// MRTD is none of those allowed.
    Mrtd: Policy = "mrtd";
    /// An RTMR is none of those allowed.
    Rtmr: Policy = "rtmr";
    /// MRSEAM is none of those allowed.
    Mrseam: Policy = "mrseam";
    /// MRCONFIGID is none of those allowed.
    Mrconfigid: Policy = "mrconfigid";
    /// MROWNER is none of those allowed.
    Mrowner: Policy = "mrowner";
    /// MROWNERCONFIG is none of those allowed.
    Mrownerconfig: Policy = "mrownerconfig";
    /// Service TDs are bound to the TD that are not allowed.
    Mrservicetd: Policy = "mrservicetd";
    /// XFAM is none of those allowed.
    Xfam: Policy = "xfam";
    /// A bit of ATTRIBUTES that must be clear is set.
    TdAttributesForbidden: Policy = "td-attributes-forbidden";
    /// A bit of ATTRIBUTES that must be set is clear.
    TdAttributesRequired: Policy = "td-attributes-required";
    /// The TCB's status is none of those allowed.
    TcbStatus: Policy = "tcb-status";
    /// An advisory that is not accepted applies to the TCB.
    TcbAdvisory: Policy = "tcb-advisory";
    /// The collateral is of a TCB evaluation that is too old.
    TcbEvaluationNumber: Policy = "tcb-evaluation-number";
    /// A part of TEE_TCB_SVN is too low.
    TeeTcbSvn: Policy = "tee-tcb-svn";
    /// The platform is none of those allowed.
    PlatformInstanceId: Policy = "platform-instance-id";
    /// The model of platform is none of those allowed.
    Fmspc: Policy = "fmspc";
    /// The platform is configured as it must not be, or not as it must be.
    PlatformConfiguration: Policy = "platform-configuration";
    /// Bytes follow the quote that are not allowed.
    QuotePadding: Policy = "quote-padding";
    /// An event log is required and none was given.
    EventLogMissing: Policy = "event-log-missing";
    /// The policy leaves something open, and whoever asked wants everything decided.
    Undecided: Policy = "undecided";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One reason to refuse evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Which one.
    pub code: Code,
    /// What was seen and what was expected, for people.
    pub message: String,
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Wire<'a> {
            kind: Kind,
            code: Code,
            message: &'a str,
        }
        Wire { kind: self.code.kind(), code: self.code, message: &self.message }.serialize(serializer)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

/// Everything that speaks against evidence. Nothing does if it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
#[must_use = "reasons that nobody reads accept everything"]
pub struct Reasons(Vec<Reason>);

impl Reasons {
    /// Adds a reason, unless the very same one is there.
    pub fn push(&mut self, code: Code, message: impl fmt::Display) {
        self.add(Reason { code, message: alloc::format!("{message}") });
    }

    /// Adds all reasons of `other`.
    pub fn append(&mut self, other: Self) {
        other.0.into_iter().for_each(|reason| self.add(reason));
    }

    /// One fault may show in several places; said once, it is said.
    fn add(&mut self, reason: Reason) {
        if !self.0.contains(&reason) {
            self.0.push(reason);
        }
    }

    /// Adds a reason if `result` is an error; its value otherwise.
    pub fn note<T>(&mut self, code: Code, result: Result<T, impl fmt::Display>) -> Option<T> {
        result.map_err(|error| self.push(code, error)).ok()
    }

    /// Whether nothing speaks against the evidence.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The reasons, in the order of the checks.
    pub fn iter(&self) -> core::slice::Iter<'_, Reason> {
        self.0.iter()
    }

    /// Their codes, sorted, each once.
    pub fn codes(&self) -> Vec<Code> {
        let mut codes: Vec<_> = self.iter().map(|reason| reason.code).collect();
        codes.sort_unstable();
        codes.dedup();
        codes
    }
}

impl<'a> IntoIterator for &'a Reasons {
    type Item = &'a Reason;
    type IntoIter = core::slice::Iter<'a, Reason>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The outcome in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Outcome {
    Accepted,
    Rejected,
}

/// Version of the claims' format.
pub const CLAIMS_VERSION: u32 = 2;

/// The document that a verification ends in.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[must_use = "a verdict that nobody reads accepts everything"]
pub struct Verdict<C> {
    /// Accepted, or not.
    pub verdict: Outcome,
    /// All reasons against; empty exactly where the verdict is accepted.
    pub reasons: Reasons,
    /// What the evidence says; `None` unless it is authentic, since forgers claim what they like.
    pub claims: Option<C>,
    /// [`CLAIMS_VERSION`].
    pub claims_version: u32,
    /// What the policy left open although a relying party usually decides on it.
    pub unchecked: Vec<&'static str>,
}

impl<C> Verdict<C> {
    /// The verdict that follows from `reasons`.
    pub fn new(reasons: Reasons, claims: Option<C>, unchecked: Vec<&'static str>) -> Self {
        let accepted = reasons.is_empty() && claims.is_some();
        let verdict = if accepted { Outcome::Accepted } else { Outcome::Rejected };
        Self { verdict, reasons, claims, claims_version: CLAIMS_VERSION, unchecked }
    }

    /// The same verdict for somebody who wants nothing left open: what is not decided is a reason against.
    pub fn decided(self) -> Self {
        let Self { mut reasons, claims, unchecked, .. } = self;
        if !unchecked.is_empty() {
            reasons
                .push(Code::Undecided, format_args!("the policy does not decide {}", unchecked.join(", ")));
        }
        Self::new(reasons, claims, unchecked)
    }

    /// Whether the evidence is to be believed and liked.
    pub fn is_accepted(&self) -> bool {
        self.verdict == Outcome::Accepted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_kebab_case_and_described() {
        for (index, code) in Code::ALL.iter().enumerate() {
            let name = code.as_str();
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{name}");
            assert!(Code::ALL[..index].iter().all(|other| other.as_str() != name), "{name} twice");
            assert!(code.description().ends_with('.'), "{name}");
        }
    }

    #[test]
    fn who_wants_everything_decided_gets_no_acceptance_with_something_open() {
        let verdict = |open: &[&'static str]| Verdict::new(Reasons::default(), Some(()), open.to_vec());
        assert!(verdict(&["tcb"]).is_accepted() && verdict(&[]).decided().is_accepted());
        let decided = verdict(&["tcb", "revocation"]).decided();
        assert_eq!((decided.is_accepted(), decided.reasons.codes()), (false, Vec::from([Code::Undecided])));
        assert!(decided.reasons.iter().all(|reason| reason.message.contains("tcb, revocation")));
    }

    #[test]
    fn the_same_reason_is_given_once() {
        let mut reasons = Reasons::default();
        reasons.push(Code::Measurement, "other");
        reasons.push(Code::Measurement, "other");
        reasons.push(Code::Measurement, "another");
        let mut all = reasons.clone();
        all.append(reasons);
        let messages: Vec<_> = all.iter().map(|reason| reason.message.as_str()).collect();
        assert_eq!(messages, ["other", "another"]);
    }

    #[test]
    fn a_verdict_is_accepted_only_with_claims_and_without_reasons() {
        let mut reasons = Reasons::default();
        assert!(Verdict::new(reasons.clone(), Some(()), Vec::new()).is_accepted());
        assert!(!Verdict::<()>::new(reasons.clone(), None, Vec::new()).is_accepted());
        reasons.push(Code::Measurement, "other");
        let verdict = Verdict::new(reasons, Some(()), Vec::new());
        assert!(!verdict.is_accepted());
        let json = serde_json::to_value(&verdict).unwrap();
        let reason = serde_json::json!({"kind": "policy", "code": "measurement", "message": "other"});
        assert_eq!((&json["verdict"], &json["reasons"][0]), (&"rejected".into(), &reason));
    }
}

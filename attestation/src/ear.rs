//! The verdict as an EAT Attestation Result: a signed token that tells a relying party what a verifier found
//! (draft-ietf-rats-ear-04), with the trustworthiness vector of AR4SI (draft-ietf-rats-ar4si).
//!
//! The vector follows from what speaks against the evidence, and from what it says itself: a guest that the host may debug
//! is not opaque because a policy allows it, and a TCB that is out of date is not affirmed ([`Flaw`]).
//!
//! A vector is coarser than a verdict. The token therefore carries both: the vector for whoever knows AR4SI only, the
//! verdict with its reasons as verifier claims, and what the evidence says as attester claims.
//!
//! ```
//! use cloister_attestation::ear::{EarContext, ear_jwt};
//! use cloister_attestation::signing::SigningKey;
//! use cloister_attestation::snp::{Collateral, Evidence, Policy, TrustRoots, verify};
//! use cloister_attestation::x509::UnixTime;
//!
//! let now: UnixTime = "2026-11-21T07:00:00Z".parse().unwrap();
//! let evidence = Evidence { report: b"no report", certificates: &[], certificate_table: None };
//! let verdict = verify(&evidence, &TrustRoots::amd(), &Collateral::default(), now, &Policy::default());
//! let context = EarContext { issued_at: now, expires_at: None, nonce: None, confirmation: None };
//! // A key for an example: yours is drawn from the system's randomness, or read with `from_pem`.
//! let key = SigningKey::generate_p256(|bytes| bytes.fill(7)).unwrap();
//! let token = ear_jwt(&verdict, &context, &key).unwrap();
//! assert_eq!(token.split('.').count(), 3);
//! ```

mod flaws;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::{Value, json};

pub use self::flaws::{Attested, Flaw};
use crate::jose;
use crate::signing::SigningKey;
use crate::verdict::{Code, Kind, Reasons, Verdict};
use crate::x509::UnixTime;

/// The profile that the tokens conform to.
pub const EAR_PROFILE: &str = "tag:ietf.org,2026:rats/ear#04";
/// The name of the only submodule: the confidential processor with its guest.
const SUBMODULE: &str = "cpu0";
/// The name of our claims among those of the attester and the verifier.
const OWN_CLAIMS: &str = "cloister";

/// What the caller knows beside the verdict.
#[derive(Clone, Debug)]
pub struct EarContext {
    /// When the token is made.
    pub issued_at: UnixTime,
    /// Until when it may be used.
    pub expires_at: Option<UnixTime>,
    /// The nonce that the evidence answers, 8 to 64 bytes.
    pub nonce: Option<Vec<u8>>,
    /// The key that the evidence binds, as a JWK: whoever presents the token must have it (RFC 7800).
    pub confirmation: Option<Value>,
}

/// Why no token can be made.
#[derive(Debug, thiserror::Error)]
pub enum EarError {
    /// A nonce that tokens have no room for (RFC 9711, "eat_nonce").
    #[error("a nonce of {0} bytes; a token has one of 8 to 64")]
    Nonce(usize),
    /// Claims that JSON cannot express.
    #[error("the claims cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The verdict as a signed JWT.
pub fn ear_jwt<C: Attested>(
    verdict: &Verdict<C>,
    context: &EarContext,
    key: &SigningKey,
) -> Result<String, EarError> {
    Ok(jose::sign_jwt(&ear_claims(verdict, context)?, key))
}

/// The claims of the token, before they are signed.
pub fn ear_claims<C: Attested>(verdict: &Verdict<C>, context: &EarContext) -> Result<Value, EarError> {
    let vector = TrustworthinessVector::of(verdict);
    let mut appraisal = json!({
        "ear_status": status(verdict, &vector).name(),
        "ear_trustworthiness_vector": vector,
        "ear_verifier_claims": {OWN_CLAIMS: {
            "verdict": verdict.verdict,
            "reasons": verdict.reasons,
            "unchecked": verdict.unchecked,
        }},
    });
    if let Some(claims) = &verdict.claims {
        let claims = without_nulls(serde_json::to_value(claims)?);
        insert(
            &mut appraisal,
            "ear_attester_claims",
            json!({OWN_CLAIMS: {
                "claims_version": verdict.claims_version,
                "claims": claims,
            }}),
        );
    }
    let mut token = json!({
        "eat_profile": EAR_PROFILE,
        "iat": context.issued_at.0,
        "ear_verifier_id": {"developer": "Cloister", "build": concat!("cloister-attestation ", env!("CARGO_PKG_VERSION"))},
        "submods": {SUBMODULE: appraisal},
    });
    if let Some(time) = context.expires_at {
        insert(&mut token, "exp", json!(time.0));
    }
    if let Some(nonce) = &context.nonce {
        if !(8..=64).contains(&nonce.len()) {
            return Err(EarError::Nonce(nonce.len()));
        }
        insert(&mut token, "eat_nonce", json!(URL_SAFE_NO_PAD.encode(nonce)));
    }
    if let Some(jwk) = &context.confirmation {
        insert(&mut token, "cnf", json!({"jwk": jwk}));
    }
    Ok(token)
}

fn insert(object: &mut Value, name: &str, value: Value) {
    if let Value::Object(fields) = object {
        fields.insert(name.into(), value);
    }
}

/// A claim that is absent is not made; EAT has no null.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let present = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(present.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        other => other,
    }
}

/// Trustworthiness tiers (draft-ietf-rats-ar4si, 2.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    Affirming,
    Warning,
    Contraindicated,
}

impl Tier {
    const fn name(self) -> &'static str {
        match self {
            Self::Affirming => "affirming",
            Self::Warning => "warning",
            Self::Contraindicated => "contraindicated",
        }
    }
}

/// What decides which executables run: everything that a policy must pin before they can be called approved. RTMR0 is one
/// of them: it is of the ACPI tables, which hold code, and which firmware other than ours takes from the host.
const EXECUTABLES: [&str; 5] = ["measurement", "mrtd", "rtmr0", "rtmr1", "rtmr2"];

/// Whether the policy left one of `fields` open.
fn undecided(unchecked: &[&str], fields: &[&str]) -> bool {
    fields.iter().any(|field| unchecked.contains(field))
}

/// What was rejected is contraindicated, however little is wrong. What was accepted without anybody deciding what runs, or
/// whether the evidence is of now, is no affirmation; and no status is better than the worst that the vector says.
fn status<C>(verdict: &Verdict<C>, vector: &TrustworthinessVector) -> Tier {
    let open = undecided(&verdict.unchecked, &EXECUTABLES) || verdict.unchecked.contains(&"report_data");
    let decided = match (verdict.is_accepted(), open) {
        (false, _) => Tier::Contraindicated,
        (true, true) => Tier::Warning,
        (true, false) => Tier::Affirming,
    };
    decided.max(vector.worst())
}

/// A claim of the vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Claim {
    InstanceIdentity,
    Configuration,
    Executables,
    Hardware,
    RuntimeOpaque,
}

/// Values of AR4SI, section 2.3.4, that are used here.
mod value {
    pub const NO_CLAIM: i8 = 0;
    pub const UNEXPECTED_EVIDENCE: i8 = 1;
    pub const CRYPTO_FAILED: i8 = 99;
    pub const APPROVED_CONFIGURATION: i8 = 2;
    pub const UNSAFE_CONFIGURATION: i8 = 32;
    pub const APPROVED_BOOT: i8 = 3;
    pub const UNRECOGNIZED_EXECUTABLES: i8 = 33;
    pub const GENUINE_HARDWARE: i8 = 2;
    pub const UNSAFE_HARDWARE: i8 = 32;
    pub const CONTRAINDICATED_HARDWARE: i8 = 96;
    pub const ENCRYPTED_RUNTIME: i8 = 2;
    pub const VISIBLE_TO_HOST: i8 = 32;
    pub const UNRECOGNIZED_INSTANCE: i8 = 97;
}

/// The claims that are made, and their values.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
struct TrustworthinessVector(BTreeMap<Claim, i8>);

impl TrustworthinessVector {
    fn of<C: Attested>(verdict: &Verdict<C>) -> Self {
        match &verdict.claims {
            Some(claims) => Self::of_authentic(&claims.flaws(), &verdict.reasons, &verdict.unchecked),
            None => Self::of_forged(&verdict.reasons),
        }
    }

    /// Whoever made this evidence, nothing that it says is known.
    fn of_forged(reasons: &Reasons) -> Self {
        let only = |kinds: &[Kind]| reasons.iter().all(|reason| kinds.contains(&reason.code.kind()));
        let value = match () {
            () if only(&[Kind::Malformed]) => value::UNEXPECTED_EVIDENCE,
            // Nobody forged it, and what it should be judged by is not of this time.
            () if only(&[Kind::Freshness]) => value::NO_CLAIM,
            () => value::CRYPTO_FAILED,
        };
        Self(BTreeMap::from([(Claim::InstanceIdentity, value), (Claim::Hardware, value)]))
    }

    fn of_authentic(flaws: &[Flaw], reasons: &Reasons, unchecked: &[&str]) -> Self {
        let open = undecided(unchecked, &EXECUTABLES);
        let executables = if open { value::NO_CLAIM } else { value::APPROVED_BOOT };
        let mut vector = Self(BTreeMap::from([
            (Claim::Configuration, value::APPROVED_CONFIGURATION),
            (Claim::Executables, executables),
            (Claim::Hardware, value::GENUINE_HARDWARE),
            (Claim::RuntimeOpaque, value::ENCRYPTED_RUNTIME),
        ]));
        let of_policy = reasons.iter().flat_map(|reason| effects(reason.code));
        for &(claim, value) in of_policy.chain(flaws.iter().flat_map(|flaw| flaw.effects())) {
            vector.lower(claim, value);
        }
        vector
    }

    /// The tier of the worst claim; one that claims nothing takes nothing away.
    fn worst(&self) -> Tier {
        match self.0.values().map(|value| severity(*value)).max() {
            Some(3..) => Tier::Contraindicated,
            Some(2) => Tier::Warning,
            _ => Tier::Affirming,
        }
    }

    /// Gives `claim` this value unless it has a worse one.
    fn lower(&mut self, claim: Claim, value: i8) {
        let current = self.0.entry(claim).or_insert(value);
        if severity(value) > severity(*current) {
            *current = value;
        }
    }
}

/// Values by tier (section 2.3.2): affirming ones, those that claim nothing, warnings, contraindications.
fn severity(value: i8) -> u8 {
    match value.unsigned_abs() {
        2..=31 => 0,
        0..=1 => 1,
        32..=95 => 2,
        96.. => 3,
    }
}

/// What a reason says about which claims. Every code has its row, so that none becomes a matter of anything by default.
fn effects(code: Code) -> &'static [(Claim, i8)] {
    const EXECUTABLES: &[(Claim, i8)] = &[(Claim::Executables, value::UNRECOGNIZED_EXECUTABLES)];
    const INSTANCE: &[(Claim, i8)] = &[(Claim::InstanceIdentity, value::UNRECOGNIZED_INSTANCE)];
    const HARDWARE: &[(Claim, i8)] = &[(Claim::Hardware, value::UNSAFE_HARDWARE)];
    const CONFIGURATION: &[(Claim, i8)] = &[(Claim::Configuration, value::UNSAFE_CONFIGURATION)];
    /// It may be what lets the host read memory.
    const NOT_OPAQUE: &[(Claim, i8)] =
        &[(Claim::Configuration, value::UNSAFE_CONFIGURATION), (Claim::RuntimeOpaque, value::NO_CLAIM)];
    const UNEXPECTED: &[(Claim, i8)] = &[(Claim::Configuration, value::UNEXPECTED_EVIDENCE)];
    /// What ran may be right, and what would tell is not there.
    const UNTOLD: &[(Claim, i8)] = &[(Claim::Executables, value::NO_CLAIM)];
    const FORGED: &[(Claim, i8)] =
        &[(Claim::InstanceIdentity, value::CRYPTO_FAILED), (Claim::Hardware, value::CRYPTO_FAILED)];
    use Code::*;
    match code {
        Measurement | GuestSvn | FamilyId | ImageId | Mrtd | Rtmr => EXECUTABLES,
        EventLogMissing | Undecided => UNTOLD,
        IdKeyDigest | AuthorKeyDigest | ReportId | ReportIdMa | ReportData | ChipId | ChipIdMasked
        | Mrowner | PlatformInstanceId => INSTANCE,
        TcbTooLow
        | TcbTooHigh
        | TcbOrder
        | TcbNoMinimum
        | FirmwareProvisional
        | FirmwareVersion
        | Mitigation
        | PlatformInfoForbidden
        | PlatformInfoRequired
        | Product
        | SigningKey
        | CspId
        | CrlInapplicable
        | CrlMissing
        | CrlExpired
        | CrlNotYetValid
        | Mrseam
        | TcbStatus
        | TcbAdvisory
        | TcbEvaluationNumber
        | TeeTcbSvn
        | Fmspc
        | PlatformConfiguration => HARDWARE,
        HostData | ReportVersion | Vmpl | GuestPolicyRequired | GuestPolicyAbi | Mrconfigid
        | Mrownerconfig | Xfam | TdAttributesRequired => CONFIGURATION,
        GuestPolicyForbidden | TdAttributesForbidden | Mrservicetd => NOT_OPAQUE,
        QuotePadding => UNEXPECTED,
        // Evidence with these is not authentic; a verdict that has claims all the same is not to be believed.
        QuoteMalformed
        | CollateralMalformed
        | PckExtensionMalformed
        | EventLogMalformed
        | ReportMalformed
        | SignatureMalformed
        | CertificateTableMalformed
        | CertificateMalformed
        | CrlMalformed
        | VekExtensionMalformed
        | ReportUnsigned
        | SigningKeyUnknown
        | ProductUnknown
        | ProductMismatch
        | VekMissing
        | IntermediateMissing
        | RootUntrusted
        | CertificateProfile
        | CertificateSignature
        | TcbMismatch
        | ChipIdMismatch
        | ReportSignature
        | CrlSignature
        | CertificateRevoked
        | CollateralSigner
        | TcbInfoSignature
        | QeIdentitySignature
        | QeVendor
        | FmspcMismatch
        | PceidMismatch
        | QeReportSignature
        | AttestationKey
        | QeIdentity
        | QuoteSignature
        | TdxModule
        | TcbLevel
        | TcbRevoked
        | EventLogInconsistent
        | EventLogReplay
        | CollateralNotYetValid
        | CollateralExpired
        | CertificateNotYetValid
        | CertificateExpired => FORGED,
    }
}

#[cfg(test)]
mod tests;

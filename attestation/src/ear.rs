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
//! let token = ear_jwt(&verdict, &context, &SigningKey::generate_p256()).unwrap();
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
        EventLogMissing => UNTOLD,
        IdKeyDigest | AuthorKeyDigest | ReportId | ReportIdMa | ReportData | ChipId | ChipIdMasked
        | Mrowner | PlatformInstanceId => INSTANCE,
        TcbTooLow
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
mod tests {
    use super::*;

    fn context() -> EarContext {
        EarContext {
            issued_at: UnixTime(1_700_000_000),
            expires_at: Some(UnixTime(4_000_000_000)),
            nonce: Some(b"a nonce of the broker's".to_vec()),
            confirmation: Some(json!({"kty": "EC"})),
        }
    }

    /// Some claims, with these flaws.
    #[derive(Serialize)]
    #[serde(transparent)]
    struct Said(Value, #[serde(skip)] Vec<Flaw>);

    impl Attested for Said {
        fn flaws(&self) -> Vec<Flaw> {
            self.1.clone()
        }
    }

    fn flawed(codes: &[Code], authentic: bool, unchecked: &[&'static str], flaws: &[Flaw]) -> Verdict<Said> {
        let mut reasons = Reasons::default();
        codes.iter().for_each(|code| reasons.push(*code, "why"));
        let claims = json!({"tee": "snp", "chip_id": null, "list": [1, {"a": null}]});
        Verdict::new(reasons, authentic.then(|| Said(claims, flaws.to_vec())), unchecked.to_vec())
    }

    fn verdict(codes: &[Code], authentic: bool, unchecked: &[&'static str]) -> Verdict<Said> {
        flawed(codes, authentic, unchecked, &[])
    }

    #[test]
    fn what_a_policy_allows_is_no_better_for_it() {
        use Flaw::*;
        for (codes, flaws, status, [configuration, hardware, opaque]) in [
            (&[][..], &[][..], "affirming", [2, 2, 2]),
            (&[], &[HostMayLook], "warning", [32, 2, 32]),
            (&[], &[MayBeMoved], "affirming", [2, 2, 0]),
            (&[], &[UnknownBit], "affirming", [0, 2, 0]),
            (&[], &[HostMayInterfere], "warning", [32, 2, 2]),
            (&[], &[TcbFlawed], "warning", [2, 32, 2]),
            (&[], &[TcbRevoked], "contraindicated", [2, 96, 2]),
            (&[], &[FirmwareProvisional], "warning", [2, 32, 2]),
            (&[], &[UnknownBit, HostMayLook, TcbFlawed], "warning", [32, 32, 32]),
            // A policy that does not allow it makes nothing better either.
            (&[Code::TdAttributesForbidden], &[HostMayLook], "contraindicated", [32, 2, 32]),
            (&[Code::Vmpl], &[TcbFlawed], "contraindicated", [32, 32, 2]),
        ] {
            let token = ear_claims(&flawed(codes, true, &[], flaws), &context()).unwrap();
            let appraisal = &token["submods"]["cpu0"];
            let expected = json!({
                "configuration": configuration, "executables": 3, "hardware": hardware, "runtime-opaque": opaque,
            });
            assert_eq!(appraisal["ear_trustworthiness_vector"], expected, "{flaws:?}");
            assert_eq!(appraisal["ear_status"], status, "{flaws:?}");
        }
    }

    #[test]
    fn a_nonce_has_a_length_that_tokens_have_room_for() {
        for (len, good) in [(0, false), (7, false), (8, true), (64, true), (65, false)] {
            let context = EarContext { nonce: Some(vec![7; len]), ..context() };
            assert_eq!(ear_claims(&verdict(&[], true, &[]), &context).is_ok(), good, "{len}");
        }
    }

    #[test]
    fn the_vector_follows_from_the_reasons() {
        let measured = &["measurement"][..];
        for (codes, authentic, unchecked, status, expected) in [
            (
                &[][..],
                true,
                &[][..],
                "affirming",
                json!({"configuration": 2, "executables": 3, "hardware": 2, "runtime-opaque": 2}),
            ),
            (
                &[],
                true,
                measured,
                "warning",
                json!({"configuration": 2, "executables": 0, "hardware": 2, "runtime-opaque": 2}),
            ),
            (
                &[Code::Measurement],
                true,
                &[],
                "contraindicated",
                json!({"configuration": 2, "executables": 33, "hardware": 2, "runtime-opaque": 2}),
            ),
            (
                &[Code::TcbTooLow, Code::Vmpl],
                true,
                &[],
                "contraindicated",
                json!({"configuration": 32, "executables": 3, "hardware": 32, "runtime-opaque": 2}),
            ),
            (
                &[Code::GuestPolicyForbidden],
                true,
                &[],
                "contraindicated",
                json!({"configuration": 32, "executables": 3, "hardware": 2, "runtime-opaque": 0}),
            ),
            (
                &[Code::ReportData],
                true,
                &[],
                "contraindicated",
                json!({"configuration": 2, "executables": 3, "hardware": 2, "instance-identity": 97, "runtime-opaque": 2}),
            ),
            (
                &[Code::ReportSignature],
                false,
                &[],
                "contraindicated",
                json!({"hardware": 99, "instance-identity": 99}),
            ),
            (
                &[Code::ReportMalformed],
                false,
                &[],
                "contraindicated",
                json!({"hardware": 1, "instance-identity": 1}),
            ),
            (
                &[Code::CollateralExpired, Code::CertificateExpired],
                false,
                &[],
                "contraindicated",
                json!({"hardware": 0, "instance-identity": 0}),
            ),
            (
                &[Code::CollateralExpired, Code::QuoteSignature],
                false,
                &[],
                "contraindicated",
                json!({"hardware": 99, "instance-identity": 99}),
            ),
            (
                &[],
                true,
                &["rtmr0"],
                "warning",
                json!({"configuration": 2, "executables": 0, "hardware": 2, "runtime-opaque": 2}),
            ),
            (
                &[],
                true,
                &["rtmr2"],
                "warning",
                json!({"configuration": 2, "executables": 0, "hardware": 2, "runtime-opaque": 2}),
            ),
            (
                &[Code::Rtmr, Code::TcbStatus, Code::EventLogMissing],
                true,
                &[],
                "contraindicated",
                json!({"configuration": 2, "executables": 33, "hardware": 32, "runtime-opaque": 2}),
            ),
            (
                &[Code::QuotePadding, Code::EventLogMissing],
                true,
                &[],
                "contraindicated",
                json!({"configuration": 1, "executables": 0, "hardware": 2, "runtime-opaque": 2}),
            ),
            (
                &[Code::TdAttributesForbidden, Code::PlatformInstanceId],
                true,
                &[],
                "contraindicated",
                json!({"configuration": 32, "executables": 3, "hardware": 2, "instance-identity": 97, "runtime-opaque": 0}),
            ),
        ] {
            let token = ear_claims(&verdict(codes, authentic, unchecked), &context()).unwrap();
            let appraisal = &token["submods"]["cpu0"];
            assert_eq!(appraisal["ear_status"], status, "{codes:?}");
            assert_eq!(appraisal["ear_trustworthiness_vector"], expected, "{codes:?}");
            assert_eq!(appraisal["ear_attester_claims"].is_object(), authentic, "{codes:?}");
        }
    }

    #[test]
    fn every_reason_of_a_policy_takes_something_away_and_no_other_leaves_anything() {
        for &code in Code::ALL {
            let effects = effects(code);
            assert!(effects.iter().all(|(_, value)| severity(*value) > 0) && !effects.is_empty(), "{code}");
            let forged = effects.iter().any(|(_, value)| *value == value::CRYPTO_FAILED);
            assert_eq!(
                forged,
                matches!(code.kind(), Kind::Malformed | Kind::Authenticity)
                    || matches!(
                        code,
                        Code::CollateralNotYetValid
                            | Code::CollateralExpired
                            | Code::CertificateNotYetValid
                            | Code::CertificateExpired
                    ),
                "{code}"
            );
        }
    }

    /// The token as a library of other people's reads it.
    #[test]
    fn an_independent_library_verifies_and_reads_the_token() {
        use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
        let generate = |p384| if p384 { SigningKey::generate_p384() } else { SigningKey::generate_p256() };
        for (p384, algorithm) in [(false, Algorithm::ES256), (true, Algorithm::ES384)] {
            let key = generate(p384);
            let token = ear_jwt(&verdict(&[], true, &[]), &context(), &key).unwrap();
            let read = |key: &SigningKey| {
                let jwk = serde_json::from_value(jose::jwk(key)).unwrap();
                decode::<Value>(&token, &DecodingKey::from_jwk(&jwk).unwrap(), &Validation::new(algorithm))
            };
            let read_by_key = read(&key).unwrap();
            assert_eq!(read_by_key.header.kid, Some(jose::thumbprint(&key)));
            assert_eq!(read_by_key.claims, ear_claims(&verdict(&[], true, &[]), &context()).unwrap());
            assert!(read(&generate(p384)).is_err(), "another key");
        }
    }

    #[test]
    fn a_token_has_the_claims_that_the_draft_requires() {
        let token = ear_claims(&verdict(&[], true, &[]), &context()).unwrap();
        assert_eq!((&token["eat_profile"], &token["iat"]), (&json!(EAR_PROFILE), &json!(1_700_000_000)));
        assert!(
            token["ear_verifier_id"]["build"].is_string()
                && token["ear_verifier_id"]["developer"].is_string()
        );
        assert_eq!(token["eat_nonce"], URL_SAFE_NO_PAD.encode("a nonce of the broker's"));
        let claims = &token["submods"]["cpu0"]["ear_attester_claims"]["cloister"]["claims"];
        assert_eq!(claims, &json!({"tee": "snp", "list": [1, {"a": null}]}), "absent claims are not made");
    }

    #[test]
    fn a_thumbprint_is_that_of_the_specification() {
        // The form of RFC 7638's example with a key on P-256: members in order, no white space.
        let key = SigningKey::generate_p256();
        let jwk = jose::jwk(&key);
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":{},"y":{}}}"#, jwk["x"], jwk["y"]);
        use sha2::Digest as _;
        let expected = URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(canonical));
        assert_eq!(jwk["kid"], expected);
    }
}

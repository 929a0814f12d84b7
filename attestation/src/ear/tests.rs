use super::*;
use crate::signing::tests::{p256_key, p384_key};

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
    let generate = |p384| if p384 { p384_key() } else { p256_key() };
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
        token["ear_verifier_id"]["build"].is_string() && token["ear_verifier_id"]["developer"].is_string()
    );
    assert_eq!(token["eat_nonce"], URL_SAFE_NO_PAD.encode("a nonce of the broker's"));
    let claims = &token["submods"]["cpu0"]["ear_attester_claims"]["cloister"]["claims"];
    assert_eq!(claims, &json!({"tee": "snp", "list": [1, {"a": null}]}), "absent claims are not made");
}

#[test]
fn a_thumbprint_is_that_of_the_specification() {
    // The form of RFC 7638's example with a key on P-256: members in order, no white space.
    let key = p256_key();
    let jwk = jose::jwk(&key);
    let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":{},"y":{}}}"#, jwk["x"], jwk["y"]);
    use sha2::Digest as _;
    let expected = URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(canonical));
    assert_eq!(jwk["kid"], expected);
}

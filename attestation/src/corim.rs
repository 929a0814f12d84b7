//! Reference values as CoRIM (draft-ietf-rats-corim), for verifiers that are not this one, signed as COSE_Sign1 if a
//! key is given.
//!
//! One CoMID with a reference triple for each state that a guest may be in: the environment is the TEE, the measurements are the launch digest of an SNP
//! guest (`measurement`), or MRTD (`mrtd`) and the RTMRs that are known (`rtmrs`, integrity registers by number) of a
//! TDX guest. Digests are SHA-384, 7 in the registry of named information hash algorithms.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use corim::builder::{ComidBuilder, CorimBuilder};
use corim::types::common::{MeasuredElement, TagIdChoice};
use corim::types::corim::{CorimId, CorimMetaMap, CorimSignerMap};
use corim::types::environment::{ClassMap, EnvironmentMap};
use corim::types::measurement::{
    Digest, IntegrityRegisterId, IntegrityRegisters, MeasurementMap, MeasurementValuesMap,
};
use corim::types::signed::{CoseAlgorithm, SignedCorimBuilder, decode_signed_corim};
use corim::types::triples::ReferenceTriple;
use corim::validate::decode_and_validate_at;
use serde::Serialize;

use crate::jose;
use crate::measure::hex_string;
use crate::signing::SigningKey;

const SHA384: i64 = 7;

/// What a guest must be measured as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// MEASUREMENT of an SEV-SNP report.
    Snp([u8; 48]),
    /// MRTD, and RTMR0 to RTMR3 as far as they are known, of a TDX quote.
    Tdx([u8; 48], [Option<[u8; 48]>; 4]),
}

/// Why there is no CoRIM, or none that can be read.
#[derive(Debug, thiserror::Error)]
#[error("the CoRIM cannot be made or read: {0}")]
pub struct CorimError(String);

impl Reference {
    fn measurements(&self) -> Vec<MeasurementMap> {
        let digest = |value: &[u8; 48]| Vec::from([Digest::new(SHA384, value.to_vec())]);
        let named = |name: &str, value: MeasurementValuesMap| MeasurementMap {
            mkey: Some(MeasuredElement::Text(name.into())),
            mval: value,
            authorized_by: None,
        };
        let with_digest = |name, value| {
            let mut values = MeasurementValuesMap::default();
            values.digests = Some(digest(value));
            named(name, values)
        };
        match self {
            Self::Snp(measurement) => Vec::from([with_digest("measurement", measurement)]),
            Self::Tdx(mrtd, rtmrs) => {
                let known = (0u64..).zip(rtmrs).filter_map(|(index, rtmr)| Some((index, rtmr.as_ref()?)));
                let registers: BTreeMap<_, _> =
                    known.map(|(index, rtmr)| (IntegrityRegisterId::Uint(index), digest(rtmr))).collect();
                let mut measurements = Vec::from([with_digest("mrtd", mrtd)]);
                if !registers.is_empty() {
                    let mut values = MeasurementValuesMap::default();
                    values.integrity_registers = Some(IntegrityRegisters(registers));
                    measurements.push(named("rtmrs", values));
                }
                measurements
            }
        }
    }

    /// Vendor, model and the digest that names the guest.
    fn environment(&self) -> (&'static str, &'static str, &[u8; 48]) {
        match self {
            Self::Snp(measurement) => ("AMD", "SEV-SNP", measurement),
            Self::Tdx(mrtd, _) => ("Intel", "TDX", mrtd),
        }
    }
}

/// The CoRIM in CBOR, unsigned: a guest may be measured as any of `references`.
pub fn corim(references: &[Reference]) -> Result<Vec<u8>, CorimError> {
    let error = |error: &dyn core::fmt::Display| CorimError(format!("{error}"));
    let first = references.first().ok_or_else(|| error(&"there is nothing to refer to"))?;
    let (_, model, digest) = first.environment();
    let name = format!("cloister/{model}/{}", hex_string(digest));
    let comid = ComidBuilder::new(TagIdChoice::Text(name.clone()));
    let comid =
        references.iter().fold(comid, |comid, reference| comid.add_reference_triple(triple(reference)));
    let comid = comid.build().map_err(|e| error(&e))?;
    let corim = CorimBuilder::new(CorimId::Text(name)).add_comid_tag(comid).map_err(|e| error(&e))?;
    corim.build_bytes().map_err(|e| error(&e))
}

fn triple(reference: &Reference) -> ReferenceTriple {
    let (vendor, model, _) = reference.environment();
    let class = ClassMap {
        class_id: None,
        vendor: Some(vendor.into()),
        model: Some(model.into()),
        layer: None,
        index: None,
    };
    let environment = EnvironmentMap { class: Some(class), instance: None, group: None };
    ReferenceTriple::new(environment, reference.measurements())
}

/// The CoRIM in a COSE_Sign1 by `key`, whose JWK thumbprint is the key identifier.
pub fn signed_corim(references: &[Reference], key: &SigningKey, signer: &str) -> Result<Vec<u8>, CorimError> {
    let error = |error: &dyn core::fmt::Display| CorimError(format!("{error}"));
    let algorithm = if key.is_p384() { CoseAlgorithm::Es384 } else { CoseAlgorithm::Es256 };
    let signer = CorimSignerMap { signer_name: signer.into(), signer_uri: None };
    let mut builder = SignedCorimBuilder::new(algorithm, corim(references)?)
        .set_corim_meta(CorimMetaMap { signer, signature_validity: None })
        .kid(jose::thumbprint(key).into_bytes());
    let message = builder.to_be_signed(&[]).map_err(|e| error(&e))?;
    builder.build_with_signature(key.sign(&message)).map_err(|e| error(&e))
}

/// What a CoRIM says, as far as reference values go. Nothing of it is verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// Its identifier.
    pub id: String,
    /// Whether it is in a COSE_Sign1, whoever signed that.
    pub signed: bool,
    /// Digests in hexadecimal, by what they are of; registers are numbered.
    pub measurements: BTreeMap<String, Vec<String>>,
}

impl Contents {
    /// Whether bytes begin as a CoRIM or a signed one does: CBOR tag 501, or 18 and an array of four.
    pub fn recognises(bytes: &[u8]) -> bool {
        bytes.starts_with(&[0xd9, 0x01, 0xf5]) || bytes.starts_with(&[0xd2, 0x84])
    }

    /// Reads a CoRIM, signed or not.
    pub fn read(bytes: &[u8]) -> Result<Self, CorimError> {
        let error = |error: &dyn core::fmt::Display| CorimError(format!("{error}"));
        let signed = bytes.first() == Some(&0xd2);
        let envelope = signed.then(|| decode_signed_corim(bytes)).transpose().map_err(|e| error(&e))?;
        let bytes = match &envelope {
            Some(envelope) => {
                envelope.payload.as_deref().ok_or_else(|| error(&"its payload is elsewhere"))?
            }
            None => bytes,
        };
        // No time is asked for: at the first second nothing has expired.
        let (corim, comids) = decode_and_validate_at(bytes, 0).map_err(|e| error(&e))?;
        let triples = comids.iter().filter_map(|comid| comid.triples.reference_triples.as_ref()).flatten();
        let mut measurements: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut add = |name: String, digests: &[Digest]| {
            measurements
                .entry(name)
                .or_default()
                .extend(digests.iter().map(|digest| hex_string(digest.value())));
        };
        for measurement in triples.flat_map(|triple| &triple.1) {
            let name = match &measurement.mkey {
                Some(MeasuredElement::Text(name)) => name.clone(),
                Some(MeasuredElement::Uint(number)) => format!("{number}"),
                _ => String::from("unnamed"),
            };
            if let Some(registers) = &measurement.mval.integrity_registers {
                for (id, digests) in &registers.0 {
                    match id {
                        IntegrityRegisterId::Uint(number) => add(format!("{name}[{number}]"), digests),
                        IntegrityRegisterId::Text(text) => add(format!("{name}[{text}]"), digests),
                        _ => add(format!("{name}[unnamed]"), digests),
                    }
                }
            }
            if let Some(digests) = &measurement.mval.digests {
                add(name, digests);
            }
        }
        Ok(Self { id: format!("{}", corim.id), signed, measurements })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::tests::{p256_key, p384_key};
    use ciborium::Value;
    use coset::{CborSerializable, CoseSign1, TaggedCborSerializable};

    fn tagged(value: Value, tag: u64) -> Value {
        match value {
            Value::Tag(found, inner) if found == tag => *inner,
            other => panic!("expected tag {tag}: {other:?}"),
        }
    }

    fn field(value: &Value, key: i64) -> Value {
        let map = value.as_map().unwrap();
        map.iter().find(|(k, _)| k.as_integer() == Some(key.into())).map(|(_, v)| v.clone()).unwrap()
    }

    /// The measurements of a CoRIM, walked by the draft's keys with a CBOR decoder that knows nothing of CoRIM.
    fn measurements(corim: &[u8]) -> Vec<Value> {
        let triples = triples(corim);
        assert_eq!(triples.len(), 1);
        triples[0].as_array().unwrap()[1].as_array().unwrap().clone()
    }

    fn triples(corim: &[u8]) -> Vec<Value> {
        let corim = tagged(ciborium::from_reader(corim).unwrap(), 501);
        let tags = field(&corim, 1);
        let comid = tagged(tags.as_array().unwrap()[0].clone(), 506);
        let comid: Value = ciborium::from_reader(comid.as_bytes().unwrap().as_slice()).unwrap();
        field(&field(&comid, 4), 0).as_array().unwrap().clone()
    }

    fn sha384(byte: u8) -> Value {
        Value::Array(vec![Value::Array(vec![7.into(), Value::Bytes(vec![byte; 48])])])
    }

    #[test]
    fn an_independent_decoder_finds_the_digests() {
        let snp = measurements(&corim(&[Reference::Snp([1; 48])]).unwrap());
        assert_eq!(field(&snp[0], 0), Value::Text("measurement".into()));
        assert_eq!(field(&field(&snp[0], 1), 2), sha384(1));
        let rtmrs = [None, Some([3; 48]), Some([4; 48]), None];
        let tdx = measurements(&corim(&[Reference::Tdx([2; 48], rtmrs)]).unwrap());
        assert_eq!(field(&field(&tdx[0], 1), 2), sha384(2));
        let registers = field(&field(&tdx[1], 1), 14);
        assert_eq!((field(&registers, 1), field(&registers, 2)), (sha384(3), sha384(4)));
        assert_eq!(registers.as_map().unwrap().len(), 2);
        assert_eq!(measurements(&corim(&[Reference::Tdx([2; 48], [None; 4])]).unwrap()).len(), 1);
    }

    #[test]
    fn each_state_that_a_guest_may_be_in_is_a_triple() {
        let both = corim(&[Reference::Snp([1; 48]), Reference::Snp([2; 48])]).unwrap();
        let triples = triples(&both);
        let digests = triples.iter().map(|triple| {
            let measurement = &triple.as_array().unwrap()[1].as_array().unwrap()[0];
            field(&field(measurement, 1), 2)
        });
        assert!(digests.eq([sha384(1), sha384(2)]));
        assert!(corim(&[]).is_err());
    }

    #[test]
    fn what_was_written_is_read_and_damage_is_refused() {
        let reference = [Reference::Tdx([2; 48], [None, Some([3; 48]), None, None])];
        let key = p384_key();
        for (bytes, signed) in
            [(corim(&reference).unwrap(), false), (signed_corim(&reference, &key, "tests").unwrap(), true)]
        {
            assert!(Contents::recognises(&bytes));
            let contents = Contents::read(&bytes).unwrap();
            assert_eq!((contents.id.starts_with("cloister/TDX/0202"), contents.signed), (true, signed));
            let expected = [("mrtd", 2), ("rtmrs[1]", 3)];
            let expected = expected.map(|(name, byte)| (name.into(), vec![hex_string(&[byte; 48])]));
            assert_eq!(contents.measurements, BTreeMap::from(expected));
            for len in 0..bytes.len() {
                assert!(Contents::read(&bytes[..len]).is_err(), "{len}");
            }
        }
        assert!(!Contents::recognises(b"{}") && Contents::read(b"").is_err());
    }

    #[test]
    fn a_signature_holds_for_the_cose_structure() {
        for key in [p256_key(), p384_key()] {
            let signed = signed_corim(&[Reference::Snp([1; 48])], &key, "tests").unwrap();
            let cose = CoseSign1::from_tagged_slice(&signed).unwrap();
            assert_eq!(measurements(cose.payload.as_ref().unwrap()).len(), 1);
            let backend = crate::signature::RUSTCRYPTO;
            let verify = if key.is_p384() { backend.p384 } else { backend.p256 };
            let holds = |cose: &CoseSign1| {
                cose.verify_signature(&[], |signature, message| {
                    verify(&key.public_point(), message, signature).then_some(()).ok_or(())
                })
            };
            assert_eq!(holds(&cose), Ok(()));
            let mut forged = CoseSign1::from_slice(&cose.clone().to_vec().unwrap()).unwrap();
            forged.payload.as_mut().unwrap()[20] ^= 1;
            assert_eq!(holds(&forged), Err(()));
        }
    }
}

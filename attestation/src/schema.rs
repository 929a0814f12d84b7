//! JSON schemas of what this crate reads and writes, made from the types that serde reads and writes.
//!
//! What serde reads through a parser of its own (byte strings, versions, times) is described here by patterns that the tests
//! hold against those parsers.

use alloc::borrow::Cow;
use alloc::format;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use crate::claims::Claims;
use crate::snp::{AbiVersion, FirmwareVersion, Hex, Policy};
use crate::x509::UnixTime;

/// The schema of a policy.
pub fn policy() -> Value {
    schemars::schema_for!(Policy).to_value()
}

/// The schema of claims.
pub fn claims() -> Value {
    schemars::schema_for!(Claims).to_value()
}

impl<const N: usize> JsonSchema for Hex<N> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Hex{N}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let digits = N.saturating_mul(2);
        json_schema!({"type": "string", "pattern": format!("^[0-9a-fA-F]{{{digits}}}$")})
    }
}

macro_rules! text {
    ($type:ty, $name:literal, $pattern:expr) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "pattern": $pattern})
            }
        }
    };
}

/// A decimal number of eight bits, as Rust reads it.
const BYTE: &str = r"\+?0*([0-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5])";

text!(AbiVersion, "AbiVersion", format!(r"^{BYTE}\.{BYTE}$"));
text!(FirmwareVersion, "FirmwareVersion", format!(r"^{BYTE}\.{BYTE}\.{BYTE}$"));
text!(UnixTime, "UnixTime", r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$");

#[cfg(test)]
mod tests {
    use super::*;
    use boon::{Compiler, SchemaIndex, Schemas};
    use serde_json::json;

    struct Validator(Schemas, SchemaIndex);

    impl Validator {
        fn new(schema: Value) -> Self {
            let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
            compiler.add_resource("schema.json", schema).unwrap();
            let index = compiler.compile("schema.json", &mut schemas).unwrap();
            Self(schemas, index)
        }

        fn accepts(&self, document: &Value) -> bool {
            self.0.validate(document, self.1).is_ok()
        }
    }

    #[test]
    fn the_schema_of_policies_accepts_what_serde_accepts() {
        let schema = Validator::new(policy());
        let digest = "aB".repeat(48);
        for (document, good) in [
            (json!({}), true),
            (serde_json::to_value(Policy::default()).unwrap(), true),
            (json!({"measurement": [digest], "report_data": "00".repeat(64), "vmpl": [0, 1]}), true),
            (json!({"measurement": []}), true),
            (json!({"measurement": null}), true),
            (json!({"measurement": ["00"]}), false),
            (json!({"measurement": "00"}), false),
            (json!({"mesurement": []}), false),
            (json!({"report_data": "zz".repeat(64)}), false),
            (json!({"product": ["milan", "genoa", "turin", "venice"]}), true),
            (json!({"product": ["rome"]}), false),
            (json!({"signing_key": ["vlek"], "csp_id": ["x"]}), true),
            (json!({"signing_key": ["ask"]}), false),
            (json!({"revocation": "required"}), true),
            (json!({"revocation": "maybe"}), false),
            (json!({"guest_policy": {"debug": "allowed", "min_abi": "1.51"}}), true),
            (json!({"guest_policy": {"min_abi": "1"}}), false),
            (json!({"guest_policy": {"min_abi": "1.256"}}), false),
            (json!({"guest_policy": {"min_abi": "1.+05"}}), true),
            (json!({"guest_policy": {"debgu": "allowed"}}), false),
            (json!({"platform_info": {"tsme_en": "required"}}), true),
            (json!({"platform_info": {"tsme_en": true}}), false),
            (json!({"firmware": {"min_current": "1.55.39"}}), true),
            (json!({"firmware": {"min_current": "1.300.0"}}), false),
            (json!({"tcb": {"genoa": {"reported": {"snp": 255}}}}), true),
            (json!({"tcb": {"genoa": {"reported": {"snp": 256}}}}), false),
            (json!({"tcb": {"genoa": {"reported": {"ucode": 1}}}}), false),
            (json!({"tcb": {"rome": {}}}), false),
            (json!({"mitigations": {"launch": 3}}), true),
            (json!({"mitigations": {"launch": -3}}), false),
            (json!({"min_guest_svn": 7, "allow_masked_chip_id": true}), true),
            (json!({"allow_masked_chip_id": 1}), false),
        ] {
            let serde = serde_json::from_value::<Policy>(document.clone()).is_ok();
            assert_eq!((serde, schema.accepts(&document)), (good, good), "{document}");
        }
    }

    #[test]
    fn times_and_versions_are_written_as_the_schema_says() {
        for (schema, value) in [
            (schemars::schema_for!(UnixTime), serde_json::to_value(UnixTime(1_700_000_000)).unwrap()),
            (
                schemars::schema_for!(FirmwareVersion),
                serde_json::to_value(FirmwareVersion { major: 1, minor: 0, build: 255 }).unwrap(),
            ),
            (schemars::schema_for!(Hex<2>), serde_json::to_value(Hex([0xab, 0])).unwrap()),
        ] {
            let validator = Validator::new(schema.to_value());
            assert!(validator.accepts(&value), "{value}");
            assert!(!validator.accepts(&json!(7)) && !validator.accepts(&json!("7")));
        }
    }
}

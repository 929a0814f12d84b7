//! JSON schemas of what this crate reads and writes, made from the types that serde reads and writes.
//!
//! What serde reads through a parser of its own (byte strings, versions, times) is described here by patterns that the tests
//! hold against those parsers.

use alloc::borrow::Cow;
use alloc::format;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use crate::claims::Claims;
use crate::snp::{AbiVersion, FirmwareVersion, Hex};
use crate::x509::UnixTime;

/// The schema of a policy for SEV-SNP.
pub fn snp_policy() -> Value {
    schemars::schema_for!(crate::snp::Policy).to_value()
}

/// The schema of a policy for TDX.
pub fn tdx_policy() -> Value {
    schemars::schema_for!(crate::tdx::Policy).to_value()
}

/// The schema of claims, whichever TEE they are of.
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
/// An XFAM in a policy, which has two forms.
pub(crate) struct XfamText;

text!(XfamText, "Xfam", r"^([0-9a-fA-F]{16}|0x[0-9a-fA-F]{1,16})$");
text!(UnixTime, "UnixTime", r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$");

//! What a document says of itself: its version and its TEE. Reading one that is of another is worse than reading none.

use alloc::format;
use alloc::string::String;

use serde::de::{Deserialize, Deserializer, Error};

/// `version` of a document that there is in one version.
pub fn version_1<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        1 => Ok(1),
        version => Err(D::Error::custom(format!("it is of version {version}, and only version 1 is known"))),
    }
}

fn tee<'de, D: Deserializer<'de>>(deserializer: D, expected: &'static str) -> Result<String, D::Error> {
    let tee = String::deserialize(deserializer)?;
    match tee == expected {
        true => Ok(tee),
        false => Err(D::Error::custom(format!("it is of the TEE {tee:?}, expected {expected:?}"))),
    }
}

/// `tee` of a document for SEV-SNP.
pub fn snp<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    tee(deserializer, "snp")
}

/// `tee` of a document for TDX.
pub fn tdx<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    tee(deserializer, "tdx")
}

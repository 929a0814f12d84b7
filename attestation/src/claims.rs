//! What authentic evidence says, whichever TEE it is of: one document, told apart by its `tee`.
//!
//! The version is [`CLAIMS_VERSION`](crate::verdict::CLAIMS_VERSION): within one, fields are only added.

use serde::Serialize;

/// The claims of one TEE. In JSON they are a flat object whose `tee` says which.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
#[non_exhaustive]
pub enum Claims {
    /// `"tee": "snp"`.
    Snp(Box<crate::snp::Claims>),
}

impl From<crate::snp::Claims> for Claims {
    fn from(claims: crate::snp::Claims) -> Self {
        Self::Snp(Box::new(claims))
    }
}

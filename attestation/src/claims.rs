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
    /// `"tee": "tdx"`.
    Tdx(Box<crate::tdx::Claims>),
}

impl Claims {
    /// The name of the TEE, as the document has it.
    pub fn tee(&self) -> &'static str {
        match self {
            Self::Snp(claims) => claims.tee,
            Self::Tdx(claims) => claims.tee,
        }
    }
}

impl From<crate::snp::Claims> for Claims {
    fn from(claims: crate::snp::Claims) -> Self {
        Self::Snp(Box::new(claims))
    }
}

impl From<crate::tdx::Claims> for Claims {
    fn from(claims: crate::tdx::Claims) -> Self {
        Self::Tdx(Box::new(claims))
    }
}

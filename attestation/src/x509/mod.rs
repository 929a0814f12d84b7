//! X.509 as far as evidence needs it: certificates and CRLs with their original bytes, RSASSA-PSS
//! signatures, and names.
//!
//! Signatures are checked over the bytes that were received, never over a re-encoding.

mod certificate;
mod crl;
mod pem;
mod pss;
mod time;

pub use certificate::{CaProfileError, Certificate, CertificateError};
pub use crl::{Crl, CrlError};
pub use pem::{PemError, certificates, crls};
pub use pss::SignatureError;
pub use time::{ParseTimeError, UnixTime};

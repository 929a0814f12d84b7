//! X.509 as far as evidence needs it: certificates and CRLs with their original bytes, RSASSA-PSS
//! (AMD) and ECDSA (Intel) signatures, and names.
//!
//! Signatures are checked over the bytes that were received, never over a re-encoding.

mod certificate;
mod crl;
mod ecdsa;
mod pem;
mod pss;
mod signed;
mod time;

pub use certificate::{CaProfileError, Certificate, CertificateError};
pub use crl::{Crl, CrlError};
pub use pem::{PemError, certificates, crls};
pub use signed::SignatureError;
pub use time::{Moment, ParseTimeError, UnixTime};

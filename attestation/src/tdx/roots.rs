//! Trust roots: Intel's, built in, or those that the caller trusts instead.

use alloc::string::String;
use alloc::vec::Vec;

use crate::x509::{CaProfileError, Certificate, CertificateError, PemError, SignatureError, certificates};

/// Intel SGX Root CA: a public certificate issued by Intel.
const INTEL: &str = include_str!("intel_sgx_root_ca.pem");

/// Why a certificate cannot be a trust root.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// Neither DER nor PEM.
    #[error(transparent)]
    Encoding(#[from] PemError),
    /// Not a certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// It may not have the authorities below it that a root has.
    #[error("{0} cannot be a root: {1}")]
    Profile(String, CaProfileError),
    /// It did not sign itself.
    #[error("{0} cannot be a root: it is not self-signed ({1})")]
    SelfSigned(String, SignatureError),
    /// Another kind of key than every root of TDX has.
    #[error("{0} cannot be a root: its key is not an EC key on P-256")]
    Key(String),
}

/// The roots that are trusted.
#[derive(Clone, Debug, Default)]
pub struct TrustRoots {
    roots: Vec<Certificate>,
}

impl TrustRoots {
    /// None: everything is refused.
    pub fn none() -> Self {
        Self::default()
    }

    /// Intel's.
    pub fn intel() -> Self {
        let mut roots = Self::none();
        // A root that could not be read would be one less to trust; a test reads it.
        let _ = roots.add(INTEL.as_bytes());
        roots
    }

    /// Those in `bytes` (DER or PEM) and no others.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RootError> {
        let mut roots = Self::none();
        roots.add(bytes)?;
        Ok(roots)
    }

    /// Adds the roots in `bytes` (DER or PEM): all certificates in it must be such.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), RootError> {
        let mut roots = Vec::new();
        for der in certificates(bytes)? {
            let certificate = Certificate::from_der(&der)?;
            check_root(&certificate)?;
            roots.push(certificate);
        }
        roots.retain(|root| !self.roots.contains(root));
        self.roots.extend(roots);
        Ok(())
    }

    /// The trusted roots.
    pub fn roots(&self) -> &[Certificate] {
        &self.roots
    }
}

fn check_root(root: &Certificate) -> Result<(), RootError> {
    let name = || String::from(root.common_name());
    root.check_authority(1).map_err(|error| RootError::Profile(name(), error))?;
    if root.p256_point().is_none() {
        return Err(RootError::Key(name()));
    }
    root.verify_self_signed().map_err(|error| RootError::SelfSigned(name(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intels_root_is_there() {
        let intel = TrustRoots::intel();
        let [root] = intel.roots() else { panic!("not one root") };
        assert_eq!(root.common_name(), "Intel SGX Root CA");
        // As Intel, and every verifier that pins it, publish it.
        let pinned = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3";
        assert_eq!(hex::encode(root.fingerprint()), pinned);
    }

    #[test]
    fn what_is_no_root_is_refused() {
        let intel = certificates(INTEL.as_bytes()).unwrap().pop().unwrap();
        let mut forged = intel.into_owned();
        *forged.last_mut().unwrap() ^= 1;
        assert!(matches!(TrustRoots::from_bytes(&forged).unwrap_err(), RootError::SelfSigned(..)));
        assert!(matches!(TrustRoots::from_bytes(b"root").unwrap_err(), RootError::Encoding(_)));
        assert!(matches!(TrustRoots::from_bytes(b"0").unwrap_err(), RootError::Certificate(_)));
        let ark = include_bytes!("../snp/roots/ask_ark_milan.pem");
        assert!(matches!(
            TrustRoots::from_bytes(ark).unwrap_err(),
            RootError::Profile(..) | RootError::Key(_)
        ));
    }
}

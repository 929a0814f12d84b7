//! Trust roots: AMD's, built in, or those that the caller trusts instead.

use alloc::string::String;
use alloc::vec::Vec;

use super::tcb::Product;
use crate::x509::{CaProfileError, Certificate, CertificateError, PemError, SignatureError, certificates};

/// The ASK or ASVK, then the ARK, of each product: public certificates issued by AMD.
const AMD: [&str; 6] = [
    include_str!("roots/ask_ark_milan.pem"),
    include_str!("roots/ask_ark_milan_vlek.pem"),
    include_str!("roots/ask_ark_genoa.pem"),
    include_str!("roots/ask_ark_genoa_vlek.pem"),
    include_str!("roots/ask_ark_turin_vcek.pem"),
    include_str!("roots/ask_ark_turin_vlek.pem"),
];

/// Why a certificate cannot be a trust root.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// Neither DER nor PEM.
    #[error(transparent)]
    Encoding(#[from] PemError),
    /// Not a certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// No certificate in it is a root.
    #[error(
        "there is no root among the certificates: none is named ARK-Milan, ARK-Genoa, ARK-Turin or ARK-Venice"
    )]
    NoRoot,
    /// It does not say of itself that it is an authority.
    #[error("{0} cannot be a root: {1}")]
    Profile(String, CaProfileError),
    /// It did not sign itself.
    #[error("{0} cannot be a root: it is not self-signed ({1})")]
    SelfSigned(String, SignatureError),
}

/// The roots that are trusted, and intermediates that may help but are trusted no more than others.
#[derive(Clone, Debug, Default)]
pub struct TrustRoots {
    roots: Vec<Certificate>,
    intermediates: Vec<Certificate>,
}

impl TrustRoots {
    /// None: everything is refused.
    pub fn none() -> Self {
        Self::default()
    }

    /// AMD's roots of every [`Product`] but Venice, with the intermediates that AMD publishes.
    pub fn amd() -> Self {
        let mut roots = Self::none();
        for pem in AMD {
            // A root that could not be read would be one less to trust; a test reads them all.
            let _ = roots.add(pem.as_bytes());
        }
        roots
    }

    /// Those in `bytes` (DER or PEM) and no others. Intermediates beside the root are taken as such.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RootError> {
        let mut roots = Self::none();
        roots.add(bytes)?;
        Ok(roots)
    }

    /// Adds the root in `bytes` (DER or PEM), with the intermediates beside it.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), RootError> {
        let (mut roots, mut intermediates) = (Vec::new(), Vec::new());
        for der in certificates(bytes)? {
            let certificate = Certificate::from_der(&der)?;
            if root_product(&certificate).is_none() {
                intermediates.push(certificate);
                continue;
            }
            check_root(&certificate)?;
            roots.push(certificate);
        }
        if roots.is_empty() {
            return Err(RootError::NoRoot);
        }
        roots.retain(|root| !self.roots.contains(root));
        self.roots.extend(roots);
        self.intermediates.extend(intermediates);
        Ok(())
    }

    /// The trusted roots.
    pub fn roots(&self) -> &[Certificate] {
        &self.roots
    }

    /// The intermediates that came with them.
    pub fn intermediates(&self) -> &[Certificate] {
        &self.intermediates
    }
}

/// The product whose root this says that it is.
pub(super) fn root_product(certificate: &Certificate) -> Option<Product> {
    Product::by_name(certificate.common_name().strip_prefix("ARK-")?)
}

fn check_root(root: &Certificate) -> Result<(), RootError> {
    let name = || String::from(root.common_name());
    root.check_authority(1).map_err(|error| RootError::Profile(name(), error))?;
    root.verify_self_signed().map_err(|error| RootError::SelfSigned(name(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amds_roots_are_all_there() {
        let amd = TrustRoots::amd();
        let names = |certificates: &[Certificate]| -> Vec<String> {
            certificates.iter().map(|c| c.common_name().into()).collect()
        };
        assert_eq!(names(amd.roots()), ["ARK-Milan", "ARK-Genoa", "ARK-Turin"]);
        let expected =
            ["SEV-Milan", "SEV-VLEK-Milan", "SEV-Genoa", "SEV-VLEK-Genoa", "SEV-Turin", "SEV-VLEK-Turin"];
        assert_eq!(names(amd.intermediates()), expected);
        for pem in AMD {
            assert!(TrustRoots::from_bytes(pem.as_bytes()).is_ok());
        }
    }

    #[test]
    fn what_is_no_root_is_refused() {
        let ask = AMD[0].split_inclusive("-----END CERTIFICATE-----").next().unwrap();
        assert_eq!(TrustRoots::from_bytes(ask.as_bytes()).unwrap_err(), RootError::NoRoot);
        assert!(matches!(TrustRoots::from_bytes(b"root").unwrap_err(), RootError::Encoding(_)));
        assert!(matches!(TrustRoots::from_bytes(b"0").unwrap_err(), RootError::Certificate(_)));
        let ark = certificates(AMD[0].as_bytes()).unwrap().pop().unwrap();
        let mut forged = ark.into_owned();
        *forged.last_mut().unwrap() ^= 1;
        assert!(matches!(TrustRoots::from_bytes(&forged).unwrap_err(), RootError::SelfSigned(..)));
    }
}

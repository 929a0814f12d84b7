//! DER or PEM, told apart by looking; PEM may hold several objects, certificates and CRLs beside each other.

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// More than any chain or CRL of a vendor has.
const MAX_BYTES: usize = 1 << 20;
/// More than any chain has.
const MAX_OBJECTS: usize = 16;

/// Why bytes are neither DER nor PEM of the expected kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// Longer than anything real.
    #[error("{len} bytes are more than any real certificate chain or CRL has")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Neither encoding.
    #[error("neither DER nor PEM")]
    Encoding,
    /// A line without its counterpart, or text that is not base64.
    #[error("damaged PEM: {0}")]
    Pem(&'static str),
    /// Something else than expected.
    #[error("PEM of a {found:?}, expected a {expected:?}")]
    Label {
        /// What it says.
        found: String,
        /// What it should say.
        expected: &'static str,
    },
    /// Too many objects.
    #[error("more than {MAX_OBJECTS} objects in one PEM file")]
    TooMany,
}

const CERTIFICATE: &str = "CERTIFICATE";
const CRL: &str = "X509 CRL";

/// The certificates in `bytes`, as DER. CRLs beside them are left to [`crls`].
pub fn certificates(bytes: &[u8]) -> Result<Vec<Cow<'_, [u8]>>, PemError> {
    objects(bytes, CERTIFICATE)
}

/// The CRLs in `bytes`, as DER. Certificates beside them are left to [`certificates`].
pub fn crls(bytes: &[u8]) -> Result<Vec<Cow<'_, [u8]>>, PemError> {
    objects(bytes, CRL)
}

fn objects<'a>(bytes: &'a [u8], expected: &'static str) -> Result<Vec<Cow<'a, [u8]>>, PemError> {
    const SEQUENCE: u8 = 0x30;
    if bytes.len() > MAX_BYTES {
        return Err(PemError::TooLong { len: bytes.len() });
    }
    if bytes.first() == Some(&SEQUENCE) {
        return Ok(Vec::from([Cow::Borrowed(bytes)]));
    }
    // Some tables pad their PEM with NULs.
    let text = core::str::from_utf8(bytes).map_err(|_| PemError::Encoding)?.trim_end_matches('\0');
    let mut objects = Vec::new();
    let (mut count, mut other) = (0, None);
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        let (label, after) = after.split_once("-----").ok_or(PemError::Pem("a BEGIN line does not end"))?;
        let (body, after) = after.split_once("-----END ").ok_or(PemError::Pem("an END line is missing"))?;
        let (end, after) = after.split_once("-----").ok_or(PemError::Pem("an END line does not end"))?;
        let wrong = || PemError::Label { found: label.chars().take(64).collect(), expected };
        if ![CERTIFICATE, CRL].contains(&label) {
            return Err(wrong());
        }
        if end != label {
            return Err(PemError::Pem("BEGIN and END differ"));
        }
        if count == MAX_OBJECTS {
            return Err(PemError::TooMany);
        }
        count = count.saturating_add(1);
        rest = after;
        if label != expected {
            other = other.or(Some(wrong()));
            continue;
        }
        let mut digits = Vec::with_capacity(body.len());
        body.split_ascii_whitespace().for_each(|line| digits.extend_from_slice(line.as_bytes()));
        let der = STANDARD.decode(digits).map_err(|_| PemError::Pem("its text is not base64"))?;
        objects.push(Cow::Owned(der));
    }
    if objects.is_empty() { Err(other.unwrap_or(PemError::Encoding)) } else { Ok(objects) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";

    #[test]
    fn der_is_passed_through_and_pem_is_decoded() {
        assert_eq!(certificates(&[0x30, 0]).unwrap(), [vec![0x30, 0]]);
        assert_eq!(certificates(ONE.as_bytes()).unwrap(), [vec![1, 2, 3]]);
        assert_eq!(certificates(format!("# two\r\n{ONE}{ONE}\0").as_bytes()).unwrap().len(), 2);
        assert_eq!(crls(b"-----BEGIN X509 CRL-----AQID-----END X509 CRL-----").unwrap(), [vec![1, 2, 3]]);
    }

    #[test]
    fn of_certificates_and_crls_in_one_file_each_is_found() {
        let crl = ONE.replace("CERTIFICATE", "X509 CRL").replace("AQID", "BAUG");
        for file in [format!("{ONE}{crl}"), format!("{crl}{ONE}"), format!("{crl}# and\n{ONE}")] {
            assert_eq!(certificates(file.as_bytes()).unwrap(), [vec![1, 2, 3]]);
            assert_eq!(crls(file.as_bytes()).unwrap(), [vec![4, 5, 6]]);
        }
        let key = ONE.replace("CERTIFICATE", "PRIVATE KEY");
        let label = PemError::Label { found: "PRIVATE KEY".into(), expected: "CERTIFICATE" };
        assert_eq!(certificates(format!("{ONE}{key}").as_bytes()), Err(label));
        assert_eq!(certificates(format!("{}{crl}", ONE.repeat(16)).as_bytes()), Err(PemError::TooMany));
    }

    #[test]
    fn everything_else_is_refused() {
        let label = PemError::Label { found: "CERTIFICATE".into(), expected: "X509 CRL" };
        assert_eq!(crls(ONE.as_bytes()), Err(label));
        for (text, error) in [
            (String::new(), PemError::Encoding),
            ("hello".into(), PemError::Encoding),
            ("-----BEGIN CERTIFICATE".into(), PemError::Pem("a BEGIN line does not end")),
            (ONE.replace("END", "BEGIN"), PemError::Pem("an END line is missing")),
            (ONE.replace("END CERTIFICATE", "END X"), PemError::Pem("BEGIN and END differ")),
            (ONE.replace("AQID", "AQI"), PemError::Pem("its text is not base64")),
            (ONE.repeat(17), PemError::TooMany),
            ("x".repeat(MAX_BYTES + 1), PemError::TooLong { len: MAX_BYTES + 1 }),
        ] {
            assert_eq!(certificates(text.as_bytes()), Err(error), "{}", &text[..text.len().min(30)]);
        }
    }
}

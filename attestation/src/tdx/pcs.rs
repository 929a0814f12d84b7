//! What Intel's PCS, or a PCCS in its place, answers to each question, made into one [`CollateralDocument`].
//!
//! TCB info and QE identity come as JSON with a signature over the very text of a value inside: the text is cut out as it
//! stands there and never written again. Chains come in HTTP headers, percent-encoded; CRLs as DER, PEM or hexadecimal
//! digits, whoever was asked in which way. Nothing is believed here: that is for [`super::Collateral`].

use alloc::string::String;
use alloc::vec::Vec;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::documents::{CollateralDocument, HexBytes, MAX_BYTES, QeIdentity, TcbInfo};
use crate::measure::read_hex;
use crate::snp::Hex;
use crate::x509::{certificates, crls};

/// Why an answer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PcsError {
    /// Longer than anything real.
    #[error("{0} bytes are more than any answer has")]
    TooLong(usize),
    /// Not a JSON object with one signed value and one signature.
    #[error("it is no signed answer: {0}")]
    Json(#[from] serde_json::Error),
    /// What was signed cannot be read.
    #[error(transparent)]
    Document(#[from] super::documents::CollateralError),
    /// No certificates, whether as PEM, percent-encoded, or in a header.
    #[error("it has no chain of certificates, neither as PEM nor in a header \"...-Issuer-Chain\"")]
    Chain,
    /// No CRL in any form.
    #[error("it is no CRL, neither DER, PEM nor hexadecimal digits")]
    Crl,
}

/// A signed document, as it was answered: `{"tcbInfo": {...}, "signature": "..."}` or likewise `enclaveIdentity`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedText {
    /// The very text that was signed.
    pub text: String,
    /// r and s.
    pub signature: Hex<64>,
}

impl SignedText {
    /// Key of the TCB info in the answer to `/tcb`.
    pub const TCB_INFO: &'static str = "tcbInfo";
    /// Key of the QE identity in the answer to `/qe/identity`.
    pub const QE_IDENTITY: &'static str = "enclaveIdentity";

    /// The answer to `/tcb`.
    pub fn tcb_info(answer: &[u8]) -> Result<Self, PcsError> {
        let TcbInfoAnswer { text, signature } = read(answer)?;
        TcbInfo::from_json(text.get())?;
        Ok(Self { text: text.get().into(), signature })
    }

    /// The answer to `/qe/identity`.
    pub fn qe_identity(answer: &[u8]) -> Result<Self, PcsError> {
        let QeIdentityAnswer { text, signature } = read(answer)?;
        QeIdentity::from_json(text.get())?;
        Ok(Self { text: text.get().into(), signature })
    }
}

#[derive(Deserialize)]
struct TcbInfoAnswer<'a> {
    #[serde(borrow, rename = "tcbInfo")]
    text: &'a RawValue,
    signature: Hex<64>,
}

#[derive(Deserialize)]
struct QeIdentityAnswer<'a> {
    #[serde(borrow, rename = "enclaveIdentity")]
    text: &'a RawValue,
    signature: Hex<64>,
}

fn read<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, PcsError> {
    if answer.len() > MAX_BYTES {
        return Err(PcsError::TooLong(answer.len()));
    }
    Ok(crate::json::object(answer)?)
}

/// A chain of certificates as PEM: from PEM, from PEM that is percent-encoded, or from the headers of an answer.
pub fn chain(bytes: &[u8]) -> Result<String, PcsError> {
    let text = core::str::from_utf8(bytes).map_err(|_| PcsError::Chain)?;
    let header = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().to_ascii_lowercase().ends_with("-issuer-chain").then_some(value.trim())
    });
    let pem = percent_decoded(header.unwrap_or(text)).ok_or(PcsError::Chain)?;
    match certificates(pem.as_bytes()) {
        Ok(_) if pem.contains("-----BEGIN") => Ok(pem),
        _ => Err(PcsError::Chain),
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut pieces = text.split('%');
    let mut bytes = Vec::from(pieces.next()?);
    for piece in pieces {
        let (digits, literal) = piece.split_at_checked(2)?;
        bytes.extend(read_hex(digits)?);
        bytes.extend_from_slice(literal.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// A CRL as DER: from DER, PEM or hexadecimal digits.
pub fn crl(bytes: &[u8]) -> Result<HexBytes, PcsError> {
    let digits = core::str::from_utf8(bytes).ok().and_then(|text| read_hex(text.trim().trim_matches('"')));
    let ders = crls(digits.as_deref().unwrap_or(bytes)).map_err(|_| PcsError::Crl)?;
    match &ders[..] {
        [der] => Ok(HexBytes(der.to_vec())),
        _ => Err(PcsError::Crl),
    }
}

/// The answers of a PCS about one model of platform.
#[derive(Clone, Copy, Debug)]
pub struct PcsAnswers<'a> {
    /// To `/tcb`.
    pub tcb_info: &'a [u8],
    /// Who signed it: its header `TCB-Info-Issuer-Chain`.
    pub tcb_info_chain: &'a [u8],
    /// To `/qe/identity`.
    pub qe_identity: &'a [u8],
    /// Who signed it: its header `SGX-Enclave-Identity-Issuer-Chain`.
    pub qe_identity_chain: &'a [u8],
    /// To `/pckcrl`.
    pub pck_crl: &'a [u8],
    /// Who signed it: its header `SGX-PCK-CRL-Issuer-Chain`.
    pub pck_crl_chain: &'a [u8],
    /// The root's CRL.
    pub root_crl: &'a [u8],
}

/// An answer that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the {which}: {error}")]
pub struct AnswerError {
    /// Which one.
    pub which: &'static str,
    /// Why not.
    #[source]
    pub error: PcsError,
}

impl PcsAnswers<'_> {
    /// All of it in one document.
    pub fn document(&self) -> Result<CollateralDocument, AnswerError> {
        fn of<T>(which: &'static str, read: Result<T, PcsError>) -> Result<T, AnswerError> {
            read.map_err(|error| AnswerError { which, error })
        }
        let tcb_info = of("TCB info", SignedText::tcb_info(self.tcb_info))?;
        let qe_identity = of("QE identity", SignedText::qe_identity(self.qe_identity))?;
        Ok(CollateralDocument {
            pck_crl_issuer_chain: of("PCK CRL's chain", chain(self.pck_crl_chain))?,
            root_ca_crl: of("root's CRL", crl(self.root_crl))?,
            pck_crl: of("PCK CRL", crl(self.pck_crl))?,
            tcb_info_issuer_chain: of("TCB info's chain", chain(self.tcb_info_chain))?,
            tcb_info: tcb_info.text,
            tcb_info_signature: tcb_info.signature,
            qe_identity_issuer_chain: of("QE identity's chain", chain(self.qe_identity_chain))?,
            qe_identity: qe_identity.text,
            qe_identity_signature: qe_identity.signature,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_one_signed_value_and_one_signature() {
        let signature = "ab".repeat(64);
        let good = alloc::format!("\t{{ \"tcbInfo\" : {{\"id\":  [1]}} ,\"signature\":\"{signature}\"}}\n");
        let read = |text: &str| {
            let TcbInfoAnswer { text, signature } = read(text.as_bytes())?;
            Ok::<_, PcsError>((String::from(text.get()), signature))
        };
        assert_eq!(read(&good).unwrap(), ("{\"id\":  [1]}".into(), Hex([0xab; 64])), "the very text");
        for (from, to) in [
            ("tcbInfo", "enclaveIdentity"),
            ("\"signature\"", "\"sign\""),
            ("{ \"tcb", "{\"tcbInfo\":0,\"tcb"),
            ("{ \"tcb", "{\"signature\":\"\",\"tcb"),
            ("abab", "ab"),
            ("\"}", "\""),
            ("\"}", "\"}}"),
        ] {
            assert!(good.contains(from) && read(&good.replacen(from, to, 1)).is_err(), "{from}");
        }
        assert!(matches!(read(&" ".repeat(MAX_BYTES + 1)), Err(PcsError::TooLong(_))));
    }

    #[test]
    fn a_chain_is_read_from_pem_and_from_headers() {
        let pem = "-----BEGIN CERTIFICATE-----\nAQID+/==\n-----END CERTIFICATE-----\n";
        let pem = pem.replace("AQID+/==", "AQIDBA==");
        let encoded: String = pem.bytes().map(|byte| alloc::format!("%{byte:02X}")).collect();
        let headers =
            alloc::format!("HTTP/1.1 200 OK\r\nTCB-Info-Issuer-Chain: {encoded}\r\nDate: now\r\n\r\n");
        for text in
            [&pem, &encoded, &headers, &headers.to_lowercase().replace(&encoded.to_lowercase(), &encoded)]
        {
            assert_eq!(chain(text.as_bytes()).unwrap(), pem);
        }
        for text in ["", "HTTP/1.1 200 OK\r\nDate: now\r\n", "%2", "%zz", "TCB-Info-Issuer-Chain: none"] {
            assert!(chain(text.as_bytes()).is_err(), "{text}");
        }
        assert!(chain(&[0x30, 0]).is_err() && chain(&[0xff]).is_err());
    }

    #[test]
    fn a_crl_is_read_in_every_form() {
        let pem = "-----BEGIN X509 CRL-----\nMAECAw==\n-----END X509 CRL-----\n";
        for bytes in [&b"\x30\x01\x02\x03"[..], b"30010203", b"\"30010203\"\n", pem.as_bytes()] {
            assert_eq!(crl(bytes).unwrap(), HexBytes(Vec::from([0x30, 1, 2, 3])));
        }
        for bytes in [&b""[..], b"3", b"zz", pem.repeat(2).as_bytes(), b"{}"] {
            assert!(crl(bytes).is_err(), "{bytes:?}");
        }
    }
}

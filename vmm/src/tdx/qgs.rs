//! Intel's quote generation service, as a client: one request, one answer, on a connection of its own.
//!
//! Messages are framed by their length as four bytes, most significant first (what Intel's service and QEMU speak), and
//! begin with a header of four words (Intel TDX DCAP `qgs_msg_lib`). Nothing that the service says is believed: sizes are
//! bounded, and the quote's reader is the guest's verifier.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::config::QuoteService;

/// No quote is longer, and no answer either.
pub const MAX_QUOTE: usize = 64 << 10;
/// How long the service may be silent.
const PATIENCE: Duration = Duration::from_secs(30);

const GET_QUOTE_REQUEST: u32 = 0;
const GET_QUOTE_RESPONSE: u32 = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    major_version: U16,
    minor_version: U16,
    kind: U32,
    size: U32,
    error_code: U32,
}
const _: () = assert!(size_of::<Header>() == 16);

/// What follows the header of a request: two sizes, then the report and the list of key identifiers.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Request {
    header: Header,
    report_size: U32,
    id_list_size: U32,
}

/// What follows the header of an answer: two sizes, then the chosen key identifier and the quote.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Response {
    header: Header,
    selected_id_size: U32,
    quote_size: U32,
}

/// Why there is no quote.
#[derive(Debug, thiserror::Error)]
pub enum QgsError {
    /// It cannot be reached.
    #[error("the quote generation service cannot be reached: {0}")]
    Unreachable(io::Error),
    /// It was, and then it was not.
    #[error("the quote generation service broke off: {0}")]
    Broken(io::Error),
    /// It refused.
    #[error("the quote generation service refused: error {0:#x}")]
    Refused(u32),
    /// Its answer is not of the protocol's form.
    #[error("the quote generation service answered nonsense: {0}")]
    Nonsense(&'static str),
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

fn connect(service: &QuoteService) -> io::Result<Box<dyn Stream>> {
    let stream = match service {
        QuoteService::Unix(path) => UnixStream::connect(path)?,
        QuoteService::Vsock { cid, port } => UnixStream::from(vsock(*cid, *port)?),
    };
    // A vsock descriptor behind a UnixStream: reads, writes and time limits are the socket layer's.
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(Box::new(stream))
}

fn vsock(cid: u32, port: u32) -> io::Result<OwnedFd> {
    // SAFETY: the result is checked and owned.
    let socket = unsafe {
        let raw = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(raw)
    };
    // SAFETY: all-zero is a valid address.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    (address.svm_cid, address.svm_port) = (cid, port);
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is on this frame and its length is given.
    match unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks for the quote of a TDREPORT.
pub fn quote(service: &QuoteService, report: &[u8]) -> Result<Vec<u8>, QgsError> {
    let mut stream = connect(service).map_err(QgsError::Unreachable)?;
    exchange(&mut *stream, report)
}

fn exchange(stream: &mut (impl Read + Write + ?Sized), report: &[u8]) -> Result<Vec<u8>, QgsError> {
    stream.write_all(&request(report)).map_err(QgsError::Broken)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).map_err(QgsError::Broken)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_QUOTE {
        return Err(QgsError::Nonsense("it is too long"));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).map_err(QgsError::Broken)?;
    response(&message).map(<[u8]>::to_vec)
}

fn request(report: &[u8]) -> Vec<u8> {
    let size = size_of::<Request>() + report.len();
    let mut request = Request::new_zeroed();
    request.header.major_version = U16::new(1);
    request.header.kind = U32::new(GET_QUOTE_REQUEST);
    request.header.size = U32::new(size as u32);
    request.report_size = U32::new(report.len() as u32);
    [&(size as u32).to_be_bytes()[..], request.as_bytes(), report].concat()
}

fn response(message: &[u8]) -> Result<&[u8], QgsError> {
    const SHORT: QgsError = QgsError::Nonsense("it is too short");
    let (response, rest) = Response::ref_from_prefix(message).map_err(|_| SHORT)?;
    let header = &response.header;
    if header.error_code.get() != 0 {
        return Err(QgsError::Refused(header.error_code.get()));
    }
    if header.major_version.get() != 1 || header.kind.get() != GET_QUOTE_RESPONSE {
        return Err(QgsError::Nonsense("it is no answer to a request for a quote"));
    }
    if header.size.get() as usize != message.len() {
        return Err(QgsError::Nonsense("its length is not what it says"));
    }
    let quote = rest.get(response.selected_id_size.get() as usize..).ok_or(SHORT)?;
    match quote.len() == response.quote_size.get() as usize && !quote.is_empty() {
        true => Ok(quote),
        false => Err(QgsError::Nonsense("its sizes contradict each other")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u32, error: u32, id: &[u8], quote: &[u8]) -> Vec<u8> {
        let size = 24 + id.len() + quote.len();
        let words = [1, kind, size as u32, error, id.len() as u32, quote.len() as u32];
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        [&words, id, quote].concat()
    }

    #[test]
    fn a_request_is_framed_and_says_its_sizes() {
        let message = request(&[0xaa; 1024]);
        assert_eq!(message[..4], (24u32 + 1024).to_be_bytes());
        assert_eq!(message[4..8], [1, 0, 0, 0], "version 1.0");
        assert_eq!(message[12..16], (24u32 + 1024).to_le_bytes());
        assert_eq!(message[20..24], 1024u32.to_le_bytes());
        assert_eq!(message.len(), 4 + 24 + 1024);
    }

    #[test]
    fn an_answer_is_taken_only_if_everything_in_it_agrees() {
        assert_eq!(response(&answer(1, 0, b"id", b"quote")).unwrap(), b"quote");
        let mut contradictory = answer(1, 0, b"", b"quote");
        contradictory[20] += 1;
        let mut long = answer(1, 0, b"", b"quote");
        long.push(0);
        for (message, text) in [
            (answer(1, 0x12001, b"", b"quote"), "refused"),
            (answer(0, 0, b"", b"quote"), "no answer"),
            (answer(1, 0, b"", b""), "contradict"),
            (contradictory, "contradict"),
            (long, "length"),
            (vec![0; 5], "short"),
        ] {
            let error = response(&message).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_service_that_answers_without_end_is_left() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert!(matches!(exchange(&mut ours, &[0; 1024]), Err(QgsError::Nonsense(_))));
    }
}

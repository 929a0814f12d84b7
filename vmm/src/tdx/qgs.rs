//! Intel's quote generation service, as a client: one request, one answer, on a connection of its own.
//!
//! Messages are framed by their length as four bytes, most significant first (what Intel's service and QEMU speak), and
//! begin with a header of four words (Intel TDX DCAP `qgs_msg_lib`). Nothing that the service says is believed: sizes are
//! bounded, and the quote's reader is the guest's verifier.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::config::QuoteService;
use crate::sys::socket::{connect_unix, connect_vsock};

/// The longest answer that is taken. Quotes of today have 5 to 16 KiB.
pub const MAX_QUOTE: usize = 4 << 20;
/// How long all of it may take: less than the 30 s for which Linux as a TD waits (`tdx-guest`, GETQUOTE_TIMEOUT), so that the guest
/// learns what was wrong.
pub const TIME: Duration = Duration::from_secs(20);
/// Between two tries to reach a service whose queue is full.
const BUSY_INTERVAL: Duration = Duration::from_millis(50);

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
    /// It took the request and said nothing more.
    #[error("the quote generation service did not answer within {0} s")]
    Silent(u64),
    /// It answered, without a quote.
    #[error("the quote generation service answered with an empty quote")]
    Empty,
    /// It answered at length.
    #[error(
        "the quote generation service answered with {0} bytes, which is too long: at most {MAX_QUOTE} are taken"
    )]
    TooLong(usize),
    /// It refused.
    #[error("the quote generation service refused: error {0:#x}")]
    Refused(u32),
    /// Its answer is not of the protocol's form.
    #[error("the quote generation service answered nonsense: {0}")]
    Nonsense(&'static str),
}

/// A connection on which nothing takes longer than until a point in time.
struct Timed {
    stream: UnixStream,
    until: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(bytes)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn connect(service: &QuoteService, until: Instant) -> io::Result<Timed> {
    let left = until.saturating_duration_since(Instant::now());
    let stream = match service {
        QuoteService::Unix(path) => loop {
            match connect_unix(path) {
                // Its queue is full.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                    std::thread::sleep(BUSY_INTERVAL);
                }
                result => break result?,
            }
        },
        QuoteService::Vsock { cid, port } => connect_vsock(*cid, *port, left)?,
    };
    stream.set_nonblocking(false)?;
    Ok(Timed { stream, until })
}

/// Asks for the quote of a TDREPORT; takes no longer than `time`.
pub fn quote(service: &QuoteService, report: &[u8], time: Duration) -> Result<Vec<u8>, QgsError> {
    let mut stream = connect(service, Instant::now() + time).map_err(QgsError::Unreachable)?;
    exchange(&mut stream, report).map_err(|error| match error {
        QgsError::Broken(source) if is_timeout(&source) => QgsError::Silent(time.as_secs()),
        other => other,
    })
}

/// A socket's time limit is told as the first.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn exchange(stream: &mut (impl Read + Write), report: &[u8]) -> Result<Vec<u8>, QgsError> {
    stream.write_all(&request(report)).map_err(QgsError::Broken)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).map_err(QgsError::Broken)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_QUOTE {
        return Err(QgsError::TooLong(length));
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
    match quote.len() {
        len if len != response.quote_size.get() as usize => {
            Err(QgsError::Nonsense("its sizes contradict each other"))
        }
        0 => Err(QgsError::Empty),
        _ => Ok(quote),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

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
            (answer(1, 0, b"", b""), "an empty quote"),
            (contradictory, "contradict"),
            (long, "length"),
            (vec![0; 5], "short"),
        ] {
            let error = response(&message).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    /// What becomes of a request to a service that does `answer` with its connection.
    fn asked(answer: impl FnOnce(UnixStream) + Send + 'static, time: Duration) -> QgsError {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qgs");
        let listener = UnixListener::bind(&path).unwrap();
        let service = std::thread::spawn(move || answer(listener.accept().unwrap().0));
        let error = quote(&QuoteService::Unix(path), &[0; 1024], time).unwrap_err();
        service.join().unwrap();
        error
    }

    #[test]
    fn each_way_to_fail_has_a_sentence_of_its_own() {
        let short = Duration::from_millis(50);
        let long = Duration::from_secs(60);
        // Whoever drips a byte now and then has no more time than whoever is silent.
        let drip = |mut stream: UnixStream| {
            while stream.write_all(&[0]).is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let silent = |mut stream: UnixStream| {
            let _ = stream.read_to_end(&mut Vec::new());
        };
        let broken = |mut stream: UnixStream| stream.write_all(&[0, 0]).unwrap();
        let endless = |mut stream: UnixStream| stream.write_all(&u32::MAX.to_be_bytes()).unwrap();
        for (error, words) in [
            (asked(silent, short), "did not answer within"),
            (asked(drip, short), "too short"),
            (asked(broken, long), "broke off"),
            (asked(endless, long), "too long"),
            (quote(&QuoteService::Unix("/nonexistent".into()), &[], long).unwrap_err(), "cannot be reached"),
        ] {
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn a_service_whose_queue_is_full_is_out_of_reach_and_not_waited_for_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qgs");
        let listener = UnixListener::bind(&path).unwrap();
        let _queue: Vec<_> = (0..5000).map_while(|_| connect_unix(&path).ok()).collect();
        let error = quote(&QuoteService::Unix(path), &[], Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, QgsError::Unreachable(_)), "{error}");
        drop(listener);
    }
}

//! The quote generation service: Intel's QGS message protocol on a unix socket (the protocol of `qgs_msg_lib`), each message
//! behind its length in four bytes, most significant first, as QEMU and Intel's own service frame it.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use super::platform::Platform;
use super::quote::{self, Refusal};
use crate::platform::{Error, io};
use crate::snp::page::{u16_at, u32_at};
use crate::tdx::report;

/// A message: version, type, size with this header, error code.
const HEADER_BYTES: usize = 16;
const MAJOR: u16 = 1;
/// That of today's `qgs_msg_lib`. Requests may have another: 1.0 was the first, and QEMU takes answers of 1.1 only.
const MINOR: u16 = 1;
/// Messages beyond this are nobody's.
const MAX_BYTES: usize = 64 << 10;
/// How long a client may keep us waiting.
const PATIENCE: Duration = Duration::from_secs(10);

const GET_QUOTE_REQUEST: u32 = 0;
const GET_QUOTE_RESPONSE: u32 = 1;

/// Error codes of a response (qgs_msg_error_t).
mod code {
    pub const SUCCESS: u32 = 0;
    pub const UNEXPECTED: u32 = 0x1_2001;
    pub const INVALID_PARAMETER: u32 = 0x1_2003;
    pub const INVALID_VERSION: u32 = 0x1_2004;
    pub const INVALID_TYPE: u32 = 0x1_2005;
    pub const INVALID_SIZE: u32 = 0x1_2006;
}

fn response(kind: u32, error: u32, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_BYTES + payload.len());
    message.extend_from_slice(&MAJOR.to_le_bytes());
    message.extend_from_slice(&MINOR.to_le_bytes());
    message.extend_from_slice(&kind.to_le_bytes());
    message.extend_from_slice(&((HEADER_BYTES + payload.len()) as u32).to_le_bytes());
    message.extend_from_slice(&error.to_le_bytes());
    message.extend_from_slice(payload);
    message
}

/// A quote response: sizes of the identifier (none) and of the quote, then the quote.
fn quote_response(error: u32, quote: &[u8]) -> Vec<u8> {
    let mut payload = 0u32.to_le_bytes().to_vec();
    payload.extend_from_slice(&(quote.len() as u32).to_le_bytes());
    payload.extend_from_slice(quote);
    response(GET_QUOTE_RESPONSE, error, &payload)
}

/// Answers one message.
pub fn answer(platform: &Platform, message: &[u8]) -> Vec<u8> {
    match quote_of(platform, message) {
        Ok(quote) => quote_response(code::SUCCESS, &quote),
        Err(error) => quote_response(error, &[]),
    }
}

fn quote_of(platform: &Platform, message: &[u8]) -> Result<Vec<u8>, u32> {
    if message.len() < HEADER_BYTES || u32_at(message, 8) as usize != message.len() {
        return Err(code::INVALID_SIZE);
    }
    if u16_at(message, 0) != MAJOR {
        return Err(code::INVALID_VERSION);
    }
    if u32_at(message, 4) != GET_QUOTE_REQUEST {
        return Err(code::INVALID_TYPE);
    }
    if u32_at(message, 12) != code::SUCCESS {
        return Err(code::INVALID_PARAMETER);
    }
    let payload = message.get(HEADER_BYTES..).unwrap_or(&[]);
    let (report_bytes, ids_bytes) = (u32_at(payload, 0) as usize, u32_at(payload, 4) as usize);
    let total = report_bytes.checked_add(ids_bytes).and_then(|n| n.checked_add(8));
    if payload.len() < 8 || total != Some(payload.len()) {
        return Err(code::INVALID_SIZE);
    }
    // There is one quoting enclave: a list of acceptable ones is of no use.
    let report: &[u8; report::BYTES] = payload
        .get(8..8 + report_bytes)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(code::INVALID_PARAMETER)?;
    quote::make(platform, report).map_err(|refusal| match refusal {
        Refusal::NotGenuine => code::INVALID_PARAMETER,
        Refusal::Platform(_) => code::UNEXPECTED,
    })
}

fn serve(platform: &Platform, stream: &mut UnixStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    loop {
        let mut length = [0u8; 4];
        match stream.read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let length = u32::from_be_bytes(length) as usize;
        if !(HEADER_BYTES..=MAX_BYTES).contains(&length) {
            return Err(std::io::Error::other(format!("a message of {length} bytes")));
        }
        let mut message = vec![0u8; length];
        stream.read_exact(&mut message)?;
        let answer = answer(platform, &message);
        let size = (answer.len() as u32).to_be_bytes();
        stream.write_all(&[&size[..], &answer].concat())?;
    }
}

/// Serves a socket until it is killed. A stale socket of an earlier run is replaced.
pub fn listen(platform: &Platform, socket: &Path) -> Result<(), Error> {
    if UnixStream::connect(socket).is_err() && socket.exists() {
        std::fs::remove_file(socket).map_err(io(socket))?;
    }
    let listener = UnixListener::bind(socket).map_err(io(socket))?;
    std::thread::scope(|scope| {
        for stream in listener.incoming() {
            let mut stream = stream.map_err(io(socket))?;
            scope.spawn(move || {
                if let Err(error) = serve(platform, &mut stream) {
                    eprintln!("softkvm qgs: a client: {error}");
                }
            });
        }
        Ok(())
    })
}

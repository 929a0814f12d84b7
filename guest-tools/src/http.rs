//! One HTTP/1.1 request on one connection, with a bounded answer. Framing by Content-Length or by the end of the stream.

use std::io::{self, Read, Write};

/// Bytes of an answer's head at most.
const MAX_HEAD: usize = 16 << 10;
/// Bytes of an answer's body at most.
const MAX_BODY: usize = 1 << 20;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Set-Cookie values, without their attributes.
    pub cookies: Vec<String>,
    /// Body.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not HTTP.
    #[error("the answer is not HTTP/1.1")]
    Malformed,
    /// Too long.
    #[error("the answer is longer than {MAX_BODY} bytes")]
    TooLong,
    /// Cut short.
    #[error("the answer ends early")]
    Truncated,
}

/// Sends a request and reads the answer. `headers` are complete lines without the line end.
pub fn exchange<S: Read + Write + ?Sized>(
    stream: &mut S,
    method: &str,
    path: &str,
    headers: &[String],
    body: Option<&[u8]>,
) -> Result<Answer, Error> {
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: broker\r\nConnection: close\r\nAccept: application/json\r\n"
    );
    for header in headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    if let Some(body) = body {
        head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.unwrap_or_default())?;
    stream.flush()?;
    read_answer(stream)
}

fn read_answer<S: Read + ?Sized>(stream: &mut S) -> Result<Answer, Error> {
    let mut data = Vec::new();
    let mut chunk = [0u8; 4096];
    let (mut answer, head_bytes, length) = loop {
        let n = stream.read(&mut chunk)?;
        if n == 0 {
            return Err(Error::Truncated);
        }
        data.extend_from_slice(chunk.get(..n).unwrap_or_default());
        if let Some(parsed) = parse_head(&data)? {
            break parsed;
        }
        if data.len() > MAX_HEAD {
            return Err(Error::Malformed);
        }
    };
    if length.is_some_and(|n| n > MAX_BODY) {
        return Err(Error::TooLong);
    }
    let mut body = data.split_off(head_bytes.min(data.len()));
    while length.is_none_or(|n| body.len() < n) {
        let n = stream.read(&mut chunk)?;
        if n == 0 {
            break;
        }
        body.extend_from_slice(chunk.get(..n).unwrap_or_default());
        if body.len() > MAX_BODY {
            return Err(Error::TooLong);
        }
    }
    match length {
        Some(n) if body.len() < n => return Err(Error::Truncated),
        Some(n) => body.truncate(n),
        None => {}
    }
    answer.body = body;
    Ok(answer)
}

/// Status, cookies, and where the body begins; `None` if the head is not complete.
fn parse_head(data: &[u8]) -> Result<Option<(Answer, usize, Option<usize>)>, Error> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let head_bytes = match response.parse(data).map_err(|_| Error::Malformed)? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(n) => n,
    };
    let status = response.code.ok_or(Error::Malformed)?;
    let mut answer = Answer { status, cookies: Vec::new(), body: Vec::new() };
    let mut length = None;
    for header in response.headers.iter() {
        let value = std::str::from_utf8(header.value).map_err(|_| Error::Malformed)?;
        if header.name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse().map_err(|_| Error::Malformed)?);
        } else if header.name.eq_ignore_ascii_case("set-cookie") {
            answer.cookies.push(value.split(';').next().unwrap_or_default().trim().to_owned());
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            // Not asked for, not understood.
            return Err(Error::Malformed);
        }
    }
    Ok(Some((answer, head_bytes, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Answer, Error> {
        read_answer(&mut text.as_bytes())
    }

    #[test]
    fn answers_are_framed_by_length_or_by_the_end() {
        let answer =
            read("HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Path=/\r\nContent-Length: 2\r\n\r\nhiXX").unwrap();
        assert_eq!(
            (answer.status, answer.cookies, answer.body),
            (200, vec!["a=b".to_owned()], b"hi".to_vec())
        );
        assert_eq!(read("HTTP/1.1 404 Not Found\r\n\r\nall of it").unwrap().body, b"all of it");
    }

    #[test]
    fn answers_that_lie_about_themselves_are_refused() {
        let long = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1);
        assert!(matches!(read(&long), Err(Error::TooLong)));
        assert!(matches!(read("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"), Err(Error::Truncated)));
        assert!(matches!(read("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), Err(Error::Malformed)));
        assert!(matches!(read("SSH-2.0-x\r\n\r\n"), Err(Error::Malformed)));
        assert!(matches!(read("HTTP/1.1 200 OK\r\n"), Err(Error::Truncated)));
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(MAX_HEAD + 8192));
        assert!(matches!(read(&endless), Err(Error::Malformed)));
    }
}

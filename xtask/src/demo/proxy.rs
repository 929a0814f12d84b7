//! The host's end of the guest's vsock: bytes to the broker and back; and, for some attacks, a host in the middle.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use cloister_kbs::{TeePubKey, jwe};
use serde_json::Value;

use super::sysrq;
use super::tamper::Tamper;
use super::{OTHER_RESOURCE, RESOURCE};

/// What a host in the middle remembers.
#[derive(Default)]
struct Seen {
    guest: Option<TeePubKey>,
    answer: Option<Vec<u8>>,
}

/// The unix socket at which the VMM delivers connections to a host port.
pub fn host_port(socket: &Path, port: u32) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

/// Removes the socket file.
pub struct Proxy(PathBuf);

impl Drop for Proxy {
    fn drop(&mut self) {
        // Removed with the workspace otherwise.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Serves until the process ends.
pub fn start(tamper: Option<Tamper>, broker: &Path, at: &Path) -> Result<Proxy> {
    let listener = UnixListener::bind(at).with_context(|| at.display().to_string())?;
    let broker = broker.to_owned();
    let seen = Arc::<Mutex<Seen>>::default();
    std::thread::spawn(move || {
        for guest in listener.incoming().flatten() {
            let (broker, seen) = (broker.clone(), seen.clone());
            std::thread::spawn(move || {
                // A connection that breaks is the guest's to report.
                let _ = relay(tamper, guest, &broker, &seen);
            });
        }
    });
    Ok(Proxy(at.to_owned()))
}

/// One request, one answer: the guest closes after each.
fn relay(tamper: Option<Tamper>, mut guest: UnixStream, broker: &Path, seen: &Mutex<Seen>) -> Result<()> {
    let request = read_request(&mut guest)?;
    let wanted = request.starts_with(format!("GET /kbs/v0/resource/{RESOURCE} ").as_bytes());
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    if request.starts_with(b"POST /kbs/v0/attest") {
        seen.guest = guest_key(&request);
    }
    let answer = match tamper {
        Some(Tamper::ForgedSecret) if wanted => {
            let key = seen.guest.as_ref().context("no key of the guest's")?;
            with_other_secret(&exchange(broker, &request)?, key)?
        }
        Some(Tamper::SwappedSecret) if wanted => {
            let text = String::from_utf8_lossy(&request);
            exchange(broker, text.replacen(RESOURCE, OTHER_RESOURCE, 1).as_bytes())?
        }
        Some(Tamper::OldSecret) if wanted => match &seen.answer {
            Some(old) => old.clone(),
            None => seen.answer.insert(exchange(broker, &request)?).clone(),
        },
        Some(Tamper::ReplayNonce) if request.starts_with(b"POST /kbs/v0/auth") => {
            // The guest's evidence will answer this challenge, and be played in another session.
            let stale = exchange(broker, &request)?;
            let fresh = exchange(broker, &request)?;
            swap_body(&fresh, &stale)
        }
        Some(Tamper::OtherKey) if request.starts_with(b"POST /kbs/v0/attest") => {
            exchange(broker, &with_other_key(&request)?)?
        }
        Some(Tamper::Sysrq) if request.starts_with(b"GET /kbs/v0/resource/") => {
            std::thread::sleep(sysrq::HELD_BACK);
            exchange(broker, &request)?
        }
        Some(Tamper::EventLog) if request.starts_with(b"POST /kbs/v0/attest") => {
            exchange(broker, &with_other_event(&request)?)?
        }
        _ => exchange(broker, &request)?,
    };
    guest.write_all(&answer)?;
    Ok(())
}

fn exchange(broker: &Path, request: &[u8]) -> Result<Vec<u8>> {
    let mut stream = UnixStream::connect(broker)?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

fn body_start(message: &[u8]) -> Option<usize> {
    message.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4)
}

fn read_request(stream: &mut UnixStream) -> Result<Vec<u8>> {
    let mut request = Vec::new();
    let mut chunk = [0u8; 4096];
    loop {
        if let Some(start) = body_start(&request) {
            let head = String::from_utf8_lossy(&request[..start]).to_lowercase();
            let length = head
                .lines()
                .find_map(|l| l.strip_prefix("content-length:"))
                .and_then(|v| v.trim().parse().ok());
            if request.len() >= start + length.unwrap_or(0usize) {
                return Ok(request);
            }
        }
        let n = stream.read(&mut chunk)?;
        anyhow::ensure!(n != 0, "the guest closed early");
        request.extend_from_slice(&chunk[..n]);
    }
}

/// The head of one answer (its cookie) with the body of another (its nonce): both nonces have one length.
fn swap_body(head_of: &[u8], body_of: &[u8]) -> Vec<u8> {
    let (head, body) = (body_start(head_of).unwrap_or(0), body_start(body_of).unwrap_or(0));
    [&head_of[..head], &body_of[body..]].concat()
}

/// The key that an attestation binds.
fn guest_key(request: &[u8]) -> Option<TeePubKey> {
    let body: Value = serde_json::from_slice(&request[body_start(request)?..]).ok()?;
    serde_json::from_value(body.pointer("/runtime-data/tee-pubkey")?.clone()).ok()
}

/// The broker's answer with a secret of the host's in it, encrypted to the guest's key as the broker's was; whatever else is in
/// the answer stays.
fn with_other_secret(answer: &[u8], guest: &TeePubKey) -> Result<Vec<u8>> {
    with_body(answer, |body| {
        let forged = serde_json::to_value(jwe::encrypt(guest, b"a key that the host chose")?)?;
        for (name, value) in forged.as_object().context("no message")? {
            body[name] = value.clone();
        }
        Ok(())
    })
}

/// The attestation with one digit of its event log changed.
fn with_other_event(request: &[u8]) -> Result<Vec<u8>> {
    with_body(request, |body| {
        let log = &mut body["tee-evidence"]["primary_evidence"]["cc_eventlog"];
        let text = log.as_str().filter(|text| !text.is_empty()).context("no event log")?;
        // Well inside of the first event's digest.
        let (head, tail) = text.split_at_checked(120).context("a short event log")?;
        let other = if tail.starts_with('A') { "B" } else { "A" };
        *log = format!("{head}{other}{}", tail.get(1..).unwrap_or_default()).into();
        Ok(())
    })
}

/// The attestation with a key of the host's own in place of the guest's.
fn with_other_key(request: &[u8]) -> Result<Vec<u8>> {
    // The base point of P-256: a good public key, and not the guest's.
    const X: &str = "axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY";
    const Y: &str = "T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU";
    with_body(request, |body| {
        let key = &mut body["runtime-data"]["tee-pubkey"];
        (key["x"], key["y"]) = (X.into(), Y.into());
        Ok(())
    })
}

/// A request with its JSON body changed, and its length with it.
fn with_body(request: &[u8], change: impl FnOnce(&mut Value) -> Result<()>) -> Result<Vec<u8>> {
    let start = body_start(request).context("no body")?;
    let mut body: Value = serde_json::from_slice(&request[start..])?;
    change(&mut body)?;
    let body = serde_json::to_vec(&body)?;
    let head = String::from_utf8_lossy(&request[..start]).into_owned();
    let lines: Vec<String> = head
        .lines()
        .map(|line| match line.to_lowercase().starts_with("content-length:") {
            true => format!("Content-Length: {}", body.len()),
            false => line.to_owned(),
        })
        .collect();
    Ok([lines.join("\r\n").as_bytes(), b"\r\n", &body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_key_goes_in_and_the_length_follows() {
        let body = r#"{"runtime-data":{"nonce":"n","tee-pubkey":{"kty":"EC","x":"a","y":"b"}}}"#;
        let request = format!(
            "POST /kbs/v0/attest HTTP/1.1\r\nHost: b\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let changed = with_other_key(request.as_bytes()).unwrap();
        let start = body_start(&changed).unwrap();
        let value: Value = serde_json::from_slice(&changed[start..]).unwrap();
        assert_ne!(value["runtime-data"]["tee-pubkey"]["x"], "a");
        assert_eq!(value["runtime-data"]["nonce"], "n");
        let head = String::from_utf8_lossy(&changed[..start]).into_owned();
        assert!(head.contains(&format!("Content-Length: {}\r\n", changed.len() - start)), "{head}");
    }
}

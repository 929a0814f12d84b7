//! Measurements and evidence of a tiny TD.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use sha2::{Digest, Sha384};

use super::machine::{Options, SHARED, SHARED_BIT, Td, strict, tdcall};
use super::scenarios::Lines;

/// The socket of the quoting service; without it there is no quote.
pub const SOCKET_VARIABLE: &str = "TD_GUESTS_QGS";

/// MRTD from the module's rules, written apart from the machine: a hash over 128-byte blocks (name, GPA at offset 16) and
/// contents, one block a page and one every 256 bytes of it, in the order of the launch.
fn expected_mrtd(pages: &[(u64, Vec<u8>)]) -> [u8; 48] {
    let mut stream = Vec::new();
    for (gpa, page) in pages {
        stream.extend_from_slice(b"MEM.PAGE.ADD\0\0\0\0");
        stream.extend_from_slice(&gpa.to_le_bytes());
        stream.extend_from_slice(&[0; 104]);
        for offset in (0..4096).step_by(256) {
            stream.extend_from_slice(b"MR.EXTEND\0\0\0\0\0\0\0");
            stream.extend_from_slice(&(gpa + offset as u64).to_le_bytes());
            stream.extend_from_slice(&[0; 104]);
            stream.extend_from_slice(&page[offset..offset + 256]);
        }
    }
    Sha384::digest(stream).into()
}

const REPORT_OFFSET: usize = 0xc000;

/// A TD that extends RTMR2 twice and writes a report where the host can read it.
fn reporting(options: &Options) -> Result<(Td, Vec<u8>), String> {
    let script = [
        tdcall(2, &[(1, 0x1000), (2, 2)]),
        tdcall(2, &[(1, 0x2000), (2, 2)]),
        tdcall(4, &[(1, SHARED | SHARED_BIT | REPORT_OFFSET as u64), (2, 0x1040)]),
    ];
    let mut td = Td::build(options, &script)?;
    td.finalize()?;
    td.run(|exit| Err(format!("unexpected exit {exit:?}")))?;
    if td.records(4).iter().skip(1).any(|r| r.exception.is_some() || r.gpr[0] != 0) {
        return Err("a TDCALL failed".into());
    }
    let report = td.shared(REPORT_OFFSET, 1024);
    Ok((td, report))
}

pub(super) fn mrtd() -> Lines {
    let (td, report) = reporting(&strict())?;
    let expected = expected_mrtd(&td.launch);
    let mut reversed = td.launch.clone();
    reversed.reverse();
    Ok(vec![
        format!("MRTD as calculated apart: {}", report[528..576] == expected),
        format!("another order gives another: {}", report[528..576] != expected_mrtd(&reversed)),
    ])
}

/// One request to the quoting service.
fn request(socket: &str, report: &[u8]) -> Result<Vec<u8>, String> {
    let error = |e: std::io::Error| format!("{socket}: {e}");
    let mut message = Vec::new();
    for word in [1u32, 0, 24 + report.len() as u32, 0, report.len() as u32, 0] {
        message.extend_from_slice(&word.to_le_bytes());
    }
    message.extend_from_slice(report);
    let mut stream = UnixStream::connect(socket).map_err(error)?;
    stream.write_all(&(message.len() as u32).to_be_bytes()).map_err(error)?;
    stream.write_all(&message).map_err(error)?;
    let mut length = [0u8; 4];
    stream.read_exact(&mut length).map_err(error)?;
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).map_err(error)?;
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| answer[at + i]));
    if answer.len() < 24 || word(4) != 1 || word(8) as usize != answer.len() {
        return Err("not a quote response".into());
    }
    match word(12) {
        0 => Ok(answer[24..].to_vec()),
        code => Err(format!("error {code:#x}")),
    }
}

/// The quote, in hex, and its refusals; without a socket nothing.
pub(super) fn quote() -> Lines {
    let Ok(socket) = std::env::var(SOCKET_VARIABLE) else { return Ok(Vec::new()) };
    let identities = [[0xa1; 48], [0xa2; 48], [0xa3; 48]];
    let (td, report) = reporting(&Options { identities, ..strict() })?;
    let mut rtmr2 = [0u8; 48];
    for at in [0, 0x1000] {
        let body = &td.launch.iter().find(|page| page.0 == 0x1000 + at).ok_or("the body")?.1;
        rtmr2 = Sha384::digest([&rtmr2[..], &body[..48]].concat()).into();
    }
    let mut lines = vec![
        format!("mrtd {}", hex(&expected_mrtd(&td.launch))),
        format!("rtmr2 {}", hex(&rtmr2)),
        format!("quote {}", hex(&request(&socket, &report)?)),
    ];
    for (what, at) in [("MAC", 224), ("report data", 128), ("TDINFO", 600), ("TEE_TCB_INFO", 264)] {
        let mut forged = report.clone();
        forged[at] ^= 1;
        lines.push(format!("forged {what}: {}", request(&socket, &forged).err().unwrap_or_default()));
    }
    lines.push(format!("short report: {}", request(&socket, &report[..1000]).err().unwrap_or_default()));
    Ok(lines)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

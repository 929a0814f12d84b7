//! Quotes and event logs, byte by byte.

use cloister_attestation::tdx::{EventClaims, EventLogClaims};
use sha2::{Digest, Sha256, Sha384};

use super::Key;

/// Offsets in a TD report.
pub const TEE_TCB_SVN: usize = 0;
pub const MRSEAM: usize = 16;
pub const MRSIGNERSEAM: usize = 64;
pub const SEAM_ATTRIBUTES: usize = 112;
pub const TD_ATTRIBUTES: usize = 120;
pub const XFAM: usize = 128;
pub const MRTD: usize = 136;
pub const MRCONFIGID: usize = 184;
pub const MROWNER: usize = 232;
pub const MROWNERCONFIG: usize = 280;
pub const RTMR: usize = 328;
pub const REPORT_DATA: usize = 520;
pub const TEE_TCB_SVN2: usize = 584;
pub const MRSERVICETD: usize = 600;
pub const CUR_SERVTD_HASH: usize = 829;

/// Offsets in the quoting enclave's report.
pub const QE_MISCSELECT: usize = 16;
pub const QE_ATTRIBUTES: usize = 48;
pub const QE_MRSIGNER: usize = 128;
pub const QE_ISVPRODID: usize = 256;
pub const QE_ISVSVN: usize = 258;
pub const QE_REPORT_DATA: usize = 320;

#[derive(Clone)]
pub struct QuoteSpec {
    pub header: Vec<u8>,
    /// Type and length, in version 5.
    pub descriptor: Option<(u16, u32)>,
    /// The TD report before it is signed.
    pub body: Vec<u8>,
    pub qe_report: Vec<u8>,
    /// What the quoting enclave's report says, if not what it should.
    pub qe_report_data: Option<[u8; 64]>,
    pub qe_auth_data: Vec<u8>,
    pub attestation_key: Key,
    pub quote_signer: Key,
    pub qe_report_signer: Key,
    pub outer_type: u16,
    pub inner_type: u16,
    /// Added to the length fields of signature data, outer and inner certification data.
    pub length_lies: [i32; 3],
    /// Behind the PCK chain, inside the inner certification data.
    pub after_chain: Vec<u8>,
    /// Behind the quote.
    pub padding: Vec<u8>,
    /// Offsets and masks of bits that flip at the end.
    pub flips: Vec<(usize, u8)>,
    /// Where the quote is cut off at the end.
    pub cut: Option<usize>,
}

impl QuoteSpec {
    pub fn new(version: u16, body: u16) -> Self {
        let size = match body {
            2 => 584,
            3 => 648,
            _ => 885,
        };
        let mut spec = Self {
            header: header(version),
            descriptor: (version == 5).then_some((body, size as u32)),
            body: vec![0; size],
            qe_report: vec![0; 384],
            qe_report_data: None,
            qe_auth_data: (0..32).collect(),
            attestation_key: Key::Attestation,
            quote_signer: Key::Attestation,
            qe_report_signer: Key::Pck,
            outer_type: 6,
            inner_type: 5,
            length_lies: [0; 3],
            after_chain: Vec::new(),
            padding: Vec::new(),
            flips: Vec::new(),
            cut: None,
        };
        spec.set(TEE_TCB_SVN, &[6, 1, 3]);
        spec.set(MRSEAM, &[0x5e; 48]);
        spec.set(TD_ATTRIBUTES, &(1u64 << 28).to_le_bytes());
        spec.set(XFAM, &0x602e7u64.to_le_bytes());
        spec.set(MRTD, &[0x3e; 48]);
        for rtmr in 0..4 {
            spec.set(RTMR + 48 * rtmr, &[0xa0 + rtmr as u8; 48]);
        }
        spec.set(REPORT_DATA, &[0xda; 64]);
        if size > 584 {
            spec.set(TEE_TCB_SVN2, &[6, 1, 3]);
        }
        if size > 648 {
            spec.set(649, &[0x1d; 32]);
        }
        spec.qe(QE_ATTRIBUTES, &[0x11]);
        spec.qe(QE_ATTRIBUTES + 8, &[0xe7]);
        spec.qe(QE_MRSIGNER, &[0xdc; 32]);
        spec.qe(QE_ISVPRODID, &[2]);
        spec.qe(QE_ISVSVN, &[4]);
        spec
    }

    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.body[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn qe(&mut self, at: usize, bytes: &[u8]) {
        self.qe_report[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Sets the RTMRs to what these events lead to; returns the log of them.
    pub fn measure(&mut self, events: &[LogEvent]) -> Vec<u8> {
        let mut rtmrs = [[0; 48]; 4];
        for event in events.iter().filter(|event| event.kind != 3) {
            let rtmr: &mut [u8; 48] = &mut rtmrs[event.register as usize - 1];
            *rtmr = Sha384::digest([&rtmr[..], &event.digest].concat()).into();
        }
        self.set(RTMR, rtmrs.as_flattened());
        log(events)
    }

    pub fn bytes(&self, chain: &[u8]) -> Vec<u8> {
        let mut bytes = self.header.clone();
        if let Some((kind, len)) = self.descriptor {
            bytes.extend(kind.to_le_bytes());
            bytes.extend(len.to_le_bytes());
        }
        bytes.extend(&self.body);
        let signature = self.quote_signer.sign_raw(&bytes);
        let key = self.attestation_key.point();
        let mut qe_report = self.qe_report.clone();
        let mut bound = [0; 64];
        bound[..32].copy_from_slice(&Sha256::digest([&key[..], &self.qe_auth_data].concat()));
        qe_report[QE_REPORT_DATA..].copy_from_slice(&self.qe_report_data.unwrap_or(bound));

        let [signature_lie, outer_lie, inner_lie] = self.length_lies;
        let chain = [chain, &self.after_chain].concat();
        let inner = counted(self.inner_type, &chain, inner_lie);
        let qe_signature = self.qe_report_signer.sign_raw(&qe_report);
        let auth_len = (self.qe_auth_data.len() as u16).to_le_bytes();
        let certification = [&qe_report[..], &qe_signature, &auth_len, &self.qe_auth_data, &inner].concat();
        let outer = counted(self.outer_type, &certification, outer_lie);
        let signature_data = [&signature[..], &key, &outer].concat();
        bytes.extend((signature_data.len() as i32 + signature_lie).to_le_bytes());
        bytes.extend(signature_data);
        bytes.extend(&self.padding);
        for (at, mask) in &self.flips {
            bytes[*at] ^= mask;
        }
        bytes.truncate(self.cut.unwrap_or(bytes.len()));
        bytes
    }

    /// Where the body begins.
    pub fn body_offset(&self) -> usize {
        if self.descriptor.is_some() { 54 } else { 48 }
    }
}

fn counted(kind: u16, data: &[u8], lie: i32) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(data.len() as i32 + lie).to_le_bytes(), data].concat()
}

fn header(version: u16) -> Vec<u8> {
    let vendor = hex::decode("939a7233f79c4ca9940a0db3957f0607").unwrap();
    [&version.to_le_bytes()[..], &[2, 0, 0x81, 0, 0, 0, 0, 0, 0, 0], &vendor, &[0xd0; 20]].concat()
}

#[derive(Clone)]
pub struct LogEvent {
    pub register: u32,
    pub kind: u32,
    pub digest: [u8; 48],
    pub data: Vec<u8>,
}

/// An event whose digest is of its data.
pub fn event(register: u32, kind: u32, data: &[u8]) -> LogEvent {
    LogEvent { register, kind, digest: Sha384::digest(data).into(), data: data.to_vec() }
}

/// A small log as a firmware and a boot loader write it.
pub fn usual_events() -> Vec<LogEvent> {
    const ACTION: u32 = 0x8000_0007;
    let mut command = event(3, 0xd, b"set quiet=0");
    command.data = b"grub_cmd: set quiet=0\0".to_vec();
    let mut line = event(3, 0xd, b"root=/dev/vda quiet");
    line.data = b"kernel_cmdline: root=/dev/vda quiet\0".to_vec();
    vec![
        event(1, 0x8000_0001, b"SecureBoot"),
        event(1, 4, &[0; 4]),
        event(2, ACTION, b"Calling EFI Application from Boot Option"),
        event(2, 4, &[0; 4]),
        LogEvent { register: 2, kind: 0x8000_0003, digest: [0x77; 48], data: b"a path".to_vec() },
        command,
        line,
    ]
}

/// Whether what is claimed of a changed log is as much as is claimed of the right one or less, but for the log's own word.
pub fn claims_no_more(changed: &EventLogClaims, right: &EventLogClaims) -> bool {
    fn extended(claims: &EventLogClaims) -> Vec<&EventClaims> {
        claims.events.iter().filter(|event| event.rtmr.is_some()).collect()
    }
    let same = |(changed, right): (&EventClaims, &EventClaims)| {
        (changed.rtmr, changed.digest, changed.separator) == (right.rtmr, right.digest, right.separator)
            && (!changed.data_measured || right.data_measured)
            && (changed.measured_text.is_none() || changed.measured_text == right.measured_text)
    };
    let (changed, right) = (extended(changed), extended(right));
    changed.len() == right.len() && changed.into_iter().zip(right).all(same)
}

pub fn log(events: &[LogEvent]) -> Vec<u8> {
    let id = [&b"Spec ID Event03\0"[..], &[0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0c, 0, 48, 0, 0]].concat();
    let mut bytes = [&[1, 0, 0, 0, 3, 0, 0, 0][..], &[0; 20], &(id.len() as u32).to_le_bytes(), &id].concat();
    for event in events {
        bytes.extend(event.register.to_le_bytes());
        bytes.extend(event.kind.to_le_bytes());
        bytes.extend([1, 0, 0, 0, 0x0c, 0]);
        bytes.extend(event.digest);
        bytes.extend((event.data.len() as u32).to_le_bytes());
        bytes.extend(&event.data);
    }
    bytes
}

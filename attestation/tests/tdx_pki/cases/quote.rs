//! Quotes and event logs that are wrong.

use cloister_attestation::tdx::{EventLogQuirk, EventLogRule};

use super::Case;
use crate::tdx_pki::Key;
use crate::tdx_pki::quote::*;

fn flip_last(bytes: &mut [u8]) {
    *bytes.last_mut().unwrap() ^= 1;
}

/// What the quoting enclave says of a key.
fn bound_to(key: Key) -> [u8; 64] {
    use sha2::{Digest, Sha256};
    let auth: Vec<u8> = (0..32).collect();
    let mut data = [0; 64];
    data[..32].copy_from_slice(&Sha256::digest([&key.point()[..], &auth].concat()));
    data
}

pub const FORM: &[Case] = &[
    ("version 3", |s| s.quote.header[0] = 3, &["quote-malformed"]),
    ("version 6", |s| s.quote.header[0] = 6, &["quote-malformed"]),
    ("an SGX quote", |s| s.quote.header[4] = 0, &["quote-malformed"]),
    ("key on P-384", |s| s.quote.header[2] = 3, &["quote-malformed"]),
    ("another vendor's quoting enclave", |s| flip_last(&mut s.quote.header[12..28]), &["qe-vendor"]),
    ("empty", |s| s.quote.cut = Some(0), &["quote-malformed"]),
    ("cut in the header", |s| s.quote.cut = Some(47), &["quote-malformed"]),
    ("cut in the body", |s| s.quote.cut = Some(500), &["quote-malformed"]),
    (
        "cut behind the body",
        |s| s.quote.cut = Some(s.quote.body_offset() + s.quote.body.len()),
        &["quote-malformed"],
    ),
    ("cut in the chain", |s| s.quote.cut = Some(2000), &["quote-malformed"]),
    ("signature data longer than the quote", |s| s.quote.length_lies[0] = 1, &["quote-malformed"]),
    (
        "signature data longer than what is in it",
        |s| {
            s.quote.length_lies[0] = 1;
            s.quote.padding = vec![0];
        },
        &["quote-malformed"],
    ),
    ("signature data too short", |s| s.quote.length_lies[0] = -1, &["quote-malformed"]),
    ("signature data of more than there can be", |s| s.quote.length_lies[0] = i32::MIN, &["quote-malformed"]),
    ("outer certification data too long", |s| s.quote.length_lies[1] = 1, &["quote-malformed"]),
    ("outer certification data too short", |s| s.quote.length_lies[1] = -1, &["quote-malformed"]),
    ("inner certification data too long", |s| s.quote.length_lies[2] = 1, &["quote-malformed"]),
    ("inner certification data too short", |s| s.quote.length_lies[2] = -1, &["quote-malformed"]),
    ("certification data without a QE report", |s| s.quote.outer_type = 5, &["quote-malformed"]),
    ("encrypted PPID instead of a chain", |s| s.quote.inner_type = 3, &["quote-malformed"]),
    ("far too long", |s| s.quote.padding = vec![0; 64 << 10], &["quote-malformed"]),
    ("chain that is none", |s| s.pck_chain = Some(vec![]), &["certificate-malformed"]),
    (
        "five certificates",
        |s| {
            s.pck_chain = Some(vec![s.pck.clone(), s.ca.clone(), s.root.clone(), s.ca.clone(), s.ca.clone()]);
        },
        &["certificate-malformed"],
    ),
    (
        "something else behind the chain",
        |s| {
            s.quote.after_chain = b"-----BEGIN CERTIFICATE-----".to_vec();
        },
        &["certificate-malformed"],
    ),
];

/// Those that only quotes of version 5 can have.
pub const VERSION_5: &[Case] = &[
    ("body of a type that nobody knows", |s| s.quote.descriptor = Some((5, 648)), &["quote-malformed"]),
    ("body of an enclave", |s| s.quote.descriptor = Some((1, 384)), &["quote-malformed"]),
    ("body of another type's size", |s| s.quote.descriptor.as_mut().unwrap().1 += 1, &["quote-malformed"]),
    ("body of no size", |s| s.quote.descriptor.as_mut().unwrap().1 = 0, &["quote-malformed"]),
];

pub const SIGNATURES: &[Case] = &[
    (
        "MRTD changed",
        |s| {
            let at = s.quote.body_offset() + MRTD;
            s.quote.flips.push((at, 1));
        },
        &["quote-signature"],
    ),
    (
        "report data changed",
        |s| {
            let at = s.quote.body_offset() + REPORT_DATA + 63;
            s.quote.flips.push((at, 0x80));
        },
        &["quote-signature"],
    ),
    ("user data changed", |s| s.quote.flips.push((47, 1)), &["quote-signature"]),
    ("quote signed by another", |s| s.quote.quote_signer = Key::Rogue, &["quote-signature"]),
    (
        "attestation key of another",
        |s| {
            s.quote.attestation_key = Key::Rogue;
            s.quote.qe_report_data = Some(bound_to(Key::Attestation));
        },
        &["attestation-key", "quote-signature"],
    ),
    (
        "attestation key that the QE does not vouch for",
        |s| {
            s.quote.attestation_key = Key::Rogue;
            s.quote.quote_signer = Key::Rogue;
            s.quote.qe_report_data = Some(bound_to(Key::Attestation));
        },
        &["attestation-key"],
    ),
    (
        "QE report data longer than a hash",
        |s| {
            let mut data = bound_to(Key::Attestation);
            data[63] = 1;
            s.quote.qe_report_data = Some(data);
        },
        &["attestation-key"],
    ),
    (
        "QE authentication data changed",
        |s| {
            let at = s.quote.body_offset() + s.quote.body.len() + 4 + 128 + 6 + 384 + 64 + 2;
            s.quote.flips.push((at, 1));
        },
        &["attestation-key"],
    ),
    ("QE report signed by another", |s| s.quote.qe_report_signer = Key::Rogue, &["qe-report-signature"]),
    ("PCK of another platform", |s| s.pck.key = Key::Rogue, &["qe-report-signature"]),
];
pub const EVENT_LOG: &[Case] = &[
    ("log that leads to the RTMRs", |s| s.event_log = Some(s.quote.measure(&usual_events())), &[]),
    (
        "log in a padded area",
        |s| {
            let mut log = s.quote.measure(&usual_events());
            log.resize(4096, 0xff);
            s.event_log = Some(log);
        },
        &[],
    ),
    (
        "log required and given",
        |s| {
            s.event_log = Some(s.quote.measure(&usual_events()));
            s.policy.event_log = EventLogRule::Required;
        },
        &[],
    ),
    ("log required and not given", |s| s.policy.event_log = EventLogRule::Required, &["event-log-missing"]),
    ("log that is none", |s| s.event_log = Some(b"log".to_vec()), &["event-log-malformed"]),
    (
        "log cut short",
        |s| {
            let mut log = s.quote.measure(&usual_events());
            log.pop();
            s.event_log = Some(log);
        },
        &["event-log-malformed"],
    ),
    ("log of another guest", |s| s.event_log = Some(log(&usual_events())), &["event-log-replay"]),
    (
        "log with an event less",
        |s| {
            s.quote.measure(&usual_events());
            s.event_log = Some(log(&usual_events()[..5]));
        },
        &["event-log-replay"],
    ),
    (
        "log with two events swapped",
        |s| {
            let mut events = usual_events();
            s.quote.measure(&events);
            events.swap(2, 3);
            s.event_log = Some(log(&events));
        },
        &["event-log-replay"],
    ),
    (
        "log with an event in another register",
        |s| {
            let mut events = usual_events();
            s.quote.measure(&events);
            events[2].register = 3;
            s.event_log = Some(log(&events));
        },
        &["event-log-replay"],
    ),
    (
        "log that tells another command line",
        |s| {
            let mut events = usual_events();
            s.quote.measure(&events);
            events[6].data = b"kernel_cmdline: root=/dev/evil\0".to_vec();
            s.event_log = Some(log(&events));
        },
        &["event-log-inconsistent"],
    ),
    (
        "log that tells another variable",
        |s| {
            let mut events = usual_events();
            s.quote.measure(&events);
            events[0].data = b"SecureToot".to_vec();
            s.event_log = Some(log(&events));
        },
        &["event-log-inconsistent"],
    ),
    (
        "log with a second separator",
        |s| {
            let mut events = usual_events();
            events.push(event(1, 4, &[0; 4]));
            s.event_log = Some(s.quote.measure(&events));
        },
        &["event-log-inconsistent"],
    ),
    (
        "log with a second separator that the policy lets pass",
        |s| {
            let mut events = usual_events();
            events.push(event(1, 4, &[0; 4]));
            s.event_log = Some(s.quote.measure(&events));
            s.policy.event_log_quirks = vec![EventLogQuirk::SecondSeparator];
        },
        &[],
    ),
    (
        "log with a second separator that the policy lets pass, and with other text",
        |s| {
            let mut events = usual_events();
            events.push(event(1, 4, &[0; 4]));
            s.quote.measure(&events);
            events[6].data = b"kernel_cmdline: root=/dev/evil\0".to_vec();
            s.event_log = Some(log(&events));
            s.policy.event_log_quirks = vec![EventLogQuirk::SecondSeparator];
        },
        &["event-log-inconsistent"],
    ),
    (
        "log that contradicts itself and does not lead to the quote",
        |s| {
            let mut events = usual_events();
            s.quote.measure(&events);
            events[5].data = b"kernel_cmdline: set quiet=1\0".to_vec();
            events.push(event(3, 0xd, b"one more"));
            s.event_log = Some(log(&events));
        },
        &["event-log-inconsistent", "event-log-replay"],
    ),
    (
        "log with a second separator that is called an action",
        |s| {
            let mut events = usual_events();
            events.push(event(1, 0x8000_0007, &[0; 4]));
            s.event_log = Some(s.quote.measure(&events));
        },
        &["event-log-inconsistent"],
    ),
    (
        "log with a second separator that is called a file",
        |s| {
            let mut events = usual_events();
            events.push(LogEvent { data: b"/vmlinuz\0".to_vec(), ..event(2, 0xd, &[0xff; 4]) });
            s.event_log = Some(s.quote.measure(&events));
        },
        &["event-log-inconsistent"],
    ),
    (
        "log with both separators called something else",
        |s| {
            let mut events = usual_events();
            events[1].kind = 0x6;
            events.push(event(1, 0x1234, &[0; 4]));
            s.event_log = Some(s.quote.measure(&events));
        },
        &["event-log-inconsistent"],
    ),
    (
        "log whose only separator is called something else",
        |s| {
            let mut events = usual_events();
            events[1].kind = 0x6;
            s.event_log = Some(s.quote.measure(&events));
        },
        &[],
    ),
    (
        "log that tells a command with other text",
        |s| {
            let mut events = usual_events();
            s.quote.measure(&events);
            events[5].data = b"kernel_cmdline: set quiet=1\0".to_vec();
            s.event_log = Some(log(&events));
        },
        &["event-log-inconsistent"],
    ),
    (
        "log with events that extend nothing",
        |s| {
            let mut events = usual_events();
            events.push(LogEvent { register: 0, kind: 3, digest: [0; 48], data: b"nothing".to_vec() });
            s.event_log = Some(s.quote.measure(&events));
        },
        &[],
    ),
];

//! Evidence as it is found: in text, compressed, in the blob of a cloud, in another program's document. What is inside is taken
//! out where there is only one thing that it can be; nothing of the envelope is believed.

use std::io::Read;

use anyhow::bail;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use cloister_attestation::json;
use cloister_attestation::snp::{Report, table};
use cloister_attestation::tdx::Quote;
use serde_json::{Map, Value};

/// Envelopes in envelopes that are opened: more is no evidence but a puzzle.
const DEPTH: usize = 6;
/// Bytes that something may unpack to.
const UNPACKED_MAX: u64 = 8 << 20;

/// What was in the envelopes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// What it came in, the outermost first.
    pub layers: Vec<&'static str>,
    /// The report, the quote, or whatever else the bytes are.
    pub bytes: Vec<u8>,
    /// A certificate table that came with a report.
    pub table: Option<Vec<u8>>,
    /// An event log that came with a quote.
    pub event_log: Option<Vec<u8>>,
}

/// A kind of envelope: its name, and how it is opened. `Ok(None)` where the bytes are none; an error where they are one
/// that holds no evidence which can be taken out.
type Opener = (&'static str, fn(&[u8]) -> anyhow::Result<Option<Contents>>);

/// In the order of how certain the look is.
const OPENERS: &[Opener] = &[
    ("gzip", gzip),
    ("PEM armour", pem),
    ("Azure HCL blob", hcl),
    ("answer of the secure processor (MSG_REPORT_RSP)", report_response),
    ("report with a certificate table behind it", report_and_table),
    ("GetQuote buffer", quote_buffer),
    ("evidence in JSON", json_evidence),
    ("hexadecimal digits", hex),
    ("base64", base64),
    ("protobuf", protobuf),
];

/// Opens envelope after envelope. Bytes in none come back as they are.
pub fn open(bytes: Vec<u8>) -> anyhow::Result<Contents> {
    let mut all = Contents { bytes, ..Contents::default() };
    for _ in 0..DEPTH {
        if is_bare(&all.bytes) {
            break;
        }
        let mut opened = None;
        for (name, opener) in OPENERS {
            if let Some(contents) = opener(&all.bytes)? {
                opened = Some((*name, contents));
                break;
            }
        }
        let Some((name, contents)) = opened else { break };
        all.layers.push(name);
        all.bytes = contents.bytes;
        all.table = contents.table.or(all.table);
        all.event_log = contents.event_log.or(all.event_log);
    }
    Ok(all)
}

/// What needs no opening.
fn is_bare(bytes: &[u8]) -> bool {
    Quote::recognises(bytes) || Report::parse(bytes).is_ok()
}

fn only(bytes: Vec<u8>) -> anyhow::Result<Option<Contents>> {
    Ok(Some(Contents { bytes, ..Contents::default() }))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

fn gzip(bytes: &[u8]) -> anyhow::Result<Option<Contents>> {
    if !bytes.starts_with(&[0x1f, 0x8b, 8]) {
        return Ok(None);
    }
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(bytes).take(UNPACKED_MAX + 1).read_to_end(&mut unpacked)?;
    if unpacked.len() as u64 > UNPACKED_MAX {
        bail!("gzip that unpacks to more than {} MiB", UNPACKED_MAX >> 20);
    }
    only(unpacked)
}

/// Labels that stand for what they are, and for no evidence.
const PEM_OF_ITS_OWN: &[&str] = &["CERTIFICATE", "X509 CRL", "KEY", "PARAMETERS", "REQUEST"];

fn pem(bytes: &[u8]) -> anyhow::Result<Option<Contents>> {
    let Some(text) = text(bytes).and_then(|text| text.strip_prefix("-----BEGIN ")) else { return Ok(None) };
    let Some((label, rest)) = text.split_once("-----") else { return Ok(None) };
    if PEM_OF_ITS_OWN.iter().any(|known| label.ends_with(known)) {
        return Ok(None);
    }
    let end = format!("-----END {label}-----");
    match rest.split_once(&end) {
        // Another object behind it: which one is meant?
        Some((_, after)) if !after.trim_matches(['\0', '\n', '\r', ' ']).is_empty() => Ok(None),
        Some((body, _)) => decode(body).map_or(Ok(None), only),
        None => Ok(None),
    }
}

/// The attestation report of Azure's paravisor (HCL): a header, the hardware's report, the paravisor's runtime data.
fn hcl(bytes: &[u8]) -> anyhow::Result<Option<Contents>> {
    const HEADER: usize = 32;
    const TD_REPORT: u8 = 0x81;
    if !bytes.starts_with(b"HCLA") {
        return Ok(None);
    }
    let report = bytes.get(HEADER..HEADER + Report::BYTES).unwrap_or_default();
    // REPORTMACSTRUCT begins with its type.
    if report.first() == Some(&TD_REPORT) {
        bail!(
            "an Azure HCL blob with a TDREPORT, which only its platform can check: ask the platform for the quote \
             (Azure's instance metadata service, /acc/tdquote)"
        );
    }
    if Report::parse(report).is_err() {
        bail!("an Azure HCL blob without an SEV-SNP report at byte {HEADER}");
    }
    only(report.to_vec())
}

/// What SNP_GET_REPORT of Linux's `/dev/sev-guest` leaves in its buffer (56860, table 25).
fn report_response(bytes: &[u8]) -> anyhow::Result<Option<Contents>> {
    const HEADER: usize = 32;
    let fits = u32_at(bytes, 0) == Some(0) && u32_at(bytes, 4) == Some(Report::BYTES as u32);
    let report = bytes.get(HEADER..HEADER + Report::BYTES).filter(|report| Report::parse(report).is_ok());
    match report {
        Some(report) if fits => only(report.to_vec()),
        _ => Ok(None),
    }
}

fn report_and_table(bytes: &[u8]) -> anyhow::Result<Option<Contents>> {
    let Some((report, rest)) = bytes.split_at_checked(Report::BYTES) else { return Ok(None) };
    if Report::parse(report).is_err() || rest.is_empty() {
        return Ok(None);
    }
    let contents = |table| Contents { bytes: report.to_vec(), table, ..Contents::default() };
    if rest.iter().all(|&byte| byte == 0) {
        return Ok(Some(contents(None)));
    }
    match table::parse(rest).is_ok_and(|entries| !entries.is_empty()) {
        true => Ok(Some(contents(Some(rest.to_vec())))),
        false => bail!(
            "a report of {} bytes, and {} bytes behind it that are no certificate table",
            Report::BYTES,
            rest.len()
        ),
    }
}

/// What GetQuote exchanges with its service (TDX GHCI, `TDG.VP.VMCALL<GetQuote>`), and quotes behind other bytes.
fn quote_buffer(bytes: &[u8]) -> anyhow::Result<Option<Contents>> {
    const HEADER: usize = 24;
    const SEARCHED: usize = 256;
    let done = u32_at(bytes, 0) == Some(1) && bytes.get(8..16) == Some(&[0; 8]);
    if done && let Some(quote) = bytes.get(HEADER..).filter(|quote| Quote::recognises(quote)) {
        let len = u32_at(bytes, 20).and_then(|len| usize::try_from(len).ok()).unwrap_or(quote.len());
        return only(quote.get(..len).unwrap_or(quote).to_vec());
    }
    // Binary headers of services that nobody here knows: no text has a quote inside.
    let behind = (1..SEARCHED.min(bytes.len())).find(|&at| {
        bytes.get(at..).is_some_and(|quote| Quote::recognises(quote) && Quote::parse(quote).is_ok())
    });
    match behind {
        Some(at) => {
            bail!("{at} bytes that are no quote, and a TDX quote behind them: give what is from byte {at} on")
        }
        None => Ok(None),
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(json::without_mark(bytes)).ok().map(str::trim_start)
}

/// Digits of either alphabet, with line breaks and with or without padding.
fn decode(text: &str) -> Option<Vec<u8>> {
    let digits: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let engines = [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD];
    engines.into_iter().find_map(|engine| engine.decode(&digits).ok()).filter(|bytes| !bytes.is_empty())
}

/// Text that is as short is some word.
const DIGITS_MIN: usize = 64;

fn hex(bytes: &[u8]) -> anyhow::Result<Option<Contents>> {
    let Some(text) = text(bytes) else { return Ok(None) };
    let text = text.strip_prefix("0x").or(text.strip_prefix("0X")).unwrap_or(text);
    let digits: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    match hex::decode(&digits) {
        Ok(bytes) if digits.len() >= DIGITS_MIN => only(bytes),
        _ => Ok(None),
    }
}

fn base64(bytes: &[u8]) -> anyhow::Result<Option<Contents>> {
    let Some(text) = text(bytes).filter(|text| text.len() >= DIGITS_MIN) else { return Ok(None) };
    decode(text).map_or(Ok(None), only)
}

/// Evidence as key brokers exchange it: trustee's, whose SEV-SNP report is taken apart into fields, and ours.
fn json_evidence(bytes: &[u8]) -> anyhow::Result<Option<Contents>> {
    let Ok(object) = json::object::<Map<String, Value>>(bytes) else { return Ok(None) };
    let object = match object.get("primary_evidence").or(object.get("tee-evidence")) {
        Some(Value::Object(inner)) => inner,
        _ => &object,
    };
    let bytes_of = |key: &str| object.get(key).and_then(Value::as_str).and_then(decode);
    if let Some(quote) = bytes_of("quote") {
        let event_log = bytes_of("cc_eventlog");
        return Ok(Some(Contents { bytes: quote, event_log, ..Contents::default() }));
    }
    if let Some(report) = bytes_of("report") {
        let table = bytes_of("certificate_table").or(bytes_of("auxblob"));
        return Ok(Some(Contents { bytes: report, table, ..Contents::default() }));
    }
    if object.get("attestation_report").is_some_and(Value::is_object) {
        bail!(
            "evidence of trustee, whose report is taken apart into fields: the signed bytes are what the guest's kernel \
             gave (configfs-tsm's outblob)"
        );
    }
    Ok(None)
}

/// More than any evidence has.
const FIELDS_MAX: usize = 256;

/// The fields of a protobuf message that have a length; `None` for what is no such message.
fn fields(mut rest: &[u8]) -> Option<Vec<&[u8]>> {
    fn varint(rest: &mut &[u8]) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, after) = rest.split_first()?;
            *rest = after;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
    let (mut fields, mut count) = (Vec::new(), 0);
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        count += 1;
        if key >> 3 == 0 || count > FIELDS_MAX {
            return None;
        }
        match key & 7 {
            0 => drop(varint(&mut rest)?),
            wire @ (1 | 5) => rest = rest.get(if wire == 1 { 8 } else { 4 }..)?,
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                let (taken, after) = rest.split_at_checked(length)?;
                fields.push(taken);
                rest = after;
            }
            _ => return None,
        }
    }
    Some(fields)
}

/// Reports and quotes that a message holds whole, however deep.
fn evidence_in<'a>(message: &'a [u8], depth: usize, found: &mut Vec<&'a [u8]>) {
    for bytes in fields(message).into_iter().flatten() {
        match is_bare(bytes) {
            true => found.push(bytes),
            false if depth > 0 => evidence_in(bytes, depth - 1, found),
            false => {}
        }
    }
}

/// Oak's evidence holds the report whole; go-sev-guest's and go-tdx-guest's messages take report or quote apart.
fn protobuf(bytes: &[u8]) -> anyhow::Result<Option<Contents>> {
    const NESTING: usize = 4;
    let Some(top) = fields(bytes).filter(|fields| !fields.is_empty()) else { return Ok(None) };
    let mut found = Vec::new();
    evidence_in(bytes, NESTING, &mut found);
    match found[..] {
        [evidence] => return only(evidence.to_vec()),
        [] => {}
        _ => bail!("a protobuf message with {} reports or quotes: give the one that is meant", found.len()),
    }
    // REPORT_DATA and MEASUREMENT, or a TD's RTMRs, as fields of their own.
    let apart = top.iter().filter_map(|bytes| fields(bytes)).any(|inner| {
        let has = |length| inner.iter().any(|bytes| bytes.len() == length);
        has(64) && has(48)
    });
    match apart {
        true => bail!(
            "a protobuf message that takes the evidence apart (go-sev-guest, go-tdx-guest): have their tools write the \
             bytes, with `-outform bin`"
        ),
        false => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A report that parses, which is all that an envelope looks at.
    fn report() -> Vec<u8> {
        let mut bytes = vec![0; Report::BYTES];
        bytes[0] = 2;
        bytes[0x34] = 1;
        Report::parse(&bytes).unwrap();
        bytes
    }

    fn message(number: u8, bytes: &[u8]) -> Vec<u8> {
        let length = bytes.len() as u32;
        let mut message = vec![number << 3 | 2];
        let mut rest = length;
        while rest >= 0x80 {
            message.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        message.push(rest as u8);
        [message, bytes.to_vec()].concat()
    }

    fn gzipped(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_report_is_found_in_every_envelope() {
        let report = report();
        let digits = hex::encode(&report);
        let base64 = STANDARD.encode(&report);
        let lines = |text: &str| {
            text.as_bytes().chunks(64).map(|c| String::from_utf8_lossy(c) + "\r\n").collect::<String>()
        };
        let hcl = [&b"HCLA\x02\0\0\0"[..], &[0; 24], &report, &[7; 100]].concat();
        let response = [&[0, 0, 0, 0, 0xa0, 4, 0, 0][..], &[0; 24], &report, &[0; 2784]].concat();
        for (bytes, layers) in [
            (report.clone(), &[][..]),
            (digits.clone().into_bytes(), &["hexadecimal digits"]),
            (format!("0x{digits}\n").into_bytes(), &["hexadecimal digits"]),
            (lines(&digits).into_bytes(), &["hexadecimal digits"]),
            (format!("\u{feff}{digits}").into_bytes(), &["hexadecimal digits"]),
            (lines(&base64).into_bytes(), &["base64"]),
            (URL_SAFE_NO_PAD.encode(&report).into_bytes(), &["base64"]),
            (gzipped(&report), &["gzip"]),
            (gzipped(base64.as_bytes()), &["gzip", "base64"]),
            (
                format!("-----BEGIN REPORT-----\n{}-----END REPORT-----\n", lines(&base64)).into_bytes(),
                &["PEM armour"],
            ),
            (hcl.clone(), &["Azure HCL blob"]),
            (
                format!("-----BEGIN X-----\n{}\n-----END X-----", STANDARD.encode(hcl)).into_bytes(),
                &["PEM armour", "Azure HCL blob"],
            ),
            (response, &["answer of the secure processor (MSG_REPORT_RSP)"]),
            ([&report[..], &[0; 64]].concat(), &["report with a certificate table behind it"]),
            (
                serde_json::json!({"primary_evidence": {"report": base64}}).to_string().into_bytes(),
                &["evidence in JSON"],
            ),
            (message(1, &[message(2, &report), vec![8, 1]].concat()), &["protobuf"]),
        ] {
            let contents = open(bytes).unwrap();
            assert_eq!((contents.bytes == report, &contents.layers[..]), (true, layers));
        }
    }

    #[test]
    fn what_comes_with_evidence_is_kept() {
        let entries = [table::Entry { kind: table::EntryKind::VCEK, blob: b"vcek" }];
        let table = table::build(&entries).unwrap();
        let contents = open([report(), table.clone()].concat()).unwrap();
        assert_eq!((contents.bytes, contents.table), (report(), Some(table.clone())));
        let document = serde_json::json!({
            "report": STANDARD.encode(report()), "certificate_table": STANDARD.encode(&table),
        });
        assert_eq!(open(document.to_string().into_bytes()).unwrap().table, Some(table));
        let document = serde_json::json!({"quote": STANDARD.encode([4; 99]), "cc_eventlog": null});
        let contents = open(document.to_string().into_bytes()).unwrap();
        assert_eq!((contents.bytes, contents.event_log), (vec![4; 99], None));
    }

    #[test]
    fn where_nothing_can_be_taken_out_one_line_says_how_to_get_at_it() {
        let report = report();
        let hcl_of = |report: &[u8]| [&b"HCLA\x02\0\0\0"[..], &[0; 24], report].concat();
        let apart = message(1, &[message(13, &[0; 64]), message(14, &[0; 48])].concat());
        for (bytes, expected) in [
            (hcl_of(&[0x81; 1300]), "tdquote"),
            (hcl_of(&[0; 1300]), "without an SEV-SNP report"),
            ([&report[..], &[9; 40]].concat(), "no certificate table"),
            (br#"{"attestation_report": {"version": 3}}"#.to_vec(), "outblob"),
            (apart, "-outform bin"),
            ([message(1, &report), message(2, &report)].concat(), "2 reports"),
            (gzipped(&vec![0; UNPACKED_MAX as usize + 1]), "more than 8 MiB"),
        ] {
            let error = open(bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn other_files_stay_as_they_are() {
        let certificate = b"-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";
        for bytes in [
            &b""[..],
            b"hello",
            b"deadbeef",
            certificate,
            b"vmpl = [0]\n",
            b"{\"vmpl\": [0]}",
            b"\x1f\x8b",
            &[0x30, 0x82, 5, 0, 0x30, 0x82, 3, 0, 0xa0, 3, 2, 1, 2],
            &[0; 1184],
        ] {
            let contents = open(bytes.to_vec()).unwrap();
            assert_eq!((&contents.bytes[..], contents.layers.len()), (bytes, 0));
        }
    }
}

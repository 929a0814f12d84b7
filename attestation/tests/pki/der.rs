//! Just enough DER writing to make certificates that nobody would issue.
#![allow(dead_code)]

use const_oid::ObjectIdentifier;

pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        len @ 0..0x80 => out.push(len as u8),
        len @ 0x80..0x100 => out.extend([0x81, len as u8]),
        len => out.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    out.extend(content);
    out
}

pub fn seq(parts: &[Vec<u8>]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

pub fn oid(text: &str) -> Vec<u8> {
    tlv(0x06, ObjectIdentifier::new(text).unwrap().as_bytes())
}

/// A non-negative INTEGER from big-endian bytes.
pub fn uint(bytes: &[u8]) -> Vec<u8> {
    let start = bytes.iter().position(|&byte| byte != 0).unwrap_or(bytes.len().saturating_sub(1));
    let mut value = bytes[start..].to_vec();
    if value.first().is_none_or(|&first| first >= 0x80) {
        value.insert(0, 0);
    }
    tlv(0x02, &value)
}

pub fn bits(bytes: &[u8]) -> Vec<u8> {
    tlv(0x03, &[&[0][..], bytes].concat())
}

pub fn explicit(number: u8, content: &[u8]) -> Vec<u8> {
    tlv(0xa0 | number, content)
}

/// A UTCTime or GeneralizedTime of `2026-11-21T07:00:00Z`.
pub fn time(text: &str) -> Vec<u8> {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    match text < "2050" {
        true => tlv(0x17, format!("{}Z", &digits[2..]).as_bytes()),
        false => tlv(0x18, format!("{digits}Z").as_bytes()),
    }
}

pub fn name(organisation: &str, common_names: &[String]) -> Vec<u8> {
    let attribute = |kind: &str, value: &str| tlv(0x31, &seq(&[oid(kind), tlv(0x0c, value.as_bytes())]));
    let mut parts = vec![attribute("2.5.4.11", "Engineering"), attribute("2.5.4.10", organisation)];
    parts.extend(common_names.iter().map(|cn| attribute("2.5.4.3", cn)));
    seq(&parts)
}

/// OID, critical, value.
pub fn extension((id, critical, value): &(String, bool, Vec<u8>)) -> Vec<u8> {
    let critical = if *critical { tlv(0x01, &[0xff]) } else { vec![] };
    seq(&[oid(id), critical, tlv(0x04, value)])
}

pub const BASIC_CONSTRAINTS: &str = "2.5.29.19";
pub const KEY_USAGE: &str = "2.5.29.15";
pub const DIGITAL_SIGNATURE: u8 = 0x80;
pub const CERT_SIGN: u8 = 0x04;
pub const CRL_SIGN: u8 = 0x02;

pub fn key_usage(usage: u8) -> Vec<u8> {
    tlv(0x03, &[usage.trailing_zeros() as u8, usage])
}

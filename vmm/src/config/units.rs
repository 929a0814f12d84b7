//! Numbers as people write them.

use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Bytes, written as a number with an optional suffix K, M, G or T (powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match text.strip_prefix(digits).unwrap_or_default().to_ascii_uppercase().as_str() {
            "" | "B" => 0,
            "K" | "KIB" => 10,
            "M" | "MIB" => 20,
            "G" | "GIB" => 30,
            "T" | "TIB" => 40,
            _ => return Err(format!("{text:?} is not a size; write 512M or 2G")),
        };
        let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a size; write 512M or 2G"))?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| format!("{text:?} is more than fits 64 bits"))
    }
}

/// 64 bits, decimal or with `0x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(pub u64);

impl FromStr for Number {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse(),
        }
        .map(Self)
        .map_err(|_| format!("{text:?} is not a number"))
    }
}

/// A number or its text form, as TOML files have both.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

macro_rules! deserialize_from_text {
    ($type:ident) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                match NumberOrText::deserialize(deserializer)? {
                    NumberOrText::Number(number) => Ok(Self(number)),
                    NumberOrText::Text(text) => text.parse().map_err(D::Error::custom),
                }
            }
        }
    };
}
deserialize_from_text!(Size);
deserialize_from_text!(Number);

/// The bytes of an even number of hexadecimal digits.
pub fn parse_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    let digits = |pair: &[u8]| {
        let digit = |at: usize| char::from(*pair.get(at)?).to_digit(16);
        u8::try_from((digit(0)? << 4) | digit(1)?).ok()
    };
    text.as_bytes().chunks(2).map(digits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_suffixes() {
        for (text, bytes) in
            [("0", 0), ("512M", 512 << 20), ("2g", 2 << 30), ("64KiB", 64 << 10), ("1T", 1 << 40)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "M", "-1", "1.5G", "12Q", "99999999999T"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn hexadecimal_is_whole_bytes() {
        assert_eq!(parse_hex("00fF"), Some(vec![0, 255]));
        assert_eq!((parse_hex("0"), parse_hex("0g"), parse_hex("é")), (None, None, None));
    }
}

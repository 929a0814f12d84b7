//! GUIDs as UEFI stores them.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A GUID in UEFI byte order: the first three groups little-endian.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(transparent)]
pub struct Guid([u8; 16]);

impl Guid {
    /// Where each byte of the text form goes.
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

    /// The GUID of a `8-4-4-4-12` text; evaluated at compile time, where a wrong text does not build.
    #[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]
    pub const fn parse(text: &str) -> Self {
        let text = text.as_bytes();
        assert!(text.len() == 36, "a GUID has 36 characters");
        let (mut bytes, mut at, mut digits) = ([0u8; 16], 0, 0);
        while at < text.len() {
            let value = match text[at] {
                digit @ b'0'..=b'9' => digit - b'0',
                digit @ b'a'..=b'f' => digit - b'a' + 10,
                b'-' if at == 8 || at == 13 || at == 18 || at == 23 => {
                    at += 1;
                    continue;
                }
                _ => panic!("a GUID is lower-case hexadecimal"),
            };
            let byte = &mut bytes[Self::ORDER[digits / 2]];
            *byte = (*byte << 4) | value;
            digits += 1;
            at += 1;
        }
        assert!(digits == 32, "a GUID has 32 digits");
        Self(bytes)
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, at) in Self::ORDER.into_iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0.get(at).copied().unwrap_or_default())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guid_stores_its_first_groups_little_endian_and_prints_as_written() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let guid = Guid::parse(text);
        assert_eq!(guid.0[..8], [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66]);
        assert_eq!(guid.0[8..], [0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
        assert_eq!(guid.to_string(), text);
    }
}

//! How documents in JSON are read: those of people's and of other programs' making, byte order mark and all.

use serde::Deserialize;
use serde::de::Error as _;

/// `text` without the byte order mark that some editors write before it.
pub fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// Reads a document that is an object. By itself serde also takes an array for a structure, its fields in the order in which
/// they are declared here: nobody means that.
pub fn object<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> serde_json::Result<T> {
    let bytes = without_mark(bytes);
    match bytes.trim_ascii_start().first() {
        Some(b'[') => Err(serde_json::Error::custom("an array, where an object is expected")),
        // Text needs no second look at its encoding, string by string.
        _ => match core::str::from_utf8(bytes) {
            Ok(text) => serde_json::from_str(text),
            Err(_) => serde_json::from_slice(bytes),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Pair {
        a: u8,
        b: u8,
    }

    #[test]
    fn an_object_is_read_with_or_without_a_mark_and_an_array_is_refused() {
        for good in
            [&br#"{"a": 1, "b": 2}"#[..], b"\xef\xbb\xbf{\"a\": 1, \"b\": 2}", b"\n {\"b\":2,\"a\":1}"]
        {
            assert_eq!(object::<Pair>(good).unwrap(), Pair { a: 1, b: 2 });
        }
        for (bad, why) in [
            (&b"[1, 2]"[..], "an array"),
            (b"\xef\xbb\xbf [1, 2]", "an array"),
            (b"\xef\xbb\xbf\xef\xbb\xbf{\"a\": 1, \"b\": 2}", "expected value"),
            (b"{\"a\": 1}", "missing field"),
            (b"", "EOF"),
            (b"{\"a\": \xff}", "expected value"),
        ] {
            let error = object::<Pair>(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}

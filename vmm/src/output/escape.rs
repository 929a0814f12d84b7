//! Guest text for an operator's terminal: what would steer the terminal becomes visible instead.
//!
//! Text passes in UTF-8, with newlines and tabs, and with carriage returns that stand before a newline. Control characters of
//! C0 and C1 (ECMA-48), bytes that are not UTF-8, and the characters that reorder or hide text (Unicode's
//! bidirectional controls, UAX #9; its tags and line separators) are written as escapes, such as `\x1b` and `\u{202e}`.

use std::io::Write as _;

/// The escaping of one stream, which may come in pieces of any size.
#[derive(Debug, Default)]
pub struct Escaper {
    /// The begin of a character of several bytes, or a carriage return whose successor is not known yet.
    held: Vec<u8>,
}

const CARRIAGE_RETURN: &[u8] = b"\r";

impl Escaper {
    /// Appends the visible form of `bytes` to `out`.
    pub fn escape(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if self.held == CARRIAGE_RETURN && !bytes.is_empty() {
            self.held.clear();
            after_carriage_return(bytes.first(), out);
        }
        let joined = [std::mem::take(&mut self.held).as_slice(), bytes].concat();
        let mut rest = joined.as_slice();
        loop {
            let (valid, invalid) = match std::str::from_utf8(rest) {
                Ok(text) => (text, None),
                Err(error) => {
                    let (valid, after) = rest.split_at_checked(error.valid_up_to()).unwrap_or((rest, &[]));
                    (std::str::from_utf8(valid).unwrap_or_default(), Some((after, error.error_len())))
                }
            };
            self.text(valid, invalid.is_some(), out);
            match invalid {
                None => return,
                // It may go on in the next piece.
                Some((after, None)) => {
                    self.held.extend_from_slice(after);
                    return;
                }
                Some((after, Some(len))) => {
                    let (bad, after) = after.split_at_checked(len).unwrap_or((after, &[]));
                    bad.iter().for_each(|&byte| byte_escape(byte, out));
                    rest = after;
                }
            }
        }
    }

    /// Appends what is still held: nothing follows.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        match std::mem::take(&mut self.held).as_slice() {
            CARRIAGE_RETURN => after_carriage_return(None, out),
            held => held.iter().for_each(|&byte| byte_escape(byte, out)),
        }
    }

    /// `more`: something follows the text in the same piece.
    fn text(&mut self, text: &str, more: bool, out: &mut Vec<u8>) {
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\r' => match characters.peek() {
                    None if !more => self.held = CARRIAGE_RETURN.to_vec(),
                    next => {
                        let newline = next == Some(&'\n');
                        after_carriage_return(newline.then_some(&b'\n'), out);
                    }
                },
                '\n' | '\t' => out.push(character as u8),
                _ if character.is_control() && character.is_ascii() => byte_escape(character as u8, out),
                _ if steers(character) => {
                    // Writing to a vector does not fail.
                    let _ = write!(out, "\\u{{{:x}}}", u32::from(character));
                }
                _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }
}

/// A carriage return is harmless before a newline; alone it overwrites the line.
fn after_carriage_return(next: Option<&u8>, out: &mut Vec<u8>) {
    match next {
        Some(b'\n') => out.extend_from_slice(CARRIAGE_RETURN),
        _ => out.extend_from_slice(b"\\r"),
    }
}

fn byte_escape(byte: u8, out: &mut Vec<u8>) {
    let _ = write!(out, "\\x{byte:02x}");
}

/// Characters that change how others are shown, or hide.
fn steers(character: char) -> bool {
    matches!(character,
        '\u{80}'..='\u{9f}'
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        | '\u{2028}' | '\u{2029}'
        | '\u{e0000}'..='\u{e007f}')
}

/// One line that holds text which a guest may have had a hand in.
pub fn line(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut escaper = Escaper::default();
    escaper.escape(text.as_bytes(), &mut out);
    escaper.finish(&mut out);
    String::from_utf8_lossy(&out).replace('\n', "\\n").replace('\r', "\\r")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All ways to cut `bytes` into two pieces give the same.
    fn escaped(bytes: &[u8]) -> String {
        let mut all = (0..=bytes.len()).map(|cut| {
            let (mut escaper, mut out) = (Escaper::default(), Vec::new());
            escaper.escape(&bytes[..cut], &mut out);
            escaper.escape(&bytes[cut..], &mut out);
            escaper.finish(&mut out);
            String::from_utf8(out).unwrap()
        });
        let first = all.next().unwrap();
        assert!(all.all(|other| other == first), "{bytes:x?}");
        first
    }

    #[test]
    fn text_passes_and_what_steers_a_terminal_is_shown() {
        for (bytes, shown) in [
            (&b"plain text\n\tand a tab\r\n"[..], "plain text\n\tand a tab\r\n"),
            ("Grüße, 世界 🦀\n".as_bytes(), "Grüße, 世界 🦀\n"),
            (b"\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
            (b"progress 1%\rprogress 2%", "progress 1%\\rprogress 2%"),
            (b"\r\r\n", "\\r\r\n"),
            (b"back\x08\x7f\0", "back\\x08\\x7f\\x00"),
            ("\u{9b}31m".as_bytes(), "\\u{9b}31m"),
            (b"\x9b31m \xc3(", "\\x9b31m \\xc3("),
            ("a\u{202e}b\u{2066}c\u{2028}\u{e0041}".as_bytes(), "a\\u{202e}b\\u{2066}c\\u{2028}\\u{e0041}"),
            (b"cut \xf0\x9f\xa6", "cut \\xf0\\x9f\\xa6"),
            (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
            (b"ends in \r", "ends in \\r"),
            (b"\r\xff", "\\r\\xff"),
        ] {
            assert_eq!(escaped(bytes), shown);
        }
    }

    #[test]
    fn no_bytes_whatever_reach_the_terminal_as_controls() {
        for first in 0..=255u8 {
            for second in 0..=255u8 {
                let text = escaped(&[b'a', first, second, b'z']);
                let steering = |c: char| steers(c) || c.is_control() && !matches!(c, '\n' | '\t' | '\r');
                assert!(!text.contains(steering), "{first:#x} {second:#x}: {text:?}");
                assert!(!text.replace("\r\n", "").contains('\r'), "{first:#x} {second:#x}");
            }
        }
    }

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(line("a\nb\x1b[m"), "a\\nb\\x1b[m");
        assert_eq!(line("a\r\ncloister: b\r\n"), "a\\r\\ncloister: b\\r\\n", "nor one that begins anew");
    }
}

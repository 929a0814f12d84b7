//! Printing: JSON as it is, or the same document as indented lines for people.

use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

/// Prints `document` on stdout.
pub fn print(document: &impl Serialize, json: bool) -> anyhow::Result<()> {
    let document = value(document)?;
    if json {
        return write(&(json_text(&document) + "\n"));
    }
    let mut text = String::new();
    lines(&mut text, &document, 0);
    write(&text)
}

/// JSON in lines. Outside of strings it has no control characters but line feeds, and those that JSON lets stand in strings
/// (DEL and C1, some of which terminals obey) are escaped, too.
fn json_text(document: &Value) -> String {
    let mut text = String::new();
    for c in format!("{document:#}").chars() {
        match c {
            '\n' => text.push('\n'),
            // None of them is beyond U+FFFF.
            c if unprintable(c) => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text
}

/// Writes `document` into a file as JSON.
pub fn write_document(path: &Path, document: &impl Serialize) -> anyhow::Result<()> {
    let text = format!("{:#}\n", value(document)?);
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn value(document: &impl Serialize) -> anyhow::Result<Value> {
    serde_json::to_value(document).context("the result cannot be written down")
}

/// Writes `text` on stdout. A reader that has seen enough is no error.
pub fn write(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
        _ => Ok(()),
    }
}

fn lines(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    let mut entry = |name: &str, value: &Value| {
        let name = printable(name);
        match value {
            Value::Null => {}
            Value::Array(items) if !items.is_empty() && items.iter().all(Value::is_null) => {}
            Value::Object(_) | Value::Array(_) => {
                text.push_str(&format!("{indent}{name}:\n"));
                lines(text, value, depth + 1);
            }
            Value::String(value) => text.push_str(&format!("{indent}{name}: {}\n", printable(value))),
            _ => text.push_str(&format!("{indent}{name}: {value}\n")),
        }
    };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| entry(name, value)),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                entry(&index.to_string(), item);
            }
        }
        _ => entry("value", value),
    }
}

/// What a terminal would obey rather than show: control characters, line breaks among them, and those that
/// turn the direction of text (Unicode's Bidi_Control), so that a line reads as another.
fn unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// One value for a line of a person's. Names in certificates, keys in JSON and what errors quote of either are anybody's.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if unprintable(c) { '\u{fffd}' } else { c }).collect()
}

/// An error with its causes, each once: many an error quotes its cause and names it, too. What it quotes cannot pass for a
/// line of ours: lines after the first are indented.
pub fn error_text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            text += if text.is_empty() { "" } else { ": " };
            text += &cause;
        }
    }
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n    ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_the_document_without_absent_fields_or_control_characters() {
        let document = serde_json::json!({"a": 1, "b": {"c": "x\u{1b}y"}, "d": null, "e": ["f"], "g": [null, null], "h\u{1b}\n": "h\ni"});
        let mut text = String::new();
        lines(&mut text, &document, 0);
        assert_eq!(text, "a: 1\nb:\n  c: x\u{fffd}y\ne:\n  0: f\nh\u{fffd}\u{fffd}: h\u{fffd}i\n");
    }

    #[test]
    fn nothing_reaches_a_terminal_that_it_would_obey() {
        for c in ['\0', '\t', '\n', '\r', '\u{1b}', '\u{7f}', '\u{9b}', '\u{202e}', '\u{2066}'] {
            assert_eq!(printable(&format!("a{c}b")), "a\u{fffd}b", "{c:?}");
            let document = serde_json::json!({ format!("k{c}"): format!("v{c}") });
            let text = json_text(&document);
            assert!(!text.chars().any(|c| unprintable(c) && c != '\n'), "{text:?}");
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), document);
        }
        assert_eq!(printable("CN=Zürich, ✓"), "CN=Zürich, ✓");
        let error = anyhow::anyhow!("unknown \u{1b}[2J\naccepted").context("policy");
        assert_eq!(error_text(&error), "policy: unknown \u{fffd}[2J\n    accepted");
    }

    #[test]
    fn a_cause_that_the_error_quotes_is_said_once() {
        let error = anyhow::anyhow!("expected value").context("no answer: expected value").context("a.json");
        assert_eq!(error_text(&error), "a.json: no answer: expected value");
    }
}

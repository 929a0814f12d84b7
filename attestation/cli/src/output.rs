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
        return write(&format!("{document:#}\n"));
    }
    let mut text = String::new();
    lines(&mut text, &document, 0);
    write(&text)
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
    let mut entry = |name: &str, value: &Value| match value {
        Value::Null => {}
        Value::Array(items) if !items.is_empty() && items.iter().all(Value::is_null) => {}
        Value::Object(_) | Value::Array(_) => {
            text.push_str(&format!("{indent}{name}:\n"));
            lines(text, value, depth + 1);
        }
        Value::String(value) => text.push_str(&format!("{indent}{name}: {}\n", printable(value))),
        _ => text.push_str(&format!("{indent}{name}: {value}\n")),
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

/// Names in certificates are anybody's: control characters must not reach a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The same for a text of several lines.
pub fn printable_lines(text: &str) -> String {
    text.lines().map(|line| printable(line) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_the_document_without_absent_fields_or_control_characters() {
        let document =
            serde_json::json!({"a": 1, "b": {"c": "x\u{1b}y"}, "d": null, "e": ["f"], "g": [null, null]});
        let mut text = String::new();
        lines(&mut text, &document, 0);
        assert_eq!(text, "a: 1\nb:\n  c: x\u{fffd}y\ne:\n  0: f\n");
    }
}

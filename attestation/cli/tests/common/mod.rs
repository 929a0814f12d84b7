//! The binary as scripts use it, and the real evidence in `../shared/vectors`.
#![allow(dead_code, reason = "no test needs all of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A folder of the vectors; says by name what is skipped where it is absent.
pub fn vectors(part: &str) -> Option<PathBuf> {
    shared(&format!("vectors/{part}"))
}

/// Inputs that failed when they were tried; as [`vectors`].
pub fn cases() -> Option<PathBuf> {
    shared("cases")
}

fn shared(part: &str) -> Option<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(part);
    if !folder.is_dir() {
        eprintln!("SKIPPED: no {}", folder.display());
        return None;
    }
    Some(folder)
}

pub fn attest(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cloister-attest")).args(arguments).output().unwrap()
}

/// Exit code and, if there is one, the document on stdout.
pub fn run(arguments: &[&str]) -> (i32, Value) {
    let output = attest(arguments);
    let document = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), document)
}

/// The codes of a verdict's reasons, in order.
pub fn codes(verdict: &Value) -> Vec<&str> {
    verdict["reasons"].as_array().unwrap().iter().map(|reason| reason["code"].as_str().unwrap()).collect()
}

/// Writes a file; returns its path as an argument.
pub fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) -> String {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

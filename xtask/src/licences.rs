//! What ships is under licences that let it ship: every dependency of the binaries is checked against a list, and what
//! only tests use against a slightly longer one.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command;

/// Licences that any part of an expression may name.
const SHIPPED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Also good for a package that only a development dependency brings: its bytes are in no binary that we hand out.
const TEST_ONLY: &[&str] = &["MPL-2.0"];

/// In the id of the member whose binaries are tests.
const TESTS: &str = "#cloister-tests@";

/// How many packages were looked at.
pub struct Counts {
    /// Packages linked into, or run to build, a binary of this workspace.
    pub shipped: usize,
    /// Packages that only tests and benchmarks use.
    pub test_only: usize,
}

/// Checks every package that cargo resolves for this workspace, development dependencies included.
pub fn check() -> Result<Counts> {
    let text = command::output(command::cargo().args(["metadata", "--format-version", "1", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let shipped = shipped(&metadata)?;
    let mut counts = Counts { shipped: 0, test_only: 0 };
    let mut refused = Vec::new();
    for package in packages {
        let ships = package["id"].as_str().is_some_and(|id| shipped.contains(id));
        let lists: &[&[&str]] = if ships { &[SHIPPED] } else { &[SHIPPED, TEST_ONLY] };
        *(if ships { &mut counts.shipped } else { &mut counts.test_only }) += 1;
        let expression = package["license"].as_str().unwrap_or("none given");
        if !acceptable(expression, lists) {
            let name = package["name"].as_str().unwrap_or("?");
            let what = if ships { "ships" } else { "for tests only" };
            refused.push(format!("{name} ({expression}, {what})"));
        }
    }
    if !refused.is_empty() {
        bail!("licences that are not on the list: {}", refused.join(", "));
    }
    Ok(counts)
}

/// The ids of all packages that the workspace's members reach without a development dependency.
fn shipped(metadata: &Value) -> Result<BTreeSet<&str>> {
    let nodes = metadata["resolve"]["nodes"].as_array().context("cargo metadata resolves nothing")?;
    let edges: BTreeMap<&str, Vec<&str>> = nodes
        .iter()
        .filter_map(|node| {
            let targets = node["deps"].as_array()?.iter().filter(|dep| is_for_more_than_tests(dep));
            Some((node["id"].as_str()?, targets.filter_map(|dep| dep["pkg"].as_str()).collect()))
        })
        .collect();
    let members = metadata["workspace_members"].as_array().context("the workspace has no members")?;
    let mut waiting: Vec<&str> =
        members.iter().filter_map(Value::as_str).filter(|id| !id.contains(TESTS)).collect();
    let mut reached = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if reached.insert(id) {
            waiting.extend(edges.get(id).into_iter().flatten());
        }
    }
    Ok(reached)
}

/// Is one kind of this dependency a normal or a build dependency?
fn is_for_more_than_tests(dependency: &Value) -> bool {
    dependency["dep_kinds"].as_array().is_none_or(|kinds| kinds.iter().any(|kind| kind["kind"] != "dev"))
}

/// Can the expression be met with licences of `lists` alone? Handles the SPDX forms that crates use: OR of ANDs, with
/// parentheses around either.
fn acceptable(expression: &str, lists: &[&[&str]]) -> bool {
    let flat = expression.replace('/', " OR ");
    let flat = flat.trim();
    match (split(flat, " AND "), split(flat, " OR ")) {
        (Some(parts), _) => parts.iter().all(|part| acceptable(part, lists)),
        (None, Some(parts)) => parts.iter().any(|part| acceptable(part, lists)),
        (None, None) => match flat.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
            Some(inner) => acceptable(inner, lists),
            None => lists.iter().any(|list| list.contains(&flat)),
        },
    }
}

/// Splits at an operator outside of parentheses.
fn split<'a>(expression: &'a str, operator: &str) -> Option<Vec<&'a str>> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0usize, 0usize);
    for (at, character) in expression.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if depth == 0 && expression[at..].starts_with(operator) => {
                parts.push(&expression[start..at]);
                start = at + operator.len();
            }
            _ => {}
        }
    }
    if parts.is_empty() {
        return None;
    }
    parts.push(&expression[start..]);
    Some(parts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{SHIPPED, TEST_ONLY, acceptable, shipped};

    #[test]
    fn expressions_are_met_or_refused() {
        let cases = [
            ("MIT OR Apache-2.0", true),
            ("MIT/Apache-2.0", true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("GPL-3.0-only OR MIT", true),
            ("MIT AND GPL-2.0-only", false),
            ("LGPL-2.1-or-later", false),
            ("MPL-2.0", false),
            ("MIT AND (Apache-2.0 OR GPL-2.0)", true),
            ("", false),
        ];
        for (expression, expected) in cases {
            assert_eq!(acceptable(expression, &[SHIPPED]), expected, "{expression}");
        }
        assert!(acceptable("MPL-2.0", &[SHIPPED, TEST_ONLY]));
        assert!(!acceptable("GPL-2.0-only", &[SHIPPED, TEST_ONLY]));
    }

    #[test]
    fn what_a_test_alone_uses_does_not_ship() {
        let dependency = |name: &str, kinds: &[Option<&str>]| {
            let kinds: Vec<_> = kinds.iter().map(|kind| json!({ "kind": kind })).collect();
            json!({ "pkg": name, "dep_kinds": kinds })
        };
        let metadata = json!({
            "workspace_members": ["ours", "path+file:///tests#cloister-tests@0.1.0"],
            "resolve": { "nodes": [
                { "id": "ours", "deps": [
                    dependency("linked", &[None]),
                    dependency("both", &[Some("dev"), None]),
                    dependency("builder", &[Some("build")]),
                    dependency("peer", &[Some("dev")]),
                ] },
                { "id": "path+file:///tests#cloister-tests@0.1.0", "deps": [dependency("a-tests", &[None])] },
                { "id": "linked", "deps": [dependency("deeper", &[None])] },
                { "id": "peer", "deps": [dependency("of-the-peer", &[None])] },
            ] },
        });
        let shipped: Vec<&str> = shipped(&metadata).unwrap().into_iter().collect();
        assert_eq!(shipped, ["both", "builder", "deeper", "linked", "ours"]);
    }
}

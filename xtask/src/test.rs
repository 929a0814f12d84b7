//! `cargo xtask test`: everything that must hold, in the order in which failures are cheapest to find.

use std::ffi::OsString;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::{book, book_commands, command, demo, firmware, licences, measurement, paths, pc, purity, qemu};

type Check = (&'static str, fn() -> Result<()>);

const CHECKS: &[Check] = &[
    ("format", || command::run(&mut cargo(&["fmt", "--all", "--check"]))),
    ("licences", || {
        let counts = licences::check()?;
        println!("{} packages that ship and {} for tests, all on the list", counts.shipped, counts.test_only);
        Ok(())
    }),
    ("purity", purity::check),
    ("clippy", || {
        command::run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    }),
    ("API docs", || {
        command::run(
            cargo(&["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "-D warnings"),
        )
    }),
    ("book", || book::build().map(|_| ())),
    ("firmware", || firmware::build().map(|_| ())),
    ("executables", || {
        command::run(&mut cargo(&["build", "--release", "--quiet", "-p", "softkvm", "-p", "cloister"]))
    }),
    ("launch measurements", measurement::check),
    ("demo", demo::check),
    ("clock and resets", pc::check),
    ("QEMU on softkvm", qemu::check),
    ("tests", || {
        let mut tests = cargo(&["test", "--workspace", "--release"]);
        command::run(tests.env("CLOISTER_TEST_LAUNCHER", softkvm()))
    }),
    // The VMM's own guests once more, on this machine's KVM; they skip themselves, and say so, where it has none.
    ("tests on /dev/kvm", || command::run(&mut cargo(&["test", "--release", "-p", "cloister"]))),
];

/// What takes minutes and rarely changes: run with `--long`, or by name.
const LONG: &[Check] = &[("book-commands", book_commands::check)];

/// All checks.
fn all() -> impl Iterator<Item = &'static Check> {
    CHECKS.iter().chain(LONG)
}

/// Evidence and digests that others made, which may not be committed: where a folder of them is absent, the tests that need it
/// pass without having looked at anything.
const VECTORS: &[(&str, &str)] = &[
    ("snp", "real SEV-SNP reports, and what is left of them after tampering"),
    ("tdx", "real TDX quotes, collateral and event logs"),
    ("measure", "launch digests that other programs computed"),
];

/// A line for each folder of [`VECTORS`] that is absent.
fn skipped(is_there: impl Fn(&str) -> bool) -> Vec<String> {
    let absent = VECTORS.iter().filter(|(folder, _)| !is_there(folder));
    absent.map(|(folder, what)| format!("== SKIPPED: no ../shared/vectors/{folder}: {what}")).collect()
}

/// What the VMM's tests start guests with, so that the confidential ones run too.
fn softkvm() -> OsString {
    let mut launcher = paths::target().join("release/softkvm").into_os_string();
    launcher.push(" --state ");
    launcher.push(paths::cache().join("softkvm-state"));
    launcher.push(" --");
    launcher
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = command::cargo();
    command.args(arguments);
    command
}

/// What `test` takes.
#[derive(clap::Args)]
#[group(id = "test")]
pub struct Options {
    /// Only these, in their order.
    #[arg(value_name = "CHECK", value_parser = clap::builder::PossibleValuesParser::new(all().map(|check| check.0)))]
    checks: Vec<String>,
    /// The long checks, too.
    #[arg(long, conflicts_with = "checks")]
    long: bool,
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        match self.checks.is_empty() {
            true => self.long || CHECKS.iter().any(|check| check.0 == name),
            false => self.checks.iter().any(|check| check == name),
        }
    }
}

/// Runs the checks; stops at the first that fails.
pub fn run(options: &Options) -> Result<()> {
    let begin = Instant::now();
    let checks: Vec<&Check> = all().filter(|check| options.wants(check.0)).collect();
    for (name, check) in &checks {
        println!("== {name}");
        let start = Instant::now();
        check().with_context(|| format!("check {name:?}"))?;
        println!("== {name}: good ({:.0} s)", start.elapsed().as_secs_f64());
    }
    // Where it is seen: behind everything else.
    if options.wants("tests") {
        let vectors = paths::workspace().join("../shared/vectors");
        skipped(|folder| vectors.join(folder).is_dir()).iter().for_each(|line| println!("{line}"));
    }
    println!("== all {} checks hold ({:.0} s)", checks.len(), begin.elapsed().as_secs_f64());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_checks_run_when_they_are_asked_for() {
        let wants = |checks: &[&str], long, name: &str| {
            Options { checks: checks.iter().map(|&check| check.to_owned()).collect(), long }.wants(name)
        };
        assert!(wants(&[], false, "demo") && !wants(&[], false, "book-commands"));
        assert!(wants(&[], true, "demo") && wants(&[], true, "book-commands"));
        assert!(
            !wants(&["book-commands"], false, "demo") && wants(&["book-commands"], false, "book-commands")
        );
    }

    #[test]
    fn each_absent_folder_of_vectors_is_named() {
        assert!(skipped(|_| true).is_empty());
        assert_eq!(skipped(|_| false).len(), VECTORS.len());
        let lines = skipped(|folder| folder != "tdx");
        assert!(
            lines.len() == 1 && lines[0].starts_with("== SKIPPED: no ../shared/vectors/tdx"),
            "{lines:?}"
        );
    }
}

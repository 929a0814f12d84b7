//! `cargo xtask test`: everything that must hold, in the order in which failures are cheapest to find.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::{book, command, demo, firmware, licences, measurement, purity};

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
    ("launch digest", measurement::check),
    ("demo", demo::check),
    ("tests", || command::run(&mut cargo(&["test", "--workspace", "--release"]))),
];

fn cargo(arguments: &[&str]) -> Command {
    let mut command = command::cargo();
    command.args(arguments);
    command
}

/// Runs every check; stops at the first that fails.
pub fn run() -> Result<()> {
    let begin = Instant::now();
    for (name, check) in CHECKS {
        println!("== {name}");
        let start = Instant::now();
        check().with_context(|| format!("check {name:?}"))?;
        println!("== {name}: good ({:.0} s)", start.elapsed().as_secs_f64());
    }
    println!("== all {} checks hold ({:.0} s)", CHECKS.len(), begin.elapsed().as_secs_f64());
    Ok(())
}

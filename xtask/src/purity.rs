//! What the verifier's library promises of its build: no C, no OpenSSL, no randomness of the system's (which WebAssembly has
//! not, and a verdict does not need), and no more than its features need.

use anyhow::{Result, bail};

use crate::command;

const LIBRARY: &str = "cloister-attestation";
/// Crates that compile or link C.
const C: &[&str] =
    &["aws-lc-sys", "aws-lc-rs", "bindgen", "cc", "cmake", "openssl-sys", "pkg-config", "ring"];
/// Crates that ask the system for randomness, and do not build where nobody can be asked.
const SYSTEM: &[&str] = &["getrandom"];
/// Feature sets that must build, and be free of [`C`] and [`SYSTEM`].
const BUILDS: &[&[&str]] = &[
    &[],
    &["--no-default-features"],
    &["--no-default-features", "--features", "std"],
    &["--no-default-features", "--features", "verify"],
    &["--features", "corim,schema"],
];

/// Checks the trees of dependencies, then the builds.
pub fn check() -> Result<()> {
    for features in BUILDS {
        let mut tree = command::cargo();
        tree.args(["tree", "-p", LIBRARY, "-e", "normal,build", "--prefix", "none", "--format", "{lib}"])
            .args(*features);
        let text = command::output(&mut tree)?;
        // The library's name, and a mark where its own dependencies were listed before.
        let names = text.lines().filter_map(|line| Some(line.split_whitespace().next()?.replace('_', "-")));
        let unwanted = |name: &String| C.iter().chain(SYSTEM).any(|other| name == other);
        let found: Vec<_> = names.filter(unwanted).collect();
        if !found.is_empty() {
            bail!(
                "{LIBRARY} {} brings C or the system's randomness: {}",
                features.join(" "),
                found.join(", ")
            );
        }
        command::run(command::cargo().args(["check", "--quiet", "-p", LIBRARY]).args(*features))?;
    }
    println!("{} feature sets build without C, and without randomness", BUILDS.len());
    Ok(())
}

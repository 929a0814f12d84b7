//! What the verifier's library promises of its build: no C, no OpenSSL, and no more than its features need.

use anyhow::{Result, bail};

use crate::command;

const LIBRARY: &str = "cloister-attestation";
/// Crates that compile or link C.
const C: &[&str] =
    &["aws-lc-sys", "aws-lc-rs", "bindgen", "cc", "cmake", "openssl-sys", "pkg-config", "ring"];
/// Feature sets that must build, and be free of [`C`].
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
        let found: Vec<_> = names.filter(|name| C.contains(&name.as_str())).collect();
        if !found.is_empty() {
            bail!("{LIBRARY} {} brings C: {}", features.join(" "), found.join(", "));
        }
        command::run(command::cargo().args(["check", "--quiet", "-p", LIBRARY]).args(*features))?;
    }
    println!("{} feature sets build without C", BUILDS.len());
    Ok(())
}

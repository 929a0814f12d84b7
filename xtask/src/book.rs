//! The book: built with mdbook, which is fetched through cargo and kept.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::{command, paths, progress};

const VERSION: &str = "0.4.52";

fn mdbook() -> Result<PathBuf> {
    let root = paths::cache().join("tools");
    let binary = root.join("bin/mdbook");
    if !binary.exists() {
        let _step = progress::step("building mdbook (once)");
        eprintln!("xtask: building mdbook {VERSION} (once)");
        let mut install = command::cargo();
        install.args([
            "install",
            "--quiet",
            "--locked",
            "--no-default-features",
            "--version",
            VERSION,
            "mdbook",
            "--root",
        ]);
        command::output(install.arg(&root))?;
    }
    Ok(binary)
}

/// Builds the book into the target directory.
pub fn build() -> Result<PathBuf> {
    let output = paths::target().join("book");
    let mut command = Command::new(mdbook()?);
    command.arg("build").arg(paths::workspace().join("docs")).arg("--dest-dir").arg(&output);
    command::output(&mut command)?;
    Ok(output)
}

//! Where things are: the workspace, what cargo builds into, and what is kept between builds.

use std::env;
use std::path::{Path, PathBuf};

/// The only target that this workspace is built for.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The workspace's root.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_owned)
}

/// Cargo's target directory.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace().join(directory),
        None => workspace().join("target"),
    }
}

/// What was fetched, and may be fetched again.
pub fn cache() -> PathBuf {
    target().join("cache")
}

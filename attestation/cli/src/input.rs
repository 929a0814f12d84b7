//! Reading what the command line names: files and standard input, each with a limit. Nothing is read whole before somebody
//! has asked how large it may be.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};

/// What may be read, and how much of it. Real ones are far smaller.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// What is expected, for the message.
    pub what: &'static str,
    /// Bytes at most.
    pub bytes: u64,
}

/// Reports, quotes, certificates, CRLs, collateral, event logs, policies, transcripts, keys.
pub const DOCUMENT: Limit = Limit { what: "evidence, a certificate or a document", bytes: 8 << 20 };
/// ROMs; the largest that anybody ships is 16 MiB.
pub const FIRMWARE: Limit = Limit { what: "a firmware image", bytes: 64 << 20 };
/// What the firmware loads below 4 GiB.
pub const KERNEL: Limit = Limit { what: "a kernel or initrd", bytes: 3 << 30 };

/// Standard input, as a file's name.
const STDIN: &str = "-";

/// Reads a file, or standard input where the name is `-`, up to `limit`.
pub fn read(path: &Path, limit: Limit) -> anyhow::Result<Vec<u8>> {
    if path == Path::new(STDIN) {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::Relaxed) {
            bail!("standard input (-) is named twice: it can be read once");
        }
        return within(io::stdin().lock(), limit).context("standard input");
    }
    let name = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(name)?;
    let kind = file.metadata().with_context(name)?.file_type();
    if kind.is_dir() {
        bail!("{} is a directory", path.display());
    }
    // A pipe is how shells pass the output of a command as a file.
    if kind.is_block_device() || kind.is_char_device() || kind.is_socket() {
        bail!("{} is a device or socket, not a file; `-` is standard input", path.display());
    }
    within(file, limit).with_context(name)
}

fn within(input: impl Read, limit: Limit) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(limit.bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit.bytes {
        bail!("more than {} MiB, the most that {} may have", limit.bytes >> 20, limit.what);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Limit = Limit { what: "a test", bytes: 4 };

    #[test]
    fn no_more_than_the_limit_is_kept_or_waited_for() {
        assert_eq!(within(&b"1234"[..], SMALL).unwrap(), b"1234");
        let error = within(&b"12345"[..], SMALL).unwrap_err().to_string();
        assert!(error.contains("more than") && error.contains("a test"), "{error}");
        // Without end.
        within(io::repeat(0), SMALL).unwrap_err();
    }

    #[test]
    fn what_is_no_file_is_named() {
        for (path, what) in [
            ("/", "is a directory"),
            ("/dev/zero", "is a device"),
            ("/nowhere/to/be/found", "cannot read /nowhere"),
        ] {
            let error = format!("{:#}", read(Path::new(path), SMALL).unwrap_err());
            assert!(error.contains(what), "{error}");
        }
    }
}

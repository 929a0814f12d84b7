//! The measured hashes of kernel, initrd and command line: QEMU's kernel-hashes table (target/i386/sev.c,
//! `SevHashTable`), which the launch digest covers.

use zerocopy::byteorder::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bytes;
use crate::metadata::{Guid, guid};
use crate::sha256::{Compress, Sha256};
use crate::termination::{Stop, TerminationReason};

const TABLE: Guid = guid("9438d606-4f22-4cc9-b479-a793d411fd21");
const CMDLINE: Guid = guid("97d02dd8-bd20-4c94-aa78-e7714d36ab2a");
const INITRD: Guid = guid("44baf731-3a2f-4bd7-9af1-41e29169781d");
const KERNEL: Guid = guid("4de79437-abd2-427f-b835-d5b172d2045b");

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    guid: Guid,
    length: U16,
    hash: [u8; 32],
}
const _: () = assert!(size_of::<Entry>() == 50);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Table {
    guid: Guid,
    length: U16,
    cmdline: Entry,
    initrd: Entry,
    kernel: Entry,
}
const _: () = assert!(size_of::<Table>() == 168);

/// The hashes that the launch measured.
#[derive(Clone, Copy, Debug)]
pub struct KernelHashes {
    compress: Compress,
    kernel: [u8; 32],
    initrd: [u8; 32],
    cmdline: [u8; 32],
}

impl KernelHashes {
    /// Reads the hash page. A launch without a kernel measures a page of zeros: no table, and so no kernel to trust.
    pub fn parse(page: &[u8], compress: Compress) -> Result<Self, Stop> {
        let refused =
            Stop::because(TerminationReason::NoHashTable, "the launch measured no kernel hash table");
        let table: Table = bytes::read(page, 0).ok_or(refused)?;
        let entry = |entry: &Entry, guid: Guid| {
            (entry.guid == guid && usize::from(entry.length.get()) == size_of::<Entry>())
                .then_some(entry.hash)
                .ok_or(refused)
        };
        if table.guid != TABLE || usize::from(table.length.get()) != size_of::<Table>() {
            return Err(refused);
        }
        Ok(Self {
            compress,
            cmdline: entry(&table.cmdline, CMDLINE)?,
            initrd: entry(&table.initrd, INITRD)?,
            kernel: entry(&table.kernel, KERNEL)?,
        })
    }

    /// The hash of something that is to be compared.
    pub fn hash(&self) -> Sha256 {
        Sha256::new(self.compress)
    }

    /// Compares what was loaded with what was measured. Nothing here is secret, so plain comparison will do.
    pub fn check(&self, what: Artifact, hash: Sha256) -> Result<(), Stop> {
        let (expected, refused) = match what {
            Artifact::Kernel => (
                &self.kernel,
                Stop::because(TerminationReason::KernelHashMismatch, "kernel is not the measured one"),
            ),
            Artifact::Initrd => (
                &self.initrd,
                Stop::because(TerminationReason::InitrdHashMismatch, "initrd is not the measured one"),
            ),
            Artifact::Cmdline => (
                &self.cmdline,
                Stop::because(TerminationReason::CmdlineHashMismatch, "command line is not the measured one"),
            ),
        };
        if hash.finalize() == *expected { Ok(()) } else { Err(refused) }
    }
}

/// What the table has a hash of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Artifact {
    /// The whole kernel file: setup part, then the rest.
    Kernel,
    /// The initrd; absent is the same as empty.
    Initrd,
    /// The command line with its NUL.
    Cmdline,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sha256::compress_portably;

    fn page() -> Vec<u8> {
        crate::fake::hash_page(b"kernel", b"", b"cmdline\0")
    }

    #[test]
    fn measured_artifacts_pass_and_any_other_is_named() {
        let hashes = KernelHashes::parse(&page(), compress_portably).unwrap();
        for (what, good, reason) in [
            (Artifact::Kernel, &b"kernel"[..], TerminationReason::KernelHashMismatch),
            (Artifact::Initrd, b"", TerminationReason::InitrdHashMismatch),
            (Artifact::Cmdline, b"cmdline\0", TerminationReason::CmdlineHashMismatch),
        ] {
            let check = |contents: &[u8]| {
                let mut hash = hashes.hash();
                hash.update(contents);
                hashes.check(what, hash)
            };
            assert_eq!(check(good), Ok(()));
            assert_eq!(check(b"other").unwrap_err().reason, reason);
        }
    }

    #[test]
    fn a_page_that_is_not_the_table_is_no_table() {
        let good = page();
        let mut cases = vec![vec![0; 4096], good[..100].to_vec(), Vec::new()];
        for at in [0, 16, 18, 34, 68, 84, 118, 134] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            cases.push(bad);
        }
        for bad in cases {
            assert_eq!(
                KernelHashes::parse(&bad, compress_portably).unwrap_err().reason,
                TerminationReason::NoHashTable
            );
        }
    }
}

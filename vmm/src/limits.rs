//! What a guest of this VMM can have, in one place. Whatever is beyond is refused before anything is made, by a message that names
//! the limit. The book has the same table; a test compares them.

pub use cloister_attestation::abi::{MEMORY_MAX, MEMORY_MIN};

/// x2APIC identifiers that MSIs without interrupt remapping can address.
pub const CPUS_MAX: u32 = 255;
/// Functions on PCI's bus 0 beside the host bridge: 32 devices, one function each.
pub const PCI_FUNCTIONS_MAX: usize = 31;
/// COMMAND_LINE_SIZE of Linux on x86, with the NUL.
pub const CMDLINE_MAX: usize = 2048;
/// A ROM lies below 4 GiB, above the interrupt controllers.
pub const FIRMWARE_BYTES_MAX: u64 = 16 << 20;
/// The kernel's file.
pub const KERNEL_BYTES_MAX: u64 = 1 << 30;
/// The initrd's file. fw_cfg tells its size in 32 bits.
pub const INITRD_BYTES_MAX: u64 = 2 << 30;
/// A configuration file, or any other small input.
pub const SMALL_BYTES_MAX: u64 = 1 << 20;

const _: () = assert!(INITRD_BYTES_MAX <= u32::MAX as u64);
const _: () = assert!(KERNEL_BYTES_MAX <= u32::MAX as u64);

/// Each limit as the book has it: what, how much, and why.
#[cfg(test)]
pub const TABLE: &[(&str, &str, &str)] = &[
    (
        "memory",
        "16 MiB to 511 GiB, whole pages of 4 KiB",
        "RAM ends at 512 GiB, which is what the firmware's page tables map",
    ),
    ("processors", "1 to 255", "what MSIs without interrupt remapping address; KVM may allow fewer"),
    (
        "PCI devices",
        "31: console, vsock, rng and disks",
        "one bus, one function a device, the host bridge is the first",
    ),
    ("kernel command line", "2,047 bytes", "Linux's COMMAND_LINE_SIZE"),
    ("firmware", "16 MiB", "it ends at 4 GiB, above the interrupt controllers"),
    ("kernel", "1 GiB", "fw_cfg's sizes have 32 bits; none is near"),
    ("initrd", "2 GiB", "fw_cfg's sizes have 32 bits"),
    ("configuration, ID block, ID authentication", "1 MiB", "files that are more are something else"),
    (
        "one request to a device",
        "128 MiB, no more buffers than its queue",
        "a device serves it while its driver waits",
    ),
    ("vsock connections", "256", "more are reset"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_s_table_is_this_one() {
        let book = include_str!("../../docs/src/specification.md");
        for (what, limit, why) in TABLE {
            let row = format!("| {what} | {limit} | {why} |");
            assert!(book.contains(&row), "the book lacks: {row}");
        }
    }

    #[test]
    fn the_table_says_what_the_numbers_are() {
        let row = |what: &str| TABLE.iter().find(|row| row.0 == what).unwrap().1;
        let (mib, gib) =
            (|bytes: u64| format!("{} MiB", bytes >> 20), |bytes: u64| format!("{} GiB", bytes >> 30));
        assert!(row("memory").starts_with(&format!("{} to {},", mib(MEMORY_MIN), gib(MEMORY_MAX))));
        assert_eq!(row("processors"), format!("1 to {CPUS_MAX}"));
        assert!(row("PCI devices").starts_with(&format!("{PCI_FUNCTIONS_MAX}:")));
        assert_eq!(row("kernel command line").replace(',', ""), format!("{} bytes", CMDLINE_MAX - 1));
        assert_eq!(row("firmware"), mib(FIRMWARE_BYTES_MAX));
        assert_eq!(row("kernel"), gib(KERNEL_BYTES_MAX));
        assert_eq!(row("initrd"), gib(INITRD_BYTES_MAX));
        assert_eq!(row("configuration, ID block, ID authentication"), mib(SMALL_BYTES_MAX));
    }
}

//! `boot_params` for Linux (Documentation/arch/x86/zero-page.rst), and the setup_data node that leads an SNP guest's
//! kernel to its secrets and CPUID pages (arch/x86/include/asm/sev.h, `cc_blob_sev_info`).

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bytes;
use crate::kernel::{SETUP_HEADER, SetupHeader};
use crate::layout::{BOOT_PARAMS, CC_BLOB, CMDLINE, CPUID, Range, SECRETS, SETUP_DATA};
use crate::machine::{Guest, Machine};
use crate::memory_map::Ram;
use crate::termination::{Stop, TerminationReason};

const ACPI_RSDP: usize = 0x070;
const E820_COUNT: usize = 0x1E8;
const E820_TABLE: usize = 0x2D0;

/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xFF;
const VIDEO_NORMAL: u16 = 0xFFFF;
const SETUP_CC_BLOB: u32 = 7;
/// "AMDE".
const CC_BLOB_MAGIC: u32 = 0x4544_4D41;

/// `struct cc_setup_data`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct CcSetupData {
    next: U64,
    kind: U32,
    length: U32,
    cc_blob_address: U32,
}
const _: () = assert!(size_of::<CcSetupData>() == 20);

/// `struct cc_blob_sev_info`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct CcBlob {
    magic: U32,
    version: U16,
    reserved: U16,
    secrets_phys: U64,
    secrets_length: U32,
    reserved_1: U32,
    cpuid_phys: U64,
    cpuid_length: U32,
    reserved_2: U32,
}
const _: () = assert!(size_of::<CcBlob>() == 40);

const FULL: Stop = Stop::because(TerminationReason::OutOfMemory, "boot_params overflow");

/// What is handed to Linux besides the memory map.
pub struct Contents {
    /// The kernel's own header.
    pub header: SetupHeader,
    /// The initrd, if there is one.
    pub initrd: Option<Range>,
    /// Address of the RSDP.
    pub rsdp: u64,
}

/// Writes `boot_params`, and in an SNP guest the CC blob and the node that points at it.
pub fn write<M: Machine>(machine: &mut M, ram: &Ram, contents: &Contents) -> Result<(), Stop> {
    let guest = machine.guest();
    let has_blob = matches!(guest, Guest::Snp { .. });
    if has_blob {
        write_cc_blob(machine)?;
    }

    let mut header = contents.header;
    header.type_of_loader = LOADER_UNDEFINED;
    header.vid_mode = U16::new(VIDEO_NORMAL);
    header.cmd_line_ptr = U32::new(CMDLINE.start as u32);
    let initrd = contents.initrd.unwrap_or(Range::new(0, 0));
    header.ramdisk_image = U32::new(u32::try_from(initrd.start).map_err(|_| FULL)?);
    header.ramdisk_size = U32::new(u32::try_from(initrd.len()).map_err(|_| FULL)?);
    header.setup_data = U64::new(if has_blob { SETUP_DATA.start } else { 0 });

    let page = machine.ram(BOOT_PARAMS)?;
    page.fill(0);
    bytes::write(page, SETUP_HEADER, &header).ok_or(FULL)?;
    bytes::write(page, ACPI_RSDP, &U64::new(contents.rsdp)).ok_or(FULL)?;
    let mut count = 0_u8;
    let mut at = E820_TABLE;
    for entry in ram.for_linux(guest).iter().filter(|entry| !entry.is_empty()) {
        bytes::write(page, at, entry).ok_or(FULL)?;
        at = at.saturating_add(size_of_val(entry));
        count = count.saturating_add(1);
    }
    bytes::write(page, E820_COUNT, &count).ok_or(FULL)
}

fn write_cc_blob<M: Machine>(machine: &mut M) -> Result<(), Stop> {
    let length = |range: Range| U32::new(range.len() as u32);
    let blob = CcBlob {
        magic: U32::new(CC_BLOB_MAGIC),
        version: U16::new(0),
        reserved: U16::new(0),
        secrets_phys: U64::new(SECRETS.start),
        secrets_length: length(SECRETS),
        reserved_1: U32::new(0),
        cpuid_phys: U64::new(CPUID.start),
        cpuid_length: length(CPUID),
        reserved_2: U32::new(0),
    };
    let node = CcSetupData {
        next: U64::new(0),
        kind: U32::new(SETUP_CC_BLOB),
        length: U32::new(4),
        cc_blob_address: U32::new(CC_BLOB.start as u32),
    };
    let page = machine.ram(CC_BLOB)?;
    page.fill(0);
    bytes::write(page, 0, &blob).ok_or(FULL)?;
    let page = machine.ram(SETUP_DATA)?;
    page.fill(0);
    bytes::write(page, 0, &node).ok_or(FULL)
}

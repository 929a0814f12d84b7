//! The fixed tables (ACPI 6.4, chapter 5).

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{ECAM, EVENT_LOG, IOAPIC, LAPIC, MAILBOX, port};
use crate::abi::{RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT};

const OEM: [u8; 6] = *b"CLOIST";
const OEM_TABLE: [u8; 8] = *b"CLOISTER";
const CREATOR: [u8; 4] = *b"CLST";

/// The byte that makes a table with a zero checksum field sum to zero.
pub fn checksum(table: &[u8]) -> u8 {
    table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

/// What every table starts with.
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    signature: [u8; 4],
    length: U32,
    revision: u8,
    checksum: u8,
    oem: [u8; 6],
    oem_table: [u8; 8],
    oem_revision: U32,
    creator: [u8; 4],
    creator_revision: U32,
}
const _: () = assert!(size_of::<Header>() == 36);

impl Header {
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 9;

    /// A header whose checksum is still to come.
    pub fn new(signature: [u8; 4], length: u32, revision: u8) -> Self {
        Self {
            signature,
            length: U32::new(length),
            revision,
            checksum: 0,
            oem: OEM,
            oem_table: OEM_TABLE,
            oem_revision: U32::new(1),
            creator: CREATOR,
            creator_revision: U32::new(1),
        }
    }
}

/// Root pointer.
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Rsdp {
    signature: [u8; 8],
    checksum: u8,
    oem: [u8; 6],
    revision: u8,
    rsdt: U32,
    length: U32,
    xsdt: U64,
    extended_checksum: u8,
    reserved: [u8; 3],
}
const _: () = assert!(size_of::<Rsdp>() == 36);

impl Rsdp {
    /// Points at the XSDT.
    pub fn new(xsdt: u64) -> Self {
        let mut rsdp = Self {
            signature: *b"RSD PTR ",
            checksum: 0,
            oem: OEM,
            revision: 2,
            rsdt: U32::new(0),
            length: U32::new(size_of::<Self>() as u32),
            xsdt: U64::new(xsdt),
            extended_checksum: 0,
            reserved: [0; 3],
        };
        // The first checksum covers ACPI 1.0's part only, which is the first 20 bytes.
        rsdp.checksum = checksum(rsdp.as_bytes().get(..20).unwrap_or_default());
        rsdp.extended_checksum = checksum(rsdp.as_bytes());
        rsdp
    }
}

/// Generic address structure.
#[derive(IntoBytes, FromZeros, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Gas {
    space: u8,
    bit_width: u8,
    bit_offset: u8,
    access_size: u8,
    address: U64,
}
const _: () = assert!(size_of::<Gas>() == 12);

impl Gas {
    /// An 8-bit register in I/O space.
    pub fn port(address: u16) -> Self {
        Self { space: 1, bit_width: 8, bit_offset: 0, access_size: 1, address: U64::new(u64::from(address)) }
    }
}

/// Fixed description, after the header.
#[derive(IntoBytes, FromZeros, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Fadt {
    firmware_control: U32,
    dsdt: U32,
    legacy_44: [u8; 65],
    boot_architecture: U16,
    reserved_111: u8,
    flags: U32,
    reset: Gas,
    reset_value: u8,
    arm_boot_architecture: U16,
    minor_revision: u8,
    x_firmware_control: U64,
    x_dsdt: U64,
    event_blocks: [Gas; 8],
    sleep_control: Gas,
    sleep_status: Gas,
    hypervisor: [u8; 8],
}
const _: () = {
    assert!(size_of::<Fadt>() == 276 - 36);
    assert!(core::mem::offset_of!(Fadt, boot_architecture) == 109 - 36);
    assert!(core::mem::offset_of!(Fadt, reset) == 116 - 36);
    assert!(core::mem::offset_of!(Fadt, x_dsdt) == 140 - 36);
    assert!(core::mem::offset_of!(Fadt, sleep_control) == 244 - 36);
};

impl Fadt {
    /// Major revision; [`Fadt::MINOR`] goes with it.
    pub const REVISION: u8 = 6;
    const MINOR: u8 = 4;
    const WBINVD: u32 = 1 << 0;
    const POWER_BUTTON_IS_DEVICE: u32 = 1 << 4;
    const SLEEP_BUTTON_IS_DEVICE: u32 = 1 << 5;
    const RESET_REGISTER: u32 = 1 << 10;
    const HARDWARE_REDUCED: u32 = 1 << 20;
    /// IAPC_BOOT_ARCH: no VGA to probe. There is a CMOS clock, as the bit that denies it is clear, and no 8042, as its bit is clear, too.
    const NO_VGA: u16 = 1 << 2;

    /// The machine model, with the DSDT at `dsdt`.
    pub fn new(dsdt: u64) -> Self {
        Self {
            boot_architecture: U16::new(Self::NO_VGA),
            flags: U32::new(
                Self::WBINVD
                    | Self::POWER_BUTTON_IS_DEVICE
                    | Self::SLEEP_BUTTON_IS_DEVICE
                    | Self::RESET_REGISTER
                    | Self::HARDWARE_REDUCED,
            ),
            reset: port(RESET_PORT),
            reset_value: RESET_VALUE,
            minor_revision: Self::MINOR,
            x_dsdt: U64::new(dsdt),
            sleep_control: port(SLEEP_CONTROL_PORT),
            sleep_status: port(SLEEP_STATUS_PORT),
            hypervisor: *b"CLOISTER",
            ..Self::new_zeroed()
        }
    }
}

/// What follows the MADT's header: the local APICs' address, and no flags, as there is no PIC.
pub fn madt_fixed() -> [U32; 2] {
    [U32::new(LAPIC as u32), U32::new(0)]
}

/// Processor local x2APIC.
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct X2Apic {
    kind: u8,
    length: u8,
    reserved: U16,
    id: U32,
    flags: U32,
    uid: U32,
}
const _: () = assert!(size_of::<X2Apic>() == 16);

impl X2Apic {
    /// An enabled processor.
    pub fn new(id: u32) -> Self {
        Self {
            kind: 9,
            length: size_of::<Self>() as u8,
            reserved: U16::new(0),
            id: U32::new(id),
            flags: U32::new(1),
            uid: U32::new(id),
        }
    }
}

/// I/O APIC.
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IoApic {
    kind: u8,
    length: u8,
    id: u8,
    reserved: u8,
    address: U32,
    gsi_base: U32,
}
const _: () = assert!(size_of::<IoApic>() == 12);

impl IoApic {
    /// The machine's only one.
    pub fn new() -> Self {
        Self {
            kind: 1,
            length: size_of::<Self>() as u8,
            id: 0,
            reserved: 0,
            address: U32::new(IOAPIC as u32),
            gsi_base: U32::new(0),
        }
    }
}

/// Multiprocessor wakeup (ACPI 6.4, 5.2.12.19): where a TD's application processors wait.
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct MultiprocessorWakeup {
    kind: u8,
    length: u8,
    mailbox_version: U16,
    reserved: U32,
    mailbox: U64,
}
const _: () = assert!(size_of::<MultiprocessorWakeup>() == 16);

impl MultiprocessorWakeup {
    /// The firmware's mailbox.
    pub fn new() -> Self {
        Self {
            kind: 16,
            length: size_of::<Self>() as u8,
            mailbox_version: U16::new(0),
            reserved: U32::new(0),
            mailbox: U64::new(MAILBOX.start),
        }
    }
}

/// What follows the CCEL's header (ACPI 6.5, 5.2.34): where the event log of a confidential guest is.
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ccel {
    kind: u8,
    subtype: u8,
    reserved: U16,
    length: U64,
    address: U64,
}
const _: () = assert!(size_of::<Ccel>() == 20);

impl Ccel {
    /// A TD's.
    pub fn new() -> Self {
        const TDX: u8 = 2;
        Self {
            kind: TDX,
            subtype: 0,
            reserved: U16::new(0),
            length: U64::new(EVENT_LOG.end.saturating_sub(EVENT_LOG.start)),
            address: U64::new(EVENT_LOG.start),
        }
    }
}

/// What follows the MCFG's header.
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Mcfg([u8; 8]);

impl Mcfg {
    /// Reserved.
    pub fn new() -> Self {
        Self([0; 8])
    }
}

/// A part of PCI configuration space.
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct McfgEntry {
    address: U64,
    segment: U16,
    first_bus: u8,
    last_bus: u8,
    reserved: U32,
}
const _: () = assert!(size_of::<McfgEntry>() == 16);

impl McfgEntry {
    /// The machine's only bus.
    pub fn bus_0() -> Self {
        Self {
            address: U64::new(ECAM.start),
            segment: U16::new(0),
            first_bus: 0,
            last_bus: 0,
            reserved: U32::new(0),
        }
    }
}

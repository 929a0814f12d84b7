//! The machine that firmware and VMM agree on: what lies where in guest physical and I/O port space.

/// Size of a page.
pub const PAGE_SIZE: u64 = 4096;

/// ROMs end here.
pub const ROM_END: u64 = 1 << 32;

/// Window of 32-bit PCI BARs.
pub const PCI_WINDOW: std::ops::Range<u64> = 0xc000_0000..0xe000_0000;
/// ECAM of bus 0: 32 devices of 8 functions with 4 KiB each.
pub const ECAM: std::ops::Range<u64> = 0xe000_0000..0xe010_0000;
/// The I/O APIC's registers.
pub const IOAPIC: std::ops::Range<u64> = 0xfec0_0000..0xfec0_1000;

/// A page that Intel's VMX needs for real mode on old processors; below the biggest ROM.
pub const IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three more such pages.
pub const TSS: usize = 0xfeff_d000;

/// CMOS clock: index and data.
pub const RTC_PORTS: std::ops::RangeInclusive<u16> = 0x70..=0x71;
/// Command port of a PC's keyboard controller, of which only the reset line is here.
pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;
/// Reset control of a PC's chipset, among the ports of PCI configuration.
pub const RESET_CONTROL_PORT: u16 = 0xcf9;
/// COM1.
pub const SERIAL_PORTS: std::ops::RangeInclusive<u16> = 0x3f8..=0x3ff;
/// COM1's interrupt, an I/O APIC pin.
pub const SERIAL_IRQ: u8 = 4;
/// fw_cfg selector (16 bits).
pub const FW_CFG_SELECTOR_PORT: u16 = 0x510;
/// fw_cfg data (8 bits).
pub const FW_CFG_DATA_PORT: u16 = 0x511;
/// fw_cfg DMA address, two big-endian halves.
pub const FW_CFG_DMA_PORTS: std::ops::RangeInclusive<u16> = 0x514..=0x51b;
/// PCI configuration address and data (PCI local bus specification 3.2.2.3).
pub const PCI_CONFIG_PORTS: std::ops::RangeInclusive<u16> = 0xcf8..=0xcff;
/// Power control; see `cloister_attestation::abi`.
pub const POWER_PORTS: std::ops::RangeInclusive<u16> = 0x600..=0x604;

//! The DSDT: a PCI root, COM1 and how to power off, assembled by hand (ACPI 6.4, chapter 20).

use super::tables::Header;
use super::{PCI_WINDOW, S5, put};

/// An AML encoder over a fixed buffer; it stops for good at the first byte that does not fit.
struct Aml<'a> {
    buffer: &'a mut [u8],
    at: usize,
}

const NAME_OP: u8 = 0x08;
const BYTE_PREFIX: u8 = 0x0A;
const DWORD_PREFIX: u8 = 0x0C;
const SCOPE_OP: u8 = 0x10;
const BUFFER_OP: u8 = 0x11;
const PACKAGE_OP: u8 = 0x12;
const DEVICE_OP: [u8; 2] = [0x5B, 0x82];

impl Aml<'_> {
    fn raw(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.at.checked_add(bytes.len())?;
        self.buffer.get_mut(self.at..end)?.copy_from_slice(bytes);
        self.at = end;
        Some(())
    }

    /// An opcode, a package length and what that length counts. Lengths have two bytes throughout: none of the
    /// objects here reaches 4 KiB, and a second byte is allowed where one would do (20.2.4).
    fn block(&mut self, opcode: &[u8], fill: impl FnOnce(&mut Self) -> Option<()>) -> Option<()> {
        self.raw(opcode)?;
        let start = self.at;
        self.raw(&[0, 0])?;
        fill(self)?;
        let length = u16::try_from(self.at.checked_sub(start)?).ok().filter(|&length| length < 0x1000)?;
        let encoded = [0x40 | (length & 0xF) as u8, length.wrapping_shr(4) as u8];
        put(self.buffer, start, &encoded)
    }

    fn scope(&mut self, name: &[u8], fill: impl FnOnce(&mut Self) -> Option<()>) -> Option<()> {
        self.block(&[SCOPE_OP], |aml| {
            aml.raw(name)?;
            fill(aml)
        })
    }

    fn device(&mut self, name: &[u8; 4], fill: impl FnOnce(&mut Self) -> Option<()>) -> Option<()> {
        self.block(&DEVICE_OP, |aml| {
            aml.raw(name)?;
            fill(aml)
        })
    }

    fn name(&mut self, name: &[u8; 4]) -> Option<()> {
        self.raw(&[NAME_OP])?;
        self.raw(name)
    }

    fn byte(&mut self, value: u8) -> Option<()> {
        match value {
            0 | 1 => self.raw(&[value]),
            _ => self.raw(&[BYTE_PREFIX, value]),
        }
    }

    /// `Name (name, EisaId (…))`.
    fn eisa_id(&mut self, name: &[u8; 4], id: [u8; 4]) -> Option<()> {
        self.name(name)?;
        self.raw(&[DWORD_PREFIX])?;
        self.raw(&id)
    }

    fn named_byte(&mut self, name: &[u8; 4], value: u8) -> Option<()> {
        self.name(name)?;
        self.byte(value)
    }

    /// `Name (_CRS, ResourceTemplate () {…})`.
    fn resources(&mut self, resources: &[&[u8]]) -> Option<()> {
        /// End tag; a zero checksum says that there is none.
        const END: [u8; 2] = [0x79, 0];
        let length = resources.iter().map(|resource| resource.len()).sum::<usize>().checked_add(END.len())?;
        self.name(b"_CRS")?;
        self.block(&[BUFFER_OP], |aml| {
            aml.raw(&[BYTE_PREFIX, u8::try_from(length).ok()?])?;
            for resource in resources {
                aml.raw(resource)?;
            }
            aml.raw(&END)
        })
    }
}

/// "PNP" as three five-bit letters, then the product number, big-endian (6.1.5).
const fn pnp(product: u16) -> [u8; 4] {
    let [high, low] = product.to_be_bytes();
    [0x41, 0xD0, high, low]
}

/// I/O port descriptor: 16-bit decode, fixed (6.4.2.5).
const fn io(port: u16, count: u8) -> [u8; 8] {
    let [low, high] = port.to_le_bytes();
    [0x47, 0x01, low, high, low, high, 1, count]
}

/// Extended interrupt descriptor: consumer, edge, active high, exclusive (6.4.3.6).
const fn interrupt(gsi: u32) -> [u8; 9] {
    let [a, b, c, d] = gsi.to_le_bytes();
    [0x89, 6, 0, 0b0011, 1, a, b, c, d]
}

/// Word address space descriptor for bus 0: producer, minimum and maximum fixed (6.4.3.5.3).
const BUS_0: [u8; 16] = [0x88, 13, 0, 2, 0x0C, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Dword address space descriptor for memory, writable, not cacheable (6.4.3.5.2).
fn memory_window() -> Option<[u8; 26]> {
    let mut bytes = [0; 26];
    put(&mut bytes, 0, &[0x87_u8, 23, 0, 0, 0x0C, 1])?;
    let last = PCI_WINDOW.end.checked_sub(1)?;
    for (at, value) in
        [(10, PCI_WINDOW.start), (14, last), (22, PCI_WINDOW.end.checked_sub(PCI_WINDOW.start)?)]
    {
        put(&mut bytes, at, &u32::try_from(value).ok()?.to_le_bytes())?;
    }
    Some(bytes)
}

/// Writes the DSDT's AML after its header; the table's length.
pub fn dsdt(table: &mut [u8]) -> Option<usize> {
    const PCI_EXPRESS_ROOT: [u8; 4] = pnp(0x0A08);
    const PCI_ROOT: [u8; 4] = pnp(0x0A03);
    const UART_16550: [u8; 4] = pnp(0x0501);
    const CONFIG_PORT: u16 = 0xCF8;
    const COM1_PORT: u16 = 0x3F8;
    const CMOS_CLOCK: [u8; 4] = pnp(0x0B00);
    const CMOS_PORT: u16 = 0x70;
    const COM1_GSI: u32 = 4;

    let mut aml = Aml { buffer: table, at: size_of::<Header>() };
    aml.scope(b"\\_SB_", |aml| {
        aml.device(b"PCI0", |aml| {
            aml.eisa_id(b"_HID", PCI_EXPRESS_ROOT)?;
            aml.eisa_id(b"_CID", PCI_ROOT)?;
            aml.named_byte(b"_UID", 0)?;
            aml.named_byte(b"_SEG", 0)?;
            aml.named_byte(b"_BBN", 0)?;
            aml.resources(&[&BUS_0, &io(CONFIG_PORT, 8), &memory_window()?])
        })?;
        aml.device(b"COM1", |aml| {
            aml.eisa_id(b"_HID", UART_16550)?;
            aml.named_byte(b"_UID", 0)?;
            aml.resources(&[&io(COM1_PORT, 8), &interrupt(COM1_GSI)])
        })?;
        // Without an interrupt: it tells the time, and has no alarm.
        aml.device(b"RTC0", |aml| {
            aml.eisa_id(b"_HID", CMOS_CLOCK)?;
            aml.named_byte(b"_UID", 0)?;
            aml.resources(&[&io(CMOS_PORT, 2)])
        })
    })?;
    aml.name(b"_S5_")?;
    aml.block(&[PACKAGE_OP], |aml| {
        aml.raw(&[4])?;
        for value in [S5, 0, 0, 0] {
            aml.byte(value)?;
        }
        Some(())
    })?;
    Some(aml.at)
}

//! Configuration space of a type 0 function: bytes, and which of their bits a guest may write.

/// The part of configuration space that exists; the rest of 4 KiB reads as zero (no extended capabilities).
const BYTES: usize = 256;

const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_WRITABLE: [u8; 2] = [0b0000_0110, 0b0000_0100]; // memory space, bus master; INTx disable
const STATUS_CAPABILITIES: u8 = 1 << 4;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;

/// What a function says that it is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass, programming interface.
    pub class: u32,
    /// Subsystem vendor and device.
    pub subsystem: (u16, u16),
}

/// A capability: identifier and body after the next pointer, with the writable bits of the body.
#[derive(Clone, Debug)]
pub struct Capability {
    /// PCI capability identifier.
    pub id: u8,
    /// Everything after identifier and next pointer.
    pub body: Vec<u8>,
    /// Writable bits of `body`; short means the rest is read-only.
    pub writable: Vec<u8>,
}

/// Configuration space.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; BYTES],
    writable: [u8; BYTES],
    next_capability: usize,
    last_pointer: usize,
    bar_bytes: u32,
}

impl ConfigSpace {
    /// A function without BARs or capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; BYTES],
            writable: [0; BYTES],
            next_capability: FIRST_CAPABILITY,
            last_pointer: CAPABILITIES,
            bar_bytes: 0,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(0x08, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        space.put(0x2c, &identity.subsystem.0.to_le_bytes());
        space.put(0x2e, &identity.subsystem.1.to_le_bytes());
        space.writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_WRITABLE);
        space.writable[INTERRUPT_LINE] = 0xff;
        space
    }

    /// BAR 0: 32-bit memory of `bytes` (a power of two) at `address`, enabled.
    pub fn with_memory_bar(mut self, address: u32, bytes: u32) -> Self {
        debug_assert!(bytes.is_power_of_two() && address.is_multiple_of(bytes));
        self.put(BAR0, &address.to_le_bytes());
        self.writable[BAR0..BAR0 + 4].copy_from_slice(&(!(bytes - 1)).to_le_bytes());
        self.bytes[COMMAND] |= COMMAND_MEMORY;
        self.bar_bytes = bytes;
        self
    }

    /// Appends a capability; returns where its body starts.
    #[expect(clippy::indexing_slicing, reason = "places that the device lays out, before a guest runs")]
    pub fn add_capability(&mut self, capability: &Capability) -> u16 {
        let at = self.next_capability;
        self.bytes[COMMAND + 2] |= STATUS_CAPABILITIES;
        self.bytes[self.last_pointer] = at as u8;
        self.bytes[at] = capability.id;
        self.put(at + 2, &capability.body);
        self.writable[at + 2..at + 2 + capability.writable.len()].copy_from_slice(&capability.writable);
        self.last_pointer = at + 1;
        self.next_capability = (at + 2 + capability.body.len()).next_multiple_of(4);
        (at + 2) as u16
    }

    /// For the device itself, at places that it laid out.
    #[expect(clippy::indexing_slicing, reason = "places that the device lays out, before a guest runs")]
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A guest's read.
    pub fn read(&self, register: u16, data: &mut [u8]) {
        let from = self.bytes.get(usize::from(register)..).unwrap_or_default();
        data.fill(0);
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    /// A guest's write: only writable bits change.
    pub fn write(&mut self, register: u16, data: &[u8]) {
        let at = usize::from(register);
        let bytes = self.bytes.iter_mut().zip(self.writable).skip(at);
        for ((byte, writable), value) in bytes.zip(data) {
            *byte = *byte & !writable | value & writable;
        }
    }

    /// Where BAR 0 is, if there is one and memory is enabled.
    pub fn bar(&self) -> Option<std::ops::Range<u64>> {
        let mut address = [0; 4];
        self.read(BAR0 as u16, &mut address);
        let start = u64::from(u32::from_le_bytes(address) & !0xf);
        let enabled = self.bytes[COMMAND] & COMMAND_MEMORY != 0 && self.bar_bytes != 0;
        enabled.then_some(start..start + u64::from(self.bar_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let identity = Identity { vendor: 1, device: 2, revision: 3, class: 0x01_0203, subsystem: (4, 5) };
        ConfigSpace::new(identity).with_memory_bar(0xc000_0000, 0x8000)
    }

    fn u32_at(space: &ConfigSpace, register: u16) -> u32 {
        let mut data = [0; 4];
        space.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_bar_shows_its_size_and_moves() {
        let mut space = space();
        assert_eq!(space.bar(), Some(0xc000_0000..0xc000_8000));
        space.write(0x10, &[0xff; 4]);
        assert_eq!(u32_at(&space, 0x10), 0xffff_8000);
        space.write(0x10, &0xd123_8000u32.to_le_bytes());
        assert_eq!(space.bar(), Some(0xd123_8000..0xd124_0000));
        space.write(0x04, &[0, 0]);
        assert_eq!(space.bar(), None);
    }

    #[test]
    fn read_only_bits_stay() {
        let mut space = space();
        for register in (0..4096).step_by(4) {
            space.write(register, &[0xff; 4]);
        }
        assert_eq!(u32_at(&space, 0), 0x0002_0001);
        assert_eq!(u32_at(&space, 8), 0x0102_0303);
        assert_eq!(u32_at(&space, 4), 0x0000_0406);
        assert_eq!(u32_at(&space, 0xffc), 0);
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut space = space();
        let capability = |id, len| Capability { id, body: vec![id; len], writable: vec![0x0f] };
        let first = space.add_capability(&capability(0x11, 10));
        let second = space.add_capability(&capability(0x09, 15));
        assert_eq!(u32_at(&space, 0x34) & 0xff, u32::from(first) - 2);
        assert_eq!(u32_at(&space, first - 2) & 0xffff, u32::from(second - 2) << 8 | 0x11);
        assert_eq!(u32_at(&space, second - 2) & 0xffff, 0x0009);
        space.write(second, &[0xff, 0xff]);
        assert_eq!(u32_at(&space, second - 2) >> 16, 0x090f);
    }
}

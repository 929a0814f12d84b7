//! fw_cfg: how the firmware asks for kernel, initrd, command line and memory map (QEMU `docs/specs/fw_cfg.rst`).
//!
//! The guest trusts nothing of it: the firmware checks hashes and ranges.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::byteorder::little_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::config::{Kernel, VmConfig};
use crate::memory::{DeviceMemory, ram_ranges};
use crate::output::GuestLog;

mod key {
    pub const SIGNATURE: u16 = 0x00;
    pub const ID: u16 = 0x01;
    pub const RAM_SIZE: u16 = 0x03;
    pub const CPUS: u16 = 0x05;
    pub const KERNEL_SIZE: u16 = 0x08;
    pub const INITRD_SIZE: u16 = 0x0b;
    pub const CPUS_MAX: u16 = 0x0f;
    pub const KERNEL_DATA: u16 = 0x11;
    pub const INITRD_DATA: u16 = 0x12;
    pub const CMDLINE_SIZE: u16 = 0x14;
    pub const CMDLINE_DATA: u16 = 0x15;
    pub const SETUP_SIZE: u16 = 0x17;
    pub const SETUP_DATA: u16 = 0x18;
    pub const FILE_DIR: u16 = 0x19;
    pub const FILE_FIRST: u16 = 0x20;
}

/// Traditional and DMA interface.
const ID_FEATURES: u32 = 0b11;
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";

const DMA_ERROR: u32 = 1 << 0;
const DMA_READ: u32 = 1 << 1;
const DMA_SKIP: u32 = 1 << 2;
const DMA_SELECT: u32 = 1 << 3;
const DMA_WRITE: u32 = 1 << 4;

const E820_RAM: u32 = 1;

/// FWCfgDmaAccess.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DmaAccess {
    control: U32,
    length: U32,
    address: U64,
}
const _: () = assert!(size_of::<DmaAccess>() == 16);

/// FWCfgFile.
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FileEntry {
    size: U32,
    select: U16,
    reserved: U16,
    name: [u8; 56],
}
const _: () = assert!(size_of::<FileEntry>() == 64);

/// An entry of `etc/e820`.
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct E820Entry {
    address: little_endian::U64,
    length: little_endian::U64,
    kind: little_endian::U32,
}
const _: () = assert!(size_of::<E820Entry>() == 20);

/// The bytes behind a key. Kernel and initrd are not copied.
enum Item {
    Bytes(Vec<u8>),
    Kernel(Arc<Kernel>, Range<usize>),
    Initrd(Arc<Kernel>),
}

impl Item {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Kernel(kernel, range) => kernel.image.get(range.clone()).unwrap_or_default(),
            Self::Initrd(kernel) => kernel.initrd.as_deref().unwrap_or_default(),
        }
    }
}

/// The device.
pub struct FwCfg {
    items: BTreeMap<u16, Item>,
    memory: DeviceMemory,
    selected: u16,
    offset: usize,
    dma_address: [u8; 8],
    log: GuestLog,
}

impl FwCfg {
    /// What the firmware needs to boot `config`.
    pub fn new(config: &VmConfig, memory: DeviceMemory) -> Self {
        let mut items = BTreeMap::new();
        let mut bytes = |key: u16, bytes: &[u8]| items.insert(key, Item::Bytes(bytes.to_vec()));
        bytes(key::SIGNATURE, b"QEMU");
        bytes(key::ID, &ID_FEATURES.to_le_bytes());
        bytes(key::RAM_SIZE, &config.memory.to_le_bytes());
        // Bounded by the configuration to what fits 16 bits.
        let cpus = (config.cpus as u16).to_le_bytes();
        bytes(key::CPUS, &cpus);
        bytes(key::CPUS_MAX, &cpus);
        let mut fw_cfg =
            Self { items, memory, selected: 0, offset: 0, dma_address: [0; 8], log: GuestLog::new("fw_cfg") };
        fw_cfg.add_kernel(config.kernel.as_ref());
        fw_cfg.add_files(&[("etc/e820", e820(config.memory))]);
        fw_cfg
    }

    fn add_kernel(&mut self, kernel: Option<&Arc<Kernel>>) {
        let (mut setup, mut rest, mut initrd, mut cmdline) = (0, 0, 0, Vec::new());
        if let Some(kernel) = kernel {
            let split = kernel.setup_len();
            let len = kernel.image.len();
            (setup, rest) = (split, len.saturating_sub(split));
            self.items.insert(key::SETUP_DATA, Item::Kernel(kernel.clone(), 0..split));
            self.items.insert(key::KERNEL_DATA, Item::Kernel(kernel.clone(), split..len));
            initrd = kernel.initrd.as_ref().map_or(0, Vec::len);
            self.items.insert(key::INITRD_DATA, Item::Initrd(kernel.clone()));
            cmdline = kernel.cmdline.bytes().chain([0]).collect();
        }
        for (key, size) in [
            (key::SETUP_SIZE, setup),
            (key::KERNEL_SIZE, rest),
            (key::INITRD_SIZE, initrd),
            (key::CMDLINE_SIZE, cmdline.len()),
        ] {
            let size = u32::try_from(size).unwrap_or(u32::MAX);
            self.items.insert(key, Item::Bytes(size.to_le_bytes().to_vec()));
        }
        self.items.insert(key::CMDLINE_DATA, Item::Bytes(cmdline));
    }

    fn add_files(&mut self, files: &[(&str, Vec<u8>)]) {
        let mut directory = (files.len() as u32).to_be_bytes().to_vec();
        for (select, (name, bytes)) in (key::FILE_FIRST..).zip(files) {
            let mut entry = FileEntry {
                size: (bytes.len() as u32).into(),
                select: select.into(),
                reserved: 0.into(),
                name: [0; 56],
            };
            entry.name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
            directory.extend(entry.as_bytes());
            self.items.insert(select, Item::Bytes(bytes.clone()));
        }
        self.items.insert(key::FILE_DIR, Item::Bytes(directory));
    }

    /// What is left of the selected item.
    fn rest(&self) -> &[u8] {
        self.items.get(&self.selected).and_then(|item| item.bytes().get(self.offset..)).unwrap_or_default()
    }

    fn select_key(&mut self, key: u16) {
        (self.selected, self.offset) = (key, 0);
    }

    /// A write to the selector port.
    pub fn select(&mut self, data: &[u8]) {
        match *data {
            [low, high] => self.select_key(u16::from_le_bytes([low, high])),
            [low] => self.select_key(u16::from(low)),
            _ => {}
        }
    }

    /// Reads from the data port; zeros after the end.
    pub fn read_data(&mut self, data: &mut [u8]) {
        data.fill(0);
        data.iter_mut().zip(self.rest()).for_each(|(to, from)| *to = *from);
        self.offset = self.offset.saturating_add(data.len());
    }

    /// Reads from the DMA address register.
    pub fn read_dma_signature(offset: usize, data: &mut [u8]) {
        data.fill(0);
        data.iter_mut().zip(DMA_SIGNATURE.iter().skip(offset)).for_each(|(to, from)| *to = *from);
    }

    /// Writes to the DMA address register, big-endian; its last byte starts the operation.
    pub fn write_dma_address(&mut self, offset: usize, data: &[u8]) {
        self.dma_address.iter_mut().skip(offset).zip(data).for_each(|(to, from)| *to = *from);
        if offset.saturating_add(data.len()) >= self.dma_address.len() {
            let address = u64::from_be_bytes(std::mem::take(&mut self.dma_address));
            self.dma(GuestAddress(address));
        }
    }

    fn dma(&mut self, at: GuestAddress) {
        let mut bytes = [0; size_of::<DmaAccess>()];
        if let Err(error) = self.memory.read_slice(&mut bytes, at) {
            return self.log.warn(&format_args!("DMA command at {:#x}: {error}", at.0));
        }
        let access: DmaAccess = zerocopy::transmute!(bytes);
        let result = self.execute(&access).unwrap_or_else(|error| {
            self.log.warn(&format_args!("DMA to {:#x}: {error}", access.address.get()));
            DMA_ERROR
        });
        if let Err(error) = self.memory.write_slice(&result.to_be_bytes(), at) {
            self.log.warn(&format_args!("DMA result at {:#x}: {error}", at.0));
        }
    }

    /// Executes a command; returns the control word that the guest then reads.
    fn execute(&mut self, access: &DmaAccess) -> Result<u32, vm_memory::GuestMemoryError> {
        let (control, length) = (access.control.get(), access.length.get() as usize);
        if control & DMA_SELECT != 0 {
            self.select_key((control >> 16) as u16);
        }
        match control & (DMA_READ | DMA_SKIP | DMA_WRITE) {
            0 => {}
            DMA_SKIP => self.offset = self.offset.saturating_add(length),
            DMA_READ => {
                let address = GuestAddress(access.address.get());
                let rest = self.rest();
                let have = rest.get(..length).unwrap_or(rest);
                self.memory.write_slice(have, address)?;
                self.zero(address.0.saturating_add(have.len() as u64), length - have.len())?;
                self.offset = self.offset.saturating_add(length);
            }
            // No item is writable, and more than one operation is none.
            _ => return Ok(DMA_ERROR),
        }
        Ok(0)
    }

    /// Reads after the end of an item give zeros, however many the guest asks for.
    fn zero(&self, mut at: u64, mut len: usize) -> Result<(), vm_memory::GuestMemoryError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while len > 0 {
            let chunk = ZEROS.get(..len).unwrap_or(&ZEROS);
            self.memory.write_slice(chunk, GuestAddress(at))?;
            (at, len) = (at.saturating_add(chunk.len() as u64), len - chunk.len());
        }
        Ok(())
    }
}

fn e820(memory: u64) -> Vec<u8> {
    let entry = |range: &Range<u64>| E820Entry {
        address: range.start.into(),
        length: (range.end - range.start).into(),
        kind: E820_RAM.into(),
    };
    ram_ranges(memory).iter().flat_map(|range| entry(range).as_bytes().to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{SharedPages, map_ram};

    const KERNEL: usize = 1024 + 512;

    fn device(shared: Option<Range<u64>>) -> FwCfg {
        let ranges = ram_ranges(1 << 20);
        let ram = map_ram(&ranges).unwrap();
        let memory = match shared {
            None => DeviceMemory::plain(ram),
            Some(range) => {
                let pages = Arc::new(SharedPages::new(&ranges));
                pages.set(range, true);
                DeviceMemory::confidential(ram, pages)
            }
        };
        let mut image = vec![7; KERNEL];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        let kernel = Kernel { image, initrd: Some(vec![9; 10_000]), cmdline: "quiet".into() };
        let mut fw_cfg = FwCfg {
            items: BTreeMap::new(),
            memory,
            selected: 0,
            offset: 0,
            dma_address: [0; 8],
            log: GuestLog::new("fw_cfg"),
        };
        fw_cfg.items.insert(key::SIGNATURE, Item::Bytes(b"QEMU".to_vec()));
        fw_cfg.add_kernel(Some(&Arc::new(kernel)));
        fw_cfg.add_files(&[("etc/e820", e820(5 << 30))]);
        fw_cfg
    }

    fn read(fw_cfg: &mut FwCfg, key: u16, len: usize) -> Vec<u8> {
        let mut data = vec![0xff; len];
        fw_cfg.select(&key.to_le_bytes());
        // In two reads, as the offset must carry over.
        let (first, second) = data.split_at_mut(len / 2);
        fw_cfg.read_data(first);
        fw_cfg.read_data(second);
        data
    }

    /// Runs a DMA command at 0x1000; returns its control word afterwards.
    fn dma(fw_cfg: &mut FwCfg, control: u32, length: u32, address: u64) -> u32 {
        let access = DmaAccess { control: control.into(), length: length.into(), address: address.into() };
        fw_cfg.memory.write_slice(access.as_bytes(), GuestAddress(0x1000)).unwrap();
        fw_cfg.write_dma_address(0, &[0; 4]);
        fw_cfg.write_dma_address(4, &0x1000u32.to_be_bytes());
        u32::from_be(fw_cfg.memory.read_obj(GuestAddress(0x1000)).unwrap())
    }

    #[test]
    fn a_bzimage_is_split_where_its_setup_ends() {
        let mut fw_cfg = device(None);
        assert_eq!(read(&mut fw_cfg, 0x17, 4), 1024u32.to_le_bytes());
        assert_eq!(read(&mut fw_cfg, 0x08, 4), 512u32.to_le_bytes());
        assert_eq!(read(&mut fw_cfg, 0x0b, 4), 10_000u32.to_le_bytes());
        assert_eq!(read(&mut fw_cfg, 0x14, 4), 6u32.to_le_bytes());
        assert_eq!(read(&mut fw_cfg, 0x15, 8), b"quiet\0\0\0");
        assert_eq!(read(&mut fw_cfg, 0x18, 0x206)[0x202..], *b"HdrS");
        assert_eq!(read(&mut fw_cfg, 0x4242, 4), [0; 4], "unknown keys are empty");
    }

    #[test]
    fn the_memory_map_is_a_file() {
        let mut fw_cfg = device(None);
        let directory = read(&mut fw_cfg, 0x19, 68);
        assert_eq!(directory[..4], 1u32.to_be_bytes());
        assert_eq!(directory[4..8], 40u32.to_be_bytes());
        assert_eq!(directory[12..21], *b"etc/e820\0");
        let map = read(&mut fw_cfg, u16::from_be_bytes([directory[8], directory[9]]), 40);
        let u64_at = |at: usize| u64::from_le_bytes(map[at..at + 8].try_into().unwrap());
        assert_eq!((u64_at(0), u64_at(8)), (0, 3 << 30));
        assert_eq!((u64_at(20), u64_at(28)), (4 << 30, 2 << 30));
        assert_eq!((map[16], map[36]), (1, 1));
    }

    #[test]
    fn dma_reads_skips_and_pads() {
        let mut fw_cfg = device(None);
        let select = |key: u32| key << 16 | DMA_SELECT;
        assert_eq!(dma(&mut fw_cfg, select(0x11) | DMA_READ, 600, 0x2000), 0);
        let mut data = [1; 601];
        fw_cfg.memory.read_slice(&mut data, GuestAddress(0x2000)).unwrap();
        assert!(data[..512].iter().all(|&b| b == 7) && data[512..].iter().all(|&b| b == 0));
        assert_eq!(dma(&mut fw_cfg, select(0x15) | DMA_SKIP, 2, 0), 0);
        assert_eq!(dma(&mut fw_cfg, DMA_READ, 2, 0x2000), 0);
        assert_eq!(fw_cfg.memory.read_obj::<[u8; 2]>(GuestAddress(0x2000)).unwrap(), *b"ie");
    }

    #[test]
    fn dma_refuses_writes_and_memory_that_is_not_shared() {
        let mut fw_cfg = device(Some(0x1000..0x3000));
        let select = 0x12 << 16 | DMA_SELECT;
        assert_eq!(dma(&mut fw_cfg, select | DMA_WRITE, 4, 0x2000), DMA_ERROR);
        assert_eq!(dma(&mut fw_cfg, select | DMA_READ | DMA_SKIP, 4, 0x2000), DMA_ERROR);
        assert_eq!(dma(&mut fw_cfg, select | DMA_READ, 0x1000, 0x2000), 0);
        for (length, address) in [(0x1001, 0x2000), (4, 0x3000), (4, 0), (4, u64::MAX), (u32::MAX, 0x2000)] {
            assert_eq!(dma(&mut fw_cfg, select | DMA_READ, length, address), DMA_ERROR, "{address:#x}");
        }
        // A command block outside of shared memory is ignored.
        fw_cfg.write_dma_address(0, &[0xff; 8]);
    }
}

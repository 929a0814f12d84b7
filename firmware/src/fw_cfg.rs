//! fw_cfg by DMA: every byte arrives in the shared bounce buffer and is copied out once.
//!
//! QEMU, docs/specs/fw_cfg.rst. Selectors and sizes are the host's word; contents are checked by whoever asked for them.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::layout::{BOUNCE, PAGE, Range};
use crate::machine::{Machine, Width};
use crate::termination::{Stop, TerminationReason};
use crate::trust::Hash;

/// A selector key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub u16);

impl Key {
    /// Bytes of RAM.
    pub const RAM_SIZE: Self = Self(0x03);
    /// Number of processors.
    pub const CPU_COUNT: Self = Self(0x05);
    /// Size of the kernel without its setup part.
    pub const KERNEL_SIZE: Self = Self(0x08);
    /// Size of the initrd.
    pub const INITRD_SIZE: Self = Self(0x0B);
    /// Kernel without its setup part.
    pub const KERNEL_DATA: Self = Self(0x11);
    /// Initrd.
    pub const INITRD_DATA: Self = Self(0x12);
    /// Size of the command line with its NUL.
    pub const CMDLINE_SIZE: Self = Self(0x14);
    /// Command line.
    pub const CMDLINE_DATA: Self = Self(0x15);
    /// Size of the setup part.
    pub const SETUP_SIZE: Self = Self(0x17);
    /// Setup part: the real-mode sectors of a bzImage.
    pub const SETUP_DATA: Self = Self(0x18);
    const SIGNATURE: Self = Self(0x00);
    const FEATURES: Self = Self(0x01);
    const DIRECTORY: Self = Self(0x19);
}

const SELECTOR_PORT: u16 = 0x510;
const DATA_PORT: u16 = 0x511;
const DMA_PORT_HIGH: u16 = 0x514;
const DMA_PORT_LOW: u16 = 0x518;
const FEATURE_DMA: u32 = 1 << 1;

const DMA_ERROR: u32 = 1 << 0;
const DMA_READ: u32 = 1 << 1;
const DMA_SELECT: u32 = 1 << 3;

/// How often a transfer's end is looked for. Hosts finish it before the port write returns.
const POLLS: u32 = 1 << 20;
/// Files that a directory may list: more than any host has.
const FILES_MAX: u32 = 1024;

/// Descriptor of one transfer, in the first page of the bounce buffer.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DmaAccess {
    control: U32,
    length: U32,
    address: U64,
}
const _: () = assert!(size_of::<DmaAccess>() == 16);

/// Entry of the file directory.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FileEntry {
    size: U32,
    select: U16,
    reserved: U16,
    name: [u8; 56],
}
const _: () = assert!(size_of::<FileEntry>() == 64);

/// Where data arrives: after the descriptor's page.
const DATA_OFFSET: usize = PAGE as usize;
/// Bytes of one transfer at most.
const CHUNK: usize = (BOUNCE.end - BOUNCE.start - PAGE) as usize;

const fn failed(detail: &'static str) -> Stop {
    Stop::because(TerminationReason::FwCfgFailed, detail)
}

/// An fw_cfg that said it does DMA.
pub struct FwCfg(());

impl FwCfg {
    /// Looks for the device.
    pub fn open<M: Machine>(machine: &mut M) -> Result<Self, Stop> {
        machine.write_port(SELECTOR_PORT, Width::Word, u32::from(Key::SIGNATURE.0))?;
        for expected in *b"QEMU" {
            if machine.read_port(DATA_PORT, Width::Byte)? != u32::from(expected) {
                return Err(failed("no fw_cfg"));
            }
        }
        machine.write_port(SELECTOR_PORT, Width::Word, u32::from(Key::FEATURES.0))?;
        let features = machine.read_port(DATA_PORT, Width::Byte)?;
        if features & FEATURE_DMA == 0 {
            return Err(failed("fw_cfg without DMA"));
        }
        Ok(Self(()))
    }

    /// Reads an item from its start into private memory.
    pub fn read<M: Machine>(&self, machine: &mut M, key: Key, into: &mut [u8]) -> Result<(), Stop> {
        let mut select = Some(key);
        for chunk in into.chunks_mut(CHUNK) {
            Self::transfer(machine, select.take(), chunk.len())?;
            machine.unshare(DATA_OFFSET, chunk)?;
        }
        Ok(())
    }

    /// A little-endian 16-bit item.
    pub fn read_u16<M: Machine>(&self, machine: &mut M, key: Key) -> Result<u16, Stop> {
        let mut bytes = [0; 2];
        self.read(machine, key, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// A little-endian 32-bit item.
    pub fn read_u32<M: Machine>(&self, machine: &mut M, key: Key) -> Result<u32, Stop> {
        let mut bytes = [0; 4];
        self.read(machine, key, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// A little-endian 64-bit item.
    pub fn read_u64<M: Machine>(&self, machine: &mut M, key: Key) -> Result<u64, Stop> {
        let mut bytes = [0; 8];
        self.read(machine, key, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads an item into RAM and adds the private copy to a hash: what is hashed is what stays in memory.
    pub fn load<M: Machine>(
        &self,
        machine: &mut M,
        key: Key,
        to: Range,
        hash: &mut Hash,
    ) -> Result<(), Stop> {
        let mut select = Some(key);
        let mut at = to.start;
        while at < to.end {
            let length = to.end.saturating_sub(at).min(CHUNK as u64);
            let next = at.saturating_add(length);
            Self::transfer(machine, select.take(), length as usize)?;
            machine.unshare_to_ram(DATA_OFFSET, Range::new(at, next))?;
            hash.update(machine.ram(Range::new(at, next))?);
            at = next;
        }
        Ok(())
    }

    /// Finds a named file: its key and size.
    pub fn file<M: Machine>(&self, machine: &mut M, name: &str) -> Result<Option<(Key, u32)>, Stop> {
        let mut count = [0; 4];
        self.read(machine, Key::DIRECTORY, &mut count)?;
        let count = u32::from_be_bytes(count);
        if count > FILES_MAX {
            return Err(failed("fw_cfg lists too many files"));
        }
        for _ in 0..count {
            let mut bytes = [0; size_of::<FileEntry>()];
            Self::transfer(machine, None, bytes.len())?;
            machine.unshare(DATA_OFFSET, &mut bytes)?;
            let entry: FileEntry = zerocopy::transmute!(bytes);
            let length = entry.name.iter().position(|&b| b == 0).unwrap_or(entry.name.len());
            if entry.name.get(..length) == Some(name.as_bytes()) {
                return Ok(Some((Key(entry.select.get()), entry.size.get())));
            }
        }
        Ok(None)
    }

    /// One transfer of at most [`CHUNK`] bytes into the bounce buffer, from the item's start if it is selected anew.
    fn transfer<M: Machine>(machine: &mut M, select: Option<Key>, length: usize) -> Result<(), Stop> {
        let select = select.map_or(0, |key| DMA_SELECT | u32::from(key.0).wrapping_shl(16));
        let access = DmaAccess {
            control: U32::new(DMA_READ | select),
            length: U32::new(u32::try_from(length).map_err(|_| failed("transfer too long"))?),
            address: U64::new(BOUNCE.start.saturating_add(PAGE)),
        };
        machine.share(0, access.as_bytes())?;
        // The descriptor is below 4 GiB, so the high half is zero in either byte order.
        machine.write_port(DMA_PORT_HIGH, Width::Dword, 0)?;
        machine.write_port(DMA_PORT_LOW, Width::Dword, (BOUNCE.start as u32).swap_bytes())?;
        for _ in 0..POLLS {
            let mut control = [0; 4];
            machine.unshare(0, &mut control)?;
            match u32::from_be_bytes(control) {
                0 => return Ok(()),
                control if control & DMA_ERROR != 0 => return Err(failed("fw_cfg transfer failed")),
                _ => {}
            }
        }
        Err(failed("fw_cfg transfer does not end"))
    }
}

//! The kernel image: what its headers ask for, checked. Linux, Documentation/arch/x86/boot.rst.
//!
//! Headers are read from the private copy, but before its hash is complete: a hostile host may have written them.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bytes;
use crate::layout::{HIGH_RAM_START, Range};
use crate::placement::FreeRam;
use crate::termination::{Stop, TerminationReason};

const fn unusable(detail: &'static str) -> Stop {
    Stop::because(TerminationReason::KernelUnusable, detail)
}

/// Offset of the setup header in the setup part and in `boot_params`.
pub const SETUP_HEADER: usize = 0x1F1;

/// `struct setup_header`, protocol 2.12 and later.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SetupHeader {
    /// Sectors of the setup part less one.
    pub setup_sects: u8,
    root_flags: U16,
    syssize: U32,
    ram_size: U16,
    /// Video mode.
    pub vid_mode: U16,
    root_dev: U16,
    /// 0xAA55.
    pub boot_flag: U16,
    /// Jump instruction; its second byte tells where the header ends.
    pub jump: [u8; 2],
    /// "HdrS".
    pub header: [u8; 4],
    /// Boot protocol version.
    pub version: U16,
    realmode_switch: U32,
    start_sys_seg: U16,
    kernel_version: U16,
    /// Boot loader.
    pub type_of_loader: u8,
    /// Flags of the load.
    pub loadflags: u8,
    setup_move_size: U16,
    code32_start: U32,
    /// Address of the initrd.
    pub ramdisk_image: U32,
    /// Size of the initrd.
    pub ramdisk_size: U32,
    bootsect_kludge: U32,
    heap_end_ptr: U16,
    ext_loader_ver: u8,
    ext_loader_type: u8,
    /// Address of the command line.
    pub cmd_line_ptr: U32,
    /// Highest address of the initrd's last byte.
    pub initrd_addr_max: U32,
    kernel_alignment: U32,
    relocatable_kernel: u8,
    min_alignment: u8,
    xloadflags: U16,
    cmdline_size: U32,
    hardware_subarch: U32,
    hardware_subarch_data: U64,
    payload_offset: U32,
    payload_length: U32,
    /// First node of the setup_data list.
    pub setup_data: U64,
    pref_address: U64,
    init_size: U32,
    handover_offset: U32,
    kernel_info_offset: U32,
}
const _: () = assert!(size_of::<SetupHeader>() == 0x26C - SETUP_HEADER);

const BOOT_FLAG: u16 = 0xAA55;
const MAGIC: [u8; 4] = *b"HdrS";
const VERSION_MIN: u16 = 0x020C;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry point from the load address.
const ENTRY_64: u64 = 0x200;

/// How a kernel will be started.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The header to hand on, with this firmware's fields not yet set.
    pub header: SetupHeader,
    /// Where the kernel file's part after the setup part goes.
    pub image: Range,
    /// First address that the initrd must stay below.
    pub initrd_limit: u64,
    /// RAM that the kernel needs before it reads its memory map.
    pub footprint: Range,
    /// Bytes of command line that it takes, without the NUL.
    pub cmdline_max: u64,
}

/// Plans the start of a bzImage from its setup part.
pub fn plan_bzimage(setup: &[u8], image_size: u64, free: &FreeRam) -> Result<Plan, Stop> {
    let header: SetupHeader =
        bytes::read(setup, SETUP_HEADER).ok_or(unusable("kernel's setup part is short"))?;
    if header.boot_flag.get() != BOOT_FLAG || header.header != MAGIC {
        return Err(unusable("kernel is no bzImage"));
    }
    if header.version.get() < VERSION_MIN
        || header.loadflags & LOADED_HIGH == 0
        || header.xloadflags.get() & XLF_KERNEL_64 == 0
    {
        return Err(unusable("kernel has no 64-bit entry point"));
    }
    let sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    if setup.len() as u64 != sectors.saturating_add(1).saturating_mul(512) {
        return Err(unusable("kernel's setup part has another size than it says"));
    }
    let (start, alignment) = (header.pref_address.get(), u64::from(header.kernel_alignment.get()));
    if !alignment.is_power_of_two() || start & alignment.wrapping_sub(1) != 0 || start < HIGH_RAM_START {
        return Err(unusable("kernel wants to be loaded where it cannot be"));
    }
    let init_size = u64::from(header.init_size.get());
    if image_size <= ENTRY_64 || init_size < image_size {
        return Err(unusable("kernel's size and its own account of it disagree"));
    }
    // SYSSIZE counts paragraphs; a signature may follow.
    if image_size < u64::from(header.syssize.get()).saturating_mul(16) {
        return Err(unusable("kernel is truncated"));
    }
    let range = |size: u64| start.checked_add(size).map(|end| Range::new(start, end));
    let out_of_memory = Stop::because(TerminationReason::OutOfMemory, "RAM is too small for the kernel");
    let footprint = range(init_size).filter(|r| free.range().contains(r)).ok_or(out_of_memory)?;
    Ok(Plan {
        header,
        image: range(image_size).ok_or(out_of_memory)?,
        initrd_limit: u64::from(header.initrd_addr_max.get()).saturating_add(1),
        footprint,
        cmdline_max: u64::from(header.cmdline_size.get()),
    })
}

impl Plan {
    /// Entry point of a bzImage.
    pub fn entry(&self) -> Result<u64, Stop> {
        self.image.start.checked_add(ENTRY_64).ok_or(unusable("kernel's entry point wraps"))
    }
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ElfHeader {
    ident: [u8; 16],
    kind: U16,
    machine: U16,
    version: U32,
    entry: U64,
    phoff: U64,
    shoff: U64,
    flags: U32,
    ehsize: U16,
    phentsize: U16,
    phnum: U16,
    shentsize: U16,
    shnum: U16,
    shstrndx: U16,
}
const _: () = assert!(size_of::<ElfHeader>() == 64);

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ProgramHeader {
    kind: U32,
    flags: U32,
    offset: U64,
    vaddr: U64,
    paddr: U64,
    filesz: U64,
    memsz: U64,
    align: U64,
}
const _: () = assert!(size_of::<ProgramHeader>() == 56);

/// ELF64, little-endian, version 1.
const ELF_IDENT: [u8; 7] = [0x7F, b'E', b'L', b'F', 2, 1, 1];
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
/// Program headers that a kernel may have.
const SEGMENTS_MAX: u16 = 32;

/// A part of an ELF kernel: where it is in the file, where it goes, and how much of that is to be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// In the file.
    pub file: Range,
    /// In RAM; what the file does not fill is zero.
    pub memory: Range,
}

/// An ELF kernel (vmlinux), as its private copy says.
#[derive(Clone, Copy, Debug)]
pub struct Elf {
    /// 64-bit entry point, physical.
    pub entry: u64,
    phoff: u64,
    phnum: u16,
}

impl Elf {
    /// Reads the file header.
    pub fn parse(file: &[u8]) -> Result<Self, Stop> {
        let header: ElfHeader = bytes::read(file, 0).ok_or(unusable("kernel is neither bzImage nor ELF"))?;
        if !header.ident.starts_with(&ELF_IDENT) {
            return Err(unusable("kernel is neither bzImage nor ELF"));
        }
        if header.machine.get() != EM_X86_64
            || usize::from(header.phentsize.get()) != size_of::<ProgramHeader>()
            || header.phnum.get() > SEGMENTS_MAX
        {
            return Err(unusable("kernel is an ELF of another kind"));
        }
        Ok(Self { entry: header.entry.get(), phoff: header.phoff.get(), phnum: header.phnum.get() })
    }

    /// The n-th program header if it is to be loaded: inside the file, and into `free` RAM.
    pub fn segment(&self, file: &[u8], index: u16, free: &FreeRam) -> Result<Option<Segment>, Stop> {
        let bad = unusable("kernel has a bad program header");
        let offset =
            u64::from(index).saturating_mul(size_of::<ProgramHeader>() as u64).saturating_add(self.phoff);
        let header: ProgramHeader =
            usize::try_from(offset).ok().and_then(|at| bytes::read(file, at)).ok_or(bad)?;
        if header.kind.get() != PT_LOAD || header.memsz.get() == 0 {
            return Ok(None);
        }
        let range =
            |start: u64, length: u64| start.checked_add(length).map(|end| Range::new(start, end)).ok_or(bad);
        let segment = Segment {
            file: range(header.offset.get(), header.filesz.get())?,
            memory: range(header.paddr.get(), header.memsz.get())?,
        };
        if header.filesz.get() > header.memsz.get() || segment.file.end > file.len() as u64 {
            return Err(bad);
        }
        if !free.range().contains(&segment.memory) {
            return Err(Stop::because(TerminationReason::OutOfMemory, "RAM is too small for the kernel"));
        }
        Ok(Some(segment))
    }

    /// How many program headers there are.
    pub const fn segments(&self) -> u16 {
        self.phnum
    }
}

/// The header that a bare ELF kernel is started with: it has none of its own.
pub fn header_for_elf() -> SetupHeader {
    SetupHeader {
        boot_flag: U16::new(BOOT_FLAG),
        header: MAGIC,
        version: U16::new(0x020F),
        loadflags: LOADED_HIGH,
        ..SetupHeader::new_zeroed()
    }
}

/// Highest address that an initrd for a bare ELF kernel may end at: the kernel handles all of low memory.
pub const ELF_INITRD_LIMIT: u64 = 0x8000_0000;
/// Command line that an x86 kernel takes (COMMAND_LINE_SIZE), without the NUL.
pub const ELF_CMDLINE_MAX: u64 = 2047;

//! A machine for tests: RAM, page states as the processor keeps them, and a host that can be told to lie.

use std::collections::BTreeMap;

use cloister_attestation::measure::tdx::Rtmrs;
use sha2::{Digest, Sha256};

use crate::layout::{
    BOUNCE, CPUID, GHCB, KERNEL_HASHES, LAUNCH_STACK, LAUNCHED, LAUNCHED_TD, NOT_RAM, PAGE, RAM_ABOVE_4G,
    Range,
};
use crate::machine::{Guest, Machine, PageSize, Validation, Width};
use crate::metadata::guid;
use crate::termination::{Stop, TerminationReason};

/// What the host does wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lies {
    /// PVALIDATE of this page finds it validated.
    pub remapped: Option<u64>,
    /// PVALIDATE of this page fails with a code.
    pub broken: Option<u64>,
    /// Every large page is backed by small ones.
    pub small_pages: bool,
    /// fw_cfg transfers of this key fail.
    pub failing_key: Option<u16>,
    /// fw_cfg transfers never end.
    pub endless: bool,
    /// fw_cfg offers no DMA.
    pub no_dma: bool,
    /// This RTMR cannot be extended.
    pub stuck_rtmr: Option<u8>,
    /// There is no fw_cfg.
    pub no_fw_cfg: bool,
}

/// The machine.
pub struct Fake {
    /// RAM below 4 GiB.
    pub ram: Vec<u8>,
    /// End of RAM above 4 GiB.
    pub above_4g_end: u64,
    /// fw_cfg's items.
    pub items: BTreeMap<u16, Vec<u8>>,
    /// Lies.
    pub lies: Lies,
    /// fw_cfg transfers so far.
    pub transfers: u32,
    /// What was printed.
    pub console: String,
    /// PCI configuration writes: (address, value).
    pub config_writes: Vec<(u32, u32)>,
    /// What the configuration data port reads as.
    pub host_bridge: u32,
    /// RTMR0 to RTMR3.
    pub rtmrs: Rtmrs,
    /// MSRs that were written: (index, value).
    pub msr_writes: Vec<(u32, u64)>,
    mtrr: bool,
    private_again: Vec<Range>,
    guest: Guest,
    validated: BTreeMap<u64, u32>,
    mapped: Vec<u64>,
    shared: Vec<u8>,
    selected: (u16, usize),
    config_address: u32,
    ram_end: u64,
}

/// What the host leaves in the pages that it had.
pub const HOSTS: u8 = 0xA5;
/// Key of "etc/e820".
pub const E820_KEY: u16 = 0x25;
const DIRECTORY: u16 = 0x19;

fn directory(files: &[(&str, u16, usize)]) -> Vec<u8> {
    let mut bytes = (files.len() as u32).to_be_bytes().to_vec();
    for (name, key, size) in files {
        bytes.extend((*size as u32).to_be_bytes());
        bytes.extend(key.to_be_bytes());
        bytes.extend([0; 2]);
        bytes.extend(name.as_bytes());
        bytes.resize(bytes.len() + 56 - name.len(), 0);
    }
    bytes
}

/// An e820 map as fw_cfg tells it.
pub fn e820(entries: &[(u64, u64, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (address, length, kind) in entries {
        bytes.extend(address.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
    }
    bytes
}

/// QEMU's kernel-hashes page.
pub fn hash_page(kernel: &[u8], initrd: &[u8], cmdline: &[u8]) -> Vec<u8> {
    let mut page = guid("9438d606-4f22-4cc9-b479-a793d411fd21").0.to_vec();
    page.extend(168_u16.to_le_bytes());
    for (name, contents) in [
        ("97d02dd8-bd20-4c94-aa78-e7714d36ab2a", cmdline),
        ("44baf731-3a2f-4bd7-9af1-41e29169781d", initrd),
        ("4de79437-abd2-427f-b835-d5b172d2045b", kernel),
    ] {
        page.extend(guid(name).0);
        page.extend(50_u16.to_le_bytes());
        page.extend(Sha256::digest(contents));
    }
    page.resize(PAGE as usize, 0);
    page
}

/// A CPUID page with what must be in it, and one hypervisor-less spare leaf.
pub fn cpuid_page(c_bit: u32) -> Vec<u8> {
    let functions: [(u32, [u32; 4]); 5] = [
        (0, [0x10, 0, 0, 0]),
        (1, [0x00A1_0F11, 0, 0, 0]),
        (0x8000_0000, [0x8000_001F, 0, 0, 0]),
        (0x8000_001F, [0b1_1010, c_bit | 6 << 6, 0, 0]),
        (0x8000_0008, [48, 0, 0, 0]),
    ];
    let mut page = (functions.len() as u32).to_le_bytes().to_vec();
    page.resize(16, 0);
    for (leaf, registers) in functions {
        page.extend(leaf.to_le_bytes());
        page.extend([0; 20]);
        for register in registers {
            page.extend(register.to_le_bytes());
        }
        page.extend([0; 8]);
    }
    page.resize(PAGE as usize, 0);
    page
}

/// A bzImage's setup part and the rest, acceptable to the firmware.
pub fn bzimage(rest: usize) -> (Vec<u8>, Vec<u8>) {
    let mut setup = vec![0; 5 * 512];
    for (at, bytes) in [
        (0x1F1, &[4_u8][..]),
        (0x1F4, &(rest as u32 / 16).to_le_bytes()),
        (0x1FE, &0xAA55_u16.to_le_bytes()),
        (0x202, b"HdrS"),
        (0x206, &0x020F_u16.to_le_bytes()),
        (0x211, &[1]),
        (0x22C, &0x7FFF_FFFF_u32.to_le_bytes()),
        (0x230, &0x20_0000_u32.to_le_bytes()),
        (0x236, &1_u16.to_le_bytes()),
        (0x238, &2047_u32.to_le_bytes()),
        (0x258, &0x100_0000_u64.to_le_bytes()),
        (0x260, &0x80_0000_u32.to_le_bytes()),
    ] {
        setup[at..at + bytes.len()].copy_from_slice(bytes);
    }
    (setup, (0..rest).map(|n| (n * 7) as u8).collect())
}

/// A kernel file in ELF: one segment of `text` at 16 MiB, with a page of zeros after it.
pub fn elf(text: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    for (at, bytes) in [
        (18, &62_u16.to_le_bytes()[..]),
        (24, &0x100_0000_u64.to_le_bytes()),
        (32, &64_u64.to_le_bytes()),
        (54, &56_u16.to_le_bytes()),
        (56, &1_u16.to_le_bytes()),
        (64, &1_u32.to_le_bytes()),
        (72, &0x1000_u64.to_le_bytes()),
        (88, &0x100_0000_u64.to_le_bytes()),
        (96, &(text.len() as u64).to_le_bytes()),
        (104, &(text.len() as u64 + 0x1000).to_le_bytes()),
    ] {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
    file.extend(text);
    file
}

/// Size of RAM in the machines that [`Fake::plain`] and [`Fake::snp`] make.
pub const RAM: u64 = 64 << 20;
/// Command line of those machines.
pub const CMDLINE: &[u8] = b"console=ttyS0\0";

impl Fake {
    /// A machine without confidentiality, with a bzImage, an initrd and a command line.
    pub fn plain() -> Self {
        let mut this = Self {
            ram: vec![0; RAM as usize],
            above_4g_end: RAM_ABOVE_4G,
            items: BTreeMap::new(),
            lies: Lies::default(),
            transfers: 0,
            console: String::new(),
            config_writes: Vec::new(),
            host_bridge: 0xFFFF_FFFF,
            rtmrs: Rtmrs::default(),
            msr_writes: Vec::new(),
            mtrr: false,
            private_again: Vec::new(),
            guest: Guest::Plain,
            validated: BTreeMap::new(),
            mapped: vec![0, 3],
            shared: vec![0; BOUNCE.len() as usize],
            selected: (0, 0),
            config_address: 0,
            ram_end: 0,
        };
        let (setup, rest) = bzimage(300_000);
        this.items.insert(0x05, 2_u16.to_le_bytes().to_vec());
        this.set_e820(&[(0, RAM, 1)], RAM);
        this.set_kernel(&setup, &rest);
        this.set_item(0x0B, 0x12, &[0x5A; 100_001]);
        this.set_item(0x14, 0x15, CMDLINE);
        this
    }

    /// An SNP guest whose launch measured what [`Fake::plain`] offers.
    pub fn snp() -> Self {
        let mut this = Self::plain();
        this.guest = Guest::Snp { c_bit: 51 };
        this.launch(&LAUNCHED);
        this.measure();
        this.put(CPUID, &cpuid_page(51));
        this
    }

    /// A TD that is offered the same.
    pub fn td() -> Self {
        let mut this = Self::plain();
        this.guest = Guest::Td { gpaw: 48 };
        this.launch(&LAUNCHED_TD);
        this
    }

    fn launch(&mut self, launched: &[(Range, u32)]) {
        for (range, _) in launched {
            for page in (range.start..range.end).step_by(PAGE as usize) {
                self.validated.insert(page, 1);
            }
        }
    }

    /// Measures what is offered now.
    pub fn measure(&mut self) {
        let kernel = [&self.items[&0x18][..], &self.items[&0x11]].concat();
        let page = hash_page(&kernel, &self.items[&0x12], &self.items[&0x15]);
        self.put(KERNEL_HASHES, &page);
    }

    /// Writes to RAM as the launch does.
    pub fn put(&mut self, range: Range, bytes: &[u8]) {
        self.ram[range.start as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// What is in RAM.
    pub fn get(&self, start: u64, length: usize) -> &[u8] {
        &self.ram[start as usize..][..length]
    }

    /// Offers data with its size in another item.
    pub fn set_item(&mut self, size_key: u16, key: u16, data: &[u8]) {
        self.items.insert(size_key, (data.len() as u32).to_le_bytes().to_vec());
        self.items.insert(key, data.to_vec());
    }

    /// Offers a kernel.
    pub fn set_kernel(&mut self, setup: &[u8], rest: &[u8]) {
        self.set_item(0x17, 0x18, setup);
        self.set_item(0x08, 0x11, rest);
    }

    /// Tells a memory map.
    pub fn set_e820(&mut self, entries: &[(u64, u64, u32)], size: u64) {
        let map = e820(entries);
        self.items.insert(DIRECTORY, directory(&[("bootorder", 0x24, 0), ("etc/e820", E820_KEY, map.len())]));
        self.items.insert(E820_KEY, map);
        self.items.insert(0x03, size.to_le_bytes().to_vec());
    }

    /// How often each page was validated, launch included.
    pub fn validations(&self, page: u64) -> u32 {
        self.validated.get(&page).copied().unwrap_or(0)
    }

    fn dma(&mut self) {
        self.transfers += 1;
        let word = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        let control = word(&self.shared[0..4]);
        let length = word(&self.shared[4..8]) as usize;
        let address = u64::from_be_bytes(self.shared[8..16].try_into().unwrap());
        assert!(BOUNCE.contains(&Range::new(address, address + length as u64)), "DMA to private memory");
        if control & 8 != 0 {
            self.selected = ((control >> 16) as u16, 0);
        }
        let (key, offset) = self.selected;
        if self.lies.failing_key == Some(key) {
            self.shared[..4].copy_from_slice(&1_u32.to_be_bytes());
            return;
        }
        let data = self.items.get(&key).cloned().unwrap_or_default();
        let to = (address - BOUNCE.start) as usize;
        for n in 0..length {
            self.shared[to + n] = data.get(offset + n).copied().unwrap_or(0);
        }
        self.selected.1 += length;
        let done = if self.lies.endless { control } else { 0 };
        self.shared[..4].copy_from_slice(&done.to_be_bytes());
    }

    /// Whether a page is shared now.
    pub fn is_shared(&self, page: u64) -> bool {
        let page = Range::new(page, page + PAGE);
        let ghcb = matches!(self.guest, Guest::Snp { .. }) && GHCB.contains(&page);
        (ghcb || BOUNCE.contains(&page)) && !self.private_again.iter().any(|range| range.contains(&page))
    }

    /// Gives the processor MTRRs, or takes them away.
    pub fn set_mtrr(&mut self, has: bool) {
        self.mtrr = has;
        if let Guest::Snp { c_bit } = self.guest {
            let mut page = cpuid_page(c_bit);
            // EDX of the second function, leaf 1.
            page[16 + 48 + 36..][..4].copy_from_slice(&(u32::from(has) << 12).to_le_bytes());
            self.put(CPUID, &page);
        }
    }

    /// Pages that are not there need no clearing.
    fn zero(&mut self, gpa: u64, bytes: u64) {
        if let Some(range) = self.ram.get_mut(gpa as usize..(gpa + bytes) as usize) {
            range.fill(0);
        }
    }

    fn is_ram(&self, page: u64) -> bool {
        page < self.ram.len() as u64 || (RAM_ABOVE_4G..self.above_4g_end).contains(&page)
    }
}

impl Machine for Fake {
    fn guest(&self) -> Guest {
        self.guest
    }

    fn write_port(&mut self, port: u16, width: Width, value: u32) -> Result<(), Stop> {
        match (port, width) {
            (0x3F8, Width::Byte) => self.console.push(char::from(value as u8)),
            (0x510, Width::Word) => self.selected = (value as u16, 0),
            (0x514, Width::Dword) => assert_eq!(value, 0),
            (0x518, Width::Dword) => {
                assert_eq!(u64::from(value.swap_bytes()), BOUNCE.start);
                self.dma();
            }
            (0xCF8, Width::Dword) => self.config_address = value,
            (0xCFC, Width::Dword) => self.config_writes.push((self.config_address, value)),
            _ => panic!("unexpected OUT {width:?} {port:#x}"),
        }
        Ok(())
    }

    fn read_port(&mut self, port: u16, width: Width) -> Result<u32, Stop> {
        Ok(match (port, width) {
            (0x511, Width::Byte) if self.lies.no_fw_cfg => 0xFF,
            (0x511, Width::Byte) => {
                let features = if self.lies.no_dma { 1 } else { 3 };
                let data: &[u8] = if self.selected.0 == 0 { b"QEMU" } else { &[features] };
                let value = data[self.selected.1];
                self.selected.1 += 1;
                u32::from(value)
            }
            (0xCFC, Width::Dword) => self.host_bridge,
            _ => panic!("unexpected IN {width:?} {port:#x}"),
        })
    }

    fn validate(&mut self, gpa: u64, size: PageSize) -> Validation {
        assert!(self.guest.is_confidential(), "acceptance in a plain guest");
        assert!(self.mapped.contains(&(gpa >> 30)), "{gpa:#x} is not mapped");
        assert!(size != PageSize::Huge || matches!(self.guest, Guest::Td { .. }), "PVALIDATE of 1 GiB");
        let length = size.bytes();
        assert_eq!(gpa % length, 0);
        let pages = || (gpa..gpa + length).step_by(PAGE as usize);
        let hit = |page: Option<u64>| page.is_some_and(|page| pages().any(|p| p == page));
        assert!(pages().all(|page| self.is_ram(page)), "PVALIDATE of {gpa:#x}, where no RAM is");
        if size != PageSize::Small && self.lies.small_pages {
            return Validation::SizeMismatch;
        }
        if hit(self.lies.broken) {
            return Validation::Failed(1);
        }
        if hit(self.lies.remapped) || pages().any(|page| self.validations(page) != 0) {
            return Validation::Unchanged;
        }
        for page in pages() {
            assert!(!self.is_shared(page), "{page:#x} is shared");
            assert!(
                !LAUNCH_STACK.contains(&Range::new(page, page + PAGE)),
                "{page:#x} is the launch's stack"
            );
            *self.validated.entry(page).or_default() += 1;
        }
        if matches!(self.guest, Guest::Td { .. }) {
            self.zero(gpa, length);
        }
        Validation::Changed
    }

    fn clear(&mut self, gpa: u64, size: PageSize) {
        assert!(matches!(self.guest, Guest::Snp { .. }), "the TDX module clears");
        for page in (gpa..gpa + size.bytes()).step_by(PAGE as usize) {
            assert_eq!(self.validations(page), 1, "{page:#x} is used before it is accepted");
        }
        self.zero(gpa, size.bytes());
    }

    fn cpuid(&self, leaf: u32) -> Option<[u32; 4]> {
        assert_eq!(self.guest, Guest::Plain, "CPUID that the host would answer");
        match leaf {
            1 => Some([0, 0, 0, u32::from(self.mtrr) << 12]),
            0x8000_0008 => Some([48, 0, 0, 0]),
            _ => None,
        }
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), Stop> {
        assert!(!matches!(self.guest, Guest::Td { .. }), "an MSR in a TD");
        self.msr_writes.push((index, value));
        Ok(())
    }

    fn make_private(&mut self, range: Range) -> Result<(), Stop> {
        for page in (range.start..range.end).step_by(PAGE as usize) {
            assert!(self.is_shared(page), "{page:#x} is not shared");
        }
        self.private_again.push(range);
        // What the host had there, before or now.
        self.ram[range.start as usize..range.end as usize].fill(HOSTS);
        Ok(())
    }

    fn take_page_0(&mut self, fill: fn(&mut [u8; 4096])) -> Validation {
        let validation = self.validate(0, PageSize::Small);
        if validation == Validation::Changed {
            fill((&mut self.ram[..PAGE as usize]).try_into().unwrap());
        }
        validation
    }

    fn extend_rtmr(&mut self, rtmr: u8, digest: &[u8; 48]) -> Result<(), Stop> {
        assert!(matches!(self.guest, Guest::Td { .. }), "RTMRs outside a TD");
        if self.lies.stuck_rtmr == Some(rtmr) {
            return Err(Stop::because(TerminationReason::MeasurementFailed, "stuck"));
        }
        self.rtmrs.0[usize::from(rtmr)].extend(digest);
        Ok(())
    }

    fn map(&mut self, gib: u64) -> Result<(), Stop> {
        self.mapped.push(gib);
        Ok(())
    }

    fn set_ram_end(&mut self, end: u64) {
        self.ram_end = end;
    }

    fn ram(&mut self, range: Range) -> Result<&mut [u8], Stop> {
        assert!(!NOT_RAM.iter().any(|own| own.overlaps(&range)), "{range:x?} is the firmware's own");
        let low = Range::new(0, 0xA_0000).contains(&range);
        assert!(low || Range::new(0x10_0000, self.ram_end).contains(&range), "{range:x?} is not RAM");
        if self.guest.is_confidential() {
            let first = range.start & !(PAGE - 1);
            for page in (first..range.end).step_by(PAGE as usize) {
                assert_eq!(self.validations(page), 1, "{page:#x} is used before it is accepted");
            }
        }
        let bad = Stop::because(TerminationReason::UnexpectedException, "range");
        self.ram.get_mut(range.start as usize..range.end as usize).ok_or(bad)
    }

    fn share(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Stop> {
        self.shared[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn unshare(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), Stop> {
        bytes.copy_from_slice(&self.shared[offset..offset + bytes.len()]);
        Ok(())
    }

    fn unshare_to_ram(&mut self, offset: usize, to: Range) -> Result<(), Stop> {
        let bytes = self.shared[offset..offset + to.len() as usize].to_vec();
        self.ram(to)?.copy_from_slice(&bytes);
        Ok(())
    }
}

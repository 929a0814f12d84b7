//! A flat machine for tests and benchmarks: RAM at guest-physical 0, a few ports, nothing else.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::{
    Access, Attention, Cpu, CpuState, Env, Exception, HostPage, PageRequest, Segment, SegmentTable, Stop,
};

const PAGE: usize = 4096;

/// Page-aligned guest RAM that several processors may share.
pub struct Ram {
    base: *mut u8,
    layout: Layout,
}

// SAFETY: the pointer is the allocation's own, and guest memory is accessed by single host instructions only.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    /// Zeroed RAM of `bytes` bytes, a multiple of 4 KiB.
    pub fn new(bytes: usize) -> Arc<Self> {
        assert!(bytes > 0 && bytes.is_multiple_of(PAGE));
        let layout = Layout::from_size_align(bytes, PAGE).expect("page-aligned sizes are valid");
        // SAFETY: the layout is not empty.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() {
            handle_alloc_error(layout);
        }
        Arc::new(Self { base, layout })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.layout.size()
    }

    /// Host address of a guest-physical address.
    pub fn host(&self, gpa: u64) -> *mut u8 {
        assert!((gpa as usize) < self.bytes());
        self.base.wrapping_add(gpa as usize)
    }

    /// Copies bytes in.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        assert!(gpa as usize + bytes.len() <= self.bytes());
        // SAFETY: inside the allocation, as just asserted.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.host(gpa), bytes.len()) }
    }

    /// Copies bytes out.
    pub fn read(&self, gpa: u64, n: usize) -> Vec<u8> {
        assert!(gpa as usize + n <= self.bytes());
        let mut bytes = vec![0; n];
        // SAFETY: inside the allocation, as just asserted.
        unsafe { core::ptr::copy_nonoverlapping(self.host(gpa), bytes.as_mut_ptr(), n) }
        bytes
    }

    /// Writes a 64-bit value.
    pub fn write_u64(&self, gpa: u64, v: u64) {
        self.write(gpa, &v.to_le_bytes());
    }

    /// Reads a 64-bit value.
    pub fn read_u64(&self, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.read(gpa, 8));
        u64::from_le_bytes(bytes)
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { dealloc(self.base, self.layout) }
    }
}

/// What a test does when the processor pays attention.
pub type OnAttention = fn(&mut FlatEnv, &mut Cpu) -> Result<(), Stop>;

/// An environment over [`Ram`]. HLT leaves the processor; accesses beyond RAM are MMIO that reads as all-ones.
pub struct FlatEnv {
    /// Guest memory.
    pub ram: Arc<Ram>,
    /// Every request that `resolve` judged.
    pub requests: Vec<PageRequest>,
    /// Every port and MMIO write: address, value.
    pub writes: Vec<(u64, u64)>,
    /// What port reads return.
    pub port_value: u32,
    /// The processor shut down.
    pub shut_down: bool,
    /// The processor halted.
    pub halted: bool,
    /// Called on attention; returns what [`Env::attention`] returns.
    pub on_attention: Option<OnAttention>,
    /// Pages (by frame number) whose accesses stop the processor once, as missing memory does.
    pub missing: Vec<u64>,
    /// The attention word of the processor.
    pub attention: Arc<Attention>,
    /// Time-stamp counter.
    pub tsc: u64,
    /// Confidential instructions carried out: name, gva, gpa, private.
    pub confidential: Vec<(&'static str, u64, u64, bool)>,
}

impl FlatEnv {
    /// An environment over `ram` and the processor that lives in it.
    pub fn new(ram: &Arc<Ram>) -> (Self, Cpu) {
        let attention = Arc::new(Attention::new(0));
        let env = Self {
            ram: ram.clone(),
            requests: Vec::new(),
            writes: Vec::new(),
            port_value: 0,
            shut_down: false,
            halted: false,
            on_attention: None,
            missing: Vec::new(),
            attention: attention.clone(),
            tsc: 0,
            confidential: Vec::new(),
        };
        (env, Cpu::new(attention))
    }
}

impl Env for FlatEnv {
    fn resolve(&mut self, _: &CpuState, request: &PageRequest) -> Result<HostPage, Stop> {
        self.requests.push(*request);
        let frame = request.gpa >> 12;
        if let Some(at) = self.missing.iter().position(|&m| m == frame) {
            self.missing.swap_remove(at);
            return Err(Stop::Exit);
        }
        if request.gpa as usize >= self.ram.bytes() {
            return Err(Stop::Mmio);
        }
        Ok(HostPage {
            host: self.ram.host(frame << 12),
            writable: request.access == Access::Write,
            executable: true,
        })
    }

    fn mmio_read(&mut self, _: &CpuState, _: u64, data: &mut [u8]) -> Result<(), Stop> {
        data.fill(0xff);
        Ok(())
    }

    fn mmio_write(&mut self, _: &CpuState, gpa: u64, data: &[u8]) -> Result<(), Stop> {
        let mut bytes = [0; 8];
        let n = data.len().min(8);
        bytes[..n].copy_from_slice(&data[..n]);
        self.writes.push((gpa, u64::from_le_bytes(bytes)));
        Ok(())
    }

    fn port_in(&mut self, _: &CpuState, _: u16, _: u8, _: bool) -> Result<u32, Stop> {
        Ok(self.port_value)
    }

    fn port_out(&mut self, _: &CpuState, port: u16, _: u8, value: u32, _: bool) -> Result<(), Stop> {
        self.writes.push((u64::from(port), u64::from(value)));
        Ok(())
    }

    fn cpuid(&mut self, _: &CpuState, leaf: u32, subleaf: u32) -> Result<[u32; 4], Stop> {
        Ok([leaf, subleaf, 0, 0])
    }

    fn rdmsr(&mut self, _: &mut CpuState, _: u32) -> Result<u64, Stop> {
        Err(Stop::Fault(Exception::GP0))
    }

    fn wrmsr(&mut self, _: &mut CpuState, _: u32, _: u64) -> Result<(), Stop> {
        Err(Stop::Fault(Exception::GP0))
    }

    fn rdtsc(&mut self, _: &CpuState) -> Result<u64, Stop> {
        self.tsc += 100;
        Ok(self.tsc)
    }

    fn rdpmc(&mut self, _: &CpuState) -> Result<u64, Stop> {
        Err(Stop::Fault(Exception::GP0))
    }

    fn hlt(&mut self, _: &mut CpuState) -> Result<(), Stop> {
        self.halted = true;
        Err(Stop::ExitRetired)
    }

    fn mwait(&mut self, _: &CpuState, _: bool) -> Result<(), Stop> {
        Ok(())
    }

    fn wbinvd(&mut self, _: &CpuState, _: bool) -> Result<(), Stop> {
        Ok(())
    }

    fn vmcall(&mut self, _: &mut CpuState, _: bool) -> Result<(), Stop> {
        Err(Stop::Fault(Exception::UD))
    }

    fn vmgexit(&mut self, _: &mut CpuState) -> Result<(), Stop> {
        self.confidential.push(("vmgexit", 0, 0, false));
        Ok(())
    }

    fn pvalidate(
        &mut self,
        cpu: &mut CpuState,
        gva: u64,
        gpa: u64,
        private: bool,
        _: bool,
    ) -> Result<(), Stop> {
        self.confidential.push(("pvalidate", gva, gpa, private));
        cpu.gpr[CpuState::RAX] = 0;
        cpu.rflags |= 1;
        Ok(())
    }

    fn rmpadjust(
        &mut self,
        _: &mut CpuState,
        gva: u64,
        gpa: u64,
        private: bool,
        query: bool,
    ) -> Result<(), Stop> {
        self.confidential.push((if query { "rmpquery" } else { "rmpadjust" }, gva, gpa, private));
        Ok(())
    }

    fn tdcall(&mut self, _: &mut CpuState) -> Result<(), Stop> {
        self.confidential.push(("tdcall", 0, 0, false));
        Ok(())
    }

    fn read_cr8(&mut self, _: &CpuState) -> Result<u64, Stop> {
        Ok(0)
    }

    fn write_cr8(&mut self, _: &CpuState, _: u64) -> Result<(), Stop> {
        Ok(())
    }

    fn attention(&mut self, cpu: &mut Cpu) -> Result<(), Stop> {
        self.attention.store(0, Ordering::Relaxed);
        match self.on_attention {
            Some(f) => f(self, cpu),
            None => Err(Stop::Exit),
        }
    }

    fn shutdown(&mut self, _: &CpuState) {
        self.shut_down = true;
    }
}

/// Where [`long_mode`] puts the top-level page table; the tables take three pages.
pub const PAGE_TABLES: u64 = 0x1000;
/// Where [`long_mode`] puts the GDT: null, 64-bit code and data for CPL 0, then for CPL 3 data and code, then a TSS.
pub const GDT: u64 = 0x4000;
/// Where [`long_mode`] puts the IDT, empty.
pub const IDT: u64 = 0x5000;
/// Where [`long_mode`] puts the TSS.
pub const TSS: u64 = 0x6000;

/// Puts the processor into 64-bit mode at CPL 0 with the first GiB mapped to itself in 2 MiB pages (user-accessible),
/// RSP at 0x80000 and RIP at `rip`.
pub fn long_mode(cpu: &mut Cpu, ram: &Ram, rip: u64) {
    ram.write_u64(PAGE_TABLES, (PAGE_TABLES + 0x1000) | 7);
    ram.write_u64(PAGE_TABLES + 0x1000, (PAGE_TABLES + 0x2000) | 7);
    for i in 0..512 {
        ram.write_u64(PAGE_TABLES + 0x2000 + i * 8, i << 21 | 0xe7);
    }
    let descriptors: [u64; 8] = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x0000_8b00_6000_0067,
        0,
        0x00cf_9b00_0000_ffff,
    ];
    for (i, d) in descriptors.into_iter().enumerate() {
        ram.write_u64(GDT + i as u64 * 8, d);
    }
    let s = &mut cpu.state;
    s.cr0 = 0x8001_0033;
    s.cr3 = PAGE_TABLES;
    s.cr4 = 0x620;
    s.efer = 0xd01;
    s.gdtr = SegmentTable { base: GDT, limit: 63 };
    s.idtr = SegmentTable { base: IDT, limit: 0xfff };
    let data = Segment { selector: 0x10, base: 0, limit: u32::MAX, attributes: 0xc93 };
    s.seg = [data; 6];
    s.seg[1] = Segment { selector: 8, base: 0, limit: u32::MAX, attributes: 0xa9b };
    s.tr = Segment { selector: 0x28, base: TSS, limit: 0x67, attributes: 0x8b };
    s.gpr[4] = 0x80000;
    s.rip = rip;
    s.rflags = 2;
    s.cpl = 0;
    cpu.state_changed();
}

/// Sets an interrupt gate of the IDT at [`IDT`]; `ist` 0 keeps the stack.
pub fn set_gate(ram: &Ram, vector: u8, handler: u64, ist: u8, dpl: u8) {
    let low = handler & 0xffff
        | 8 << 16
        | u64::from(ist) << 32
        | (0x8e00 | u64::from(dpl) << 13) << 32
        | (handler >> 16 & 0xffff) << 48;
    ram.write_u64(IDT + u64::from(vector) * 16, low);
    ram.write_u64(IDT + u64::from(vector) * 16 + 8, handler >> 32);
}

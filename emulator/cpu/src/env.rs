//! The processor's surroundings, as a trait: everything that an instruction may need from outside the core.

use core::sync::atomic::AtomicU32;

use crate::state::{CpuState, Exception};

/// What an access wants to do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A data read.
    Read,
    /// A data write (also the write half of a read-modify-write).
    Write,
    /// An instruction fetch.
    Execute,
}

/// One page that is about to enter the TLB, after the guest's own page tables allowed the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Guest-physical address of the access (not page aligned), with the C-bit or shared bit removed.
    pub gpa: u64,
    /// Guest-virtual address of the access, for fault reports. Equal to `gpa` when paging is off.
    pub gva: u64,
    /// What the access does.
    pub access: Access,
    /// The access goes through the private (encrypted) view: C-bit set, or TDX shared bit clear.
    /// Always true for page-table walks and instruction fetches of a confidential guest with the C-bit set in
    /// CR3 / always as the page tables say otherwise. False for guests without confidentiality.
    pub private: bool,
    /// The access was made at CPL 3.
    pub user: bool,
    /// The page walker itself makes the access (reading a table, setting A/D bits).
    pub walk: bool,
}

/// A 4 KiB page of host memory that backs a guest page.
#[derive(Clone, Copy, Debug)]
pub struct HostPage {
    /// Host address of byte 0 of the page. Readable for as long as the TLB entry lives.
    pub host: *mut u8,
    /// Writes may use this mapping too (if false, a later write asks again with `Access::Write`).
    pub writable: bool,
    /// Instructions may be fetched from it.
    pub executable: bool,
}

/// Why an operation could not simply be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The instruction ends in this exception; nothing of it is committed.
    Fault(Exception),
    /// `run` returns now and the instruction is restarted by the next `run`. The environment keeps the
    /// reason, and answers the restarted request from what user space filled in.
    Exit,
    /// As `Exit`, but the instruction is complete: RIP is past it (HLT, for example).
    ExitRetired,
    /// Guest memory cannot be accessed this way: the environment should treat the request as MMIO.
    /// Only [`Env::resolve`] answers so; the core then calls `mmio_read`/`mmio_write`.
    Mmio,
}

/// Bits that other threads set to get a running processor's attention. Polled once a block.
///
/// Non-zero makes the core call [`Env::attention`] before the next block. The environment clears what it
/// has dealt with.
pub type Attention = AtomicU32;

/// The processor's surroundings. Every method is off the hot path.
///
/// All methods may return `Err(Stop)`; with [`Stop::Exit`] the instruction will be re-executed from its
/// beginning on the next `run`, so an environment must answer repeated requests consistently.
pub trait Env {
    /// Judges a page on its way into the TLB. The only place where memory is judged.
    fn resolve(&mut self, cpu: &CpuState, request: &PageRequest) -> Result<HostPage, Stop>;
    /// Reads 1, 2, 4 or 8 (16 and more for vector accesses) bytes of MMIO; never crosses a page.
    fn mmio_read(&mut self, cpu: &CpuState, gpa: u64, data: &mut [u8]) -> Result<(), Stop>;
    /// Writes MMIO.
    fn mmio_write(&mut self, cpu: &CpuState, gpa: u64, data: &[u8]) -> Result<(), Stop>;
    /// IN of 1, 2 or 4 bytes. `string`: the instruction is INS.
    fn port_in(&mut self, cpu: &CpuState, port: u16, bytes: u8, string: bool) -> Result<u32, Stop>;
    /// OUT of 1, 2 or 4 bytes.
    fn port_out(
        &mut self,
        cpu: &CpuState,
        port: u16,
        bytes: u8,
        value: u32,
        string: bool,
    ) -> Result<(), Stop>;
    /// CPUID: EAX, EBX, ECX, EDX.
    fn cpuid(&mut self, cpu: &CpuState, leaf: u32, subleaf: u32) -> Result<[u32; 4], Stop>;
    /// RDMSR of an MSR that the core does not own (see [`CpuState`] for those that it does), after the CPL check.
    fn rdmsr(&mut self, cpu: &mut CpuState, index: u32) -> Result<u64, Stop>;
    /// WRMSR of an MSR that the core does not own.
    fn wrmsr(&mut self, cpu: &mut CpuState, index: u32, value: u64) -> Result<(), Stop>;
    /// May the guest touch this core-owned MSR natively? Called before core-owned MSRs are accessed, so
    /// that an environment can intercept. `write` is the value to be written, if any.
    fn msr_intercept(&mut self, _cpu: &CpuState, _index: u32, _write: Option<u64>) -> Result<(), Stop> {
        Ok(())
    }
    /// A control-register write (0, 2, 3, 4, 8) is about to be committed, after the core's own checks.
    fn cr_write(&mut self, _cpu: &CpuState, _cr: u8, _value: u64) -> Result<(), Stop> {
        Ok(())
    }
    /// A debug-register access is about to happen.
    fn dr_access(&mut self, _cpu: &CpuState, _dr: u8, _write: Option<u64>) -> Result<(), Stop> {
        Ok(())
    }
    /// The time-stamp counter as the guest sees it (RDTSC, RDTSCP, RDMSR 0x10).
    fn rdtsc(&mut self, cpu: &CpuState) -> Result<u64, Stop>;
    /// RDPMC.
    fn rdpmc(&mut self, cpu: &CpuState) -> Result<u64, Stop>;
    /// HLT at CPL 0. `Ok` continues with the next instruction; usually `Err(Stop::ExitRetired)`.
    fn hlt(&mut self, cpu: &mut CpuState) -> Result<(), Stop>;
    /// MONITOR / MWAIT. `Ok` makes them no-ops.
    fn mwait(&mut self, cpu: &CpuState, monitor: bool) -> Result<(), Stop>;
    /// INVD / WBINVD / WBNOINVD.
    fn wbinvd(&mut self, cpu: &CpuState, invd: bool) -> Result<(), Stop>;
    /// VMCALL (`intel`) or VMMCALL. Results go to `cpu`'s registers.
    fn vmcall(&mut self, cpu: &mut CpuState, intel: bool) -> Result<(), Stop>;
    /// VMGEXIT (rep VMMCALL).
    fn vmgexit(&mut self, cpu: &mut CpuState) -> Result<(), Stop>;
    /// PVALIDATE of the page at `gva`. `gpa` is where the guest's page tables map it (C-bit removed), `private`
    /// the C-bit, `large` the size of the mapping in the guest's tables is 2 MiB or more. The environment sets EAX, CF and
    /// other flags in `cpu`.
    fn pvalidate(
        &mut self,
        cpu: &mut CpuState,
        gva: u64,
        gpa: u64,
        private: bool,
        large: bool,
    ) -> Result<(), Stop>;
    /// RMPADJUST (`query` false) or RMPQUERY, as PVALIDATE.
    fn rmpadjust(
        &mut self,
        cpu: &mut CpuState,
        gva: u64,
        gpa: u64,
        private: bool,
        query: bool,
    ) -> Result<(), Stop>;
    /// TDCALL.
    fn tdcall(&mut self, cpu: &mut CpuState) -> Result<(), Stop>;
    /// XSETBV, after the core's own checks.
    fn xsetbv(&mut self, _cpu: &CpuState, _xcr0: u64) -> Result<(), Stop> {
        Ok(())
    }
    /// CR8 (the task priority).
    fn read_cr8(&mut self, cpu: &CpuState) -> Result<u64, Stop>;
    /// Sets CR8.
    fn write_cr8(&mut self, cpu: &CpuState, value: u64) -> Result<(), Stop>;
    /// INVLPG / CR3 writes / INVLPGB need nothing from most environments.
    fn tlb_flushed(&mut self, _cpu: &CpuState) {}
    /// The attention word was non-zero, or an interrupt window that was asked for is open, at a block boundary.
    ///
    /// The environment may call [`crate::Cpu::deliver`], [`crate::Cpu::flush_tlb`],
    /// [`crate::Cpu::request_interrupt_window`]. `Err(Stop::Exit)` leaves `run`.
    fn attention(&mut self, cpu: &mut crate::Cpu) -> Result<(), Stop>;
    /// The processor shut down (triple fault). `run` returns afterwards.
    fn shutdown(&mut self, cpu: &CpuState);
}

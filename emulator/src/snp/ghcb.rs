//! The hypervisor's side of the GHCB: the MSR protocol and the shared page, as KVM serves them (GHCB specification 2.03;
//! linux: Documentation and headers asm/sev-common.h, uapi/asm/svm.h).
//!
//! Everything here comes from the guest and is untrusted: bounds first, then use.

mod page_state;

use kvm_bindings as k;
use softkvm_cpu::{CpuState, Stop};

use super::page::{Page, ZERO, put, u64_at};
use super::{ap, exit, request};
use crate::machine::ctx::Ctx;
use crate::machine::env::VcpuEnv;
use crate::machine::exit::Outcome;
use crate::machine::run_page::RunPage;
use crate::machine::tee;
use crate::uapi::cpuid::C_BIT;

/// Offsets of GHCB fields (GHCB specification, "GHCB Layout"); the save area has the VMSA's offsets.
mod field {
    pub const CPL: usize = 0xcb;
    pub const XCR0: usize = 0x3e8;
    pub const RAX: usize = 0x1f8;
    pub const RCX: usize = 0x308;
    pub const RDX: usize = 0x310;
    pub const RBX: usize = 0x318;
    pub const RSI: usize = 0x330;
    pub const EXIT_CODE: usize = 0x390;
    pub const EXIT_INFO_1: usize = 0x398;
    pub const EXIT_INFO_2: usize = 0x3a0;
    pub const SCRATCH: usize = 0x3a8;
    pub const VALID: usize = 0x3f0;
    pub const SHARED_BUFFER: u64 = 0x800;
    pub const SHARED_BUFFER_END: u64 = 0xff0;
    pub const USAGE: usize = 0xffc;
}

/// Protocol versions that KVM speaks.
const VERSIONS: (u64, u64) = (1, 2);
/// SEV-SNP, SEV-SNP AP creation.
const HYPERVISOR_FEATURES: u64 = 0b11;

/// Reasons in SW_EXITINFO2 when SW_EXITINFO1 is 2 (malformed input).
mod reason {
    pub const INVALID_USAGE: u64 = 2;
    pub const INVALID_SCRATCH: u64 = 3;
    pub const MISSING_INPUT: u64 = 4;
    pub const INVALID_INPUT: u64 = 5;
    pub const INVALID_EVENT: u64 = 6;
}

/// What the next KVM_RUN finishes, once the client has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// IN: the value goes to the GHCB's RAX.
    PortIn { ghcb: u64, bytes: u8 },
    /// One element of INS or OUTS; more may follow.
    StringIo { ghcb: u64, io: StringIo },
    /// MMIO read: the bytes go to the scratch area.
    MmioRead { scratch: u64, bytes: u8 },
    /// Nothing to copy.
    Done,
    /// Page-state change by MSR protocol.
    MsrPageState,
    /// Page-state change by shared page: one entry was sent to the client.
    PageState { ghcb: u64, scratch: u64, pages: u64 },
}

/// Progress of a string I/O request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringIo {
    port: u16,
    bytes: u8,
    input: bool,
    scratch: u64,
    left: u64,
}

/// A GHCB page: read once, answered once.
struct Ghcb {
    gpa: u64,
    page: Page,
    valid: [u8; 16],
    /// SW_EXITINFO1 and 2 of the request: the answer replaces them in the page.
    info: (u64, u64),
}

impl Ghcb {
    fn read(ctx: &Ctx, gpa: u64) -> Option<Self> {
        let mut page = ZERO;
        // A page that is private is not a GHCB: reading the shared view would show other bytes.
        if ctx.vm.is_private(gpa) || ctx.vm.read_shared(gpa, &mut page).is_err() {
            return None;
        }
        let valid = page.get(field::VALID..field::VALID + 16)?.try_into().ok()?;
        // KVM takes the bitmap and clears it; what it writes back it marks again.
        put(&mut page, field::VALID, &[0; 16]);
        let info = (u64_at(&page, field::EXIT_INFO_1), u64_at(&page, field::EXIT_INFO_2));
        Some(Self { gpa, page, valid, info })
    }

    fn has(&self, offset: usize) -> bool {
        let bit = offset / 8;
        self.valid.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 != 0)
    }

    fn get(&self, offset: usize) -> u64 {
        u64_at(&self.page, offset)
    }

    fn set(&mut self, offset: usize, value: u64) {
        put(&mut self.page, offset, &value.to_le_bytes());
        let bit = offset / 8;
        if let Some(byte) = self.page.get_mut(field::VALID + bit / 8) {
            *byte |= 1 << (bit % 8);
        }
    }

    fn result(&mut self, info_1: u64, info_2: u64) {
        self.set(field::EXIT_INFO_1, info_1);
        self.set(field::EXIT_INFO_2, info_2);
    }

    fn malformed(&mut self, reason: u64) {
        self.result(2, reason);
    }

    /// SW_EXITINFO1 = 1: inject this event (EVENTINJ layout): #GP with error code 0.
    fn general_protection(&mut self) {
        self.result(1, 13 | 3 << 8 | 1 << 11 | 1 << 31);
    }

    /// The answer, without the shared buffer behind it: what a request left there (MMIO data, page-state entries) is newer.
    fn write(&self, ctx: &Ctx) {
        let answer = self.page.get(..field::SHARED_BUFFER as usize).unwrap_or(&self.page);
        // The page was readable a moment ago; a client that takes the memory away breaks only its own guest.
        let _ = ctx.vm.write_shared(self.gpa, answer);
    }
}

/// VMGEXIT.
pub fn vmgexit(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<(), Stop> {
    let msr = env.ctx.snp.ghcb_msr;
    if msr & 0xfff != 0 {
        return msr_protocol(env, cpu, msr);
    }
    let Some(mut ghcb) = Ghcb::read(env.ctx, msr) else {
        // KVM: "error mapping GHCB": the guest cannot be answered.
        return refuse(env.ctx, "the GHCB is not in shared memory");
    };
    if env.ctx.snp.ghcb_registered != Some(msr) {
        return refuse(env.ctx, "the GHCB is not registered");
    }
    let outcome = match check(&ghcb) {
        Err(reason) => {
            ghcb.malformed(reason);
            Ok(())
        }
        Ok(()) => {
            ghcb.result(0, 0);
            serve(env, cpu, &mut ghcb)
        }
    };
    // A request that will be made again finds its inputs as they were.
    if outcome != Err(Stop::Exit) {
        ghcb.write(env.ctx);
    }
    outcome
}

/// KVM_RUN fails with EINVAL there; the nearest that a client can see is an internal error.
fn refuse<T>(ctx: &mut Ctx, why: &str) -> Result<T, Stop> {
    eprintln!("softkvm: vCPU {}: {why}", ctx.shared.id);
    let msr = ctx.snp.ghcb_msr;
    ctx.run.exit_internal_error(k::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, &[0x403, msr]);
    ctx.leave(Outcome::Client)
}

/// Leaves with an exit for the client; VMGEXIT itself is complete.
fn client<T>(ctx: &mut Ctx, completion: Completion, fill: impl FnOnce(&mut RunPage)) -> Result<T, Stop> {
    fill(&mut ctx.run);
    ctx.completion = Some(tee::Completion::Snp(completion));
    ctx.outcome = Outcome::Client;
    Err(Stop::ExitRetired)
}

fn check(ghcb: &Ghcb) -> Result<(), u64> {
    if super::page::u32_at(&ghcb.page, field::USAGE) != 0 {
        return Err(reason::INVALID_USAGE);
    }
    // KVM does not look at the page's version, and EDK II's first exits have none.
    if ![field::EXIT_CODE, field::EXIT_INFO_1, field::EXIT_INFO_2].into_iter().all(|f| ghcb.has(f)) {
        return Err(reason::MISSING_INPUT);
    }
    let code = ghcb.get(field::EXIT_CODE);
    let Ok(code) = u32::try_from(code) else { return Err(reason::INVALID_EVENT) };
    let needed: &[usize] = match code {
        exit::READ_DR7
        | exit::RDTSC
        | exit::INVD
        | exit::HLT
        | exit::WBINVD
        | exit::MONITOR
        | exit::MWAIT => &[],
        exit::RDTSCP | exit::NMI_COMPLETE | exit::AP_RESET_HOLD | exit::AP_JUMP_TABLE => &[],
        exit::GUEST_REQUEST | exit::HV_FEATURES | exit::TERMINATION => &[],
        exit::WRITE_DR7 => &[field::RAX],
        exit::RDPMC => &[field::RCX],
        exit::CPUID if ghcb.get(field::RAX) as u32 == 0xd => &[field::RAX, field::RCX, field::XCR0],
        exit::CPUID => &[field::RAX, field::RCX],
        exit::IOIO if ghcb.info.0 & (1 << 2) != 0 => &[field::SCRATCH],
        exit::IOIO if ghcb.info.0 & 1 == 0 => &[field::RAX],
        exit::IOIO => &[],
        exit::MSR if ghcb.info.0 != 0 => &[field::RCX, field::RAX, field::RDX],
        exit::MSR => &[field::RCX],
        exit::VMMCALL => &[field::RAX, field::CPL & !7],
        exit::MMIO_READ | exit::MMIO_WRITE | exit::PAGE_STATE_CHANGE => &[field::SCRATCH],
        exit::EXTENDED_GUEST_REQUEST => &[field::RAX, field::RBX],
        exit::AP_CREATION if ghcb.info.0 as u32 & 0xffff != 2 => &[field::RAX],
        exit::AP_CREATION => &[],
        _ => return Err(reason::INVALID_EVENT),
    };
    if needed.iter().all(|&f| ghcb.has(f)) { Ok(()) } else { Err(reason::MISSING_INPUT) }
}

/// The scratch area must lie in the GHCB's shared buffer or in shared guest memory.
fn scratch(ctx: &Ctx, ghcb: &Ghcb, bytes: u64) -> Option<u64> {
    let start = ghcb.get(field::SCRATCH);
    let end = start.checked_add(bytes)?;
    if start >= ghcb.gpa && start < ghcb.gpa + 4096 {
        let inside = start >= ghcb.gpa + field::SHARED_BUFFER && end <= ghcb.gpa + field::SHARED_BUFFER_END;
        return inside.then_some(start);
    }
    // GHCB version 2 wants it inside; KVM still takes 16 KiB of other shared memory.
    let shared = bytes <= 0x4000 && (start..end).step_by(4096).all(|at| !ctx.vm.is_private(at));
    (shared && ctx.vm.slots().find(start).is_some()).then_some(start)
}

fn serve(env: &mut VcpuEnv<'_>, cpu: &mut CpuState, ghcb: &mut Ghcb) -> Result<(), Stop> {
    let (info_1, info_2) = ghcb.info;
    match ghcb.get(field::EXIT_CODE) as u32 {
        exit::CPUID => cpuid(env, ghcb),
        exit::MSR => return msr_access(env, ghcb, info_1 != 0),
        exit::IOIO => return port_io(env.ctx, ghcb, info_1, info_2),
        exit::MMIO_READ => return mmio(env, ghcb, info_1, info_2, false),
        exit::MMIO_WRITE => return mmio(env, ghcb, info_1, info_2, true),
        exit::PAGE_STATE_CHANGE => return page_state::change(env.ctx, ghcb),
        exit::GUEST_REQUEST => {
            let answer = request::guest_request(env.ctx, info_1, info_2);
            ghcb.result(0, answer);
        }
        exit::EXTENDED_GUEST_REQUEST => {
            let (data, pages) = (ghcb.get(field::RAX), ghcb.get(field::RBX));
            let (answer, needed) = request::extended_guest_request(env.ctx, info_1, info_2, data, pages);
            if let Some(needed) = needed {
                ghcb.set(field::RBX, needed);
            }
            ghcb.result(0, answer);
        }
        exit::AP_CREATION if !ap::request(env.ctx, info_1, info_2, ghcb.get(field::RAX)) => {
            ghcb.malformed(reason::INVALID_INPUT);
        }
        exit::HV_FEATURES => ghcb.result(0, HYPERVISOR_FEATURES),
        exit::TERMINATION => return terminate(env.ctx),
        exit::VMMCALL => {
            let args = [field::RBX, field::RCX, field::RDX, field::RSI].map(|f| ghcb.get(f));
            // The client may be asked; it is asked again with the answer at hand, so the GHCB is not yet changed.
            let answer = env.hypercall(ghcb.get(field::RAX), [args[0], args[1], args[2], args[3], 0, 0])?;
            ghcb.set(field::RAX, answer);
        }
        exit::RDTSC | exit::RDTSCP => {
            let tsc = env.ctx.tsc();
            ghcb.set(field::RAX, tsc & 0xffff_ffff);
            ghcb.set(field::RDX, tsc >> 32);
            ghcb.set(field::RCX, cpu.tsc_aux & 0xffff_ffff);
        }
        exit::RDPMC => ghcb.general_protection(),
        exit::READ_DR7 => ghcb.set(field::RAX, cpu.dr7),
        exit::NMI_COMPLETE => cpu.nmi_blocked = false,
        exit::HLT => {
            env.ctx.outcome = Outcome::Halt;
            return Err(Stop::ExitRetired);
        }
        exit::AP_RESET_HOLD => {
            env.ctx.snp.startup = ap::Startup::HeldByEvent(ghcb.gpa);
            env.ctx.shared.mp_state.store(k::KVM_MP_STATE_UNINITIALIZED, std::sync::atomic::Ordering::SeqCst);
            env.ctx.outcome = Outcome::Continue;
            return Err(Stop::ExitRetired);
        }
        // SEV-ES only: an SNP guest brings up its APs itself.
        exit::AP_JUMP_TABLE => ghcb.malformed(reason::INVALID_INPUT),
        // INVD, WBINVD, MONITOR, MWAIT and DR7 writes have no effect that a guest could see here.
        _ => {}
    }
    Ok(())
}

fn cpuid(env: &VcpuEnv<'_>, ghcb: &mut Ghcb) {
    let (leaf, subleaf) = (ghcb.get(field::RAX) as u32, ghcb.get(field::RCX) as u32);
    let xcr0 = if ghcb.has(field::XCR0) { ghcb.get(field::XCR0) } else { 1 };
    let regs = env.table_cpuid(leaf, subleaf, 0, xcr0);
    for (at, value) in [field::RAX, field::RBX, field::RCX, field::RDX].into_iter().zip(regs) {
        ghcb.set(at, u64::from(value));
    }
}

fn msr_access(env: &mut VcpuEnv<'_>, ghcb: &mut Ghcb, write: bool) -> Result<(), Stop> {
    let index = ghcb.get(field::RCX) as u32;
    if write {
        let value = (ghcb.get(field::RDX) << 32) | (ghcb.get(field::RAX) & 0xffff_ffff);
        if !env.machine_wrmsr(index, value)? {
            ghcb.general_protection();
        }
        return Ok(());
    }
    match env.machine_rdmsr(index) {
        Some(value) => {
            ghcb.set(field::RAX, value & 0xffff_ffff);
            ghcb.set(field::RDX, value >> 32);
        }
        None => ghcb.general_protection(),
    }
    Ok(())
}

fn port_io(ctx: &mut Ctx, ghcb: &mut Ghcb, info_1: u64, count: u64) -> Result<(), Stop> {
    let (input, string, port) = (info_1 & 1 != 0, info_1 & 4 != 0, (info_1 >> 16) as u16);
    let bytes = match info_1 >> 4 & 7 {
        1 => 1u8,
        2 => 2,
        4 => 4,
        _ => {
            ghcb.malformed(reason::INVALID_INPUT);
            return Ok(());
        }
    };
    if string {
        let total = count.checked_mul(u64::from(bytes)).filter(|&t| t <= 0x4000);
        let Some(start) = total.and_then(|t| scratch(ctx, ghcb, t)) else {
            ghcb.malformed(reason::INVALID_SCRATCH);
            return Ok(());
        };
        let io = StringIo { port, bytes, input, scratch: start, left: count };
        return string_elements(ctx, ghcb.gpa, io);
    }
    if input {
        if let Some(answer) = ctx.kernel_port_in(port) {
            ghcb.set(field::RAX, u64::from(answer));
            return Ok(());
        }
        return client(ctx, Completion::PortIn { ghcb: ghcb.gpa, bytes }, |run| {
            run.exit_io(None, port, bytes)
        });
    }
    let value = ghcb.get(field::RAX) as u32;
    if ctx.kernel_port_out(port, value, bytes) {
        return Ok(());
    }
    client(ctx, Completion::Done, |run| run.exit_io(Some(value), port, bytes))
}

impl StringIo {
    /// Element done: the answer goes to the scratch area, and on to the next.
    fn advance(&mut self, ctx: &Ctx, answer: u32) {
        if self.input {
            let data = answer.to_le_bytes();
            let _ = ctx.vm.write_shared(self.scratch, data.get(..usize::from(self.bytes)).unwrap_or(&data));
        }
        self.left -= 1;
        self.scratch += u64::from(self.bytes);
    }
}

/// The elements of a string request, up to the first that the client must answer.
fn string_elements(ctx: &mut Ctx, ghcb: u64, mut io: StringIo) -> Result<(), Stop> {
    while io.left != 0 {
        let mut data = [0u8; 4];
        if !io.input {
            let _ = ctx.vm.read_shared(io.scratch, data.get_mut(..usize::from(io.bytes)).unwrap_or(&mut []));
        }
        let value = u32::from_le_bytes(data);
        let answer = match io.input {
            true => ctx.kernel_port_in(io.port),
            false => ctx.kernel_port_out(io.port, value, io.bytes).then_some(0),
        };
        let Some(answer) = answer else {
            let value = (!io.input).then_some(value);
            return client(ctx, Completion::StringIo { ghcb, io }, |run| {
                run.exit_io(value, io.port, io.bytes)
            });
        };
        io.advance(ctx, answer);
    }
    Ok(())
}

fn mmio(env: &mut VcpuEnv<'_>, ghcb: &mut Ghcb, gpa: u64, bytes: u64, write: bool) -> Result<(), Stop> {
    // KVM takes what one kvm_run.mmio can carry; Linux never asks for more.
    let Some(at) = matches!(bytes, 1 | 2 | 4 | 8).then(|| scratch(env.ctx, ghcb, bytes)).flatten() else {
        ghcb.malformed(reason::INVALID_SCRATCH);
        return Ok(());
    };
    let mut data = [0u8; 8];
    let slice = data.get_mut(..bytes as usize).unwrap_or(&mut []);
    if write {
        let _ = env.ctx.vm.read_shared(at, slice);
        if let Some(done) = env.lapic_write(gpa, slice) {
            return done;
        }
        if env.ctx.kernel_memory_write(gpa, slice) {
            return Ok(());
        }
        let slice: &[u8] = slice;
        return client(env.ctx, Completion::Done, |run| run.exit_mmio(gpa, Some(slice), slice.len()));
    }
    if env.lapic_read(gpa, slice) || env.ctx.kernel_memory_read(gpa, slice) {
        let _ = env.ctx.vm.write_shared(at, slice);
        return Ok(());
    }
    client(env.ctx, Completion::MmioRead { scratch: at, bytes: bytes as u8 }, |run| {
        run.exit_mmio(gpa, None, bytes as usize)
    })
}

fn terminate(ctx: &mut Ctx) -> Result<(), Stop> {
    let msr = ctx.snp.ghcb_msr;
    client(ctx, Completion::Done, |run| run.exit_system_event(k::KVM_SYSTEM_EVENT_SEV_TERM, &[msr]))
}

/// Page-state operations.
const PRIVATE: u64 = 1;
const SHARED: u64 = 2;

impl Completion {
    /// Copies the client's answer to where the guest looks for it. `Some` if the client must be asked again at once.
    pub fn finish(self, cpu: &mut softkvm_cpu::Cpu, ctx: &mut Ctx) -> Option<Outcome> {
        match self {
            Self::Done => None,
            Self::PortIn { ghcb, bytes } => {
                let value = u64::from(ctx.run.io_value(bytes));
                if let Some(mut page) = Ghcb::read(ctx, ghcb) {
                    page.set(field::RAX, value);
                    page.result(0, 0);
                    page.write(ctx);
                }
                None
            }
            Self::StringIo { ghcb, mut io } => {
                let answer = ctx.run.io_value(io.bytes);
                io.advance(ctx, answer);
                string_elements(ctx, ghcb, io).is_err().then(|| ctx.take_outcome())
            }
            Self::MmioRead { scratch, bytes } => {
                let data = ctx.run.mmio_data();
                let _ = ctx.vm.write_shared(scratch, data.get(..usize::from(bytes)).unwrap_or(&data));
                None
            }
            Self::MsrPageState => {
                let error = u64::from(ctx.run.hypercall_result() != 0);
                ctx.snp.ghcb_msr = msr::PSC_RESPONSE | error << 32;
                None
            }
            Self::PageState { ghcb, scratch, pages } => {
                let _ = cpu;
                page_state::entry_done(ctx, ghcb, scratch, pages)
            }
        }
    }
}

/// GHCB MSR protocol values (GHCB specification, table "MSR Protocol").
mod msr {
    pub const SEV_INFO_RESPONSE: u64 = 0x001;
    pub const SEV_INFO_REQUEST: u64 = 0x002;
    pub const CPUID_REQUEST: u64 = 0x004;
    pub const CPUID_RESPONSE: u64 = 0x005;
    pub const AP_RESET_HOLD_REQUEST: u64 = 0x006;
    pub const AP_RESET_HOLD_RESPONSE: u64 = 0x007;
    pub const PREFERRED_REQUEST: u64 = 0x010;
    pub const PREFERRED_RESPONSE: u64 = 0x011;
    pub const REGISTER_REQUEST: u64 = 0x012;
    pub const REGISTER_RESPONSE: u64 = 0x013;
    pub const PSC_REQUEST: u64 = 0x014;
    pub const PSC_RESPONSE: u64 = 0x015;
    pub const FEATURES_REQUEST: u64 = 0x080;
    pub const FEATURES_RESPONSE: u64 = 0x081;
    pub const TERMINATE: u64 = 0x100;
}

/// The answer to an AP_RESET_HOLD of the MSR protocol that a SIPI has ended.
pub const HOLD_ENDED: u64 = msr::AP_RESET_HOLD_RESPONSE | 1 << 12;

/// The same in the GHCB page.
pub fn end_hold(vm: &crate::machine::vm::Vm, ghcb: u64) {
    // A page that is gone tells nobody.
    let _ = vm.write_shared(ghcb + field::EXIT_INFO_2 as u64, &1u64.to_le_bytes());
}

fn msr_protocol(env: &mut VcpuEnv<'_>, _cpu: &CpuState, value: u64) -> Result<(), Stop> {
    let gfn = value >> 12 & 0xff_ffff_ffff;
    let response = match value & 0xfff {
        msr::SEV_INFO_REQUEST => {
            msr::SEV_INFO_RESPONSE | u64::from(C_BIT) << 24 | VERSIONS.0 << 32 | VERSIONS.1 << 48
        }
        msr::CPUID_REQUEST => {
            let (leaf, register) = ((value >> 32) as u32, (value >> 30 & 3) as usize);
            let regs = env.table_cpuid(leaf, 0, 0, 1);
            msr::CPUID_RESPONSE
                | (register as u64) << 30
                | u64::from(regs.get(register).copied().unwrap_or(0)) << 32
        }
        msr::AP_RESET_HOLD_REQUEST => {
            env.ctx.snp.ghcb_msr = msr::AP_RESET_HOLD_RESPONSE;
            env.ctx.snp.startup = ap::Startup::HeldByMsr;
            env.ctx.shared.mp_state.store(k::KVM_MP_STATE_UNINITIALIZED, std::sync::atomic::Ordering::SeqCst);
            env.ctx.outcome = Outcome::Continue;
            return Err(Stop::ExitRetired);
        }
        // No preference.
        msr::PREFERRED_REQUEST => msr::PREFERRED_RESPONSE | 0xf_ffff_ffff_ffff << 12,
        msr::REGISTER_REQUEST => {
            env.ctx.snp.ghcb_registered = Some(gfn << 12);
            msr::REGISTER_RESPONSE | gfn << 12
        }
        msr::PSC_REQUEST => {
            let operation = value >> 52 & 15;
            if !matches!(operation, PRIVATE | SHARED) || !env.ctx.client_maps_ranges() {
                env.ctx.snp.ghcb_msr = msr::PSC_RESPONSE | 1 << 32;
                return Ok(());
            }
            return client(env.ctx, Completion::MsrPageState, |run| {
                run.exit_map_gpa_range(gfn << 12, 1, operation == PRIVATE)
            });
        }
        msr::FEATURES_REQUEST => msr::FEATURES_RESPONSE | HYPERVISOR_FEATURES << 12,
        msr::TERMINATE => return terminate(env.ctx),
        _ => return refuse(env.ctx, "unknown GHCB MSR request"),
    };
    env.ctx.snp.ghcb_msr = response;
    Ok(())
}

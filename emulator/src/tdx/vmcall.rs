//! TDG.VP.VMCALL: the guest-host interface as KVM serves it (Intel GHCI; linux: asm/shared/tdx.h).
//!
//! The guest chooses in RCX which registers the host sees and may change; everything in them is the guest's claim.

use softkvm_cpu::{Cpu, CpuState, Stop};

use super::launch::Gpaw;
use super::status::{self, operand};
use super::ve::reason;
use super::{TdxVm, msr};
use crate::machine::ctx::Ctx;
use crate::machine::env::VcpuEnv;
use crate::machine::exit::Outcome;
use crate::machine::run_page::RunPage;
use crate::machine::tee;

/// KVM_EXIT_TDX.
const EXIT_TDX: u32 = 40;
/// KVM_SYSTEM_EVENT_TDX_FATAL.
const SYSTEM_EVENT_TDX_FATAL: u32 = 7;

/// Sub-functions (GHCI, "TDG.VP.VMCALL Interface") beside the VMX exit reasons.
mod function {
    pub const GET_TD_VM_CALL_INFO: u64 = 0x1_0000;
    pub const MAP_GPA: u64 = 0x1_0001;
    pub const GET_QUOTE: u64 = 0x1_0002;
    pub const REPORT_FATAL_ERROR: u64 = 0x1_0003;
    pub const SETUP_EVENT_NOTIFY_INTERRUPT: u64 = 0x1_0004;
}

/// Status in R10 (GHCI, "TDG.VP.VMCALL Completion Status Codes").
mod answer {
    pub const SUCCESS: u64 = 0;
    pub const RETRY: u64 = 1;
    pub const INVALID_OPERAND: u64 = 0x8000_0000_0000_0000;
    pub const ALIGN_ERROR: u64 = 0x8000_0000_0000_0002;
    pub const SUBFUNC_UNSUPPORTED: u64 = 0x8000_0000_0000_0003;
}

/// Functions that KVM passes to user space, as KVM_TDX_CAPABILITIES says: GetQuote, SetupEventNotifyInterrupt.
pub const USER_FUNCTIONS: u64 = 0b11;

/// KVM converts so much of a range before it looks for interrupts.
const MAP_CHUNK: u64 = 2 << 20;

/// What the next KVM_RUN finishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Nothing to give.
    Done,
    /// IN.
    PortIn { bytes: u8 },
    /// MMIO read.
    MmioRead { bytes: u8 },
    /// KVM_HC_MAP_GPA_RANGE of one chunk of a MapGPA, with the shared bit in the addresses.
    MapGpa { next: u64, end: u64 },
    /// A hypercall of KVM's own.
    Hypercall,
    /// KVM_EXIT_TDX whose answer is a status.
    Status,
    /// KVM_EXIT_TDX of GetTdVmCallInfo.
    Info,
}

/// Guest registers that a call selected: what the host reads as zero, and cannot write, otherwise.
fn get(cpu: &CpuState, register: usize) -> u64 {
    if cpu.gpr[CpuState::RCX] >> register & 1 != 0 { cpu.gpr[register] } else { 0 }
}

fn set(cpu: &mut CpuState, register: usize, value: u64) {
    if cpu.gpr[CpuState::RCX] >> register & 1 != 0 {
        cpu.gpr[register] = value;
    }
}

const R10: usize = 10;
const R11: usize = 11;

/// A call that KVM served: status, and R11.
fn reply(cpu: &mut CpuState, status: u64, value: Option<u64>) -> Result<u64, Stop> {
    set(cpu, R10, status);
    if let Some(value) = value {
        set(cpu, R11, value);
    }
    Ok(status::SUCCESS)
}

/// Leaves with an exit for the client; the TDCALL itself is complete.
fn client<T>(
    ctx: &mut Ctx,
    cpu: &mut CpuState,
    completion: Completion,
    fill: impl FnOnce(&mut RunPage),
) -> Result<T, Stop> {
    cpu.gpr[CpuState::RAX] = status::SUCCESS;
    fill(&mut ctx.run);
    ctx.completion = Some(tee::Completion::Tdx(completion));
    ctx.outcome = Outcome::Client;
    Err(Stop::ExitRetired)
}

type Function = fn(&mut VcpuEnv<'_>, &mut CpuState) -> Result<u64, Stop>;

const FUNCTIONS: &[(u64, Function)] = &[
    (reason::CPUID as u64, cpuid),
    (reason::HLT as u64, halt),
    (reason::IO as u64, port_io),
    (reason::MSR_READ as u64, rdmsr),
    (reason::MSR_WRITE as u64, wrmsr),
    (reason::EPT_VIOLATION as u64, mmio),
    (function::GET_TD_VM_CALL_INFO, info),
    (function::MAP_GPA, map_gpa),
    (function::GET_QUOTE, get_quote),
    (function::REPORT_FATAL_ERROR, fatal),
    (function::SETUP_EVENT_NOTIFY_INTERRUPT, setup_notify),
];

/// TDG.VP.VMCALL.
pub fn vmcall(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    /// RAX, RCX, RSP, and RBP because KVM sets NO_RBP_MOD.
    const FORBIDDEN: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5;
    let selected = cpu.gpr[CpuState::RCX];
    if selected & FORBIDDEN != 0 || selected >> 32 != 0 {
        return Ok(status::OPERAND_INVALID | operand::RCX);
    }
    if get(cpu, R10) != 0 {
        return hypercall(env, cpu);
    }
    let number = get(cpu, R11);
    match FUNCTIONS.iter().find(|row| row.0 == number) {
        Some((_, function)) => function(env, cpu),
        None => reply(cpu, answer::SUBFUNC_UNSUPPORTED, None),
    }
}

fn gpaw(ctx: &Ctx) -> Gpaw {
    ctx.vm.tdx().and_then(TdxVm::parameters).map_or(Gpaw::Bits48, |p| p.gpaw)
}

/// R10 is the number of one of KVM's own hypercalls, R11 to R14 its arguments.
fn hypercall(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    let args = [R11, 12, 13, 14].map(|r| get(cpu, r));
    let args = [args[0], args[1], args[2], args[3], 0, 0];
    match env.kvm_hypercall(get(cpu, R10)) {
        Some(value) => reply(cpu, value, None),
        None => {
            let number = get(cpu, R10);
            client(env.ctx, cpu, Completion::Hypercall, |run| run.exit_hypercall(number, args))
        }
    }
}

fn cpuid(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    let (leaf, subleaf) = (get(cpu, 12) as u32, get(cpu, 13) as u32);
    let regs = env.table_cpuid(leaf, subleaf, 0, 1);
    for (register, value) in [12, 13, 14, 15].into_iter().zip(regs) {
        set(cpu, register, u64::from(value));
    }
    reply(cpu, answer::SUCCESS, None)
}

/// R12: the guest has blocked interrupts, so that only an NMI ends the halt. Otherwise it opens the window itself.
fn halt(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    env.ctx.wakes_with_if_clear = get(cpu, 12) == 0;
    cpu.gpr[CpuState::RAX] = status::SUCCESS;
    set(cpu, R10, answer::SUCCESS);
    env.ctx.outcome = Outcome::Halt;
    Err(Stop::ExitRetired)
}

fn port_io(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    let (bytes, write, port) = (get(cpu, 12), get(cpu, 13), get(cpu, 14) as u16);
    if write > 1 || !matches!(bytes, 1 | 2 | 4) {
        return reply(cpu, answer::INVALID_OPERAND, None);
    }
    let bytes = bytes as u8;
    if write == 0 {
        return match env.ctx.kernel_port_in(port) {
            Some(value) => reply(cpu, answer::SUCCESS, Some(u64::from(value))),
            None => client(env.ctx, cpu, Completion::PortIn { bytes }, |run| run.exit_io(None, port, bytes)),
        };
    }
    let value = get(cpu, 15) as u32;
    if env.ctx.kernel_port_out(port, value, bytes) {
        return reply(cpu, answer::SUCCESS, None);
    }
    set(cpu, R10, answer::SUCCESS);
    client(env.ctx, cpu, Completion::Done, |run| run.exit_io(Some(value), port, bytes))
}

fn mmio(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    let (bytes, write, address) = (get(cpu, 12), get(cpu, 13), get(cpu, 14));
    let shared = |gpa: u64| gpa & gpaw(env.ctx).shared_mask() != 0;
    let ends_shared = address.checked_add(bytes).is_some_and(|end| shared(end.wrapping_sub(1)));
    if !matches!(bytes, 1 | 2 | 4 | 8) || write > 1 || !shared(address) || !ends_shared {
        return reply(cpu, answer::INVALID_OPERAND, None);
    }
    let gpa = address & !gpaw(env.ctx).shared_mask();
    let bytes = bytes as usize;
    if write == 1 {
        let raw = get(cpu, 15).to_le_bytes();
        let data = raw.get(..bytes).unwrap_or(&raw);
        if env.ctx.kernel_memory_write(gpa, data) {
            return reply(cpu, answer::SUCCESS, None);
        }
        set(cpu, R10, answer::SUCCESS);
        return client(env.ctx, cpu, Completion::Done, |run| run.exit_mmio(gpa, Some(data), bytes));
    }
    let mut raw = [0u8; 8];
    if env.ctx.kernel_memory_read(gpa, raw.get_mut(..bytes).unwrap_or(&mut [])) {
        return reply(cpu, answer::SUCCESS, Some(u64::from_le_bytes(raw)));
    }
    let completion = Completion::MmioRead { bytes: bytes as u8 };
    client(env.ctx, cpu, completion, |run| run.exit_mmio(gpa, None, bytes))
}

fn rdmsr(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    match msr::kvm_read(env, get(cpu, 12) as u32) {
        Some(value) => reply(cpu, answer::SUCCESS, Some(value)),
        None => reply(cpu, answer::INVALID_OPERAND, None),
    }
}

fn wrmsr(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    let done = msr::kvm_write(env, get(cpu, 12) as u32, get(cpu, 13));
    let status = if done.unwrap_or(true) { answer::SUCCESS } else { answer::INVALID_OPERAND };
    set(cpu, R10, status);
    match done {
        // The LAPIC wants the client to hear of it.
        Err(stop) => {
            cpu.gpr[CpuState::RAX] = status::SUCCESS;
            Err(stop)
        }
        Ok(_) => Ok(status::SUCCESS),
    }
}

fn info(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    match get(cpu, 12) {
        0 => {
            for register in R11..=14 {
                set(cpu, register, 0);
            }
            reply(cpu, answer::SUCCESS, None)
        }
        leaf @ 1 => client(env.ctx, cpu, Completion::Info, |run| {
            exit_tdx(run, function::GET_TD_VM_CALL_INFO, &[answer::SUCCESS, leaf, 0, 0, 0, 0]);
        }),
        _ => reply(cpu, answer::INVALID_OPERAND, None),
    }
}

fn get_quote(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    let (address, bytes) = (get(cpu, 12), get(cpu, 13));
    let mask = gpaw(env.ctx).shared_mask();
    if address & mask == 0 {
        return reply(cpu, answer::INVALID_OPERAND, None);
    }
    client(env.ctx, cpu, Completion::Status, |run| {
        exit_tdx(run, function::GET_QUOTE, &[answer::SUBFUNC_UNSUPPORTED, address & !mask, bytes]);
    })
}

fn setup_notify(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    let vector = get(cpu, 12);
    if !(32..=255).contains(&vector) {
        return reply(cpu, answer::INVALID_OPERAND, None);
    }
    client(env.ctx, cpu, Completion::Status, |run| {
        exit_tdx(run, function::SETUP_EVENT_NOTIFY_INTERRUPT, &[answer::SUBFUNC_UNSUPPORTED, vector]);
    })
}

/// ReportFatalError: all sixteen registers go to the client, in ModRM order.
fn fatal(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    /// TDCALL's exit reason: what TDH.VP.ENTER returned to KVM.
    const EXIT_REASON_TDCALL: u64 = 77;
    let mut registers: [u64; 16] = std::array::from_fn(|r| get(cpu, r));
    registers[CpuState::RAX] = EXIT_REASON_TDCALL;
    registers[CpuState::RCX] = cpu.gpr[CpuState::RCX];
    client(env.ctx, cpu, Completion::Done, |run| run.exit_system_event(SYSTEM_EVENT_TDX_FATAL, &registers))
}

/// `kvm_run.tdx`: flags, number, then the function's words, of which the first is the status to return.
fn exit_tdx(run: &mut RunPage, number: u64, words: &[u64]) {
    run.set_reason(EXIT_TDX);
    let all = [0, number].into_iter().chain(words.iter().copied());
    for (i, word) in all.enumerate() {
        run.set_detail_word(i, word);
    }
}

/// Index of the first of a function's words in `kvm_run.tdx`.
const WORDS: usize = 2;

fn map_gpa(env: &mut VcpuEnv<'_>, cpu: &mut CpuState) -> Result<u64, Stop> {
    let (gpa, bytes) = (get(cpu, 12), get(cpu, 13));
    if !env.ctx.client_maps_ranges() {
        return reply(cpu, answer::SUBFUNC_UNSUPPORTED, Some(gpa));
    }
    let width = env.ctx.cpuid.iter().find(|e| e.function == 0x8000_0008).map_or(36, |e| e.eax & 0xff);
    let mask = gpaw(env.ctx).shared_mask();
    let end = gpa.checked_add(bytes).filter(|&end| end > gpa);
    let legal = |at: u64| width >= 64 || at >> width == 0;
    let Some(end) = end.filter(|&e| legal(gpa) && legal(e - 1) && gpa & mask == (e - 1) & mask) else {
        return reply(cpu, answer::INVALID_OPERAND, Some(gpa));
    };
    if (gpa | bytes) & 0xfff != 0 {
        return reply(cpu, answer::ALIGN_ERROR, Some(gpa));
    }
    set(cpu, R10, answer::SUCCESS);
    cpu.gpr[CpuState::RAX] = status::SUCCESS;
    map_chunk(env.ctx, gpa, end);
    Err(Stop::ExitRetired)
}

/// Asks the client for the next part of a range.
fn map_chunk(ctx: &mut Ctx, next: u64, end: u64) {
    let mask = gpaw(ctx).shared_mask();
    let pages = (end - next).min(MAP_CHUNK) / 4096;
    ctx.run.exit_map_gpa_range(next & !mask, pages, next & mask == 0);
    ctx.completion = Some(tee::Completion::Tdx(Completion::MapGpa { next, end }));
    ctx.outcome = Outcome::Client;
}

fn map_done(cpu: &mut CpuState, ctx: &mut Ctx, next: u64, end: u64) -> Option<Outcome> {
    if ctx.run.hypercall_result() != 0 {
        set(cpu, R10, answer::INVALID_OPERAND);
        set(cpu, R11, next);
        return None;
    }
    let next = next.saturating_add(MAP_CHUNK);
    if next >= end {
        return None;
    }
    if ctx.interrupt_waits() {
        set(cpu, R10, answer::RETRY);
        set(cpu, R11, next);
        return None;
    }
    map_chunk(ctx, next, end);
    Some(ctx.take_outcome())
}

impl Completion {
    /// Gives the guest the client's answer. `Some` if the client must be asked again at once.
    pub fn finish(self, processor: &mut Cpu, ctx: &mut Ctx) -> Option<Outcome> {
        let cpu = &mut processor.state;
        let (status, value) = match self {
            Self::Done => return None,
            Self::MapGpa { next, end } => return map_done(cpu, ctx, next, end),
            Self::PortIn { bytes } => (answer::SUCCESS, Some(u64::from(ctx.run.io_value(bytes)))),
            Self::MmioRead { bytes } => {
                let all = u64::from_le_bytes(ctx.run.mmio_data());
                let unused = 64 - 8 * u32::from(bytes.clamp(1, 8));
                (answer::SUCCESS, Some(all << unused >> unused))
            }
            Self::Hypercall => (ctx.run.hypercall_result(), None),
            Self::Status => (ctx.run.detail_word(WORDS), None),
            Self::Info => {
                for (i, register) in (12..=14).enumerate() {
                    set(cpu, register, ctx.run.detail_word(WORDS + 3 + i));
                }
                (ctx.run.detail_word(WORDS), Some(ctx.run.detail_word(WORDS + 2)))
            }
        };
        set(cpu, R10, status);
        if let Some(value) = value {
            set(cpu, R11, value);
        }
        None
    }
}

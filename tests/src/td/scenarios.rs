//! What the tiny TDs are asked to do, and what is noted of it.

use kvm_ioctls::VcpuExit;

use super::code::Do;
use super::machine::{
    MMIO, MMIO_GVA, Options, PENDING, RAM_BYTES, Record, SHARED, SHARED_BIT, Step, Td, strict, tdcall,
    vmcall, with,
};
use super::{orders, quote};
use crate::tiny::Observed;

/// What a scenario notes.
pub type Lines = Result<Vec<String>, String>;
type Scenario = (&'static str, fn() -> Lines);

const ALL: &[Scenario] = &[
    ("entry state and VP.INFO", entry),
    ("instructions that raise #VE", exceptions),
    ("CPUID", cpuid),
    ("MSRs", msrs),
    ("TDCALL leaves", leaves),
    ("metadata", metadata),
    ("accepting pages", accept),
    ("pages not accepted", pending),
    ("a page not accepted, with SEPT_VE_DISABLE", pending_strict),
    ("views that disagree with the attributes", disagreement),
    ("a page taken back and given again", taken_back),
    ("TDVMCALLs served in the kernel", calls_in_kernel),
    ("TDVMCALLs that the client answers", calls_to_client),
    ("MapGPA", map_gpa),
    ("a fatal error", fatal),
    ("a halt that an interrupt ends", halt),
    ("MRTD", quote::mrtd),
    ("TDREPORT and quote", quote::quote),
    ("KVM_TDX_* before and after KVM_TDX_INIT_VM", orders::around_init_vm),
    ("KVM_TDX_* on a vCPU", orders::on_a_vcpu),
    ("KVM_TDX_INIT_MEM_REGION", orders::regions),
    ("the ordinary ioctls of a TD", orders::ordinary),
    ("KVM_TDX_TERMINATE_VM", orders::terminate),
];

/// Runs every scenario.
pub fn run_all() -> Vec<Observed> {
    ALL.iter()
        .map(|(name, run)| {
            let events = run().unwrap_or_else(|error| vec![format!("failed: {error}")]);
            Observed { guest: (*name).to_owned(), events }
        })
        .collect()
}

fn surprise(exit: VcpuExit<'_>) -> Result<(), String> {
    Err(format!("unexpected exit {exit:?}"))
}

/// Builds, finalizes and runs a TD whose steps need nothing from the host; the records of the steps.
pub fn alone(options: &Options, script: &[Step]) -> Result<Vec<Record>, String> {
    let mut td = Td::build(options, script)?;
    td.finalize()?;
    td.run(surprise)?;
    Ok(td.records(script.len() + 1))
}

/// A step with what is to be noted of its record.
type Case = (&'static str, Step);

fn each(options: &Options, cases: &[Case], note: fn(&Record) -> String) -> Lines {
    let script: Vec<Step> = cases.iter().map(|case| case.1).collect();
    let records = alone(options, &script)?;
    Ok(cases.iter().zip(records.iter().skip(1)).map(|(case, r)| format!("{}: {}", case.0, note(r))).collect())
}

/// The exception with VE_INFO, or "done".
fn outcome(record: &Record) -> String {
    let [reason, qualification, gla, gpa, length] = record.ve;
    match record.exception {
        None => "done".into(),
        Some(20) => format!("#VE {reason} {qualification:#x} gla {gla:#x} gpa {gpa:#x} length {length}"),
        Some(13) => format!("#GP({})", record.error),
        Some(14) => format!("#PF({:#x}) at {:#x}", record.error, record.cr2),
        Some(vector) => format!("exception {vector}"),
    }
}

/// The exception, or the registers that CPUID and RDMSR write.
fn values(record: &Record) -> String {
    match record.exception {
        None => {
            let [a, c, d, b] = [0, 1, 2, 3].map(|r| record.gpr[r] as u32);
            format!("{a:x} {b:x} {c:x} {d:x}")
        }
        Some(_) => outcome(record),
    }
}

fn status(record: &Record) -> String {
    match record.exception {
        None => format!("{:#x}", record.gpr[0]),
        Some(_) => outcome(record),
    }
}

/// R10 and R11 of a TDVMCALL.
fn reply(record: &Record) -> String {
    format!("{:#x} r10 {:#x} r11 {:#x}", record.gpr[0], record.gpr[10], record.gpr[11])
}

fn entry() -> Lines {
    let mut lines = Vec::new();
    for gpaw in [48, 52] {
        let options = Options { gpaw, ..strict() };
        let records = alone(&options, &[tdcall(1, &[])])?;
        let [start, info] = records.as_slice() else { return Err("two records".into()) };
        lines.push(format!(
            "rbx {} rcx {:#x} r8 {:#x} rdx {:#x} rsi {}",
            start.gpr[3], start.gpr[1], start.gpr[8], start.gpr[2], start.gpr[6]
        ));
        lines.push(format!(
            "VP.INFO: {:#x} gpaw {} attributes {:#x} vcpus {} index {}",
            info.gpr[0], info.gpr[1], info.gpr[2], info.gpr[8] as u32, info.gpr[9]
        ));
    }
    Ok(lines)
}

fn exceptions() -> Lines {
    let cases: &[Case] = &[
        ("HLT", with(Do::Hlt, &[])),
        ("IN", with(Do::InAl, &[(2, 0x3fd)])),
        ("OUT", with(Do::OutAl, &[(2, 0x3f8)])),
        ("OUT EAX", with(Do::OutEax, &[(2, 0xcf8)])),
        ("INS", with(Do::Insb, &[(2, 0x60), (7, 0x6800)])),
        ("WBINVD", with(Do::Wbinvd, &[])),
        ("INVD", with(Do::Invd, &[])),
        ("VMCALL", with(Do::Vmcall, &[])),
        ("VMMCALL", with(Do::Vmmcall, &[])),
        ("MONITOR", with(Do::Monitor, &[])),
        ("MWAIT", with(Do::Mwait, &[])),
        ("RDPMC", with(Do::Rdpmc, &[])),
        ("CR0 without NE", with(Do::MovCr0, &[(0, 0x8000_0013)])),
        ("CR0 with CD", with(Do::MovCr0, &[(0, 0xc000_0033)])),
        ("CR4 without MCE", with(Do::MovCr4, &[(0, 0x620)])),
        ("MMIO read", with(Do::Load, &[(6, MMIO_GVA + 0x18)])),
        ("MMIO write", with(Do::Store, &[(7, MMIO_GVA + 0x20)])),
        ("code in shared memory", with(Do::Call, &[(6, 0x4000_8000)])),
        ("VE_INFO kept", with(Do::KeepVe, &[(0, 1)])),
        ("HLT again", with(Do::Hlt, &[])),
        ("HLT before VE_INFO was read", with(Do::Hlt, &[])),
    ];
    each(&Options::default(), cases, outcome)
}

fn cpuid() -> Lines {
    let leaf = |leaf: u64, subleaf: u64| with(Do::Cpuid, &[(0, leaf), (1, subleaf)]);
    let cases: &[Case] = &[
        ("0", leaf(0, 0)),
        ("2", leaf(2, 0)),
        ("6", leaf(6, 0)),
        ("0bh", leaf(0xb, 0)),
        ("15h", leaf(0x15, 0)),
        ("16h", leaf(0x16, 0)),
        ("21h", leaf(0x21, 0)),
        ("21h/1", leaf(0x21, 1)),
        ("24h, beyond the last", leaf(0x24, 0)),
        ("40000000h", leaf(0x4000_0000, 0)),
        ("80000000h", leaf(0x8000_0000, 0)),
        ("80000002h", leaf(0x8000_0002, 0)),
        ("80000007h", leaf(0x8000_0007, 0)),
        ("80000008h", leaf(0x8000_0008, 0)),
        ("VP.CPUIDVE.SET", tdcall(5, &[(1, 1)])),
        ("0 with CPUIDVE", leaf(0, 0)),
        ("VP.CPUIDVE.SET of a reserved bit", tdcall(5, &[(1, 4)])),
    ];
    let mut lines = each(&strict(), cases, values)?;
    // Features are the host's; what the module and the client decide is not.
    let records = alone(&strict(), &[leaf(1, 0)])?;
    let one = records.get(1).ok_or("a record")?;
    let (ebx, ecx, edx) = (one.gpr[3] as u32, one.gpr[1] as u32, one.gpr[2] as u32);
    lines.push(format!(
        "1: eax {:x}, APIC ID {}, x2APIC {} deadline {} hypervisor {}, MCE {} MTRR {}",
        one.gpr[0],
        ebx >> 24,
        ecx >> 21 & 1,
        ecx >> 24 & 1,
        ecx >> 31,
        edx >> 7 & 1,
        edx >> 12 & 1
    ));
    Ok(lines)
}

fn msrs() -> Lines {
    let read = |index: u64| with(Do::Rdmsr, &[(1, index)]);
    let write =
        |index: u64, value: u64| with(Do::Wrmsr, &[(1, index), (0, value & 0xffff_ffff), (2, value >> 32)]);
    let cases: &[Case] = &[
        ("APIC_BASE", read(0x1b)),
        ("write of TSC", write(0x10, 0)),
        ("TSC_ADJUST", read(0x3b)),
        ("XAPIC_DISABLE_STATUS", read(0xbd)),
        ("MISC_ENABLE", read(0x1a0)),
        ("write of MISC_ENABLE", write(0x1a0, 1)),
        ("PERF_CAPABILITIES", read(0x345)),
        ("PMC0", read(0xc1)),
        ("VMX_BASIC", read(0x480)),
        ("write of XSS 0", write(0xda0, 0)),
        ("write of XSS 100h", write(0xda0, 0x100)),
        ("write of TSC_DEADLINE", write(0x6e0, 5)),
        ("x2APIC ID", read(0x802)),
        ("x2APIC TPR", read(0x808)),
        ("write of x2APIC EOI", write(0x80b, 0)),
        ("write of x2APIC SVR", write(0x80f, 0x1ff)),
        ("reserved x2APIC", read(0x804)),
        ("write of EFER with SCE clear", write(0xc000_0080, 0xd00)),
        ("write of EFER with NXE clear", write(0xc000_0080, 0x501)),
        ("write of CSTAR", write(0xc000_0083, 0)),
        ("write of LSTAR", write(0xc000_0082, 0x1000)),
        ("KVM's wall clock", write(0x4b56_4d00, 0)),
    ];
    each(&strict(), cases, |record| match record.exception {
        None => format!("{:x} {:x}", record.gpr[0] as u32, record.gpr[2] as u32),
        Some(_) => outcome(record),
    })
}

fn leaves() -> Lines {
    let cases: &[Case] = &[
        ("unknown leaf", tdcall(99, &[])),
        ("VP.INFO version 1", tdcall(1 | 1 << 16, &[])),
        ("reserved bits of RAX", tdcall(1 | 1 << 32, &[])),
        ("VP.VEINFO.GET without", tdcall(3, &[])),
        ("VP.VMCALL that selects RAX", tdcall(0, &[(1, 1)])),
        ("VP.VMCALL that selects RBP", tdcall(0, &[(1, 1 << 5)])),
        ("VP.VMCALL with reserved bits", tdcall(0, &[(1, 1 << 32)])),
        ("MR.RTMR.EXTEND", tdcall(2, &[(1, 0x1000), (2, 2)])),
        ("MR.RTMR.EXTEND unaligned", tdcall(2, &[(1, 0x1020), (2, 2)])),
        ("MR.RTMR.EXTEND of RTMR4", tdcall(2, &[(1, 0x1000), (2, 4)])),
        ("MR.RTMR.EXTEND from shared memory", tdcall(2, &[(1, SHARED | SHARED_BIT), (2, 2)])),
        ("MR.RTMR.EXTEND beyond the address width", tdcall(2, &[(1, 1 << 48), (2, 2)])),
        ("MR.REPORT", tdcall(4, &[(1, SHARED | SHARED_BIT | 0xc000), (2, 0x1000)])),
        ("MR.REPORT unaligned", tdcall(4, &[(1, 0x6200), (2, 0x1000)])),
        ("MR.REPORT with unaligned data", tdcall(4, &[(1, 0x6800), (2, 0x1020)])),
        ("MR.REPORT of sub-type 1", tdcall(4, &[(1, 0x6800), (2, 0x1000), (8, 1)])),
        ("MR.REPORT into private memory", tdcall(4, &[(1, 0x6800), (2, 0x1000)])),
        ("MR.VERIFYREPORT", tdcall(22, &[(1, 0x6800)])),
        ("MR.VERIFYREPORT of something else", tdcall(22, &[(1, 0x1000)])),
        ("SERVTD.RD", tdcall(18, &[])),
        ("SERVTD.WR", tdcall(20, &[])),
    ];
    each(&strict(), cases, status)
}

fn metadata() -> Lines {
    let read = |field: u64| tdcall(7, &[(2, field)]);
    let cases: &[Case] = &[
        ("VM.RD of ATTRIBUTES", read(0x1110_0003_0000_0000)),
        ("VM.RD of XFAM", read(0x1110_0003_0000_0001)),
        ("VM.RD of TSC_FREQUENCY", read(0x1110_0001_0000_000c)),
        ("VM.RD of CONFIG_FLAGS", read(0x1110_0003_0000_0016)),
        ("VM.RD of TD_CTLS", read(0x1110_0003_0000_0017)),
        ("VM.RD of RTMR2 before", read(0x1310_0003_0000_0040 + 12)),
        ("VM.RD of no such field", read(0x1110_0003_0000_0fff)),
        ("VM.RD of a sequence", read(0x1110_0003_0000_0000 | 1 << 38)),
        ("VM.RD of another VM's", tdcall(7, &[(1, 1), (2, 0x1110_0003_0000_0000)])),
        ("VM.RD version 1", tdcall(7 | 1 << 16, &[(2, 0x1110_0003_0000_0001)])),
        ("VM.WR of NOTIFY_ENABLES", tdcall(8, &[(2, 0x9100_0000_0000_0010), (8, 1), (9, 1)])),
        ("VM.RD of NOTIFY_ENABLES", read(0x9100_0000_0000_0010)),
        ("VM.WR of TD_CTLS", tdcall(8, &[(2, 0x1110_0003_0000_0017), (8, 0), (9, 1)])),
        ("VM.WR of ATTRIBUTES", tdcall(8, &[(2, 0x1110_0003_0000_0000), (8, 0), (9, 1)])),
    ];
    each(&strict(), cases, |r| format!("{:#x} r8 {:#x}", r.gpr[0], r.gpr[8]))
}

const LARGE: u64 = 2 << 20;

fn accept() -> Lines {
    let accept = |gpa: u64, level: u64| tdcall(6, &[(1, gpa | level)]);
    let cases: &[Case] = &[
        ("MEM.PAGE.ACCEPT of 1 GiB", accept(0, 2)),
        ("MEM.PAGE.ACCEPT of unaligned 2 MiB", accept(PENDING + 0x1000, 1)),
        ("MEM.PAGE.ACCEPT of a shared page", accept(SHARED | SHARED_BIT, 0)),
        ("MEM.PAGE.ACCEPT with reserved bits", accept(PENDING | 0x10, 0)),
        ("MEM.PAGE.ACCEPT of a launch page", accept(0x1000, 0)),
        ("MEM.PAGE.ACCEPT of 2 MiB with launch pages in it", accept(0, 1)),
        ("MEM.PAGE.ACCEPT of 4 KiB among launch pages", accept(0x2_0000, 0)),
        ("MEM.PAGE.ACCEPT of 2 MiB", accept(PENDING, 1)),
        ("MEM.PAGE.ACCEPT of 2 MiB again", accept(PENDING, 1)),
        ("MEM.PAGE.ACCEPT of 4 KiB of those 2 MiB", accept(PENDING + 0x5000, 0)),
        ("use of them", with(Do::Store, &[(7, PENDING + 0x5000)])),
    ];
    let mut lines = each(&strict(), cases, status)?;
    lines.push(format!("RAM ends at {:#x}", RAM_BYTES.max(PENDING + LARGE)));
    Ok(lines)
}

fn pending() -> Lines {
    let cases: &[Case] = &[
        ("read", with(Do::Load, &[(6, PENDING + 8)])),
        ("write", with(Do::Store, &[(7, PENDING + 0x1010)])),
        ("call", with(Do::Call, &[(6, PENDING + 0x2000)])),
        ("report data there", tdcall(4, &[(1, 0x6800), (2, PENDING + 0x3000)])),
        ("accept", tdcall(6, &[(1, PENDING)])),
        ("read of the accepted page", with(Do::Load, &[(6, PENDING + 8), (0, 7)])),
        ("accept again", tdcall(6, &[(1, PENDING)])),
        ("2 MiB with a small page in it", tdcall(6, &[(1, PENDING | 1)])),
    ];
    each(&Options::default(), cases, |r| match r.exception {
        None => format!("{:#x}", r.gpr[0]),
        Some(_) => outcome(r),
    })
}

fn pending_strict() -> Lines {
    let mut td = Td::build(&strict(), &[with(Do::Load, &[(6, PENDING)])])?;
    td.finalize()?;
    let first = td.run_one().map(|exit| format!("{exit:?}")).unwrap_or_else(|errno| format!("errno {errno}"));
    let then = td.run_one().map(|exit| format!("{exit:?}")).unwrap_or_else(|errno| format!("errno {errno}"));
    let ioctl = td.finalize();
    Ok(vec![first, then, format!("{ioctl:?}")])
}

/// Runs to the end; memory faults are noted and answered by `fix`.
fn with_faults(td: &mut Td, fix: fn(&Td, u64, bool) -> Result<(), String>) -> Lines {
    let mut lines = Vec::new();
    for _ in 0..20 {
        let fault = match td.run_one() {
            Ok(VcpuExit::IoOut(super::machine::DONE_PORT, _)) => return Ok(lines),
            Ok(VcpuExit::MemoryFault { flags, gpa, size }) => (flags, gpa, size),
            Ok(exit) => return Err(format!("unexpected exit {exit:?}")),
            Err(errno) => return Err(format!("errno {errno}")),
        };
        lines.push(format!("memory fault flags {:#x} gpa {:#x} size {:#x}", fault.0, fault.1, fault.2));
        fix(td, fault.1, fault.0 & 8 != 0)?;
    }
    Err("more than 20 faults".into())
}

fn disagreement() -> Lines {
    // The page at SHARED + 8000h through a private mapping, then a private page through nothing but its attribute.
    let script = [
        tdcall(6, &[(1, SHARED + 0x8000)]),
        with(Do::Load, &[(6, SHARED + 0x8000)]),
        with(Do::Load, &[(6, 0x4000_8000)]),
    ];
    let mut td = Td::build(&strict(), &script)?;
    td.finalize()?;
    let mut lines = with_faults(&mut td, |td, gpa, private| td.convert(gpa, 4096, private))?;
    lines.extend(td.records(4).iter().skip(1).map(status));
    Ok(lines)
}

fn taken_back() -> Lines {
    let script = [
        with(Do::OutAl, &[(2, 0)]),
        tdcall(6, &[(1, PENDING)]),
        with(Do::Store, &[(7, PENDING), (0, 0x1122)]),
        with(Do::Load, &[(6, PENDING)]),
        // The host takes the page and gives it back.
        vmcall(30, [1, 1, 0x77, 0]),
        with(Do::Load, &[(6, PENDING)]),
        tdcall(6, &[(1, PENDING)]),
        with(Do::Load, &[(6, PENDING)]),
    ];
    let mut td = Td::build(&Options::default(), &script)?;
    td.finalize()?;
    match td.run_one() {
        Ok(VcpuExit::IoOut(0x77, _)) => {}
        other => return Err(format!("not the call: {:?}", other.map(|exit| format!("{exit:?}")))),
    }
    td.convert(PENDING, 4096, false)?;
    td.convert(PENDING, 4096, true)?;
    td.run(surprise)?;
    Ok(td.records(9).iter().skip(2).map(status).collect())
}

fn calls_in_kernel() -> Lines {
    let msr = |index: u64| vmcall(31, [index, 0, 0, 0]);
    let cases: &[Case] = &[
        ("unknown function", vmcall(0x9999, [0; 4])),
        ("IO of three bytes", vmcall(30, [3, 0, 0x60, 0])),
        ("IO in direction 2", vmcall(30, [1, 2, 0x60, 0])),
        ("MMIO on a private address", vmcall(48, [4, 0, MMIO, 0])),
        ("MMIO of three bytes", vmcall(48, [3, 0, MMIO | SHARED_BIT, 0])),
        ("RDMSR of APIC_BASE", msr(0x1b)),
        ("RDMSR of x2APIC version", msr(0x803)),
        ("RDMSR of x2APIC TPR, which is the processor's", msr(0x808)),
        ("RDMSR of TSC_ADJUST, which KVM does not emulate", msr(0x3b)),
        ("RDMSR of FEAT_CTL", msr(0x3a)),
        ("WRMSR of APIC_BASE", vmcall(32, [0x1b, 0, 0, 0])),
        ("WRMSR of SVR", vmcall(32, [0x80f, 0x1ff, 0, 0])),
        ("RDMSR of SVR", msr(0x80f)),
        ("CPUID 40000000h", vmcall(10, [0x4000_0000, 0, 0, 0])),
        ("GetTdVmCallInfo 0", vmcall(0x1_0000, [0; 4])),
        ("GetTdVmCallInfo 2", vmcall(0x1_0000, [2, 0, 0, 0])),
        ("GetQuote from private memory", vmcall(0x1_0002, [SHARED, 0x2000, 0, 0])),
        ("SetupEventNotifyInterrupt 5", vmcall(0x1_0004, [5, 0, 0, 0])),
        ("KVM hypercall 9999", tdcall(0, &[(1, 0xfc00), (10, 9999)])),
        ("registers that are not selected", tdcall(0, &[(1, 0), (11, 0x9999)])),
    ];
    each(&strict(), cases, reply)
}

fn calls_to_client() -> Lines {
    let script = [
        vmcall(30, [2, 1, 0x80, 0x1234]),
        vmcall(30, [4, 0, 0x84, 0]),
        vmcall(48, [8, 1, MMIO | SHARED_BIT | 0x18, 0x0102_0304_0506_0708]),
        vmcall(48, [2, 0, MMIO | SHARED_BIT | 0x20, 0]),
        vmcall(0x1_0000, [1, 0, 0, 0]),
        vmcall(0x1_0002, [SHARED | SHARED_BIT | 0x8000, 0x2000, 0, 0]),
        vmcall(0x1_0004, [0x55, 0, 0, 0]),
        tdcall(0, &[(1, 0xfc00), (10, 12), (11, 0x3000), (12, 1), (13, 0x10)]),
    ];
    let mut td = Td::build(&strict(), &script)?;
    td.finalize()?;
    let mut lines = Vec::new();
    for _ in 0..script.len() {
        let line = match td.run_one() {
            Ok(VcpuExit::IoOut(port, data)) => format!("out {port:#x} {data:x?}"),
            Ok(VcpuExit::IoIn(port, data)) => {
                data.copy_from_slice(&[1, 2, 3, 4]);
                format!("in {port:#x}")
            }
            Ok(VcpuExit::MmioWrite(gpa, data)) => format!("mmio write {gpa:#x} {data:x?}"),
            Ok(VcpuExit::MmioRead(gpa, data)) => {
                data.fill(0xab);
                format!("mmio read {gpa:#x} x{}", data.len())
            }
            Ok(VcpuExit::Hypercall(exit)) => {
                *exit.ret = 0x42;
                format!("hypercall {} {:x?}", exit.nr, &exit.args[..3])
            }
            Ok(VcpuExit::Unsupported(40)) => td.exit_tdx(&[7, 0, 0xaaa, 0xbbb, 0xccc, 0xddd]),
            other => format!("{:?}", other.map(|exit| format!("{exit:?}"))),
        };
        lines.push(line);
    }
    td.run(surprise)?;
    lines.extend(td.records(script.len() + 1).iter().skip(1).map(reply));
    let info = td.records(6);
    lines.extend(info.last().map(|r| format!("info {:#x} {:#x} {:#x}", r.gpr[12], r.gpr[13], r.gpr[14])));
    Ok(lines)
}

fn map_gpa() -> Lines {
    let five = 5u64 << 20;
    let script = [
        vmcall(0x1_0001, [0x1_0000_0000 | SHARED_BIT, five, 0, 0]),
        vmcall(0x1_0001, [0x1_0000_0000, 0x1000, 0, 0]),
        vmcall(0x1_0001, [0x1_0000_0800, 0x1000, 0, 0]),
        vmcall(0x1_0001, [0x1_0000_0000, 0, 0, 0]),
        vmcall(0x1_0001, [SHARED_BIT - 0x1000, 0x2000, 0, 0]),
        vmcall(0x1_0001, [1 << 52, 0x1000, 0, 0]),
        vmcall(0x1_0001, [0x2_0000_0000, 0x1000, 0, 0]),
    ];
    let mut td = Td::build(&strict(), &script)?;
    td.finalize()?;
    let mut lines = Vec::new();
    td.run(|exit| match exit {
        VcpuExit::Hypercall(exit) => {
            lines.push(format!("hypercall {} {:x?}", exit.nr, &exit.args[..3]));
            *exit.ret = u64::from(exit.args[0] == 0x2_0000_0000);
            Ok(())
        }
        other => surprise(other),
    })?;
    lines.extend(td.records(script.len() + 1).iter().skip(1).map(reply));
    Ok(lines)
}

fn fatal() -> Lines {
    let report = tdcall(
        0,
        &[
            (1, 0xffcc),
            (11, 0x1_0003),
            (12, 0x8000_0000_0000_0000),
            (2, 2),
            (3, 3),
            (6, 6),
            (7, 7),
            (8, 0x6c75_6e6b_6f77_6e21),
            (9, 9),
            (13, 13),
            (14, 14),
            (15, 15),
        ],
    );
    let mut td = Td::build(&strict(), &[report])?;
    td.finalize()?;
    match td.run_one() {
        Ok(VcpuExit::SystemEvent(kind, data)) => Ok(vec![format!("system event {kind} {data:x?}")]),
        other => Err(format!("{:?}", other.map(|exit| format!("{exit:?}")))),
    }
}

fn halt() -> Lines {
    const VECTOR: u64 = 0x51;
    let script = [
        // LAPIC on, timer one-shot, undivided, vector 51h, half a million bus cycles.
        vmcall(32, [0x80f, 0x1ff, 0, 0]),
        vmcall(32, [0x83e, 0xb, 0, 0]),
        vmcall(32, [0x832, VECTOR, 0, 0]),
        vmcall(32, [0x838, 500_000, 0, 0]),
        // HLT with "interrupts are not blocked": IF is clear all the same, so the interrupt stays pending.
        vmcall(12, [0, 0, 0, 0]),
        with(Do::Rdmsr, &[(1, 0x822)]),
    ];
    let records = alone(&strict(), &script)?;
    let irr = records.get(6).ok_or("a record")?;
    Ok(vec![format!("IRR 64..95 after the halt: {:#x}", irr.gpr[0] as u32)])
}

//! A TD with one vCPU: 4 MiB of RAM at zero of which a few pages are measured, a shared page for records, a reset page.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use kvm_bindings::{
    CpuId, KVM_CAP_EXIT_HYPERCALL, KVM_CAP_SPLIT_IRQCHIP, KVM_MEM_GUEST_MEMFD, KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_X86_TDX_VM, kvm_cpuid_entry2, kvm_create_guest_memfd, kvm_enable_cap, kvm_memory_attributes,
    kvm_userspace_memory_region2,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::code::{self, BODY, Do, RECORDS, SCRIPT, VARIABLES};
use super::ioctl::{self, Cpuid, InitVm, MemRegion, id};

/// RAM at zero.
pub const RAM_BYTES: u64 = 4 << 20;
/// GPA of the shared page with records.
pub const SHARED: u64 = 0x80_0000;
/// GPA of nothing: MMIO when it is shared. The guest sees it at [`MMIO_GVA`].
pub const MMIO: u64 = 0xa0_0000;
/// See [`MMIO`].
pub const MMIO_GVA: u64 = 0x4020_0000;
/// RAM that the launch did not add, at the same guest-virtual address.
pub const PENDING: u64 = 0x20_0000;
/// The shared bit of a 48-bit TD.
pub const SHARED_BIT: u64 = 1 << 47;
/// The port of the guest's last byte.
pub const DONE_PORT: u16 = 0x501;

const RESET_PAGE: u64 = 0xffff_f000;
const PAGE_TABLES: u64 = 0x1_0000;
const GDT: u64 = 0x1_5000;
const IDT: u64 = 0x1_6000;
const ATTRIBUTE_SEPT_VE_DISABLE: u64 = 1 << 28;

/// How a TD is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bits of the guest-physical address width.
    pub gpaw: u8,
    /// ATTRIBUTES.
    pub attributes: u64,
    /// MRCONFIGID, MROWNER, MROWNERCONFIG.
    pub identities: [[u8; 48]; 3],
    /// RCX at entry.
    pub rcx: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { gpaw: 48, attributes: 0, identities: [[0; 48]; 3], rcx: 0x1234_5678 }
    }
}

/// With SEPT_VE_DISABLE.
pub fn strict() -> Options {
    Options { attributes: ATTRIBUTE_SEPT_VE_DISABLE, ..Options::default() }
}

/// A step of the guest's script.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The instruction.
    pub what: Do,
    /// RAX, RCX, RDX, RBX, RSP (ignored), RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
}

/// A step with some registers set.
pub fn with(what: Do, registers: &[(usize, u64)]) -> Step {
    let mut gpr = [0; 16];
    for &(register, value) in registers {
        gpr[register] = value;
    }
    Step { what, gpr }
}

/// TDCALL of a leaf.
pub fn tdcall(leaf: u64, registers: &[(usize, u64)]) -> Step {
    let mut step = with(Do::Tdcall, registers);
    step.gpr[0] = leaf;
    step
}

/// TDG.VP.VMCALL of a function with R12 to R15.
pub fn vmcall(function: u64, args: [u64; 4]) -> Step {
    let [r12, r13, r14, r15] = args;
    tdcall(0, &[(1, 0xfc00), (11, function), (12, r12), (13, r13), (14, r14), (15, r15)])
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The exception's vector.
    pub exception: Option<u8>,
    /// Its error code, if it has one.
    pub error: u64,
    /// CR2.
    pub cr2: u64,
    /// VE_INFO: reason, qualification, GLA, GPA, instruction length and information.
    pub ve: [u64; 5],
    /// The registers afterwards, if there was no exception.
    pub gpr: [u64; 16],
}

/// The TD.
pub struct Td {
    shared: *mut u8,
    /// The VM's descriptor.
    pub vm: VmFd,
    /// The vCPU's descriptor.
    pub vcpu: VcpuFd,
    /// The pages of the launch, in order: GPA and contents.
    pub launch: Vec<(u64, Vec<u8>)>,
}

fn say(what: &str) -> impl FnOnce(kvm_ioctls::Error) -> String + '_ {
    move |error| format!("{what}: {error}")
}

fn refused(what: &str) -> impl FnOnce((i32, u64)) -> String + '_ {
    move |(errno, module)| format!("{what}: errno {errno}, module {module:#x}")
}

fn map(bytes: usize) -> Result<*mut u8, String> {
    // SAFETY: a fresh anonymous mapping; checked below.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if memory == libc::MAP_FAILED { Err("no memory".into()) } else { Ok(memory.cast()) }
}

/// A TD's VM before KVM_TDX_INIT_VM.
pub fn create_vm() -> Result<VmFd, String> {
    let kvm = Kvm::new().map_err(say("/dev/kvm"))?;
    let vm = kvm.create_vm_with_type(u64::from(KVM_X86_TDX_VM)).map_err(say("KVM_CREATE_VM"))?;
    for (cap, value) in [(KVM_CAP_SPLIT_IRQCHIP, 24), (KVM_CAP_EXIT_HYPERCALL, 1 << 12)] {
        let cap = kvm_enable_cap { cap, args: [value, 0, 0, 0], ..kvm_enable_cap::default() };
        vm.enable_cap(&cap).map_err(say("KVM_ENABLE_CAP"))?;
    }
    Ok(vm)
}

/// KVM_TDX_INIT_VM's argument.
pub fn init_vm(options: &Options) -> InitVm {
    let mut init = InitVm {
        attributes: options.attributes,
        xfam: 3,
        identities: options.identities,
        reserved: [0; 12],
        entries: 2,
        padding: 0,
        table: [kvm_cpuid_entry2::default(); 8],
    };
    init.table[0] = kvm_cpuid_entry2 {
        function: 0x8000_0008,
        eax: u32::from(options.gpaw) << 16,
        ..kvm_cpuid_entry2::default()
    };
    // TSC_DEADLINE
    init.table[1] =
        kvm_cpuid_entry2 { function: 1, eax: 0x0008_06f8, ecx: 1 << 24, ..kvm_cpuid_entry2::default() };
    init
}

/// KVM_SET_CPUID2 with what KVM_TDX_GET_CPUID says, as a VMM does.
pub fn set_cpuid(vcpu: &VcpuFd) -> Result<(), String> {
    let mut own = Cpuid { entries: 64, padding: 0, table: [kvm_cpuid_entry2::default(); 64] };
    ioctl::with(vcpu, id::GET_CPUID, 0, &mut own).map_err(refused("KVM_TDX_GET_CPUID"))?;
    let mut entries: Vec<_> = own.table.iter().take(own.entries as usize).copied().collect();
    entries.push(kvm_cpuid_entry2 { function: 0x4000_0000, eax: 0x4000_0001, ..Default::default() });
    let table = CpuId::from_entries(&entries).map_err(|e| format!("{e:?}"))?;
    vcpu.set_cpuid2(&table).map_err(say("KVM_SET_CPUID2"))
}

fn slot(vm: &VmFd, slot: u32, gpa: u64, bytes: u64) -> Result<*mut u8, String> {
    let hva = map(bytes as usize)?;
    let args = kvm_create_guest_memfd { size: bytes, ..kvm_create_guest_memfd::default() };
    let raw = vm.create_guest_memfd(args).map_err(say("KVM_CREATE_GUEST_MEMFD"))?;
    // SAFETY: a fresh descriptor of ours.
    let memory = unsafe { OwnedFd::from_raw_fd(raw) };
    let region = kvm_userspace_memory_region2 {
        slot,
        flags: KVM_MEM_GUEST_MEMFD,
        guest_phys_addr: gpa,
        memory_size: bytes,
        userspace_addr: hva as u64,
        guest_memfd: memory.as_raw_fd() as u32,
        ..kvm_userspace_memory_region2::default()
    };
    // SAFETY: the mapping lives as long as the process.
    unsafe { vm.set_user_memory_region2(region) }.map_err(say("KVM_SET_USER_MEMORY_REGION2"))?;
    std::mem::forget(memory);
    Ok(hva)
}

/// Makes a range private or shared.
pub fn set_private(vm: &VmFd, gpa: u64, bytes: u64, private: bool) -> Result<(), String> {
    let attributes = if private { u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE) } else { 0 };
    let range = kvm_memory_attributes { address: gpa, size: bytes, attributes, flags: 0 };
    vm.set_memory_attributes(range).map_err(say("KVM_SET_MEMORY_ATTRIBUTES"))
}

/// The pages of the launch: code, script, page tables, descriptor tables, reset page.
fn pages(options: &Options, script: &[Step]) -> Vec<(u64, Vec<u8>)> {
    let mut low = vec![0u8; 0x1_7000];
    let mut put = |at: u64, bytes: &[u8]| low[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    put(BODY, code::body());
    put(VARIABLES, &SCRIPT.to_le_bytes());
    put(VARIABLES + 8, &RECORDS.to_le_bytes());
    for (i, step) in script.iter().enumerate() {
        let at = SCRIPT + 136 * i as u64;
        put(at, &(step.what as u64).to_le_bytes());
        for (r, value) in step.gpr.iter().enumerate() {
            put(at + 8 + 8 * r as u64, &value.to_le_bytes());
        }
    }
    put(SCRIPT + 136 * script.len() as u64, &u64::MAX.to_le_bytes());
    let shared_bit = 1u64 << (options.gpaw - 1);
    put(PAGE_TABLES, &(PAGE_TABLES + 0x1003).to_le_bytes());
    put(PAGE_TABLES + 0x1000, &(PAGE_TABLES + 0x2003).to_le_bytes());
    put(PAGE_TABLES + 0x1008, &(PAGE_TABLES + 0x3003).to_le_bytes());
    put(PAGE_TABLES + 0x1018, &(PAGE_TABLES + 0x4003).to_le_bytes());
    for i in 0..16u64 {
        put(PAGE_TABLES + 0x2000 + 8 * i, &(i << 21 | 0x83).to_le_bytes());
    }
    put(PAGE_TABLES + 0x3000, &(SHARED | shared_bit | 0x83).to_le_bytes());
    put(PAGE_TABLES + 0x3008, &(MMIO | shared_bit | 0x83).to_le_bytes());
    put(PAGE_TABLES + 0x4ff8, &(0xffe0_0083u64).to_le_bytes());
    put(GDT + 8, &0x00af_9b00_0000_ffffu64.to_le_bytes());
    put(GDT + 16, &0x00cf_9300_0000_ffffu64.to_le_bytes());
    for vector in 0..32u64 {
        let target = code::HANDLERS + 16 * vector;
        put(IDT + 16 * vector, &((target & 0xffff) | 8 << 16 | 0x8e00 << 32).to_le_bytes());
    }
    let mut reset = code::reset_page().to_vec();
    reset[0xe00..0xe06].copy_from_slice(&[0xff, 0, 0, 0x50, 1, 0]);
    // The guest takes its IDT pointer from here.
    reset[0xe08..0xe0e].copy_from_slice(&[0xff, 1, 0, 0x60, 1, 0]);
    let chunks = low.chunks_exact(4096).enumerate().map(|(i, page)| (4096 * i as u64, page.to_vec()));
    let used = chunks.filter(|(_, page)| page.iter().any(|&b| b != 0));
    // The stack is part of it.
    used.chain([(0x4000, vec![0; 4096]), (RESET_PAGE, reset)]).collect()
}

impl Td {
    /// A TD that carries out a script; not yet finalized.
    pub fn build(options: &Options, script: &[Step]) -> Result<Self, String> {
        let vm = create_vm()?;
        ioctl::with(&vm, id::INIT_VM, 0, &mut init_vm(options)).map_err(refused("KVM_TDX_INIT_VM"))?;
        slot(&vm, 0, 0, RAM_BYTES)?;
        let shared = slot(&vm, 1, SHARED, 0x1_0000)?;
        slot(&vm, 2, RESET_PAGE, 4096)?;
        set_private(&vm, 0, RAM_BYTES, true)?;
        set_private(&vm, RESET_PAGE, 4096, true)?;
        let vcpu = vm.create_vcpu(0).map_err(say("KVM_CREATE_VCPU"))?;
        set_cpuid(&vcpu)?;
        ioctl::plain(&vcpu, id::INIT_VCPU, options.rcx).map_err(refused("KVM_TDX_INIT_VCPU"))?;
        let launch = pages(options, script);
        for (gpa, page) in &launch {
            let source = map(4096)?;
            // SAFETY: a page of our own.
            unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), source, 4096) };
            let mut region = MemRegion { source: source as u64, gpa: *gpa, pages: 1 };
            ioctl::with(&vcpu, id::INIT_MEM_REGION, 1, &mut region)
                .map_err(refused("KVM_TDX_INIT_MEM_REGION"))?;
        }
        Ok(Self { shared, vm, vcpu, launch })
    }

    /// KVM_TDX_FINALIZE_VM.
    pub fn finalize(&self) -> Result<(), String> {
        ioctl::plain(&self.vm, id::FINALIZE_VM, 0).map_err(refused("KVM_TDX_FINALIZE_VM"))
    }

    /// Reads the memory that the guest shares.
    pub fn shared(&self, offset: usize, bytes: usize) -> Vec<u8> {
        assert!(offset + bytes <= 0x1_0000, "inside the shared slot");
        // SAFETY: inside the mapping (asserted); guest memory is accessed raw.
        (0..bytes).map(|i| unsafe { self.shared.add(offset + i).read_volatile() }).collect()
    }

    /// What became of the steps; the first record is the state at entry.
    pub fn records(&self, count: usize) -> Vec<Record> {
        let bytes = self.shared(0, 192 * count);
        let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|b| bytes[8 * i + b]));
        (0..count)
            .map(|n| {
                let at = 24 * n;
                Record {
                    exception: word(at).checked_sub(1).map(|v| v as u8),
                    error: word(at + 1),
                    cr2: word(at + 2),
                    ve: std::array::from_fn(|i| word(at + 3 + i)),
                    gpr: std::array::from_fn(|i| word(at + 8 + i)),
                }
            })
            .collect()
    }

    /// KVM_RUN.
    pub fn run_one(&mut self) -> Result<VcpuExit<'_>, i32> {
        self.vcpu.run().map_err(|e| e.errno())
    }

    /// Gives a range to the guest or takes it, discarding what was there, as a client answers a conversion.
    pub fn convert(&self, gpa: u64, bytes: u64, private: bool) -> Result<(), String> {
        set_private(&self.vm, gpa, bytes, private)
    }

    /// Describes a KVM_EXIT_TDX, and answers it with these words: the status, then the function's.
    pub fn exit_tdx(&mut self, words: &[u64]) -> String {
        let run = self.vcpu.get_kvm_run();
        // SAFETY: the exit's part of the union is all integers, and within the 256 bytes of padding.
        let details: &mut [u64; 8] = unsafe { &mut *std::ptr::from_mut(&mut run.__bindgen_anon_1).cast() };
        let seen = format!("KVM_EXIT_TDX flags {} nr {:#x} {:x?}", details[0], details[1], &details[2..5]);
        for (to, from) in details.iter_mut().skip(2).zip(words) {
            *to = *from;
        }
        seen
    }

    /// Runs to the end of the script; `answer` serves the exits.
    pub fn run(&mut self, mut answer: impl FnMut(VcpuExit<'_>) -> Result<(), String>) -> Result<(), String> {
        for _ in 0..1000 {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(DONE_PORT, [0x2a])) => return Ok(()),
                Ok(exit) => answer(exit)?,
                Err(error) => return Err(format!("errno {}", error.errno())),
            }
        }
        Err("more than 1000 exits".into())
    }
}

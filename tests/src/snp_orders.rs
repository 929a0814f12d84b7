//! KVM_MEMORY_ENCRYPT_OP of an SNP VM out of order, in the wrong state and with wrong fields, through the real ioctls.
//!
//! The expected answers are Linux's (`arch/x86/kvm/svm/sev.c`) and, where the kernel passes the command on, the secure
//! processor's (SEV-SNP firmware ABI 56860, "Status Codes").

use std::fs::File;
use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_MEM_GUEST_MEMFD, KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_create_guest_memfd, kvm_memory_attributes,
    kvm_sev_cmd, kvm_sev_init, kvm_sev_snp_launch_finish, kvm_sev_snp_launch_start,
    kvm_sev_snp_launch_update, kvm_userspace_memory_region2,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

const SNP_VM: u64 = 4;
pub(crate) const PAGE: u64 = 4096;
const RAM: u64 = 64 * PAGE;
pub(crate) const POLICY: u64 = 0x3_0000;

const LAUNCH_START: u32 = 2;
const INIT2: u32 = 22;
const SNP_START: u32 = 100;
const SNP_UPDATE: u32 = 101;
const SNP_FINISH: u32 = 102;

pub(crate) const NORMAL: u8 = 1;
const VMSA: u8 = 2;
const ZERO: u8 = 3;
const CPUID: u8 = 6;

/// An errno and the secure processor's status; zeros for success.
pub type Answer = (i32, u32);

pub(crate) const OK: Answer = (0, 0);
const EPERM: Answer = (libc::EPERM, 0);
const EIO: Answer = (libc::EIO, 0);
const EBADF: Answer = (libc::EBADF, 0);
const EINVAL: Answer = (libc::EINVAL, 0);
const ENOTTY: Answer = (libc::ENOTTY, 0);
const INVALID_GUEST_STATE: Answer = (libc::EIO, 2);
const POLICY_FAILURE: Answer = (libc::EIO, 7);
const INVALID_PARAM: Answer = (libc::EIO, 22);

/// A page-aligned page.
#[repr(align(4096))]
struct Page([u8; PAGE as usize]);

pub(crate) struct Guest {
    pub(crate) vm: VmFd,
    sev: File,
    vcpu: Option<VcpuFd>,
    page: Box<Page>,
    shared: *mut libc::c_void,
}

impl Guest {
    pub(crate) fn new() -> Result<Self, String> {
        let kvm = Kvm::new().map_err(|e| format!("/dev/kvm: {e}"))?;
        let vm = kvm.create_vm_with_type(SNP_VM).map_err(|e| format!("KVM_CREATE_VM(SNP): {e}"))?;
        let sev =
            File::options().read(true).write(true).open("/dev/sev").map_err(|e| format!("/dev/sev: {e}"))?;
        // SAFETY: a fresh anonymous mapping; it lives as long as the process.
        let shared = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), RAM as usize, protection, flags, -1, 0)
        };
        if shared == libc::MAP_FAILED {
            return Err("no memory".into());
        }
        let guest = Self { vm, sev, vcpu: None, page: Box::new(Page([0; PAGE as usize])), shared };
        guest.add_ram().map_err(|e| format!("guest memory: {e}"))?;
        Ok(guest)
    }

    fn add_ram(&self) -> Result<(), kvm_ioctls::Error> {
        let memfd = kvm_create_guest_memfd { size: RAM, flags: 0, reserved: [0; 6] };
        let guest_memfd = self.vm.create_guest_memfd(memfd)? as u32;
        let region = kvm_userspace_memory_region2 {
            flags: KVM_MEM_GUEST_MEMFD,
            memory_size: RAM,
            userspace_addr: self.shared as u64,
            guest_memfd,
            ..Default::default()
        };
        // SAFETY: the mapping has `RAM` bytes and lives as long as the process.
        unsafe { self.vm.set_user_memory_region2(region) }?;
        self.vm.set_memory_attributes(kvm_memory_attributes {
            size: RAM / 2,
            attributes: u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE),
            ..Default::default()
        })
    }

    /// A command; `data` is what it takes.
    fn command<T>(&self, id: u32, data: &mut T, sev: bool) -> Answer {
        let sev_fd = if sev { self.sev.as_raw_fd() as u32 } else { u32::MAX };
        let data = std::ptr::from_mut(data) as u64;
        let mut command = kvm_sev_cmd { id, data, sev_fd, ..Default::default() };
        let result = self.vm.encrypt_op_sev(&mut command);
        (result.err().map_or(0, |e| e.errno()), command.error)
    }

    pub(crate) fn init2(&self, vmsa_features: u64, flags: u32, ghcb_version: u16) -> Answer {
        let mut init = kvm_sev_init { vmsa_features, flags, ghcb_version, ..Default::default() };
        self.command(INIT2, &mut init, true)
    }

    pub(crate) fn start(&self, policy: u64, flags: u16, sev: bool) -> Answer {
        let mut start = kvm_sev_snp_launch_start { policy, flags, ..Default::default() };
        self.command(SNP_START, &mut start, sev)
    }

    pub(crate) fn update(&self, page: u64, len: u64, type_: u8, flags: u16) -> Answer {
        let mut update = kvm_sev_snp_launch_update {
            gfn_start: page,
            uaddr: std::ptr::from_ref(&*self.page) as u64,
            len,
            type_,
            flags,
            ..Default::default()
        };
        self.command(SNP_UPDATE, &mut update, true)
    }

    pub(crate) fn finish(&self, flags: u16) -> Answer {
        let mut finish = kvm_sev_snp_launch_finish { flags, ..Default::default() };
        self.command(SNP_FINISH, &mut finish, true)
    }

    /// What the next page holds that is given to the launch.
    pub(crate) fn fill(&mut self, code: &[u8]) {
        self.page.0[..code.len()].copy_from_slice(code);
    }

    fn create_vcpu(&mut self) -> Answer {
        match self.vm.create_vcpu(0) {
            Ok(vcpu) => {
                self.vcpu = Some(vcpu);
                OK
            }
            Err(error) => (error.errno(), 0),
        }
    }

    fn with_vcpu(&mut self, act: impl FnOnce(&mut VcpuFd) -> Result<(), kvm_ioctls::Error>) -> Answer {
        let result = self.vcpu.as_mut().map(act);
        result.map_or((-1, 0), |result| (result.err().map_or(0, |e| e.errno()), 0))
    }
}

/// One step, and what a kernel answers.
type Step = (&'static str, fn(&mut Guest) -> Answer, Answer);

const TOO_EARLY: &[Step] = &[
    ("START before INIT2", |g| g.start(POLICY, 0, true), ENOTTY),
    ("UPDATE before INIT2", |g| g.update(0, PAGE, NORMAL, 0), EINVAL),
    ("FINISH before INIT2", |g| g.finish(0), ENOTTY),
    ("a vCPU before INIT2", Guest::create_vcpu, OK),
    ("KVM_RUN before INIT2", |g| g.with_vcpu(|vcpu| vcpu.run().map(drop)), EINVAL),
    ("INIT2 after a vCPU", |g| g.init2(0, 0, 2), EINVAL),
];

const LAUNCH: &[Step] = &[
    ("INIT2 with flags", |g| g.init2(0, 1, 2), EINVAL),
    ("INIT2 with VMSA features that do not exist", |g| g.init2(1 << 40, 0, 2), EINVAL),
    ("INIT2 with GHCB version 3", |g| g.init2(0, 0, 3), EINVAL),
    ("INIT2", |g| g.init2(0, 0, 2), OK),
    ("INIT2 again", |g| g.init2(0, 0, 2), EPERM),
    ("a command for SEV guests", |g| g.command(LAUNCH_START, &mut [0u8; 64], true), EPERM),
    ("UPDATE before START", |g| g.update(0, PAGE, NORMAL, 0), EINVAL),
    ("FINISH before START", |g| g.finish(0), EINVAL),
    ("START with policy bit 17 clear", |g| g.start(0x1_0000, 0, true), EINVAL),
    ("START with flags", |g| g.start(POLICY, 1, true), EINVAL),
    ("START without /dev/sev", |g| g.start(POLICY, 0, false), EBADF),
    ("START with an ABI that no firmware has", |g| g.start(POLICY | 0xffff, 0, true), POLICY_FAILURE),
    ("START", |g| g.start(POLICY, 0, true), OK),
    ("START again", |g| g.start(POLICY, 0, true), EINVAL),
    ("UPDATE of a VMSA", |g| g.update(0, PAGE, VMSA, 0), EINVAL),
    ("UPDATE with flags", |g| g.update(0, PAGE, NORMAL, 1), EINVAL),
    ("UPDATE of half a page", |g| g.update(0, PAGE / 2, NORMAL, 0), EINVAL),
    ("UPDATE where there is no memory", |g| g.update(1000, PAGE, NORMAL, 0), EINVAL),
    ("UPDATE of nothing", |g| g.update(0, 0, NORMAL, 0), EIO),
    ("UPDATE of a shared page", |g| g.update(40, PAGE, NORMAL, 0), EIO),
    ("UPDATE with a CPUID page that the processor cannot keep", |g| g.bad_cpuid_page(), INVALID_PARAM),
    ("the same page as the processor corrected it", |g| g.update(1, PAGE, CPUID, 0), OK),
    ("UPDATE", |g| g.update(0, PAGE, NORMAL, 0), OK),
    ("UPDATE of the same page", |g| g.update(0, PAGE, NORMAL, 0), EIO),
    ("UPDATE with zeros", |g| g.update(2, 2 * PAGE, ZERO, 0), OK),
    ("a vCPU", Guest::create_vcpu, OK),
    ("KVM_GET_REGS before FINISH", |g| g.with_vcpu(|vcpu| vcpu.get_regs().map(drop)), OK),
    ("FINISH with flags", |g| g.finish(1), EINVAL),
    ("FINISH", |g| g.finish(0), OK),
    ("FINISH again", |g| g.finish(0), INVALID_GUEST_STATE),
    ("UPDATE after FINISH", |g| g.update(9, PAGE, NORMAL, 0), INVALID_GUEST_STATE),
    ("KVM_GET_REGS after FINISH", |g| g.with_vcpu(|vcpu| vcpu.get_regs().map(drop)), EINVAL),
    ("KVM_SET_SREGS after FINISH", |g| g.with_vcpu(|vcpu| vcpu.set_sregs(&Default::default())), EINVAL),
];

impl Guest {
    /// One entry: leaf 1 with every feature bit set.
    fn bad_cpuid_page(&mut self) -> Answer {
        let words: [(usize, u32); 4] = [(0, 1), (16, 1), (48, !0), (52, !0)];
        for (at, word) in words {
            self.page.0[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        self.update(1, PAGE, CPUID, 0)
    }
}

/// Takes every step; the ones that were answered otherwise.
pub fn differences() -> Result<Vec<String>, String> {
    let mut differences = Vec::new();
    for steps in [TOO_EARLY, LAUNCH] {
        let mut guest = Guest::new()?;
        for (name, act, expected) in steps {
            let answer = act(&mut guest);
            if answer != *expected {
                differences.push(format!("{name}: (errno, status) {answer:?} instead of {expected:?}"));
            }
        }
    }
    Ok(differences)
}

//! One VM with 1 MiB at address zero and one vCPU, in real mode or in 64-bit mode with the first 2 MiB mapped.

use kvm_bindings::{
    KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

/// Guest memory.
pub const RAM_BYTES: usize = 1 << 20;
/// Where code starts.
pub const CODE: u64 = 0x1000;
/// Where guests leave results.
pub const RESULTS: u64 = 0x8000;
const PAGE_TABLES: u64 = 0x1_0000;
/// Interrupt descriptor table of 64-bit guests.
const IDT: u64 = 0x1_4000;
const GDT: u64 = 0x1_5000;
/// A read-only page.
pub const READ_ONLY: u64 = 0x20_0000;

/// What a guest function returns.
pub type Events = Result<Vec<String>, String>;

/// The VM.
pub struct Machine {
    ram: *mut u8,
    /// The VM's descriptor.
    pub vm: VmFd,
    /// The vCPU's descriptor.
    pub vcpu: VcpuFd,
    /// What happened.
    pub events: Vec<String>,
}

fn say(what: &str) -> impl FnOnce(kvm_ioctls::Error) -> String + '_ {
    move |error| format!("{what}: {error}")
}

impl Machine {
    /// A machine in real mode at [`CODE`].
    pub fn real_mode(code: &[u8]) -> Result<Self, String> {
        Self::build(code, |_| Ok(()))
    }

    /// As [`Self::real_mode`], with a step between KVM_CREATE_VM and the first vCPU.
    pub fn build(code: &[u8], prepare: impl FnOnce(&VmFd) -> Result<(), String>) -> Result<Self, String> {
        let kvm = Kvm::new().map_err(say("/dev/kvm"))?;
        let vm = kvm.create_vm().map_err(say("KVM_CREATE_VM"))?;
        prepare(&vm)?;
        // SAFETY: a fresh anonymous mapping; checked below.
        let ram = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RAM_BYTES + 4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if ram == libc::MAP_FAILED {
            return Err("no memory".into());
        }
        let slots = [
            (0, 0u64, RAM_BYTES as u64, 0usize, KVM_MEM_LOG_DIRTY_PAGES),
            (1, READ_ONLY, 4096, RAM_BYTES, KVM_MEM_READONLY),
        ];
        for (slot, guest_phys_addr, memory_size, offset, flags) in slots {
            let userspace_addr = (ram as usize + offset) as u64;
            let region =
                kvm_userspace_memory_region { slot, flags, guest_phys_addr, memory_size, userspace_addr };
            // SAFETY: the mapping lives as long as the process.
            unsafe { vm.set_user_memory_region(region) }.map_err(say("KVM_SET_USER_MEMORY_REGION"))?;
        }
        let vcpu = vm.create_vcpu(0).map_err(say("KVM_CREATE_VCPU"))?;
        let mut machine = Self { ram: ram.cast(), vm, vcpu, events: Vec::new() };
        machine.write(CODE, code);
        let mut sregs = machine.vcpu.get_sregs().map_err(say("KVM_GET_SREGS"))?;
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        machine.vcpu.set_sregs(&sregs).map_err(say("KVM_SET_SREGS"))?;
        let regs = kvm_regs { rip: CODE, rsp: 0x7000, rflags: 2, ..kvm_regs::default() };
        machine.vcpu.set_regs(&regs).map_err(say("KVM_SET_REGS"))?;
        Ok(machine)
    }

    /// A machine in 64-bit mode, 2 MiB identity-mapped, CPL 0, with an IDT of handlers at `CODE + handlers`.
    pub fn long_mode(code: &[u8], handlers: Option<u64>) -> Result<Self, String> {
        let mut machine = Self::real_mode(code)?;
        machine.enter_long_mode(handlers)?;
        Ok(machine)
    }

    /// Switches a fresh machine to 64-bit mode.
    pub fn enter_long_mode(&mut self, handlers: Option<u64>) -> Result<(), String> {
        self.write(PAGE_TABLES, &(PAGE_TABLES + 0x1003).to_le_bytes());
        self.write(PAGE_TABLES + 0x1000, &(PAGE_TABLES + 0x2003).to_le_bytes());
        // Two large pages: RAM, and the hole with the read-only page.
        self.write(PAGE_TABLES + 0x2000, &0x83u64.to_le_bytes());
        self.write(PAGE_TABLES + 0x2008, &0x20_0083u64.to_le_bytes());
        // And two more: the interrupt chips, uncached.
        self.write(PAGE_TABLES + 0x1018, &(PAGE_TABLES + 0x3003).to_le_bytes());
        for gpa in [0xfec0_0000u64, 0xfee0_0000] {
            self.write(PAGE_TABLES + 0x3000 + (gpa >> 21 & 511) * 8, &(gpa | 0x93).to_le_bytes());
        }
        self.write(GDT + 8, &0x00af_9b00_0000_ffffu64.to_le_bytes());
        self.write(GDT + 16, &0x00cf_9300_0000_ffffu64.to_le_bytes());
        if let Some(offset) = handlers {
            for vector in 0..32u64 {
                self.set_handler(vector, CODE + offset + vector * 16);
            }
        }
        let mut sregs = self.vcpu.get_sregs().map_err(say("KVM_GET_SREGS"))?;
        let data = kvm_segment {
            base: 0,
            limit: 0xffff_ffff,
            selector: 16,
            type_: 3,
            present: 1,
            dpl: 0,
            db: 1,
            s: 1,
            l: 0,
            g: 1,
            avl: 0,
            unusable: 0,
            padding: 0,
        };
        sregs.cs = kvm_segment { selector: 8, type_: 11, db: 0, l: 1, ..data };
        (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0033, PAGE_TABLES, 0x620, 0x500);
        (sregs.gdt.base, sregs.gdt.limit) = (GDT, 23);
        (sregs.idt.base, sregs.idt.limit) = (IDT, 0xfff);
        self.vcpu.set_sregs(&sregs).map_err(say("KVM_SET_SREGS"))
    }

    /// An interrupt gate.
    pub fn set_handler(&mut self, vector: u64, target: u64) {
        let low = (target & 0xffff) | (8 << 16) | (0x8e00 << 32) | ((target >> 16 & 0xffff) << 48);
        self.write(IDT + vector * 16, &low.to_le_bytes());
        self.write(IDT + vector * 16 + 8, &(target >> 32).to_le_bytes());
    }

    /// Writes guest memory.
    pub fn write(&mut self, gpa: u64, bytes: &[u8]) {
        assert!(gpa as usize + bytes.len() <= RAM_BYTES + 4096, "inside RAM");
        // SAFETY: inside the mapping (asserted); guest memory is accessed raw.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ram.add(gpa as usize), bytes.len()) }
    }

    /// Reads a u64 of guest memory.
    pub fn read_u64(&self, gpa: u64) -> u64 {
        assert!(gpa as usize + 8 <= RAM_BYTES + 4096, "inside RAM");
        // SAFETY: inside the mapping (asserted); guest memory is accessed raw.
        unsafe { self.ram.add(gpa as usize).cast::<u64>().read_unaligned() }
    }

    /// Changes what the client may do with the page of guest memory at `gpa`.
    pub fn protect(&mut self, gpa: u64, protection: libc::c_int) -> Result<(), String> {
        assert!(gpa as usize + 4096 <= RAM_BYTES && gpa.is_multiple_of(4096), "a page of RAM");
        // SAFETY: a page of this machine's own mapping, of which no reference exists.
        match unsafe { libc::mprotect(self.ram.add(gpa as usize).cast(), 4096, protection) } {
            0 => Ok(()),
            _ => Err(format!("mprotect: {}", std::io::Error::last_os_error())),
        }
    }

    /// Puts a file of one page, shared, behind the page of guest memory at `gpa`.
    pub fn map_file(&mut self, gpa: u64) -> Result<std::fs::File, String> {
        use std::os::fd::{AsRawFd, FromRawFd};
        assert!(gpa as usize + 4096 <= RAM_BYTES && gpa.is_multiple_of(4096), "a page of RAM");
        let all = libc::PROT_READ | libc::PROT_WRITE;
        let fixed = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: the descriptor is fresh and owned; the page is this machine's own, of which no reference exists.
        unsafe {
            let file = std::fs::File::from_raw_fd(libc::memfd_create(c"page".as_ptr(), 0));
            file.set_len(4096).map_err(|error| error.to_string())?;
            let at = self.ram.add(gpa as usize).cast();
            match libc::mmap(at, 4096, all, fixed, file.as_raw_fd(), 0) {
                libc::MAP_FAILED => Err(format!("mmap: {}", std::io::Error::last_os_error())),
                _ => Ok(file),
            }
        }
    }

    /// Notes something.
    pub fn note(&mut self, event: String) {
        self.events.push(event);
    }

    /// Runs to the next exit; IN gives the port's low byte, MMIO reads a pattern. `true` if the guest can go on.
    pub fn run_one(&mut self) -> Result<bool, String> {
        let event = match self.vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                data.fill(port as u8);
                format!("in {port:#x} x{}", data.len())
            }
            Ok(VcpuExit::IoOut(port, data)) => format!("out {port:#x} {data:02x?}"),
            Ok(VcpuExit::MmioRead(gpa, data)) => {
                for (i, byte) in data.iter_mut().enumerate() {
                    *byte = 0xa0 + i as u8;
                }
                format!("mmio read {gpa:#x} x{}", data.len())
            }
            Ok(VcpuExit::MmioWrite(gpa, data)) => format!("mmio write {gpa:#x} {data:02x?}"),
            Ok(VcpuExit::Hlt) => "hlt".into(),
            Ok(VcpuExit::Shutdown) => "shutdown".into(),
            Ok(VcpuExit::InternalError) => return Err("KVM_EXIT_INTERNAL_ERROR".into()),
            Ok(other) => format!("{other:?}"),
            Err(error) => format!("errno {}", error.errno()),
        };
        let goes_on = event.starts_with("in ") || event.starts_with("out ") || event.starts_with("mmio");
        self.events.push(event);
        Ok(goes_on)
    }

    /// Runs until HLT, shutdown, an error, or `limit` exits.
    pub fn run(&mut self, limit: usize) -> Result<(), String> {
        for _ in 0..limit {
            if !self.run_one()? {
                return Ok(());
            }
        }
        Err(format!("more than {limit} exits: {:?}", self.events))
    }

    /// Notes the general registers and the flags that are defined after what these guests do.
    pub fn note_registers(&mut self, flags: u64) -> Result<(), String> {
        let r = self.vcpu.get_regs().map_err(say("KVM_GET_REGS"))?;
        let values =
            [r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.rip];
        self.events.push(format!("regs {values:x?} flags {:x}", r.rflags & flags));
        Ok(())
    }

    /// Notes result words.
    pub fn note_results(&mut self, count: u64) {
        let words: Vec<u64> = (0..count).map(|i| self.read_u64(RESULTS + 8 * i)).collect();
        self.events.push(format!("results {words:x?}"));
    }
}

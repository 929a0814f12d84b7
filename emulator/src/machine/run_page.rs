//! The `kvm_run` page that softkvm shares with the client.

use std::os::fd::{AsRawFd, OwnedFd};

use kvm_bindings::kvm_run;

use crate::preload::{fds, real};
use crate::uapi::errno::Errno;

/// KVM_GET_VCPU_MMAP_SIZE: kvm_run, the PIO data page, the coalesced MMIO page.
pub const MMAP_BYTES: u64 = 3 * 4096;
const PIO_OFFSET: usize = 4096;
/// The one hypercall that goes to the client (Documentation/virt/kvm/x86/hypercalls.rst).
pub const KVM_HC_MAP_GPA_RANGE: u64 = 12;

/// Our mapping of a vCPU's shared pages.
pub struct RunPage {
    base: *mut u8,
    fd: OwnedFd,
}

// SAFETY: accesses are single loads and stores through raw pointers; the other side is the client, as with the kernel.
unsafe impl Send for RunPage {}

impl RunPage {
    /// Makes the pages; the client gets a duplicate of the descriptor.
    pub fn new() -> Result<Self, Errno> {
        let fd = fds::memfd(c"kvm-vcpu", MMAP_BYTES)?;
        // SAFETY: a fresh shared mapping of the memfd made above.
        let base = unsafe {
            real::mmap()(
                std::ptr::null_mut(),
                MMAP_BYTES as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self { base: base.cast(), fd })
    }

    /// A descriptor for the client.
    pub fn client_fd(&self) -> Result<OwnedFd, Errno> {
        self.fd.try_clone().map_err(|e| Errno(e.raw_os_error().unwrap_or(libc::EMFILE)))
    }

    fn run(&self) -> *mut kvm_run {
        self.base.cast()
    }

    /// `immediate_exit`.
    pub fn immediate_exit(&self) -> bool {
        // SAFETY: inside our mapping; volatile because the client writes it at any time.
        unsafe { std::ptr::read_volatile(&raw const (*self.run()).immediate_exit) != 0 }
    }

    /// `request_interrupt_window`.
    pub fn wants_interrupt_window(&self) -> bool {
        // SAFETY: as above.
        unsafe { std::ptr::read_volatile(&raw const (*self.run()).request_interrupt_window) != 0 }
    }

    /// The client's `cr8`, an input without an in-kernel LAPIC.
    pub fn cr8(&self) -> u64 {
        // SAFETY: as above.
        unsafe { std::ptr::read_volatile(&raw const (*self.run()).cr8) }
    }

    /// Sets `exit_reason`.
    pub fn set_reason(&mut self, reason: u32) {
        // SAFETY: inside our mapping.
        unsafe { (*self.run()).exit_reason = reason }
    }

    /// The fields that KVM refreshes on every return.
    pub fn set_state(&mut self, if_flag: bool, ready: bool, cr8: u64, apic_base: u64) {
        // SAFETY: inside our mapping.
        unsafe {
            let run = self.run();
            (*run).if_flag = u8::from(if_flag);
            (*run).ready_for_interrupt_injection = u8::from(ready);
            (*run).cr8 = cr8;
            (*run).apic_base = apic_base;
            (*run).flags = 0;
        }
    }

    /// The union of exit details.
    pub fn detail<R>(&mut self, edit: impl FnOnce(&mut kvm_bindings::kvm_run__bindgen_ty_1) -> R) -> R {
        // SAFETY: inside our mapping; between exits the vCPU thread, which is us, owns the union.
        edit(unsafe { &mut (*self.run()).__bindgen_anon_1 })
    }

    /// A 64-bit word of the union of exit details, for exits that kvm-bindings does not describe.
    pub fn set_detail_word(&mut self, index: usize, value: u64) {
        self.detail(|d| {
            // SAFETY: the padding member covers the union and is made of bytes.
            let bytes = unsafe { &mut d.padding };
            if let Some(word) = bytes.chunks_exact_mut(8).nth(index) {
                for (to, from) in word.iter_mut().zip(value.to_ne_bytes()) {
                    *to = from as libc::c_char;
                }
            }
        });
    }

    /// As [`Self::set_detail_word`]; zero outside of the union.
    pub fn detail_word(&mut self, index: usize) -> u64 {
        self.detail(|d| {
            // SAFETY: as above.
            let bytes = unsafe { &d.padding };
            let word = bytes.chunks_exact(8).nth(index).unwrap_or(&[0; 8]);
            u64::from_ne_bytes(std::array::from_fn(|i| word[i] as u8))
        })
    }

    /// KVM_EXIT_IO with one datum of `bytes` bytes.
    pub fn exit_io(&mut self, out: Option<u32>, port: u16, bytes: u8) {
        self.set_reason(kvm_bindings::KVM_EXIT_IO);
        self.detail(|d| {
            d.io.direction = u8::from(out.is_some());
            d.io.size = bytes;
            d.io.port = port;
            d.io.count = 1;
            d.io.data_offset = PIO_OFFSET as u64;
        });
        if let Some(value) = out {
            // SAFETY: the PIO page is inside our mapping.
            unsafe { self.base.add(PIO_OFFSET).cast::<u32>().write_volatile(value) };
        }
    }

    /// The value that the client gave for an IN of `bytes` bytes.
    pub fn io_value(&self, bytes: u8) -> u32 {
        // SAFETY: the PIO page is inside our mapping.
        let raw = unsafe { self.base.add(PIO_OFFSET).cast::<u32>().read_volatile() };
        match bytes {
            1 => raw & 0xff,
            2 => raw & 0xffff,
            _ => raw,
        }
    }

    /// KVM_EXIT_MMIO.
    pub fn exit_mmio(&mut self, gpa: u64, write: Option<&[u8]>, bytes: usize) {
        self.set_reason(kvm_bindings::KVM_EXIT_MMIO);
        self.detail(|d| {
            // SAFETY: the MMIO member is made of integers: any bytes are valid.
            let mmio = unsafe { &mut d.mmio };
            mmio.phys_addr = gpa;
            mmio.data = [0; 8];
            if let Some(data) = write {
                for (to, from) in mmio.data.iter_mut().zip(data) {
                    *to = *from;
                }
            }
            mmio.len = bytes as u32;
            mmio.is_write = u8::from(write.is_some());
        });
    }

    /// The bytes that the client gave for an MMIO read.
    pub fn mmio_data(&mut self) -> [u8; 8] {
        // SAFETY: as in `exit_mmio`.
        self.detail(|d| unsafe { d.mmio.data })
    }

    /// KVM_EXIT_MEMORY_FAULT for one page.
    pub fn exit_memory_fault(&mut self, gpa: u64, private: bool) {
        self.set_reason(kvm_bindings::KVM_EXIT_MEMORY_FAULT);
        self.detail(|d| {
            d.memory_fault.flags =
                if private { u64::from(kvm_bindings::KVM_MEMORY_EXIT_FLAG_PRIVATE) } else { 0 };
            d.memory_fault.gpa = gpa & !0xfff;
            d.memory_fault.size = 4096;
        });
    }

    /// KVM_EXIT_SYSTEM_EVENT.
    pub fn exit_system_event(&mut self, kind: u32, data: &[u64]) {
        self.set_reason(kvm_bindings::KVM_EXIT_SYSTEM_EVENT);
        self.detail(|d| {
            d.system_event.type_ = kind;
            d.system_event.ndata = data.len() as u32;
            // SAFETY: the data member is made of integers.
            let target = unsafe { &mut d.system_event.__bindgen_anon_1.data };
            for (to, from) in target.iter_mut().zip(data) {
                *to = *from;
            }
        });
    }

    /// KVM_EXIT_HYPERCALL.
    pub fn exit_hypercall(&mut self, number: u64, args: [u64; 6]) {
        self.set_reason(kvm_bindings::KVM_EXIT_HYPERCALL);
        self.detail(|d| {
            d.hypercall.nr = number;
            d.hypercall.args = args;
            d.hypercall.ret = 0;
            // KVM_EXIT_HYPERCALL_LONG_MODE
            d.hypercall.__bindgen_anon_1.flags = 1;
        });
    }

    /// KVM_EXIT_HYPERCALL of KVM_HC_MAP_GPA_RANGE: 4 KiB pages, "encrypted" in bit 4 of the attributes.
    pub fn exit_map_gpa_range(&mut self, gpa: u64, pages: u64, private: bool) {
        self.exit_hypercall(KVM_HC_MAP_GPA_RANGE, [gpa, pages, u64::from(private) << 4, 0, 0, 0]);
    }

    /// What the client answered to KVM_EXIT_HYPERCALL.
    pub fn hypercall_result(&mut self) -> u64 {
        // SAFETY: an integer.
        self.detail(|d| unsafe { d.hypercall.ret })
    }

    /// KVM_EXIT_INTERNAL_ERROR.
    pub fn exit_internal_error(&mut self, suberror: u32, data: &[u64]) {
        self.set_reason(kvm_bindings::KVM_EXIT_INTERNAL_ERROR);
        self.detail(|d| {
            // SAFETY: made of integers.
            let internal = unsafe { &mut d.internal };
            internal.suberror = suberror;
            internal.ndata = data.len() as u32;
            for (to, from) in internal.data.iter_mut().zip(data) {
                *to = *from;
            }
        });
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.base.cast(), MMAP_BYTES as usize) };
    }
}

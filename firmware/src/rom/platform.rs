//! [`Machine`] on the processor that runs this.

use crate::{cpu, paging, tdcall, vmgexit};
use cloister_attestation::abi::{SLEEP_CONTROL_PORT, SLEEP_S5, TERMINATION_FLAG, TERMINATION_PORT};
use cloister_firmware::layout::{
    BOUNCE, HIGH_RAM_START, LAUNCH_STACK, LOW_RAM_END, NOT_RAM, RAM_BELOW_4G_END, Range, STACK, VECTORS,
};
use cloister_firmware::{
    Guest, Handoff, Machine, PageSize, PortAccess, Stop, TerminationReason, Validation, Width,
};

unsafe extern "C" {
    /// Leaves for the kernel: entry point, `boot_params`.
    fn enter_kernel(entry: u64, boot_params: u64) -> !;
}

/// The processor, its memory, and the way to its host.
pub struct Platform {
    guest: Guest,
    window: Option<u64>,
    ram_end: u64,
}

impl Platform {
    /// Takes over from the reset code. On failure, the platform that can still report it.
    pub fn start() -> Result<Self, (Self, Stop)> {
        let platform = Self::resume();
        // SAFETY: the lowest quadword of the stack is this flag's, see `is_first_failure`.
        unsafe { Self::failure_flag().write_volatile(0) };
        let started = match platform.guest {
            Guest::Plain => Ok(()),
            Guest::Snp { .. } => vmgexit::start(),
            guest @ Guest::Td { .. } => tdcall::start(guest.shared_mask()),
        };
        match started {
            Ok(()) => Ok(platform),
            Err(stop) => Err((platform, stop)),
        }
    }

    /// The platform as it is now, for code that nobody handed it to.
    pub fn resume() -> Self {
        Self { guest: paging::guest(), window: None, ram_end: 0 }
    }

    /// Whether this is the first exception or panic: reporting it may cause the next.
    pub fn is_first_failure(&self) -> bool {
        // SAFETY: as in `start`.
        unsafe {
            let before = Self::failure_flag().read_volatile();
            Self::failure_flag().write_volatile(1);
            before == 0
        }
    }

    /// The stack grows down to this word last, and by then the guard page is one push away.
    fn failure_flag() -> *mut u64 {
        STACK.start as *mut u64
    }

    /// Ends the guest.
    pub fn terminate(&mut self, stop: &Stop) -> ! {
        match self.guest {
            Guest::Snp { .. } => vmgexit::terminate(stop.reason),
            Guest::Td { .. } => tdcall::terminate(stop),
            Guest::Plain => {
                let reason = TERMINATION_FLAG | stop.reason.code();
                for (port, value) in [(TERMINATION_PORT, reason), (SLEEP_CONTROL_PORT, SLEEP_S5)] {
                    let _ = self.write_port(port, Width::Byte, u32::from(value));
                }
            }
        }
        cpu::halt()
    }

    /// Starts the kernel.
    pub fn enter(self, handoff: Handoff) -> ! {
        // The kernel reads the BIOS data area there before it has page tables of its own.
        paging::map_page_0(VECTORS.start);
        // SAFETY: the library checked and placed the kernel; nothing of this code is needed after it.
        unsafe { enter_kernel(handoff.entry, handoff.boot_params) }
    }
}

impl Machine for Platform {
    fn guest(&self) -> Guest {
        self.guest
    }

    #[inline(never)]
    fn write_port(&mut self, port: u16, width: Width, value: u32) -> Result<(), Stop> {
        let out = Some(value);
        match self.guest {
            Guest::Snp { .. } => vmgexit::port(PortAccess { port, width, out }).map(drop),
            Guest::Td { .. } => tdcall::port(PortAccess { port, width, out }).map(drop),
            // SAFETY: the ports are the machine model's; fw_cfg's DMA is pointed at the bounce buffer only.
            Guest::Plain => unsafe {
                match width {
                    Width::Byte => cpu::out8(port, value as u8),
                    Width::Word => cpu::out16(port, value as u16),
                    Width::Dword => cpu::out32(port, value),
                }
                Ok(())
            },
        }
    }

    fn read_port(&mut self, port: u16, width: Width) -> Result<u32, Stop> {
        match self.guest {
            Guest::Snp { .. } => vmgexit::port(PortAccess { port, width, out: None }),
            Guest::Td { .. } => tdcall::port(PortAccess { port, width, out: None }),
            // SAFETY: as for writing.
            Guest::Plain => Ok(unsafe {
                match width {
                    Width::Byte => u32::from(cpu::in8(port)),
                    Width::Word => u32::from(cpu::in16(port)),
                    Width::Dword => cpu::in32(port),
                }
            }),
        }
    }

    #[inline(never)]
    fn validate(&mut self, gpa: u64, size: PageSize) -> Validation {
        if let Guest::Td { .. } = self.guest {
            return tdcall::accept(gpa, size);
        }
        vmgexit::validate(gpa, size)
    }

    fn cpuid(&self, leaf: u32) -> Option<[u32; 4]> {
        let highest = core::arch::x86_64::__cpuid(leaf & 0x8000_0000).eax;
        (leaf <= highest).then(|| {
            let found = core::arch::x86_64::__cpuid(leaf);
            [found.eax, found.ebx, found.ecx, found.edx]
        })
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), Stop> {
        match self.guest {
            // SAFETY: the library writes MSRs that CPUID promises and that change no value in memory.
            Guest::Plain => unsafe { cpu::wrmsr(index, value) },
            Guest::Snp { .. } => vmgexit::write_msr(index, value)?,
            Guest::Td { .. } => {
                return Err(Stop::because(
                    TerminationReason::UnexpectedException,
                    "internal error: an MSR in a TD",
                ));
            }
        }
        Ok(())
    }

    fn make_private(&mut self, range: Range) -> Result<(), Stop> {
        match self.guest {
            Guest::Plain => Ok(()),
            Guest::Snp { .. } => vmgexit::make_private(range),
            guest @ Guest::Td { .. } => tdcall::make_private(range, guest.shared_mask()),
        }
    }

    fn clear(&mut self, gpa: u64, size: PageSize) {
        // SAFETY: the library has the page mapped, privately, and has just validated it: nobody uses it yet.
        unsafe { cpu::clear(gpa, size.bytes()) };
    }

    fn take_page_0(&mut self, fill: fn(&mut [u8; 4096])) -> Validation {
        let at = LAUNCH_STACK.start;
        paging::map_page_0(at);
        let validation = match self.guest {
            Guest::Td { .. } => tdcall::accept(0, PageSize::Small),
            _ => vmgexit::validate(at, PageSize::Small),
        };
        if validation == Validation::Changed {
            // SAFETY: the page is mapped there and accepted, and nothing else refers to it.
            fill(unsafe { &mut *(at as *mut _) });
        }
        paging::unmap_page_0(at);
        validation
    }

    fn extend_rtmr(&mut self, rtmr: u8, digest: &[u8; 48]) -> Result<(), Stop> {
        tdcall::extend(rtmr, digest)
    }

    fn map(&mut self, gib: u64) -> Result<(), Stop> {
        if gib >= 512 {
            return Err(Stop::because(TerminationReason::MemoryMapRefused, "RAM where none can be"));
        }
        // SAFETY: low memory, with the directories, is accepted before anything is mapped, and slices of RAM reach
        // no higher than 4 GiB, where the window starts.
        unsafe { paging::map(gib, &mut self.window) };
        Ok(())
    }

    fn set_ram_end(&mut self, end: u64) {
        self.ram_end = end.min(RAM_BELOW_4G_END);
    }

    fn ram(&mut self, range: Range) -> Result<&mut [u8], Stop> {
        let low = Range::new(0, LOW_RAM_END);
        let high = Range::new(HIGH_RAM_START, self.ram_end);
        let inside = range.start <= range.end && (low.contains(&range) || high.contains(&range));
        if !inside || NOT_RAM.iter().any(|own| own.overlaps(&range)) {
            return Err(Stop::because(
                TerminationReason::UnexpectedException,
                "internal error: memory that is not to be used",
            ));
        }
        // SAFETY: the range is RAM, mapped and (in an SNP guest) accepted before its end was set or launched as
        // accepted; it holds nothing of the firmware's own, and the borrow of `self` keeps other slices away.
        Ok(unsafe {
            core::slice::from_raw_parts_mut(range.start as *mut u8, (range.end - range.start) as usize)
        })
    }

    fn share(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Stop> {
        let to = bounce(offset, bytes.len())?;
        // SAFETY: inside the bounce buffer, to which only raw pointers lead.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn unshare(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), Stop> {
        let from = bounce(offset, bytes.len())?;
        // SAFETY: as above. The host may write meanwhile, so the copy may be torn; it is made once and then checked.
        unsafe { core::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
        Ok(())
    }

    fn unshare_to_ram(&mut self, offset: usize, to: Range) -> Result<(), Stop> {
        let bytes = self.ram(to)?;
        let from = bounce(offset, bytes.len())?;
        // SAFETY: as above; RAM that is handed out never is the bounce buffer.
        unsafe { core::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
        Ok(())
    }
}

/// A part of the bounce buffer.
fn bounce(offset: usize, length: usize) -> Result<*mut u8, Stop> {
    match offset.checked_add(length) {
        Some(end) if end as u64 <= BOUNCE.len() => Ok((BOUNCE.start as usize + offset) as *mut u8),
        _ => Err(Stop::because(
            TerminationReason::UnexpectedException,
            "internal error: outside the bounce buffer",
        )),
    }
}

//! Architectural state: what KVM_GET_REGS and its siblings, and a VMSA, can see.

/// An x86 exception on its way to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error: Option<u32>,
    /// For #PF: the faulting linear address, which goes to CR2.
    pub cr2: Option<u64>,
}

impl Exception {
    /// #UD.
    pub const UD: Self = Self::bare(6);
    /// #GP(0).
    pub const GP0: Self = Self { vector: 13, error: Some(0), cr2: None };

    /// An exception without error code.
    pub const fn bare(vector: u8) -> Self {
        Self { vector, error: None, cr2: None }
    }

    /// #VC with an SVM exit code (AMD GHCB specification, "#VC exception").
    pub const fn vc(exit_code: u32) -> Self {
        Self { vector: 29, error: Some(exit_code), cr2: None }
    }

    /// #PF.
    pub const fn page_fault(error: u32, address: u64) -> Self {
        Self { vector: 14, error: Some(error), cr2: Some(address) }
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Base.
    pub base: u64,
    /// Limit in bytes (granularity already applied).
    pub limit: u32,
    /// Attributes in VMCB packing: type 3:0, S 4, DPL 6:5, P 7, AVL 8, L 9, D/B 10, G 11. An unusable segment has P = 0.
    pub attributes: u16,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentTable {
    /// Linear base.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// The extended state in the standard (non-compacted) XSAVE format, as the KVM_GET_XSAVE ABI has it.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Fpu(pub [u8; 4096]);

impl core::fmt::Debug for Fpu {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Fpu(..)")
    }
}

/// The architectural registers of one processor. Owned MSRs are fields; every other MSR is the environment's.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the fields are the registers, by their names")]
pub struct CpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the encoding's order.
    pub gpr: [u64; 16],
    pub rip: u64,
    /// Complete between blocks and whenever the environment sees it; bit 1 always set.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS: the encoding's order.
    pub seg: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: SegmentTable,
    pub idtr: SegmentTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub xcr0: u64,
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub tsc_aux: u64,
    pub fpu: Fpu,
    /// STI or MOV SS blocks interrupts for one instruction.
    pub interrupt_shadow: bool,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// CPL; equals SS.DPL in protected mode.
    pub cpl: u8,
    /// How a page-table entry tells private from shared.
    pub memory_encryption: MemoryEncryption,
    /// Length of the instruction at RIP while the environment is asked on its behalf: what a VM exit reports as the
    /// instruction length. Not a register.
    pub instruction_length: u8,
    /// Widest guest-physical address, in bits, after removal of the C-bit or shared bit (CPUID 0x80000008).
    pub physical_address_bits: u8,
}

/// How a page-table entry tells private from shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MemoryEncryption {
    /// One view only.
    #[default]
    None,
    /// SEV: this bit of a PTE or CR3 set means private.
    CBit(u8),
    /// TDX: this bit of a guest-physical address set means shared.
    SharedBit(u8),
}

impl CpuState {
    /// Register indices into [`CpuState::gpr`].
    pub const RAX: usize = 0;
    #[allow(missing_docs)]
    pub const RCX: usize = 1;
    #[allow(missing_docs)]
    pub const RDX: usize = 2;
    #[allow(missing_docs)]
    pub const RBX: usize = 3;

    /// The state after RESET (AMD APM volume 2, "Processor Initialization State").
    pub fn reset() -> Self {
        let data = Segment { selector: 0, base: 0, limit: 0xffff, attributes: 0x93 };
        let mut fpu = Fpu([0; 4096]);
        fpu.0[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        fpu.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        let mut seg = [data; 6];
        seg[1] = Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, attributes: 0x9b };
        Self {
            gpr: [0, 0, 0x600, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            rip: 0xfff0,
            rflags: 2,
            seg,
            ldtr: Segment { limit: 0xffff, attributes: 0x82, ..Segment::default() },
            tr: Segment { limit: 0xffff, attributes: 0x8b, ..Segment::default() },
            gdtr: SegmentTable { base: 0, limit: 0xffff },
            idtr: SegmentTable { base: 0, limit: 0xffff },
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            xcr0: 1,
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            efer: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            pat: 0x0007_0406_0007_0406,
            tsc_aux: 0,
            fpu,
            interrupt_shadow: false,
            nmi_blocked: false,
            cpl: 0,
            memory_encryption: MemoryEncryption::None,
            instruction_length: 0,
            physical_address_bits: 48,
        }
    }
}

//! The VMSA of a vCPU at reset, byte for byte as each VMM lets KVM make it.
//!
//! Layout: AMD APM volume 2 (24593), appendix B, table B-4 "VMSA Layout, State Save Area for SEV-ES".

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::cpu::VcpuModel;
use crate::measure::{Gpa, PAGE_SIZE};

/// A segment register in VMCB form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Segment {
    pub selector: U16,
    pub attrib: U16,
    pub limit: U32,
    pub base: U64,
}

impl Segment {
    fn real_mode(selector: u16, attrib: u16, base: u64) -> Self {
        Self { selector: selector.into(), attrib: attrib.into(), limit: 0xffff.into(), base: base.into() }
    }
}

/// The save area, as one page. Field names are the APM's.
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Vmsa {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    pub pl_ssp: [U64; 4],
    pub u_cet: U64,
    pub reserved_0xc8: [u8; 2],
    pub vmpl: u8,
    pub cpl: u8,
    pub reserved_0xcc: [u8; 4],
    pub efer: U64,
    pub reserved_0xd8: [u8; 104],
    pub xss: U64,
    pub cr4: U64,
    pub cr3: U64,
    pub cr0: U64,
    pub dr7: U64,
    pub dr6: U64,
    pub rflags: U64,
    pub rip: U64,
    pub dr0_to_3: [U64; 4],
    pub dr0_to_3_addr_mask: [U64; 4],
    pub reserved_0x1c0: [u8; 24],
    pub rsp: U64,
    pub s_cet: U64,
    pub ssp: U64,
    pub isst_addr: U64,
    pub rax: U64,
    pub star: U64,
    pub lstar: U64,
    pub cstar: U64,
    pub sfmask: U64,
    pub kernel_gs_base: U64,
    pub sysenter_cs: U64,
    pub sysenter_esp: U64,
    pub sysenter_eip: U64,
    pub cr2: U64,
    pub reserved_0x248: [u8; 32],
    pub g_pat: U64,
    pub dbgctl: U64,
    pub br_from: U64,
    pub br_to: U64,
    pub last_excp_from: U64,
    pub last_excp_to: U64,
    pub reserved_0x298: [u8; 80],
    pub pkru: U32,
    pub tsc_aux: U32,
    pub reserved_0x2f0: [u8; 24],
    pub rcx: U64,
    pub rdx: U64,
    pub rbx: U64,
    pub reserved_0x320: U64,
    pub rbp: U64,
    pub rsi: U64,
    pub rdi: U64,
    pub r8_to_15: [U64; 8],
    pub reserved_0x380: [u8; 16],
    pub guest_exit_info_1: U64,
    pub guest_exit_info_2: U64,
    pub guest_exit_int_info: U64,
    pub guest_nrip: U64,
    pub sev_features: U64,
    pub vintr_ctrl: U64,
    pub guest_exit_code: U64,
    pub virtual_tom: U64,
    pub tlb_id: U64,
    pub pcpu_id: U64,
    pub event_inj: U64,
    pub xcr0: U64,
    pub reserved_0x3f0: [u8; 16],
    pub x87_dp: U64,
    pub mxcsr: U32,
    pub x87_ftw: U16,
    pub x87_fsw: U16,
    pub x87_fcw: U16,
    pub x87_fop: U16,
    pub x87_ds: U16,
    pub x87_cs: U16,
    pub x87_rip: U64,
    pub fpreg_x87: [u8; 80],
    pub fpreg_xmm: [u8; 256],
    pub fpreg_ymm: [u8; 256],
    pub padding: [u8; 2448],
}
const _: () = assert!(size_of::<Vmsa>() == PAGE_SIZE);
const _: () = assert!(core::mem::offset_of!(Vmsa, efer) == 0xd0);
const _: () = assert!(core::mem::offset_of!(Vmsa, rip) == 0x178);
const _: () = assert!(core::mem::offset_of!(Vmsa, g_pat) == 0x268);
const _: () = assert!(core::mem::offset_of!(Vmsa, sev_features) == 0x3b0);
const _: () = assert!(core::mem::offset_of!(Vmsa, x87_dp) == 0x400);

/// Whose reset state a VMSA has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmmFlavour {
    /// This project's VMM: the same bytes as [`VmmFlavour::Qemu`].
    Cloister,
    /// QEMU on KVM.
    Qemu,
    /// Amazon EC2.
    Ec2,
    /// Google Compute Engine.
    Gce,
}

/// What differs between flavours.
struct ResetState {
    bsp_cs_attrib: u16,
    ss_attrib: u16,
    tr_attrib: u16,
    g_pat: u64,
    /// RDX where it is not the CPUID signature.
    rdx: Option<u64>,
    mxcsr: u32,
    x87_fcw: u16,
}

const QEMU: ResetState = ResetState {
    bsp_cs_attrib: 0x9b,
    ss_attrib: 0x93,
    tr_attrib: 0x8b,
    g_pat: 0x0007_0406_0007_0406,
    rdx: None,
    mxcsr: 0x1f80,
    x87_fcw: 0x37f,
};
const EC2: ResetState = ResetState {
    bsp_cs_attrib: 0x9a,
    ss_attrib: 0x92,
    tr_attrib: 0x83,
    rdx: Some(0x600),
    mxcsr: 0,
    x87_fcw: 0,
    ..QEMU
};
const GCE: ResetState = ResetState { g_pat: 0x0007_0106, rdx: Some(0x600), mxcsr: 0, x87_fcw: 0, ..QEMU };

impl VmmFlavour {
    /// Every flavour with the name that command lines use.
    pub const ALL: &'static [(&'static str, Self)] =
        &[("cloister", Self::Cloister), ("qemu", Self::Qemu), ("ec2", Self::Ec2), ("gce", Self::Gce)];

    /// The name that command lines use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cloister => "cloister",
            Self::Qemu => "qemu",
            Self::Ec2 => "ec2",
            Self::Gce => "gce",
        }
    }

    const fn reset_state(self) -> &'static ResetState {
        match self {
            Self::Cloister | Self::Qemu => &QEMU,
            Self::Ec2 => &EC2,
            Self::Gce => &GCE,
        }
    }
}

impl Vmsa {
    /// Linear address of a boot processor's first instruction.
    pub const RESET_VECTOR: u32 = 0xffff_fff0;
    /// Where KVM says a VMSA lies: GPA −1 cut to a page and to the 52 bits of the RMP entry's field.
    pub const GPA: Gpa = Gpa(0xffff_ffff_f000);

    /// The state of a vCPU that starts at linear address `eip`.
    pub fn at_reset(flavour: VmmFlavour, eip: u32, cpu: VcpuModel, sev_features: u64) -> Self {
        let state = flavour.reset_state();
        let data = Segment::real_mode(0, 0x93, 0);
        let table = Segment::real_mode(0, 0, 0);
        let cs_attrib = if eip == Self::RESET_VECTOR { state.bsp_cs_attrib } else { QEMU.bsp_cs_attrib };
        Self {
            es: data,
            cs: Segment::real_mode(0xf000, cs_attrib, u64::from(eip & 0xffff_0000)),
            ss: Segment::real_mode(0, state.ss_attrib, 0),
            ds: data,
            fs: data,
            gs: data,
            gdtr: table,
            ldtr: Segment::real_mode(0, 0x82, 0),
            idtr: table,
            tr: Segment::real_mode(0, state.tr_attrib, 0),
            efer: 0x1000.into(), // SVME, which KVM sets in every guest
            cr4: 0x40.into(),    // MCE, likewise
            cr0: 0x10.into(),
            dr7: 0x400.into(),
            dr6: 0xffff_0ff0.into(),
            rflags: 2.into(),
            rip: u64::from(eip & 0xffff).into(),
            g_pat: state.g_pat.into(),
            rdx: state.rdx.unwrap_or(u64::from(cpu.0)).into(),
            sev_features: sev_features.into(),
            xcr0: 1.into(),
            mxcsr: state.mxcsr.into(),
            x87_fcw: state.x87_fcw.into(),
            ..Self::new_zeroed()
        }
    }

    /// The page that is measured.
    pub fn as_page(&self) -> &[u8] {
        self.as_bytes()
    }
}

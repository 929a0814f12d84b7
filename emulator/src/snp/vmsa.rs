//! The VM save area (AMD APM volume 2, appendix B, table "VMSA Layout"): registers to bytes and back.

use softkvm_cpu::{CpuState, Segment, SegmentTable};

use super::page::{Page, ZERO, put, u16_at, u32_at, u64_at};

/// EFER.SVME, which every guest's saved EFER carries.
const EFER_SVME: u64 = 1 << 12;

const GPR_OFFSETS: [usize; 16] = [
    0x1f8, 0x308, 0x310, 0x318, 0x1d8, 0x328, 0x330, 0x338, 0x340, 0x348, 0x350, 0x358, 0x360, 0x368, 0x370,
    0x378,
];
const SEGMENT_OFFSETS: [usize; 6] = [0x00, 0x10, 0x20, 0x30, 0x40, 0x50];
const GDTR: usize = 0x60;
const LDTR: usize = 0x70;
const IDTR: usize = 0x80;
const TR: usize = 0x90;
const VMPL: usize = 0xca;
const CPL: usize = 0xcb;
const TSC_AUX: usize = 0x2ec;
const SEV_FEATURES: usize = 0x3b0;
const MXCSR: usize = 0x408;
/// The x87 and SSE state as an FXSAVE image has it: (VMSA offset, FXSAVE offset, bytes).
const FPU: [(usize, usize, usize); 5] =
    [(MXCSR, 24, 4), (0x40c, 4, 1), (0x40e, 2, 2), (0x410, 0, 2), (0x412, 6, 2)];
const XMM: usize = 0x470;

/// 64-bit registers that are plain fields: a getter and a setter per offset.
type Scalar = (usize, fn(&CpuState) -> u64, fn(&mut CpuState, u64));

macro_rules! scalars {
    ($($offset:literal $($field:tt).+;)*) => {
        &[$(($offset, |s| s.$($field).+, |s, v| s.$($field).+ = v)),*]
    };
}

const SCALARS: &[Scalar] = scalars! {
    0x148 cr4;
    0x150 cr3;
    0x158 cr0;
    0x160 dr7;
    0x168 dr6;
    0x178 rip;
    0x200 star;
    0x208 lstar;
    0x210 cstar;
    0x218 sfmask;
    0x220 kernel_gs_base;
    0x228 sysenter_cs;
    0x230 sysenter_esp;
    0x238 sysenter_eip;
    0x240 cr2;
    0x268 pat;
    0x3e8 xcr0;
};

fn put_segment(page: &mut Page, at: usize, s: &Segment) {
    // The VMSA keeps the VMCB's 12-bit packing: bits 11:8 are AVL, L, D/B, G.
    put(page, at, &s.selector.to_le_bytes());
    put(page, at + 2, &s.attributes.to_le_bytes());
    put(page, at + 4, &s.limit.to_le_bytes());
    put(page, at + 8, &s.base.to_le_bytes());
}

fn segment_at(page: &Page, at: usize) -> Segment {
    Segment {
        selector: u16_at(page, at),
        attributes: u16_at(page, at + 2),
        limit: u32_at(page, at + 4),
        base: u64_at(page, at + 8),
    }
}

/// The save area that KVM makes of a vCPU's registers at KVM_SEV_SNP_LAUNCH_FINISH.
pub fn store(s: &CpuState, sev_features: u64) -> Page {
    let mut page = ZERO;
    for (segment, at) in s.seg.iter().zip(SEGMENT_OFFSETS) {
        put_segment(&mut page, at, segment);
    }
    put_segment(&mut page, LDTR, &s.ldtr);
    put_segment(&mut page, TR, &s.tr);
    for (table, at) in [(s.gdtr, GDTR), (s.idtr, IDTR)] {
        put(&mut page, at + 4, &u32::from(table.limit).to_le_bytes());
        put(&mut page, at + 8, &table.base.to_le_bytes());
    }
    put(&mut page, CPL, &[s.cpl]);
    put(&mut page, 0xd0, &(s.efer | EFER_SVME).to_le_bytes());
    put(&mut page, 0x170, &s.rflags.to_le_bytes());
    for &(at, get, _) in SCALARS {
        put(&mut page, at, &get(s).to_le_bytes());
    }
    for (value, at) in s.gpr.iter().zip(GPR_OFFSETS) {
        put(&mut page, at, &value.to_le_bytes());
    }
    put(&mut page, TSC_AUX, &(s.tsc_aux as u32).to_le_bytes());
    put(&mut page, SEV_FEATURES, &sev_features.to_le_bytes());
    for (to, from, bytes) in FPU {
        if let Some(source) = s.fpu.0.get(from..from + bytes) {
            put(&mut page, to, source);
        }
    }
    page
}

/// What a save area asks for besides the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// VMPL of the VMSA.
    pub vmpl: u8,
    /// SEV_FEATURES.
    pub sev_features: u64,
}

/// VMRUN's consistency checks that a guest could fail (APM volume 2, "VMRUN Consistency Checks").
fn consistent(page: &Page) -> bool {
    let (efer, cr0, cr4) = (u64_at(page, 0xd0), u64_at(page, 0x158), u64_at(page, 0x148));
    let long_paging = efer & (1 << 8) != 0 && cr0 & (1 << 31) != 0;
    efer & EFER_SVME != 0
        && cr0 >> 32 == 0
        && !(cr0 & (1 << 29) != 0 && cr0 & (1 << 30) == 0)
        && !(long_paging && (cr4 & (1 << 5) == 0 || cr0 & 1 == 0))
        && u64_at(page, 0x168) >> 32 == 0
        && u64_at(page, 0x160) >> 32 == 0
        && page[VMPL] <= 3
        && u64_at(page, SEV_FEATURES) & super::FEATURE_SNP_ACTIVE != 0
}

/// Loads a save area into a processor. `None` if VMRUN would fail.
pub fn load(s: &mut CpuState, page: &Page) -> Option<Loaded> {
    if !consistent(page) {
        return None;
    }
    for (segment, at) in s.seg.iter_mut().zip(SEGMENT_OFFSETS) {
        *segment = segment_at(page, at);
    }
    s.ldtr = segment_at(page, LDTR);
    s.tr = segment_at(page, TR);
    let table = |at: usize| SegmentTable { limit: u32_at(page, at + 4) as u16, base: u64_at(page, at + 8) };
    s.gdtr = table(GDTR);
    s.idtr = table(IDTR);
    s.cpl = page[CPL] & 3;
    s.efer = u64_at(page, 0xd0) & !EFER_SVME;
    s.rflags = u64_at(page, 0x170) | 2;
    for &(at, _, set) in SCALARS {
        set(s, u64_at(page, at));
    }
    s.xcr0 |= 1;
    for (value, at) in s.gpr.iter_mut().zip(GPR_OFFSETS) {
        *value = u64_at(page, at);
    }
    s.tsc_aux = u64::from(u32_at(page, TSC_AUX));
    s.fpu.0 = [0; 4096];
    for (from, to, bytes) in FPU {
        if let Some(source) = page.get(from..from + bytes) {
            put(&mut s.fpu.0, to, source);
        }
    }
    if let Some(xmm) = page.get(XMM..XMM + 256) {
        put(&mut s.fpu.0, 160, xmm);
    }
    (s.interrupt_shadow, s.nmi_blocked) = (false, false);
    Some(Loaded { vmpl: page[VMPL], sev_features: u64_at(page, SEV_FEATURES) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_survive_a_round_trip() {
        let mut before = CpuState::reset();
        before.gpr = std::array::from_fn(|i| 0x1111 * (i as u64 + 1));
        before.cr3 = 0x8000;
        before.seg[4].base = 0xdead_0000;
        before.fpu.0[24] = 0xa0;
        let page = store(&before, 1);
        let mut after = CpuState::reset();
        assert_eq!(load(&mut after, &page), Some(Loaded { vmpl: 0, sev_features: 1 }));
        assert_eq!(
            (after.gpr, after.seg, after.cr3, after.rip),
            (before.gpr, before.seg, before.cr3, before.rip)
        );
        assert_eq!(after.fpu.0[..32], before.fpu.0[..32]);
    }

    #[test]
    fn save_areas_that_vmrun_refuses_are_refused() {
        let good = store(&CpuState::reset(), 1);
        type Spoil = (&'static str, fn(&mut Page));
        let spoilers: [Spoil; 5] = [
            ("EFER without SVME", |p| put(p, 0xd0, &[0; 8])),
            ("CR0.NW without CD", |p| put(p, 0x158, &0x2000_0010u64.to_le_bytes())),
            ("CR0 upper half", |p| put(p, 0x15c, &[1])),
            ("VMPL 4", |p| p[VMPL] = 4),
            ("not SNP", |p| put(p, SEV_FEATURES, &[0; 8])),
        ];
        for (what, spoil) in spoilers {
            let mut page = good;
            spoil(&mut page);
            assert_eq!(load(&mut CpuState::reset(), &page), None, "{what}");
        }
    }
}

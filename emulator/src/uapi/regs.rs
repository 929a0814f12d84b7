//! Register structures of the UAPI to and from the processor's state.

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs, kvm_sregs2};
use softkvm_cpu::{CpuState, Segment, SegmentTable};

use super::errno::Errno;

/// kvm_regs' fields in the order of [`CpuState::gpr`].
pub fn to_regs(s: &CpuState) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = s.gpr;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: s.rip,
        rflags: s.rflags,
    }
}

/// KVM_SET_REGS.
pub fn from_regs(s: &mut CpuState, r: &kvm_regs) {
    s.gpr = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15,
    ];
    s.rip = r.rip;
    s.rflags = r.rflags | 2;
}

/// A segment register as the UAPI shows it.
pub fn to_segment(s: &Segment) -> kvm_segment {
    let a = s.attributes;
    let bit = |n: u16| (a >> n & 1) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: (a & 0xf) as u8,
        present: bit(7),
        dpl: (a >> 5 & 3) as u8,
        db: bit(10),
        s: bit(4),
        l: bit(9),
        g: bit(11),
        avl: bit(8),
        unusable: 1 - bit(7),
        padding: 0,
    }
}

/// The reverse.
pub fn from_segment(s: &kvm_segment) -> Segment {
    let bit = |v: u8, n: u16| u16::from(v & 1) << n;
    let present = if s.unusable != 0 { 0 } else { s.present };
    let attributes = u16::from(s.type_ & 0xf)
        | bit(s.s, 4)
        | u16::from(s.dpl & 3) << 5
        | bit(present, 7)
        | bit(s.avl, 8)
        | bit(s.l, 9)
        | bit(s.db, 10)
        | bit(s.g, 11);
    Segment { selector: s.selector, base: s.base, limit: s.limit, attributes }
}

fn to_table(t: SegmentTable) -> kvm_dtable {
    kvm_dtable { base: t.base, limit: t.limit, padding: [0; 3] }
}

/// What lives outside of the processor's state.
pub struct Outside {
    pub cr8: u64,
    pub apic_base: u64,
    pub pending_interrupt: Option<u8>,
}

/// KVM_GET_SREGS.
pub fn to_sregs(s: &CpuState, outside: &Outside) -> kvm_sregs {
    let [es, cs, ss, ds, fs, gs] = s.seg;
    let mut regs = kvm_sregs {
        cs: to_segment(&cs),
        ds: to_segment(&ds),
        es: to_segment(&es),
        fs: to_segment(&fs),
        gs: to_segment(&gs),
        ss: to_segment(&ss),
        tr: to_segment(&s.tr),
        ldt: to_segment(&s.ldtr),
        gdt: to_table(s.gdtr),
        idt: to_table(s.idtr),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: outside.cr8,
        efer: s.efer,
        apic_base: outside.apic_base,
        interrupt_bitmap: [0; 4],
    };
    if let Some(vector) = outside.pending_interrupt
        && let Some(word) = regs.interrupt_bitmap.get_mut(usize::from(vector) / 64)
    {
        *word = 1 << (vector % 64);
    }
    regs
}

/// The checks of KVM_SET_SREGS (kvm_is_valid_sregs): modes that exist, bits that are implemented.
fn valid(r: &kvm_sregs) -> bool {
    let long = r.efer & (1 << 8) != 0 && r.cr0 & (1 << 31) != 0;
    if long {
        r.cr4 & (1 << 5) != 0 && r.efer & (1 << 10) != 0
    } else {
        r.efer & (1 << 10) == 0 && r.cs.l == 0
    }
}

/// KVM_SET_SREGS, without what lives outside.
pub fn from_sregs(s: &mut CpuState, r: &kvm_sregs) -> Result<(), Errno> {
    if !valid(r) {
        return Err(Errno::EINVAL);
    }
    s.seg = [&r.es, &r.cs, &r.ss, &r.ds, &r.fs, &r.gs].map(from_segment);
    s.tr = from_segment(&r.tr);
    s.ldtr = from_segment(&r.ldt);
    s.gdtr = SegmentTable { base: r.gdt.base, limit: r.gdt.limit };
    s.idtr = SegmentTable { base: r.idt.base, limit: r.idt.limit };
    (s.cr0, s.cr2, s.cr3, s.cr4, s.efer) = (r.cr0 | 0x10, r.cr2, r.cr3, r.cr4, r.efer);
    s.cpl = r.ss.dpl & 3;
    Ok(())
}

/// kvm_sregs2 shares all but its tail with kvm_sregs.
pub fn to_sregs2(s: &CpuState, outside: &Outside) -> kvm_sregs2 {
    let r = to_sregs(s, outside);
    kvm_sregs2 {
        cs: r.cs,
        ds: r.ds,
        es: r.es,
        fs: r.fs,
        gs: r.gs,
        ss: r.ss,
        tr: r.tr,
        ldt: r.ldt,
        gdt: r.gdt,
        idt: r.idt,
        cr0: r.cr0,
        cr2: r.cr2,
        cr3: r.cr3,
        cr4: r.cr4,
        cr8: r.cr8,
        efer: r.efer,
        apic_base: r.apic_base,
        ..kvm_sregs2::default()
    }
}

/// The part that KVM_SET_SREGS2 has in common with KVM_SET_SREGS.
pub fn common(r: &kvm_sregs2) -> kvm_sregs {
    kvm_sregs {
        cs: r.cs,
        ds: r.ds,
        es: r.es,
        fs: r.fs,
        gs: r.gs,
        ss: r.ss,
        tr: r.tr,
        ldt: r.ldt,
        gdt: r.gdt,
        idt: r.idt,
        cr0: r.cr0,
        cr2: r.cr2,
        cr3: r.cr3,
        cr4: r.cr4,
        cr8: r.cr8,
        efer: r.efer,
        apic_base: r.apic_base,
        interrupt_bitmap: [0; 4],
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

/// Bits of MXCSR that exist (Intel SDM volume 1, "MXCSR Control and Status Register").
const MXCSR_MASK: u32 = 0xffff;
/// XSTATE_BV, XCOMP_BV and the reserved rest of the XSAVE header.
const XSTATE_BV: usize = 512;
const XSAVE_HEADER_END: usize = 576;
/// State components: x87, and SSE.
const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;

/// KVM_GET_XSAVE: both components are always in use here.
pub fn to_xsave(s: &CpuState) -> [u8; 4096] {
    let mut area = s.fpu.0;
    area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&(X87 | SSE).to_le_bytes());
    area
}

/// KVM_SET_XSAVE: a component that XSTATE_BV does not name takes its initial value, whatever the area holds (linux:
/// copy_uabi_to_xstate). QEMU leaves all of it to that for processors that have not run.
pub fn from_xsave(s: &mut CpuState, area: &[u8; 4096]) -> Result<(), Errno> {
    let header = &area[XSTATE_BV..XSAVE_HEADER_END];
    let named = header[..8].iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    let mxcsr = u32::from(u16_at(area, 24)) | u32::from(u16_at(area, 26)) << 16;
    if named & !(X87 | SSE) != 0 || header[8..].iter().any(|&byte| byte != 0) || mxcsr & !MXCSR_MASK != 0 {
        return Err(Errno::EINVAL);
    }
    s.fpu = CpuState::reset().fpu;
    let parts: [(u64, std::ops::Range<usize>); 4] =
        [(X87, 0..24), (SSE, 24..28), (X87, 32..160), (SSE, 160..416)];
    for (_, part) in parts.into_iter().filter(|(component, _)| named & component != 0) {
        s.fpu.0[part.clone()].copy_from_slice(&area[part]);
    }
    Ok(())
}

/// KVM_GET_FPU out of the FXSAVE image, but for MXCSR, which KVM leaves out.
pub fn to_fpu(s: &CpuState) -> kvm_fpu {
    let area = &s.fpu.0;
    let mut fpu = kvm_fpu {
        fcw: u16_at(area, 0),
        fsw: u16_at(area, 2),
        ftwx: area[4],
        last_opcode: u16_at(area, 6),
        ..kvm_fpu::default()
    };
    for (i, reg) in fpu.fpr.iter_mut().enumerate() {
        reg.copy_from_slice(&area[32 + 16 * i..48 + 16 * i]);
    }
    for (i, reg) in fpu.xmm.iter_mut().enumerate() {
        reg.copy_from_slice(&area[160 + 16 * i..176 + 16 * i]);
    }
    fpu
}

/// KVM_SET_FPU into the FXSAVE image, but for MXCSR.
pub fn from_fpu(s: &mut CpuState, fpu: &kvm_fpu) {
    let area = &mut s.fpu.0;
    area[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
    area[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
    area[4] = fpu.ftwx;
    area[6..8].copy_from_slice(&fpu.last_opcode.to_le_bytes());
    for (i, reg) in fpu.fpr.iter().enumerate() {
        area[32 + 16 * i..48 + 16 * i].copy_from_slice(reg);
    }
    for (i, reg) in fpu.xmm.iter().enumerate() {
        area[160 + 16 * i..176 + 16 * i].copy_from_slice(reg);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_components_that_are_not_named_take_their_initial_values() {
        let area = |xstate_bv: u8, mxcsr: u32| {
            let mut area = [0u8; 4096];
            area[..2].copy_from_slice(&0x27fu16.to_le_bytes());
            area[24..28].copy_from_slice(&mxcsr.to_le_bytes());
            area[160] = 0x5a;
            area[XSTATE_BV] = xstate_bv;
            area
        };
        for (named, fcw, mxcsr, xmm0) in
            [(0, 0x37f, 0x1f80, 0), (1, 0x27f, 0x1f80, 0), (2, 0x37f, 0x3f80, 0x5a), (3, 0x27f, 0x3f80, 0x5a)]
        {
            let mut state = CpuState::reset();
            from_xsave(&mut state, &area(3, 0x7f80)).unwrap();
            from_xsave(&mut state, &area(named, 0x3f80)).unwrap();
            let image = to_xsave(&state);
            assert_eq!((u16_at(&image, 0), u16_at(&image, 24), image[160]), (fcw, mxcsr, xmm0), "{named}");
        }
        let mut compacted = area(3, 0x1f80);
        compacted[XSTATE_BV + 15] = 0x80;
        for refused in [area(4, 0x1f80), area(3, 0x1_1f80), area(0, 0x1_1f80), compacted] {
            let mut state = CpuState::reset();
            assert_eq!(from_xsave(&mut state, &refused), Err(Errno::EINVAL));
            assert_eq!(state.fpu.0[..512], CpuState::reset().fpu.0[..512], "nothing is half done");
        }
    }

    #[test]
    fn segments_survive_a_round_trip() {
        for attributes in [0x9b, 0xa9b, 0xc93, 0x8b, 0x00f3] {
            let segment = Segment { selector: 0x10, base: 0x1234, limit: 0xffff_ffff, attributes };
            assert_eq!(from_segment(&to_segment(&segment)), segment);
        }
    }

    #[test]
    fn sregs_of_a_mode_that_does_not_exist_are_refused() {
        let mut state = CpuState::reset();
        let mut regs = to_sregs(&state, &Outside { cr8: 0, apic_base: 0, pending_interrupt: None });
        assert_eq!(from_sregs(&mut state, &regs), Ok(()));
        regs.efer = 1 << 10;
        assert_eq!(from_sregs(&mut state, &regs), Err(Errno::EINVAL), "LMA without LME and paging");
        regs.efer = 0;
        regs.cs.l = 1;
        assert_eq!(from_sregs(&mut state, &regs), Err(Errno::EINVAL), "64-bit CS outside of long mode");
    }
}

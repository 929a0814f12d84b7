//! CPUID of a TD: the module answers from a table that KVM_TDX_INIT_VM fixed. What the client may choose is a mask per
//! leaf; the rest is the processor's, or fixed by the module.
//!
//! A hardware module also fixes some features to one (XSAVE, AVX-512's absence aside, MOVDIRI, …) because every processor
//! with TDX has them. This processor has no XSAVE: it is reported as absent, here and in KVM_TDX_GET_CPUID.

use softkvm_cpu::{CpuState, Register, Stop};

use super::TSC_UNITS;
use super::launch::{Refusal, bad_cpuid};
use super::ve::{self, reason};
use crate::machine::ctx::Ctx;
use crate::uapi::errno::Errno;

/// One entry of the client's table, or of the TD's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// EAX on input.
    pub leaf: u32,
    /// ECX on input; 0 where the leaf has no sub-leaves.
    pub subleaf: u32,
    /// EAX, EBX, ECX, EDX.
    pub value: [u32; 4],
}

/// Where a leaf's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The module.
    Fixed([u32; 4]),
    /// The processor core's features, and these bits of the machine.
    Features([u32; 4]),
}

struct Row {
    leaf: u32,
    /// `None`: the leaf has no sub-leaves.
    subleaf: Option<u32>,
    source: Source,
    /// Bits that the client chooses as they are (a number, not a feature).
    direct: [u32; 4],
    /// Features that the client may turn off.
    allow: [u32; 4],
}

const NONE: [u32; 4] = [0; 4];

const fn fixed(leaf: u32, subleaf: Option<u32>, value: [u32; 4]) -> Row {
    Row { leaf, subleaf, source: Source::Fixed(value), direct: NONE, allow: NONE }
}

const fn zero(leaf: u32, subleaf: Option<u32>) -> Row {
    fixed(leaf, subleaf, NONE)
}

const fn cache(subleaf: u32, last: bool) -> Row {
    let edx = if last { 7 } else { 0xffff_fffb };
    Row {
        leaf: 4,
        subleaf: Some(subleaf),
        source: Source::Fixed([0, 0x3f, 0, 0]),
        direct: [0xffff_c3ff, 0xffff_f000, 0xffff_ffff, edx],
        allow: NONE,
    }
}

const fn word(s: &[u8; 12], at: usize) -> u32 {
    u32::from_le_bytes([s[at], s[at + 1], s[at + 2], s[at + 3]])
}

const INTEL: &[u8; 12] = b"GenuineIntel";
const TDX: &[u8; 12] = b"IntelTDX    ";
/// Highest basic leaf.
const MAX_BASIC: u32 = 0x23;
/// Highest extended leaf.
const MAX_EXTENDED: u32 = 0x8000_0008;
/// Family 6, model 8fh (Sapphire Rapids), stepping 8.
pub const SIGNATURE: u32 = 0x0008_06f8;
/// Physical and linear address bits.
const WIDTHS: u32 = 52 | 48 << 8;

/// Machine bits of leaf 1: x2APIC, TSC deadline, hypervisor; MCE, APIC, MTRR, MCA, PAT.
const LEAF1_ECX: u32 = 1 << 21 | 1 << 24 | 1 << 31;
const LEAF1_EDX: u32 = 1 << 7 | 1 << 9 | 1 << 12 | 1 << 14 | 1 << 16;

/// Bit of leaf 7 EDX.
const ARCH_CAPABILITIES: u32 = 1 << 29;

/// Sorted. A leaf that is not here raises #VE, as the module's faulting leaves do (6, 0Bh, 1Fh, 80000002h and on, …).
static TABLE: &[Row] = &[
    fixed(0, None, [MAX_BASIC, word(INTEL, 0), word(INTEL, 8), word(INTEL, 4)]),
    Row {
        leaf: 1,
        subleaf: None,
        source: Source::Features([SIGNATURE, 8 << 8, LEAF1_ECX, LEAF1_EDX]),
        direct: [0x0fff_3fff, 0x00ff_0000, 0, 0],
        allow: [0, 0, 0x3104_4d88, 0xb844_0000],
    },
    zero(3, None),
    cache(0, false),
    cache(1, false),
    cache(2, false),
    cache(3, true),
    zero(4, Some(4)),
    zero(5, None),
    Row {
        leaf: 7,
        subleaf: Some(0),
        source: Source::Features([1, 0, 0, ARCH_CAPABILITIES]),
        direct: NONE,
        allow: [0, 0xdc2b_9b18, 0x0241_7f65, 0x0005_411c],
    },
    Row { leaf: 7, subleaf: Some(1), source: Source::Features(NONE), direct: NONE, allow: [0x1d30, 0, 0, 0] },
    zero(8, None),
    zero(0xa, None),
    zero(0xd, Some(0)),
    zero(0xd, Some(1)),
    zero(0xe, None),
    zero(0x11, None),
    zero(0x12, None),
    zero(0x13, None),
    zero(0x14, Some(0)),
    zero(0x14, Some(1)),
    fixed(0x15, None, [1, TSC_UNITS, 25_000_000, 0]),
    zero(0x19, None),
    zero(0x1c, None),
    zero(0x1d, Some(0)),
    zero(0x1d, Some(1)),
    zero(0x1e, None),
    zero(0x20, None),
    fixed(0x21, Some(0), [0, word(TDX, 0), word(TDX, 8), word(TDX, 4)]),
    zero(0x22, None),
    zero(0x23, Some(0)),
    fixed(0x8000_0000, None, [MAX_EXTENDED, 0, 0, 0]),
    Row { leaf: 0x8000_0001, subleaf: None, source: Source::Features(NONE), direct: NONE, allow: NONE },
    fixed(0x8000_0007, None, [0, 0, 0, 1 << 8]),
    Row {
        leaf: 0x8000_0008,
        subleaf: None,
        source: Source::Features([WIDTHS, 0, 0, 0]),
        direct: NONE,
        allow: NONE,
    },
];

/// Bits of 8000_0001h that an Intel processor has; the rest of the core's are AMD's.
const EXTENDED_INTEL: [u32; 4] = [0, 0, 1 | 1 << 5 | 1 << 8, 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29];
/// EAX[23:16] of 8000_0008h: KVM takes the guest's address width from there.
const GUEST_WIDTH: u32 = 0x00ff_0000;

fn configurable(row: &Row) -> [u32; 4] {
    let mut mask = [0; 4];
    for (to, (a, b)) in mask.iter_mut().zip(row.direct.into_iter().zip(row.allow)) {
        *to = a | b;
    }
    if row.leaf == 0x8000_0008 {
        mask[0] |= GUEST_WIDTH;
    }
    mask
}

/// KVM_TDX_CAPABILITIES: what the client may configure.
pub fn capabilities() -> Vec<Entry> {
    TABLE
        .iter()
        .map(|row| Entry { leaf: row.leaf, subleaf: row.subleaf.unwrap_or(0), value: configurable(row) })
        .filter(|entry| entry.value != NONE)
        .collect()
}

/// The core's feature bits of a leaf.
fn features(leaf: u32, subleaf: u32) -> [u32; 4] {
    let mut value = [0; 4];
    for f in softkvm_cpu::features().iter().filter(|f| f.leaf == leaf && f.subleaf == subleaf) {
        let index = match f.register {
            Register::Eax => 0,
            Register::Ebx => 1,
            Register::Ecx => 2,
            Register::Edx => 3,
        };
        value[index] |= f.bits;
    }
    value
}

fn native(row: &Row) -> [u32; 4] {
    let Source::Features(machine) = row.source else {
        let Source::Fixed(value) = row.source else { return NONE };
        return value;
    };
    let mut value = features(row.leaf, row.subleaf.unwrap_or(0));
    for (i, (bits, of_machine)) in value.iter_mut().zip(machine).enumerate() {
        if row.leaf == 0x8000_0001 {
            *bits &= EXTENDED_INTEL[i];
        }
        *bits |= of_machine;
    }
    value
}

/// A leaf as the TD sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Virtual {
    /// Leaf.
    pub leaf: u32,
    /// Sub-leaf, if the leaf has any.
    pub subleaf: Option<u32>,
    /// EAX, EBX, ECX, EDX, but for what follows the vCPU's state.
    pub value: [u32; 4],
}

/// The table of one TD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TdCpuid(Vec<Virtual>);

/// KVM refuses TSX and WAITPKG: it could not keep their MSRs.
fn unsupported(entry: &Entry) -> bool {
    const TSX: u32 = 1 << 4 | 1 << 11;
    const WAITPKG: u32 = 1 << 5;
    entry.leaf == 7 && entry.subleaf == 0 && (entry.value[1] & TSX != 0 || entry.value[2] & WAITPKG != 0)
}

impl TdCpuid {
    /// KVM_TDX_INIT_VM's table, checked: every entry must have a place, and stay inside its mask.
    pub fn configure(client: &[Entry]) -> Result<Self, Refusal> {
        let masks = capabilities();
        for entry in client {
            let mask = masks.iter().find(|m| (m.leaf, m.subleaf) == (entry.leaf, entry.subleaf));
            let Some(mask) = mask.filter(|_| !unsupported(entry)) else { return Err(Errno::EINVAL.into()) };
            if entry.value.iter().zip(mask.value).any(|(value, mask)| value & !mask != 0) {
                return Err(bad_cpuid());
            }
        }
        let duplicate = client
            .iter()
            .enumerate()
            .any(|(i, a)| client.iter().take(i).any(|b| (a.leaf, a.subleaf) == (b.leaf, b.subleaf)));
        if duplicate {
            return Err(Errno::EINVAL.into());
        }
        let leaves = TABLE.iter().map(|row| {
            let chosen = client.iter().find(|e| (e.leaf, e.subleaf) == (row.leaf, row.subleaf.unwrap_or(0)));
            Virtual { leaf: row.leaf, subleaf: row.subleaf, value: choose(row, chosen) }
        });
        Ok(Self(leaves.collect()))
    }

    /// KVM_TDX_GET_CPUID.
    pub fn leaves(&self) -> &[Virtual] {
        &self.0
    }

    fn find(&self, leaf: u32, subleaf: u32) -> Option<[u32; 4]> {
        let found = self.0.iter().find(|v| v.leaf == leaf && v.subleaf.is_none_or(|s| s == subleaf))?;
        Some(found.value)
    }

    /// CPUID(1).EAX.
    pub fn signature(&self) -> u32 {
        self.find(1, 0).map_or(SIGNATURE, |v| v[0])
    }

    /// CPUID(1).ECX.TSC_DEADLINE.
    pub fn tsc_deadline(&self) -> bool {
        self.find(1, 0).is_some_and(|v| v[2] & (1 << 24) != 0)
    }
}

fn choose(row: &Row, chosen: Option<&Entry>) -> [u32; 4] {
    let mut value = native(row);
    for (i, word) in value.iter_mut().enumerate() {
        let (direct, allow) = (row.direct[i], row.allow[i]);
        let wanted = chosen.map_or(0, |e| e.value[i]);
        // Without an entry there is no number to take: the processor's stays.
        let number = if chosen.is_some() { wanted & direct } else { *word & direct };
        *word = *word & !(direct | allow) | number | *word & allow & wanted;
    }
    value
}

/// CPUID in a TD.
pub fn execute(ctx: &mut Ctx, cpu: &CpuState, leaf: u32, subleaf: u32) -> Result<[u32; 4], Stop> {
    let elected = if cpu.cpl == 0 { ctx.tdx.cpuid_supervisor_ve } else { ctx.tdx.cpuid_user_ve };
    let hypervisor = (0x4000_0000..=0x4fff_ffff).contains(&leaf);
    // Above the maximum of its range: the highest basic leaf.
    let beyond = leaf > MAX_EXTENDED || leaf > MAX_BASIC && leaf < 0x8000_0000;
    let leaf = if beyond && !hypervisor { MAX_BASIC } else { leaf };
    let found = ctx.vm.tdx().and_then(|t| t.parameters()).and_then(|p| p.cpuid.find(leaf, subleaf));
    let Some(mut value) = found.filter(|_| !elected) else {
        return ve::instruction(ctx, cpu, reason::CPUID, 0);
    };
    match leaf {
        1 => {
            value[1] |= ctx.shared.id << 24;
            value[2] |= u32::from(cpu.cr4 & (1 << 18) != 0) << 27;
        }
        // SYSCALL reads as there in 64-bit mode only.
        0x8000_0001 if !super::tdcall::in_64_bit_mode(cpu) => value[3] &= !(1 << 11),
        _ => {}
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_every_leaf_is_below_its_maximum() {
        for pair in TABLE.windows(2) {
            assert!((pair[0].leaf, pair[0].subleaf) < (pair[1].leaf, pair[1].subleaf));
        }
        assert!(TABLE.iter().all(|r| r.leaf <= MAX_BASIC || (0x8000_0000..=MAX_EXTENDED).contains(&r.leaf)));
    }

    #[test]
    fn a_client_chooses_numbers_and_allowed_features_and_nothing_else() {
        let none = TdCpuid::configure(&[]).expect("an empty table");
        assert_eq!(none.signature(), SIGNATURE);
        assert!(!none.tsc_deadline(), "not asked for");
        let wanted = Entry { leaf: 1, subleaf: 0, value: [0x000c_06f2, 4 << 16, 1 << 24 | 1 << 28, 0] };
        let some = TdCpuid::configure(&[wanted]).expect("within the mask");
        assert_eq!(some.signature(), 0x000c_06f2);
        assert!(some.tsc_deadline());
        let one = some.find(1, 0).expect("leaf 1");
        assert_eq!(one[1], 4 << 16 | 8 << 8);
        assert_eq!(one[2] & (1 << 28), 0, "AVX, which the processor has not");
        let refused = |e: Entry| TdCpuid::configure(&[e]).err();
        let einval = Some(Refusal::from(Errno::EINVAL));
        assert_eq!(refused(Entry { leaf: 0x8000_0001, subleaf: 0, value: NONE }), einval, "no such place");
        assert_eq!(refused(Entry { leaf: 7, subleaf: 0, value: [0, 1 << 4, 0, 0] }), einval, "HLE");
        assert_eq!(refused(Entry { leaf: 1, subleaf: 0, value: [0, 0, 1 << 31, 0] }), Some(bad_cpuid()));
        let twice = TdCpuid::configure(&[wanted, wanted]).err();
        assert_eq!(twice, einval, "an entry that would not be used");
    }
}

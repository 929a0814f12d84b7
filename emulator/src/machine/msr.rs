//! MSRs that are neither the processor core's nor a device's: a table of what they hold and which bits may be written.

/// How an MSR behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads a constant; writes are refused.
    Constant(u64),
    /// Reads a constant; writes are ignored.
    Ignored(u64),
    /// Holds a value: reset value and writable bits (a write of any other bit is refused).
    Stored { reset: u64, writable: u64 },
}

/// A row: first index, last index, behaviour, and whether KVM_GET_MSR_INDEX_LIST names it.
type Row = (u32, u32, Kind, bool);

const fn stored(reset: u64, writable: u64) -> Kind {
    Kind::Stored { reset, writable }
}

/// Sorted by index (a test checks). Numbers: AMD APM volume 2 appendix A; what KVM does with them: arch/x86/kvm/x86.c's documentation.
const TABLE: &[Row] = &[
    (0x0017, 0x0017, Kind::Constant(0), false), // IA32_PLATFORM_ID
    (0x002a, 0x002a, Kind::Constant(0), false), // EBL_CR_POWERON
    (0x003b, 0x003b, stored(0, !0), true),      // IA32_TSC_ADJUST
    (0x008b, 0x008b, Kind::Ignored(0x0100_0065), true), // PATCH_LEVEL
    (0x00fe, 0x00fe, Kind::Constant(0x508), false), // MTRRcap: 8 variable, fixed, WC
    (0x0179, 0x0179, Kind::Constant(0x0100_010a), false), // MCG_CAP: 10 banks
    (0x017a, 0x017a, stored(0, !0), true),      // MCG_STATUS
    (0x017b, 0x017b, stored(0, !0), true),      // MCG_CTL
    (0x0186, 0x0187, Kind::Ignored(0), false),  // event selects of no PMU
    (0x01a0, 0x01a0, stored(1, !0), true),      // MISC_ENABLE
    (0x01d9, 0x01d9, stored(0, 0x3), true),     // DEBUGCTL: LBR, BTF
    (0x01db, 0x01de, Kind::Constant(0), false), // last branch / exception
    (0x0200, 0x020f, stored(0, !0), true),      // variable MTRRs
    (0x0250, 0x0250, stored(0, !0), true),
    (0x0258, 0x0259, stored(0, !0), true),
    (0x0268, 0x026f, stored(0, !0), true),
    (0x02ff, 0x02ff, stored(0, 0xcff), true), // MTRRdefType
    (0x0400, 0x0427, stored(0, !0), false),   // machine-check banks
    (0xc000_0104, 0xc000_0104, stored(1 << 32, 0xff_ffff_ffff), false), // TSC_RATIO
    (0xc001_0000, 0xc001_0007, Kind::Ignored(0), false), // PERF_CTL, PERF_CTR: no PMU
    (0xc001_0010, 0xc001_0010, Kind::Constant(0), false), // SYSCFG
    (0xc001_0015, 0xc001_0015, stored(1 << 24, 0x0900_0458), true), // HWCR, TscFreqSel
    (0xc001_001f, 0xc001_001f, Kind::Ignored(0), false), // NB_CFG
    (0xc001_0055, 0xc001_0055, Kind::Ignored(0), false), // INT_PENDING
    (0xc001_0058, 0xc001_0058, Kind::Ignored(0), false), // MMIO_CONF_BASE
    (0xc001_0064, 0xc001_006b, Kind::Constant(0), false), // P-states
    (0xc001_0114, 0xc001_0114, Kind::Constant(0), false), // VM_CR
    (0xc001_0117, 0xc001_0117, stored(0, !0xfff), false), // VM_HSAVE_PA
    (0xc001_0140, 0xc001_0141, Kind::Constant(0), false), // OSVW
    (0xc001_0200, 0xc001_020b, Kind::Ignored(0), false), // PERF_CTL0..
    (0xc001_1020, 0xc001_1022, Kind::Ignored(0), false), // LS_CFG, IC_CFG, DC_CFG
    (0xc001_1029, 0xc001_1029, stored(2, 2), true), // DE_CFG: LFENCE serialises
    (0xc001_102a, 0xc001_102a, Kind::Ignored(0), false), // BU_CFG2
];

/// The behaviour of an MSR, if it is in the table.
pub fn kind(index: u32) -> Option<Kind> {
    TABLE.iter().find(|(first, last, ..)| (*first..=*last).contains(&index)).map(|row| row.2)
}

/// MSRs that a client should save: the table's, the processor core's, and the machine's.
pub fn saved() -> Vec<u32> {
    const OTHERS: &[u32] = &[
        0x10,
        0x11,
        0x12,
        0x174,
        0x175,
        0x176,
        0x277,
        0x6e0,
        0x4b56_4d00,
        0x4b56_4d01,
        0xc000_0080,
        0xc000_0081,
        0xc000_0082,
        0xc000_0083,
        0xc000_0084,
        0xc000_0100,
        0xc000_0101,
        0xc000_0102,
        0xc000_0103,
    ];
    let rows = TABLE.iter().filter(|row| row.3).flat_map(|row| row.0..=row.1);
    OTHERS.iter().copied().chain(rows).collect()
}

/// KVM_GET_MSR_FEATURE_INDEX_LIST: MSRs that describe the machine, with their values.
pub const FEATURES: &[(u32, u64)] = &[(0x8b, 0x0100_0065), (0xc001_1029, 2)];

/// The stored MSRs of one vCPU.
#[derive(Clone, Debug, Default)]
pub struct Msrs(std::collections::BTreeMap<u32, u64>);

impl Msrs {
    /// Reads an MSR of the table.
    pub fn read(&self, index: u32) -> Option<u64> {
        match kind(index)? {
            Kind::Constant(value) | Kind::Ignored(value) => Some(value),
            Kind::Stored { reset, .. } => Some(self.0.get(&index).copied().unwrap_or(reset)),
        }
    }

    /// Writes one; `false` if it is refused. User space may also restate a constant.
    pub fn write(&mut self, index: u32, value: u64, user: bool) -> bool {
        match kind(index) {
            None => false,
            Some(Kind::Constant(constant)) => user && value == constant,
            Some(Kind::Ignored(_)) => true,
            Some(Kind::Stored { reset, writable }) => {
                if value & !(writable | reset) != 0 {
                    return false;
                }
                self.0.insert(index, value);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_disjoint() {
        for pair in TABLE.windows(2) {
            assert!(
                pair[0].0 <= pair[0].1 && pair[0].1 < pair[1].0,
                "{:x} before {:x}",
                pair[0].0,
                pair[1].0
            );
        }
    }

    #[test]
    fn constants_refuse_and_stored_bits_stick() {
        let mut msrs = Msrs::default();
        assert!(!msrs.write(0xfe, 0, false) && msrs.write(0xfe, 0x508, true));
        assert!(msrs.write(0x2ff, 0xc06, false));
        assert_eq!(msrs.read(0x2ff), Some(0xc06));
        assert!(!msrs.write(0x2ff, 1 << 40, false));
        assert_eq!(msrs.read(0x1234_5678), None);
    }
}

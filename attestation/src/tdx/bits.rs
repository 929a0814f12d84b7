//! Bit fields of the TD report: ATTRIBUTES and XFAM.

use crate::snp::bit_field;

bit_field! {
    /// ATTRIBUTES of the TD (Intel TDX Module ABI specification, "ATTRIBUTES Definition").
    TdAttributes {
        /// The host may debug the TD: read its memory and its processors' state.
        debug = 0;
        /// The TD takes part in HGS+ profiling.
        hgs_plus_prof = 4;
        /// The host may profile the TD with system performance counters.
        perf_prof = 5;
        /// The host may profile the TD with platform telemetry.
        pmt_prof = 6;
        /// Defence against single-stepping by counting instructions.
        icssd = 16;
        /// The report has a hash of what the TD's service TDs are.
        servtd_ext = 17;
        /// The TD may use linear address space separation.
        lass = 27;
        /// A pending page does not become a #VE, with which a host could attack the guest's kernel.
        sept_ve_disable = 28;
        /// A migration TD may move the TD to another machine.
        migratable = 29;
        /// The TD may use supervisor protection keys.
        pks = 30;
        /// The TD may use Key Locker.
        kl = 31;
        /// The TD is a provisioning agent of TDX Connect.
        tpa = 62;
        /// The TD may use performance monitoring.
        perfmon = 63;
    }
}

impl TdAttributes {
    /// Bits that no one here knows.
    pub const fn unknown(self) -> u64 {
        const DEFINED: u64 = 0xc000_0000_f803_0071;
        self.0 & !DEFINED
    }
}

bit_field! {
    /// XFAM: the extended processor state that the TD may use, in the places of XCR0 and IA32_XSS.
    Xfam {
        /// x87.
        x87 = 0;
        /// SSE.
        sse = 1;
        /// AVX.
        avx = 2;
        /// AVX-512 opmask registers.
        opmask = 5;
        /// AVX-512 upper halves.
        zmm_hi256 = 6;
        /// AVX-512 upper registers.
        hi16_zmm = 7;
        /// Processor trace.
        pt = 8;
        /// Protection keys for user pages.
        pku = 9;
        /// CET for user mode.
        cet_u = 11;
        /// CET for supervisor mode.
        cet_s = 12;
        /// User interrupts.
        uintr = 14;
        /// Last branch records.
        lbr = 15;
        /// AMX tile configuration.
        xtilecfg = 17;
        /// AMX tile data.
        xtiledata = 18;
        /// APX registers.
        apx = 19;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_is_named_once() {
        for table in [TdAttributes::BITS, Xfam::BITS] {
            for (index, (name, bit)) in table.iter().enumerate() {
                assert!(table[..index].iter().all(|(n, b)| n != name && b != bit), "{name} twice");
            }
        }
    }

    #[test]
    fn unknown_bits_are_those_without_a_name() {
        for bit in 0..64 {
            let named = TdAttributes::BITS.iter().any(|(_, own)| *own == bit);
            assert_eq!(TdAttributes(1 << bit).unknown() == 0, named, "bit {bit}");
        }
        assert!(TdAttributes(1 << 28).sept_ve_disable() && !TdAttributes(!1).debug());
    }
}

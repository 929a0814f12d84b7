//! Bit fields of the report: POLICY and PLATFORM_INFO.

macro_rules! bit_field {
    ($(#[$doc:meta])* $type:ident { $($(#[$bit_doc:meta])* $name:ident = $bit:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $type(pub u64);

        impl $type {
            /// Name and number of every bit that the ABI defines and that says something.
            pub const BITS: &'static [(&'static str, u32)] = &[$((stringify!($name), $bit),)*];

            $($(#[$bit_doc])* pub const fn $name(self) -> bool { (self.0 >> $bit) & 1 != 0 })*

            /// Whether the bit with this number is set.
            pub fn bit(self, bit: u32) -> bool {
                self.0.checked_shr(bit).is_some_and(|bits| bits & 1 != 0)
            }
        }
    };
}

bit_field! {
    /// What the guest's owner allowed the host (56860, "Guest Policy"): bits 15:0 are the least ABI version.
    GuestPolicy {
        /// SMT may be active.
        smt = 16;
        /// A migration agent may be associated with the guest.
        migrate_ma = 18;
        /// The host may read and write the guest's memory.
        debug = 19;
        /// The guest runs on one socket only.
        single_socket = 20;
        /// CXL devices and memory may be present.
        cxl_allow = 21;
        /// Memory is encrypted with AES-256-XTS.
        mem_aes_256_xts = 22;
        /// Running average power limit is off.
        rapl_dis = 23;
        /// Ciphertext hiding is on.
        ciphertext_hiding_dram = 24;
        /// SNP_PAGE_MOVE, SNP_SWAP_OUT and SNP_SWAP_IN are disabled.
        page_swap_disable = 25;
    }
}

pub(crate) use bit_field;

impl GuestPolicy {
    /// Bit 17 is reserved and must be one.
    const MUST_BE_ONE: u64 = 1 << 17;
    const DEFINED: u64 = 0x03ff_ffff;

    /// Least major version of the firmware ABI.
    pub const fn abi_major(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Least minor version of the firmware ABI.
    pub const fn abi_minor(self) -> u8 {
        self.0 as u8
    }

    /// Whether bit 17 is one, as the ABI demands of every guest policy.
    pub const fn has_must_be_one(self) -> bool {
        self.0 & Self::MUST_BE_ONE != 0
    }

    /// Bits that no one here knows.
    pub const fn unknown(self) -> u64 {
        self.0 & !Self::DEFINED
    }
}

bit_field! {
    /// What the machine has and does (56860, "PLATFORM_INFO").
    PlatformInfo {
        /// SMT is on.
        smt_en = 0;
        /// All memory is encrypted.
        tsme_en = 1;
        /// Memory has error correction.
        ecc_en = 2;
        /// Running average power limit is off.
        rapl_dis = 3;
        /// Ciphertext hiding is on.
        ciphertext_hiding_dram_en = 4;
        /// No memory aliases have been found since the last system reset.
        alias_check_complete = 5;
        /// Set by real Turin machines; read by others as "the IOMMU may be written safely".
        iommu_write_safe = 6;
        /// SEV-TIO is on.
        tio_en = 7;
    }
}

impl PlatformInfo {
    /// Bits that no one here knows.
    pub const fn unknown(self) -> u64 {
        self.0 & !0xff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_is_named_once_and_read_from_its_place() {
        for (table, read) in [
            (GuestPolicy::BITS, (|bit| GuestPolicy(1 << bit).bit(bit)) as fn(u32) -> bool),
            (PlatformInfo::BITS, |bit| PlatformInfo(1 << bit).bit(bit)),
        ] {
            for (index, (name, bit)) in table.iter().enumerate() {
                assert!(read(*bit), "{name}");
                assert!(table[..index].iter().all(|(n, b)| n != name && b != bit), "{name} twice");
            }
        }
        assert!(GuestPolicy(1 << 19).debug() && !GuestPolicy(!(1 << 19)).debug());
        assert!(PlatformInfo(0x20).alias_check_complete());
    }

    #[test]
    fn unknown_bits_are_those_beyond_the_abi() {
        assert_eq!(GuestPolicy(0x3ffffff).unknown(), 0);
        assert_eq!(GuestPolicy(0x2_0000).unknown(), 0);
        assert_eq!(GuestPolicy(0x400_0000).unknown(), 0x400_0000);
        for (policy, has) in [(0, false), (0x3_0000, true), (!0x2_0000, false), (u64::MAX, true)] {
            assert_eq!(GuestPolicy(policy).has_must_be_one(), has, "{policy:#x}");
        }
        assert_eq!((PlatformInfo(0xff).unknown(), PlatformInfo(0x100).unknown()), (0, 0x100));
        assert_eq!((GuestPolicy(0x1_1f).abi_major(), GuestPolicy(0x1_1f).abi_minor()), (1, 0x1f));
    }
}

//! Processor products and their TCB versions.
//!
//! A TCB version is eight security patch levels in eight bytes. Which byte is whose depends on the
//! product, and two versions are only partially ordered: they are compared part by part, never as
//! one integer (SEV-SNP firmware ABI 56860, "TCB_VERSION").

use core::fmt;

/// A line of processors with one root key and one layout of its TCB version.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "std", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum Product {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004 and 8004, Bergamo and Siena among them.
    Genoa,
    /// EPYC 9005.
    Turin,
    /// The generation after it. No root of AMD's for it is built in, and no evidence of it has been seen here.
    Venice,
}

impl Product {
    /// Every product that this crate can judge.
    pub const ALL: [Self; 4] = [Self::Milan, Self::Genoa, Self::Turin, Self::Venice];

    /// The name in AMD's certificates.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
            Self::Venice => "Venice",
        }
    }

    /// The product with this name in AMD's certificates.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|product| product.name() == name)
    }

    /// The product of a processor's family and model, both as sums of base and extended field.
    pub const fn from_cpuid(family: u8, model: u8) -> Option<Self> {
        Some(match (family, model) {
            (0x19, 0x00..=0x0f) => Self::Milan,
            (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Self::Genoa,
            (0x1a, 0x00..=0x11) => Self::Turin,
            (0x1a, 0x50..=0x57 | 0x90..=0x9f | 0xa0..=0xaf | 0xc0..=0xc7) => Self::Venice,
            _ => return None,
        })
    }

    /// What each byte of its TCB version is, lowest first.
    pub const fn tcb_layout(self) -> &'static [TcbPart; 8] {
        use TcbPart::{Bootloader, Fmc, Microcode, Reserved, Snp, Tee};
        match self {
            Self::Milan | Self::Genoa => {
                &[Bootloader, Tee, Reserved(4), Reserved(5), Reserved(6), Reserved(7), Snp, Microcode]
            }
            Self::Turin => &[Fmc, Bootloader, Tee, Snp, Reserved(5), Reserved(6), Reserved(7), Microcode],
            // Turin's without boot loader and microcode, which have no place in its TCB version.
            Self::Venice => &[Fmc, Reserved(4), Tee, Snp, Reserved(5), Reserved(6), Reserved(7), Reserved(8)],
        }
    }

    /// How many bytes of CHIP_ID identify a chip; the others are zero.
    pub const fn chip_id_bytes(self) -> usize {
        match self {
            Self::Milan | Self::Genoa => 64,
            Self::Turin | Self::Venice => 8,
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whose security patch level a byte of a TCB version is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcbPart {
    /// First mutable code of the secure processor.
    Fmc,
    /// Its boot loader.
    Bootloader,
    /// Its operating system.
    Tee,
    /// The SEV-SNP firmware.
    Snp,
    /// The processor's microcode.
    Microcode,
    /// Nobody's yet; the number is that of AMD's certificate extension.
    Reserved(u8),
}

impl TcbPart {
    /// The name in policies and claims.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fmc => "fmc",
            Self::Bootloader => "bootloader",
            Self::Tee => "tee",
            Self::Snp => "snp",
            Self::Microcode => "microcode",
            Self::Reserved(_) => "reserved",
        }
    }
}

/// A TCB version as the report carries it: meaningless until a product says what its bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TcbVersion(pub [u8; 8]);

impl TcbVersion {
    /// The security patch levels, by what they are on `product`.
    pub fn parts(self, product: Product) -> impl Iterator<Item = (TcbPart, u8)> {
        product.tcb_layout().iter().copied().zip(self.0)
    }

    /// The level of one part; `None` where `product` has no such part.
    pub fn level(self, product: Product, part: TcbPart) -> Option<u8> {
        self.parts(product).find(|&(own, _)| own == part).map(|(_, level)| level)
    }

    /// Every part whose level is below the one in `other`: part, our level, its level.
    pub fn below(self, other: Self, product: Product) -> impl Iterator<Item = (TcbPart, u8, u8)> {
        let pairs = self.parts(product).zip(other.0);
        pairs.filter(|((_, own), other)| own < other).map(|((part, own), other)| (part, own, other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_product_reads_the_same_bytes_its_own_way() {
        let tcb = TcbVersion([1, 2, 3, 4, 0, 0, 7, 8]);
        for (product, part, level) in [
            (Product::Milan, TcbPart::Bootloader, Some(1)),
            (Product::Genoa, TcbPart::Tee, Some(2)),
            (Product::Genoa, TcbPart::Snp, Some(7)),
            (Product::Genoa, TcbPart::Fmc, None),
            (Product::Turin, TcbPart::Fmc, Some(1)),
            (Product::Turin, TcbPart::Bootloader, Some(2)),
            (Product::Turin, TcbPart::Snp, Some(4)),
            (Product::Turin, TcbPart::Microcode, Some(8)),
            (Product::Venice, TcbPart::Fmc, Some(1)),
            (Product::Venice, TcbPart::Bootloader, None),
            (Product::Venice, TcbPart::Snp, Some(4)),
            (Product::Venice, TcbPart::Microcode, None),
        ] {
            assert_eq!(tcb.level(product, part), level, "{product} {part:?}");
        }
    }

    #[test]
    fn versions_are_compared_part_by_part() {
        let (old, new) = (TcbVersion([9, 0, 0, 0, 0, 0, 0, 1]), TcbVersion([1, 0, 0, 0, 0, 0, 0, 2]));
        let below: Vec<_> = old.below(new, Product::Milan).collect();
        assert_eq!(below, [(TcbPart::Microcode, 1, 2)]);
        let below: Vec<_> = new.below(old, Product::Milan).collect();
        assert_eq!(below, [(TcbPart::Bootloader, 1, 9)]);
        assert_eq!(old.below(old, Product::Milan).count(), 0);
    }

    #[test]
    fn products_come_from_family_and_model() {
        for (family, model, product) in [
            (0x19, 0x01, Some(Product::Milan)),
            (0x19, 0x11, Some(Product::Genoa)),
            (0x19, 0xa0, Some(Product::Genoa)),
            (0x1a, 0x02, Some(Product::Turin)),
            (0x1a, 0x50, Some(Product::Venice)),
            (0x1a, 0xc7, Some(Product::Venice)),
            (0x1a, 0x58, None),
            (0x1a, 0xc8, None),
            (0x19, 0x20, None),
            (0, 0, None),
        ] {
            assert_eq!(Product::from_cpuid(family, model), product, "{family:#x}/{model:#x}");
        }
    }
}

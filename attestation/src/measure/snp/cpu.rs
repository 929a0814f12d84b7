//! vCPU models: the CPUID signature that ends up in RDX of the measured VMSA.

/// CPUID Fn0000_0001_EAX of the guest's processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuModel(pub u32);

impl VcpuModel {
    /// The signature of a family, model and stepping (AMD CPUID specification 25481, Fn0000_0001_EAX).
    /// Family is the sum of base and extended family, model of both model fields; what does not fit
    /// its field is cut off.
    pub const fn from_family(family: u16, model: u8, stepping: u8) -> Self {
        let (base, extended) = match family.checked_sub(0xf) {
            Some(extended) => (0xf, (extended & 0xff) as u32),
            None => (family as u32, 0),
        };
        let (model, stepping) = (model as u32, stepping as u32);
        let eax =
            (extended << 20) | ((model >> 4) << 16) | (base << 8) | ((model & 0xf) << 4) | (stepping & 0xf);
        Self(eax)
    }

    /// The signature of a model name in [`CPU_MODELS`].
    pub fn by_name(name: &str) -> Option<Self> {
        CPU_MODELS.iter().find(|(known, _)| *known == name).map(|&(_, model)| model)
    }
}

const NAPLES: VcpuModel = VcpuModel::from_family(23, 1, 2);
const ROME: VcpuModel = VcpuModel::from_family(23, 49, 0);
const MILAN: VcpuModel = VcpuModel::from_family(25, 1, 1);
const GENOA: VcpuModel = VcpuModel::from_family(25, 17, 0);
const TURIN: VcpuModel = VcpuModel::from_family(26, 0, 0);

/// Signatures by QEMU's CPU model names.
pub const CPU_MODELS: &[(&str, VcpuModel)] = &[
    ("EPYC", NAPLES),
    ("EPYC-v1", NAPLES),
    ("EPYC-v2", NAPLES),
    ("EPYC-IBPB", NAPLES),
    ("EPYC-v3", NAPLES),
    ("EPYC-v4", NAPLES),
    ("EPYC-Rome", ROME),
    ("EPYC-Rome-v1", ROME),
    ("EPYC-Rome-v2", ROME),
    ("EPYC-Rome-v3", ROME),
    ("EPYC-Milan", MILAN),
    ("EPYC-Milan-v1", MILAN),
    ("EPYC-Milan-v2", MILAN),
    ("EPYC-Genoa", GENOA),
    ("EPYC-Genoa-v1", GENOA),
    ("EPYC-Turin", TURIN),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_the_processors() {
        for (name, eax) in [
            ("EPYC", 0x0080_0f12),
            ("EPYC-Rome", 0x0083_0f10),
            ("EPYC-Milan", 0x00a0_0f11),
            ("EPYC-Genoa", 0x00a1_0f10),
            ("EPYC-Turin", 0x00b0_0f00),
        ] {
            assert_eq!(VcpuModel::by_name(name), Some(VcpuModel(eax)), "{name}");
        }
        assert_eq!(VcpuModel::by_name("EPYC-Naples"), None);
    }

    #[test]
    fn names_are_unique() {
        for (index, (name, _)) in CPU_MODELS.iter().enumerate() {
            assert!(CPU_MODELS[..index].iter().all(|(other, _)| other != name), "{name} twice");
        }
    }
}

//! What the processor implements, for CPUID.
//!
//! The environment builds its CPUID leaves from this table: a bit that is not here must read zero, or the guest
//! will use what it gets #UD for.

/// An output register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// Feature bits of one CPUID output register that the processor implements on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// CPUID leaf (EAX).
    pub leaf: u32,
    /// CPUID sub-leaf (ECX).
    pub subleaf: u32,
    /// The register.
    pub register: Register,
    /// The bits.
    pub bits: u32,
}

/// One feature: where its bit is, and whether this host can run it.
struct Row {
    leaf: u32,
    register: Register,
    bit: u32,
    name: &'static str,
    here: fn() -> bool,
}

fn always() -> bool {
    true
}

macro_rules! host {
    ($name:tt) => {
        || std::is_x86_feature_detected!($name)
    };
}

const fn row(leaf: u32, register: Register, bit: u32, name: &'static str, here: fn() -> bool) -> Row {
    Row { leaf, register, bit, name, here }
}

const EXTENDED: u32 = 0x8000_0001;

/// AMD APM volume 3, appendix E. OSXSAVE and APIC depend on state and are the environment's; so is everything that
/// is not an instruction or a paging feature (x2APIC, hypervisor, TSC deadline, topology).
#[rustfmt::skip]
static ROWS: &[Row] = {
    use Register::{Ebx, Ecx, Edx};
    &[
        row(1, Edx, 0, "fpu", always),
        row(1, Edx, 2, "de", always),
        row(1, Edx, 3, "pse", always),
        row(1, Edx, 4, "tsc", always),
        row(1, Edx, 5, "msr", always),
        row(1, Edx, 6, "pae", always),
        row(1, Edx, 8, "cx8", always),
        row(1, Edx, 11, "sep", always),
        row(1, Edx, 13, "pge", always),
        row(1, Edx, 15, "cmov", always),
        row(1, Edx, 16, "pat", always),
        row(1, Edx, 17, "pse36", always),
        row(1, Edx, 19, "clflush", always),
        row(1, Edx, 23, "mmx", always),
        row(1, Edx, 24, "fxsr", always),
        row(1, Edx, 25, "sse", always),
        row(1, Edx, 26, "sse2", always),
        row(1, Ecx, 0, "sse3", host!("sse3")),
        row(1, Ecx, 1, "pclmulqdq", host!("pclmulqdq")),
        row(1, Ecx, 9, "ssse3", host!("ssse3")),
        row(1, Ecx, 13, "cx16", host!("cmpxchg16b")),
        row(1, Ecx, 19, "sse4.1", host!("sse4.1")),
        row(1, Ecx, 20, "sse4.2", host!("sse4.2")),
        row(1, Ecx, 22, "movbe", always),
        row(1, Ecx, 23, "popcnt", always),
        row(1, Ecx, 25, "aes", host!("aes")),
        row(1, Ecx, 30, "rdrand", host!("rdrand")),
        row(7, Ebx, 0, "fsgsbase", always),
        row(7, Ebx, 3, "bmi1", host!("bmi1")),
        row(7, Ebx, 7, "smep", always),
        row(7, Ebx, 8, "bmi2", host!("bmi2")),
        row(7, Ebx, 9, "erms", always),
        row(7, Ebx, 18, "rdseed", host!("rdseed")),
        row(7, Ebx, 19, "adx", host!("adx")),
        row(7, Ebx, 20, "smap", always),
        row(7, Ebx, 23, "clflushopt", always),
        row(7, Ebx, 24, "clwb", always),
        row(7, Ebx, 29, "sha", host!("sha")),
        row(7, Ecx, 2, "umip", always),
        row(7, Ecx, 22, "rdpid", always),
        row(7, Edx, 4, "fsrm", always),
        row(7, Edx, 14, "serialize", always),
        row(EXTENDED, Ecx, 0, "lahf_lm", always),
        row(EXTENDED, Ecx, 4, "cr8_legacy", always),
        row(EXTENDED, Ecx, 5, "abm", always),
        row(EXTENDED, Ecx, 8, "3dnowprefetch", always),
        row(EXTENDED, Edx, 11, "syscall", always),
        row(EXTENDED, Edx, 20, "nx", always),
        row(EXTENDED, Edx, 26, "pdpe1gb", always),
        row(EXTENDED, Edx, 27, "rdtscp", always),
        row(EXTENDED, Edx, 29, "lm", always),
        row(0x8000_0008, Ebx, 9, "wbnoinvd", always),
    ]
};

/// AMD repeats these bits of leaf 1 EDX in leaf 0x8000_0001 EDX.
const REPEATED: u32 = 0x0183_f3ff;

/// The feature bits that the processor implements on this host, one entry per CPUID register.
pub fn features() -> Vec<Feature> {
    let mut table: Vec<Feature> = Vec::new();
    let mut add =
        |leaf, register, bits| match table.iter_mut().find(|f| f.leaf == leaf && f.register == register) {
            Some(f) => f.bits |= bits,
            None => table.push(Feature { leaf, subleaf: 0, register, bits }),
        };
    for row in ROWS.iter().filter(|row| (row.here)()) {
        add(row.leaf, row.register, 1 << row.bit);
        if row.leaf == 1 && row.register == Register::Edx {
            add(EXTENDED, Register::Edx, 1 << row.bit & REPEATED);
        }
    }
    table
}

/// The names of the features that this host cannot provide.
pub fn missing_features() -> Vec<&'static str> {
    ROWS.iter().filter(|row| !(row.here)()).map(|row| row.name).collect()
}

/// The processor implements XSAVE and its kin.
pub(crate) fn xsave() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bit_is_listed_twice() {
        for (i, a) in ROWS.iter().enumerate() {
            for b in &ROWS[i + 1..] {
                assert!(
                    (a.leaf, a.register, a.bit) != (b.leaf, b.register, b.bit),
                    "{} and {}",
                    a.name,
                    b.name
                );
            }
        }
    }

    #[test]
    fn avx_and_xsave_are_not_promised() {
        let ecx = features().into_iter().find(|f| f.leaf == 1 && f.register == Register::Ecx).map(|f| f.bits);
        assert_eq!(ecx.unwrap_or(0) & (1 << 26 | 1 << 27 | 1 << 28), 0);
    }
}

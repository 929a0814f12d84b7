//! The launch: KVM_TDX_INIT_VM, INIT_VCPU, INIT_MEM_REGION and FINALIZE_VM, with the checks of KVM and of the module.

use super::cpuid::{self, TdCpuid};
use super::mr::{Measurement, Mrtd};
use super::status::{self, operand};
use crate::uapi::errno::Errno;

/// ATTRIBUTES bits (TDX module ABI reference, "ATTRIBUTES").
pub mod attribute {
    pub const DEBUG: u64 = 1 << 0;
    pub const SEPT_VE_DISABLE: u64 = 1 << 28;
}

/// XFAM bits that the module sets in every TD: x87 and SSE. The processor has nothing beyond.
pub const XFAM_FIXED1: u64 = 0b11;
/// XFAM bits that a TD may have.
pub const XFAM_SUPPORTED: u64 = 0b11;

/// CONFIG_FLAGS.
pub mod config_flag {
    pub const GPAW_52: u64 = 1 << 0;
    pub const FLEXIBLE_PENDING_VE: u64 = 1 << 1;
    pub const NO_RBP_MOD: u64 = 1 << 2;
}

/// Guest-physical address width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gpaw {
    /// Bit 47 is the shared bit.
    Bits48,
    /// Bit 51 is the shared bit.
    Bits52,
}

impl Gpaw {
    /// The width.
    pub fn bits(self) -> u8 {
        match self {
            Self::Bits48 => 48,
            Self::Bits52 => 52,
        }
    }

    /// Number of the shared bit.
    pub fn shared_bit(self) -> u8 {
        self.bits() - 1
    }

    /// The shared bit.
    pub fn shared_mask(self) -> u64 {
        1 << self.shared_bit()
    }

    /// Takes a guest-physical address apart; `None` if it is too wide.
    pub fn split(self, gpa: u64) -> Option<(u64, bool)> {
        (gpa >> self.bits() == 0).then_some((gpa & !self.shared_mask(), gpa & self.shared_mask() == 0))
    }
}

/// Why a command failed: an errno, and the module's status if it was the module that refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The ioctl's errno.
    pub errno: Errno,
    /// kvm_tdx_cmd.hw_error.
    pub module: u64,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno, module: 0 }
    }
}

impl Refusal {
    /// TDX_OPERAND_INVALID of a client's operand: KVM passes the status on with EINVAL.
    pub fn operand(operand: u64) -> Self {
        Self { errno: Errno::EINVAL, module: status::OPERAND_INVALID | operand }
    }
}

/// Life cycle of a TD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// KVM_CREATE_VM.
    #[default]
    New,
    /// KVM_TDX_INIT_VM.
    Initialised,
    /// KVM_TDX_FINALIZE_VM.
    Runnable,
    /// KVM_TDX_TERMINATE_VM.
    Terminated,
}

/// What changes in a TD.
#[derive(Debug, Default)]
pub struct Td {
    /// Life cycle.
    pub state: State,
    /// MRTD while it is built.
    pub building: Mrtd,
    /// MRTD.
    pub mrtd: Option<Measurement>,
    /// RTMR0 to RTMR3.
    pub rtmr: RtmrBank,
}

/// RTMR0 to RTMR3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtmrBank(pub [Measurement; 4]);

impl Default for RtmrBank {
    fn default() -> Self {
        Self([[0; 48]; 4])
    }
}

impl Td {
    /// KVM_TDX_FINALIZE_VM: TDH.MR.FINALIZE.
    pub fn finalize(&mut self) -> Result<(), Errno> {
        if self.state != State::Initialised {
            return Err(Errno::EINVAL);
        }
        self.mrtd = Some(self.building.finalize());
        self.state = State::Runnable;
        Ok(())
    }
}

/// What KVM_TDX_INIT_VM fixes (TD_PARAMS).
#[derive(Clone, Debug)]
pub struct Parameters {
    /// ATTRIBUTES.
    pub attributes: u64,
    /// XFAM.
    pub xfam: u64,
    /// From CPUID 0x80000008, bits 23 to 16 of EAX, of the client's table.
    pub gpaw: Gpaw,
    /// MRCONFIGID.
    pub mrconfigid: Measurement,
    /// MROWNER.
    pub mrowner: Measurement,
    /// MROWNERCONFIG.
    pub mrownerconfig: Measurement,
    /// CPUID as the TD sees it.
    pub cpuid: TdCpuid,
}

impl Parameters {
    /// CONFIG_FLAGS as KVM chooses them.
    pub fn config_flags(&self) -> u64 {
        let wide = if self.gpaw == Gpaw::Bits52 { config_flag::GPAW_52 } else { 0 };
        wide | config_flag::NO_RBP_MOD
    }
}

/// struct kvm_tdx_init_vm, taken apart.
#[derive(Clone, Debug)]
pub struct Request {
    /// ATTRIBUTES.
    pub attributes: u64,
    /// XFAM.
    pub xfam: u64,
    /// MRCONFIGID, MROWNER, MROWNERCONFIG.
    pub identities: [Measurement; 3],
    /// Reserved words; must be zero.
    pub reserved: [u64; 12],
    /// CPUID configuration.
    pub cpuid: Vec<cpuid::Entry>,
}

impl Request {
    /// KVM's checks and the module's.
    pub fn check(self, supported_attributes: u64) -> Result<Parameters, Refusal> {
        if self.reserved.iter().any(|&word| word != 0) {
            return Err(Errno::EINVAL.into());
        }
        if self.attributes & !supported_attributes != 0 || self.xfam & !XFAM_SUPPORTED != 0 {
            return Err(Errno::EINVAL.into());
        }
        let widths = self.cpuid.iter().find(|e| e.leaf == 0x8000_0008 && e.subleaf == 0);
        let gpaw = match widths.map(|e| e.value[0] >> 16 & 0xff) {
            Some(48) => Gpaw::Bits48,
            Some(52) => Gpaw::Bits52,
            _ => return Err(Errno::EINVAL.into()),
        };
        let cpuid = TdCpuid::configure(&self.cpuid)?;
        let [mrconfigid, mrowner, mrownerconfig] = self.identities;
        Ok(Parameters {
            attributes: self.attributes,
            xfam: self.xfam | XFAM_FIXED1,
            gpaw,
            mrconfigid,
            mrowner,
            mrownerconfig,
            cpuid,
        })
    }
}

/// The module's refusal of a CPUID configuration.
pub fn bad_cpuid() -> Refusal {
    Refusal::operand(operand::CPUID_CONFIG)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        let widths = cpuid::Entry { leaf: 0x8000_0008, subleaf: 0, value: [48 << 16, 0, 0, 0] };
        Request {
            attributes: attribute::SEPT_VE_DISABLE,
            xfam: 3,
            identities: [[1; 48], [2; 48], [3; 48]],
            reserved: [0; 12],
            cpuid: vec![widths],
        }
    }

    #[test]
    fn parameters_that_kvm_or_the_module_refuse_are_refused() {
        let allowed = attribute::SEPT_VE_DISABLE;
        assert_eq!(request().check(allowed).map(|p| p.gpaw), Ok(Gpaw::Bits48));
        type Spoil = (&'static str, fn(&mut Request), u64);
        let spoilers: [Spoil; 6] = [
            ("a reserved word", |r| r.reserved[11] = 1, 0),
            ("DEBUG, which KVM does not let through", |r| r.attributes |= attribute::DEBUG, 0),
            ("AVX", |r| r.xfam = 7, 0),
            ("no address width", |r| r.cpuid.clear(), 0),
            ("width 57", |r| r.cpuid[0].value[0] = 57 << 16, 0),
            (
                "a bit that is not configurable",
                |r| r.cpuid.push(cpuid::Entry { leaf: 1, subleaf: 0, value: [0, 0, 1, 0] }),
                status::OPERAND_INVALID | operand::CPUID_CONFIG,
            ),
        ];
        for (what, spoil, module) in spoilers {
            let mut bad = request();
            spoil(&mut bad);
            let refusal = bad.check(allowed).err();
            assert_eq!(refusal, Some(Refusal { errno: Errno::EINVAL, module }), "{what}");
        }
    }

    #[test]
    fn the_shared_bit_follows_the_address_width() {
        assert_eq!(Gpaw::Bits48.split(1 << 47 | 0x1000), Some((0x1000, false)));
        assert_eq!(Gpaw::Bits48.split(1 << 48), None);
        assert_eq!(Gpaw::Bits52.split(1 << 47), Some((1 << 47, true)));
        assert_eq!(Gpaw::Bits52.split(1 << 51), Some((0, false)));
    }

    #[test]
    fn a_td_is_finalized_once_and_not_before_it_is_initialised() {
        let mut td = Td::default();
        assert_eq!(td.finalize(), Err(Errno::EINVAL));
        td.state = State::Initialised;
        assert_eq!(td.finalize(), Ok(()));
        assert_eq!(td.finalize(), Err(Errno::EINVAL));
    }
}

//! What accepted evidence takes away from a trust vector by what it says.
//!
//! A policy decides what is acceptable to whoever wrote it. A token is read by others: what they are told about memory
//! that the host can read, or about a TCB with known holes, must not depend on somebody's having put up with it.

use alloc::vec::Vec;

use serde::Serialize;

use super::{Claim, value};
use crate::claims::Claims;
use crate::snp::{self, BitsClaims, GuestPolicy};
use crate::tdx::{self, TcbStatus, TdAttributes};

/// Something that is known to be wrong with authentic evidence, whatever a policy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flaw {
    /// The host may read the guest's memory, or watch how it runs.
    HostMayLook,
    /// The guest may be moved into another machine's protection.
    MayBeMoved,
    /// A bit is set that nobody here knows.
    UnknownBit,
    /// The host may surprise the guest's kernel with exceptions.
    HostMayInterfere,
    /// Something newer mends something, or configuration or software must make up for something.
    TcbFlawed,
    /// The vendor has revoked the TCB.
    TcbRevoked,
    /// The host may go back to older firmware under the guest.
    FirmwareProvisional,
}

impl Flaw {
    /// What it takes away from which claims.
    pub(super) const fn effects(self) -> &'static [(Claim, i8)] {
        use Claim::{Configuration, Hardware, RuntimeOpaque};
        match self {
            Self::HostMayLook => {
                &[(RuntimeOpaque, value::VISIBLE_TO_HOST), (Configuration, value::UNSAFE_CONFIGURATION)]
            }
            Self::MayBeMoved => &[(RuntimeOpaque, value::NO_CLAIM)],
            Self::UnknownBit => &[(RuntimeOpaque, value::NO_CLAIM), (Configuration, value::NO_CLAIM)],
            Self::HostMayInterfere => &[(Configuration, value::UNSAFE_CONFIGURATION)],
            Self::TcbFlawed | Self::FirmwareProvisional => &[(Hardware, value::UNSAFE_HARDWARE)],
            Self::TcbRevoked => &[(Hardware, value::CONTRAINDICATED_HARDWARE)],
        }
    }
}

/// Claims of which a token can be made.
pub trait Attested: Serialize {
    /// What is wrong with what they say.
    fn flaws(&self) -> Vec<Flaw>;
}

/// The value of bits; where it cannot be read back, every bit might be set.
fn raw(bits: &BitsClaims) -> u64 {
    let digits = bits.raw.strip_prefix("0x").unwrap_or(&bits.raw);
    u64::from_str_radix(digits, 16).unwrap_or(u64::MAX)
}

fn present<const N: usize>(rows: [(bool, Flaw); N]) -> Vec<Flaw> {
    rows.into_iter().filter(|(present, _)| *present).map(|(_, flaw)| flaw).collect()
}

impl Attested for tdx::Claims {
    fn flaws(&self) -> Vec<Flaw> {
        let bits = TdAttributes(raw(&self.td_attributes));
        let looks = bits.debug() || bits.hgs_plus_prof() || bits.perf_prof() || bits.pmt_prof();
        let status = self.tcb.status;
        present([
            (looks, Flaw::HostMayLook),
            (bits.migratable(), Flaw::MayBeMoved),
            (bits.unknown() != 0, Flaw::UnknownBit),
            (!bits.sept_ve_disable(), Flaw::HostMayInterfere),
            (status == TcbStatus::Revoked, Flaw::TcbRevoked),
            (!matches!(status, TcbStatus::UpToDate | TcbStatus::Revoked), Flaw::TcbFlawed),
        ])
    }
}

impl Attested for snp::Claims {
    fn flaws(&self) -> Vec<Flaw> {
        let policy = GuestPolicy(raw(&self.report.guest_policy.bits));
        let provisional = self.report.firmware.current != self.report.firmware.committed
            || self.report.tcb.current.raw != self.report.tcb.committed.raw;
        present([
            (policy.debug(), Flaw::HostMayLook),
            (policy.migrate_ma(), Flaw::MayBeMoved),
            (policy.unknown() != 0, Flaw::UnknownBit),
            (provisional, Flaw::FirmwareProvisional),
        ])
    }
}

impl Attested for Claims {
    fn flaws(&self) -> Vec<Flaw> {
        match self {
            Self::Snp(claims) => claims.flaws(),
            Self::Tdx(claims) => claims.flaws(),
        }
    }
}

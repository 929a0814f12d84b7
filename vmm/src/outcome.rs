//! How a guest ended, in words and as an exit code.

use std::fmt;

use cloister_attestation::abi::{TERMINATION_SET, TerminationReason};

/// Why a guest does not run any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It powered off; the code is its own.
    PoweredOff {
        /// What it last wrote to the exit code port, else 0.
        code: u8,
    },
    /// It asked for a reset.
    Reset(ResetBy),
    /// It ended itself with a reason (GHCB termination request, a TD's fatal error, or their plain equivalent).
    Terminated {
        /// Reason set.
        set: u8,
        /// Reason code in that set.
        code: u8,
    },
    /// Triple fault of a confidential guest. It crashed, or Linux reset the machine in the way that is left to it there: an
    /// ordinary end of a TD whose init fails.
    TripleFault,
    /// KVM or the VMM could not go on.
    Failed(String),
    /// The operator ended it.
    Signalled(&'static str),
}

/// The ways to reset a PC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetBy {
    /// The FADT's reset register.
    Acpi,
    /// The keyboard controller's output line.
    KeyboardController,
    /// The chipset's register at port 0xCF9.
    ResetControl,
    /// A triple fault: how some kernels reset, and how others crash.
    TripleFault,
    /// KVM says no more than that.
    Kvm,
}

impl fmt::Display for ResetBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Acpi => "ACPI",
            Self::KeyboardController => "the keyboard controller",
            Self::ResetControl => "port 0xCF9",
            Self::TripleFault => "a triple fault",
            Self::Kvm => "KVM's event",
        })
    }
}

/// Reasons of GHCB set 0 (GHCB specification, "Termination Request", general reasons).
const GENERAL_REASONS: &[&str] = &[
    "general termination request",
    "SEV-ES or GHCB protocol range not supported",
    "SEV-SNP features not supported",
];
/// Reasons of Linux's set 1 (Linux `asm/sev-common.h`, GHCB_TERM_*).
const LINUX_REASONS: &[&str] = &[
    "GHCB registration failed",
    "page state change refused",
    "PVALIDATE failed",
    "not running at VMPL0",
    "CPUID refused",
    "CPUID from the hypervisor refused",
    "secrets page refused",
    "no SVSM",
    "SVSM not at VMPL0",
    "SVSM calling area refused",
];

/// What a termination reason says.
pub fn termination_reason(set: u8, code: u8) -> &'static str {
    match set {
        0 => GENERAL_REASONS.get(usize::from(code)).copied(),
        1 => LINUX_REASONS.get(usize::from(code)).copied(),
        TERMINATION_SET => TerminationReason::from_code(code).map(TerminationReason::as_str),
        _ => None,
    }
    .unwrap_or("unknown reason")
}

impl Outcome {
    /// The outcome of a GHCB MSR with a termination request (bits 15:12 reason set, 23:16 code).
    pub fn from_ghcb_termination(ghcb_msr: u64) -> Self {
        Self::Terminated { set: ((ghcb_msr >> 12) & 0xf) as u8, code: (ghcb_msr >> 16) as u8 }
    }

    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        match *self {
            Self::PoweredOff { code } => code,
            _ => 1,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff { code: 0 } => write!(f, "guest powered off"),
            Self::PoweredOff { code } => write!(f, "guest powered off with code {code}"),
            Self::Reset(by) => write!(f, "guest asked for a reset (by {by}), which ends it here"),
            Self::Terminated { set, code } => {
                write!(f, "guest terminated: {set}:{code} {}", termination_reason(*set, *code))
            }
            Self::TripleFault => f.write_str(
                "guest shut down by a triple fault: it crashed, or it asked for a reset, as a TD does whose init ends \
                 with an error; the last lines of its console say which",
            ),
            Self::Failed(why) => write!(f, "guest stopped: {why}"),
            Self::Signalled(signal) => write!(f, "stopped by {signal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn termination_requests_are_spelt_out() {
        for (msr, line) in [
            (0x0000_2100, "guest terminated: 2:0 unknown reason"),
            (0x0001_2100, "guest terminated: 2:1 kernel hash mismatch"),
            (0x0007_2100, "guest terminated: 2:7 page validation failed (already validated or remapped)"),
            (0x0002_1100, "guest terminated: 1:2 PVALIDATE failed"),
            (0x0001_0100, "guest terminated: 0:1 SEV-ES or GHCB protocol range not supported"),
            (0x00ff_f100, "guest terminated: 15:255 unknown reason"),
        ] {
            let outcome = Outcome::from_ghcb_termination(msr);
            assert_eq!((outcome.to_string().as_str(), outcome.exit_code()), (line, 1));
        }
    }

    #[test]
    fn a_triple_fault_is_not_called_a_crash() {
        let line = Outcome::TripleFault.to_string();
        assert!(line.contains("triple fault") && line.contains("asked for a reset"), "{line}");
    }

    #[test]
    fn only_a_clean_power_off_keeps_the_guest_s_code() {
        assert_eq!(Outcome::PoweredOff { code: 0 }.exit_code(), 0);
        assert_eq!(Outcome::PoweredOff { code: 42 }.exit_code(), 42);
        for outcome in [Outcome::Reset(ResetBy::Acpi), Outcome::TripleFault, Outcome::Signalled("SIGTERM")] {
            assert_eq!(outcome.exit_code(), 1);
        }
    }
}

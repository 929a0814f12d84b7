//! Why the firmware gave up: a code for the host, words for the console.

pub use cloister_attestation::abi::TerminationReason;

/// The end of a boot: the code that the host sees, and one line that says what exactly was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Code for the host.
    pub reason: TerminationReason,
    /// Words for the console.
    pub detail: &'static str,
}

impl Stop {
    /// The end for this reason, with the words that explain it.
    pub const fn because(reason: TerminationReason, detail: &'static str) -> Self {
        Self { reason, detail }
    }
}

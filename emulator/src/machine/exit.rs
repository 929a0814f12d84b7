//! How the processor leaves the guest, and how the client's answers come back.
//!
//! An access that the client must answer leaves the guest with the instruction not yet done. On the next KVM_RUN the
//! client's answer joins [`Replay`], and that one instruction is executed again; it finds its answers there. So exits have
//! a precise RIP, string and multi-access instructions need no special case, and registers change only when all is known.

use super::run_page::RunPage;

/// Why the processor left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// For nothing that concerns the client.
    Continue,
    /// `kvm_run` describes an exit.
    Client,
    /// As `Client`, but KVM_RUN fails with EFAULT. `kvm_run` may describe KVM_EXIT_MEMORY_FAULT; for memory that the client
    /// itself does not have it describes nothing, as in KVM.
    ClientFault,
    /// A signal.
    Signal,
    /// HLT.
    Halt,
    /// The interrupt window that the client asked for is open.
    Window,
    /// Triple fault.
    Shutdown,
    /// The VM can never run again.
    Dead,
}

/// A request that left for the client.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pending {
    In(u8),
    Read,
    Write,
    Hypercall,
}

/// Answers for the one instruction that is being executed again.
#[derive(Debug, Default)]
pub struct Replay {
    answers: Vec<u64>,
    next: usize,
    pub(super) pending: Option<Pending>,
}

impl Replay {
    /// Takes the client's answer, if one was asked for.
    pub fn answer(&mut self, run: &mut RunPage) -> bool {
        let Some(pending) = self.pending.take() else { return false };
        self.answers.push(match pending {
            Pending::In(bytes) => u64::from(run.io_value(bytes)),
            Pending::Read => u64::from_le_bytes(run.mmio_data()),
            Pending::Write => 0,
            Pending::Hypercall => run.hypercall_result(),
        });
        self.next = 0;
        true
    }

    /// The instruction is done.
    pub fn clear(&mut self) {
        self.answers.clear();
        self.next = 0;
    }

    /// The next answer, if the client has given it.
    pub(super) fn take(&mut self) -> Option<u64> {
        let answer = self.answers.get(self.next).copied()?;
        self.next += 1;
        Some(answer)
    }
}

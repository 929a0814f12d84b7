//! What a TD asks of user space: KVM_EXIT_TDX, and the fatal errors that it reports.

mod qgs;
mod quote;

use std::fmt::Write as _;
use std::sync::Arc;

use cloister_attestation::abi::{TDX_FATAL_FIRMWARE, TERMINATION_SET};

pub use quote::QuoteBroker;

use crate::outcome::Outcome;
use crate::output::GuestLog;

/// `KVM_EXIT_TDX`.
pub const EXIT_TDX: u32 = 40;
/// `KVM_SYSTEM_EVENT_TDX_FATAL`.
pub const SYSTEM_EVENT_TDX_FATAL: u32 = 7;

/// TDG.VP.VMCALL functions that KVM hands to user space (Intel GHCI).
const GET_TD_VM_CALL_INFO: u64 = 0x1_0000;
const GET_QUOTE: u64 = 0x1_0002;
const SETUP_EVENT_NOTIFY_INTERRUPT: u64 = 0x1_0004;

const SUCCESS: u64 = 0;
const RETRY: u64 = 1;
const INVALID_OPERAND: u64 = 0x8000_0000_0000_0000;
const SUBFUNC_UNSUPPORTED: u64 = 0x8000_0000_0000_0003;
/// Leaf 1 of GetTdVmCallInfo, R11: GetQuote and SetupEventNotifyInterrupt are served.
const SERVED: u64 = 0b11;

/// `kvm_run.tdx`: flags, function, then the function's words, of which the first is the status.
type Words = [u64; 8];

/// Serves KVM_EXIT_TDX of one guest's vCPUs.
pub struct TdxExits {
    quotes: Arc<QuoteBroker>,
    log: Arc<GuestLog>,
}

impl TdxExits {
    /// With the guest's quote broker and log.
    pub fn new(quotes: Arc<QuoteBroker>, log: Arc<GuestLog>) -> Self {
        Self { quotes, log }
    }

    /// Serves one exit of the vCPU with `apic_id`; the answer goes into the same words.
    pub fn handle(&self, words: &mut Words, apic_id: u32) {
        let [_, function, status, first, second, ..] = words;
        *status = match *function {
            GET_QUOTE => match self.quotes.begin(*first, *second) {
                Ok(()) => SUCCESS,
                Err(error) => {
                    self.log.warn(&error);
                    if error == quote::RequestError::Busy { RETRY } else { INVALID_OPERAND }
                }
            },
            // R11 to R14 follow the leaf.
            GET_TD_VM_CALL_INFO if *first == 1 => {
                *second = SERVED;
                SUCCESS
            }
            SETUP_EVENT_NOTIFY_INTERRUPT => match u8::try_from(*first) {
                Ok(vector @ 32..) => {
                    self.quotes.set_notification(vector, apic_id);
                    SUCCESS
                }
                _ => INVALID_OPERAND,
            },
            _ => SUBFUNC_UNSUPPORTED,
        };
    }
}

/// Registers of ReportFatalError in KVM_SYSTEM_EVENT_TDX_FATAL's data, by their number in instructions.
const R12: usize = 12;
/// Where the message is, eight bytes a register, in this order (GHCI, `TDG.VP.VMCALL<ReportFatalError>`).
const MESSAGE: [usize; 8] = [14, 15, 3, 7, 6, 8, 9, 2];

/// How a TD ended that reported a fatal error.
pub fn fatal(registers: &[u64]) -> Outcome {
    let register = |index: usize| registers.get(index).copied().unwrap_or_default();
    let code = register(R12) as u32;
    if code & !0xff == TDX_FATAL_FIRMWARE {
        return Outcome::Terminated { set: TERMINATION_SET, code: code as u8 };
    }
    let bytes = MESSAGE.iter().flat_map(|&index| register(index).to_le_bytes());
    let text: String = bytes.take_while(|&byte| byte != 0).map(char::from).collect();
    let mut why = format!("the TD reported a fatal error, code {code:#x}");
    let text = text.trim();
    if !text.is_empty() {
        // Escaped: the text is the guest's, the terminal the operator's.
        let _ = write!(why, ": {}", text.escape_default());
    }
    Outcome::Failed(why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::msi::tests::Recorder;
    use crate::memory::{DeviceMemory, SharedPages, map_ram};

    fn exits() -> TdxExits {
        let ranges = std::slice::from_ref(&(0..16 * 4096));
        let shared = Arc::new(SharedPages::new(ranges));
        let memory = DeviceMemory::confidential(map_ram(ranges).unwrap(), shared);
        let log = Arc::new(GuestLog::new("test"));
        TdxExits::new(QuoteBroker::new(None, memory, Arc::new(Recorder::default()), log.clone()), log)
    }

    #[test]
    fn calls_are_answered_in_their_own_words() {
        let exits = exits();
        for (function, first, second, status) in [
            (GET_QUOTE, 0x1000, 0x1000, INVALID_OPERAND),
            (SETUP_EVENT_NOTIFY_INTERRUPT, 31, 0, INVALID_OPERAND),
            (SETUP_EVENT_NOTIFY_INTERRUPT, 256, 0, INVALID_OPERAND),
            (SETUP_EVENT_NOTIFY_INTERRUPT, 32, 0, SUCCESS),
            (GET_TD_VM_CALL_INFO, 1, 0, SUCCESS),
            (GET_TD_VM_CALL_INFO, 2, 0, SUBFUNC_UNSUPPORTED),
            (0x1_0003, 0, 0, SUBFUNC_UNSUPPORTED),
        ] {
            let mut words: Words = [0, function, 77, first, second, 0, 0, 0];
            exits.handle(&mut words, 0);
            assert_eq!(words[1..4], [function, status, first], "{function:#x} {first:#x}");
        }
    }

    #[test]
    fn fatal_errors_are_spelt_out_and_their_text_is_escaped() {
        let mut registers = [0u64; 16];
        registers[R12] = u64::from(TDX_FATAL_FIRMWARE) | 5;
        assert_eq!(fatal(&registers), Outcome::Terminated { set: TERMINATION_SET, code: 5 });
        registers[R12] = 1;
        registers[14] = u64::from_le_bytes(*b"TD misco");
        registers[15] = u64::from_le_bytes(*b"nf\x1b[2J\0\0");
        let Outcome::Failed(line) = fatal(&registers) else { panic!("another outcome") };
        assert_eq!(line, "the TD reported a fatal error, code 0x1: TD misconf\\u{1b}[2J");
        assert!(matches!(fatal(&[]), Outcome::Failed(_)));
    }
}

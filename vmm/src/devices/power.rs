//! Power control: hardware-reduced ACPI sleep and reset registers, the exit code, and the plain
//! guest's way to say why its firmware gave up (`cloister_attestation::abi`).

use cloister_attestation::abi::{
    EXIT_CODE_PORT, RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_S5, TERMINATION_FLAG,
    TERMINATION_PORT, TERMINATION_SET,
};

use crate::outcome::{Outcome, ResetBy};

/// The registers' state.
#[derive(Debug, Default)]
pub struct Power {
    exit_code: u8,
    termination: Option<u8>,
    reset_control: u8,
}

/// The keyboard controller's command that pulses its output port's bit 0, which is the processor's reset line.
const PULSE_RESET: u8 = 0xfe;
/// Reset control register (Intel ICH data sheet, RST_CNT): a write that sets this bit resets; the others say how.
const RESET_PROCESSOR: u8 = 1 << 2;
/// Bits of it that stay: hard instead of soft, full power cycle.
const RESET_KIND: u8 = 1 << 1 | 1 << 3;

/// A byte written to the keyboard controller's command port.
pub fn keyboard_command(data: &[u8]) -> Option<Outcome> {
    (data == [PULSE_RESET]).then_some(Outcome::Reset(ResetBy::KeyboardController))
}

impl Power {
    /// A byte written to the chipset's reset control register.
    pub fn reset_control(&mut self, data: &[u8]) -> Option<Outcome> {
        let &[value] = data else { return None };
        self.reset_control = value & RESET_KIND;
        (value & RESET_PROCESSOR != 0).then_some(Outcome::Reset(ResetBy::ResetControl))
    }

    /// What is read back of it.
    pub fn reset_control_read(&self) -> u8 {
        self.reset_control
    }

    /// A byte written to one of the ports.
    pub fn write(&mut self, port: u16, data: &[u8]) -> Option<Outcome> {
        let &[value, ..] = data else { return None };
        match port {
            SLEEP_CONTROL_PORT if value == SLEEP_S5 => Some(match self.termination {
                Some(code) => Outcome::Terminated { set: TERMINATION_SET, code },
                None => Outcome::PoweredOff { code: self.exit_code },
            }),
            RESET_PORT if value == RESET_VALUE => Some(Outcome::Reset(ResetBy::Acpi)),
            EXIT_CODE_PORT => {
                self.exit_code = value;
                None
            }
            TERMINATION_PORT if value & TERMINATION_FLAG != 0 => {
                self.termination = Some(value & !TERMINATION_FLAG);
                None
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(writes: &[(u16, u8)]) -> Option<Outcome> {
        let mut power = Power::default();
        writes.iter().fold(None, |_, &(port, value)| power.write(port, &[value]))
    }

    #[test]
    fn a_pc_s_other_reset_lines_reset() {
        for value in 0..=255 {
            let keyboard = (value == 0xfe).then_some(Outcome::Reset(ResetBy::KeyboardController));
            assert_eq!(keyboard_command(&[value]), keyboard, "{value:#x}");
            let mut power = Power::default();
            let control = (value & 4 != 0).then_some(Outcome::Reset(ResetBy::ResetControl));
            assert_eq!(power.reset_control(&[value]), control, "{value:#x}");
            assert_eq!(power.reset_control_read(), value & 0x0a);
        }
        assert_eq!(keyboard_command(&[0xfe, 0xfe]), None);
    }

    #[test]
    fn only_the_right_value_at_the_right_port_ends_the_guest() {
        for (writes, outcome) in [
            (&[(0x600, 0x34)][..], Some(Outcome::PoweredOff { code: 0 })),
            (&[(0x603, 42), (0x600, 0x34)], Some(Outcome::PoweredOff { code: 42 })),
            (&[(0x602, 1)], Some(Outcome::Reset(ResetBy::Acpi))),
            (&[(0x604, 0x83), (0x600, 0x34)], Some(Outcome::Terminated { set: 2, code: 3 })),
            (&[(0x604, 0x03), (0x600, 0x34)], Some(Outcome::PoweredOff { code: 0 })),
            (&[(0x600, 0x20)], None),
            (&[(0x602, 0)], None),
            (&[(0x601, 0x34)], None),
        ] {
            assert_eq!(last(writes), outcome, "{writes:x?}");
        }
    }
}

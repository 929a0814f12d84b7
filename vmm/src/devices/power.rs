//! Power control: hardware-reduced ACPI sleep and reset registers, the exit code, and the plain
//! guest's way to say why its firmware gave up (`cloister_attestation::abi`).

use cloister_attestation::abi::{
    EXIT_CODE_PORT, RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_S5, TERMINATION_FLAG,
    TERMINATION_PORT, TERMINATION_SET,
};

use crate::outcome::Outcome;

/// The registers' state.
#[derive(Debug, Default)]
pub struct Power {
    exit_code: u8,
    termination: Option<u8>,
}

impl Power {
    /// A byte written to one of the ports.
    pub fn write(&mut self, port: u16, data: &[u8]) -> Option<Outcome> {
        let &[value, ..] = data else { return None };
        match port {
            SLEEP_CONTROL_PORT if value == SLEEP_S5 => Some(match self.termination {
                Some(code) => Outcome::Terminated { set: TERMINATION_SET, code },
                None => Outcome::PoweredOff { code: self.exit_code },
            }),
            RESET_PORT if value == RESET_VALUE => Some(Outcome::Reset),
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
    fn only_the_right_value_at_the_right_port_ends_the_guest() {
        for (writes, outcome) in [
            (&[(0x600, 0x34)][..], Some(Outcome::PoweredOff { code: 0 })),
            (&[(0x603, 42), (0x600, 0x34)], Some(Outcome::PoweredOff { code: 42 })),
            (&[(0x602, 1)], Some(Outcome::Reset)),
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

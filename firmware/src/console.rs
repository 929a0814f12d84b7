//! The serial console: a line now and then. Every byte is an exit to the host, and no secret ever goes there.

use crate::machine::{Machine, Width};

/// Data port of COM1. The emulated UART is always ready, and a host that is not loses the text only.
const DATA: u16 = 0x3F8;

/// What the firmware's lines start with.
const PREFIX: &str = "cloister-firmware: ";

/// Prints one line. A console that fails is no reason to stop.
pub fn line<M: Machine>(machine: &mut M, text: &str) {
    put(machine, PREFIX);
    put(machine, text);
    put(machine, "\r\n");
}

/// Prints one line that ends in a number.
pub fn line_hex<M: Machine>(machine: &mut M, text: &str, value: u64) {
    put(machine, PREFIX);
    put(machine, text);
    put(machine, " 0x");
    let mut shift = 64_u32;
    let mut leading = true;
    while let Some(next) = shift.checked_sub(4) {
        shift = next;
        let digit = u32::try_from(value.wrapping_shr(shift) & 0xF).unwrap_or(0);
        leading &= digit == 0 && shift != 0;
        if !leading {
            byte(machine, char::from_digit(digit, 16).map_or(b'?', |c| c as u8));
        }
    }
    put(machine, "\r\n");
}

fn put<M: Machine>(machine: &mut M, text: &str) {
    for &b in text.as_bytes() {
        byte(machine, b);
    }
}

fn byte<M: Machine>(machine: &mut M, value: u8) {
    let _ = machine.write_port(DATA, Width::Byte, u32::from(value));
}

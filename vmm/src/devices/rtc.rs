//! The CMOS clock (MC146818): the host's time, UTC, read-only.
//!
//! Linux reads it at boot where kvmclock's wall clock is not there, as in a TD. What it says is the host's word, whatever the kind of
//! guest. There is no alarm and no interrupt; what a guest writes to the time is dropped.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Registers of the MC146818 (data sheet, "Address Map"), and the century where PCs have it.
mod register {
    pub const SECONDS: u8 = 0x00;
    pub const MINUTES: u8 = 0x02;
    pub const HOURS: u8 = 0x04;
    pub const WEEKDAY: u8 = 0x06;
    pub const DAY: u8 = 0x07;
    pub const MONTH: u8 = 0x08;
    pub const YEAR: u8 = 0x09;
    pub const A: u8 = 0x0a;
    pub const B: u8 = 0x0b;
    pub const C: u8 = 0x0c;
    pub const D: u8 = 0x0d;
    pub const CENTURY: u8 = 0x32;
}

/// Register A: a time base of 32,768 Hz and a periodic rate of 1,024 Hz, as a PC's firmware leaves it.
const A_DIVIDER_AND_RATE: u8 = 0x26;
/// Register A: the time is about to change.
const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// Register B: 24 hours instead of 12.
const B_24_HOURS: u8 = 1 << 1;
/// Register B: binary instead of BCD.
const B_BINARY: u8 = 1 << 2;
/// Register D: the time is valid.
const D_VALID: u8 = 1 << 7;
/// Of an hour in 12-hour form: after noon.
const PM: u8 = 1 << 7;
/// How long before a second ends its update is announced. The chip needs 244 µs; a guest's read of all registers is as many exits.
const UPDATE: Duration = Duration::from_millis(5);

/// Time of day, civil.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Civil {
    year: u64,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
    /// Sunday is 1.
    weekday: u8,
}

impl Civil {
    /// Of a number of seconds since 1970 began, UTC.
    fn at(seconds: u64) -> Self {
        const DAY: u64 = 24 * 60 * 60;
        let (mut days, second) = (seconds / DAY, seconds % DAY);
        // 1970 began on a Thursday.
        let weekday = ((days + 4) % 7) as u8 + 1;
        let mut year = 1970;
        while days >= days_of(year) {
            days -= days_of(year);
            year += 1;
        }
        let february = if days_of(year) == 366 { 29 } else { 28 };
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        Self {
            year,
            month,
            day: days as u8 + 1,
            hour: (second / 3600) as u8,
            minute: (second / 60 % 60) as u8,
            second: (second % 60) as u8,
            weekday,
        }
    }
}

fn days_of(year: u64) -> u64 {
    let leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    if leap { 366 } else { 365 }
}

/// The device.
#[derive(Debug, Default)]
pub struct Rtc {
    selected: u8,
    format: u8,
}

impl Rtc {
    /// A clock in 24 hours and BCD, as a PC's firmware leaves it.
    pub fn new() -> Self {
        Self { selected: 0, format: B_24_HOURS }
    }

    /// A byte written to the index (0) or data (1) port.
    pub fn write(&mut self, offset: u16, value: u8) {
        match (offset, self.selected) {
            // Bit 7 masks NMIs.
            (0, _) => self.selected = value & 0x7f,
            (1, register::B) => self.format = value & (B_24_HOURS | B_BINARY),
            _ => {}
        }
    }

    /// A byte read from the index or data port.
    pub fn read(&self, offset: u16) -> u8 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if offset == 0 { 0xff } else { self.register(now) }
    }

    /// The selected register at a time since 1970.
    fn register(&self, now: Duration) -> u8 {
        let time = Civil::at(now.as_secs());
        match self.selected {
            register::SECONDS => self.number(time.second),
            register::MINUTES => self.number(time.minute),
            register::HOURS => self.hour(time.hour),
            register::WEEKDAY => self.number(time.weekday),
            register::DAY => self.number(time.day),
            register::MONTH => self.number(time.month),
            register::YEAR => self.number((time.year % 100) as u8),
            register::CENTURY => self.number((time.year / 100 % 100) as u8),
            register::A => {
                let soon = now.subsec_nanos() >= 1_000_000_000 - UPDATE.subsec_nanos();
                A_DIVIDER_AND_RATE | if soon { A_UPDATE_IN_PROGRESS } else { 0 }
            }
            register::B => self.format,
            register::C => 0,
            register::D => D_VALID,
            _ => 0,
        }
    }

    fn number(&self, value: u8) -> u8 {
        match self.format & B_BINARY {
            0 => ((value / 10) << 4) | (value % 10),
            _ => value,
        }
    }

    fn hour(&self, hour: u8) -> u8 {
        match self.format & B_24_HOURS {
            0 => self.number((hour + 11) % 12 + 1) | if hour >= 12 { PM } else { 0 },
            _ => self.number(hour),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_become_dates() {
        for (seconds, (year, month, day), (hour, minute, second), weekday) in [
            (0, (1970, 1, 1), (0, 0, 0), 5),
            (951_782_399, (2000, 2, 28), (23, 59, 59), 2),
            (951_782_400, (2000, 2, 29), (0, 0, 0), 3),
            (1_709_251_199, (2024, 2, 29), (23, 59, 59), 5),
            (1_735_689_599, (2024, 12, 31), (23, 59, 59), 3),
            (1_735_689_600, (2025, 1, 1), (0, 0, 0), 4),
            (4_107_542_400, (2100, 3, 1), (0, 0, 0), 2),
        ] {
            let civil = Civil { year, month, day, hour, minute, second, weekday };
            assert_eq!(Civil::at(seconds), civil);
        }
    }

    /// All time registers, by index and data port.
    fn read_all(rtc: &mut Rtc, now: Duration) -> Vec<u8> {
        let registers = [
            register::SECONDS,
            register::MINUTES,
            register::HOURS,
            register::WEEKDAY,
            register::DAY,
            register::MONTH,
            register::YEAR,
            register::CENTURY,
        ];
        let read = |register| {
            rtc.write(0, register | 0x80);
            rtc.register(now)
        };
        registers.map(read).to_vec()
    }

    #[test]
    fn the_time_is_read_in_the_form_that_the_guest_chose() {
        // 2024-02-29 23:59:59 and 2025-01-01 00:00:00.
        let (night, midnight) = (Duration::from_secs(1_709_251_199), Duration::from_secs(1_735_689_600));
        for (format, now, registers) in [
            (0x02, night, [0x59, 0x59, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20]),
            (0x06, night, [59, 59, 23, 5, 29, 2, 24, 20]),
            (0x00, night, [0x59, 0x59, 0x91, 0x05, 0x29, 0x02, 0x24, 0x20]),
            (0x04, midnight, [0, 0, 12, 4, 1, 1, 25, 20]),
        ] {
            let mut rtc = Rtc::new();
            rtc.write(0, register::B);
            rtc.write(1, format);
            assert_eq!(read_all(&mut rtc, now), registers, "{format:#x}");
        }
    }

    #[test]
    fn the_guest_changes_nothing_but_the_form_and_learns_when_to_wait() {
        let mut rtc = Rtc::new();
        let now = Duration::from_secs(1_709_251_199);
        let before = read_all(&mut rtc, now);
        for register in 0..128 {
            rtc.write(0, register);
            rtc.write(1, B_24_HOURS);
        }
        assert_eq!(read_all(&mut rtc, now), before);
        rtc.write(0, register::A);
        assert_eq!(rtc.register(now) & A_UPDATE_IN_PROGRESS, 0);
        assert_ne!(rtc.register(now + Duration::from_millis(999)) & A_UPDATE_IN_PROGRESS, 0);
        rtc.write(0, register::D);
        assert_eq!(rtc.read(1), D_VALID);
        assert_eq!(rtc.read(0), 0xff, "the index is not read back");
    }
}

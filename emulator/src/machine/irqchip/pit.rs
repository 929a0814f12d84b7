//! The 8254 interval timer of KVM_CREATE_PIT2, with the PC's port 0x61 (Intel 8254 data sheet).
//!
//! Channel 0's ticks that nobody took are lost, as on hardware: KVM's re-injection is not offered (KVM_CAP_REINJECT_CONTROL is 0).

use kvm_bindings::{kvm_pit_channel_state, kvm_pit_state2};

/// Input frequency, in Hz.
const HZ: u64 = 1_193_182;
const NS: u64 = 1_000_000_000;

/// How a channel's counter is read and written a byte at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
enum Bytes {
    #[default]
    Latch = 0,
    Low = 1,
    High = 2,
    Both = 3,
}

impl From<u8> for Bytes {
    fn from(value: u8) -> Self {
        match value & 3 {
            1 => Self::Low,
            2 => Self::High,
            3 => Self::Both,
            _ => Self::Latch,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Channel {
    /// The initial count; 0x10000 for a written zero.
    count: u32,
    latched: Option<u16>,
    latched_status: Option<u8>,
    bytes: Bytes,
    mode: u8,
    bcd: bool,
    gate: bool,
    /// The second byte of a 16-bit access is next.
    read_high: bool,
    write_high: bool,
    write_low: u8,
    /// VM time at which the count was loaded, in ns.
    loaded: u64,
}

impl Channel {
    fn ticks(&self, now: u64) -> u64 {
        let elapsed = u128::from(now.saturating_sub(self.loaded));
        (elapsed * u128::from(HZ) / u128::from(NS)) as u64
    }

    fn initial(&self) -> u64 {
        u64::from(self.count.max(1))
    }

    fn value(&self, now: u64) -> u16 {
        let (ticks, initial) = (self.ticks(now), self.initial());
        match self.mode {
            2 => (initial - ticks % initial) as u16,
            // The square wave counts down by two.
            3 => (initial - (2 * ticks) % initial) as u16,
            _ => initial.wrapping_sub(ticks) as u16,
        }
    }

    fn output(&self, now: u64) -> bool {
        let (ticks, initial) = (self.ticks(now), self.initial());
        match self.mode {
            0 => ticks >= initial,
            1 => ticks < initial,
            2 => ticks % initial != initial - 1,
            3 => ticks % initial < initial.div_ceil(2),
            _ => ticks != initial,
        }
    }

    fn load(&mut self, count: u16, now: u64) {
        self.count = if count == 0 { 0x1_0000 } else { u32::from(count) };
        self.loaded = now;
    }

    fn status(&self, now: u64) -> u8 {
        u8::from(self.output(now)) << 7 | (self.bytes as u8) << 4 | self.mode << 1 | u8::from(self.bcd)
    }

    fn latch(&mut self, now: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.value(now));
        }
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.value(now)).to_le_bytes();
        let (value, last) = match self.bytes {
            Bytes::High => (high, true),
            Bytes::Both if self.read_high => (high, true),
            Bytes::Both => (low, false),
            _ => (low, true),
        };
        self.read_high = !last;
        if last {
            self.latched = None;
        }
        value
    }

    /// `true` if the count was loaded.
    fn write(&mut self, value: u8, now: u64) -> bool {
        let count = match self.bytes {
            Bytes::High => u16::from(value) << 8,
            Bytes::Both if !self.write_high => {
                (self.write_low, self.write_high) = (value, true);
                return false;
            }
            Bytes::Both => u16::from_le_bytes([self.write_low, value]),
            _ => u16::from(value),
        };
        self.write_high = false;
        self.load(count, now);
        true
    }

    fn state(&self) -> kvm_pit_channel_state {
        // KVM counts 1 for the low byte of a pair and 2 for the high byte on top of the access mode.
        let word = |high| if self.bytes == Bytes::Both { 3 + u8::from(high) } else { self.bytes as u8 };
        kvm_pit_channel_state {
            count: self.count,
            latched_count: self.latched.unwrap_or(0),
            count_latched: if self.latched.is_some() { word(self.read_high) } else { 0 },
            status_latched: u8::from(self.latched_status.is_some()),
            status: self.latched_status.unwrap_or(0),
            read_state: word(self.read_high),
            write_state: word(self.write_high),
            write_latch: self.write_low,
            rw_mode: self.bytes as u8,
            mode: self.mode,
            bcd: u8::from(self.bcd),
            gate: u8::from(self.gate),
            count_load_time: self.loaded as i64,
        }
    }

    fn from_state(s: &kvm_pit_channel_state) -> Self {
        Self {
            count: s.count.min(0x1_0000),
            latched: (s.count_latched != 0).then_some(s.latched_count),
            latched_status: (s.status_latched != 0).then_some(s.status),
            bytes: s.rw_mode.into(),
            mode: s.mode & 7,
            bcd: s.bcd != 0,
            gate: s.gate != 0,
            read_high: s.read_state == 4,
            write_high: s.write_state == 4,
            write_low: s.write_latch,
            loaded: s.count_load_time.max(0) as u64,
        }
    }
}

/// The timer.
#[derive(Clone, Debug)]
pub struct Pit {
    channels: [Channel; 3],
    /// KVM_PIT_SPEAKER_DUMMY: port 0x61 is ours.
    speaker_port: bool,
    speaker: bool,
    flags: u32,
}

impl Pit {
    /// As KVM_CREATE_PIT2 leaves it.
    pub fn new(speaker_port: bool) -> Self {
        let channel = |gate| Channel { count: 0x1_0000, mode: 3, gate, ..Channel::default() };
        Self {
            channels: [channel(true), channel(true), channel(false)],
            speaker_port,
            speaker: false,
            flags: 0,
        }
    }

    /// Is this one of its ports?
    pub fn owns(&self, port: u16) -> bool {
        matches!(port, 0x40..=0x43) || port == 0x61 && self.speaker_port
    }

    /// A read of one byte at VM time `now`, in ns.
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        match (port, &mut self.channels) {
            (0x61, [.., two]) => {
                // Bit 4 toggles with the memory refresh, every 15 µs or so.
                u8::from(two.gate)
                    | u8::from(self.speaker) << 1
                    | ((now >> 14 & 1) as u8) << 4
                    | u8::from(two.output(now)) << 5
            }
            (0x40..=0x42, channels) => {
                channels.get_mut(usize::from(port - 0x40)).map_or(0, |channel| channel.read(now))
            }
            // The control word cannot be read.
            _ => 0,
        }
    }

    /// A write of one byte; `true` if channel 0's next tick changed.
    pub fn write(&mut self, port: u16, value: u8, now: u64) -> bool {
        match port {
            0x61 => {
                self.speaker = value & 2 != 0;
                let [.., two] = &mut self.channels;
                let gate = value & 1 != 0;
                // A rising gate restarts the modes that it triggers.
                if gate && !two.gate && !matches!(two.mode, 0 | 4) {
                    two.loaded = now;
                }
                two.gate = gate;
                false
            }
            0x43 => self.control(value, now),
            _ => {
                let index = usize::from(port.wrapping_sub(0x40));
                self.channels.get_mut(index).is_some_and(|channel| channel.write(value, now)) && index == 0
            }
        }
    }

    fn control(&mut self, value: u8, now: u64) -> bool {
        let select = usize::from(value >> 6);
        let Some(channel) = self.channels.get_mut(select) else {
            self.read_back(value, now);
            return false;
        };
        let bytes = Bytes::from(value >> 4);
        if bytes == Bytes::Latch {
            channel.latch(now);
            return false;
        }
        let mode = value >> 1 & 7;
        *channel = Channel {
            bytes,
            // Modes 6 and 7 are 2 and 3.
            mode: if mode > 5 { mode & 3 } else { mode },
            bcd: value & 1 != 0,
            gate: channel.gate,
            count: channel.count,
            loaded: channel.loaded,
            ..Channel::default()
        };
        false
    }

    /// The read-back command: latches counts and states of several channels.
    fn read_back(&mut self, value: u8, now: u64) {
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if value & 2 << index == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                channel.latch(now);
            }
            if value & 0x10 == 0 && channel.latched_status.is_none() {
                channel.latched_status = Some(channel.status(now));
            }
        }
    }

    /// When channel 0 raises interrupt 0 next, after `now`; VM time in ns.
    pub fn next_tick(&self, now: u64) -> Option<u64> {
        let [zero, ..] = &self.channels;
        let period = (u128::from(zero.initial()) * u128::from(NS)).div_ceil(u128::from(HZ)) as u64;
        let first = zero.loaded.saturating_add(period);
        match zero.mode {
            2 | 3 if now >= first => Some(first + period * ((now - first) / period + 1)),
            2 | 3 => Some(first),
            // The rest tick once.
            _ => (now < first).then_some(first),
        }
    }

    /// KVM_GET_PIT2.
    pub fn state(&self) -> kvm_pit_state2 {
        kvm_pit_state2 {
            channels: self.channels.map(|channel| channel.state()),
            flags: self.flags,
            ..kvm_pit_state2::default()
        }
    }

    /// KVM_SET_PIT2 at VM time `now`: counting starts over.
    pub fn set_state(&mut self, state: &kvm_pit_state2, now: u64) {
        self.channels = state.channels.map(|channel| Channel::from_state(&channel));
        self.flags = state.flags;
        let [zero, ..] = &mut self.channels;
        zero.loaded = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` input clocks, in ns.
    fn clocks(n: u64) -> u64 {
        (n * NS).div_ceil(HZ)
    }

    fn programmed(channel: u8, mode: u8, count: u16) -> Pit {
        let mut pit = Pit::new(true);
        pit.write(0x43, channel << 6 | 0x30 | mode << 1, 0);
        let port = 0x40 + u16::from(channel);
        let [low, high] = count.to_le_bytes();
        assert!(!pit.write(port, low, 0));
        assert_eq!(pit.write(port, high, 0), channel == 0);
        pit
    }

    #[test]
    fn the_rate_generator_ticks_every_count_clocks() {
        let pit = programmed(0, 2, 11932);
        let tick = clocks(11932);
        assert_eq!(pit.next_tick(0), Some(tick));
        assert_eq!(pit.next_tick(tick * 5), Some(tick * 6), "ticks that nobody took are lost");
    }

    #[test]
    fn the_one_shot_ticks_once() {
        let pit = programmed(0, 0, 100);
        assert_eq!(pit.next_tick(0), Some(clocks(100)));
        assert_eq!(pit.next_tick(clocks(100)), None);
    }

    #[test]
    fn channel_two_is_watched_through_port_61() {
        let mut pit = programmed(2, 0, 50);
        pit.write(0x61, 1, 0);
        assert_eq!(pit.read(0x61, clocks(49)) & 0x21, 0x01);
        assert_eq!(pit.read(0x61, clocks(50)) & 0x21, 0x21);
        assert!(!Pit::new(false).owns(0x61));
    }

    #[test]
    fn a_latched_count_stands_still_and_is_read_low_byte_first() {
        let mut pit = programmed(0, 2, 0x1234);
        pit.write(0x43, 0x00, clocks(4));
        assert_eq!([pit.read(0x40, NS), pit.read(0x40, NS)], [0x30, 0x12]);
        assert_eq!([pit.read(0x40, clocks(5)), pit.read(0x40, clocks(5))], [0x2f, 0x12]);
    }

    #[test]
    fn read_back_gives_status_then_count() {
        let mut pit = programmed(0, 3, 0x1000);
        pit.write(0x43, 0xc2, 0);
        assert_eq!(pit.read(0x40, 0), 0x80 | 0x30 | 3 << 1);
        assert_eq!([pit.read(0x40, 0), pit.read(0x40, 0)], [0x00, 0x10]);
    }

    #[test]
    fn a_count_of_zero_is_the_longest() {
        assert_eq!(programmed(0, 2, 0).next_tick(0), Some(clocks(0x1_0000)));
    }

    #[test]
    fn the_state_survives_a_round_trip_and_starts_over() {
        let pit = programmed(0, 2, 1000);
        let mut other = Pit::new(true);
        other.set_state(&pit.state(), 500);
        assert_eq!(other.next_tick(500), Some(500 + clocks(1000)));
        assert_eq!(other.state().channels[0].rw_mode, 3);
    }
}

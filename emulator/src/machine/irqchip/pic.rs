//! The pair of 8259A interrupt controllers of KVM_CREATE_IRQCHIP (Intel 8259A data sheet; ELCR: 82371SB data sheet).

use kvm_bindings::kvm_pic_state;

/// Inputs of the pair.
pub const PINS: u32 = 16;
/// The master's input that the slave drives.
const CASCADE: u8 = 2;

/// One 8259A.
#[derive(Clone, Debug, Default)]
struct Chip {
    /// Which edges were seen.
    last_irr: u8,
    irr: u8,
    imr: u8,
    isr: u8,
    /// The input with the highest priority.
    top: u8,
    base: u8,
    read_isr: bool,
    poll: bool,
    special_mask: bool,
    /// Which initialisation command word comes next: 0 for none.
    init: u8,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    /// ICW4 will follow.
    init4: bool,
    /// Level-triggered inputs.
    elcr: u8,
    /// Which inputs may be made level-triggered.
    elcr_mask: u8,
}

impl Chip {
    fn set_input(&mut self, input: u8, level: bool) {
        let bit = 1 << input;
        let edge = self.last_irr & bit == 0;
        match (level, self.elcr & bit != 0) {
            (true, true) => self.irr |= bit,
            (true, false) if edge => self.irr |= bit,
            (false, true) => self.irr &= !bit,
            _ => {}
        }
        self.last_irr = if level { self.last_irr | bit } else { self.last_irr & !bit };
    }

    /// Rank of the most urgent bit: 0 is the highest, 8 is "none".
    fn rank(&self, bits: u8) -> u8 {
        bits.rotate_right(u32::from(self.top)).trailing_zeros() as u8
    }

    /// The input whose interrupt is presented.
    fn request(&self, master: bool) -> Option<u8> {
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        // In the special fully nested mode the slave may interrupt itself.
        if self.special_fully_nested && master {
            in_service &= !(1 << CASCADE);
        }
        let rank = self.rank(self.irr & !self.imr);
        (rank < self.rank(in_service)).then(|| (rank + self.top) & 7)
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        self.isr |= bit;
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if self.auto_eoi {
            self.end(input, self.rotate_on_auto_eoi);
        }
    }

    fn end(&mut self, input: u8, rotate: bool) {
        self.isr &= !(1 << input);
        if rotate {
            self.top = (input + 1) & 7;
        }
    }

    /// ICW1 resets everything but the inputs' levels and the ELCR.
    fn initialise(&mut self, icw1: u8) {
        let init4 = icw1 & 1 != 0;
        *self = Self {
            last_irr: self.last_irr & self.elcr,
            irr: self.irr & self.elcr,
            base: self.base,
            init: 1,
            init4,
            special_fully_nested: init4 && self.special_fully_nested,
            auto_eoi: init4 && self.auto_eoi,
            elcr: self.elcr,
            elcr_mask: self.elcr_mask,
            ..Self::default()
        };
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            return self.initialise(value);
        }
        if value & 0x08 != 0 {
            self.poll = value & 4 != 0;
            if value & 2 != 0 {
                self.read_isr = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
            return;
        }
        let input = value & 7;
        match value >> 5 {
            command @ (0 | 4) => self.rotate_on_auto_eoi = command == 4,
            command @ (1 | 5) => {
                let rank = self.rank(self.isr);
                if rank < 8 {
                    self.end((rank + self.top) & 7, command == 5);
                }
            }
            command @ (3 | 7) => self.end(input, command == 7),
            6 => self.top = (input + 1) & 7,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.init {
            0 => self.imr = value,
            1 => (self.base, self.init) = (value & 0xf8, 2),
            // ICW3 says how the pair is wired, which cannot be changed.
            2 => self.init = if self.init4 { 3 } else { 0 },
            _ => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 2 != 0;
                self.init = 0;
            }
        }
    }

    fn state(&self) -> kvm_pic_state {
        kvm_pic_state {
            last_irr: self.last_irr,
            irr: self.irr,
            imr: self.imr,
            isr: self.isr,
            priority_add: self.top,
            irq_base: self.base,
            read_reg_select: u8::from(self.read_isr),
            poll: u8::from(self.poll),
            special_mask: u8::from(self.special_mask),
            init_state: self.init,
            auto_eoi: u8::from(self.auto_eoi),
            rotate_on_auto_eoi: u8::from(self.rotate_on_auto_eoi),
            special_fully_nested_mode: u8::from(self.special_fully_nested),
            init4: u8::from(self.init4),
            elcr: self.elcr,
            elcr_mask: self.elcr_mask,
        }
    }

    fn set_state(&mut self, s: &kvm_pic_state) {
        *self = Self {
            last_irr: s.last_irr,
            irr: s.irr,
            imr: s.imr,
            isr: s.isr,
            top: s.priority_add & 7,
            base: s.irq_base & 0xf8,
            read_isr: s.read_reg_select != 0,
            poll: s.poll != 0,
            special_mask: s.special_mask != 0,
            init: s.init_state & 3,
            auto_eoi: s.auto_eoi != 0,
            rotate_on_auto_eoi: s.rotate_on_auto_eoi != 0,
            special_fully_nested: s.special_fully_nested_mode != 0,
            init4: s.init4 != 0,
            elcr: s.elcr & self.elcr_mask,
            elcr_mask: self.elcr_mask,
        };
    }
}

/// The pair. The slave's output is the master's input 2.
#[derive(Clone, Debug)]
pub struct Pic([Chip; 2]);

impl Default for Pic {
    fn default() -> Self {
        // The timer, the keyboard, the cascade, the clock and the coprocessor are edge-triggered on every board.
        let chip = |elcr_mask| Chip { elcr_mask, ..Chip::default() };
        Self([chip(0xf8), chip(0xde)])
    }
}

impl Pic {
    /// Is this one of the pair's ports?
    pub const fn owns(port: u16) -> bool {
        matches!(port, 0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1)
    }

    /// Sets the level of an input; those of the slave are 8 to 15.
    pub fn set_input(&mut self, pin: u32, level: bool) {
        if let Some(chip) = self.0.get_mut(pin as usize >> 3) {
            chip.set_input(pin as u8 & 7, level);
        }
        self.cascade();
    }

    fn cascade(&mut self) {
        let [master, slave] = &mut self.0;
        if slave.request(false).is_some() {
            // An edge for each request: the master forgets the last one when it is acknowledged.
            master.set_input(CASCADE, false);
            master.set_input(CASCADE, true);
        } else {
            master.set_input(CASCADE, false);
            master.irr &= !(1 << CASCADE);
        }
    }

    /// The level of the line to the processor.
    pub fn output(&self) -> bool {
        self.0[0].request(true).is_some()
    }

    /// The processor's interrupt acknowledge cycle: the vector. Spurious ones are input 7's.
    pub fn acknowledge(&mut self) -> u8 {
        let [master, slave] = &mut self.0;
        let vector = match master.request(true) {
            None => master.base + 7,
            Some(CASCADE) => {
                master.acknowledge(CASCADE);
                let input = slave.request(false);
                if let Some(input) = input {
                    slave.acknowledge(input);
                }
                slave.base + input.unwrap_or(7)
            }
            Some(input) => {
                master.acknowledge(input);
                master.base + input
            }
        };
        self.cascade();
        vector
    }

    /// A read of one byte.
    pub fn read(&mut self, port: u16) -> u8 {
        let slave = matches!(port, 0xa0 | 0xa1 | 0x4d1);
        let [chip_0, chip_1] = &mut self.0;
        let chip = if slave { chip_1 } else { chip_0 };
        let value = match port {
            0x4d0 | 0x4d1 => return chip.elcr,
            _ if chip.poll => {
                chip.poll = false;
                match chip.request(!slave) {
                    Some(input) => {
                        chip.acknowledge(input);
                        0x80 | input
                    }
                    None => 0,
                }
            }
            0x21 | 0xa1 => chip.imr,
            _ if chip.read_isr => chip.isr,
            _ => chip.irr,
        };
        self.cascade();
        value
    }

    /// A write of one byte.
    pub fn write(&mut self, port: u16, value: u8) {
        let [chip_0, chip_1] = &mut self.0;
        match port {
            0x20 => chip_0.write_command(value),
            0x21 => chip_0.write_data(value),
            0xa0 => chip_1.write_command(value),
            0xa1 => chip_1.write_data(value),
            0x4d0 => chip_0.elcr = value & chip_0.elcr_mask,
            0x4d1 => chip_1.elcr = value & chip_1.elcr_mask,
            _ => {}
        }
        self.cascade();
    }

    /// KVM_GET_IRQCHIP of one of the pair.
    pub fn state(&self, slave: bool) -> kvm_pic_state {
        self.0[usize::from(slave)].state()
    }

    /// KVM_SET_IRQCHIP of one of the pair.
    pub fn set_state(&mut self, slave: bool, state: &kvm_pic_state) {
        self.0[usize::from(slave)].set_state(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a PC's firmware sets them up: vectors 0x08 and 0x70, all inputs open.
    fn initialised() -> Pic {
        let mut pic = Pic::default();
        for (port, values) in [(0x20u16, [0x11, 0x08, 0x04, 0x01]), (0xa0, [0x11, 0x70, 0x02, 0x01])] {
            pic.write(port, values[0]);
            for value in &values[1..] {
                pic.write(port + 1, *value);
            }
            pic.write(port + 1, 0);
        }
        pic
    }

    #[test]
    fn the_lower_input_comes_first_and_holds_back_the_higher() {
        let mut pic = initialised();
        pic.set_input(4, true);
        pic.set_input(1, true);
        assert_eq!(pic.acknowledge(), 0x09);
        assert!(!pic.output(), "4 waits for the end of 1");
        pic.write(0x20, 0x20);
        assert_eq!((pic.output(), pic.acknowledge()), (true, 0x0c));
    }

    #[test]
    fn the_slave_interrupts_through_the_masters_input_two() {
        let mut pic = initialised();
        pic.set_input(12, true);
        assert_eq!((pic.output(), pic.acknowledge()), (true, 0x74));
        pic.write(0x20, 0x0b);
        assert_eq!(pic.read(0x20), 1 << 2, "the master's input 2 is in service");
        pic.write(0xa0, 0x20);
        pic.write(0x20, 0x20);
        assert!(!pic.output());
        pic.set_input(12, false);
        pic.set_input(12, true);
        assert!(pic.output(), "a second edge");
    }

    #[test]
    fn a_level_is_requested_again_until_it_falls_and_an_edge_once() {
        let mut pic = initialised();
        pic.write(0x4d0, 0xff);
        assert_eq!(pic.read(0x4d0), 0xf8, "input 0 stays edge-triggered");
        for (input, again) in [(5, true), (0, false)] {
            pic.set_input(input, true);
            pic.acknowledge();
            pic.write(0x20, 0x20);
            assert_eq!(pic.output(), again, "input {input}");
            pic.set_input(input, false);
            assert!(!pic.output(), "input {input}");
        }
    }

    #[test]
    fn a_masked_input_waits_and_nothing_is_spurious_seven() {
        let mut pic = initialised();
        pic.write(0x21, 0xff);
        pic.set_input(3, true);
        assert_eq!((pic.output(), pic.acknowledge()), (false, 0x0f));
        pic.write(0x21, 0);
        assert_eq!((pic.output(), pic.acknowledge()), (true, 0x0b));
    }

    #[test]
    fn rotation_makes_the_served_input_the_least_urgent() {
        let mut pic = initialised();
        pic.set_input(0, true);
        pic.acknowledge();
        pic.write(0x20, 0xa0);
        pic.set_input(0, false);
        pic.set_input(0, true);
        pic.set_input(7, true);
        assert_eq!(pic.acknowledge(), 0x0f);
    }

    #[test]
    fn polling_acknowledges_without_a_vector() {
        let mut pic = initialised();
        pic.write(0x20, 0x0c);
        assert_eq!(pic.read(0x20), 0);
        pic.set_input(6, true);
        pic.write(0x20, 0x0c);
        assert_eq!(pic.read(0x20), 0x86);
        assert!(!pic.output());
    }

    #[test]
    fn the_state_survives_a_round_trip() {
        let mut pic = initialised();
        pic.set_input(9, true);
        let mut other = Pic::default();
        for slave in [false, true] {
            other.set_state(slave, &pic.state(slave));
        }
        assert_eq!(other.acknowledge(), 0x71);
    }
}

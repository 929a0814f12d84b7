//! A driver's view of the transport.

use super::*;
use crate::devices::msi::tests::Recorder;
use crate::memory::{SharedPages, map_ram, ram_ranges};
use crate::virtio::rng::Rng;
use vm_memory::{Bytes, GuestAddress};

const BAR: u32 = 0xc000_8000;

struct Rig {
    function: VirtioPci,
    sent: Arc<Recorder>,
    memory: DeviceMemory,
    shared: Arc<SharedPages>,
}

fn rig() -> Rig {
    rig_with(Box::new(Rng))
}

fn rig_with(device: Box<dyn Device>) -> Rig {
    let ranges = ram_ranges(1 << 20);
    let shared = Arc::new(SharedPages::new(&ranges));
    shared.set(0..0x10_0000, true);
    let memory = DeviceMemory::confidential(map_ram(&ranges).unwrap(), shared.clone());
    let sent = Arc::new(Recorder::default());
    let function = VirtioPci::new(device, BAR, memory.clone(), None, sent.clone()).unwrap();
    Rig { function, sent, memory, shared }
}

impl Rig {
    fn read(&self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.function.bar_read(offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    fn write(&self, offset: u64, len: usize, value: u64) {
        self.function.bar_write(offset, &value.to_le_bytes()[..len]);
    }

    /// Negotiates `features`; whether the device accepted them.
    fn negotiate(&self, features: u64) -> bool {
        self.write(0x14, 1, 1 | 2);
        for select in 0..2 {
            self.write(0x08, 4, select);
            self.write(0x0c, 4, features >> (32 * select) & 0xffff_ffff);
        }
        self.write(0x14, 1, 1 | 2 | 8);
        self.read(0x14, 1) & 8 != 0
    }

    /// Sets up queue 0 with one writable buffer of 32 bytes at 0x8000 and vector 0, and starts the device.
    fn start(&self) {
        let descriptor = 0x8000u128 | 32 << 64 | 2 << 96;
        self.memory.write_slice(&descriptor.to_le_bytes(), GuestAddress(0x1000)).unwrap();
        self.memory.write_obj(1u16, GuestAddress(0x2002)).unwrap();
        self.write(0x16, 2, 0);
        self.write(0x18, 2, 16);
        self.write(0x1a, 2, 0);
        for (register, address) in [(0x20, 0x1000), (0x28, 0x2000), (0x30, 0x3000)] {
            self.write(register, 4, address);
            self.write(register + 4, 4, 0);
        }
        self.write(0x1c, 2, 1);
        self.function.msix.table_write(0, &0xfee0_0000u64.to_le_bytes());
        self.function.msix.table_write(8, &0x55u64.to_le_bytes());
        self.function.msix.set_control(1 << 15);
        self.write(0x14, 1, 1 | 2 | 8 | 4);
    }

    fn served(&self) -> bool {
        (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(2));
            self.memory.read_obj::<u16>(GuestAddress(0x3002)).unwrap() == 1
        })
    }
}

const GOOD: u64 = F_VERSION_1 | F_ACCESS_PLATFORM;

#[test]
fn a_driver_finds_all_capabilities_in_the_list() {
    let rig = rig();
    let byte = |at: u16| {
        let mut data = [0];
        rig.function.config_read(at, &mut data);
        data[0]
    };
    let (mut at, mut found) = (u16::from(byte(0x34)), Vec::new());
    while at != 0 {
        found.push((byte(at), if byte(at) == 9 { byte(at + 3) } else { 0 }));
        at = u16::from(byte(at + 1));
    }
    assert_eq!(found, [(0x11, 0), (9, 1), (9, 3), (9, 4), (9, 2), (9, 5)]);
    assert_eq!(rig.function.bar(), Some(0xc000_8000..0xc001_0000));
    assert_eq!((byte(2), byte(3)), (0x44, 0x10), "device 0x1044 is an entropy source");
}

#[test]
fn features_must_be_offered_and_complete() {
    for (features, accepted) in [
        (GOOD, true),
        (GOOD | F_EVENT_IDX, true),
        (F_VERSION_1, false),
        (F_ACCESS_PLATFORM, false),
        (GOOD | 1, false),
        (GOOD | 1 << 63, false),
    ] {
        let rig = rig();
        assert_eq!(rig.negotiate(features), accepted, "{features:#x}");
        rig.write(0x14, 1, 0);
        assert_eq!(rig.read(0x14, 1), 0);
        assert_eq!(rig.read(0x10, 2), u64::from(NO_VECTOR));
    }
}

#[test]
fn a_started_device_serves_interrupts_and_restarts() {
    let rig = rig();
    for _ in 0..2 {
        assert!(rig.negotiate(GOOD));
        rig.start();
        rig.write(NOTIFY.start, 2, 0);
        assert!(rig.served());
        while rig.sent.take().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(rig.read(ISR.start, 1), 1);
        assert_eq!(rig.read(ISR.start, 1), 0, "reading clears it");
        rig.write(0x14, 1, 0);
        rig.memory.write_slice(&[0; 0x1000], GuestAddress(0x3000)).unwrap();
    }
}

#[test]
fn rings_in_private_memory_break_the_device_and_a_reset_mends_it() {
    let rig = rig();
    assert!(rig.negotiate(GOOD));
    rig.shared.set(0x2000..0x3000, false);
    let status = |rig: &Rig| rig.read(0x14, 1) as u8;
    rig.memory.write_slice(&[0; 16], GuestAddress(0x1000)).unwrap();
    rig.shared.set(0x2000..0x3000, true);
    rig.memory.write_obj(0u16, GuestAddress(0x2002)).unwrap();
    rig.shared.set(0x3000..0x4000, false);
    rig.start();
    assert_ne!(status(&rig) & STATUS_NEEDS_RESET, 0);
    rig.write(0x14, 1, 0);
    assert_eq!(status(&rig), 0);
    rig.shared.set(0x3000..0x4000, true);
    assert!(rig.negotiate(GOOD));
    rig.start();
    assert!(rig.served());
    assert!(rig.function.finish(Duration::from_secs(60)));
}

#[test]
fn the_configuration_window_reaches_the_bar() {
    let rig = rig();
    let at = rig.function.pci_cfg_at;
    rig.function.config_write(at + 2, &[0]);
    rig.function.config_write(at + 6, &0x12u32.to_le_bytes());
    rig.function.config_write(at + 10, &2u32.to_le_bytes());
    let mut data = [0; 4];
    rig.function.config_read(at + 14, &mut data);
    assert_eq!(u16::from_le_bytes([data[0], data[1]]), 1, "one queue");
    rig.function.config_write(at + 10, &3u32.to_le_bytes());
    rig.function.config_read(at + 14, &mut data);
    assert_eq!(data, [0; 4], "no access of three bytes");
}

#[test]
fn no_access_to_the_bar_panics() {
    let rig = rig();
    for offset in 0..u64::from(BAR_BYTES) {
        for len in [1, 2, 4, 8] {
            rig.read(offset, len);
            if offset != 0x14 {
                rig.write(offset, len, u64::MAX);
            }
        }
    }
}

/// A device that hangs in the host until it is let go.
struct Stuck(std::sync::mpsc::Receiver<()>);

impl Device for Stuck {
    fn info(&self) -> DeviceInfo {
        Rng.info()
    }

    fn queue_ready(&mut self, _: usize, _: &mut Queues) -> Result<(), crate::virtio::DeviceError> {
        self.0
            .recv()
            .map_err(|_| crate::virtio::DeviceError::Malformed { queue: 0, reason: "let go for good" })
    }
}

#[test]
fn a_device_that_hangs_in_the_host_holds_neither_the_processor_that_resets_it_nor_the_end() {
    let (let_go, stuck) = std::sync::mpsc::channel();
    let rig = rig_with(Box::new(Stuck(stuck)));
    assert!(rig.negotiate(GOOD));
    rig.start();
    rig.write(0x14, 1, 0);
    assert_ne!(rig.read(0x14, 1), 0, "the reset is not over");
    rig.write(0x14, 1, 1);
    assert_eq!(rig.read(0x14, 1), 1 | 2 | 8 | 4, "and nothing else begins");
    assert!(!rig.function.finish(Duration::from_millis(1)), "the guest's end does not wait for ever");
    drop(let_go);
    while rig.read(0x14, 1) != 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(rig.negotiate(GOOD), "the driver goes on");
}

#[test]
fn what_the_guest_put_into_a_queue_before_its_end_is_served() {
    let rig = rig();
    assert!(rig.negotiate(GOOD));
    rig.start();
    assert!(rig.served());
    // Once more the same chain, and the guest ends before it can kick.
    rig.memory.write_obj(2u16, GuestAddress(0x2002)).unwrap();
    assert!(rig.function.finish(Duration::from_secs(60)));
    assert_eq!(rig.memory.read_obj::<u16>(GuestAddress(0x3002)).unwrap(), 2);
}

#[test]
fn a_device_says_no_more_after_each_reset() {
    let rig = rig();
    let mut breaks = 0;
    while breaks < 40 {
        assert!(rig.negotiate(GOOD));
        // A descriptor beyond memory: the device breaks, says so, and is reset.
        rig.memory.write_slice(&[0; 0x1000], GuestAddress(0x3000)).unwrap();
        rig.start();
        rig.memory.write_slice(&u128::MAX.to_le_bytes(), GuestAddress(0x1000)).unwrap();
        rig.memory.write_obj(2u16, GuestAddress(0x2002)).unwrap();
        rig.write(NOTIFY.start, 2, 0);
        while rig.read(0x14, 1) as u8 & STATUS_NEEDS_RESET == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        rig.write(0x14, 1, 0);
        breaks += 1;
    }
    assert_eq!(rig.function.log.said(), 17, "sixteen, and that there will be no more");
}

#[test]
fn a_driver_that_skips_a_step_is_told_which() {
    let rig = rig();
    rig.write(0x14, 1, 1 | 2 | 4);
    assert_ne!(rig.read(0x14, 1) as u8 & STATUS_NEEDS_RESET, 0);
    let state = rig.function.state();
    assert!(rig.function.may_start(&state, &[]).unwrap_err().contains("FEATURES_OK"));
}

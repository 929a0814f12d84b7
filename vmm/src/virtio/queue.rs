//! The queues of a running device and the guest memory behind them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::chain::{Chain, Reader, Writer};
use super::device::DeviceError;
use crate::memory::DeviceMemory;
use crate::pci::Msix;

/// VIRTIO_MSI_NO_VECTOR.
pub const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;

/// How a device interrupts its driver.
pub struct Interrupts {
    msix: Arc<Msix>,
    /// ISR status; read and cleared by the driver.
    pub isr: AtomicU8,
    /// MSI-X vector of configuration changes.
    pub config_vector: AtomicU16,
    /// MSI-X vector of each queue.
    pub queue_vectors: Vec<AtomicU16>,
    /// DEVICE_NEEDS_RESET.
    pub needs_reset: AtomicBool,
}

impl Interrupts {
    /// No vectors assigned.
    pub fn new(msix: Arc<Msix>, queues: usize) -> Self {
        Self {
            msix,
            isr: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            needs_reset: AtomicBool::new(false),
        }
    }

    fn queue(&self, index: usize) {
        self.isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
        self.raise(self.queue_vectors.get(index));
    }

    /// Marks the device broken and tells the driver.
    pub fn need_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        self.raise(Some(&self.config_vector));
    }

    fn raise(&self, vector: Option<&AtomicU16>) {
        match vector.map(|vector| vector.load(Ordering::Acquire)) {
            None | Some(NO_VECTOR) => {}
            Some(vector) => self.msix.raise(vector),
        }
    }
}

/// The queues of a running device.
pub struct Queues {
    memory: Arc<DeviceMemory>,
    queues: Vec<Queue>,
    interrupts: Arc<Interrupts>,
}

impl Queues {
    /// Queues that the driver has set up.
    pub fn new(memory: Arc<DeviceMemory>, queues: Vec<Queue>, interrupts: Arc<Interrupts>) -> Self {
        Self { memory, queues, interrupts }
    }

    /// The next chain of queue `index`, if it is ready and has one.
    pub fn pop(&mut self, index: usize) -> Result<Option<Chain>, DeviceError> {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else { return Ok(None) };
        let mut available = queue.iter(self.memory.clone()).map_err(|source| error(index, source))?;
        let Some(head) = available.next().map(|chain| chain.head_index()) else { return Ok(None) };
        Chain::read(&self.memory, queue, index, head).map(Some)
    }

    /// What the driver wrote into a chain. Refuses buffers that are not shared.
    pub fn reader<'a>(&'a self, chain: &Chain) -> Result<Reader<'a>, DeviceError> {
        chain.reader(&self.memory)
    }

    /// What the device may write into a chain. Refuses buffers that are not shared.
    pub fn writer<'a>(&'a self, chain: &Chain) -> Result<Writer<'a>, DeviceError> {
        chain.writer(&self.memory)
    }

    /// Gives a chain back with `written` bytes in it.
    pub fn push(&mut self, chain: &Chain, written: usize) -> Result<(), DeviceError> {
        let index = chain.queue();
        let Some(queue) = self.queues.get_mut(index) else { return Ok(()) };
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        queue.add_used(&*self.memory, chain.head(), written).map_err(|source| error(index, source))
    }

    /// Interrupts the driver if it wants to hear of chains given back.
    pub fn notify(&mut self, index: usize) -> Result<(), DeviceError> {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else { return Ok(()) };
        if queue.needs_notification(&*self.memory).map_err(|source| error(index, source))? {
            self.interrupts.queue(index);
        }
        Ok(())
    }

    /// Serves all chains of a queue: `serve` returns how many bytes it wrote into one, or `None` to leave it
    /// and the rest for later.
    pub fn drain(
        &mut self,
        index: usize,
        mut serve: impl FnMut(&Self, &Chain) -> Result<Option<usize>, DeviceError>,
    ) -> Result<(), DeviceError> {
        loop {
            self.set_notification(index, false)?;
            let mut served = false;
            while let Some(chain) = self.pop(index)? {
                match serve(self, &chain)? {
                    Some(written) => self.push(&chain, written)?,
                    None => {
                        self.unpop(index);
                        self.set_notification(index, true)?;
                        return if served { self.notify(index) } else { Ok(()) };
                    }
                }
                served = true;
            }
            if served {
                self.notify(index)?;
            }
            if !self.set_notification(index, true)? {
                return Ok(());
            }
        }
    }

    /// Undoes the last [`Queues::pop`].
    pub fn unpop(&mut self, index: usize) {
        if let Some(queue) = self.queues.get_mut(index) {
            queue.set_next_avail(queue.next_avail().wrapping_sub(1));
        }
    }

    /// Whether the driver is to kick; tells whether something came while it was not.
    fn set_notification(&mut self, index: usize, enable: bool) -> Result<bool, DeviceError> {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else { return Ok(false) };
        let result = match enable {
            true => queue.enable_notification(&*self.memory),
            false => queue.disable_notification(&*self.memory).map(|()| false),
        };
        result.map_err(|source| error(index, source))
    }
}

fn error(queue: usize, source: virtio_queue::Error) -> DeviceError {
    DeviceError::Queue { queue, source }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::devices::msi::tests::Recorder;
    use crate::memory::{SharedPages, map_ram, ram_ranges};
    use vm_memory::{Bytes, GuestAddress};

    /// A driver's side of queues in a guest of 1 MiB, all of it shared.
    pub struct Driver {
        pub memory: Arc<DeviceMemory>,
        pub shared: Arc<SharedPages>,
        next: Vec<u16>,
        used: Vec<u16>,
        buffer: u64,
    }

    const SIZE: u16 = 16;
    const BUFFERS: u64 = 0x4_0000;
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;

    fn rings(queue: usize) -> (u64, u64, u64) {
        let base = 0x1_0000 + 0x3000 * queue as u64;
        (base, base + 0x1000, base + 0x2000)
    }

    impl Driver {
        pub fn new(queues: usize) -> (Self, Queues) {
            let ranges = ram_ranges(1 << 20);
            let shared = Arc::new(SharedPages::new(&ranges));
            shared.set(0..1 << 20, true);
            let memory = Arc::new(DeviceMemory::confidential(map_ram(&ranges).unwrap(), shared.clone()));
            let queue = |index| {
                let mut queue = Queue::new(SIZE).unwrap();
                let (desc, avail, used) = rings(index);
                queue.set_desc_table_address(Some(desc as u32), Some(0));
                queue.set_avail_ring_address(Some(avail as u32), Some(0));
                queue.set_used_ring_address(Some(used as u32), Some(0));
                queue.set_ready(true);
                queue
            };
            let msix = Arc::new(Msix::new(1, Arc::new(Recorder::default())));
            let interrupts = Arc::new(Interrupts::new(msix, queues));
            let device = Queues::new(memory.clone(), (0..queues).map(queue).collect(), interrupts);
            let driver =
                Self { memory, shared, next: vec![0; queues], used: vec![0; queues], buffer: BUFFERS };
            (driver, device)
        }

        /// Makes a chain available whose descriptors are these: address, length, flags, next.
        pub fn offer_raw(&mut self, queue: usize, descriptors: &[(u64, u32, u16, u16)]) {
            let (desc, avail, _) = rings(queue);
            for (slot, &(address, len, flags, next)) in (desc..).step_by(16).zip(descriptors) {
                let descriptor = u128::from(address)
                    | u128::from(len) << 64
                    | u128::from(flags) << 96
                    | u128::from(next) << 112;
                self.memory.write_slice(&descriptor.to_le_bytes(), GuestAddress(slot)).unwrap();
            }
            let entry = GuestAddress(avail + 4 + 2 * u64::from(self.next[queue] % SIZE));
            self.memory.write_obj(0u16, entry).unwrap();
            self.next[queue] += 1;
            self.memory.write_obj(self.next[queue], GuestAddress(avail + 2)).unwrap();
        }

        /// Makes a chain available: buffers to read with their contents, then buffers to write of some sizes.
        /// Returns where the writable ones are.
        pub fn offer(&mut self, queue: usize, readable: &[&[u8]], writable: &[usize]) -> Vec<u64> {
            let (desc, avail, _) = rings(queue);
            let reads = readable.iter().map(|bytes| (bytes.len(), Some(*bytes)));
            let buffers: Vec<_> = reads.chain(writable.iter().map(|&len| (len, None))).collect();
            let head = self.next[queue] * 4 % SIZE;
            let mut writable = Vec::new();
            for (index, (len, bytes)) in buffers.iter().enumerate() {
                let at = head + index as u16;
                let address = self.buffer;
                self.buffer += (*len as u64).next_multiple_of(16);
                match bytes {
                    Some(bytes) => self.memory.write_slice(bytes, GuestAddress(address)).unwrap(),
                    None => writable.push(address),
                }
                let last = index + 1 == buffers.len();
                let flags = if last { 0 } else { NEXT } | if bytes.is_none() { WRITE } else { 0 };
                let descriptor = u128::from(address)
                    | (*len as u128) << 64
                    | u128::from(flags) << 96
                    | u128::from(at + 1) << 112;
                let slot = GuestAddress(desc + 16 * u64::from(at));
                self.memory.write_slice(&descriptor.to_le_bytes(), slot).unwrap();
            }
            let entry = GuestAddress(avail + 4 + 2 * u64::from(self.next[queue] % SIZE));
            self.memory.write_obj(head, entry).unwrap();
            self.next[queue] += 1;
            self.memory.write_obj(self.next[queue], GuestAddress(avail + 2)).unwrap();
            writable
        }

        /// Lengths of the chains that the device gave back since the last call.
        pub fn returned(&mut self, queue: usize) -> Vec<u32> {
            let (_, _, used) = rings(queue);
            let index: u16 = self.memory.read_obj(GuestAddress(used + 2)).unwrap();
            let mut lengths = Vec::new();
            while self.used[queue] != index {
                let entry = GuestAddress(used + 4 + 8 * u64::from(self.used[queue] % SIZE) + 4);
                lengths.push(self.memory.read_obj(entry).unwrap());
                self.used[queue] += 1;
            }
            lengths
        }

        /// What a buffer holds.
        pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            bytes
        }
    }

    #[test]
    fn a_buffer_that_is_not_shared_is_refused_with_its_address() {
        let (mut driver, mut queues) = Driver::new(1);
        driver.offer(0, &[b"secret"], &[]);
        driver.shared.set(BUFFERS..BUFFERS + 4096, false);
        let chain = queues.pop(0).unwrap().unwrap();
        let error = queues.reader(&chain).err().unwrap().to_string();
        assert!(error.contains("guest memory 0x40000..0x40006 is not shared with the host"), "{error}");
    }

    const INDIRECT: u16 = 4;

    #[test]
    fn chains_that_the_specification_forbids_break_the_device() {
        let looped: Vec<_> = (0..SIZE).map(|at| (BUFFERS, 16, NEXT, (at + 1) % SIZE)).collect();
        let long: Vec<_> =
            (0..4).map(|at| (BUFFERS, 1 << 26, if at == 3 { 0 } else { NEXT }, at + 1)).collect();
        for (descriptors, reason) in [
            (vec![(BUFFERS, 32, INDIRECT, 0)], "indirect"),
            (vec![(BUFFERS, 16, NEXT, 1), (BUFFERS, 32, INDIRECT, 0)], "indirect"),
            (looped, "more descriptors than the queue"),
            (vec![(BUFFERS, 16, NEXT, SIZE)], "outside of the table"),
            (vec![(BUFFERS, 16, NEXT | WRITE, 1), (BUFFERS, 16, 0, 0)], "readable buffer behind a writable"),
            (long, "more than"),
        ] {
            let (mut driver, mut queues) = Driver::new(1);
            driver.offer_raw(0, &descriptors);
            let error = queues.pop(0).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(reason), "{reason}: {error:?}");
        }
    }

    #[test]
    fn what_a_chain_says_is_read_once() {
        let (mut driver, mut queues) = Driver::new(1);
        driver.offer(0, &[b"good"], &[8]);
        let chain = queues.pop(0).unwrap().unwrap();
        // The driver changes its mind.
        driver.offer_raw(0, &[(BUFFERS, 1 << 30, INDIRECT, 0)]);
        assert_eq!(queues.reader(&chain).unwrap().available_bytes(), 4);
        assert_eq!(queues.writer(&chain).unwrap().available_bytes(), 8);
    }

    #[test]
    fn a_ring_that_is_not_shared_is_refused() {
        let (mut driver, mut queues) = Driver::new(1);
        driver.offer(0, &[b"x"], &[]);
        driver.shared.set(0x1_1000..0x1_2000, false);
        assert!(queues.pop(0).is_err());
    }

    #[test]
    fn draining_leaves_what_is_not_served() {
        let (mut driver, mut queues) = Driver::new(1);
        for _ in 0..3 {
            driver.offer(0, &[b"x"], &[]);
        }
        let mut budget = 2;
        let mut serve = |_: &Queues, _: &Chain| {
            budget -= 1;
            Ok((budget >= 0).then_some(7))
        };
        queues.drain(0, &mut serve).unwrap();
        assert_eq!(driver.returned(0), [7, 7]);
        queues.drain(0, |_, _| Ok(Some(1))).unwrap();
        assert_eq!(driver.returned(0), [1]);
    }
}

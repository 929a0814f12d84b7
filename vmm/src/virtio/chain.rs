//! A chain of buffers (virtio 1.2, 2.7.5), read from the guest once, and bounded.
//!
//! What the guest writes into its descriptors afterwards has no effect. Indirect tables are not offered, so a driver that uses one
//! breaks its device.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::bitmap::BS;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use super::device::DeviceError;
use crate::memory::DeviceMemory;

/// Bytes of all buffers of one chain: more than any driver's request, and little enough that a device can serve it while
/// somebody waits.
pub const CHAIN_BYTES_MAX: u64 = 128 << 20;

/// One buffer: address and length.
type Buffer = (u64, u32);

/// A chain that the driver made available.
pub struct Chain {
    queue: usize,
    head: u16,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
}

impl Chain {
    /// Reads the chain that starts at descriptor `head` of `queue`, which has number `index`.
    pub fn read(memory: &DeviceMemory, queue: &Queue, index: usize, head: u16) -> Result<Self, DeviceError> {
        let malformed = |reason| Err(DeviceError::Malformed { queue: index, reason });
        let mut chain = Self { queue: index, head, readable: Vec::new(), writable: Vec::new() };
        let (mut at, mut bytes) = (head, 0);
        for _ in 0..queue.size() {
            if at >= queue.size() {
                return malformed("a descriptor outside of the table");
            }
            // The table was checked to end below the end of the address space.
            let address = GuestAddress(queue.desc_table().wrapping_add(u64::from(at) * DESCRIPTOR_BYTES));
            let read = memory.read_obj::<Descriptor>(address);
            let descriptor = read.map_err(|source| memory_error(index, source))?;
            bytes += u64::from(descriptor.len());
            match () {
                _ if descriptor.refers_to_indirect_table() => {
                    return malformed("an indirect table, which was not negotiated");
                }
                _ if bytes > CHAIN_BYTES_MAX => return malformed("buffers of more than 128 MiB"),
                _ if descriptor.is_write_only() => {
                    chain.writable.push((descriptor.addr().0, descriptor.len()))
                }
                _ if !chain.writable.is_empty() => {
                    return malformed("a readable buffer behind a writable one");
                }
                _ => chain.readable.push((descriptor.addr().0, descriptor.len())),
            }
            if !descriptor.has_next() {
                return Ok(chain);
            }
            at = descriptor.next();
        }
        malformed("more descriptors than the queue has")
    }

    /// The queue that it came from.
    pub fn queue(&self) -> usize {
        self.queue
    }

    /// Its first descriptor, by which the driver knows it.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver wrote into it.
    pub fn reader<'a>(&self, memory: &'a DeviceMemory) -> Result<Reader<'a>, DeviceError> {
        Ok(Reader(self.buffers(memory, &self.readable, Permissions::Read)?))
    }

    /// Where the device may write.
    pub fn writer<'a>(&self, memory: &'a DeviceMemory) -> Result<Writer<'a>, DeviceError> {
        Ok(Writer(self.buffers(memory, &self.writable, Permissions::Write)?))
    }

    fn buffers<'a>(
        &self,
        memory: &'a DeviceMemory,
        buffers: &[Buffer],
        access: Permissions,
    ) -> Result<Buffers<'a>, DeviceError> {
        let fail = |source| memory_error(self.queue, source);
        let mut slices = VecDeque::with_capacity(buffers.len());
        let mut left = 0;
        for &(address, len) in buffers {
            for slice in memory.get_slices(GuestAddress(address), len as usize, access).map_err(fail)? {
                let slice = slice.map_err(fail)?;
                left += slice.len();
                slices.push_back(slice);
            }
        }
        Ok(Buffers { slices, left, done: 0 })
    }
}

const DESCRIPTOR_BYTES: u64 = size_of::<Descriptor>() as u64;
const _: () = assert!(DESCRIPTOR_BYTES == 16);

fn memory_error(queue: usize, source: vm_memory::GuestMemoryError) -> DeviceError {
    DeviceError::Memory { queue, source }
}

type Slice<'a> = VolatileSlice<'a, BS<'a, <DeviceMemory as GuestMemory>::Bitmap>>;

/// Buffers one after another.
struct Buffers<'a> {
    slices: VecDeque<Slice<'a>>,
    left: usize,
    done: usize,
}

impl Buffers<'_> {
    /// Applies `copy` to the next buffer's first bytes, at most `len`; it copies all of what it is given.
    fn next(&mut self, len: usize, copy: impl FnOnce(&Slice<'_>)) -> io::Result<usize> {
        while self.slices.front().is_some_and(|slice| slice.is_empty()) {
            self.slices.pop_front();
        }
        let Some(front) = self.slices.front_mut() else { return Ok(0) };
        let len = len.min(front.len());
        let part = front.subslice(0, len).map_err(io::Error::other)?;
        copy(&part);
        *front = front.offset(len).map_err(io::Error::other)?;
        self.left -= len;
        self.done += len;
        Ok(len)
    }
}

/// Reads what the driver wrote.
pub struct Reader<'a>(Buffers<'a>);

impl Reader<'_> {
    /// Bytes that are yet to be read.
    pub fn available_bytes(&self) -> usize {
        self.0.left
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.next(bytes.len(), |slice| {
            slice.copy_to(bytes);
        })
    }
}

/// Writes what the driver will read.
pub struct Writer<'a>(Buffers<'a>);

impl Writer<'_> {
    /// Bytes for which there is room.
    pub fn available_bytes(&self) -> usize {
        self.0.left
    }

    /// Bytes that were written.
    pub fn bytes_written(&self) -> usize {
        self.0.done
    }

    /// Keeps the first `at` bytes; the rest is what this returns. `None` where there are fewer.
    pub fn split_off(&mut self, at: usize) -> Option<Self> {
        let mut rest = self.0.left.checked_sub(at)?;
        let mut tail = Buffers { slices: VecDeque::new(), left: rest, done: 0 };
        self.0.left = at;
        while rest != 0 {
            let back = self.0.slices.pop_back()?;
            let keep = back.len().saturating_sub(rest);
            rest -= back.len() - keep;
            tail.slices.push_front(back.offset(keep).ok()?);
            self.0.slices.push_back(back.subslice(0, keep).ok()?);
            if keep == 0 {
                self.0.slices.pop_back();
            }
        }
        Some(Self(tail))
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.next(bytes.len(), |slice| slice.copy_from(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::tests::Driver;
    use super::*;

    #[test]
    fn buffers_are_read_and_written_across_their_borders() {
        let (mut driver, mut queues) = Driver::new(1);
        let places = driver.offer(0, &[b"abc", b"", b"defg"], &[2, 0, 3, 1]);
        let chain = queues.pop(0).unwrap().unwrap();
        let mut reader = queues.reader(&chain).unwrap();
        let mut bytes = [0; 5];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!((&bytes, reader.available_bytes()), (b"abcde", 2));
        assert!(reader.read_exact(&mut bytes).is_err(), "no more than there is");

        let mut writer = queues.writer(&chain).unwrap();
        assert!(writer.split_off(7).is_none());
        let mut status = writer.split_off(4).unwrap();
        assert_eq!((writer.available_bytes(), status.available_bytes()), (4, 2));
        status.write_all(b"56").unwrap();
        writer.write_all(b"1234").unwrap();
        assert!(writer.write_all(b"x").is_err());
        assert_eq!((writer.bytes_written(), status.bytes_written()), (4, 2));
        let read = |at: usize, len| driver.read(places[at], len);
        assert_eq!([read(0, 2), read(2, 3), read(3, 1)].concat(), b"123456");
    }
}

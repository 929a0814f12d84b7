//! A disk over a raw image: read, write, flush, discard, write zeroes, identifier (virtio 1.2, 5.2).

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::chain::{CHAIN_BYTES_MAX, Chain, Reader, Writer};
use super::{Device, DeviceError, DeviceInfo, Queues};
use crate::config::Disk;

const SECTOR: u64 = 512;
/// Most that is copied at once.
const CHUNK: usize = 256 << 10;
const ID_BYTES: usize = 20;
/// Buffers of one request; header and status come on top.
const SEGMENTS_MAX: u32 = 126;
/// Bytes of one buffer, so that a whole request is a chain that is served.
const SEGMENT_BYTES_MAX: u32 = 1 << 20;
const _: () = assert!(SEGMENTS_MAX as u64 * SEGMENT_BYTES_MAX as u64 + SECTOR <= CHAIN_BYTES_MAX);
/// Sectors of one discard or write zeroes segment.
const RANGE_SECTORS_MAX: u32 = 1 << 22;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

const UNMAP: u32 = 1;

/// What the driver learns of a request, as the status byte says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    IoError = 1,
    Unsupported = 2,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Self::Unsupported,
            _ => Self::IoError,
        }
    }
}

/// struct virtio_blk_req's head.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    kind: U32,
    reserved: U32,
    sector: U64,
}
const _: () = assert!(size_of::<Header>() == 16);

/// struct virtio_blk_discard_write_zeroes.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RangeSegment {
    sector: U64,
    sectors: U32,
    flags: U32,
}
const _: () = assert!(size_of::<RangeSegment>() == 16);

/// struct virtio_blk_config, as far as its features are offered.
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Config {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    geometry: [u8; 4],
    blk_size: U32,
    topology: [u8; 8],
    writeback: u8,
    unused_0: [u8; 3],
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused_1: [u8; 3],
}
const _: () = assert!(size_of::<Config>() == 60);

/// The device.
pub struct Block {
    file: File,
    sectors: u64,
    readonly: bool,
    id: [u8; ID_BYTES],
    buffer: Vec<u8>,
}

impl Block {
    /// Opens a disk and locks it against other guests.
    pub fn open(disk: &Disk) -> io::Result<Self> {
        let mut file = File::options().read(true).write(!disk.readonly).open(&disk.path)?;
        let locked = if disk.readonly { file.try_lock_shared() } else { file.try_lock() };
        locked.map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::other("in use by another program"),
            TryLockError::Error(error) => error,
        })?;
        let sectors = file.seek(SeekFrom::End(0))? / SECTOR;
        let mut id = [0; ID_BYTES];
        id.iter_mut().zip(disk.id.bytes()).for_each(|(to, from)| *to = from);
        Ok(Self { file, sectors, readonly: disk.readonly, id, buffer: vec![0; CHUNK] })
    }

    /// Serves one request; how many bytes the driver finds in its buffers.
    fn request(&mut self, queues: &Queues, chain: &Chain) -> Result<usize, DeviceError> {
        let malformed = |reason| DeviceError::Malformed { queue: 0, reason };
        let mut reader = queues.reader(chain)?;
        let mut writer = queues.writer(chain)?;
        let mut header = [0; size_of::<Header>()];
        reader.read_exact(&mut header).map_err(|_| malformed("a header of less than 16 bytes"))?;
        let room = writer.available_bytes().checked_sub(1).ok_or(malformed("no room for a status"))?;
        let mut status = writer.split_off(room).ok_or(malformed("no room for a status"))?;
        let result = self.execute(&zerocopy::transmute!(header), &mut reader, &mut writer);
        let code = result.err().map_or(0, |failure| failure as u8);
        status.write_all(&[code]).map_err(|_| malformed("no room for a status"))?;
        Ok(writer.bytes_written() + 1)
    }

    fn execute(
        &mut self,
        header: &Header,
        from: &mut Reader<'_>,
        to: &mut Writer<'_>,
    ) -> Result<(), Failure> {
        let sector = header.sector.get();
        let kind = header.kind.get();
        if self.readonly && matches!(kind, T_OUT | T_DISCARD | T_WRITE_ZEROES) {
            return Err(Failure::IoError);
        }
        match kind {
            T_IN => self.read(sector, to),
            T_OUT => self.write(sector, from),
            T_FLUSH => Ok(self.file.sync_data()?),
            T_GET_ID => Ok(to.write_all(self.id.get(..to.available_bytes()).unwrap_or(&self.id))?),
            T_DISCARD | T_WRITE_ZEROES => self.ranges(kind, from),
            _ => Err(Failure::Unsupported),
        }
    }

    /// Where `len` bytes at a sector lie, if the disk has them.
    fn place(&self, sector: u64, len: u64) -> Result<u64, Failure> {
        let whole = len.is_multiple_of(SECTOR);
        let end = sector.checked_add(len / SECTOR);
        match end.filter(|&end| whole && end <= self.sectors) {
            Some(_) => Ok(sector * SECTOR),
            None => Err(Failure::IoError),
        }
    }

    fn read(&mut self, sector: u64, to: &mut Writer<'_>) -> Result<(), Failure> {
        let mut at = self.place(sector, to.available_bytes() as u64)?;
        loop {
            let len = to.available_bytes().min(CHUNK);
            let Some(buffer) = self.buffer.get_mut(..len).filter(|buffer| !buffer.is_empty()) else {
                return Ok(());
            };
            self.file.read_exact_at(buffer, at)?;
            to.write_all(buffer)?;
            at += len as u64;
        }
    }

    fn write(&mut self, sector: u64, from: &mut Reader<'_>) -> Result<(), Failure> {
        let mut at = self.place(sector, from.available_bytes() as u64)?;
        loop {
            let len = from.available_bytes().min(CHUNK);
            let Some(buffer) = self.buffer.get_mut(..len).filter(|buffer| !buffer.is_empty()) else {
                return Ok(());
            };
            from.read_exact(buffer)?;
            self.file.write_all_at(buffer, at)?;
            at += len as u64;
        }
    }

    /// Discards or zeroes one segment; more are not offered.
    fn ranges(&mut self, kind: u32, from: &mut Reader<'_>) -> Result<(), Failure> {
        let mut bytes = [0; size_of::<RangeSegment>()];
        from.read_exact(&mut bytes)?;
        let segment: RangeSegment = zerocopy::transmute!(bytes);
        let (sectors, flags) = (segment.sectors.get(), segment.flags.get());
        let unmap = flags & UNMAP != 0;
        if from.available_bytes() != 0 || flags & !UNMAP != 0 || (kind == T_DISCARD && unmap) {
            return Err(Failure::Unsupported);
        }
        let len = u64::from(sectors) * SECTOR;
        let at = self.place(segment.sector.get(), len)?;
        if sectors == 0 || sectors > RANGE_SECTORS_MAX {
            return Err(Failure::IoError);
        }
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let zero = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        let mode = if kind == T_DISCARD || unmap { punch } else { zero };
        match self.fallocate(mode, at, len) {
            Err(Failure::Unsupported) if kind == T_WRITE_ZEROES => self.write_zeroes(at, len),
            result => result,
        }
    }

    fn fallocate(&self, mode: libc::c_int, at: u64, len: u64) -> Result<(), Failure> {
        // SAFETY: fallocate touches no memory of this process.
        match unsafe { libc::fallocate(self.file.as_raw_fd(), mode, at as i64, len as i64) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().into()),
        }
    }

    /// Where the file system knows no ranges of zeros.
    fn write_zeroes(&mut self, mut at: u64, len: u64) -> Result<(), Failure> {
        self.buffer.fill(0);
        let end = at + len;
        while at < end {
            let chunk = (end - at).min(CHUNK as u64);
            self.file.write_all_at(self.buffer.get(..chunk as usize).unwrap_or_default(), at)?;
            at += chunk;
        }
        Ok(())
    }
}

impl Device for Block {
    fn info(&self) -> DeviceInfo {
        let config = Config {
            capacity: self.sectors.into(),
            size_max: SEGMENT_BYTES_MAX.into(),
            seg_max: SEGMENTS_MAX.into(),
            geometry: [0; 4],
            blk_size: (SECTOR as u32).into(),
            topology: [0; 8],
            writeback: 0,
            unused_0: [0; 3],
            max_discard_sectors: RANGE_SECTORS_MAX.into(),
            max_discard_seg: 1.into(),
            discard_sector_alignment: 8.into(),
            max_write_zeroes_sectors: RANGE_SECTORS_MAX.into(),
            max_write_zeroes_seg: 1.into(),
            write_zeroes_may_unmap: 1,
            unused_1: [0; 3],
        };
        let writable = if self.readonly { F_RO } else { F_DISCARD | F_WRITE_ZEROES };
        DeviceInfo {
            kind: 2,
            name: "block",
            class: 0x01_8000,
            queue_sizes: &[128],
            features: F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | writable,
            config: config.as_bytes().to_vec(),
        }
    }

    fn queue_ready(&mut self, index: usize, queues: &mut Queues) -> Result<(), DeviceError> {
        queues.drain(index, |queues, chain| self.request(queues, chain).map(Some))
    }

    fn finish(&mut self) -> Result<(), DeviceError> {
        let synced = if self.readonly { Ok(()) } else { self.file.sync_data() };
        synced.map_err(|source| DeviceError::Host { what: "flushing the disk", source })
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::tests::Driver;
    use super::*;

    const SECTORS: u64 = 2048;

    struct Rig {
        block: Block,
        driver: Driver,
        queues: Queues,
        _dir: tempfile::TempDir,
        disk: Disk,
    }

    fn rig(readonly: bool) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let image: Vec<u8> = (0..SECTORS * SECTOR).map(|at| (at / SECTOR) as u8).collect();
        std::fs::write(&path, image).unwrap();
        let disk = Disk { path, readonly, id: "test-disk".into() };
        let (driver, queues) = Driver::new(1);
        Rig { block: Block::open(&disk).unwrap(), driver, queues, _dir: dir, disk }
    }

    impl Rig {
        /// One request: its status and what it read.
        fn request(&mut self, kind: u32, sector: u64, data: &[u8], room: usize) -> (u8, Vec<u8>) {
            let header = Header { kind: kind.into(), reserved: 0.into(), sector: sector.into() };
            let readable: &[&[u8]] = if data.is_empty() { &[] } else { &[data] };
            let readable = [&[header.as_bytes()], readable].concat();
            let writable: &[usize] = if room == 0 { &[1] } else { &[room, 1] };
            let buffers = self.driver.offer(0, &readable, writable);
            self.block.queue_ready(0, &mut self.queues).unwrap();
            assert_eq!(self.driver.returned(0).len(), 1);
            let status = self.driver.read(*buffers.last().unwrap(), 1)[0];
            (status, self.driver.read(buffers[0], room))
        }

        fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
            let segment =
                RangeSegment { sector: sector.into(), sectors: sectors.into(), flags: flags.into() };
            self.request(kind, 0, segment.as_bytes(), 0).0
        }
    }

    #[test]
    fn sectors_are_read_and_written_where_they_belong() {
        let mut rig = rig(false);
        let (status, data) = rig.request(T_IN, 3, &[], 1024);
        assert_eq!((status, data[0], data[511], data[512]), (0, 3, 3, 4));
        assert_eq!(rig.request(T_OUT, 5, &[0xaa; 512], 0).0, 0);
        assert_eq!(rig.request(T_IN, 5, &[], 512), (0, vec![0xaa; 512]));
        assert_eq!(rig.request(T_IN, SECTORS - 1, &[], 512).0, 0);
        assert_eq!(rig.request(T_FLUSH, 0, &[], 0).0, 0);
        let on_disk = std::fs::read(&rig.disk.path).unwrap();
        assert_eq!(on_disk[5 * 512..6 * 512], [0xaa; 512]);
    }

    #[test]
    fn requests_outside_of_the_disk_fail() {
        let mut rig = rig(false);
        let io_error = Failure::IoError as u8;
        for (sector, len) in [(SECTORS, 512), (SECTORS - 1, 1024), (u64::MAX, 512), (0, 511), (0, 513)] {
            assert_eq!(rig.request(T_IN, sector, &[], len).0, io_error, "{sector} {len}");
            assert_eq!(rig.request(T_OUT, sector, &vec![0; len], 0).0, io_error, "{sector} {len}");
        }
        let len = std::fs::metadata(&rig.disk.path).unwrap().len();
        assert_eq!(len, SECTORS * SECTOR, "the image never grows");
    }

    #[test]
    fn discard_and_write_zeroes_leave_zeros() {
        let mut rig = rig(false);
        assert_eq!(rig.range(T_DISCARD, 8, 16, 0), 0);
        assert_eq!(rig.range(T_WRITE_ZEROES, 32, 1, 0), 0);
        assert_eq!(rig.range(T_WRITE_ZEROES, 40, 8, UNMAP), 0);
        for (sector, expected) in
            [(7, 7), (8, 0), (23, 0), (24, 24), (32, 0), (33, 33), (40, 0), (47, 0), (48, 48)]
        {
            assert_eq!(rig.request(T_IN, sector, &[], 512).1, [expected; 512], "sector {sector}");
        }
        let unsupported = Failure::Unsupported as u8;
        let io_error = Failure::IoError as u8;
        assert_eq!(rig.range(T_DISCARD, 8, 8, UNMAP), unsupported);
        assert_eq!(rig.range(T_WRITE_ZEROES, 8, 8, 2), unsupported);
        assert_eq!(rig.range(T_DISCARD, SECTORS, 8, 0), io_error);
        assert_eq!(rig.range(T_DISCARD, u64::MAX, 8, 0), io_error);
        assert_eq!(rig.range(T_DISCARD, 0, 0, 0), io_error);
    }

    #[test]
    fn a_read_only_disk_refuses_writes() {
        let mut rig = rig(true);
        assert_ne!(rig.block.info().features & F_RO, 0);
        assert_eq!(rig.request(T_IN, 0, &[], 512).0, 0);
        assert_eq!(rig.request(T_OUT, 0, &[1; 512], 0).0, Failure::IoError as u8);
        assert_eq!(rig.range(T_DISCARD, 0, 8, 0), Failure::IoError as u8);
        assert!(Block::open(&rig.disk).is_ok(), "readers share");
    }

    #[test]
    fn the_identifier_is_padded_and_unknown_requests_are_unsupported() {
        let mut rig = rig(false);
        let (status, id) = rig.request(T_GET_ID, 0, &[], 20);
        assert_eq!((status, &id[..]), (0, &b"test-disk\0\0\0\0\0\0\0\0\0\0\0"[..]));
        assert_eq!(rig.request(99, 0, &[], 0).0, Failure::Unsupported as u8);
    }

    #[test]
    fn a_disk_is_one_guest_s_alone() {
        let rig = rig(false);
        assert!(Block::open(&rig.disk).is_err());
    }

    #[test]
    fn a_request_without_header_or_status_breaks_the_device() {
        for (readable, writable) in [(&[&b"short"[..]][..], &[1][..]), (&[&[0; 16][..]], &[])] {
            let mut rig = rig(false);
            rig.driver.offer(0, readable, writable);
            assert!(rig.block.queue_ready(0, &mut rig.queues).is_err());
        }
    }
}

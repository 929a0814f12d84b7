//! What the host could read of a guest's RAM, as a file: for audits, and for tests that look for what must not be there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{Address, Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::Ram;
use crate::layout::PAGE_SIZE;

/// Writes every page of the mapping behind RAM at the offset of its GPA. Pages of zeros become holes, so that the file
/// takes the room of what the guest shared, not of the guest.
pub fn write(ram: &Ram, file: &File) -> io::Result<()> {
    let mut end = 0;
    for region in ram.iter() {
        let start = region.start_addr().raw_value();
        let mut page = [0u8; PAGE_SIZE as usize];
        for offset in (0..region.len()).step_by(page.len()) {
            region.read_slice(&mut page, MemoryRegionAddress(offset)).map_err(io::Error::other)?;
            if page.iter().any(|&byte| byte != 0) {
                file.write_all_at(&page, start + offset)?;
            }
        }
        end = end.max(start + region.len());
    }
    file.set_len(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::map_ram;
    use std::os::unix::fs::MetadataExt;
    use vm_memory::GuestAddress;

    #[test]
    fn pages_are_at_their_address_and_the_rest_is_holes() {
        const HIGH: u64 = 1 << 32;
        let ram = map_ram(&[0..64 * PAGE_SIZE, HIGH..HIGH + 2 * PAGE_SIZE]).unwrap();
        for gpa in [5 * PAGE_SIZE + 7, HIGH + PAGE_SIZE] {
            ram.write_obj(0x5au8, GuestAddress(gpa)).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        write(&ram, &file).unwrap();
        for (offset, expected) in [(5 * PAGE_SIZE + 7, 0x5a), (5 * PAGE_SIZE, 0), (HIGH + PAGE_SIZE, 0x5a)] {
            let mut byte = [0xff];
            file.read_exact_at(&mut byte, offset).unwrap();
            assert_eq!(byte, [expected], "{offset:#x}");
        }
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), HIGH + 2 * PAGE_SIZE);
        assert!(metadata.blocks() * 512 < 1 << 20, "holes");
    }
}

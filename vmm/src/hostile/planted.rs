//! What a malicious host kernel leaves in a guest's private memory before the guest accepts it, and how it makes a
//! processor run it.
//!
//! User space has no way to write to a guest_memfd of Linux's; softkvm's is a file, which plays the part of the kernel.

use std::io;
use std::os::unix::fs::FileExt;

use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;

use super::Hostile;
use crate::memory::PrivateSlot;

/// End of what is filled: everything that real mode reaches.
const REAL_MODE_END: u64 = 1 << 20;
/// Where the interrupt vectors lead: behind them.
const STUB: u16 = 0x500;

/// 16-bit code that appends what is behind it to the command line at 0x25000, which the firmware has verified before.
const EXTEND_CMDLINE: [u8; 28] = [
    0xB8, 0x00, 0x25, 0x8E, 0xC0, // mov $0x2500, %ax; mov %ax, %es
    0x31, 0xFF, 0x30, 0xC0, // xor %di, %di; xor %al, %al
    0xB9, 0xFF, 0xFF, 0xFC, 0xF2, 0xAE, 0x4F, // mov $-1, %cx; cld; repne scasb; dec %di
    0xBE, 0x1C, 0x05, // mov $0x51c, %si: behind this code
    0xB9, 0x22, 0x00, // mov $34, %cx
    0xF3, 0xA4, // rep movsb
    0xF4, 0xEB, 0xFD, 0x90, // 1: hlt; jmp 1b; nop
];
/// Another secret than the owner asked for.
const WISH: &[u8; 34] = b" cloister.secret=hostile/key/disk\0";
const _: () = assert!(STUB as usize + EXTEND_CMDLINE.len() == 0x51c);

/// 16-bit code that ends the guest by the GHCB's MSR protocol, with a reason that nobody else gives: set 15, code 0xAD.
const TERMINATE: &[u8] = &[
    0x66, 0xB9, 0x30, 0x01, 0x01, 0xC0, // mov $0xc0010130, %ecx
    0x66, 0xB8, 0x00, 0xF1, 0xAD, 0x00, // mov $0x00adf100, %eax
    0x66, 0x31, 0xD2, 0x0F, 0x30, // xor %edx, %edx; wrmsr
    0xF3, 0x0F, 0x01, 0xD9, // rep vmmcall
    0xF4, 0xEB, 0xFD, // 1: hlt; jmp 1b
];

/// An iSCSI boot table of 48 bytes, as far as Linux looks when it searches for one.
const BOOT_TABLE: &[u8; 16] = b"iBFT\x30\0\0\0\0\0\0\0HOST";

/// What the attack wants in memory below 1 MiB: bytes from address 0 on, nothing for the others.
fn contents(hostile: Hostile) -> Vec<u8> {
    match hostile {
        Hostile::ApNmi => vectors_to(&[&EXTEND_CMDLINE[..], WISH].concat()),
        Hostile::LateApStart => vectors_to(TERMINATE),
        Hostile::StalePage => BOOT_TABLE.repeat(REAL_MODE_END as usize / BOOT_TABLE.len()),
        _ => Vec::new(),
    }
}

/// A real-mode vector table all of which leads to `stub`, and the stub.
fn vectors_to(stub: &[u8]) -> Vec<u8> {
    let mut page = [STUB.to_le_bytes(), [0; 2]].concat().repeat(256);
    page.resize(usize::from(STUB), 0);
    page.extend(stub);
    page
}

/// Fills private memory below 1 MiB, before the launch puts its own pages there.
pub fn plant(hostile: Option<Hostile>, slots: &[PrivateSlot]) {
    let Some(bytes) = hostile.map(contents).filter(|bytes| !bytes.is_empty()) else { return };
    let Some(low) = slots.iter().find(|slot| slot.range.start == 0) else { return };
    match low.guest_memfd.write_all_at(&bytes, 0) {
        Ok(()) => {
            eprintln!("cloister: HOSTILE: {:#x} bytes from address 0 are the host's", bytes.len());
        }
        Err(error) => eprintln!("cloister: HOSTILE: failed: {error}"),
    }
}

/// Starts the second processor in the state of its launch, and injects an NMI.
pub fn start_and_interrupt(vm: &VmFd) -> io::Result<()> {
    const INIT: u32 = 5 << 8 | 1 << 15;
    const STARTUP: u32 = 6 << 8;
    const NMI: u32 = 4 << 8;
    const SECOND_PROCESSOR: u32 = 0xFEE0_1000;
    for data in [INIT, STARTUP, NMI] {
        let msi = kvm_msi { address_lo: SECOND_PROCESSOR, data, ..Default::default() };
        vm.signal_msi(msi).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vector_leads_to_the_stub() {
        let page = contents(Hostile::LateApStart);
        assert!(page[..1024].chunks(4).all(|vector| vector == [0, 5, 0, 0]));
        assert_eq!(&page[usize::from(STUB)..], TERMINATE);
    }

    #[test]
    fn a_stale_page_is_any_page_below_one_mebibyte() {
        let all = contents(Hostile::StalePage);
        assert!(all.len() as u64 == REAL_MODE_END && all.chunks(16).all(|chunk| chunk == BOOT_TABLE));
        assert!(contents(Hostile::RamRemap).is_empty());
    }
}

//! First looks at kernel and initrd: enough to refuse what cannot boot, before a guest is made of it.
//!
//! These are conveniences for the operator, not checks that anybody's security rests on: the firmware
//! checks hashes and parses for itself.

/// What the firmware will be asked to boot.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The kernel file, whole.
    pub image: Vec<u8>,
    /// The initrd file.
    pub initrd: Option<Vec<u8>>,
    /// Without its NUL.
    pub cmdline: String,
}

/// Why an image cannot boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum ImageError {
    #[error("neither a Linux bzImage nor an x86-64 ELF vmlinux")]
    UnknownKernel,
    #[error("the bzImage is truncated: {have} bytes of {need}")]
    TruncatedBzImage { have: usize, need: usize },
    #[error("the bzImage has no 64-bit entry point (boot protocol {version:#x})")]
    No64BitEntry { version: u16 },
    #[error("the ELF file is truncated: a segment ends at byte {need} of {have}")]
    TruncatedElf { have: usize, need: u64 },
    #[error("neither a cpio archive (newc) nor compressed in a way that Linux knows")]
    UnknownInitrd,
    #[error("the cpio archive is damaged or truncated at byte {at}")]
    TruncatedCpio { at: usize },
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes)
}

impl Kernel {
    /// Length of the boot sector and setup of a bzImage; 0 for an ELF file.
    pub fn setup_len(&self) -> usize {
        bzimage_setup_len(&self.image).unwrap_or(0)
    }
}

/// `(setup_sects + 1) * 512` (Linux `Documentation/arch/x86/boot.rst`; 0 sectors mean 4).
fn bzimage_setup_len(image: &[u8]) -> Option<usize> {
    (image.get(0x202..0x206)? == b"HdrS").then_some(())?;
    let sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    Some((sectors + 1) * 512)
}

/// Refuses what is no kernel, and a kernel whose end is missing.
pub fn check_kernel(image: &[u8]) -> Result<(), ImageError> {
    if image.starts_with(b"\x7fELF") {
        return check_elf(image);
    }
    let setup = bzimage_setup_len(image).ok_or(ImageError::UnknownKernel)?;
    let version = u16_at(image, 0x206).unwrap_or(0);
    // xloadflags XLF_KERNEL_64, from boot protocol 2.12 on.
    if version < 0x20c || u16_at(image, 0x236).unwrap_or(0) & 1 == 0 {
        return Err(ImageError::No64BitEntry { version });
    }
    let paragraphs = u32_at(image, 0x1f4).unwrap_or(0) as usize;
    let (have, need) = (image.len(), setup + paragraphs * 16);
    if have < need { Err(ImageError::TruncatedBzImage { have, need }) } else { Ok(()) }
}

fn check_elf(image: &[u8]) -> Result<(), ImageError> {
    const ELFCLASS64_LSB: &[u8] = &[2, 1];
    const EM_X86_64: u16 = 62;
    if image.get(4..6) != Some(ELFCLASS64_LSB) || u16_at(image, 18) != Some(EM_X86_64) {
        return Err(ImageError::UnknownKernel);
    }
    let have = image.len();
    let truncated = |need: u64| ImageError::TruncatedElf { have, need };
    let start = u64_at(image, 32).ok_or(truncated(64))?;
    let (size, count) = u16_at(image, 54).zip(u16_at(image, 56)).ok_or(truncated(64))?;
    for index in 0..u64::from(count) {
        let header = start.saturating_add(index * u64::from(size));
        let at = usize::try_from(header).ok().filter(|at| at.saturating_add(56) <= have);
        let at = at.ok_or(truncated(header.saturating_add(56)))?;
        let offset = u64_at(image, at + 8).unwrap_or(u64::MAX);
        let need = offset.saturating_add(u64_at(image, at + 32).unwrap_or(u64::MAX));
        if need > have as u64 {
            return Err(truncated(need));
        }
    }
    Ok(())
}

/// Magic numbers of what Linux unpacks (Linux `lib/decompress.c`).
const COMPRESSIONS: &[&[u8]] = &[
    &[0x1f, 0x8b],
    &[0x1f, 0x9e],
    b"BZh",
    &[0x5d, 0, 0],
    b"\xfd7zXZ\0",
    &[0x89, b'L', b'Z', b'O'],
    &[0x02, 0x21, 0x4c, 0x18],
    &[0x28, 0xb5, 0x2f, 0xfd],
];

/// Refuses what Linux could not unpack, as far as that shows without unpacking.
pub fn check_initrd(bytes: &[u8]) -> Result<(), ImageError> {
    let known = |rest: &[u8]| COMPRESSIONS.iter().any(|magic| rest.starts_with(magic));
    if known(bytes) {
        return Ok(());
    }
    let mut at = 0;
    while bytes.get(at..).is_some_and(is_newc) {
        at = cpio_end(bytes, at)?;
        at += bytes.get(at..).unwrap_or_default().iter().take_while(|&&byte| byte == 0).count();
    }
    match bytes.get(at..) {
        _ if at == 0 => Err(ImageError::UnknownInitrd),
        None | Some([]) => Ok(()),
        Some(rest) if known(rest) => Ok(()),
        Some(_) => Err(ImageError::TruncatedCpio { at }),
    }
}

fn is_newc(bytes: &[u8]) -> bool {
    bytes.starts_with(b"070701") || bytes.starts_with(b"070702")
}

/// Where the archive that starts at `at` ends: after its `TRAILER!!!`.
fn cpio_end(bytes: &[u8], mut at: usize) -> Result<usize, ImageError> {
    const HEADER: usize = 110;
    const TRAILER: &[u8] = b"TRAILER!!!\0";
    loop {
        let damaged = ImageError::TruncatedCpio { at };
        let header = bytes.get(at..at + HEADER).filter(|header| is_newc(header)).ok_or(damaged)?;
        let field = |index: usize| -> Option<usize> {
            let digits = header.get(6 + index * 8..14 + index * 8)?;
            usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let (size, name_len) = field(6).zip(field(11)).ok_or(damaged)?;
        let name = bytes.get(at + HEADER..at + HEADER + name_len).ok_or(damaged)?;
        let data = (at + HEADER + name_len).next_multiple_of(4);
        if name == TRAILER {
            return Ok(data.min(bytes.len()));
        }
        at = (data + size).next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn bzimage() -> Vec<u8> {
        let mut image = vec![0; 1024 + 16 * 8];
        image[0x1f1] = 1;
        image[0x1f4..0x1f8].copy_from_slice(&8u32.to_le_bytes());
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x236] = 1;
        image
    }

    fn elf() -> Vec<u8> {
        let mut image = vec![0; 64 + 56 + 100];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[18] = 62;
        image[32] = 64;
        (image[54], image[56]) = (56, 1);
        image[64 + 8] = 120;
        image[64 + 32] = 100;
        image
    }

    fn cpio(name: &str, data: &[u8]) -> Vec<u8> {
        let mut archive = Vec::new();
        for (name, data) in [(name, data), ("TRAILER!!!", &[])] {
            let fields = [0, 0, 0, 0, 0, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0];
            archive.extend(b"070701");
            archive.extend(fields.iter().flat_map(|field| format!("{field:08X}").into_bytes()));
            archive.extend(name.bytes().chain([0]));
            archive.resize(archive.len().next_multiple_of(4), 0);
            archive.extend(data);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
        archive
    }

    #[test]
    fn kernels_are_told_from_garbage_and_from_their_truncations() {
        assert_eq!(check_kernel(&bzimage()), Ok(()));
        assert_eq!(check_kernel(&elf()), Ok(()));
        let mut old = bzimage();
        old[0x206] = 0x0b;
        assert_eq!(check_kernel(&old), Err(ImageError::No64BitEntry { version: 0x20b }));
        let need = bzimage().len();
        let truncated = ImageError::TruncatedBzImage { have: need - 1, need };
        assert_eq!(check_kernel(&bzimage()[..need - 1]), Err(truncated));
        let have = elf().len() - 1;
        assert_eq!(check_kernel(&elf()[..have]), Err(ImageError::TruncatedElf { have, need: 220 }));
        for garbage in [&b""[..], b"\x7fELF", &[0xff; 4096]] {
            assert_eq!(check_kernel(garbage), Err(ImageError::UnknownKernel));
        }
        for len in 0..need {
            assert!(check_kernel(&bzimage()[..len]).is_err(), "{len} bytes");
        }
        for len in 0..elf().len() {
            assert!(check_kernel(&elf()[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn initrds_are_told_from_garbage_and_from_their_truncations() {
        let archive = cpio("init", b"#!/bin/sh\n");
        assert_eq!(check_initrd(&archive), Ok(()));
        assert_eq!(check_initrd(&[archive.clone(), vec![0; 512], archive.clone()].concat()), Ok(()));
        assert_eq!(check_initrd(&[archive.clone(), vec![0x1f, 0x8b, 8]].concat()), Ok(()));
        assert_eq!(check_initrd(&[0x28, 0xb5, 0x2f, 0xfd]), Ok(()));
        for garbage in [&b""[..], &[0xff; 4096], b"070701"] {
            assert!(check_initrd(garbage).is_err());
        }
        let end = archive.windows(11).position(|window| window == b"TRAILER!!!\0").unwrap() + 11;
        for len in 0..end {
            assert!(check_initrd(&archive[..len]).is_err(), "{len} bytes of {end}");
        }
    }
}

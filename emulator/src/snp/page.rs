//! Field access in 4 KiB pages that come from the guest or the client: bounded, little-endian.

/// A page.
pub type Page = [u8; 4096];

/// An all-zero page.
pub const ZERO: Page = [0; 4096];

/// Reads a u16; 0 outside.
pub fn u16_at(page: &[u8], at: usize) -> u16 {
    page.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}
/// Reads a u32; 0 outside.
pub fn u32_at(page: &[u8], at: usize) -> u32 {
    page.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}
/// Reads a u64; 0 outside.
pub fn u64_at(page: &[u8], at: usize) -> u64 {
    page.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}
/// Writes bytes; nothing outside.
pub fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(target) = page.get_mut(at..at + bytes.len()) {
        target.copy_from_slice(bytes);
    }
}

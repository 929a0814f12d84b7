//! Bounded access to byte buffers that somebody else filled.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The `T` at `offset`, copied out; `None` past the end.
pub fn read<T: FromBytes>(bytes: &[u8], offset: usize) -> Option<T> {
    T::read_from_prefix(bytes.get(offset..)?).ok().map(|(value, _)| value)
}

/// Writes `value` at `offset`; `None` past the end.
pub fn write<T: IntoBytes + Immutable + KnownLayout>(
    bytes: &mut [u8],
    offset: usize,
    value: &T,
) -> Option<()> {
    value.write_to_prefix(bytes.get_mut(offset..)?).ok()
}

/// `value` rounded down to a multiple of `unit`, a power of two.
pub fn round_down(value: u64, unit: u64) -> u64 {
    value & !unit.saturating_sub(1)
}

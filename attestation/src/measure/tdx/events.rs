//! What our firmware measures into the RTMRs: one table, for the firmware that extends and logs, and for the verifier
//! that predicts.
//!
//! | RTMR | events, in order |
//! |---|---|
//! | 0 | [`Event::PLATFORM`], [`Event::ACPI`], [`Event::SEPARATOR_0`] |
//! | 1 | [`Event::KERNEL`], [`Event::SEPARATOR_1`] |
//! | 2 | [`Event::COMMAND_LINE`], [`Event::INITRD`] where there is one |
//! | 3 | nothing: Linux and what runs on it may extend it |
//!
//! Each extends its RTMR with the SHA-384 of what is measured; the log (CCEL) says which event it was, in the forms of
//! the TCG PC Client Platform Firmware Profile. The separators end what the firmware itself says, so that nobody later
//! can add to it unseen.

#[cfg(feature = "alloc")]
use alloc::vec::Vec;
use core::fmt;

use sha2::{Digest, Sha384};

use crate::measure::hex::write_hex;

/// Event types of the TCG PC Client Platform Firmware Profile, table "Events".
pub mod event_type {
    /// EV_SEPARATOR: four zero bytes.
    pub const SEPARATOR: u32 = 0x0000_0004;
    /// EV_EVENT_TAG: a TCG_PCClientTaggedEvent that names what was measured.
    pub const EVENT_TAG: u32 = 0x0000_0006;
    /// EV_PLATFORM_CONFIG_FLAGS: the platform's configuration.
    pub const PLATFORM_CONFIG_FLAGS: u32 = 0x0000_000a;
}

/// What an EV_SEPARATOR measures.
pub const SEPARATOR_BYTES: [u8; 4] = [0; 4];

/// What stands in the log beside an event's digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventData {
    /// The measured bytes themselves: the digest can be recomputed from the log.
    Measured,
    /// A TCG_PCClientTaggedEvent with this identifier and the event's name: the measured bytes are too many.
    Tagged(u32),
}

/// A kind of event of the firmware's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is, in the log and for people.
    pub name: &'static str,
    /// Which RTMR it extends.
    pub rtmr: u8,
    /// TCG event type.
    pub event_type: u32,
    /// What stands in the log.
    pub data: EventData,
}

impl Event {
    /// [`platform_description`].
    pub const PLATFORM: Self = Self {
        name: "platform description",
        rtmr: 0,
        event_type: event_type::PLATFORM_CONFIG_FLAGS,
        data: EventData::Measured,
    };
    /// The ACPI tables that the firmware built, as they lie in memory.
    pub const ACPI: Self = Self {
        name: "ACPI tables",
        rtmr: 0,
        event_type: event_type::EVENT_TAG,
        data: EventData::Tagged(0x434c_0001),
    };
    /// The end of RTMR0's events.
    pub const SEPARATOR_0: Self = Self::separator(0);
    /// The kernel file, whole and unmodified.
    pub const KERNEL: Self = Self {
        name: "kernel",
        rtmr: 1,
        event_type: event_type::EVENT_TAG,
        data: EventData::Tagged(0x434c_0002),
    };
    /// The end of RTMR1's events.
    pub const SEPARATOR_1: Self = Self::separator(1);
    /// The kernel's command line with its terminating NUL.
    pub const COMMAND_LINE: Self = Self {
        name: "command line",
        rtmr: 2,
        event_type: event_type::EVENT_TAG,
        data: EventData::Tagged(0x434c_0003),
    };
    /// The initrd file. Where there is none there is no event.
    pub const INITRD: Self = Self {
        name: "initrd",
        rtmr: 2,
        event_type: event_type::EVENT_TAG,
        data: EventData::Tagged(0x434c_0004),
    };

    /// Every event, in the order in which the firmware measures them.
    pub const ALL: [Self; 7] = [
        Self::PLATFORM,
        Self::ACPI,
        Self::SEPARATOR_0,
        Self::KERNEL,
        Self::SEPARATOR_1,
        Self::COMMAND_LINE,
        Self::INITRD,
    ];

    const fn separator(rtmr: u8) -> Self {
        Self { name: "separator", rtmr, event_type: event_type::SEPARATOR, data: EventData::Measured }
    }

    /// The measurement register's number in a CCEL (UEFI 2.10, 38.4.1: 0 is MRTD, RTMR0 is 1).
    pub const fn mr_index(&self) -> u32 {
        (self.rtmr as u32).saturating_add(1)
    }

    /// Writes the log's event data for `measured`, piece by piece.
    pub fn write_log_data<E>(
        &self,
        measured: &[u8],
        mut write: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match self.data {
            EventData::Measured => write(measured),
            EventData::Tagged(id) => {
                let name = self.name.as_bytes();
                write(&id.to_le_bytes())?;
                write(&u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes())?;
                write(name)
            }
        }
    }

    /// The log's event data for `measured`.
    #[cfg(feature = "alloc")]
    pub fn log_data(&self, measured: &[u8]) -> Vec<u8> {
        collect(|write| self.write_log_data(measured, write))
    }
}

/// A range of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MemoryRange {
    pub gpa: u64,
    /// In bytes.
    pub len: u64,
}

/// Writes, piece by piece, the canonical bytes of what the host told the firmware about the machine: the number of
/// processors (u32), the number of RAM ranges (u32), and each range's address and length (u64 each), all little-endian,
/// in ascending order.
pub fn write_platform_description<E>(
    cpus: u32,
    ram: &[MemoryRange],
    mut write: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    write(&cpus.to_le_bytes())?;
    write(&u32::try_from(ram.len()).unwrap_or(u32::MAX).to_le_bytes())?;
    for range in ram {
        write(&range.gpa.to_le_bytes())?;
        write(&range.len.to_le_bytes())?;
    }
    Ok(())
}

/// The bytes of [`write_platform_description`].
#[cfg(feature = "alloc")]
pub fn platform_description(cpus: u32, ram: &[MemoryRange]) -> Vec<u8> {
    collect(|write| write_platform_description(cpus, ram, write))
}

/// What is written piece by piece, in one.
#[cfg(feature = "alloc")]
fn collect(
    fill: impl FnOnce(
        &mut dyn FnMut(&[u8]) -> Result<(), core::convert::Infallible>,
    ) -> Result<(), core::convert::Infallible>,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Ok(()) = fill(&mut |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    });
    bytes
}

/// The value of an RTMR.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rtmr(pub [u8; 48]);

impl Rtmr {
    /// What a new TD has.
    pub const ZERO: Self = Self([0; 48]);

    /// TDG.MR.RTMR.EXTEND.
    pub fn extend(&mut self, digest: &[u8; 48]) {
        self.0 = Sha384::new_with_prefix(self.0).chain_update(digest).finalize().into();
    }
}

impl fmt::Display for Rtmr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for Rtmr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// All four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rtmrs(pub [Rtmr; 4]);

impl Default for Rtmrs {
    fn default() -> Self {
        Self([Rtmr::ZERO; 4])
    }
}

impl Rtmrs {
    /// Measures `bytes` as `event`; returns the digest, for the log.
    pub fn measure(&mut self, event: &Event, bytes: &[u8]) -> [u8; 48] {
        let digest = Sha384::digest(bytes).into();
        if let Some(rtmr) = self.0.get_mut(usize::from(event.rtmr)) {
            rtmr.extend(&digest);
        }
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_has_a_register_and_a_name_of_its_own() {
        for (index, event) in Event::ALL.iter().enumerate() {
            assert!(event.rtmr < 3, "{} leaves RTMR3 alone", event.name);
            let others = &Event::ALL[..index];
            assert!(others.iter().all(|o| (o.name, o.rtmr) != (event.name, event.rtmr)), "{}", event.name);
            if let EventData::Tagged(_) = event.data {
                assert_eq!(event.event_type, event_type::EVENT_TAG);
                assert!(others.iter().all(|other| other.data != event.data), "{}", event.name);
            }
        }
    }

    #[test]
    fn the_log_names_what_it_cannot_hold() {
        let expected = [&[2, 0, 0x4c, 0x43, 6, 0, 0, 0][..], b"kernel"].concat();
        assert_eq!(Event::KERNEL.log_data(&[7; 100]), expected);
        assert_eq!(Event::SEPARATOR_0.log_data(&SEPARATOR_BYTES), SEPARATOR_BYTES);
        assert_eq!((Event::PLATFORM.mr_index(), Event::INITRD.mr_index()), (1, 3));
    }

    #[test]
    fn the_platform_is_described_in_little_endian() {
        let ram = [MemoryRange { gpa: 0, len: 0xc000_0000 }, MemoryRange { gpa: 1 << 32, len: 0x1000 }];
        let bytes = platform_description(2, &ram);
        assert_eq!(bytes.len(), 8 + 32);
        assert_eq!(
            hex::encode(&bytes[..24]),
            "020000000200000000000000000000000000 00c000000000".replace(' ', "")
        );
        assert_eq!(bytes[24..], [(1u64 << 32).to_le_bytes(), 0x1000u64.to_le_bytes()].concat());
    }

    #[test]
    fn an_rtmr_chains_digests() {
        let mut rtmrs = Rtmrs::default();
        let digest = rtmrs.measure(&Event::SEPARATOR_1, &SEPARATOR_BYTES);
        assert_eq!(digest, <[u8; 48]>::from(Sha384::digest([0; 4])));
        let expected: [u8; 48] = Sha384::digest([[0; 48], digest].concat()).into();
        assert_eq!(rtmrs.0, [Rtmr::ZERO, Rtmr(expected), Rtmr::ZERO, Rtmr::ZERO]);
    }
}

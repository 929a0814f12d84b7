//! A TD's event log: TCG's crypto-agile format (PC Client Platform Firmware Profile, section 10) in the area that the CCEL
//! table names, and the RTMRs that it tells about.
//!
//! What is measured, and how the log says so, is `cloister-attestation`'s one table. An event is in the log only if its
//! RTMR was extended.

use cloister_attestation::measure::tdx::Event;
use sha2::{Digest, Sha384};
use zerocopy::IntoBytes;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::layout::{EVENT_LOG, Range};
use crate::machine::Machine;
use crate::termination::{Stop, TerminationReason};

/// A SHA-384.
pub type Digest384 = [u8; 48];

const TPM_ALG_SHA384: u16 = 0x000C;
const EV_NO_ACTION: u32 = 3;

const FULL: Stop = Stop::because(TerminationReason::MeasurementFailed, "event log is full");

/// TCG_PCClientPCREvent with a TCG_EfiSpecIDEvent in it: what a log starts with.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct First {
    register: U32,
    kind: U32,
    digest: [u8; 20],
    length: U32,
    signature: [u8; 16],
    platform_class: U32,
    version_minor: u8,
    version_major: u8,
    errata: u8,
    /// Size of UINTN in units of 32 bits.
    uintn: u8,
    algorithms: U32,
    algorithm: U16,
    digest_length: U16,
    vendor_length: u8,
}
const _: () = assert!(size_of::<First>() == 32 + 33);

/// TCG_PCR_EVENT2 with its only digest, up to the event's data.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    register: U32,
    kind: U32,
    digests: U32,
    algorithm: U16,
    digest: Digest384,
    length: U32,
}
const _: () = assert!(size_of::<Header>() == 66);

/// The log as far as it is written.
#[derive(Debug)]
pub struct EventLog {
    end: u64,
}

impl EventLog {
    /// Starts the log.
    pub fn start<M: Machine>(machine: &mut M) -> Result<Self, Stop> {
        machine.ram(EVENT_LOG)?.fill(0);
        let mut log = Self { end: EVENT_LOG.start };
        let first = First {
            register: U32::new(0),
            kind: U32::new(EV_NO_ACTION),
            digest: [0; 20],
            length: U32::new(33),
            signature: *b"Spec ID Event03\0",
            platform_class: U32::new(0),
            version_minor: 0,
            version_major: 2,
            errata: 0,
            uintn: 2,
            algorithms: U32::new(1),
            algorithm: U16::new(TPM_ALG_SHA384),
            digest_length: U16::new(48),
            vendor_length: 0,
        };
        log.append(machine, first.as_bytes())?;
        Ok(log)
    }

    /// Measures bytes that the log may show.
    pub fn measure<M: Machine>(&mut self, machine: &mut M, event: &Event, bytes: &[u8]) -> Result<(), Stop> {
        self.record(machine, event, Sha384::digest(bytes).into(), bytes)
    }

    /// Measures what has been hashed already; only for events whose log does not show it.
    pub fn measure_hash<M: Machine>(
        &mut self,
        machine: &mut M,
        event: &Event,
        digest: Digest384,
    ) -> Result<(), Stop> {
        self.record(machine, event, digest, &[])
    }

    fn record<M: Machine>(
        &mut self,
        machine: &mut M,
        event: &Event,
        digest: Digest384,
        measured: &[u8],
    ) -> Result<(), Stop> {
        machine.extend_rtmr(event.rtmr, &digest)?;
        let mut length = 0_usize;
        event.write_log_data(measured, |piece| {
            length = length.saturating_add(piece.len());
            Ok(())
        })?;
        let header = Header {
            register: U32::new(event.mr_index()),
            kind: U32::new(event.event_type),
            digests: U32::new(1),
            algorithm: U16::new(TPM_ALG_SHA384),
            digest,
            length: U32::new(u32::try_from(length).map_err(|_| FULL)?),
        };
        self.append(machine, header.as_bytes())?;
        event.write_log_data(measured, |piece| self.append(machine, piece))
    }

    fn append<M: Machine>(&mut self, machine: &mut M, bytes: &[u8]) -> Result<(), Stop> {
        let end = self.end.saturating_add(bytes.len() as u64);
        if end > EVENT_LOG.end {
            return Err(FULL);
        }
        machine.ram(Range::new(self.end, end))?.copy_from_slice(bytes);
        self.end = end;
        Ok(())
    }
}

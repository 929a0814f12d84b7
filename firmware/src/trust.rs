//! What makes kernel, initrd and command line trustworthy: under SNP hashes that the launch measured, in a TD the RTMRs
//! that they are measured into, in a plain guest nothing.

use cloister_attestation::measure::tdx::Event;
use cloister_attestation::measure::tdx::events::{MemoryRange, SEPARATOR_BYTES, write_platform_description};
use sha2::{Digest, Sha384};

use crate::console;
use crate::event_log::EventLog;
use crate::hashes::{Artifact, KernelHashes};
use crate::layout::{KERNEL_HASHES, Range};
use crate::machine::{Guest, Machine};
use crate::memory_map::Ram;
use crate::sha256::{Compress, Sha256};
use crate::termination::{Stop, TerminationReason};

/// A hash of something that is being loaded, if anybody will ask for it.
pub enum Hash {
    /// Nobody will.
    None,
    /// To be compared.
    Sha256(Sha256),
    /// To be measured.
    Sha384(Sha384),
}

impl Hash {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::None => {}
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha384(hash) => hash.update(bytes),
        }
    }
}

/// How this guest trusts what it is given.
pub enum Trust {
    /// It does not.
    Nothing,
    /// By the launch's hash table.
    Table(KernelHashes),
    /// By telling the verifier.
    Log(EventLog),
}

impl Trust {
    /// What there is in this guest, whose RAM is accepted.
    pub fn establish<M: Machine>(machine: &mut M, compress: Compress) -> Result<Self, Stop> {
        Ok(match machine.guest() {
            Guest::Plain => {
                console::line(
                    machine,
                    "no confidentiality: kernel, initrd and command line are the host's word",
                );
                Self::Nothing
            }
            Guest::Snp { .. } => Self::Table(KernelHashes::parse(machine.ram(KERNEL_HASHES)?, compress)?),
            Guest::Td { .. } => Self::Log(EventLog::start(machine)?),
        })
    }

    /// Tells the verifier what the host said about the machine, and what the firmware made of it.
    pub fn measure_platform<M: Machine>(
        &mut self,
        machine: &mut M,
        cpus: u16,
        ram: &Ram,
        acpi: Range,
    ) -> Result<(), Stop> {
        let Self::Log(log) = self else { return Ok(()) };
        let too_long =
            Stop::because(TerminationReason::MeasurementFailed, "platform description is too long");
        let mut ranges = [MemoryRange { gpa: 0, len: 0 }; 2];
        let mut count = 0_usize;
        let present = ram.ranges().into_iter().filter(|range| !range.is_empty());
        for (to, range) in ranges.iter_mut().zip(present) {
            *to = MemoryRange { gpa: range.start, len: range.len() };
            count = count.saturating_add(1);
        }
        let mut description = [0; 8 + 2 * 16];
        let mut used = 0_usize;
        let ranges = ranges.get(..count).unwrap_or_default();
        write_platform_description(u32::from(cpus), ranges, |piece| {
            let end = used.saturating_add(piece.len());
            description.get_mut(used..end).ok_or(too_long)?.copy_from_slice(piece);
            used = end;
            Ok(())
        })?;
        log.measure(machine, &Event::PLATFORM, description.get(..used).ok_or(too_long)?)?;
        let tables = Sha384::digest(machine.ram(acpi)?).into();
        log.measure_hash(machine, &Event::ACPI, tables)?;
        log.measure(machine, &Event::SEPARATOR_0, &SEPARATOR_BYTES)
    }

    /// A hash of something that is to be loaded.
    pub fn hash(&self) -> Hash {
        match self {
            Self::Nothing => Hash::None,
            Self::Table(hashes) => Hash::Sha256(hashes.hash()),
            Self::Log(_) => Hash::Sha384(Sha384::new()),
        }
    }

    /// Something is absent: the launch's table says so with the hash of nothing, a log by the event's absence.
    pub fn settle_absent(&self, what: Artifact) -> Result<(), Stop> {
        match self {
            Self::Nothing | Self::Log(_) => Ok(()),
            Self::Table(hashes) => hashes.check(what, hashes.hash()),
        }
    }

    /// Compares or measures what was loaded.
    pub fn settle<M: Machine>(&mut self, machine: &mut M, what: Artifact, hash: Hash) -> Result<(), Stop> {
        match (self, hash) {
            (Self::Nothing, _) => Ok(()),
            (Self::Table(hashes), Hash::Sha256(hash)) => hashes.check(what, hash),
            (Self::Log(log), Hash::Sha384(hash)) => {
                let digest = hash.finalize().into();
                match what {
                    Artifact::Kernel => {
                        log.measure_hash(machine, &Event::KERNEL, digest)?;
                        log.measure(machine, &Event::SEPARATOR_1, &SEPARATOR_BYTES)
                    }
                    Artifact::Cmdline => log.measure_hash(machine, &Event::COMMAND_LINE, digest),
                    Artifact::Initrd => log.measure_hash(machine, &Event::INITRD, digest),
                }
            }
            _ => Err(Stop::because(
                TerminationReason::UnexpectedException,
                "internal error: a hash of another kind",
            )),
        }
    }

    /// What the console is told before the kernel starts.
    pub const fn words(&self) -> &'static str {
        match self {
            Self::Nothing => "starting the kernel",
            Self::Table(_) => "measured kernel, starting it",
            Self::Log(_) => "kernel measured into the RTMRs, starting it",
        }
    }
}

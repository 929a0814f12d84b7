//! The event log of the guest's firmware and boot loader: what was extended into the RTMRs, in the crypto-agile
//! format of the TCG PC Client Platform Firmware Profile (section 10), which ACPI's CCEL table points to.
//!
//! A log is the guest's own story. It is worth what its replay is worth: [`EventLog::replay`] says which RTMRs
//! would come of it, and only a quote that has those makes its *digests* true: which there are, in which register and
//! in which order. An event's *data* is true only where the digest is of those very bytes. All else, an event's type and
//! what is written before the measured bytes included, is what somebody wrote on the log's way here: nothing may be
//! concluded from it, and a check that looks at it first can be walked around by changing it.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use sha2::{Digest, Sha384};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// CCEL areas are 64 KiB to 256 KiB.
const MAX_BYTES: usize = 1 << 20;
/// Hash algorithms that a log may have beside SHA-384.
const MAX_ALGORITHMS: u32 = 8;
const TPM_ALG_SHA384: u16 = 0x000c;
const SHA384_BYTES: usize = 48;
const SIGNATURE: &[u8; 16] = b"Spec ID Event03\0";

const EV_NO_ACTION: u32 = 0x3;
const EV_SEPARATOR: u32 = 0x4;
const EV_IPL: u32 = 0xd;
const EV_EFI_VARIABLE_BOOT: u32 = 0x8000_0002;

/// Names of event types, and whether the digest is of the event's data (PC Client Platform Firmware Profile, "Event
/// Types"). Of others, firmware and boot loaders measure something that the log only describes.
const TYPES: &[(u32, &str, bool)] = &[
    (EV_NO_ACTION, "EV_NO_ACTION", false),
    (EV_SEPARATOR, "EV_SEPARATOR", true),
    (0x5, "EV_ACTION", true),
    (0x6, "EV_EVENT_TAG", false),
    (0x7, "EV_S_CRTM_CONTENTS", false),
    (0x8, "EV_S_CRTM_VERSION", true),
    (0x9, "EV_CPU_MICROCODE", false),
    (0xa, "EV_PLATFORM_CONFIG_FLAGS", false),
    (0xb, "EV_TABLE_OF_DEVICES", false),
    (0xc, "EV_COMPACT_HASH", false),
    (EV_IPL, "EV_IPL", false),
    (0x8000_0001, "EV_EFI_VARIABLE_DRIVER_CONFIG", true),
    (EV_EFI_VARIABLE_BOOT, "EV_EFI_VARIABLE_BOOT", false),
    (0x8000_0003, "EV_EFI_BOOT_SERVICES_APPLICATION", false),
    (0x8000_0004, "EV_EFI_BOOT_SERVICES_DRIVER", false),
    (0x8000_0005, "EV_EFI_RUNTIME_SERVICES_DRIVER", false),
    (0x8000_0006, "EV_EFI_GPT_EVENT", true),
    (0x8000_0007, "EV_EFI_ACTION", true),
    (0x8000_0008, "EV_EFI_PLATFORM_FIRMWARE_BLOB", false),
    (0x8000_0009, "EV_EFI_HANDOFF_TABLES", false),
    (0x8000_000a, "EV_EFI_PLATFORM_FIRMWARE_BLOB2", false),
    (0x8000_000b, "EV_EFI_HANDOFF_TABLES2", false),
    (0x8000_000c, "EV_EFI_VARIABLE_BOOT2", true),
    (0x8000_0010, "EV_EFI_HCRTM_EVENT", false),
    (0x8000_00e0, "EV_EFI_VARIABLE_AUTHORITY", true),
];

/// What GRUB puts before the text that it measures in its EV_IPL events.
const GRUB_PREFIXES: &[(&str, &str)] = &[
    ("grub_cmd", "grub_cmd: "),
    ("kernel_cmdline", "kernel_cmdline: "),
    ("module_cmdline", "module_cmdline: "),
];

/// What a separator measures. The third value that there is, four bytes 01 00 00 00 where the firmware failed, is no
/// mark: a BootOrder of two entries has the same bytes.
const SEPARATORS: [[u8; 4]; 2] = [[0; 4], [0xff; 4]];

/// Why bytes are no log, or a log is not to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum EventLogError {
    /// Longer than any log area.
    #[error("{len} bytes are more than any event log has")]
    TooLong { len: usize },
    /// It ends inside an event.
    #[error("the log ends inside event {event}")]
    Truncated { event: usize },
    /// It does not start with a Spec ID event that fits.
    #[error("the log does not start with a TCG Spec ID Event03")]
    Header,
    /// Its digests cannot be those of RTMRs.
    #[error("the log does not have SHA-384, 48 bytes, among its algorithms")]
    NoSha384,
    /// An event has other digests than the log announced.
    #[error("event {event} has other digests than the log's first event announces")]
    Digests { event: usize },
    /// A register that a log cannot tell about: MRTD or none at all.
    #[error("event {event} extends measurement register {index}; 1 to 4 are RTMR0 to RTMR3")]
    Register { event: usize, index: u32 },
    /// Bytes behind the last event that are neither all 0xff nor all zero.
    #[error("what follows event {event} is neither an event nor padding")]
    Padding { event: usize },
    /// It is well-formed and lies.
    #[error(transparent)]
    Inconsistent(#[from] Inconsistency),
}

/// Where a well-formed log lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Inconsistency {
    /// The event's digest is not of its data although the event's type says so.
    #[error("event {event} ({name}) has a digest that is not of its data")]
    EventDigest { event: usize, name: &'static str },
    /// A separator that does not say that it is one.
    #[error("event {event} is a separator with other data than four times 0x00 or 0xff")]
    SeparatorData { event: usize },
    /// A second line between firmware and what it starts: events of one side pose as the other's.
    #[error("event {event} is a second separator in {rtmr}")]
    SecondSeparator { event: usize, rtmr: RtmrIndex },
}

/// An inconsistency that genuine firmware has, and that a relying party may let pass by name.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
pub enum EventLogQuirk {
    /// A register has several separators: EDK II of 2022 and 2023 measured one for each PCR that it maps to the register.
    SecondSeparator,
}

impl Inconsistency {
    /// The quirk that it may be.
    pub const fn quirk(&self) -> Option<EventLogQuirk> {
        match self {
            Self::SecondSeparator { .. } => Some(EventLogQuirk::SecondSeparator),
            Self::EventDigest { .. } | Self::SeparatorData { .. } => None,
        }
    }
}

/// One of RTMR0 to RTMR3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RtmrIndex(u8);

impl RtmrIndex {
    /// From a log's number, where 0 is MRTD.
    fn from_log(index: u32) -> Option<Self> {
        let index = u8::try_from(index).ok()?.checked_sub(1)?;
        (index < 4).then_some(Self(index))
    }

    /// 0 to 3.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for RtmrIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RTMR{}", self.0)
    }
}

/// How an event's data is tied to its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventData<'a> {
    /// The digest is of exactly these bytes: they are as true as the digest.
    Measured(&'a [u8]),
    /// The digest is of something else; this only describes it, and anybody could have written it.
    Described(&'a [u8]),
}

impl<'a> EventData<'a> {
    /// The bytes, true or not.
    pub const fn bytes(self) -> &'a [u8] {
        match self {
            Self::Measured(bytes) | Self::Described(bytes) => bytes,
        }
    }

    /// Whether the digest is of them.
    pub const fn is_measured(self) -> bool {
        matches!(self, Self::Measured(_))
    }
}

/// What the log writes before the bytes that were measured. It was not measured: under another label the same bytes are
/// as good an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label<'a> {
    /// What GRUB says that the text is: a command, or the command line of a kernel or of a module.
    Grub(&'static str),
    /// The name of an EFI variable, UTF-16.
    Variable(&'a [u8]),
}

impl Label<'_> {
    /// As text.
    pub fn text(self) -> String {
        match self {
            Self::Grub(name) => name.into(),
            Self::Variable(name) => {
                let (units, _) = name.as_chunks::<2>();
                let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
                char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
            }
        }
    }
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// What was extended; `None` for an EV_NO_ACTION, which extends nothing.
    pub rtmr: Option<RtmrIndex>,
    /// SHA-384, by which the RTMR was extended.
    pub digest: &'a [u8; SHA384_BYTES],
    /// Whether that is the digest of a separator, whatever the log says that it is.
    pub separator: bool,
    /// What it is about.
    pub data: EventData<'a>,
    /// Its type, as the log says: it was not measured.
    pub kind: u32,
    /// What stands before the measured bytes, as the log says.
    pub label: Option<Label<'a>>,
}

impl Event<'_> {
    /// The name of its type, where it is known.
    pub fn kind_name(&self) -> Option<&'static str> {
        TYPES.iter().find(|row| row.0 == self.kind).map(|row| row.1)
    }
}

/// A well-formed log.
#[derive(Clone, Debug)]
pub struct EventLog<'a> {
    events: Vec<Event<'a>>,
    inconsistencies: Vec<Inconsistency>,
}

/// TCG_PCClientPCREvent, the form of the first event only.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FirstEvent {
    register: U32,
    kind: U32,
    digest: [u8; 20],
    len: U32,
}
const _: () = assert!(size_of::<FirstEvent>() == 32);

/// TCG_EfiSpecIDEvent up to its algorithms.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SpecId {
    signature: [u8; 16],
    platform_class: U32,
    version_minor: u8,
    version_major: u8,
    errata: u8,
    uintn_size: u8,
    algorithms: U32,
}
const _: () = assert!(size_of::<SpecId>() == 28);

#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Algorithm {
    id: U16,
    digest_bytes: U16,
}

/// TCG_PCR_EVENT2 up to its digests.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct EventHeader {
    register: U32,
    kind: U32,
    digests: U32,
}
const _: () = assert!(size_of::<EventHeader>() == 12);

/// UEFI_VARIABLE_DATA up to its name.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct VariableData {
    name_guid: [u8; 16],
    name_units: U64,
    data_bytes: U64,
}
const _: () = assert!(size_of::<VariableData>() == 32);

impl<'a> EventLog<'a> {
    /// Whether these bytes say that they are a log.
    pub fn recognises(bytes: &[u8]) -> bool {
        bytes.get(size_of::<FirstEvent>()..).is_some_and(|data| data.starts_with(SIGNATURE))
    }

    /// Reads a log, with the padding of its area or without; refuses one that contradicts itself.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EventLogError> {
        let log = Self::read(bytes)?;
        match log.inconsistencies.first() {
            Some(&inconsistency) => Err(inconsistency.into()),
            None => Ok(log),
        }
    }

    /// As [`EventLog::parse`], for looking at a log and never for believing it: one that contradicts itself is read, and
    /// says where ([`EventLog::inconsistencies`]).
    pub fn read(bytes: &'a [u8]) -> Result<Self, EventLogError> {
        if bytes.len() > MAX_BYTES {
            return Err(EventLogError::TooLong { len: bytes.len() });
        }
        let mut rest = bytes;
        let algorithms = header(&mut rest).ok_or(EventLogError::Header)?;
        let sha384 = algorithms.iter().find(|algorithm| algorithm.id == TPM_ALG_SHA384);
        if sha384.is_none_or(|algorithm| usize::from(algorithm.digest_bytes.get()) != SHA384_BYTES) {
            return Err(EventLogError::NoSha384);
        }
        let separators = SEPARATORS.map(|value| <[u8; SHA384_BYTES]>::from(Sha384::digest(value)));
        let (mut events, mut inconsistencies) = (Vec::new(), Vec::new());
        while !is_padding(rest) {
            let number = events.len().saturating_add(1);
            let wire = event(&mut rest, number, &algorithms)?;
            let (data, label) = wire.tie().unwrap_or_else(|name| {
                inconsistencies.push(Inconsistency::EventDigest { event: number, name });
                (EventData::Described(wire.data), None)
            });
            let WireEvent { rtmr, kind, digest, .. } = wire;
            let separator = rtmr.is_some() && separators.contains(digest);
            events.push(Event { rtmr, digest, separator, data, kind, label });
        }
        check_separators(&events, &mut inconsistencies);
        Ok(Self { events, inconsistencies })
    }

    /// Where the log contradicts itself.
    pub fn inconsistencies(&self) -> &[Inconsistency] {
        &self.inconsistencies
    }

    /// The events, without the first, which describes the log.
    pub fn events(&self) -> &[Event<'a>] {
        &self.events
    }

    /// What the RTMRs are after these events, and only these.
    pub fn replay(&self) -> [[u8; SHA384_BYTES]; 4] {
        let mut rtmrs = [[0; SHA384_BYTES]; 4];
        for event in &self.events {
            let Some(rtmr) = event.rtmr.and_then(|rtmr| rtmrs.get_mut(rtmr.index())) else { continue };
            *rtmr = Sha384::new().chain_update(*rtmr).chain_update(event.digest).finalize().into();
        }
        rtmrs
    }
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(taken)
}

fn wire<'a, T: FromBytes + KnownLayout + Immutable + Unaligned>(rest: &mut &'a [u8]) -> Option<&'a T> {
    let (value, after) = T::ref_from_prefix(rest).ok()?;
    *rest = after;
    Some(value)
}

fn counted<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = wire::<U32>(rest)?.get();
    take(rest, usize::try_from(len).ok()?)
}

fn header(rest: &mut &[u8]) -> Option<Vec<Algorithm>> {
    let first: &FirstEvent = wire(rest)?;
    let mut data = take(rest, usize::try_from(first.len.get()).ok()?)?;
    let id: &SpecId = wire(&mut data)?;
    let count = id.algorithms.get();
    if first.kind != EV_NO_ACTION || &id.signature != SIGNATURE || !(1..=MAX_ALGORITHMS).contains(&count) {
        return None;
    }
    let algorithms = (0..count).map(|_| wire::<Algorithm>(&mut data).copied()).collect::<Option<Vec<_>>>()?;
    let vendor_len: &u8 = wire(&mut data)?;
    (data.len() == usize::from(*vendor_len)).then_some(algorithms)
}

/// An area that is larger than its log is filled with 0xff, or was never written.
fn is_padding(rest: &[u8]) -> bool {
    rest.iter().all(|&byte| byte == 0xff) || rest.iter().all(|&byte| byte == 0)
}

/// An event as it stands in the log.
struct WireEvent<'a> {
    rtmr: Option<RtmrIndex>,
    kind: u32,
    digest: &'a [u8; SHA384_BYTES],
    data: &'a [u8],
}

fn event<'a>(
    rest: &mut &'a [u8],
    number: usize,
    algorithms: &[Algorithm],
) -> Result<WireEvent<'a>, EventLogError> {
    let truncated = EventLogError::Truncated { event: number };
    let header: &EventHeader = wire(rest).ok_or(truncated)?;
    // The first register that is none: padding that is not all padding.
    if header.register == u32::MAX {
        return Err(EventLogError::Padding { event: number.saturating_sub(1) });
    }
    let (kind, index) = (header.kind.get(), header.register.get());
    let digests = usize::try_from(header.digests.get()).unwrap_or(usize::MAX);
    if digests != algorithms.len() {
        return Err(EventLogError::Digests { event: number });
    }
    let mut digest = None;
    for algorithm in algorithms {
        let id: &U16 = wire(rest).ok_or(truncated)?;
        if *id != algorithm.id {
            return Err(EventLogError::Digests { event: number });
        }
        let bytes = take(rest, usize::from(algorithm.digest_bytes.get())).ok_or(truncated)?;
        if *id == TPM_ALG_SHA384 {
            digest = bytes.try_into().ok();
        }
    }
    let digest: &[u8; SHA384_BYTES] = digest.ok_or(EventLogError::NoSha384)?;
    let data = counted(rest).ok_or(truncated)?;
    let rtmr = match kind {
        EV_NO_ACTION => None,
        _ => Some(RtmrIndex::from_log(index).ok_or(EventLogError::Register { event: number, index })?),
    };
    Ok(WireEvent { rtmr, kind, digest, data })
}

impl<'a> WireEvent<'a> {
    /// Ties data and digest together as the type says; its name where they do not fit.
    fn tie(&self) -> Result<(EventData<'a>, Option<Label<'a>>), &'static str> {
        let Self { kind, data, .. } = *self;
        let measured = |bytes: &[u8]| Sha384::digest(bytes).as_slice() == self.digest;
        let (name, of_data) =
            TYPES.iter().find(|row| row.0 == kind).map_or(("unknown", false), |row| (row.1, row.2));
        if kind == EV_NO_ACTION {
            return Ok((EventData::Described(data), None));
        }
        if measured(data) {
            return Ok((EventData::Measured(data), None));
        }
        let labelled = match kind {
            EV_IPL => grub_text(data),
            // EDK2 measures a boot variable's value only, newer versions the whole structure.
            EV_EFI_VARIABLE_BOOT => Some(variable_value(data).ok_or(name)?),
            _ => None,
        };
        match labelled {
            Some((label, bytes)) if measured(bytes) => Ok((EventData::Measured(bytes), Some(label))),
            Some(_) => Err(name),
            None if of_data => Err(name),
            None => Ok((EventData::Described(data), None)),
        }
    }
}

/// What GRUB measures, behind its prefix and without the NUL at the end.
fn grub_text(data: &[u8]) -> Option<(Label<'_>, &[u8])> {
    let (name, text) = GRUB_PREFIXES
        .iter()
        .find_map(|(name, prefix)| Some((*name, data.strip_prefix(prefix.as_bytes())?)))?;
    Some((Label::Grub(name), text.strip_suffix(b"\0").unwrap_or(text)))
}

fn variable_value(mut data: &[u8]) -> Option<(Label<'_>, &[u8])> {
    let variable: &VariableData = wire(&mut data)?;
    let name_bytes = usize::try_from(variable.name_units.get()).ok()?.checked_mul(2)?;
    let name = take(&mut data, name_bytes)?;
    (u64::try_from(data.len()) == Ok(variable.data_bytes.get())).then_some((Label::Variable(name), data))
}

/// A separator is the line between firmware and what it starts; there is at most one in a register. What is one, the
/// digest says: the type could be changed to hide it.
fn check_separators(events: &[Event<'_>], inconsistencies: &mut Vec<Inconsistency>) {
    let mut seen = [false; 4];
    for (event, number) in events.iter().zip(1..) {
        if event.kind == EV_SEPARATOR && !event.separator {
            inconsistencies.push(Inconsistency::SeparatorData { event: number });
        }
        let Some(rtmr) = event.rtmr.filter(|_| event.separator) else { continue };
        if let Some(seen) = seen.get_mut(rtmr.index())
            && core::mem::replace(seen, true)
        {
            inconsistencies.push(Inconsistency::SecondSeparator { event: number, rtmr });
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;

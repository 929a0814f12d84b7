//! `measure tdx`: MRTD of a firmware, and the RTMRs that ours leaves behind.

use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;
use cloister_attestation::abi::ram_ranges;
use cloister_attestation::corim::Reference;
use cloister_attestation::measure::tdx::{
    LaunchPlan, LaunchTranscript, MemoryRange, PageOrder, ReferenceValue, RtmrInputs, Tdvf,
};
use cloister_attestation::measure::{PAGE_SIZE, acpi};

use super::{Guest, KernelFiles, Results};
use crate::{input, read};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Order {
    /// Each page is added and then measured, as Linux's KVM does
    PageByPage,
    /// All pages of a range are added, then all are measured, as kernels built from the patches of early 2024 do
    TwoPass,
}

impl From<Order> for PageOrder {
    fn from(order: Order) -> Self {
        match order {
            Order::PageByPage => Self::PageByPage,
            Order::TwoPass => Self::TwoPass,
        }
    }
}

/// What decides the measurements of a TD beside firmware and kernel.
#[derive(Debug, clap::Args)]
#[group(id = "td_options")]
pub struct Td {
    /// Guest memory, such as 512M or 2G
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_memory)]
    memory: u64,
    /// The ACPI tables of a build of our firmware that makes others than this version knows
    #[arg(long, value_name = "FILE")]
    acpi: Option<PathBuf>,
    /// In which order the host's KVM adds and measures pages
    #[arg(long, value_enum, default_value = "page-by-page")]
    page_order: Order,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Firmware ROM
    #[arg(long, value_name = "ROM")]
    firmware: PathBuf,
    #[command(flatten)]
    guest: Guest,
    #[command(flatten)]
    td: Td,
    #[command(flatten)]
    results: Results,
}

/// What a TD is started from, read.
pub struct Files<'a> {
    pub kernel: KernelFiles<'a>,
    /// The ACPI tables for each number of processors, where they are known.
    acpi: Vec<(u32, Option<Vec<u8>>)>,
    ram: Vec<MemoryRange>,
    pub order: PageOrder,
}

impl<'a> Files<'a> {
    pub fn read(tdvf: &Tdvf<'_>, guest: &'a Guest, td: &Td) -> anyhow::Result<Self> {
        let given = td.acpi.as_deref().map(read).transpose()?;
        if given.is_some() {
            guest.cpus.only().context("--acpi has the tables of one guest")?;
        }
        let acpi = |cpus| {
            let tables = match &given {
                Some(tables) => Some(tables.clone()),
                None => tdvf.is_cloister().then(|| acpi_tables(cpus)).transpose()?,
            };
            anyhow::Ok((cpus, tables))
        };
        let ram = ram_ranges(td.memory).into_iter().filter(|range| !range.is_empty());
        Ok(Self {
            kernel: guest.kernel.read()?,
            acpi: guest.cpus.all().map(acpi).collect::<anyhow::Result<_>>()?,
            ram: ram.map(|range| MemoryRange { gpa: range.start, len: range.end - range.start }).collect(),
            order: td.page_order.into(),
        })
    }

    /// What the firmware will measure of them, for each number of processors.
    pub fn launches(&self) -> Vec<RtmrInputs<'_>> {
        let files = &self.kernel;
        let launches = self.acpi.iter().map(|(cpus, acpi)| RtmrInputs {
            cpus: *cpus,
            ram: &self.ram,
            acpi: acpi.as_deref(),
            kernel: files.kernel.as_deref(),
            initrd: files.initrd.as_deref(),
            cmdline: files.cmdline,
        });
        launches.collect()
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let firmware = input::read(&args.firmware, input::FIRMWARE)?;
    let unusable = || format!("{} is unusable", args.firmware.display());
    let tdvf = Tdvf::parse(&firmware).with_context(unusable)?;
    let plan = LaunchPlan::new(&tdvf).with_context(unusable)?;
    let files = Files::read(&tdvf, &args.guest, &args.td)?;
    let (launches, order) = (files.launches(), files.order);
    if !tdvf.is_cloister() {
        eprintln!(
            "cloister-attest: {} is not Cloister's firmware: MRTD is predicted, and what it measures into the RTMRs is not known",
            args.firmware.display()
        );
    }
    let references = || {
        let mrtd = plan.mrtd(order).0;
        let each = RtmrInputs::rtmrs_of_each(&launches, &tdvf);
        each.into_iter().map(|rtmrs| Reference::Tdx(mrtd, rtmrs)).collect()
    };
    args.results.write(
        args.guest.cpus,
        || LaunchTranscript::new(&tdvf, &plan, order),
        references,
        &ReferenceValue::of_each(&tdvf, &plan, order, &launches),
    )
}

/// The tables that our firmware builds.
fn acpi_tables(cpus: u32) -> anyhow::Result<Vec<u8>> {
    let count = u16::try_from(cpus).ok().filter(|&cpus| cpus <= acpi::CPUS_MAX);
    let count = count
        .with_context(|| format!("the firmware starts no guest with more than {} CPUs", acpi::CPUS_MAX))?;
    let mut tables = vec![0; acpi::TABLES_BYTES];
    let used = acpi::build(&mut tables, count, acpi::Kind::Td)?;
    tables.truncate(used);
    Ok(tables)
}

/// What `cloister run --memory` takes, too.
fn parse_memory(text: &str) -> Result<u64, String> {
    const RANGE: std::ops::RangeInclusive<u64> = 16 << 20..=1 << 40;
    let bytes = parse_size(text)?;
    match RANGE.contains(&bytes) && bytes.is_multiple_of(PAGE_SIZE as u64) {
        true => Ok(bytes),
        false => Err("a guest has 16 MiB to 1 TiB of memory, in whole pages of 4 KiB".to_owned()),
    }
}

/// A number of bytes, with a suffix K, M, G or T for powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    const SUFFIXES: [(&str, u32); 4] = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];
    let suffix = SUFFIXES.iter().find_map(|(suffix, shift)| Some((text.strip_suffix(suffix)?, *shift)));
    let (digits, shift) = suffix.unwrap_or((text, 0));
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    number.filter(|bytes| *bytes > 0).ok_or_else(|| "expected a size, such as 512M or 2G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_guests_can_have() {
        for (text, good) in [
            ("16M", true),
            ("512M", true),
            ("1T", true),
            ("16781312", true),
            ("1", false),
            ("4096", false),
            ("16777217", false),
            ("1048577M", false),
            ("", false),
        ] {
            assert_eq!(parse_memory(text).is_ok(), good, "{text}");
        }
    }

    #[test]
    fn sizes_have_binary_suffixes() {
        for (text, bytes) in [("4096", Ok(4096)), ("512M", Ok(512 << 20)), ("3G", Ok(3 << 30))] {
            assert_eq!(parse_size(text), bytes.map_err(|(): ()| String::new()), "{text}");
        }
        for text in ["", "M", "0", "1X", "-1", "1 M", "99999999999T"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}

//! The launch as an ordered list of page commands.

use alloc::borrow::Cow;
use alloc::vec::Vec;

use super::mrtd::{Mrtd, MrtdBuilder, PageOrder};
use super::tdvf::{Section, SectionKind, Tdvf};
use crate::measure::{Contents, Gpa, PAGE_SIZE};

/// One KVM_TDX_INIT_MEM_REGION.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageCommand<'a> {
    /// Which section of the firmware it is for.
    pub kind: SectionKind,
    /// First byte of the range; page aligned.
    pub gpa: Gpa,
    /// Bytes of the range; whole pages.
    pub len: u64,
    /// What the range holds. Bytes that do not fill it are followed by zeros.
    pub contents: Contents<'a>,
    /// Whether the contents go into MRTD (KVM_TDX_MEASURE_MEMORY_REGION); the addresses always do.
    pub measured: bool,
}

impl PageCommand<'_> {
    pub(super) fn measured_bytes(&self) -> Option<&[u8]> {
        match &self.contents {
            Contents::Bytes(bytes) if self.measured => Some(bytes),
            Contents::Zeros if self.measured => Some(&[]),
            Contents::Bytes(_) | Contents::Zeros | Contents::Executor => None,
        }
    }
}

/// Why no plan can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// More than any launch adds page by page.
    #[error("the firmware asks for {pages} pages before it runs; the limit is {MAX_PAGES}")]
    TooManyPages {
        /// How many.
        pages: u64,
    },
}

/// 256 MiB: more than any firmware has, and a bound for who hashes a stranger's.
const MAX_PAGES: u64 = 1 << 16;

/// A launch: what is added before the guest runs, in order.
#[derive(Clone, Debug)]
pub struct LaunchPlan<'a> {
    commands: Vec<PageCommand<'a>>,
}

/// A step of [`LaunchPlan::walk`].
#[derive(Clone, Copy, Debug)]
pub struct MeasuredRange<'a> {
    /// The command.
    pub command: &'a PageCommand<'a>,
    /// What MRTD would be if the launch ended after it.
    pub mrtd: Mrtd,
}

impl<'a> LaunchPlan<'a> {
    /// Plans the launch of a firmware.
    pub fn new(tdvf: &Tdvf<'a>) -> Result<Self, PlanError> {
        let commands: Vec<_> = tdvf.sections().iter().filter(|s| !s.page_aug).map(command).collect();
        let plan = Self { commands };
        match plan.pages() {
            0..=MAX_PAGES => Ok(plan),
            pages => Err(PlanError::TooManyPages { pages }),
        }
    }

    /// The launch with other commands.
    #[cfg(feature = "std")]
    pub(super) fn varied(&self, change: impl FnOnce(&mut Vec<PageCommand<'a>>)) -> Self {
        let mut plan = self.clone();
        change(&mut plan.commands);
        plan
    }

    /// The page commands, in the order of the launch.
    pub fn commands(&self) -> &[PageCommand<'a>] {
        &self.commands
    }

    /// How many pages the TDX module has to add.
    pub fn pages(&self) -> u64 {
        let bytes = self.commands.iter().fold(0u64, |sum, command| sum.saturating_add(command.len));
        bytes.div_ceil(PAGE_SIZE as u64)
    }

    /// MRTD of a launch in this order.
    pub fn mrtd(&self, order: PageOrder) -> Mrtd {
        self.walk(order, |_| ())
    }

    /// Calls `step` after each command; returns MRTD.
    pub fn walk(&self, order: PageOrder, mut step: impl FnMut(MeasuredRange<'_>)) -> Mrtd {
        let mut mrtd = MrtdBuilder::default();
        for command in &self.commands {
            mrtd.range(order, command.gpa, command.len, command.measured_bytes());
            step(MeasuredRange { command, mrtd: mrtd.value() });
        }
        mrtd.value()
    }
}

fn command<'a>(section: &Section<'a>) -> PageCommand<'a> {
    let contents = match section.kind {
        SectionKind::Bfv | SectionKind::Cfv => Contents::Bytes(Cow::Borrowed(section.data)),
        SectionKind::TdHob => Contents::Executor,
        SectionKind::TempMem | SectionKind::PermMem => Contents::Zeros,
    };
    let &Section { kind, gpa, len, measured, .. } = section;
    PageCommand { kind, gpa, len, contents, measured }
}

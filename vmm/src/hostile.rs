//! What a malicious host would do. For tests of the defence only: nothing here is active unless a hidden flag asks
//! for it, and then the guest is expected to notice and end itself.

mod planted;

pub use planted::plant;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_ioctls::VmFd;

use crate::config::Kernel;
use crate::memory::Converter;

/// An attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Hostile {
    /// Swap validated private pages for fresh ones, once Linux runs.
    RamRemap,
    /// Declare private pages shared, kernel code among them, once Linux runs; and insist on it.
    SharedCode,
    /// Hand the guest a CPUID page that contradicts itself.
    CpuidPage,
    /// Measure the given kernel and hand out another one.
    Kernel,
    /// Measure the given initrd and hand out another one.
    Initrd,
    /// Measure the given command line and hand out another one.
    Cmdline,
    /// Fill the pages of a TD that its launch adds without measuring them.
    LaunchMemory,
    /// Fill the interrupt vectors, and inject an NMI into the parked processor once the firmware has verified everything.
    ApNmi,
    /// The same, with the second processor kept back until Linux runs on the first.
    LateApStart,
    /// Fill all memory below 1 MiB with a table that Linux looks for.
    StalePage,
}

/// When an attack on a running guest happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The firmware has verified what it was given, and says so.
    Verified,
    /// Linux's drivers are at work.
    Linux,
}

/// A wakeup command for the first application processor (ACPI 6.4, 5.2.12.19), which sends it to such bytes.
const WAKEUP: [u8; 16] = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0x88, 6, 0, 0, 0, 0, 0];

impl Hostile {
    /// What the pages hold that the firmware wants zeroed and nobody measures.
    pub fn unmeasured(this: Option<Self>, len: u64) -> Vec<u8> {
        match this {
            Some(Self::LaunchMemory) => {
                eprintln!("cloister: HOSTILE: {len:#x} bytes of launch memory are not zeros");
                WAKEUP.into_iter().cycle().take(len as usize).collect()
            }
            _ => Vec::new(),
        }
    }

    /// What the firmware is handed instead of what was measured.
    pub fn swap(self, kernel: &Kernel) -> Kernel {
        let Kernel { mut image, mut initrd, mut cmdline } = kernel.clone();
        let flip = |bytes: &mut [u8]| bytes.last_mut().into_iter().for_each(|byte| *byte ^= 1);
        match self {
            Self::Kernel => flip(&mut image),
            Self::Initrd => flip(initrd.as_deref_mut().unwrap_or_default()),
            Self::Cmdline => cmdline.push_str(" cloister.console=verbose"),
            _ => {}
        }
        Kernel { image, initrd, cmdline }
    }

    /// How many of the launched processors the firmware, and so Linux, is told of.
    pub fn told_cpus(self, launched: u32) -> u32 {
        if self == Self::LateApStart { 1 } else { launched }
    }

    /// When it happens, if it is an attack on a running guest.
    fn moment(self) -> Option<Moment> {
        match self {
            Self::ApNmi => Some(Moment::Verified),
            Self::RamRemap | Self::SharedCode | Self::LateApStart => Some(Moment::Linux),
            _ => None,
        }
    }
}

/// Pages are swapped in steps of this size.
const STEP: u64 = 2 << 20;

/// An attack on a running guest, launched once.
pub struct Attack {
    kind: Hostile,
    moment: Moment,
    converter: Arc<Converter>,
    vm: Arc<VmFd>,
    done: AtomicBool,
}

impl Attack {
    /// Prepares `kind`, if it is an attack on a running guest.
    pub fn prepare(
        kind: Option<Hostile>,
        vm: &Arc<VmFd>,
        converter: Option<&Arc<Converter>>,
    ) -> Option<Self> {
        let (kind, moment) = kind.and_then(|kind| Some((kind, kind.moment()?)))?;
        let (vm, converter) = (vm.clone(), converter?.clone());
        Some(Self { kind, moment, converter, vm, done: AtomicBool::new(false) })
    }

    /// Attacks, the first time that the moment has come.
    pub fn strike(&self, moment: Moment) {
        if moment != self.moment || self.done.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(ram) = self.converter.slots().first().map(|slot| slot.range.clone()) else { return };
        let result = match self.kind {
            Hostile::ApNmi | Hostile::LateApStart => {
                eprintln!("cloister: HOSTILE: starting the second processor as it was launched, with an NMI");
                planted::start_and_interrupt(&self.vm).map_err(|error| error.to_string())
            }
            Hostile::RamRemap => {
                let range = free_memory(&ram);
                eprintln!(
                    "cloister: HOSTILE: swapping the guest's pages at {:#x}..{:#x}",
                    range.start, range.end
                );
                // They come back from guest_memfd as other pages, which the RMP does not know as validated.
                let mut steps = range.step_by(STEP as usize).map(|at| at..at + STEP);
                steps
                    .try_for_each(|step| self.converter.discard_private(&step))
                    .map_err(|error| error.to_string())
            }
            Hostile::SharedCode => {
                eprintln!("cloister: HOSTILE: declaring the guest's private pages shared");
                self.converter.set_attributes(&ram, false).map_err(|error| error.to_string())
            }
            _ => Ok(()),
        };
        if let Err(error) = result {
            eprintln!("cloister: HOSTILE: failed: {error}");
        }
    }

    /// Whether this host refuses to make a page private again that the guest accesses as private.
    pub fn insists_on_shared(&self) -> bool {
        self.kind == Hostile::SharedCode && self.done.load(Ordering::Acquire)
    }
}

/// Memory that Linux will use, without what it needs to say that something is wrong: its image is low, its
/// per-CPU areas and page tables are at the top.
fn free_memory(ram: &Range<u64>) -> Range<u64> {
    let at = |eighths: u64| (ram.start + (ram.end - ram.start) / 8 * eighths) / STEP * STEP;
    at(3)..at(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_input_is_swapped() {
        let good = Kernel { image: vec![1, 2], initrd: Some(vec![3, 4]), cmdline: "quiet".into() };
        for (hostile, changed) in [
            (Hostile::Kernel, [true, false, false]),
            (Hostile::Initrd, [false, true, false]),
            (Hostile::Cmdline, [false, false, true]),
            (Hostile::RamRemap, [false; 3]),
        ] {
            let bad = hostile.swap(&good);
            let differs = [bad.image != good.image, bad.initrd != good.initrd, bad.cmdline != good.cmdline];
            assert_eq!(differs, changed, "{hostile:?}");
        }
    }

    #[test]
    fn unmeasured_memory_is_filled_whole_by_one_attack_and_by_no_other() {
        let filled = Hostile::unmeasured(Some(Hostile::LaunchMemory), 0x5000);
        assert!(filled.len() == 0x5000 && filled.chunks(16).all(|chunk| chunk == WAKEUP));
        for other in [None, Some(Hostile::CpuidPage), Some(Hostile::RamRemap)] {
            assert!(Hostile::unmeasured(other, 0x5000).is_empty(), "{other:?}");
        }
    }

    #[test]
    fn swapped_memory_is_whole_steps_inside_of_ram() {
        for mib in [64, 512, 3 << 10] {
            let range = free_memory(&(0..mib << 20));
            assert!(range.start.is_multiple_of(STEP) && range.end.is_multiple_of(STEP));
            assert!(range.start > 16 << 20 && range.end < mib << 20 && !range.is_empty());
        }
    }
}

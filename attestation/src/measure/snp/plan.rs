//! The launch as an ordered list of page commands.

use alloc::borrow::Cow;
use alloc::vec::Vec;

use super::cpu::VcpuModel;
use super::digest::{DigestChain, LaunchDigest};
use super::rom::{Rom, Section, SectionKind};
use super::vmsa::{VmmFlavour, Vmsa};
use crate::measure::{Contents, Gpa, KernelHashTableError, KernelHashes, PAGE_SIZE};

/// PAGE_TYPE of SNP_LAUNCH_UPDATE (SEV-SNP firmware ABI 56860, 8.17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum PageType {
    /// Contents and address are measured.
    Normal,
    /// A VMSA; KVM adds these itself at SNP_LAUNCH_FINISH.
    Vmsa,
    /// Zeroed by the secure processor; the address is measured.
    Zero,
    /// Encrypted in place; only the address is measured.
    Unmeasured,
    /// Filled by the secure processor.
    Secrets,
    /// Given by the host and checked by the secure processor.
    Cpuid,
}

impl PageType {
    /// The value on the wire.
    pub const fn wire(self) -> u8 {
        match self {
            Self::Normal => 1,
            Self::Vmsa => 2,
            Self::Zero => 3,
            Self::Unmeasured => 4,
            Self::Secrets => 5,
            Self::Cpuid => 6,
        }
    }
}

/// One SNP_LAUNCH_UPDATE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageCommand<'a> {
    /// First byte of the range; page aligned.
    pub gpa: Gpa,
    /// Bytes of the range; whole pages.
    pub len: u64,
    /// How the secure processor treats the pages.
    pub page_type: PageType,
    /// What they hold.
    pub contents: Contents<'a>,
}

impl PageCommand<'_> {
    /// Adds its pages to the chain; returns the digests of their contents where these are measured.
    fn extend(&self, chain: &mut DigestChain) -> Vec<[u8; 48]> {
        match &self.contents {
            Contents::Bytes(bytes) => chain.pages(self.page_type, self.gpa, bytes),
            Contents::Zeros | Contents::Executor => {
                chain.pages_without_contents(self.page_type, self.gpa, self.len);
                Vec::new()
            }
        }
    }
}

/// Everything that decides a launch digest.
#[derive(Clone, Debug)]
pub struct LaunchInputs<'a> {
    /// The firmware.
    pub rom: &'a Rom<'a>,
    /// Hashes of what the firmware will load, if it is to load anything.
    pub kernel: Option<KernelHashes>,
    /// How many processors.
    pub vcpus: u32,
    /// Their CPUID signature.
    pub cpu: VcpuModel,
    /// SEV_FEATURES of the VMSAs; bit 0 is SNP itself.
    pub sev_features: u64,
    /// Whose launch it is.
    pub flavour: VmmFlavour,
}

impl LaunchInputs<'_> {
    /// The VMSA of the boot processor.
    pub(super) fn bsp(&self) -> Vmsa {
        Vmsa::at_reset(self.flavour, Vmsa::RESET_VECTOR, self.cpu, self.sev_features)
    }

    /// The VMSA of each other processor, if the firmware says where these start.
    pub(super) fn ap(&self) -> Option<Vmsa> {
        Some(Vmsa::at_reset(self.flavour, self.rom.ap_reset_eip()?, self.cpu, self.sev_features))
    }
}

/// Why no plan can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The ROM was not made for SNP.
    #[error("the ROM carries no SEV metadata, so it cannot start an SNP guest")]
    NoMetadata,
    /// Secrets and CPUID are one page each.
    #[error("the ROM's {kind:?} section at {gpa} has {len:#x} bytes instead of one page")]
    NotOnePage {
        /// Which section.
        kind: SectionKind,
        /// Where.
        gpa: Gpa,
        /// Its length in bytes.
        len: u64,
    },
    /// A kernel needs a measured place for its hashes.
    #[error("a kernel was given, but the ROM has no section for kernel hashes")]
    NoKernelHashSection,
    /// The ROM places the table elsewhere than its section.
    #[error("the ROM places its kernel hash table at {table}, outside of the section at {section}")]
    KernelHashesOutside {
        /// Where the table is to be.
        table: Gpa,
        /// Where the section is.
        section: Gpa,
    },
    /// The table does not fit.
    #[error(transparent)]
    KernelHashes(#[from] KernelHashTableError),
    /// There is nobody to run.
    #[error("a guest needs at least one vCPU")]
    NoVcpus,
    /// Where would the others start?
    #[error("the ROM has no SEV-ES reset block, so it supports one vCPU only")]
    NoResetBlock,
}

/// A launch: page commands in order, then the VMSAs that KVM makes of the reset state.
#[derive(Clone, Debug)]
pub struct LaunchPlan<'a> {
    commands: Vec<PageCommand<'a>>,
    vmsas: Vec<Vmsa>,
}

impl core::fmt::Debug for Vmsa {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Vmsa").field("cs", &self.cs).field("rip", &self.rip.get()).finish_non_exhaustive()
    }
}

impl<'a> LaunchPlan<'a> {
    /// Plans the launch of `inputs`.
    pub fn new(inputs: &LaunchInputs<'a>) -> Result<Self, PlanError> {
        let rom = inputs.rom;
        let sections = rom.sections();
        if sections.is_empty() {
            return Err(PlanError::NoMetadata);
        }
        if inputs.kernel.is_some() && !sections.iter().any(|s| s.kind == SectionKind::KernelHashes) {
            return Err(PlanError::NoKernelHashSection);
        }
        let mut commands = Vec::new();
        commands.push(PageCommand {
            gpa: rom.gpa(),
            len: rom.bytes().len() as u64,
            page_type: PageType::Normal,
            contents: Contents::Bytes(Cow::Borrowed(rom.bytes())),
        });
        // EC2 adds the CPUID page after everything else.
        let late = |s: &&Section| inputs.flavour == VmmFlavour::Ec2 && s.kind == SectionKind::Cpuid;
        let in_order = sections.iter().filter(|s| !late(s)).chain(sections.iter().filter(late));
        for section in in_order {
            commands.push(command(inputs, section)?);
        }
        Ok(Self { commands, vmsas: vmsas(inputs)? })
    }

    /// The page commands, in the order of the launch.
    pub fn commands(&self) -> &[PageCommand<'a>] {
        &self.commands
    }

    /// One VMSA per vCPU, in the order of their indices.
    pub fn vmsas(&self) -> &[Vmsa] {
        &self.vmsas
    }

    /// How many pages the secure processor has to add, VMSAs included.
    pub fn pages(&self) -> u64 {
        let bytes = self.commands.iter().fold(0u64, |sum, command| sum.saturating_add(command.len));
        bytes.div_ceil(PAGE_SIZE as u64).saturating_add(self.vmsas.len() as u64)
    }

    /// The chain after the page commands.
    pub(super) fn chain_before_vmsas(&self) -> DigestChain {
        let mut chain = DigestChain::default();
        self.commands.iter().for_each(|command| drop(command.extend(&mut chain)));
        chain
    }

    /// The launch digest.
    pub fn digest(&self) -> LaunchDigest {
        self.walk(|_| ())
    }

    /// The launch digests of this launch with one vCPU, with two, and so on up to all: the VMSAs are the end of the chain.
    pub fn digests(&self) -> Vec<LaunchDigest> {
        let mut chain = self.chain_before_vmsas();
        let mut digests = Vec::new();
        for (_, contents) in self.vmsas_with_digests() {
            chain.page_with_digest(PageType::Vmsa, Vmsa::GPA, contents);
            digests.push(chain.value());
        }
        digests
    }

    /// The VMSAs, each with [`DigestChain::contents`] of it. Those of application processors are all the same.
    fn vmsas_with_digests(&self) -> impl Iterator<Item = (&Vmsa, [u8; 48])> {
        self.vmsas.iter().scan(None, |previous: &mut Option<(&Vmsa, [u8; 48])>, vmsa| {
            let same = previous.filter(|(previous, _)| previous.as_page() == vmsa.as_page());
            let digest = same.map_or_else(|| DigestChain::contents(vmsa.as_page()), |(_, digest)| digest);
            *previous = Some((vmsa, digest));
            *previous
        })
    }

    /// Calls `step` for each command and VMSA, in order; returns the launch digest.
    pub fn walk(&self, mut step: impl FnMut(MeasuredRange<'_>)) -> LaunchDigest {
        let mut chain = DigestChain::default();
        for command in &self.commands {
            let page_digests = &command.extend(&mut chain)[..];
            let &PageCommand { gpa, len, page_type, ref contents } = command;
            let contents = match contents {
                Contents::Bytes(bytes) => Some(&**bytes),
                Contents::Zeros | Contents::Executor => None,
            };
            step(MeasuredRange { gpa, len, page_type, contents, page_digests, digest: chain.value() });
        }
        for (vmsa, digest) in self.vmsas_with_digests() {
            let (gpa, len, page_type) = (Vmsa::GPA, PAGE_SIZE as u64, PageType::Vmsa);
            chain.page_with_digest(page_type, gpa, digest);
            let (contents, page_digests) = (Some(vmsa.as_page()), &[digest][..]);
            step(MeasuredRange { gpa, len, page_type, contents, page_digests, digest: chain.value() });
        }
        chain.value()
    }
}

/// A step of [`LaunchPlan::walk`].
#[derive(Clone, Copy, Debug)]
pub struct MeasuredRange<'a> {
    /// First byte of the range.
    pub gpa: Gpa,
    /// Its bytes.
    pub len: u64,
    /// How it is measured.
    pub page_type: PageType,
    /// What is measured of it besides its address.
    pub contents: Option<&'a [u8]>,
    /// SHA-384 of each page of that.
    pub page_digests: &'a [[u8; 48]],
    /// The launch digest after it.
    pub digest: LaunchDigest,
}

fn command<'a>(inputs: &LaunchInputs<'a>, section: &Section) -> Result<PageCommand<'a>, PlanError> {
    let &Section { gpa, len, kind } = section;
    let one_page = || match len == PAGE_SIZE as u64 {
        true => Ok(()),
        false => Err(PlanError::NotOnePage { kind, gpa, len }),
    };
    let (page_type, contents) = match (kind, &inputs.kernel) {
        (SectionKind::SecMem, _) if inputs.flavour == VmmFlavour::Gce => {
            (PageType::Unmeasured, Contents::Zeros)
        }
        (SectionKind::SecMem | SectionKind::SvsmCaa, _) | (SectionKind::KernelHashes, None) => {
            (PageType::Zero, Contents::Zeros)
        }
        (SectionKind::Secrets, _) => (PageType::Secrets, Contents::Executor),
        (SectionKind::Cpuid, _) => (PageType::Cpuid, Contents::Executor),
        (SectionKind::KernelHashes, Some(hashes)) => {
            let table = inputs.rom.kernel_hash_area().ok_or(PlanError::NoKernelHashSection)?;
            let offset = table.0.checked_sub(gpa.0).filter(|&offset| offset < len);
            let offset = offset.ok_or(PlanError::KernelHashesOutside { table, section: gpa })?;
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            (PageType::Normal, Contents::Bytes(Cow::Owned(hashes.to_page(offset)?.to_vec())))
        }
    };
    if !matches!(page_type, PageType::Zero | PageType::Unmeasured) {
        one_page()?;
    }
    Ok(PageCommand { gpa, len, page_type, contents })
}

fn vmsas(inputs: &LaunchInputs<'_>) -> Result<Vec<Vmsa>, PlanError> {
    let others = inputs.vcpus.checked_sub(1).ok_or(PlanError::NoVcpus)?;
    let mut vmsas = Vec::from([inputs.bsp()]);
    if others > 0 {
        let ap = inputs.ap().ok_or(PlanError::NoResetBlock)?;
        vmsas.extend((0..others).map(|_| ap.clone()));
    }
    Ok(vmsas)
}

#[cfg(test)]
mod tests {
    use super::super::rom::tests::rom_with;
    use super::*;

    fn plan(sections: &[[u32; 3]], kernel: bool, vcpus: u32) -> Result<Vec<(u64, u64, PageType)>, PlanError> {
        let bytes = rom_with(sections);
        let rom = Rom::parse(&bytes).unwrap();
        let inputs = LaunchInputs {
            rom: &rom,
            kernel: kernel.then(|| KernelHashes::of(b"kernel", None, "")),
            vcpus,
            cpu: VcpuModel(0xa00f11),
            sev_features: 1,
            flavour: VmmFlavour::Cloister,
        };
        let plan = LaunchPlan::new(&inputs)?;
        Ok(plan.commands().iter().map(|c| (c.gpa.0, c.len, c.page_type)).collect())
    }

    #[test]
    fn a_launch_is_the_rom_then_its_sections_in_file_order() {
        let sections =
            [[0x10000, 0x1000, 0x10], [0xf000, 0x1000, 3], [0x2000, 0x1000, 2], [0x3000, 0x5000, 1]];
        let expected = [
            (0xffff_f000, 0x1000, PageType::Normal),
            (0x10000, 0x1000, PageType::Normal),
            (0xf000, 0x1000, PageType::Cpuid),
            (0x2000, 0x1000, PageType::Secrets),
            (0x3000, 0x5000, PageType::Zero),
        ];
        assert_eq!(plan(&sections, true, 1).unwrap(), expected);
        assert_eq!(plan(&sections, false, 1).unwrap()[1].2, PageType::Zero);
    }

    #[test]
    fn each_number_of_vcpus_has_the_digest_of_its_own_launch() {
        let bytes = rom_with(&[[0x2000, 0x1000, 2]]);
        let rom = Rom::parse(&bytes).unwrap();
        let launch = |vcpus| {
            let cpu = VcpuModel(0xa00f11);
            let flavour = VmmFlavour::Gce;
            LaunchPlan::new(&LaunchInputs { rom: &rom, kernel: None, vcpus, cpu, sev_features: 1, flavour })
        };
        let digests = launch(5).unwrap().digests();
        assert_eq!(digests.len(), 5);
        for (vcpus, digest) in (1..).zip(digests) {
            assert_eq!(launch(vcpus).unwrap().digest(), digest, "{vcpus} vCPUs");
        }
    }

    #[test]
    fn launches_that_cannot_work_are_refused() {
        let hashes = [0x10000, 0x1000, 0x10];
        let page = Gpa(0x2000);
        let two_pages = |kind| PlanError::NotOnePage { kind, gpa: page, len: 0x2000 };
        let outside = PlanError::KernelHashesOutside { table: Gpa(0x10c00), section: Gpa(0x20000) };
        for (sections, kernel, vcpus, error) in [
            (&[][..], false, 1, PlanError::NoMetadata),
            (&[[0x2000, 0x1000, 1]], true, 1, PlanError::NoKernelHashSection),
            (&[[0x2000, 0x2000, 2]], false, 1, two_pages(SectionKind::Secrets)),
            (&[[0x2000, 0x2000, 3]], false, 1, two_pages(SectionKind::Cpuid)),
            (&[[0x20000, 0x1000, 0x10]], true, 1, outside),
            (&[hashes], true, 0, PlanError::NoVcpus),
        ] {
            assert_eq!(plan(sections, kernel, vcpus), Err(error));
        }
    }
}

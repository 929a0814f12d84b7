//! The launch: KVM_SEV_INIT2, then SNP_LAUNCH_START, UPDATE and FINISH, in that order, with the checks of KVM and of the
//! SNP firmware ABI (AMD 56860, chapters "SNP_LAUNCH_*").

use sha2::{Digest, Sha384};

use super::page::{Page, ZERO, put};
use super::rmp::Entry;
use super::{FEATURE_SNP_ACTIVE, VMSA_FEATURES_SUPPORTED, vmsa};
use crate::machine::vcpu::Vcpu;
use crate::machine::vm::Vm;
use crate::uapi::errno::Errno;

/// Firmware status codes (psp-sev.h's sev_ret_code, AMD 56860 table "Status Codes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the specification's names")]
pub enum Firmware {
    InvalidGuestState = 2,
    InvalidLength = 4,
    PolicyFailure = 7,
    BadSignature = 10,
    BadMeasurement = 11,
    InvalidParam = 22,
}

/// Why a command failed: an errno, and the firmware's status if it was the firmware that refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The ioctl's errno.
    pub errno: Errno,
    /// kvm_sev_cmd.error.
    pub firmware: u32,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno, firmware: 0 }
    }
}

impl From<Firmware> for Refusal {
    fn from(code: Firmware) -> Self {
        Self { errno: Errno::EIO, firmware: code as u32 }
    }
}

impl Refusal {
    /// Whatever goes wrong while KVM populates a page is EIO for the client (kvm_gmem_populate's caller).
    pub fn while_populating(self) -> Self {
        Self { errno: Errno::EIO, ..self }
    }
}

/// Guest policy bits (AMD 56860, table "Guest Policy").
pub mod policy {
    pub const SMT: u64 = 1 << 16;
    pub const RESERVED_ONE: u64 = 1 << 17;
    pub const DEBUG: u64 = 1 << 19;
    pub const SINGLE_SOCKET: u64 = 1 << 20;
    /// Bits that KVM passes on.
    pub const KNOWN: u64 = 0xffff | SMT | RESERVED_ONE | DEBUG | SINGLE_SOCKET;
}

/// Page types (AMD 56860, SNP_LAUNCH_UPDATE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the specification's names")]
pub enum PageType {
    Normal = 1,
    Vmsa = 2,
    Zero = 3,
    Unmeasured = 4,
    Secrets = 5,
    Cpuid = 6,
}

impl PageType {
    /// The types that KVM lets a client use.
    pub fn from_client(raw: u8) -> Option<Self> {
        [Self::Normal, Self::Zero, Self::Unmeasured, Self::Secrets, Self::Cpuid]
            .into_iter()
            .find(|t| *t as u8 == raw)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    New,
    Initialised,
    Started,
    Running,
}

/// The guest context: what the secure processor knows of a guest.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    state: State,
    /// SEV_FEATURES of every VMSA.
    pub sev_features: u64,
    /// Guest policy.
    pub policy: u64,
    /// Guest OS visible workarounds.
    pub gosvw: [u8; 16],
    /// Launch digest so far, in the end MEASUREMENT.
    pub digest: LaunchDigest,
    /// What the finished launch fixed.
    pub identity: Identity,
    /// VM platform communication keys 0 to 3.
    pub vmpcks: [[u8; 32]; 4],
    /// REPORT_ID.
    pub report_id: [u8; 32],
    /// Message counters of the four keys: the last sequence number seen.
    pub sequence: [u64; 4],
}

/// What LAUNCH_FINISH binds to the guest besides its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub host_data: [u8; 32],
    pub family_id: [u8; 16],
    pub image_id: [u8; 16],
    pub guest_svn: u32,
    pub id_key_digest: [u8; 48],
    pub author_key_digest: [u8; 48],
    pub author_key: bool,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            host_data: [0; 32],
            family_id: [0; 16],
            image_id: [0; 16],
            guest_svn: 0,
            id_key_digest: [0; 48],
            author_key_digest: [0; 48],
            author_key: false,
        }
    }
}

/// The launch digest (AMD 56860, "Launch Digest"): a chain of SHA-384 over PAGE_INFO structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchDigest(pub [u8; 48]);

impl Default for LaunchDigest {
    fn default() -> Self {
        Self([0; 48])
    }
}

impl LaunchDigest {
    /// Adds a page. Only NORMAL and VMSA pages contribute their contents.
    pub fn extend(&mut self, kind: PageType, gpa: u64, contents: &Page) {
        let mut info = [0u8; 112];
        put(&mut info, 0, &self.0);
        if matches!(kind, PageType::Normal | PageType::Vmsa) {
            put(&mut info, 48, &Sha384::digest(contents));
        }
        put(&mut info, 96, &112u16.to_le_bytes());
        put(&mut info, 98, &[kind as u8]);
        // IMI_PAGE, VMPL3..1 permissions, reserved: zero.
        put(&mut info, 104, &gpa.to_le_bytes());
        self.0 = Sha384::digest(info).into();
    }
}

/// Where save areas are measured.
const VMSA_GPA: u64 = 0xffff_ffff_f000;

impl Launch {
    /// KVM_SEV_INIT2 is done.
    pub fn initialised(&self) -> bool {
        self.state != State::New
    }

    /// Has the guest been finalised?
    pub fn running(&self) -> bool {
        self.state == State::Running
    }

    /// KVM_SEV_INIT2.
    pub fn init2(&mut self, vm: &Vm, features: u64, flags: u32, ghcb_version: u16) -> Result<(), Refusal> {
        if self.state != State::New || !vm.vcpus().is_empty() || flags != 0 {
            return Err(Errno::EINVAL.into());
        }
        if features & !VMSA_FEATURES_SUPPORTED != 0 || ghcb_version > 2 || ghcb_version == 1 {
            return Err(Errno::EINVAL.into());
        }
        self.sev_features = features | FEATURE_SNP_ACTIVE;
        self.state = State::Initialised;
        Ok(())
    }

    /// SNP_LAUNCH_START.
    pub fn start(&mut self, policy: u64, gosvw: [u8; 16], flags: u16) -> Result<(), Refusal> {
        let required = policy::RESERVED_ONE | policy::SMT;
        let bad_policy = policy & !policy::KNOWN != 0
            || policy & required != required
            || policy & policy::SINGLE_SOCKET != 0;
        if self.state == State::New {
            return Err(Errno::ENOTTY.into());
        }
        if self.state != State::Initialised || flags != 0 || bad_policy {
            return Err(Errno::EINVAL.into());
        }
        // The firmware refuses a guest that demands a newer ABI than its own.
        if policy & 0xffff
            > (u64::from(super::request::ABI_MAJOR) << 8 | u64::from(super::request::ABI_MINOR))
        {
            return Err(Firmware::PolicyFailure.into());
        }
        self.policy = policy;
        self.gosvw = gosvw;
        self.vmpcks = std::array::from_fn(|_| crate::platform::random());
        self.report_id = crate::platform::random();
        self.state = State::Started;
        Ok(())
    }

    /// SNP_LAUNCH_UPDATE of one page that the caller found to be private and not yet assigned. `Err` may carry the page
    /// as the firmware would have it (CPUID).
    pub fn update(
        &mut self,
        gpa: u64,
        kind: PageType,
        contents: &Page,
    ) -> Result<Page, (Refusal, Option<Box<Page>>)> {
        self.takes_pages().map_err(|refusal| (refusal, None))?;
        let page = match kind {
            PageType::Zero => ZERO,
            PageType::Secrets => self.secrets_page(),
            PageType::Cpuid => match super::request::check_cpuid_page(contents) {
                Ok(()) => *contents,
                Err(corrected) => return Err((Firmware::InvalidParam.into(), Some(corrected))),
            },
            _ => *contents,
        };
        self.digest.extend(kind, gpa, &page);
        Ok(page)
    }

    /// KVM asks only whether the secure processor has a context for the guest.
    pub fn has_context(&self) -> Result<(), Refusal> {
        if matches!(self.state, State::Started | State::Running) { Ok(()) } else { Err(Errno::EINVAL.into()) }
    }

    /// Does the secure processor hold a context of this guest?
    pub fn is_known(&self) -> bool {
        self.has_context().is_ok()
    }

    /// The secure processor adds pages to a guest that is not running yet.
    fn takes_pages(&self) -> Result<(), Refusal> {
        self.has_context()?;
        if self.state == State::Started { Ok(()) } else { Err(Firmware::InvalidGuestState.into()) }
    }

    /// The secrets page (linux: struct snp_secrets_page; AMD 56860, "Secrets Page Format").
    fn secrets_page(&self) -> Page {
        let mut page = ZERO;
        put(&mut page, 0x00, &3u32.to_le_bytes());
        put(&mut page, 0x08, &crate::uapi::cpuid::SIGNATURE.to_le_bytes());
        put(&mut page, 0x10, &self.gosvw);
        for (i, key) in self.vmpcks.iter().enumerate() {
            put(&mut page, 0x20 + 32 * i, key);
        }
        page
    }

    /// SNP_LAUNCH_FINISH: measures every vCPU's save area, checks the ID block, and hands the registers to the guest.
    pub fn finish(&mut self, vcpus: &[std::sync::Arc<Vcpu>], finish: &Finish) -> Result<(), Refusal> {
        if self.state == State::New {
            return Err(Errno::ENOTTY.into());
        }
        self.has_context()?;
        if finish.flags != 0 {
            return Err(Errno::EINVAL.into());
        }
        self.takes_pages()?;
        // vCPUs are measured in the order of their creation, as KVM's iteration has it.
        let mut digest = self.digest;
        for vcpu in vcpus {
            let mut inner = vcpu.lock();
            as_kvm_saves(&mut inner.cpu.state);
            inner.cpu.state_changed();
            digest.extend(PageType::Vmsa, VMSA_GPA, &vmsa::store(&inner.cpu.state, self.sev_features));
        }
        let mut identity = Identity { host_data: finish.host_data, ..Identity::default() };
        if let Some((block, auth)) = &finish.id {
            super::request::check_id(block, auth, finish.author_key, &digest, self.policy, &mut identity)?;
        }
        self.digest = digest;
        self.identity = identity;
        self.state = State::Running;
        for vcpu in vcpus {
            let mut inner = vcpu.lock();
            inner.ctx.state_protected = true;
            inner.ctx.snp.sev_features = self.sev_features;
            inner.ctx.snp.vmpl = 0;
        }
        Ok(())
    }
}

/// What KVM's VMCB holds instead of the registers that user space set: caching is on (KVM_X86_QUIRK_CD_NW_CLEARED) and
/// machine checks are the host's (svm_set_cr4). The measurement covers these values, so they are part of the ABI.
fn as_kvm_saves(state: &mut softkvm_cpu::CpuState) {
    const CR0_CD_NW: u64 = 3 << 29;
    const CR4_MCE: u64 = 1 << 6;
    state.cr0 &= !CR0_CD_NW;
    state.cr4 |= CR4_MCE;
}

/// Arguments of LAUNCH_FINISH.
#[derive(Clone, Debug)]
pub struct Finish {
    /// ID block and ID authentication page.
    pub id: Option<([u8; 96], Box<Page>)>,
    /// The author key in the authentication page counts.
    pub author_key: bool,
    /// HOST_DATA.
    pub host_data: [u8; 32],
    /// Must be zero.
    pub flags: u16,
}

/// The RMP entry of a launch page: it is already validated.
pub fn launch_entry(gpa: u64) -> Entry {
    Entry::assigned_to(gpa / 4096, false).with_validated(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_out_of_order_are_refused() {
        let vm = Vm::new(crate::machine::vm::VmType::Snp);
        let mut launch = Launch::default();
        let einval = Refusal::from(Errno::EINVAL);
        let running = Refusal::from(Firmware::InvalidGuestState);
        let finish = Finish { id: None, author_key: false, host_data: [0; 32], flags: 0 };
        assert_eq!(launch.start(0x30000, [0; 16], 0), Err(Errno::ENOTTY.into()), "START before INIT2");
        assert_eq!(launch.finish(&[], &finish), Err(Errno::ENOTTY.into()), "FINISH before INIT2");
        assert_eq!(
            launch.update(0, PageType::Zero, &ZERO).map_err(|e| e.0),
            Err(einval),
            "UPDATE before START"
        );
        assert_eq!(launch.init2(&vm, 0, 0, 2), Ok(()));
        assert_eq!(launch.init2(&vm, 0, 0, 2), Err(einval), "INIT2 twice");
        assert_eq!(launch.start(0x30000, [0; 16], 0), Ok(()));
        assert_eq!(launch.start(0x30000, [0; 16], 0), Err(einval), "START twice");
        assert_eq!(launch.finish(&[], &finish), Ok(()));
        assert_eq!(launch.finish(&[], &finish), Err(running), "FINISH twice");
        assert_eq!(
            launch.update(0, PageType::Zero, &ZERO).map_err(|e| e.0),
            Err(running),
            "UPDATE after FINISH"
        );
    }

    #[test]
    fn policies_that_kvm_does_not_pass_on_are_refused() {
        let cases = [
            ("bit 17 clear", 0x1_0000),
            ("SMT not allowed", 0x2_0000),
            ("single socket", 0x13_0000),
            ("MIGRATE_MA", 0x7_0000),
            ("unknown bit", 1 << 40 | 0x3_0000),
        ];
        for (what, policy) in cases {
            let mut launch = Launch { state: State::Initialised, ..Launch::default() };
            assert_eq!(launch.start(policy, [0; 16], 0), Err(Errno::EINVAL.into()), "{what}");
        }
        let mut launch = Launch { state: State::Initialised, ..Launch::default() };
        assert_eq!(
            launch.start(0x3_ffff, [0; 16], 0),
            Err(Firmware::PolicyFailure.into()),
            "ABI from the future"
        );
    }
}

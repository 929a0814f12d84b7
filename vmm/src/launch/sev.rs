//! The secure processor's commands, through KVM_MEMORY_ENCRYPT_OP and `/dev/sev`.

use std::fs::File;
use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_X86_GRP_SEV, KVM_X86_SEV_VMSA_FEATURES, kvm_device_attr, kvm_sev_cmd};
use kvm_ioctls::{Kvm, VmFd};

/// Why a command was refused: by the kernel, or by the secure processor behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{command} was refused: {} (errno {errno})", describe(*.firmware, *.errno))]
pub struct SevError {
    /// The command.
    pub command: &'static str,
    /// The ioctl's errno.
    pub errno: i32,
    /// The secure processor's status; 0 where it was not asked.
    pub firmware: u32,
}

/// Status codes (SEV-SNP firmware ABI 56860, "Status Codes"; Linux `uapi/linux/psp-sev.h`).
const STATUS: &[(u32, &str)] = &[
    (0x01, "INVALID_PLATFORM_STATE: the platform is in the wrong state"),
    (0x02, "INVALID_GUEST_STATE: the guest is in the wrong state"),
    (0x03, "INVALID_CONFIG: the platform's configuration does not allow it"),
    (0x04, "INVALID_LEN: a buffer is too small"),
    (0x05, "ALREADY_OWNED: the platform is owned already"),
    (0x06, "INVALID_CERTIFICATE: a certificate is not valid"),
    (0x07, "POLICY_FAILURE: the guest policy does not allow it on this platform"),
    (0x08, "INACTIVE: the guest is not active"),
    (0x09, "INVALID_ADDRESS: an address is not valid"),
    (0x0a, "BAD_SIGNATURE: a signature does not verify"),
    (0x0b, "BAD_MEASUREMENT: the launch digest is not the expected one"),
    (0x0c, "ASID_OWNED: the ASID is in use"),
    (0x0d, "INVALID_ASID: no such ASID"),
    (0x0e, "WBINVD_REQUIRED: caches must be flushed first"),
    (0x0f, "DFFLUSH_REQUIRED: the data fabric must be flushed first"),
    (0x10, "INVALID_GUEST: no such guest"),
    (0x11, "INVALID_COMMAND: no such command"),
    (0x12, "ACTIVE: the guest is active"),
    (0x13, "HWSEV_RET_PLATFORM: a hardware error of the platform"),
    (0x14, "HWSEV_RET_UNSAFE: a hardware error of memory"),
    (0x15, "UNSUPPORTED: the platform does not support it"),
    (0x16, "INVALID_PARAM: a parameter is not valid"),
    (0x17, "RESOURCE_LIMIT: the platform has no more resources"),
    (0x18, "SECURE_DATA_INVALID: data failed its integrity check"),
    (0x19, "INVALID_PAGE_SIZE: a page has the wrong size in the RMP"),
    (0x1a, "INVALID_PAGE_STATE: a page is in the wrong state in the RMP"),
    (0x1b, "INVALID_MDATA_ENTRY: metadata does not match"),
    (0x1c, "INVALID_PAGE_OWNER: a page belongs to somebody else in the RMP"),
    (0x1d, "AEAD_OFLOW: a sequence number would overflow"),
    (0x1f, "RING_BUFFER_EXIT: the command buffer was left"),
    (0x20, "RMP_INIT_REQUIRED: the RMP is not initialised"),
    (0x21, "BAD_SVN: the security version is too low"),
    (0x22, "BAD_VERSION: the version is too low"),
    (0x23, "SHUTDOWN_REQUIRED: the platform must be shut down first"),
    (0x24, "UPDATE_FAILED: the firmware update failed"),
    (0x25, "RESTORE_REQUIRED: the firmware must be restored"),
    (0x26, "RMP_INITIALIZATION_FAILED: the RMP could not be initialised"),
    (0x27, "INVALID_KEY: the key is not valid"),
];

fn describe(firmware: u32, errno: i32) -> String {
    match STATUS.iter().find(|(code, _)| *code == firmware) {
        Some((code, words)) => format!("secure processor status {code:#x} {words}"),
        None if firmware != 0 => format!("secure processor status {firmware:#x}"),
        None => format!("kernel: {}", std::io::Error::from_raw_os_error(errno)),
    }
}

/// INVALID_PARAM: for a CPUID page, the corrected page is in the buffer.
pub const INVALID_PARAM: u32 = 0x16;

/// `_IOW(KVMIO, 0xe2, struct kvm_device_attr)`.
const KVM_GET_DEVICE_ATTR: u64 = 1 << 30 | (size_of::<kvm_device_attr>() as u64) << 16 | 0xae << 8 | 0xe2;

/// SEV_FEATURES that KVM_SEV_INIT2 takes, beside those that a kind of guest implies; none where KVM does not say.
pub fn vmsa_features(kvm: &Kvm) -> u64 {
    let mut features = 0_u64;
    let attribute = kvm_device_attr {
        group: KVM_X86_GRP_SEV,
        attr: u64::from(KVM_X86_SEV_VMSA_FEATURES),
        addr: (&raw mut features) as u64,
        ..Default::default()
    };
    // SAFETY: the attribute is what the ioctl takes, and its address that of the word which it writes.
    match unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_GET_DEVICE_ATTR, &raw const attribute) } {
        0 => features,
        _ => 0,
    }
}

/// The path of the secure processor's device.
pub const SEV_DEVICE: &str = "/dev/sev";

/// Issues command `id` with `data` for a VM.
///
/// # Safety
///
/// `data` is the structure that the command takes, and the addresses in it stay valid during the call.
pub unsafe fn command<T>(
    vm: &VmFd,
    device: &File,
    (id, name): (u32, &'static str),
    data: &mut T,
) -> Result<(), SevError> {
    let mut op = kvm_sev_cmd {
        id,
        data: std::ptr::from_mut(data) as u64,
        sev_fd: device.as_raw_fd() as u32,
        ..Default::default()
    };
    vm.encrypt_op_sev(&mut op).map_err(|errno| SevError {
        command: name,
        errno: errno.errno(),
        firmware: op.error,
    })
}

/// SNP_PLATFORM_STATUS's answer (SEV-SNP firmware ABI 56860, 8.3.2; Linux `struct sev_user_data_snp_status`).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, packed)]
#[allow(missing_docs)]
pub struct PlatformStatus {
    pub api_major: u8,
    pub api_minor: u8,
    pub state: u8,
    /// Bit 0: the RMP is initialised.
    pub rmp: u8,
    pub build: u32,
    /// Bit 0: chip identifier masked; 1: chip key masked; 2: VLEK loaded.
    pub flags: u32,
    pub guests: u32,
    pub current_tcb: u64,
    pub reported_tcb: u64,
}
const _: () = assert!(size_of::<PlatformStatus>() == 32);

/// `struct sev_issue_cmd`.
#[repr(C, packed)]
struct IssueCommand {
    cmd: u32,
    data: u64,
    error: u32,
}
const _: () = assert!(size_of::<IssueCommand>() == 16);

/// `_IOWR('S', 0, struct sev_issue_cmd)`.
const SEV_ISSUE_CMD: u64 = 3 << 30 | 16 << 16 | (b'S' as u64) << 8;
const SNP_PLATFORM_STATUS: u32 = 9;

/// Asks the secure processor how it is.
pub fn platform_status(device: &File) -> Result<PlatformStatus, SevError> {
    let mut status = PlatformStatus::default();
    let mut issue = IssueCommand { cmd: SNP_PLATFORM_STATUS, data: (&raw mut status) as u64, error: 0 };
    // SAFETY: `issue` is what SEV_ISSUE_CMD takes, and its data points to a buffer of the size that
    // SNP_PLATFORM_STATUS writes.
    match unsafe { libc::ioctl(device.as_raw_fd(), SEV_ISSUE_CMD, &raw mut issue) } {
        0 => Ok(status),
        _ => Err(SevError {
            command: "SNP_PLATFORM_STATUS",
            errno: std::io::Error::last_os_error().raw_os_error().unwrap_or_default(),
            firmware: issue.error,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_who_refused_and_why() {
        let error = |errno, firmware| SevError { command: "SNP_LAUNCH_START", errno, firmware }.to_string();
        let policy = "SNP_LAUNCH_START was refused: secure processor status 0x7 POLICY_FAILURE: the guest policy \
                      does not allow it on this platform (errno 5)";
        assert_eq!(error(libc::EIO, 7), policy);
        assert!(error(libc::EINVAL, 0).contains("kernel: Invalid argument"));
        assert!(error(libc::EIO, 0xabc).contains("status 0xabc"));
    }

    #[test]
    fn status_codes_are_listed_once_in_order() {
        assert!(STATUS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}

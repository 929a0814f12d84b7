//! The secure processor as operators' tools see it: `/dev/sev` through the `sev` crate, and SNP_PLATFORM_STATUS, which that
//! crate reads only on an AMD host, through the ioctl.

use std::fs::File;
use std::os::fd::AsRawFd;

use kvm_bindings::{kvm_sev_cmd, kvm_sev_init, kvm_sev_snp_launch_start};
use kvm_ioctls::Kvm;
use serde::Serialize;
use sev::firmware::host::Firmware;

const SNP_VM: u64 = 4;
const SEV_INIT2: u32 = 22;
const SEV_SNP_LAUNCH_START: u32 = 100;

const SEV_GET_ID2: u32 = 8;
const SNP_PLATFORM_STATUS: u32 = 9;
const SNP_CONFIG: u32 = 11;
/// `_IOWR('S', 0, struct sev_issue_cmd)`.
const SEV_ISSUE_CMD: u64 = 3 << 30 | 16 << 16 | (b'S' as u64) << 8;

/// What can be seen.
#[derive(Debug, Serialize)]
pub struct Seen {
    /// SEV_PLATFORM_STATUS: API, build, state and guests (of SEV and SEV-ES).
    pub sev: String,
    /// SEV_GET_ID2.
    pub chip_id: String,
    /// SNP_PLATFORM_STATUS: bytes 0 to 7, then flags.
    pub snp: [u64; 2],
    /// Its current_tcb_version and reported_tcb_version.
    pub tcb: [u64; 2],
    /// Its guest_count before a launch, after SNP_LAUNCH_START, and after the VM has gone.
    pub guests: [u32; 3],
    /// Errno and status of SEV_GET_ID2 with too small a buffer, and the length that it then asks for.
    pub short_id: (i32, u32, u32),
    /// Errno of SNP_CONFIG, which softkvm has not.
    pub config: i32,
    /// Position of the C-bit, as the processor itself says (QEMU asks it so).
    pub c_bit: u32,
    /// Errno of an ioctl that is none of this device's.
    pub foreign: i32,
}

/// `struct sev_issue_cmd`.
#[repr(C, packed)]
struct IssueCommand {
    cmd: u32,
    data: u64,
    error: u32,
}

fn errno(result: libc::c_int) -> i32 {
    if result == 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or_default() }
}

/// One command: errno and the secure processor's status.
fn issue<T>(device: &File, cmd: u32, data: &mut T) -> (i32, u32) {
    let mut issue = IssueCommand { cmd, data: std::ptr::from_mut(data) as u64, error: 0 };
    // SAFETY: `issue` is what the ioctl takes, and its data points to the structure of the command.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), SEV_ISSUE_CMD, &raw mut issue) };
    (errno(result), issue.error)
}

fn status(device: &File) -> Result<[u64; 4], String> {
    let mut words = [0u64; 4];
    match issue(device, SNP_PLATFORM_STATUS, &mut words) {
        (0, 0) => Ok(words),
        refused => Err(format!("SNP_PLATFORM_STATUS: {refused:?}")),
    }
}

fn guests(device: &File) -> Result<u32, String> {
    Ok((status(device)?[1] >> 32) as u32)
}

/// Starts a launch, counts, and drops the VM.
fn guests_of_a_launch(device: &File) -> Result<u32, String> {
    let kvm = Kvm::new().map_err(|e| format!("/dev/kvm: {e}"))?;
    let vm = kvm.create_vm_with_type(SNP_VM).map_err(|e| format!("KVM_CREATE_VM(SNP): {e}"))?;
    let command = |id, data: u64| {
        let mut command = kvm_sev_cmd { id, data, sev_fd: device.as_raw_fd() as u32, ..Default::default() };
        vm.encrypt_op_sev(&mut command).map_err(|e| format!("command {id}: {e}"))
    };
    let mut init = kvm_sev_init { ghcb_version: 2, ..Default::default() };
    command(SEV_INIT2, &raw mut init as u64)?;
    let mut start = kvm_sev_snp_launch_start { policy: 0x3_0000, ..Default::default() };
    command(SEV_SNP_LAUNCH_START, &raw mut start as u64)?;
    guests(device)
}

/// Looks at the platform.
pub fn look() -> Result<Seen, String> {
    let device =
        File::options().read(true).write(true).open("/dev/sev").map_err(|e| format!("/dev/sev: {e}"))?;
    let mut firmware = Firmware::open().map_err(|e| format!("sev: /dev/sev: {e}"))?;
    let sev = firmware.platform_status().map_err(|e| format!("sev: platform_status: {e}"))?;
    let id = firmware.get_identifier().map_err(|e| format!("sev: get_identifier: {e}"))?;
    firmware.snp_commit().map_err(|e| format!("sev: snp_commit: {e}"))?;
    let [version, flags, current, reported] = status(&device)?;
    let guests = [guests(&device)?, guests_of_a_launch(&device)?, guests(&device)?];
    // u64 address and u32 length.
    let mut short = [0u8; 8];
    let mut request = [&raw mut short as u64, short.len() as u64];
    let (refused, firmware_status) = issue(&device, SEV_GET_ID2, &mut request);
    let config = issue(&device, SNP_CONFIG, &mut [0u64; 8]).0;
    // SAFETY: an ioctl without an argument.
    let foreign = errno(unsafe { libc::ioctl(device.as_raw_fd(), 0xAE00) });
    Ok(Seen {
        sev: format!("{} {:?} {}", sev.build, sev.state, sev.guests),
        chip_id: id.to_string(),
        snp: [version, flags & u64::from(u32::MAX)],
        tcb: [current, reported],
        guests,
        short_id: (refused, firmware_status, request[1] as u32),
        config,
        c_bit: std::arch::x86_64::__cpuid(0x8000_001f).ebx & 0x3f,
        foreign,
    })
}

//! System calls that the standard library does not have. The only `unsafe` of this crate.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Writes a file that only its owner can read; `-` is standard output.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if path == Path::new("-") {
        return io::stdout().write_all(bytes);
    }
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

/// getrandom(2), which waits until the kernel's generator is seeded. There is no other source: not the time, not a file that may be
/// the host's.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        // SAFETY: the pointer and length are those of `rest`.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => done = done.saturating_add(got),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Puts `/dev/null` in the place of standard input.
pub fn close_input() -> io::Result<()> {
    let null = File::open("/dev/null")?;
    // SAFETY: both descriptors are numbers; the kernel checks them.
    check(unsafe { libc::dup2(null.as_raw_fd(), libc::STDIN_FILENO) }).map(drop)
}

/// mount(2) of a pseudo file system.
pub fn mount(kind: &str, target: &str) -> io::Result<()> {
    fs::create_dir_all(target)?;
    let (kind, target) = (CString::new(kind)?, CString::new(target)?);
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let flags = if kind.as_bytes() == b"devtmpfs" { libc::MS_NOSUID } else { flags };
    // SAFETY: all pointers are NUL-terminated strings that outlive the call; no data argument.
    check(unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) })
        .map(drop)
}

/// Messages in the kernel's log so far that contain `needle`. Empty where there is no `/dev/kmsg`.
pub fn kernel_log(needle: &str) -> Vec<String> {
    let Ok(mut file) = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg") else {
        return Vec::new();
    };
    let mut record = [0u8; 8192];
    let mut found = Vec::new();
    // One record a read: "priority,sequence,timestamp,flags;message". EAGAIN is the end, EPIPE an overwritten record.
    loop {
        match file.read(&mut record) {
            Ok(0) => return found,
            Ok(n) => {
                let text = String::from_utf8_lossy(record.get(..n).unwrap_or_default()).into_owned();
                let message =
                    text.split_once(';').and_then(|(_, rest)| rest.lines().next()).unwrap_or_default();
                if message.contains(needle) {
                    found.push(message.to_owned());
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => return found,
        }
    }
}

/// finit_module(2).
pub fn load_module(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: a descriptor that is open, an empty parameter string, no flags.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The VMM takes the byte written here as the guest's exit code.
const EXIT_CODE_PORT: u16 = 0x603;

/// Tells the VMM the exit code. Debian's cloud kernels have no `/dev/port`.
fn tell_exit_code(code: u8) {
    // SAFETY: ioperm only grants this one port to this process, and OUT to it has no effect on memory.
    unsafe {
        if libc::ioperm(EXIT_CODE_PORT.into(), 1, 1) == 0 {
            std::arch::asm!("out dx, al", in("dx") EXIT_CODE_PORT, in("al") code, options(nomem, nostack, preserves_flags));
        }
    }
}

/// Powers the machine off. `code` goes to the VMM first.
pub fn power_off(code: u8) -> ! {
    // In a TD, only the kernel may touch ports: there a guest that fails asks for a reset, which the VMM tells from
    // a power-off.
    let command = match (in_td(), code) {
        (true, 0) => libc::LINUX_REBOOT_CMD_POWER_OFF,
        (true, _) => libc::LINUX_REBOOT_CMD_RESTART,
        (false, _) => {
            tell_exit_code(code);
            libc::LINUX_REBOOT_CMD_POWER_OFF
        }
    };
    // SAFETY: sync has no arguments; reboot with these commands does not return for PID 1 with CAP_SYS_BOOT.
    unsafe {
        libc::sync();
        libc::reboot(command);
    }
    // Without the capability there is nothing left to do but stay out of the kernel's way: PID 1 must not end.
    loop {
        std::thread::park();
    }
}

/// Is this a TD? As the kernel tells every program.
fn in_td() -> bool {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpus.lines()
        .any(|line| line.starts_with("flags") && line.split_whitespace().any(|flag| flag == "tdx_guest"))
}

/// A stream socket to a vsock address.
pub fn vsock_connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    // SAFETY: the result is checked and owned.
    let socket = unsafe {
        OwnedFd::from_raw_fd(check(libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0))?)
    };
    // SAFETY: all-zero is a valid sockaddr_vm.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    (address.svm_cid, address.svm_port) = (cid, port);
    let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: the address is on this frame and its length is given.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}

/// struct snp_report_req (linux/sev-guest.h).
#[repr(C)]
struct ReportRequest {
    user_data: [u8; 64],
    vmpl: u32,
    reserved: [u8; 28],
}

/// struct snp_ext_report_req.
#[repr(C)]
struct ExtendedReportRequest {
    data: ReportRequest,
    certs_address: u64,
    certs_len: u32,
}

/// struct snp_guest_request_ioctl.
#[repr(C)]
struct GuestRequest {
    msg_version: u8,
    req_data: u64,
    resp_data: u64,
    exitinfo2: u64,
}

const _: () = assert!(size_of::<ReportRequest>() == 96);
const _: () = assert!(size_of::<ExtendedReportRequest>() == 112);
const _: () = assert!(size_of::<GuestRequest>() == 32);

/// `SNP_GET_EXT_REPORT`, _IOWR('S', 2, struct snp_guest_request_ioctl).
const GET_EXT_REPORT: libc::c_ulong = 0xc020_5302;

/// A report and the certificate table from `/dev/sev-guest`.
pub fn sev_guest_report(device: &str, data: &[u8; 64]) -> io::Result<(Vec<u8>, Vec<u8>)> {
    const CERTIFICATES: usize = 16 * 4096;
    const RESPONSE: usize = 4000;
    let file = OpenOptions::new().read(true).write(true).open(device)?;
    let mut certificates = vec![0u8; CERTIFICATES];
    let mut response = vec![0u8; RESPONSE];
    let request = ExtendedReportRequest {
        data: ReportRequest { user_data: *data, vmpl: 0, reserved: [0; 28] },
        certs_address: certificates.as_mut_ptr() as u64,
        certs_len: CERTIFICATES as u32,
    };
    let mut ioctl = GuestRequest {
        msg_version: 1,
        req_data: &raw const request as u64,
        resp_data: response.as_mut_ptr() as u64,
        exitinfo2: 0,
    };
    // SAFETY: the structures have the kernel's layout (sizes asserted) and all buffers outlive the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), GET_EXT_REPORT, &raw mut ioctl) };
    check(result).map_err(|e| io::Error::new(e.kind(), format!("{e} (exitinfo2 {:#x})", ioctl.exitinfo2)))?;
    // MSG_REPORT_RSP: status, size, reserved, report.
    let word =
        |at: usize| response.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    if word(0) != 0 {
        return Err(io::Error::other(format!("the secure processor answered with status {:#x}", word(0))));
    }
    let report = response.get(32..32 + word(4) as usize).unwrap_or_default().to_vec();
    Ok((report, certificates))
}

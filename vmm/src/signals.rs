//! Signals: SIGINT and SIGTERM end a guest in order, a real-time signal kicks vCPU threads out of KVM.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The signal that makes KVM_RUN return.
pub fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn ignore(_: libc::c_int) {}

/// Installs the handler of the kick signal. It does nothing: being handled is enough to interrupt KVM_RUN, and
/// `immediate_exit` was set before the signal was sent.
pub fn install_kick_handler() -> io::Result<()> {
    // SAFETY: all zeros is a valid sigaction: no flags (so system calls are not restarted) and an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = ignore as *const () as libc::sighandler_t;
    // SAFETY: `action` is initialised and its handler is async-signal-safe, as it does nothing.
    match unsafe { libc::sigaction(kick_signal(), &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// SIGINT and SIGTERM as a file descriptor.
#[derive(Debug)]
pub struct StopSignals(OwnedFd);

impl StopSignals {
    /// Blocks the signals in this thread and all that it will start, and collects them here.
    pub fn block() -> io::Result<Self> {
        // SAFETY: all zeros is a valid sigset_t, which sigemptyset then initialises; the calls only write to it.
        let set = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGINT);
            libc::sigaddset(&mut set, libc::SIGTERM);
            set
        };
        // SAFETY: `set` is initialised; the old mask is not asked for.
        if unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `set` is initialised; -1 asks for a new descriptor.
        match unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: the kernel just returned this descriptor, nobody else owns it.
            fd => Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) })),
        }
    }

    /// The name of a signal that arrived.
    pub fn take(&self) -> Option<&'static str> {
        // SAFETY: all zeros is a valid signalfd_siginfo.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of_val(&info);
        // SAFETY: `info` has room for `size` bytes.
        let read = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut info).cast(), size) };
        match read {
            n if n == size as isize && info.ssi_signo == libc::SIGINT as u32 => Some("SIGINT"),
            n if n == size as isize => Some("SIGTERM"),
            _ => None,
        }
    }
}

impl AsRawFd for StopSignals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

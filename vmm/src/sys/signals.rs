//! Signals: those that ask a process to end end a guest in order, a real-time signal kicks vCPU threads out of KVM.

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

/// What ends a guest in order.
const STOP: [(libc::c_int, &str); 4] = [
    (libc::SIGINT, "SIGINT"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGQUIT, "SIGQUIT"),
];

/// Whether this process was started with `signal` ignored, as `nohup` does with SIGHUP.
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: all zeros is a valid sigaction, which the call fills; nothing is set.
    let action = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action);
        action
    };
    action.sa_sigaction == libc::SIG_IGN
}

/// The signals that end a guest, as a file descriptor.
#[derive(Debug)]
pub struct StopSignals(OwnedFd);

impl StopSignals {
    /// Blocks the signals in this thread and all that it will start, and collects them here. A hangup that whoever
    /// started this process wanted ignored stays so.
    pub fn block() -> io::Result<Self> {
        let wanted = |signal: libc::c_int| signal != libc::SIGHUP || !is_ignored(signal);
        // SAFETY: all zeros is a valid sigset_t, which sigemptyset then initialises; the calls only write to it.
        let set = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for (signal, _) in STOP.into_iter().filter(|&(signal, _)| wanted(signal)) {
                libc::sigaddset(&mut set, signal);
            }
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
        if read != size as isize {
            return None;
        }
        STOP.iter().find(|(signal, _)| *signal as u32 == info.ssi_signo).map(|(_, name)| *name)
    }
}

impl AsRawFd for StopSignals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

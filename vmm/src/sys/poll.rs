//! Waiting for descriptors.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// Waits until one of `fds` is readable or in error, at most for `time`; tells which are. A signal ends the wait early.
pub fn readable(fds: &[RawFd], time: Option<Duration>) -> io::Result<Vec<bool>> {
    poll(fds, libc::POLLIN, time)
}

/// Waits until `fd` is writable or in error.
pub fn writable(fd: RawFd) {
    // Whatever goes wrong shows at the next write.
    let _ = poll(&[fd], libc::POLLOUT, None);
}

/// Waits at most for `time` until `fd` is writable or in error.
pub fn writable_within(fd: RawFd, time: Duration) -> io::Result<()> {
    match poll(&[fd], libc::POLLOUT, Some(time))?.first() {
        Some(true) => Ok(()),
        _ => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn poll(fds: &[RawFd], events: libc::c_short, time: Option<Duration>) -> io::Result<Vec<bool>> {
    let entry = |&fd: &RawFd| libc::pollfd { fd, events, revents: 0 };
    let mut polled: Vec<_> = fds.iter().map(entry).collect();
    // Rounded up, so that a wait that is over is over.
    let milliseconds = |time: Duration| i32::try_from(time.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    let time = time.map_or(-1, milliseconds);
    // SAFETY: `polled` is an array of as many initialised entries as the call is told.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, time) };
    match result {
        -1 => {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted { Ok(vec![false; fds.len()]) } else { Err(error) }
        }
        _ => Ok(polled.iter().map(|polled| polled.revents != 0).collect()),
    }
}

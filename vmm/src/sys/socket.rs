//! Sockets that are connected without waiting longer than the caller wants.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A new stream socket of `family` that does not block.
fn socket(family: libc::c_int) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the result is checked before it is owned.
    match unsafe { libc::socket(family, kind, 0) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel just returned this descriptor, nobody else owns it.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// Connects to the unix socket at `path` at once or not at all: `WouldBlock` where its listener's queue is full. The stream does
/// not block.
pub fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let bytes = OsStr::as_bytes(path.as_os_str());
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a unix socket"));
    }
    address.sun_path.iter_mut().zip(bytes).for_each(|(to, &from)| *to = from as libc::c_char);
    let socket = socket(libc::AF_UNIX)?;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is on this frame and its length is given.
    match unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) } {
        0 => Ok(UnixStream::from(socket)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Connects to a vsock port within `time`. What comes back is a stream of another family in the clothes of a unix stream: reads,
/// writes and time limits are the socket layer's.
pub fn connect_vsock(cid: u32, port: u32, time: Duration) -> io::Result<UnixStream> {
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    (address.svm_cid, address.svm_port) = (cid, port);
    let socket = socket(libc::AF_VSOCK)?;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is on this frame and its length is given.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if result != 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINPROGRESS) {
            return Err(error);
        }
        super::poll::writable_within(socket.as_raw_fd(), time)?;
    }
    let stream = UnixStream::from(socket);
    // The error of a connection that was in progress.
    stream.take_error()?.map_or(Ok(()), Err)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_full_queue_does_not_hold_the_caller() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert_eq!(connect_unix(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = UnixListener::bind(&path).unwrap();
        // SAFETY: the descriptor is a listening socket; this shortens its queue.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let streams: Vec<_> = (0..10).map(|_| connect_unix(&path)).collect();
        assert!(streams[0].is_ok());
        assert_eq!(streams[9].as_ref().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(connect_unix(Path::new(&"x".repeat(108))).is_err());
        assert!(connect_unix(Path::new("")).is_err());
    }
}

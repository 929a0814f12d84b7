//! Unix sockets that this process listens at.

use std::fs::{File, Metadata, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use super::socket::connect_unix;
use crate::ending::Undo;

/// Tries for the directory's lock, 10 ms apart.
const TRIES: u32 = 100;

/// A listening socket whose file goes when this does.
pub struct SocketFile {
    /// Listens, and does not block.
    pub listener: UnixListener,
    _remove: Undo,
}

impl SocketFile {
    /// Listens at `path`. A socket that nobody listens at any more is replaced: its owner ended without removing it. A socket of a
    /// living program, and whatever is no socket, stays.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let _lock = lock_directory(path)?;
        match std::fs::symlink_metadata(path) {
            Ok(metadata) => remove_stale(path, &metadata)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        let identity = identity(&std::fs::symlink_metadata(path)?);
        let file = path.to_owned();
        // Only while it is the one that was made here.
        let remove = Undo::new(move || {
            if std::fs::symlink_metadata(&file).is_ok_and(|found| self::identity(&found) == identity) {
                // Nothing is left to do about a file that somebody else removed.
                let _ = std::fs::remove_file(&file);
            }
        });
        listener.set_nonblocking(true)?;
        Ok(Self { listener, _remove: remove })
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Whether a launch may listen at `path`; changes nothing.
pub fn check(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => check_stale(path, &metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn check_stale(path: &Path, metadata: &Metadata) -> io::Result<()> {
    if !metadata.file_type().is_socket() {
        return Err(io::Error::other("exists already and is no socket"));
    }
    match connect_unix(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        // A full queue is a program's, too.
        _ => Err(io::Error::other("exists already, and a program listens there; is another guest using it?")),
    }
}

fn remove_stale(path: &Path, metadata: &Metadata) -> io::Result<()> {
    check_stale(path, metadata)?;
    // Where the lock could not be had, another launch may have replaced it meanwhile.
    if identity(&std::fs::symlink_metadata(path)?) != identity(metadata) {
        return Err(io::Error::other("was replaced while it was looked at; is another guest using it?"));
    }
    std::fs::remove_file(path)
}

/// Two launches that find the same old socket must not remove each other's new one.
fn lock_directory(path: &Path) -> io::Result<File> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(parent.unwrap_or(Path::new(".")))?;
    for _ in 0..TRIES {
        match directory.try_lock() {
            Ok(()) => return Ok(directory),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            // A file system without locks: nothing else to do.
            Err(TryLockError::Error(_)) => return Ok(directory),
        }
    }
    // Whoever may read the directory can hold its lock. No launch holds it for so long: one that does is no reason to stop.
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_nobody_listens_at_is_replaced_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left behind");
        assert!(check(&path).is_ok());
        let socket = SocketFile::bind(&path).unwrap();
        assert!(connect_unix(&path).is_ok());
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_living_socket_and_what_is_no_socket_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (busy, file, link) = (dir.path().join("busy"), dir.path().join("file"), dir.path().join("link"));
        let listener = UnixListener::bind(&busy).unwrap();
        std::fs::write(&file, "precious").unwrap();
        std::os::unix::fs::symlink(&busy, &link).unwrap();
        for path in [&busy, &file, &link, &dir.path().to_owned()] {
            assert!(check(path).is_err(), "{path:?}");
            assert!(SocketFile::bind(path).is_err(), "{path:?}");
            assert!(path.exists());
        }
        assert!(listener.accept().is_ok(), "and it still listens");
        // Filled up, it is still a program's.
        let _queue: Vec<_> = (0..1000).map_while(|_| connect_unix(&busy).ok()).collect();
        assert!(SocketFile::bind(&busy).is_err() && busy.exists());
    }

    #[test]
    fn whoever_holds_a_directory_s_lock_stops_no_launch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        // All that this takes is to be allowed to read the directory.
        let other = File::open(dir.path()).unwrap();
        other.lock().unwrap();
        assert!(SocketFile::bind(&path).is_ok());
    }

    #[test]
    fn a_successor_s_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = SocketFile::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _second = UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }
}

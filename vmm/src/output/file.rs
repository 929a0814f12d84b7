//! Files that this process writes, all opened here.
//!
//! A new file is the user's alone (mode 0600). The last part of its path may not be a symbolic link. What exists is overwritten
//! only if that was asked for; a device, or a pipe of the user's own, is written to as it is. Who chooses the directory is the operator.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// An output file. One that was made here goes away again unless it is kept: a launch that is refused leaves nothing behind.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    file: File,
    /// Made here, and not kept yet.
    provisional: bool,
}

impl OutputFile {
    /// Opens `path` for writing.
    pub fn create(path: &Path, force: bool) -> io::Result<Self> {
        let new = options().create_new(true).mode(0o600).open(path);
        let (file, provisional) = match new {
            Ok(file) => (file, true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (existing(path, force)?, false),
            Err(error) => return Err(error),
        };
        Ok(Self { path: path.to_owned(), file, provisional })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// It stays from now on.
    pub fn keep(&mut self) {
        self.provisional = false;
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if self.provisional && same_file(&self.path, &self.file) {
            // Nothing is left to do about a file that cannot be removed.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn same_file(path: &Path, file: &File) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let there = std::fs::symlink_metadata(path).map(identity).ok();
    there.is_some() && there == file.metadata().map(identity).ok()
}

fn options() -> std::fs::OpenOptions {
    let mut options = File::options();
    // A pipe that nobody reads is an error instead of a wait.
    options.write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    options
}

fn existing(path: &Path, force: bool) -> io::Result<File> {
    let refuse = |reason: &str| Err(io::Error::other(reason.to_owned()));
    let metadata = std::fs::symlink_metadata(path)?;
    let kind = metadata.file_type();
    // SAFETY: geteuid has no preconditions and cannot fail.
    let own = metadata.uid() == unsafe { libc::geteuid() };
    match () {
        _ if kind.is_symlink() => return refuse("is a symbolic link; name the file itself"),
        _ if kind.is_dir() => return refuse("is a directory"),
        _ if kind.is_socket() || kind.is_block_device() => return refuse("is neither a file nor a pipe"),
        _ if kind.is_fifo() && !own => return refuse("is a pipe of another user"),
        _ if kind.is_file() && !own => return refuse("is a file of another user"),
        _ if kind.is_file() && !force => return refuse("exists already; use --force to overwrite it"),
        _ => {}
    }
    let file = options().open(path)?;
    // What was looked at above may have been replaced since.
    let opened = file.metadata()?;
    if (opened.dev(), opened.ino()) != (metadata.dev(), metadata.ino()) {
        return refuse("was replaced while it was opened");
    }
    if kind.is_file() {
        file.set_permissions(PermissionsExt::from_mode(0o600))?;
        file.set_len(0)?;
    }
    blocking(&file)?;
    Ok(file)
}

/// Takes back O_NONBLOCK, which was for opening.
fn blocking(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the calls read and change its flags only.
    let set = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        flags != -1 && libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) != -1
    };
    if set { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn refusal(path: &Path, force: bool) -> String {
        OutputFile::create(path, force).unwrap_err().to_string()
    }

    #[test]
    fn a_new_file_is_the_user_s_alone_and_goes_if_it_was_of_no_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        drop(OutputFile::create(&path, false).unwrap());
        assert!(!path.exists());
        let mut kept = OutputFile::create(&path, false).unwrap();
        kept.keep();
        kept.file().unwrap().write_all(b"text").unwrap();
        drop(kept);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read(&path).unwrap(), b"text");
    }

    #[test]
    fn what_exists_is_overwritten_only_on_request_and_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "precious").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(refusal(&path, false).contains("--force"));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        drop(OutputFile::create(&path, true).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"", "and it stays");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn another_user_s_file_stays_theirs_even_with_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trap");
        std::fs::write(&path, "theirs").unwrap();
        if std::os::unix::fs::chown(&path, Some(65_534), None).is_err() {
            return; // only root can give a file away
        }
        assert!(refusal(&path, true).contains("another user"));
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
    }

    #[test]
    fn links_are_not_followed_even_with_force() {
        let dir = tempfile::tempdir().unwrap();
        let (link, target) = (dir.path().join("link"), dir.path().join("target"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(refusal(&link, false).contains("symbolic link") && !target.exists());
        std::fs::write(&target, "precious").unwrap();
        for force in [false, true] {
            assert!(refusal(&link, force).contains("symbolic link"));
        }
        assert_eq!(std::fs::read(&target).unwrap(), b"precious");
        assert!(refusal(dir.path(), true).contains("directory"));
    }

    #[test]
    fn devices_and_pipes_are_written_as_they_are() {
        let null = OutputFile::create(Path::new("/dev/null"), false).unwrap();
        null.file().unwrap().write_all(b"x").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(OutputFile::create(&pipe, false).is_err(), "nobody reads, and nobody waits");
        let _reader = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&pipe).unwrap();
        assert!(OutputFile::create(&pipe, false).is_ok());
        assert!(pipe.exists());
    }
}

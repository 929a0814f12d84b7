//! Host ends of character devices.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use crate::config::Backend;

/// Where a character device's output goes.
pub enum Output {
    /// Standard output.
    Stdout,
    /// Nowhere.
    Null,
    /// A file.
    File(File),
}

impl Output {
    /// Opens `backend`.
    pub fn open(backend: &Backend) -> io::Result<Self> {
        Ok(match backend {
            Backend::Stdio => Self::Stdout,
            Backend::Null => Self::Null,
            Backend::File(path) => Self::File(File::create(path)?),
        })
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout => io::stdout().write(bytes),
            Self::Null => Ok(bytes.len()),
            Self::File(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout => io::stdout().flush(),
            Self::Null | Self::File(_) => Ok(()),
        }
    }
}

/// Where a character device's input comes from.
pub enum Input {
    /// A terminal at standard input.
    Terminal {
        /// Puts it back as it was.
        _restore: Terminal,
    },
    /// Anything else that can be read.
    #[cfg(test)]
    File(File),
}

impl Input {
    /// Standard input, where it is a terminal: other programs' input is not the guest's.
    pub fn terminal() -> Option<Self> {
        if !io::stdin().is_terminal() {
            return None;
        }
        Terminal::raw().map(|_restore| Self::Terminal { _restore })
    }
}

impl Read for Input {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Terminal { .. } => {
                // Not through std's buffer, which poll does not see.
                // SAFETY: the pointer and length are those of `bytes`.
                let read = unsafe { libc::read(libc::STDIN_FILENO, bytes.as_mut_ptr().cast(), bytes.len()) };
                usize::try_from(read).map_err(|_| io::Error::last_os_error())
            }
            #[cfg(test)]
            Self::File(file) => file.read(bytes),
        }
    }
}

impl AsRawFd for Input {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Terminal { .. } => libc::STDIN_FILENO,
            #[cfg(test)]
            Self::File(file) => file.as_raw_fd(),
        }
    }
}

/// The terminal without echo and line editing, until this is dropped. Signals from its keys still work.
pub struct Terminal(libc::termios);

impl Terminal {
    fn raw() -> Option<Self> {
        // SAFETY: all zeros is a valid termios, which tcgetattr then fills.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `before` has room for the answer.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &mut before) } != 0 {
            return None;
        }
        let mut raw = before;
        raw.c_lflag &= !(libc::ICANON | libc::ECHO);
        raw.c_iflag &= !libc::ICRNL;
        // SAFETY: `raw` is initialised.
        (unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw) } == 0).then_some(Self(before))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // SAFETY: these are the settings that tcgetattr returned.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &self.0) };
    }
}

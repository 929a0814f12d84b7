//! Host ends of character devices.

#[cfg(test)]
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use crate::ending::Undo;
use crate::output::escape::Escaper;
use crate::output::sink::Sink;

/// Where a character device's output goes. Taking it does not fail: what becomes of it is the sink's to say.
pub struct Output {
    sink: Option<Sink>,
    /// Of a terminal's output.
    escaper: Option<Escaper>,
}

impl Output {
    /// Nowhere.
    pub fn null() -> Self {
        Self { sink: None, escaper: None }
    }

    /// As the guest wrote it.
    pub fn raw(sink: Sink) -> Self {
        Self { sink: Some(sink), escaper: None }
    }

    /// For people to read.
    pub fn escaped(sink: Sink) -> Self {
        Self { sink: Some(sink), escaper: Some(Escaper::default()) }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(sink) = &self.sink else { return Ok(bytes.len()) };
        match &mut self.escaper {
            Some(escaper) => {
                let mut visible = Vec::with_capacity(bytes.len());
                escaper.escape(bytes, &mut visible);
                sink.push(&visible);
            }
            None => sink.push(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where a character device's input comes from.
pub enum Input {
    /// A terminal at standard input.
    Terminal {
        /// Puts it back as it was.
        _restore: Undo,
    },
    /// Anything else that can be read.
    #[cfg(test)]
    File(File),
}

impl Input {
    /// Standard input, where it is this process's terminal: other programs' input is not the guest's.
    pub fn terminal() -> Option<Self> {
        if !io::stdin().is_terminal() || !in_foreground() {
            return None;
        }
        without_line_editing().map(|_restore| Self::Terminal { _restore })
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

/// Whether the terminal listens to this process. A background job that changes its settings is stopped.
fn in_foreground() -> bool {
    // SAFETY: both calls only look.
    unsafe { libc::tcgetpgrp(libc::STDIN_FILENO) == libc::getpgrp() }
}

/// The terminal without echo and line editing, until what this returns is dropped. Signals from its keys still work.
fn without_line_editing() -> Option<Undo> {
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
    let set = unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw) } == 0;
    let restore = move || {
        // SAFETY: these are the settings that tcgetattr returned.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &before) };
    };
    set.then(|| Undo::new(restore))
}

//! Messages for the operator, on standard error. Whoever says something does not wait for a reader.

use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::escape;
use super::sink::Sink;

/// How much one guest may make one part of the VMM say.
const MESSAGES_MAX: u32 = 16;

/// Standard error, once something was said while a guest runs.
fn standard_error() -> Option<&'static Sink> {
    static SINK: OnceLock<Option<Sink>> = OnceLock::new();
    let open = || {
        let file = File::from(io::stderr().as_fd().try_clone_to_owned().ok()?);
        Sink::quiet("stderr", file).ok()
    };
    SINK.get_or_init(open).as_ref()
}

/// Says one line.
pub fn say(message: impl fmt::Display) {
    let line = format!("cloister: {}\n", escape::line(&message.to_string()));
    match standard_error() {
        Some(sink) => sink.offer(line.as_bytes()),
        // No thread or no descriptor. Nothing is left to do about an error here.
        None => drop(io::stderr().write_all(line.as_bytes())),
    }
}

/// Waits for what was said to be written, within bounds.
pub fn finish_messages() {
    if let Some(sink) = standard_error() {
        sink.finish();
    }
}

/// Messages that a guest can cause: a bounded number of them. It belongs to a part of the VMM for the guest's whole life,
/// whatever the guest resets.
#[derive(Debug)]
pub struct GuestLog {
    part: &'static str,
    said: AtomicU32,
}

impl GuestLog {
    /// A log for a part of the VMM.
    pub const fn new(part: &'static str) -> Self {
        Self { part, said: AtomicU32::new(0) }
    }

    /// Says it, unless too much was said already.
    pub fn warn(&self, message: &dyn fmt::Display) {
        match self.count() {
            said if said < MESSAGES_MAX => say(format_args!("{}: {message}", self.part)),
            MESSAGES_MAX => say(format_args!("{}: further messages suppressed", self.part)),
            _ => {}
        }
    }

    /// How many were said before this one. Stays where it is once that is too many.
    fn count(&self) -> u32 {
        let more = |said: u32| (said <= MESSAGES_MAX).then(|| said + 1);
        self.said.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).unwrap_or_else(|said| said)
    }

    /// How many messages were asked for, up to the bound and one.
    #[cfg(test)]
    pub fn said(&self) -> u32 {
        self.said.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_falls_silent_for_good() {
        let log = GuestLog::new("test");
        let counts: Vec<u32> = (0..100).map(|_| log.count()).collect();
        assert_eq!(counts.iter().filter(|&&said| said < MESSAGES_MAX).count(), 16);
        assert_eq!(counts.iter().filter(|&&said| said == MESSAGES_MAX).count(), 1);
        log.said.store(u32::MAX, Ordering::Relaxed);
        assert_eq!(log.count(), u32::MAX, "it does not wrap");
    }
}

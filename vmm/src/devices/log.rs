//! Messages that a guest can cause, a bounded number of them.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

/// How much one guest may make one part of the VMM say.
const MESSAGES_MAX: u32 = 16;

/// A log that falls silent.
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

    /// Says it on standard error, unless too much was said already.
    pub fn warn(&self, message: &dyn fmt::Display) {
        // Saturates well before it wraps: each message costs a guest more than a counter step.
        match self.said.fetch_add(1, Ordering::Relaxed) {
            said if said < MESSAGES_MAX => eprintln!("cloister: {}: {message}", self.part),
            MESSAGES_MAX => eprintln!("cloister: {}: further messages suppressed", self.part),
            _ => self.said.store(MESSAGES_MAX + 1, Ordering::Relaxed),
        }
    }
}

//! Connections that the guest asks for while their listener's queue is full: tried again, for a while.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::packet::Ports;

/// How long a listener may be busy. Linux as a guest waits for 2 s by default (VSOCK_DEFAULT_CONNECT_TIMEOUT).
const TIME: Duration = Duration::from_millis(1500);
/// Between two tries; unix sockets say nothing when a queue has room again.
const INTERVAL: Duration = Duration::from_millis(20);

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its ends.
    pub ports: Ports,
    /// The guest's credit, as its request gave it.
    pub buffer: u32,
    /// The other half of that.
    pub forwarded: u32,
    until: Instant,
}

impl Call {
    /// The guest has just asked.
    pub fn new(ports: Ports, buffer: u32, forwarded: u32) -> Self {
        Self { ports, buffer, forwarded, until: Instant::now() + TIME }
    }

    /// Whether it was tried for long enough.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }
}

/// All of them, and the timer that says when to try again.
pub struct Calls {
    waiting: VecDeque<Call>,
    timer: TimerFd,
}

impl Calls {
    /// None.
    pub fn new() -> io::Result<Self> {
        Ok(Self { waiting: VecDeque::new(), timer: TimerFd::new().map_err(io::Error::from)? })
    }

    /// Readable when it is time.
    pub fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Waits for another try.
    pub fn add(&mut self, call: Call) {
        self.waiting.push_back(call);
        // A timer that cannot be set: the guest's own time runs out.
        let _ = self.timer.reset(INTERVAL, None);
    }

    /// Forgets a call; whether there was one.
    pub fn remove(&mut self, ports: Ports) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|call| call.ports != ports);
        self.waiting.len() != before
    }

    /// All calls, to be tried or forgotten.
    pub fn take(&mut self) -> VecDeque<Call> {
        // Not readable any more.
        let _ = self.timer.clear();
        std::mem::take(&mut self.waiting)
    }
}

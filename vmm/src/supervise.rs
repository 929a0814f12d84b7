//! The end of a guest: who may end it, and what is done then, each step within a bound.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use crate::launch::Backing;
use crate::memory::{self, Converter, DeviceMemory};
use crate::outcome::Outcome;
use crate::output::file::OutputFile;
use crate::output::say;
use crate::output::sink::Sink;
use crate::sys::poll;
use crate::sys::signals::StopSignals;
use crate::vcpu::VcpuThreads;
use crate::virtio::VirtioPci;

/// How long a vCPU's thread may be about its last exit. It may wait for a stuck reader of its output meanwhile.
const VCPU_TIME: Duration = Duration::from_secs(10);
/// How long a device may take to serve what it was given and to flush it.
const DEVICE_TIME: Duration = Duration::from_secs(30);

/// A guest that runs, and what serves it.
pub struct Running {
    /// Its processors.
    pub vcpus: VcpuThreads,
    /// Its devices.
    pub virtio: Vec<Arc<VirtioPci>>,
    /// Where their output goes.
    pub sinks: Vec<Sink>,
    /// Where what the host can read of its memory goes.
    pub dump: Option<OutputFile>,
    /// That memory.
    pub memory: DeviceMemory,
    /// What must live as long as its processors run.
    pub _backing: (Arc<VmFd>, Backing, Option<Arc<Converter>>),
}

/// How a run ended.
pub struct Ended {
    /// The guest's end.
    pub outcome: Outcome,
    /// Whether all threads came to rest and all was written.
    pub complete: bool,
}

/// What happens to a running guest from outside of its processors.
enum Event {
    /// A processor ended it, or was told to.
    GuestEnded,
    /// Everything that had to be done after its end is done.
    Done,
    /// The operator wants the end.
    Signal(&'static str),
}

/// Where events come from.
struct Events<'a> {
    ended: EventFd,
    done: EventFd,
    signals: &'a StopSignals,
}

impl Events<'_> {
    /// The next event. The end of the guest is one until somebody takes it off the list.
    fn next(&self, ending: bool) -> io::Result<Event> {
        let first = if ending { &self.done } else { &self.ended };
        loop {
            let ready = poll::readable(&[first.as_raw_fd(), self.signals.as_raw_fd()], None)?;
            if ready.first() == Some(&true) {
                return Ok(if ending { Event::Done } else { Event::GuestEnded });
            }
            if let Some(signal) = self.signals.take() {
                return Ok(Event::Signal(signal));
            }
        }
    }
}

/// Waits until the guest has ended or the operator ends it, and brings everything to rest. A second signal ends the wait for that.
pub fn until_the_end(running: Running, signals: &StopSignals) -> io::Result<Ended> {
    let done = EventFd::new(EFD_CLOEXEC)?;
    let (ended, finished) = (running.vcpus.ended().try_clone()?, done.try_clone()?);
    let events = Events { ended, done, signals };
    let wanted = match events.next(false)? {
        Event::Signal(signal) => Outcome::Signalled(signal),
        Event::GuestEnded | Event::Done => Outcome::Failed("no reason".into()),
    };
    let outcome = running.vcpus.stop(wanted);
    let (tell, result) = channel();
    let body = move || {
        // Fails where nobody waits for it any more.
        let _ = tell.send(running.bring_to_rest());
        let _ = finished.write(1);
    };
    std::thread::Builder::new().name("end".into()).spawn(body)?;
    match events.next(true)? {
        Event::Signal(signal) => {
            say(format_args!("{signal} again: ending at once"));
            Ok(Ended { outcome, complete: false })
        }
        Event::Done | Event::GuestEnded => {
            let complete = result.recv().map_err(|_| io::Error::other("the thread that ends it died"))??;
            Ok(Ended { outcome, complete })
        }
    }
}

impl Running {
    /// Waits for all threads, lets devices complete what they were given, writes what is left. Whether all of that was done.
    fn bring_to_rest(self) -> io::Result<bool> {
        let hung = |name: String, time: Duration| {
            say(format_args!("thread {name} did not end within {} s; ending without it", time.as_secs()));
        };
        self.sinks.iter().for_each(Sink::end);
        let vcpus = self.vcpus.wait(VCPU_TIME);
        let mut complete = vcpus.is_empty();
        vcpus.into_iter().for_each(|index| hung(format!("vcpu{index}"), VCPU_TIME));
        for function in &self.virtio {
            if !function.finish(DEVICE_TIME) {
                complete = false;
                hung(function.name(), DEVICE_TIME);
            }
        }
        self.sinks.iter().for_each(Sink::finish);
        let dumped = self.dump().map(|()| complete);
        if !complete {
            // A thread may still use what would be freed.
            std::mem::forget(self);
        }
        dumped
    }

    fn dump(&self) -> io::Result<()> {
        let Some(dump) = &self.dump else { return Ok(()) };
        let written = dump.file().and_then(|file| memory::dump::write(self.memory.mapping(), &file));
        written.map_err(|error| io::Error::other(format!("--dump-shared: {error}")))
    }
}

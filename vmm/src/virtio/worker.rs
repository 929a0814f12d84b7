//! The thread on which a device serves its queues.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{Device, DeviceError};
use super::queue::{Interrupts, Queues};
use crate::output::GuestLog;
use crate::sys::poll;

/// A running device.
pub struct Worker {
    stop: EventFd,
    finish: Arc<AtomicBool>,
    back: Receiver<Box<dyn Device>>,
}

/// What a thread needs beside the device.
pub struct Job {
    /// The queues.
    pub queues: Queues,
    /// Kicked by the driver, one per queue.
    pub kicks: Arc<Vec<EventFd>>,
    /// To say that the device is broken.
    pub interrupts: Arc<Interrupts>,
    /// The device's, for the guest's whole life.
    pub log: Arc<GuestLog>,
}

/// What became of a device whose thread was told to stop.
pub enum Stopped {
    /// It is at rest.
    Device(Box<dyn Device>),
    /// Its thread is still at something, such as a host's slow disk.
    NotYet,
    /// Its thread panicked, which is a bug of ours.
    Lost,
}

impl Worker {
    /// Starts serving; the device comes back with the error if there can be no thread.
    pub fn start(device: Box<dyn Device>, job: Job) -> Result<Self, (Box<dyn Device>, io::Error)> {
        let name = format!("virtio-{}", device.info().name);
        let (stop, inside) = match EventFd::new(EFD_CLOEXEC).and_then(|stop| Ok((stop.try_clone()?, stop))) {
            Ok(stop) => stop,
            Err(error) => return Err((device, error)),
        };
        let finish = Arc::new(AtomicBool::new(false));
        let finishing = finish.clone();
        let (hand, take) = channel::<Box<dyn Device>>();
        let (give_back, back) = channel();
        let body = move || {
            if let Ok(device) = take.recv() {
                // Fails where nobody waits for it any more.
                let _ = give_back.send(serve(device, job, &inside, &finishing));
            }
        };
        match std::thread::Builder::new().name(name).spawn(body) {
            Ok(_) => match hand.send(device) {
                Ok(()) => Ok(Self { stop, finish, back }),
                Err(refused) => Err((refused.0, io::ErrorKind::BrokenPipe.into())),
            },
            Err(error) => Err((device, error)),
        }
    }

    /// The driver resets the device: its thread is to stop where it is.
    pub fn stop(&self) {
        // A full eventfd is readable, which is all that is wanted.
        let _ = self.stop.write(1);
    }

    /// The guest has ended: its thread is to serve what is in the queues, and to stop.
    pub fn finish(&self) {
        self.finish.store(true, Ordering::Release);
        self.stop();
    }

    /// Waits for the thread, not longer than `time`.
    pub fn wait(&self, time: Duration) -> Stopped {
        match self.back.recv_timeout(time) {
            Ok(device) => Stopped::Device(device),
            Err(RecvTimeoutError::Timeout) => Stopped::NotYet,
            Err(RecvTimeoutError::Disconnected) => Stopped::Lost,
        }
    }
}

/// Serves until the thread is told to stop; then the device is as after a reset.
fn serve(mut device: Box<dyn Device>, mut job: Job, stop: &EventFd, finish: &AtomicBool) -> Box<dyn Device> {
    let served = serve_until(&mut *device, &mut job, stop);
    let ended = match served {
        Ok(()) if finish.load(Ordering::Acquire) => {
            serve_all(&mut *device, &mut job).and_then(|()| device.finish())
        }
        // What is in the queues of a broken device means nothing, but what it has done is to last.
        Err(_) if finish.load(Ordering::Acquire) => device.finish(),
        _ => Ok(()),
    };
    if let Err(error) = ended {
        job.log.warn(&error);
    }
    device.reset();
    device
}

/// Serves until the thread is told to stop. A device that breaks waits for that.
fn serve_until(device: &mut dyn Device, job: &mut Job, stop: &EventFd) -> Result<(), DeviceError> {
    // Buffers that were there before the first kick.
    let mut result = serve_all(device, job);
    loop {
        if let Err(error) = &result {
            job.log.warn(error);
            job.interrupts.need_reset();
            while let Ok([false]) = poll::readable(&[stop.as_raw_fd()], None).as_deref() {}
            return result;
        }
        let kicks = job.kicks.iter().map(AsRawFd::as_raw_fd);
        let fds: Vec<RawFd> = [stop.as_raw_fd()].into_iter().chain(kicks).chain(device.host_fd()).collect();
        result = match poll::readable(&fds, None) {
            Ok(ready) if ready.first() == Some(&true) => return Ok(()),
            Ok(ready) => ready
                .iter()
                .enumerate()
                .skip(1)
                .filter(|(_, ready)| **ready)
                .try_for_each(|(at, _)| ready_fd(device, job, at - 1)),
            Err(source) => Err(DeviceError::Host { what: "poll", source }),
        };
    }
}

fn serve_all(device: &mut dyn Device, job: &mut Job) -> Result<(), DeviceError> {
    (0..job.kicks.len()).try_for_each(|index| device.queue_ready(index, &mut job.queues))
}

fn ready_fd(device: &mut dyn Device, job: &mut Job, index: usize) -> Result<(), DeviceError> {
    match job.kicks.get(index) {
        Some(kick) => {
            // Only clears it; the descriptor does not block.
            let _ = kick.read();
            device.queue_ready(index, &mut job.queues)
        }
        None => device.host_ready(&mut job.queues),
    }
}

/// One kick descriptor per queue.
pub fn kicks(queues: usize) -> io::Result<Vec<EventFd>> {
    (0..queues).map(|_| EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)).collect()
}

//! The thread on which a device serves its queues.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{Device, DeviceError};
use super::queue::{Interrupts, Queues};
use crate::devices::GuestLog;

/// A running device.
pub struct Worker {
    stop: EventFd,
    thread: JoinHandle<Box<dyn Device>>,
}

/// What a thread needs beside the device.
pub struct Job {
    /// The queues.
    pub queues: Queues,
    /// Kicked by the driver, one per queue.
    pub kicks: Arc<Vec<EventFd>>,
    /// To say that the device is broken.
    pub interrupts: Arc<Interrupts>,
}

impl Worker {
    /// Starts serving; the device comes back with the error if there can be no thread.
    pub fn start(device: Box<dyn Device>, job: Job) -> Result<Self, (Box<dyn Device>, io::Error)> {
        let name = format!("virtio-{}", device.info().name);
        let stop = match EventFd::new(EFD_CLOEXEC).and_then(|stop| Ok((stop.try_clone()?, stop))) {
            Ok(stop) => stop,
            Err(error) => return Err((device, error)),
        };
        // The device waits in a slot, so that a failed spawn does not lose it.
        let slot = Arc::new(std::sync::Mutex::new(Some(device)));
        let inside = slot.clone();
        let take = |slot: &std::sync::Mutex<Option<Box<dyn Device>>>| {
            slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
        };
        let body = move || {
            let device = take(&inside);
            #[allow(clippy::expect_used)] // Filled above, and taken by nobody else once the thread exists.
            serve(device.expect("the device waits"), job, &stop.0)
        };
        match std::thread::Builder::new().name(name).spawn(body) {
            Ok(thread) => Ok(Self { stop: stop.1, thread }),
            #[allow(clippy::expect_used)] // No thread has taken it.
            Err(error) => Err((take(&slot).expect("the device waits"), error)),
        }
    }

    /// Ends the thread and takes the device back; `None` if it panicked, which is a bug of ours.
    pub fn stop(self) -> Option<Box<dyn Device>> {
        // A full eventfd is readable, which is all that is wanted.
        let _ = self.stop.write(1);
        self.thread.join().ok()
    }
}

fn serve(mut device: Box<dyn Device>, mut job: Job, stop: &EventFd) -> Box<dyn Device> {
    let log = GuestLog::new(device.info().name);
    // Buffers that were there before the first kick.
    let mut result = (0..job.kicks.len()).try_for_each(|index| device.queue_ready(index, &mut job.queues));
    loop {
        if let Err(error) = &result {
            log.warn(error);
            job.interrupts.need_reset();
            wait(&[stop.as_raw_fd()]);
            return device;
        }
        let kicks = job.kicks.iter().map(AsRawFd::as_raw_fd);
        let host = device.host_fd();
        let fds: Vec<RawFd> = [stop.as_raw_fd()].into_iter().chain(kicks).chain(host).collect();
        let ready = wait(&fds);
        if ready.first() == Some(&true) {
            return device;
        }
        result = ready
            .iter()
            .enumerate()
            .skip(1)
            .filter(|(_, ready)| **ready)
            .try_for_each(|(at, _)| ready_fd(&mut *device, &mut job, at - 1));
    }
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

/// Waits for any of `fds`; tells which are readable or in error.
fn wait(fds: &[RawFd]) -> Vec<bool> {
    let mut polled: Vec<_> =
        fds.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: `polled` is an array of as many initialised entries as the call is told. A call that fails leaves
    // `revents` zero, and the caller waits again.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) };
    polled.iter().map(|polled| polled.revents != 0).collect()
}

/// One kick descriptor per queue.
pub fn kicks(queues: usize) -> io::Result<Vec<EventFd>> {
    (0..queues).map(|_| EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)).collect()
}

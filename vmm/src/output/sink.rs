//! Bytes on their way to a reader that may be slow, stuck or gone.
//!
//! Each sink has a buffer and a thread that writes. Threads that serve the guest put bytes into the buffer. Where it is full
//! they wait as long as the reader takes anything at all, and give up on a reader that has taken nothing for
//! [`STALL`]: until it does again, output is dropped and counted.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::say::say;
use crate::sys::poll;

/// Bytes that may wait for the reader.
const CAPACITY: usize = 1 << 20;
/// Most that is written at once.
const CHUNK: usize = 64 << 10;
/// A reader that takes nothing for this long is taken to be stuck. A guest whose output it is stands still meanwhile.
pub const STALL: Duration = Duration::from_secs(5);
/// How long a reader may be silent once the guest has ended.
const STALL_AT_END: Duration = Duration::from_secs(2);
/// How long a reader that is slow may take once the guest has ended.
const GRACE_AT_END: Duration = Duration::from_secs(30);

/// A way out of the process. Clones share it.
#[derive(Clone)]
pub struct Sink(Arc<Inner>);

struct Inner {
    name: String,
    capacity: usize,
    stall: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    waiting: VecDeque<u8>,
    /// Taken out of `waiting` and not written yet.
    writing: usize,
    /// When the writer began to wait for the reader, or last got something through.
    progress: Instant,
    /// The reader is stuck or gone: nobody waits for it.
    stalled: bool,
    /// The guest has ended: nobody waits longer than until then.
    deadline: Option<Instant>,
    dropped: u64,
    /// An error or a stall was told.
    said: bool,
    quiet: bool,
}

impl Sink {
    /// A sink into `file`, which is called `name` in messages.
    pub fn new(name: &str, file: File) -> io::Result<Self> {
        Self::with(name, file, CAPACITY, STALL)
    }

    fn with(name: &str, file: File, capacity: usize, stall: Duration) -> io::Result<Self> {
        let state = State {
            waiting: VecDeque::new(),
            writing: 0,
            progress: Instant::now(),
            stalled: false,
            deadline: None,
            dropped: 0,
            said: false,
            quiet: false,
        };
        let state = Mutex::new(state);
        let inner =
            Arc::new(Inner { name: name.to_owned(), capacity, stall, state, changed: Condvar::new() });
        let writer = inner.clone();
        std::thread::Builder::new().name(format!("{name}-out")).spawn(move || writer.write(file))?;
        Ok(Self(inner))
    }

    /// A sink that says nothing about itself: the one through which it would be said.
    pub fn quiet(name: &str, file: File) -> io::Result<Self> {
        let sink = Self::new(name, file)?;
        sink.0.lock().quiet = true;
        Ok(sink)
    }

    /// Takes `bytes`; waits for room, within the bounds above.
    pub fn push(&self, bytes: &[u8]) {
        self.0.push(bytes, true);
    }

    /// Takes `bytes` as far as there is room at once.
    pub fn offer(&self, bytes: &[u8]) {
        self.0.push(bytes, false);
    }

    /// The guest has ended: what waits may still go out, but not for ever.
    pub fn end(&self) {
        self.0.lock().deadline.get_or_insert_with(|| Instant::now() + GRACE_AT_END);
        self.0.changed.notify_all();
    }

    /// Waits until everything is written, within bounds; then says how much was not.
    pub fn finish(&self) {
        self.end();
        self.0.finish();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, at most until `until`.
    fn wait<'a>(&self, state: MutexGuard<'a, State>, until: Instant) -> MutexGuard<'a, State> {
        let time = until.saturating_duration_since(Instant::now());
        self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }

    fn push(&self, mut bytes: &[u8], wait: bool) {
        let mut state = self.lock();
        while !bytes.is_empty() {
            let room = self.capacity.saturating_sub(state.waiting.len());
            if state.waiting.is_empty() && state.writing == 0 {
                // The writer was idle; its reader is not to blame for that.
                state.progress = Instant::now();
            }
            let (now, later) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            state.waiting.extend(now);
            bytes = later;
            self.changed.notify_all();
            if bytes.is_empty() {
                return;
            }
            let until = self.until(&state);
            if !wait || state.stalled || Instant::now() >= until {
                state.dropped += bytes.len() as u64;
                if wait && !state.stalled {
                    state.stalled = true;
                    let why = format!("its reader has taken nothing for {} s", self.stall.as_secs());
                    self.say_once(&mut state, &why);
                }
                return;
            }
            if !now.is_empty() {
                continue;
            }
            state = self.wait(state, until);
        }
    }

    /// How long to wait for a reader that takes nothing.
    fn until(&self, state: &State) -> Instant {
        match state.deadline {
            None => state.progress + self.stall,
            Some(deadline) => deadline.min(state.progress + self.stall.min(STALL_AT_END)),
        }
    }

    /// The first trouble is told; what it cost is told at the end.
    fn say_once(&self, state: &mut State, why: &str) {
        if !std::mem::replace(&mut state.said, true) && !state.quiet {
            say(format_args!("{}: {why}; output is lost", self.name));
        }
    }

    fn finish(&self) {
        let mut state = self.lock();
        while !state.waiting.is_empty() || state.writing != 0 {
            let until = self.until(&state);
            if Instant::now() >= until {
                break;
            }
            state = self.wait(state, until);
        }
        let lost = state.dropped + (state.waiting.len() + state.writing) as u64;
        if lost != 0 && !state.quiet {
            say(format_args!("{}: {lost} bytes of output were not taken and are lost", self.name));
        }
    }

    /// The writing thread. It alone waits for the reader without a bound.
    fn write(&self, mut file: File) {
        loop {
            let mut chunk = self.next_chunk();
            while !chunk.is_empty() {
                match file.write(&chunk) {
                    Ok(0) => self.lost(&mut chunk, &io::ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        chunk.drain(..written.min(chunk.len()));
                        self.progress(chunk.len());
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // The other end made its pipe one that does not block.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        poll::writable(file.as_raw_fd());
                    }
                    Err(error) => self.lost(&mut chunk, &error),
                }
            }
        }
    }

    fn next_chunk(&self) -> Vec<u8> {
        let mut state = self.lock();
        while state.waiting.is_empty() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let len = state.waiting.len().min(CHUNK);
        let chunk: Vec<u8> = state.waiting.drain(..len).collect();
        state.writing = chunk.len();
        state.progress = Instant::now();
        self.changed.notify_all();
        chunk
    }

    fn progress(&self, left: usize) {
        let mut state = self.lock();
        state.writing = left;
        state.progress = Instant::now();
        state.stalled = false;
        self.changed.notify_all();
    }

    /// What could not be written is lost, and it is said once. Later output is tried again: a disk may have room again.
    fn lost(&self, chunk: &mut Vec<u8>, error: &io::Error) {
        let mut state = self.lock();
        state.dropped += chunk.len() as u64;
        chunk.clear();
        state.writing = 0;
        state.progress = Instant::now();
        self.say_once(&mut state, &error.to_string());
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn file(end: impl Into<OwnedFd>) -> File {
        File::from(end.into())
    }

    fn sink(file: File, stall: Duration) -> Sink {
        Sink::with("test", file, 4096, stall).unwrap()
    }

    fn nonblocking(file: &File) {
        // SAFETY: the descriptor is open, and the call changes its flags only.
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }, 0);
    }

    #[test]
    fn a_slow_reader_gets_everything_whether_its_pipe_blocks_or_not() {
        for blocks in [true, false] {
            let (mut reader, writer) = io::pipe().unwrap();
            let writer = file(writer);
            if !blocks {
                nonblocking(&writer);
            }
            let sink = sink(writer, Duration::from_secs(60));
            let text: Vec<u8> = (0..300_000u32).map(|at| at as u8).collect();
            let guest = std::thread::spawn({
                let (sink, text) = (sink.clone(), text.clone());
                move || text.chunks(1000).for_each(|piece| sink.push(piece))
            });
            let mut got = Vec::new();
            let mut piece = [0; 5000];
            while got.len() < text.len() {
                std::thread::sleep(Duration::from_millis(1));
                let read = reader.read(&mut piece).unwrap();
                got.extend_from_slice(&piece[..read]);
            }
            guest.join().unwrap();
            sink.finish();
            assert!(got == text, "nothing is lost or changed");
            assert_eq!(sink.0.lock().dropped, 0);
        }
    }

    #[test]
    fn a_stuck_reader_does_not_hold_the_guest_and_is_served_again_when_it_reads() {
        let (mut reader, writer) = io::pipe().unwrap();
        let sink = sink(file(writer), Duration::from_millis(50));
        // The pipe has 64 KiB, the buffer 4; this returns although nobody reads.
        (0..100).for_each(|_| sink.push(&[7; 2000]));
        assert!(sink.0.lock().dropped > 0);
        sink.finish();
        // It reads on a thread of its own: what comes, and when, is the writer's to decide.
        let got = Arc::new(AtomicUsize::new(0));
        let count = got.clone();
        std::thread::spawn(move || {
            let mut piece = vec![0; 128 << 10];
            while let Ok(n @ 1..) = reader.read(&mut piece) {
                count.fetch_add(n, Ordering::SeqCst);
            }
        });
        let served_again = || {
            let state = sink.0.lock();
            !state.stalled && state.writing == 0 && state.waiting.is_empty()
        };
        while !served_again() {
            std::thread::sleep(Duration::from_millis(1));
        }
        sink.push(b"alive");
        sink.finish();
        let dropped = sink.0.lock().dropped as usize;
        while got.load(Ordering::SeqCst) + dropped < 200_000 + 5 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let got = got.load(Ordering::SeqCst);
        assert_eq!(got + dropped, 200_000 + 5, "every byte is written or counted");
    }

    #[test]
    fn a_reader_that_is_gone_costs_no_time() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let sink = sink(file(writer), Duration::from_secs(3600));
        (0..100).for_each(|_| sink.push(&[7; 2000]));
        sink.finish();
        assert_eq!(sink.0.lock().dropped, 200_000);
        assert!(sink.0.lock().said);
    }

    #[test]
    fn what_there_is_no_room_for_at_once_is_dropped_where_nobody_may_wait() {
        let (_reader, writer) = io::pipe().unwrap();
        let sink = sink(file(writer), Duration::from_secs(3600));
        (0..100).for_each(|_| sink.offer(&[7; 2000]));
        assert!(sink.0.lock().dropped > 0);
    }
}

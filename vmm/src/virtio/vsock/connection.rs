//! One connection between a guest's stream and a unix socket: credit, buffering, half-closing.
//!
//! The guest may only send what it was given credit for, so that what waits for a slow host is bounded; and it gets only
//! what it gave credit for. The two directions end apart: an error in one does not cost what is under way in the other.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::sys::poll;

use super::packet::{PAYLOAD_MAX, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};

/// What the guest may have sent beyond what the host has taken.
pub const BUFFER_BYTES: u32 = 256 << 10;

/// How far the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The host asked; the guest has yet to answer.
    Asking,
    /// Both ends are there.
    Open,
    /// The guest is to be told that it is over.
    Broken,
    /// The guest knows that it is over; the host has yet to take what the guest sent.
    Lingering,
    /// To be forgotten.
    Gone,
}

/// A packet for the guest, without its addresses. Its payload is in the buffer that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Operation.
    pub op: u16,
    /// Of a SHUTDOWN.
    pub flags: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Our credit fields.
    pub fwd_cnt: u32,
}

/// A packet from the guest broke the protocol: the connection must be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation;

/// A connection.
pub struct Connection {
    stream: UnixStream,
    state: State,
    /// The host's port, told to the host once the guest accepted.
    announce: Option<u32>,
    /// What is left of telling it.
    announcing: Vec<u8>,
    /// REQUEST or RESPONSE that the guest has yet to get.
    hello: Option<u16>,
    /// The stream may have something to read.
    readable: bool,
    /// What the host will not do any more, as SHUTDOWN flags, and what of that the guest is yet to be told.
    host_ended: u32,
    shutdown_due: u32,
    /// What the guest will not do any more, as SHUTDOWN flags.
    guest_ended: u32,
    /// From the guest, waiting for the host.
    waiting: VecDeque<u8>,
    /// Bytes that the host took, and what the guest knows of it.
    forwarded: u32,
    forwarded_told: u32,
    /// Bytes sent to the guest, and its credit.
    sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,
    credit_request_due: bool,
    credit_requested: bool,
    credit_asked: bool,
}

impl Connection {
    fn new(stream: UnixStream, state: State, hello: u16, announce: Option<u32>) -> Self {
        Self {
            stream,
            state,
            announce,
            announcing: Vec::new(),
            hello: Some(hello),
            readable: true,
            host_ended: 0,
            shutdown_due: 0,
            guest_ended: 0,
            waiting: VecDeque::new(),
            forwarded: 0,
            forwarded_told: 0,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            credit_request_due: false,
            credit_requested: false,
            credit_asked: false,
        }
    }

    /// The guest connected to `stream`.
    pub fn accepted(stream: UnixStream) -> Self {
        Self::new(stream, State::Open, op::RESPONSE, None)
    }

    /// The host asks the guest, from its port `host_port`.
    pub fn asked(stream: UnixStream, host_port: u32) -> Self {
        Self::new(stream, State::Asking, op::REQUEST, Some(host_port))
    }

    /// Ends it for a fault of the guest or the host.
    pub fn break_off(&mut self) {
        if self.state != State::Gone {
            self.state = State::Broken;
        }
    }

    /// The stream may have become readable or writable.
    pub fn stream_ready(&mut self) {
        self.readable = true;
        self.flush();
    }

    /// The guest's credit, which every packet of it carries.
    pub fn take_credit(&mut self, buffer: u32, forwarded: u32) {
        (self.guest_buffer, self.guest_forwarded) = (buffer, forwarded);
        if self.credit() > 0 {
            self.credit_requested = false;
        }
    }

    /// How much the guest can take.
    fn credit(&self) -> u32 {
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// A packet of the guest.
    pub fn receive(&mut self, op: u16, flags: u32, payload: &[u8]) -> Result<(), Violation> {
        match (op, self.state) {
            (op::RESPONSE, State::Asking) => {
                self.state = State::Open;
                self.announcing =
                    self.announce.take().map_or(String::new(), |port| format!("OK {port}\n")).into();
                self.flush();
                Ok(())
            }
            (op::RST, _) => {
                self.state = if self.waiting.is_empty() { State::Gone } else { State::Lingering };
                Ok(())
            }
            // It was on its way when the guest was told that the host takes no more.
            (op::RW, State::Open)
                if self.host_ended & SHUTDOWN_RECEIVE != 0 && self.guest_ended & SHUTDOWN_SEND == 0 =>
            {
                self.forwarded = self.forwarded.wrapping_add(payload.len() as u32);
                Ok(())
            }
            (op::RW, State::Open) if self.guest_ended & SHUTDOWN_SEND == 0 => {
                let room = (BUFFER_BYTES as usize).saturating_sub(self.waiting.len());
                if payload.len() > room {
                    return Err(Violation);
                }
                self.waiting.extend(payload);
                self.flush();
                Ok(())
            }
            (op::SHUTDOWN, State::Open) => {
                self.guest_ended |= flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
                if self.guest_ended & SHUTDOWN_RECEIVE != 0 {
                    // Fails where the host has gone. Else it learns at its next write.
                    let _ = self.stream.shutdown(Shutdown::Read);
                }
                self.flush();
                Ok(())
            }
            (op::CREDIT_UPDATE, _) => Ok(()),
            (op::CREDIT_REQUEST, State::Open) => {
                self.credit_asked = true;
                Ok(())
            }
            (_, State::Broken | State::Lingering | State::Gone) => Ok(()),
            _ => Err(Violation),
        }
    }

    /// Gives the host what waits for it; then ends what the guest has ended.
    fn flush(&mut self) {
        self.write_out();
        if !self.waiting.is_empty() || !self.announcing.is_empty() {
            return;
        }
        if self.state == State::Lingering {
            self.state = State::Gone;
        }
        if self.guest_ended & SHUTDOWN_SEND != 0 {
            // Fails where the host has gone, which the next read notices.
            let _ = self.stream.shutdown(Shutdown::Write);
            if self.guest_ended & SHUTDOWN_RECEIVE != 0 {
                // The guest waits for a reset to forget the connection.
                self.break_off();
            }
        }
    }

    fn write_out(&mut self) {
        loop {
            let (front, credited) = match self.announcing.as_slice() {
                [] => (self.waiting.as_slices().0, true),
                line => (line, false),
            };
            if front.is_empty() {
                return;
            }
            match self.stream.write(front) {
                Ok(0) => return self.host_takes_no_more(0),
                Ok(written) if credited => {
                    self.waiting.drain(..written);
                    self.forwarded = self.forwarded.wrapping_add(written as u32);
                }
                Ok(written) => drop(self.announcing.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.host_takes_no_more(0),
            }
        }
    }

    /// The host reads no more, so what waits for it is of no use. What it has sent still is. `more`: what else it does no more.
    fn host_takes_no_more(&mut self, more: u32) {
        self.forwarded = self.forwarded.wrapping_add(self.waiting.len() as u32);
        self.waiting.clear();
        self.announcing.clear();
        self.host_ends(SHUTDOWN_RECEIVE | more);
    }

    /// What the host does no more, which the guest is told once.
    fn host_ends(&mut self, flags: u32) {
        self.shutdown_due |= flags & !self.host_ended;
        self.host_ended |= flags;
    }

    /// The next packet for the guest, its payload read into `buffer`.
    pub fn next(&mut self, buffer: &mut [u8]) -> Option<Outgoing> {
        let (op, flags, len) = self.next_op(buffer)?;
        self.forwarded_told = self.forwarded;
        Some(Outgoing { op, flags, len, fwd_cnt: self.forwarded })
    }

    fn next_op(&mut self, buffer: &mut [u8]) -> Option<(u16, u32, u32)> {
        match self.state {
            State::Gone | State::Lingering => return None,
            State::Broken => return Some(self.reset()),
            State::Asking | State::Open => {}
        }
        if let Some(hello) = self.hello.take() {
            return Some((hello, 0, 0));
        }
        if self.state == State::Asking {
            return None;
        }
        if let Some(len) = self.read(buffer) {
            return Some((op::RW, 0, len));
        }
        if self.state == State::Broken {
            return Some(self.reset());
        }
        if self.shutdown_due != 0 {
            return Some((op::SHUTDOWN, std::mem::take(&mut self.shutdown_due), 0));
        }
        if std::mem::take(&mut self.credit_asked)
            || self.forwarded.wrapping_sub(self.forwarded_told) > BUFFER_BYTES / 2
        {
            return Some((op::CREDIT_UPDATE, 0, 0));
        }
        if std::mem::take(&mut self.credit_request_due) {
            return Some((op::CREDIT_REQUEST, 0, 0));
        }
        None
    }

    fn reset(&mut self) -> (u16, u32, u32) {
        self.state = State::Gone;
        (op::RST, 0, 0)
    }

    /// Reads from the host, as much as buffer and credit allow.
    fn read(&mut self, buffer: &mut [u8]) -> Option<u32> {
        if !self.readable || self.host_ended & SHUTDOWN_SEND != 0 || self.guest_ended & SHUTDOWN_RECEIVE != 0
        {
            return None;
        }
        let room = buffer.len().min(PAYLOAD_MAX).min(self.credit() as usize);
        if room == 0 {
            if self.credit() == 0 && !self.credit_requested {
                (self.credit_requested, self.credit_request_due) = (true, true);
            }
            return None;
        }
        loop {
            match self.stream.read(buffer.get_mut(..room).unwrap_or_default()) {
                Ok(0) => self.host_ends(SHUTDOWN_SEND),
                Ok(read) => {
                    self.sent = self.sent.wrapping_add(read as u32);
                    return Some(read as u32);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                // Everything that it sent was read; it closed without reading what it got.
                Err(_) => self.host_takes_no_more(SHUTDOWN_SEND),
            }
            return None;
        }
    }

    /// Whether it is there for the host only.
    pub fn is_lingering(&self) -> bool {
        self.state == State::Lingering
    }

    /// The guest has ended: gives the host what waits for it, at most until `until`.
    pub fn finish(&mut self, until: Instant) {
        while !self.waiting.is_empty() && !self.is_gone() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || poll::writable_within(self.stream.as_raw_fd(), left).is_err() {
                return;
            }
            self.flush();
        }
    }

    /// Whether it can be forgotten.
    pub fn is_gone(&self) -> bool {
        self.state == State::Gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An open connection with credit for `credit` bytes, the host's end, and its greeting taken.
    fn open(credit: u32) -> (Connection, UnixStream) {
        let (ours, host) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut connection = Connection::accepted(ours);
        connection.take_credit(credit, 0);
        assert_eq!(connection.next(&mut []).unwrap().op, op::RESPONSE);
        (connection, host)
    }

    fn next(connection: &mut Connection) -> Option<(u16, Vec<u8>)> {
        let mut buffer = vec![0; 100];
        let packet = connection.next(&mut buffer)?;
        Some((packet.op, buffer[..packet.len as usize].to_vec()))
    }

    #[test]
    fn bytes_go_both_ways_and_are_credited() {
        let (mut connection, mut host) = open(1000);
        connection.receive(op::RW, 0, b"to the host").unwrap();
        let mut bytes = [0; 11];
        host.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"to the host");
        host.write_all(b"to the guest").unwrap();
        connection.stream_ready();
        let mut buffer = [0; 100];
        let packet = connection.next(&mut buffer).unwrap();
        assert_eq!((packet.op, packet.len, packet.fwd_cnt), (op::RW, 12, 11));
        assert_eq!(&buffer[..12], b"to the guest");
        assert_eq!(next(&mut connection), None);
    }

    #[test]
    fn the_guest_gets_no_more_than_its_credit() {
        let (mut connection, mut host) = open(4);
        host.write_all(b"123456").unwrap();
        connection.stream_ready();
        assert_eq!(next(&mut connection), Some((op::RW, b"1234".to_vec())));
        assert_eq!(next(&mut connection), Some((op::CREDIT_REQUEST, vec![])));
        assert_eq!(next(&mut connection), None, "asked once");
        connection.take_credit(4, 4);
        assert_eq!(next(&mut connection), Some((op::RW, b"56".to_vec())));
        // Credit that makes no sense is none.
        connection.take_credit(4, 100);
        host.write_all(b"x").unwrap();
        connection.stream_ready();
        assert_eq!(next(&mut connection), Some((op::CREDIT_REQUEST, vec![])));
    }

    #[test]
    fn a_guest_that_sends_more_than_its_credit_is_reset() {
        let (mut connection, host) = open(1000);
        let chunk = vec![7; 16 << 10];
        let mut sent = 0;
        let violated = loop {
            if connection.receive(op::RW, 0, &chunk).is_err() {
                break sent;
            }
            sent += chunk.len();
            assert!(sent < 16 << 20, "the guest can fill the host's memory");
        };
        assert!(violated >= BUFFER_BYTES as usize);
        drop(host);
    }

    #[test]
    fn taken_bytes_are_reported_before_the_guest_stalls() {
        let (mut connection, mut host) = open(1000);
        let chunk = vec![7; 32 << 10];
        let mut bytes = vec![0; chunk.len()];
        let mut updates = 0;
        for _ in 0..32 {
            connection.receive(op::RW, 0, &chunk).unwrap();
            connection.stream_ready();
            host.read_exact(&mut bytes).unwrap();
            updates += usize::from(next(&mut connection).is_some_and(|(op, _)| op == op::CREDIT_UPDATE));
        }
        assert!(updates >= 4);
    }

    #[test]
    fn ends_close_one_after_the_other() {
        let (mut connection, mut host) = open(1000);
        host.write_all(b"last").unwrap();
        host.shutdown(Shutdown::Write).unwrap();
        connection.stream_ready();
        assert_eq!(next(&mut connection), Some((op::RW, b"last".to_vec())));
        let mut buffer = [0; 8];
        let packet = connection.next(&mut buffer).unwrap();
        assert_eq!((packet.op, packet.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
        connection.receive(op::RW, 0, b"answer").unwrap();
        connection.receive(op::SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, &[]).unwrap();
        assert_eq!(next(&mut connection), Some((op::RST, vec![])));
        assert!(connection.is_gone());
        let mut answer = String::new();
        host.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
    }

    #[test]
    fn a_host_that_does_not_read_still_delivers_what_it_sent() {
        // It asked, wrote, and closed before the guest accepted: the answer to it has no reader.
        let (ours, mut host) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut connection = Connection::asked(ours, 77);
        assert_eq!(next(&mut connection), Some((op::REQUEST, vec![])));
        host.write_all(b"one way").unwrap();
        drop(host);
        connection.receive(op::RESPONSE, 0, &[]).unwrap();
        connection.take_credit(1000, 0);
        connection.stream_ready();
        assert_eq!(next(&mut connection), Some((op::RW, b"one way".to_vec())));
        let mut buffer = [0; 8];
        let packets: Vec<_> = std::iter::from_fn(|| connection.next(&mut buffer)).collect();
        let flags = packets.iter().fold(0, |flags, packet| flags | packet.flags);
        assert!(packets.iter().all(|packet| packet.op == op::SHUTDOWN));
        assert_eq!(flags, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    }

    #[test]
    fn a_host_that_stops_reading_is_told_to_the_guest_and_its_data_still_comes() {
        let (mut connection, mut host) = open(1000);
        host.shutdown(Shutdown::Read).unwrap();
        connection.receive(op::RW, 0, b"nobody reads this").unwrap();
        host.write_all(b"but this is read").unwrap();
        connection.stream_ready();
        let mut buffer = [0; 100];
        let packets: Vec<_> = std::iter::from_fn(|| connection.next(&mut buffer)).collect();
        assert_eq!(
            packets.iter().filter(|packet| packet.op == op::RW).map(|packet| packet.len).sum::<u32>(),
            16
        );
        let shutdown = packets.iter().find(|packet| packet.op == op::SHUTDOWN).unwrap();
        assert_eq!(shutdown.flags, SHUTDOWN_RECEIVE);
        assert_eq!(packets.last().unwrap().fwd_cnt, 17, "its credit comes back");
        connection.receive(op::RW, 0, b"on its way").unwrap();
        host.shutdown(Shutdown::Write).unwrap();
        connection.stream_ready();
        let last = connection.next(&mut buffer).unwrap();
        assert_eq!((last.op, last.flags, last.fwd_cnt), (op::SHUTDOWN, SHUTDOWN_SEND, 27));
    }

    /// More than a socket's buffer holds, within the guest's credit.
    fn fill(connection: &mut Connection) -> Vec<u8> {
        let chunk: Vec<u8> = (0..16u32 << 10).map(|at| (at / 7) as u8).collect();
        let mut sent = Vec::new();
        while connection.waiting.is_empty() {
            connection.receive(op::RW, 0, &chunk).unwrap();
            sent.extend_from_slice(&chunk);
        }
        sent
    }

    #[test]
    fn a_guest_that_writes_and_leaves_is_heard_to_the_end() {
        for orderly in [true, false] {
            let (mut connection, mut host) = open(1000);
            let sent = fill(&mut connection);
            if orderly {
                connection.receive(op::SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, &[]).unwrap();
                let told = std::iter::from_fn(|| next(&mut connection));
                assert!(
                    told.into_iter().all(|(op, _)| op == op::CREDIT_UPDATE),
                    "the host is yet to take it"
                );
            }
            // Linux waits 8 s for the answer to its shutdown, and then resets.
            connection.receive(op::RST, 0, &[]).unwrap();
            assert!(connection.is_lingering() && next(&mut connection).is_none());
            let mut got = vec![0; sent.len()];
            let reader = std::thread::spawn(move || {
                host.read_exact(&mut got).unwrap();
                got
            });
            while connection.is_lingering() {
                connection.stream_ready();
            }
            assert!(connection.is_gone());
            drop(connection);
            assert!(reader.join().unwrap() == sent);
        }
    }

    #[test]
    fn what_waits_when_the_guest_ends_still_goes_out_unless_nobody_reads() {
        let (mut connection, mut host) = open(1000);
        let sent = fill(&mut connection);
        connection.finish(Instant::now());
        assert!(!connection.waiting.is_empty());
        let mut got = vec![0; sent.len()];
        let reader = std::thread::spawn(move || {
            host.read_exact(&mut got).unwrap();
            got
        });
        connection.finish(Instant::now() + std::time::Duration::from_secs(60));
        assert!(connection.waiting.is_empty() && reader.join().unwrap() == sent);
    }

    #[test]
    fn packets_out_of_order_are_violations() {
        for operation in [0, op::REQUEST, op::RESPONSE, 8, 0xffff] {
            let (mut connection, _host) = open(1000);
            assert_eq!(connection.receive(operation, 0, &[]), Err(Violation), "operation {operation}");
        }
        let (mut connection, _host) = open(1000);
        connection.receive(op::SHUTDOWN, SHUTDOWN_SEND, &[]).unwrap();
        assert_eq!(connection.receive(op::RW, 0, b"x"), Err(Violation));
        let (mut connection, _host) = open(1000);
        connection.receive(op::RST, 0, &[]).unwrap();
        assert!(connection.is_gone());
        assert_eq!(next(&mut connection), None, "a reset is not answered");
    }

    #[test]
    fn the_host_is_told_when_the_guest_accepts() {
        let (ours, mut host) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut connection = Connection::asked(ours, 77);
        assert_eq!(next(&mut connection), Some((op::REQUEST, vec![])));
        assert_eq!(next(&mut connection), None);
        assert_eq!(connection.receive(op::RW, 0, b"early"), Err(Violation));
        connection.receive(op::RESPONSE, 0, &[]).unwrap();
        let mut line = [0; 6];
        host.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"OK 77\n");
    }
}

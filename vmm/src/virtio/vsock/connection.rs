//! One connection between a guest's stream and a unix socket: credit, buffering, half-closing.
//!
//! The guest may only send what it was given credit for, so that what waits for a slow host is bounded; and it gets only
//! what it gave credit for.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

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
    /// REQUEST or RESPONSE that the guest has yet to get.
    hello: Option<u16>,
    /// The stream may have something to read.
    readable: bool,
    /// The host sends no more, and the guest was told.
    host_ended: bool,
    shutdown_due: bool,
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
            hello: Some(hello),
            readable: true,
            host_ended: false,
            shutdown_due: false,
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
                let announced =
                    self.announce.take().map(|port| self.stream.write_all(format!("OK {port}\n").as_bytes()));
                if announced.is_some_and(|written| written.is_err()) {
                    self.break_off();
                }
                Ok(())
            }
            (op::RST, _) => {
                self.state = State::Gone;
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
                self.flush();
                Ok(())
            }
            (op::CREDIT_UPDATE, _) => Ok(()),
            (op::CREDIT_REQUEST, State::Open) => {
                self.credit_asked = true;
                Ok(())
            }
            (_, State::Broken | State::Gone) => Ok(()),
            _ => Err(Violation),
        }
    }

    /// Gives the host what waits for it.
    fn flush(&mut self) {
        while !self.waiting.is_empty() {
            let (front, _) = self.waiting.as_slices();
            match self.stream.write(front) {
                Ok(0) => return self.break_off(),
                Ok(written) => {
                    self.waiting.drain(..written);
                    self.forwarded = self.forwarded.wrapping_add(written as u32);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.break_off(),
            }
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

    /// The next packet for the guest, its payload read into `buffer`.
    pub fn next(&mut self, buffer: &mut [u8]) -> Option<Outgoing> {
        let (op, flags, len) = self.next_op(buffer)?;
        self.forwarded_told = self.forwarded;
        Some(Outgoing { op, flags, len, fwd_cnt: self.forwarded })
    }

    fn next_op(&mut self, buffer: &mut [u8]) -> Option<(u16, u32, u32)> {
        match self.state {
            State::Gone => return None,
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
        if std::mem::take(&mut self.shutdown_due) {
            return Some((op::SHUTDOWN, SHUTDOWN_SEND, 0));
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
        if !self.readable || self.host_ended || self.guest_ended & SHUTDOWN_RECEIVE != 0 {
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
                Ok(0) => (self.host_ended, self.shutdown_due) = (true, true),
                Ok(read) => {
                    self.sent = self.sent.wrapping_add(read as u32);
                    return Some(read as u32);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(_) => self.break_off(),
            }
            return None;
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

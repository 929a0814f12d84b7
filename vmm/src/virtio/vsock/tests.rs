//! A guest's driver and host programs on both sides of the device.

use super::super::queue::tests::Driver;
use super::packet::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;
use std::os::unix::net::UnixListener;
use zerocopy::{FromBytes, FromZeros};

const CID: u32 = 7;

struct Rig {
    vsock: Vsock,
    driver: Driver,
    queues: Queues,
    buffers: VecDeque<u64>,
    dir: tempfile::TempDir,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let vsock = Vsock::open(&VsockArgs { cid: CID, socket: dir.path().join("v") }).unwrap();
    let (driver, queues) = Driver::new(3);
    Rig { vsock, driver, queues, buffers: VecDeque::new(), dir }
}

impl Rig {
    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.path().join(format!("v_{port}"))).unwrap()
    }

    /// Sends a packet from guest port 1000 to host port `host`.
    fn send(&mut self, host: u32, op: u16, flags: u32, payload: &[u8]) {
        let header = Header {
            src_cid: u64::from(CID).into(),
            dst_cid: HOST_CID.into(),
            src_port: 1000.into(),
            dst_port: host.into(),
            len: (payload.len() as u32).into(),
            kind: TYPE_STREAM.into(),
            op: op.into(),
            flags: flags.into(),
            buf_alloc: 4096.into(),
            fwd_cnt: 0.into(),
        };
        self.send_header(&header, payload);
    }

    fn send_header(&mut self, header: &Header, payload: &[u8]) {
        let parts: &[&[u8]] = if payload.is_empty() { &[] } else { &[payload] };
        self.driver.offer(TRANSMIT, &[&[header.as_bytes()], parts].concat(), &[]);
        self.vsock.queue_ready(TRANSMIT, &mut self.queues).unwrap();
    }

    /// Offers a buffer and returns the packet in it, if one comes.
    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        if self.buffers.is_empty() {
            let buffer = self.driver.offer(RECEIVE, &[], &[HEADER_BYTES + 100]);
            self.buffers.extend(buffer);
        }
        self.vsock.queue_ready(RECEIVE, &mut self.queues).unwrap();
        self.vsock.host_ready(&mut self.queues).unwrap();
        let len = *self.driver.returned(RECEIVE).first()? as usize;
        let bytes = self.driver.read(self.buffers.pop_front().unwrap(), len);
        let (header, payload) = Header::read_from_prefix(&bytes).unwrap();
        assert_eq!((header.src_cid.get(), header.dst_cid.get()), (HOST_CID, u64::from(CID)));
        Some((header, payload.to_vec()))
    }

    fn expect(&mut self, op: u16) -> (Header, Vec<u8>) {
        let packet = self.receive().unwrap();
        assert_eq!(packet.0.op.get(), op);
        packet
    }
}

#[test]
fn a_guest_reaches_a_listener_of_the_host() {
    let mut rig = rig();
    let listener = rig.listen(5000);
    rig.send(5000, op::REQUEST, 0, &[]);
    let (response, _) = rig.expect(op::RESPONSE);
    assert_eq!((response.src_port.get(), response.dst_port.get()), (5000, 1000));
    assert_eq!(response.buf_alloc.get(), BUFFER_BYTES);
    let (mut host, _) = listener.accept().unwrap();
    rig.send(5000, op::RW, 0, b"GET /\n");
    let mut bytes = [0; 6];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"GET /\n");
    host.write_all(b"200 OK\n").unwrap();
    let (header, payload) = rig.expect(op::RW);
    assert_eq!((payload.as_slice(), header.fwd_cnt.get()), (&b"200 OK\n"[..], 6));
    drop(host);
    let (shutdown, _) = rig.expect(op::SHUTDOWN);
    assert_eq!(shutdown.flags.get(), SHUTDOWN_SEND);
    rig.send(5000, op::SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, &[]);
    rig.expect(op::RST);
    assert!(rig.vsock.connections.is_empty() && rig.receive().is_none());
}

#[test]
fn the_host_reaches_a_listener_of_the_guest() {
    let mut rig = rig();
    let mut host = UnixStream::connect(rig.dir.path().join("v")).unwrap();
    host.write_all(b"CONNECT 1000\nhello").unwrap();
    let (request, _) = rig.expect(op::REQUEST);
    assert_eq!(request.dst_port.get(), 1000);
    let port = request.src_port.get();
    assert!(port >= HOST_PORT_FIRST);
    rig.send(port, op::RESPONSE, 0, &[]);
    let (_, payload) = rig.expect(op::RW);
    assert_eq!(payload, b"hello", "what follows the line is the stream's");
    let answer = format!("OK {port}\n");
    let mut line = vec![0; answer.len()];
    host.read_exact(&mut line).unwrap();
    assert_eq!(line, answer.as_bytes());
}

#[test]
fn nobody_listening_is_a_reset() {
    let mut rig = rig();
    rig.send(5000, op::REQUEST, 0, &[]);
    rig.expect(op::RST);
    rig.send(5000, op::RW, 0, b"anyone?");
    rig.expect(op::RST);
    rig.send(5000, op::RST, 0, &[]);
    assert!(rig.receive().is_none(), "a reset is not answered");
}

#[test]
fn a_host_program_that_says_nonsense_is_dropped() {
    let mut rig = rig();
    for line in ["GET / HTTP/1.1\n", "CONNECT\n", "CONNECT x\n", "CONNECT 4294967296\n", &"C".repeat(64)] {
        let mut host = UnixStream::connect(rig.dir.path().join("v")).unwrap();
        host.write_all(line.as_bytes()).unwrap();
        assert!(rig.receive().is_none());
        // Unread bytes make it a reset instead of an end.
        assert!(matches!(host.read(&mut [0; 1]), Ok(0) | Err(_)), "{line:?}");
        assert!(rig.vsock.handshakes.is_empty());
    }
}

#[test]
fn connections_are_bounded() {
    let mut rig = rig();
    let listener = rig.listen(1);
    let mut hosts = Vec::new();
    for source in 0..CONNECTIONS_MAX as u32 + 1 {
        let header = Header {
            src_cid: u64::from(CID).into(),
            dst_cid: HOST_CID.into(),
            src_port: source.into(),
            dst_port: 1.into(),
            kind: TYPE_STREAM.into(),
            op: op::REQUEST.into(),
            ..Header::new_zeroed()
        };
        rig.vsock.hear(&header, &[]);
        if (source as usize) < CONNECTIONS_MAX {
            hosts.push(listener.accept().unwrap());
        }
    }
    assert_eq!(rig.vsock.connections.len(), CONNECTIONS_MAX);
    assert_eq!(rig.vsock.resets, [Ports { guest: CONNECTIONS_MAX as u32, host: 1 }]);
}

#[test]
fn a_guest_that_takes_no_answers_is_not_listened_to() {
    let mut rig = rig();
    for _ in 0..10 {
        for _ in 0..8 {
            rig.driver.offer(
                TRANSMIT,
                &[Header::to_guest(0, Ports { guest: 0, host: 0 }, op::RW).as_bytes()],
                &[],
            );
            rig.vsock.queue_ready(TRANSMIT, &mut rig.queues).unwrap();
        }
        rig.driver.returned(TRANSMIT);
    }
    assert_eq!(rig.vsock.resets.len(), RESETS_MAX);
}

/// A listener whose queue is full, and the connections that fill it.
fn busy_listener(rig: &Rig, port: u32) -> (UnixListener, Vec<UnixStream>) {
    let listener = rig.listen(port);
    // SAFETY: the descriptor is a listening socket; this shortens its queue.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let path = rig.dir.path().join(format!("v_{port}"));
    let queue = (0..16).map_while(|_| connect_unix(&path).ok()).collect();
    (listener, queue)
}

#[test]
fn a_listener_whose_queue_is_full_delays_nobody_and_is_reached_once_it_accepts() {
    let mut rig = rig();
    let (listener, queue) = busy_listener(&rig, 5000);
    rig.send(5000, op::REQUEST, 0, &[]);
    // Other connections go on meanwhile.
    rig.send(6000, op::REQUEST, 0, &[]);
    let (refused, _) = rig.expect(op::RST);
    assert_eq!(refused.src_port.get(), 6000);
    queue.iter().for_each(|_| drop(listener.accept().unwrap()));
    let (response, _) = std::iter::repeat_with(|| rig.receive()).find_map(|packet| packet).unwrap();
    assert_eq!((response.op.get(), response.src_port.get()), (op::RESPONSE, 5000));
    assert!(listener.accept().is_ok() && rig.vsock.calls.len() == 0);
}

#[test]
fn a_listener_that_never_accepts_is_a_reset_in_the_end() {
    let mut rig = rig();
    let _busy = busy_listener(&rig, 5000);
    rig.send(5000, op::REQUEST, 0, &[]);
    let (reset, _) = std::iter::repeat_with(|| rig.receive()).find_map(|packet| packet).unwrap();
    assert_eq!((reset.op.get(), reset.src_port.get()), (op::RST, 5000));
    // A guest that gives up first is not answered.
    rig.send(5000, op::REQUEST, 0, &[]);
    rig.send(5000, op::RST, 0, &[]);
    assert!(rig.vsock.calls.len() == 0 && rig.receive().is_none());
}

#[test]
fn malformed_packets_break_the_device() {
    for (len, payload) in [(10, &b"short"[..]), (u32::MAX, &b"long"[..])] {
        let mut rig = rig();
        let header = Header { len: len.into(), ..Header::to_guest(0, Ports { guest: 0, host: 0 }, op::RW) };
        rig.driver.offer(TRANSMIT, &[header.as_bytes(), payload], &[]);
        assert!(rig.vsock.queue_ready(TRANSMIT, &mut rig.queues).is_err());
    }
    let mut rig = rig();
    rig.driver.offer(TRANSMIT, &[b"no header"], &[]);
    assert!(rig.vsock.queue_ready(TRANSMIT, &mut rig.queues).is_err());
}

#[test]
fn the_socket_goes_with_the_device() {
    let rig = rig();
    let path = rig.dir.path().join("v");
    assert!(path.exists());
    let busy = Vsock::open(&VsockArgs { cid: CID, socket: path.clone() });
    assert!(busy.is_err() && path.exists(), "a busy path is left alone");
    drop(rig.vsock);
    assert!(!path.exists());
}

//! vsock, hybrid: the guest's streams end in unix sockets of the host (virtio 1.2, 5.10; Firecracker's convention).
//!
//! A guest that connects to port P of CID 2 reaches whoever listens at `PATH_P`. A host program that connects to `PATH` and
//! sends `CONNECT P\n` reaches the guest's port P and is answered `OK <host port>\n`.

mod calls;
mod connection;
mod packet;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use zerocopy::IntoBytes;

use super::chain::Chain;
use super::{Device, DeviceError, DeviceInfo, Queues};
use crate::config::VsockArgs;
use crate::sys::listener::SocketFile;
use crate::sys::socket::connect_unix;
use calls::{Call, Calls};
use connection::{BUFFER_BYTES, Connection};
use packet::{HEADER_BYTES, HOST_CID, Header, PAYLOAD_MAX, Ports, TYPE_STREAM, op};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;

/// Connections at a time; more are reset.
const CONNECTIONS_MAX: usize = 256;
/// Host programs that have not said yet where they want to go.
const HANDSHAKES_MAX: usize = 64;
/// Connections of which only the host has something left; the oldest give way.
const LINGERING_MAX: usize = 64;
/// How long the host's programs may take to read what is left when the guest has ended.
const FINISH_TIME: Duration = Duration::from_secs(2);
/// Resets for connections that do not exist, waiting for the guest's buffers.
const RESETS_MAX: usize = 64;
/// `CONNECT 4294967295\n`
const HANDSHAKE_BYTES_MAX: usize = 19;
/// Ports of host ends start here.
const HOST_PORT_FIRST: u32 = 1 << 30;

/// A host program that is saying where it wants to go.
struct Handshake {
    stream: UnixStream,
    line: Vec<u8>,
}

/// Whom an epoll event is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Listener,
    Timer,
    Handshake(u32),
    Connection(Ports),
}

/// Identifiers of handshakes end before this.
const TIMER: u32 = u32::MAX - 1;

impl Token {
    // Host ports of handshakes are taken from the same counter, so the guest port tells the kinds apart only with
    // a mark that no host port from the counter has.
    fn data(self) -> u64 {
        match self {
            Self::Listener => u64::MAX,
            Self::Timer => u64::MAX - 1,
            Self::Handshake(id) => u64::MAX << 32 | u64::from(id),
            Self::Connection(ports) => u64::from(ports.guest) << 32 | u64::from(ports.host),
        }
    }

    fn from_data(data: u64) -> Self {
        match ((data >> 32) as u32, data as u32) {
            (u32::MAX, u32::MAX) => Self::Listener,
            (u32::MAX, TIMER) => Self::Timer,
            (u32::MAX, id) => Self::Handshake(id),
            (guest, host) => Self::Connection(Ports { guest, host }),
        }
    }
}

/// The device.
pub struct Vsock {
    cid: u64,
    path: PathBuf,
    socket: SocketFile,
    epoll: Epoll,
    calls: Calls,
    connections: BTreeMap<Ports, Connection>,
    /// Connections that the guest has forgotten, and whose host ends have not yet taken all that it sent.
    lingering: VecDeque<(Ports, Connection)>,
    handshakes: BTreeMap<u32, Handshake>,
    resets: VecDeque<Ports>,
    next_host_port: u32,
    next_handshake: u32,
    /// Whose turn it is.
    turn: Option<Ports>,
    buffer: Vec<u8>,
    /// Payload of the packet that is being taken; kept for its allocation.
    incoming: Vec<u8>,
}

impl Vsock {
    /// Listens at the socket's path.
    pub fn open(args: &VsockArgs) -> io::Result<Self> {
        let socket = SocketFile::bind(&args.socket)?;
        let epoll = Epoll::new()?;
        let calls = Calls::new()?;
        for (fd, token) in
            [(socket.listener.as_raw_fd(), Token::Listener), (calls.timer().as_raw_fd(), Token::Timer)]
        {
            let event = EpollEvent::new(EventSet::IN, token.data());
            epoll.ctl(ControlOperation::Add, fd, event)?;
        }
        Ok(Self {
            cid: u64::from(args.cid),
            path: args.socket.clone(),
            socket,
            epoll,
            calls,
            connections: BTreeMap::new(),
            lingering: VecDeque::new(),
            handshakes: BTreeMap::new(),
            resets: VecDeque::new(),
            next_host_port: HOST_PORT_FIRST,
            next_handshake: 0,
            turn: None,
            buffer: vec![0; PAYLOAD_MAX],
            incoming: Vec::new(),
        })
    }

    fn watch(&self, stream: &UnixStream, token: Token) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        // Edge-triggered: a stream that waits for the guest does not wake this thread again and again.
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(events, token.data());
        match self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.epoll.ctl(ControlOperation::Modify, stream.as_raw_fd(), event)
            }
            result => result,
        }
    }

    /// A packet from the guest. What it says is checked before it means anything.
    fn hear(&mut self, header: &Header, payload: &[u8]) {
        let ports = header.ports();
        let ours = header.src_cid.get() == self.cid && header.dst_cid.get() == HOST_CID;
        let operation = header.op.get();
        // A guest port that epoll tokens use for other things; no driver takes it by itself.
        if !ours || header.kind.get() != TYPE_STREAM || ports.guest == u32::MAX {
            return self.refuse(operation, ports);
        }
        match self.connections.get_mut(&ports) {
            Some(connection) => {
                connection.take_credit(header.buf_alloc.get(), header.fwd_cnt.get());
                if connection.receive(operation, header.flags.get(), payload).is_err() {
                    connection.break_off();
                }
                if connection.is_lingering() {
                    self.lingering.extend(self.connections.remove_entry(&ports));
                    if self.lingering.len() > LINGERING_MAX {
                        self.lingering.pop_front();
                    }
                }
            }
            // Whatever else the guest says to a call ends it.
            None if self.calls.remove(ports) => self.refuse(operation, ports),
            None if operation == op::REQUEST => {
                self.call(Call::new(ports, header.buf_alloc.get(), header.fwd_cnt.get()));
            }
            None => self.refuse(operation, ports),
        }
        self.connections.retain(|_, connection| !connection.is_gone());
    }

    fn refuse(&mut self, operation: u16, ports: Ports) {
        // A reset is never answered, or two sides that disagree would never stop.
        if operation != op::RST {
            self.resets.push_back(ports);
        }
    }

    /// Connects the guest to a listener of the host, at once or, where the listener is busy, soon.
    fn call(&mut self, call: Call) {
        let ports = call.ports;
        if self.connections.len() + self.calls.len() >= CONNECTIONS_MAX {
            return self.refuse(op::REQUEST, ports);
        }
        match self.connect(ports) {
            Ok(mut connection) => {
                connection.take_credit(call.buffer, call.forwarded);
                self.connections.insert(ports, connection);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !call.is_over() => {
                self.calls.add(call);
            }
            Err(_) => self.refuse(op::REQUEST, ports),
        }
    }

    /// The host's end of a connection that the guest asks for. Does not wait.
    fn connect(&self, ports: Ports) -> io::Result<Connection> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", ports.host));
        let stream = connect_unix(Path::new(&path))?;
        self.watch(&stream, Token::Connection(ports))?;
        Ok(Connection::accepted(stream))
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.socket.listener.accept() {
            if self.handshakes.len() >= HANDSHAKES_MAX {
                continue; // dropped, which the program sees
            }
            let id = self.next_handshake;
            self.next_handshake = (id + 1) % TIMER;
            if self.watch(&stream, Token::Handshake(id)).is_ok() {
                self.handshakes.insert(id, Handshake { stream, line: Vec::new() });
                self.shake_hands(id);
            }
        }
    }

    /// Reads on at a host program's first line, and connects it once it is complete.
    fn shake_hands(&mut self, id: u32) {
        let Some(mut handshake) = self.handshakes.remove(&id) else { return };
        match handshake.read_line() {
            Ok(false) => {
                self.handshakes.insert(id, handshake);
            }
            Ok(true) => {
                if let Some(port) = handshake.port() {
                    self.ask(handshake.stream, port);
                }
            }
            Err(_) => {}
        }
    }

    fn ask(&mut self, stream: UnixStream, guest: u32) {
        if self.connections.len() >= CONNECTIONS_MAX {
            return;
        }
        let mut ports = Ports { guest, host: self.next_host_port };
        while self.connections.contains_key(&ports) {
            ports.host = ports.host.wrapping_add(1).max(HOST_PORT_FIRST);
        }
        self.next_host_port = ports.host.wrapping_add(1).max(HOST_PORT_FIRST);
        if self.watch(&stream, Token::Connection(ports)).is_ok() {
            self.connections.insert(ports, Connection::asked(stream, ports.host));
        }
    }

    /// The next packet for the guest with at most `room` bytes of payload in `self.buffer`.
    fn next_packet(&mut self, room: usize) -> Option<Header> {
        if let Some(ports) = self.resets.pop_front() {
            return Some(Header::to_guest(self.cid, ports, op::RST));
        }
        let room = room.min(self.buffer.len());
        let buffer = self.buffer.get_mut(..room)?;
        // Round robin: from the one after the last that had its turn.
        let turn = self.turn.unwrap_or(Ports { guest: 0, host: 0 });
        let order: Vec<Ports> = self.connections.range(turn..).map(|(ports, _)| *ports).collect();
        let wrapped: Vec<Ports> = self.connections.range(..turn).map(|(ports, _)| *ports).collect();
        for ports in order.into_iter().chain(wrapped) {
            let Some(connection) = self.connections.get_mut(&ports) else { continue };
            let Some(packet) = connection.next(buffer) else { continue };
            if connection.is_gone() {
                self.connections.remove(&ports);
            }
            self.turn = Some(Ports { host: ports.host.wrapping_add(1), ..ports });
            return Some(Header {
                len: packet.len.into(),
                flags: packet.flags.into(),
                buf_alloc: BUFFER_BYTES.into(),
                fwd_cnt: packet.fwd_cnt.into(),
                ..Header::to_guest(self.cid, ports, packet.op)
            });
        }
        None
    }

    /// Gives the guest what there is for it, as long as it offers buffers.
    fn fill(&mut self, queues: &mut Queues) -> Result<(), DeviceError> {
        queues.drain(RECEIVE, |queues, chain| {
            let malformed =
                DeviceError::Malformed { queue: RECEIVE, reason: "a buffer of less than a header" };
            let mut writer = queues.writer(chain)?;
            let Some(room) = writer.available_bytes().checked_sub(HEADER_BYTES) else {
                return Err(malformed);
            };
            let Some(header) = self.next_packet(room) else { return Ok(None) };
            let payload = self.buffer.get(..header.len.get() as usize).unwrap_or_default();
            let host = |source| DeviceError::Host { what: "vsock buffer", source };
            writer.write_all(header.as_bytes()).and_then(|()| writer.write_all(payload)).map_err(host)?;
            Ok(Some(HEADER_BYTES + payload.len()))
        })
    }

    /// Takes what the guest sent. Stops where the answers have no room, until the guest makes some.
    fn take(&mut self, queues: &mut Queues) -> Result<(), DeviceError> {
        queues.drain(TRANSMIT, |queues, chain| {
            if self.resets.len() >= RESETS_MAX {
                return Ok(None);
            }
            let mut payload = std::mem::take(&mut self.incoming);
            let header = read_packet(queues, chain, &mut payload)?;
            self.hear(&header, &payload);
            self.incoming = payload;
            Ok(Some(0))
        })
    }
}

/// A packet of the guest: its header, and into `payload` as much as that says.
fn read_packet(queues: &Queues, chain: &Chain, payload: &mut Vec<u8>) -> Result<Header, DeviceError> {
    let malformed = |reason| DeviceError::Malformed { queue: TRANSMIT, reason };
    let mut reader = queues.reader(chain)?;
    let mut header = [0; HEADER_BYTES];
    reader.read_exact(&mut header).map_err(|_| malformed("a header of less than 44 bytes"))?;
    let header: Header = zerocopy::transmute!(header);
    let len = header.len.get() as usize;
    if len > PAYLOAD_MAX || len > reader.available_bytes() {
        return Err(malformed("a length beyond the buffers"));
    }
    payload.resize(len, 0);
    reader.read_exact(payload).map_err(|_| malformed("a length beyond the buffers"))?;
    Ok(header)
}

impl Handshake {
    /// Reads up to the end of the line and no further; whether it is there.
    fn read_line(&mut self) -> io::Result<bool> {
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if byte == *b"\n" => return Ok(true),
                Ok(_) if self.line.len() >= HANDSHAKE_BYTES_MAX => {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                Ok(_) => self.line.extend(byte),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The port in `CONNECT port`.
    fn port(&self) -> Option<u32> {
        let line = std::str::from_utf8(&self.line).ok()?;
        let port = line.strip_prefix("CONNECT ")?.trim_end_matches('\r');
        port.parse().ok().filter(|&port| port != u32::MAX)
    }
}

impl Device for Vsock {
    fn info(&self) -> DeviceInfo {
        let config = self.cid.to_le_bytes().to_vec();
        DeviceInfo {
            kind: 19,
            name: "vsock",
            class: 0x02_8000,
            queue_sizes: &[128, 128, 16],
            features: 1,
            config,
        }
    }

    fn queue_ready(&mut self, index: usize, queues: &mut Queues) -> Result<(), DeviceError> {
        if index == EVENT {
            return Ok(()); // the guest is never migrated, so there is nothing to tell
        }
        self.fill(queues)?;
        self.take(queues)?;
        self.fill(queues)
    }

    fn host_fd(&self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }

    fn host_ready(&mut self, queues: &mut Queues) -> Result<(), DeviceError> {
        let mut events = [EpollEvent::default(); 64];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(source) => return Err(DeviceError::Host { what: "epoll", source }),
        };
        for event in events.iter().take(count) {
            match Token::from_data(event.data()) {
                Token::Listener => self.accept(),
                Token::Timer => self.calls.take().into_iter().for_each(|call| self.call(call)),
                Token::Handshake(id) => self.shake_hands(id),
                Token::Connection(ports) => {
                    let lingering = self.lingering.iter_mut().filter(|(of, _)| *of == ports);
                    let lingering = lingering.map(|(_, connection)| connection);
                    self.connections
                        .get_mut(&ports)
                        .into_iter()
                        .chain(lingering)
                        .for_each(Connection::stream_ready);
                    self.lingering.retain(|(_, connection)| !connection.is_gone());
                }
            }
        }
        // Buffers that the guest sent may be waiting for room, too.
        self.fill(queues)?;
        self.take(queues)?;
        self.fill(queues)
    }

    fn finish(&mut self) -> Result<(), DeviceError> {
        let until = Instant::now() + FINISH_TIME;
        let lingering = self.lingering.iter_mut().map(|(_, connection)| connection);
        self.connections.values_mut().chain(lingering).for_each(|connection| connection.finish(until));
        Ok(())
    }

    fn reset(&mut self) {
        self.lingering.clear();
        self.calls.take();
        self.connections.clear();
        self.handshakes.clear();
        self.resets.clear();
    }
}

#[cfg(test)]
mod tests;

//! Connections: how many, of whom, and how long they may take. No client, of whatever address, can keep another from being
//! served by opening connections and saying nothing.
//!
//! Where there is no room, the connection that has waited longest for its request makes room: of the same peer first, else
//! of the peer with the most. One whose request is being answered is never cut for another.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};
use tower::ServiceExt;

use crate::config::Limits;

/// Bytes of a request's head at most: a token is in it.
const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 64;

/// Whose connections are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// An IPv4 address, or the 64 bits of an IPv6 network, which one host can have to itself.
    Network(u64, bool),
    /// A user of a unix socket.
    User(u32),
}

impl Owner {
    /// Of an address.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::Network(v4.to_bits().into(), false),
            IpAddr::V6(v6) => {
                let network = v6.to_bits().checked_shr(64).unwrap_or_default();
                Self::Network(u64::try_from(network).unwrap_or_default(), true)
            }
        }
    }
}

/// A connection, as requests see it.
#[derive(Clone)]
pub struct Peer {
    /// For logs.
    pub name: Arc<str>,
    busy: Arc<AtomicBool>,
}

impl Peer {
    /// One that has not asked for anything.
    pub fn new(name: Arc<str>) -> Self {
        Self { name, busy: Arc::default() }
    }

    /// A whole request is here: from now on it is answered.
    pub fn has_asked(&self) {
        self.busy.store(true, Ordering::Relaxed);
    }

    /// It was answered.
    pub fn is_answered(&self) {
        self.busy.store(false, Ordering::Relaxed);
    }
}

struct Entry {
    owner: Owner,
    busy: Arc<AtomicBool>,
    end: Arc<Notify>,
}

/// The connections of one listener.
pub struct Connections {
    limits: Limits,
    // By number: the lowest has waited longest.
    open: Mutex<(u64, HashMap<u64, Entry>)>,
}

/// A place among them, given back when dropped.
struct Place {
    all: Arc<Connections>,
    number: u64,
    peer: Peer,
    end: Arc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.with(|_, open| open.remove(&self.number));
    }
}

impl Connections {
    /// None yet.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, open: Mutex::default() })
    }

    fn with<T>(&self, act: impl FnOnce(&mut u64, &mut HashMap<u64, Entry>) -> T) -> T {
        // Nothing in here panics half way.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, open) = &mut *open;
        act(last, open)
    }

    /// A place for one more; `None` if every other one is being answered.
    fn admit(self: &Arc<Self>, owner: Owner, name: Arc<str>) -> Option<Place> {
        self.with(|last, open| {
            let count =
                |open: &HashMap<u64, Entry>, owner| open.values().filter(|e| e.owner == owner).count();
            let own = count(open, owner);
            if own >= self.limits.connections_per_peer {
                make_room(open, owner)?;
            } else if open.len() >= self.limits.connections {
                // Of those that have one waiting: a peer whose requests are all being answered has none to give.
                let waiting = open.values().filter(|entry| !entry.busy.load(Ordering::Relaxed));
                let greediest = waiting.map(|entry| entry.owner).max_by_key(|owner| count(open, *owner))?;
                make_room(open, greediest)?;
            }
            *last = last.wrapping_add(1);
            let (peer, end) = (Peer::new(name), Arc::new(Notify::new()));
            open.insert(*last, Entry { owner, busy: peer.busy.clone(), end: end.clone() });
            Some(Place { all: self.clone(), number: *last, peer, end })
        })
    }

    /// Serves one connection until it ends, in a task of its own. One for which there is no room is closed.
    pub fn serve<S>(self: &Arc<Self>, stream: S, owner: Owner, name: String, app: Router)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Some(place) = self.admit(owner, name.into()) else { return };
        let limits = self.limits;
        tokio::spawn(async move { converse(stream, &place, limits, app).await });
    }
}

/// Ends the connection of `owner` that has waited longest.
fn make_room(open: &mut HashMap<u64, Entry>, owner: Owner) -> Option<()> {
    let waiting = open.iter().filter(|(_, e)| e.owner == owner && !e.busy.load(Ordering::Relaxed));
    let oldest = *waiting.map(|(number, _)| number).min()?;
    open.remove(&oldest)?.end.notify_one();
    Some(())
}

async fn converse<S>(stream: S, place: &Place, limits: Limits, app: Router)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let peer = place.peer.clone();
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let (peer, app) = (peer.clone(), app.clone());
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer.clone());
            let answer = app.oneshot(request).await;
            peer.is_answered();
            answer
        }
    });
    let stream = Stalling { inner: stream, limit: Duration::from_millis(limits.answer_ms), until: None };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.head_ms))
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let last_call = sleep(Duration::from_millis(limits.connection_ms));
    tokio::select! {
        // How it ended is the client's business.
        _ = connection.as_mut() => return,
        () = place.end.notified() => return,
        () = last_call => connection.as_mut().graceful_shutdown(),
    }
    let patience = limits.head_ms.saturating_add(limits.body_ms).saturating_add(limits.answer_ms);
    let _ = tokio::time::timeout(Duration::from_millis(patience), connection).await;
}

/// A stream whose writes fail when the other side takes nothing for too long.
struct Stalling<S> {
    inner: S,
    limit: Duration,
    until: Option<Pin<Box<Sleep>>>,
}

impl<S: Unpin> Stalling<S> {
    fn wait<T>(
        &mut self,
        context: &mut Context<'_>,
        act: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(result) = act(Pin::new(&mut self.inner), context) {
            self.until = None;
            return Poll::Ready(result);
        }
        let limit = self.limit;
        let until = self.until.get_or_insert_with(|| Box::pin(sleep(limit)));
        until.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.wait(context, |inner, context| inner.poll_write(context, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wait(context, |inner, context| inner.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wait(context, |inner, context| inner.poll_shutdown(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(all: usize, per_peer: usize) -> Arc<Connections> {
        Connections::new(Limits { connections: all, connections_per_peer: per_peer, ..Limits::default() })
    }

    fn numbers(connections: &Connections) -> Vec<u64> {
        let mut numbers: Vec<u64> = connections.with(|_, open| open.keys().copied().collect());
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn the_longest_waiting_of_the_same_peer_makes_room_and_one_being_answered_never() {
        let all = connections(10, 2);
        let admit = |user| all.admit(Owner::User(user), "".into());
        let (first, second) = (admit(1).unwrap(), admit(1).unwrap());
        let stranger = admit(2).unwrap();
        first.peer.has_asked();
        let third = admit(1).unwrap();
        assert_eq!(numbers(&all), [1, 3, 4], "the second waited longest");
        third.peer.has_asked();
        assert!(admit(1).is_none(), "both are being answered");
        assert!(admit(2).is_some(), "which is nothing to another peer");
        first.peer.is_answered();
        assert!(admit(1).is_some());
        drop((second, stranger));
    }

    #[test]
    fn of_a_full_listener_the_greediest_peer_makes_room() {
        let all = connections(4, 3);
        let places: Vec<_> = [1, 1, 1, 2].map(|user| all.admit(Owner::User(user), "".into()).unwrap()).into();
        let newcomer = all.admit(Owner::User(3), "".into()).unwrap();
        assert_eq!(numbers(&all), [2, 3, 4, 5]);
        drop((places, newcomer));
        assert_eq!(numbers(&all), [0u64; 0], "places are given back");
    }

    #[test]
    fn a_greedy_peer_that_is_being_answered_does_not_keep_the_others_waiting_ones() {
        let all = connections(4, 3);
        let greedy = [1, 1].map(|user| all.admit(Owner::User(user), "".into()).unwrap());
        let idle = [2, 3].map(|user| all.admit(Owner::User(user), "".into()).unwrap());
        greedy.iter().for_each(|place| place.peer.has_asked());
        let newcomer = all.admit(Owner::User(4), "".into());
        assert!(newcomer.is_some(), "two wait, and one of them makes room");
        drop((greedy, idle, newcomer));
    }

    #[test]
    fn a_host_is_one_peer_whatever_addresses_it_takes() {
        let of = |text: &str| Owner::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}

//! Listening: unix sockets and TCP, until a signal.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, Limits};
use crate::connections::{Connections, Owner};
use crate::server::{self, State};

/// Descriptors for everything but connections.
const OTHER_DESCRIPTORS: usize = 64;
/// After a failure to accept that is not the client's: until somebody has closed something.
const PAUSE: Duration = Duration::from_millis(50);

/// Removes a socket file when the broker ends, unless another is in its place by then.
struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

/// Which file it is, whatever its name.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

impl SocketFile {
    /// The one that is there now.
    fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), identity: identity(path) }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // Nothing can be done about a failure here.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A socket file that nobody listens on any more is in the way; one that is in use is not ours to take.
async fn bind_unix(path: &Path) -> Result<UnixListener, String> {
    let stale = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if stale {
        // Refused: nobody listens. Anything else, a socket of another kind or a full queue among it, is some program's. Does
        // not wait for room in the queue.
        let refused = UnixStream::connect(path).await.err().map(|error| error.kind());
        if refused != Some(std::io::ErrorKind::ConnectionRefused) {
            return Err(format!("unix:{}: another process has it", path.display()));
        }
        std::fs::remove_file(path).map_err(|e| format!("unix:{}: {e}", path.display()))?;
    }
    UnixListener::bind(path).map_err(|e| format!("unix:{}: {e}", path.display()))
}

/// The soft limit of open files, if the kernel says one.
fn descriptors(limits: &str) -> Option<usize> {
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok())
}

/// Every listener must be able to be full without the others noticing.
fn check_descriptors(listeners: usize, limits: &Limits, available: Option<usize>) -> Result<(), String> {
    let needed = limits.connections.saturating_mul(listeners).saturating_add(OTHER_DESCRIPTORS);
    match available {
        Some(available) if available < needed => Err(format!(
            "{listeners} listeners of {} connections need {needed} open files, and {available} are allowed: raise the \
             limit (ulimit -n, LimitNOFILE) or lower [limits] connections",
            limits.connections
        )),
        _ => Ok(()),
    }
}

/// Serves until SIGINT or SIGTERM.
pub async fn serve(config: Config) -> Result<(), String> {
    let (addresses, limits) = (config.listen.clone(), config.limits);
    let available = std::fs::read_to_string("/proc/self/limits").ok().as_deref().and_then(descriptors);
    check_descriptors(addresses.len(), &limits, available)?;
    let app = server::router(Arc::new(State::open(config)?));
    let mut files = Vec::new();
    for address in &addresses {
        match address.split_once(':') {
            Some(("unix", path)) => {
                let listener = bind_unix(Path::new(path)).await?;
                files.push(SocketFile::of(Path::new(path)));
                tokio::spawn(accept_unix(listener, limits, app.clone()));
            }
            Some(("tcp", at)) => {
                let listener = TcpListener::bind(at).await.map_err(|e| format!("{address}: {e}"))?;
                tokio::spawn(accept_tcp(listener, limits, app.clone()));
            }
            _ => return Err(format!("listen: {address:?} is neither unix:PATH nor tcp:HOST:PORT")),
        }
        tracing::info!(%address, "listening");
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}

/// Accepts for as long as the runtime lives.
pub async fn accept_unix(listener: UnixListener, limits: Limits, app: Router) {
    let connections = Connections::new(limits);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A peer that is gone already cannot be asked, and is counted with its like.
                let user = stream.peer_cred().map_or(u32::MAX, |credentials| credentials.uid());
                connections.serve(stream, Owner::User(user), format!("unix, user {user}"), app.clone());
            }
            Err(error) => pause(&error).await,
        }
    }
}

/// Likewise.
pub async fn accept_tcp(listener: TcpListener, limits: Limits, app: Router) {
    let connections = Connections::new(limits);
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                // Latency is all that is lost without.
                let _ = stream.set_nodelay(true);
                let owner = Owner::of(address.ip());
                connections.serve(stream, owner, address.to_string(), app.clone());
            }
            Err(error) => pause(&error).await,
        }
    }
}

async fn pause(error: &std::io::Error) {
    tracing::warn!(%error, "accept");
    tokio::time::sleep(PAUSE).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[tokio::test]
    async fn only_a_socket_that_nobody_listens_at_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (stale, datagrams) = (dir.path().join("stale"), dir.path().join("datagrams"));
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        assert!(bind_unix(&stale).await.is_ok());
        let program = UnixDatagram::bind(&datagrams).unwrap();
        assert!(bind_unix(&datagrams).await.is_err(), "a program has this one");
        assert!(UnixDatagram::unbound().unwrap().send_to(b"x", &datagrams).is_ok());
        drop(program);
        // So full that a connection would wait.
        let busy = dir.path().join("busy");
        let _listener = std::os::unix::net::UnixListener::bind(&busy).unwrap();
        let mut queue = Vec::new();
        while let Ok(stream) = UnixStream::connect(&busy).await {
            queue.push(stream);
        }
        assert!(bind_unix(&busy).await.is_err() && busy.exists());
    }

    #[tokio::test]
    async fn a_successor_s_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (_first, file) = (bind_unix(&path).await.unwrap(), SocketFile::of(&path));
        std::fs::remove_file(&path).unwrap();
        let _second = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn listeners_that_could_starve_each_other_are_refused() {
        let table = "Limit                     Soft Limit           Hard Limit           Units\n\
                     Max open files            1024                 524288               files\n";
        assert_eq!(descriptors(table), Some(1024));
        assert_eq!(descriptors("Max open files            unlimited unlimited files"), None);
        let limits = Limits { connections: 256, ..Limits::default() };
        assert!(check_descriptors(3, &limits, Some(1024)).is_ok());
        assert!(check_descriptors(4, &limits, Some(1024)).unwrap_err().contains("LimitNOFILE"));
        assert!(check_descriptors(4, &limits, None).is_ok());
    }
}

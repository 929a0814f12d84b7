//! Listening: unix sockets and TCP, until a signal.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::server::{self, State};

/// Removes a socket file when the broker ends.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nothing can be done about a failure here.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A socket file that nobody listens on any more is in the way; one that is in use is not ours to take.
fn bind_unix(path: &Path) -> Result<UnixListener, String> {
    let stale = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if stale {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(format!("unix:{}: another process listens there", path.display()));
        }
        std::fs::remove_file(path).map_err(|e| format!("unix:{}: {e}", path.display()))?;
    }
    UnixListener::bind(path).map_err(|e| format!("unix:{}: {e}", path.display()))
}

/// Serves until SIGINT or SIGTERM.
pub async fn serve(config: Config) -> Result<(), String> {
    let addresses = config.listen.clone();
    let app = server::router(Arc::new(State::open(config)?));
    let mut tasks = JoinSet::new();
    let mut files = Vec::new();
    for address in &addresses {
        match address.split_once(':') {
            Some(("unix", path)) => {
                let listener = bind_unix(Path::new(path))?;
                files.push(SocketFile(path.into()));
                spawn(&mut tasks, listener, app.clone());
            }
            Some(("tcp", at)) => {
                let listener = TcpListener::bind(at).await.map_err(|e| format!("{address}: {e}"))?;
                spawn(&mut tasks, listener, app.clone());
            }
            _ => return Err(format!("listen: {address:?} is neither unix:PATH nor tcp:HOST:PORT")),
        }
        tracing::info!(%address, "listening");
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
        Some(Ok(Err(error))) = tasks.join_next() => return Err(error),
    }
    Ok(())
}

fn spawn<L>(tasks: &mut JoinSet<Result<(), String>>, listener: L, app: Router)
where
    L: axum::serve::Listener,
    L::Addr: std::fmt::Debug,
{
    tasks.spawn(async move { axum::serve(listener, app).await.map_err(|e| e.to_string()) });
}

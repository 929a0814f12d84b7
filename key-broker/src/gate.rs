//! Work that takes the processor's time, off the threads that talk to clients, and no more of it at once than was said.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::problem::Problem;

/// A pool of so many at work and so many waiting.
#[derive(Clone)]
pub struct Gate {
    admitted: Arc<Semaphore>,
    working: Arc<Semaphore>,
}

impl Gate {
    /// `working` at once, and `waiting` behind them.
    pub fn new(working: usize, waiting: usize) -> Self {
        let working = working.max(1);
        Self {
            admitted: Arc::new(Semaphore::new(working.saturating_add(waiting).min(Semaphore::MAX_PERMITS))),
            working: Arc::new(Semaphore::new(working.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// Does `work` when its turn comes; refuses at once when too much waits already.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let admitted = self.admitted.clone().try_acquire_owned().map_err(|_| Problem::busy())?;
        let turn = self.working.clone().acquire_owned().await.map_err(|_| Problem::internal())?;
        // The permits go with the work: a client that leaves does not make room before its work is done.
        let task = tokio::task::spawn_blocking(move || {
            let result = work();
            drop((turn, admitted));
            result
        });
        task.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a request's work ended early");
            Err(Problem::internal())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_is_bounded_and_what_fails_makes_room() {
        let gate = Gate::new(1, 1);
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let first = tokio::spawn({
            let gate = gate.clone();
            async move { gate.run(move || Ok(wait.recv().is_ok())).await }
        });
        let second = tokio::spawn({
            let gate = gate.clone();
            async move { gate.run(|| Ok(true)).await }
        });
        while gate.admitted.available_permits() != 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(gate.run(|| Ok(true)).await, Err(Problem::busy()));
        go.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Ok(true));
        assert_eq!(second.await.unwrap(), Ok(true));
        assert_eq!(
            gate.run(|| -> Result<(), Problem> { panic!("on purpose") }).await,
            Err(Problem::internal())
        );
        assert_eq!(gate.run(|| Ok(true)).await, Ok(true), "a panic made room");
    }
}

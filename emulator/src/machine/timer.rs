//! One thread per VM that wakes vCPUs at their LAPIC deadlines while they run; a halted vCPU waits by itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::Duration;

use super::clock::host_ns;
use super::vcpu::VcpuShared;

#[derive(Default)]
struct Queue {
    /// (host ns, vCPU id) to vCPU.
    deadlines: BTreeMap<(u64, u32), Weak<VcpuShared>>,
    stop: bool,
}

/// The timer thread's handle.
pub struct Timers {
    state: Arc<(Mutex<Queue>, Condvar)>,
    started: std::sync::Once,
}

impl Default for Timers {
    fn default() -> Self {
        Self { state: Arc::default(), started: std::sync::Once::new() }
    }
}

impl Timers {
    /// Replaces the deadline of a vCPU. `None` disarms.
    pub fn arm(&self, vcpu: &Arc<VcpuShared>, deadline_ns: Option<u64>) {
        self.started.call_once(|| {
            let state = Arc::clone(&self.state);
            // Without the thread, deadlines are still seen whenever the vCPU leaves the guest.
            let spawned =
                std::thread::Builder::new().name("softkvm-timer".into()).spawn(move || serve(&state));
            if let Err(error) = spawned {
                eprintln!("softkvm: no timer thread: {error}");
            }
        });
        let (queue, changed) = &*self.state;
        let Ok(mut queue) = queue.lock() else { return };
        queue.deadlines.retain(|&(_, id), _| id != vcpu.id);
        if let Some(at) = deadline_ns {
            queue.deadlines.insert((at, vcpu.id), Arc::downgrade(vcpu));
            changed.notify_one();
        }
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        let (queue, changed) = &*self.state;
        if let Ok(mut queue) = queue.lock() {
            queue.stop = true;
        }
        changed.notify_one();
    }
}

fn serve(state: &(Mutex<Queue>, Condvar)) {
    let (queue, changed) = state;
    let Ok(mut guard) = queue.lock() else { return };
    while !guard.stop {
        let now = host_ns();
        while let Some(entry) = guard.deadlines.first_entry() {
            if entry.key().0 > now {
                break;
            }
            if let Some(vcpu) = entry.remove().upgrade() {
                vcpu.timer_due();
            }
        }
        let next = guard.deadlines.first_key_value().map(|(&(at, _), _)| at);
        guard = match next {
            None => match changed.wait(guard) {
                Ok(guard) => guard,
                Err(_) => return,
            },
            Some(at) => match changed.wait_timeout(guard, Duration::from_nanos(at.saturating_sub(now))) {
                Ok((guard, _)) => guard,
                Err(_) => return,
            },
        };
    }
}

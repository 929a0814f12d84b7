//! One thread per VM that wakes vCPUs at their LAPIC deadlines while they run (a halted vCPU waits by itself), and that
//! ticks the interval timer.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::Duration;

use super::clock::host_ns;
use super::vcpu::VcpuShared;
use super::vm::Vm;

/// Whose deadline it is.
#[derive(Clone)]
enum Sleeper {
    Vcpu(Weak<VcpuShared>),
    Pit(Weak<Vm>),
}

impl Sleeper {
    /// No vCPU has this ID.
    const PIT: u32 = u32::MAX;

    /// Acts on the deadline; the next one, in host ns, if there is one that the sleeper does not arm itself.
    fn wake(&self) -> Option<u64> {
        match self {
            Self::Vcpu(vcpu) => {
                vcpu.upgrade()?.timer_due();
                None
            }
            Self::Pit(vm) => {
                let vm = vm.upgrade()?;
                vm.irqchips()?.pit_due(&vm)
            }
        }
    }
}

#[derive(Default)]
struct Queue {
    /// (host ns, vCPU id or [`Sleeper::PIT`]) to sleeper.
    deadlines: BTreeMap<(u64, u32), Sleeper>,
    /// Counts changes of the interval timer, so that a tick in flight does not undo one.
    pit_changes: u64,
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
        self.replace(vcpu.id, Sleeper::Vcpu(Arc::downgrade(vcpu)), deadline_ns);
    }

    /// Replaces the deadline of the interval timer. `None` disarms.
    pub fn arm_pit(&self, vm: Weak<Vm>, deadline_ns: Option<u64>) {
        self.replace(Sleeper::PIT, Sleeper::Pit(vm), deadline_ns);
    }

    fn replace(&self, id: u32, sleeper: Sleeper, deadline_ns: Option<u64>) {
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
        queue.deadlines.retain(|&(_, other), _| other != id);
        queue.pit_changes += u64::from(id == Sleeper::PIT);
        if let Some(at) = deadline_ns {
            queue.deadlines.insert((at, id), sleeper);
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
            let ((_, id), sleeper) = entry.remove_entry();
            // The interval timer's own lock is held by whoever arms it: it must not be taken inside the queue's.
            let changes = guard.pit_changes;
            drop(guard);
            let next = sleeper.wake();
            let Ok(again) = queue.lock() else { return };
            guard = again;
            if let Some(at) = next.filter(|_| guard.pit_changes == changes) {
                guard.deadlines.insert((at, id), sleeper);
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

//! What to do about each exit of a vCPU. Everything in an exit is the guest's or KVM's word: checked, never trusted.

use std::sync::Arc;

use kvm_bindings::{
    KVM_MEMORY_EXIT_FLAG_PRIVATE, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SEV_TERM,
    KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{HypercallExit, VcpuExit};

use crate::devices::Machine;
use crate::hostile::{Attack, Moment};
use crate::layout::{PCI_WINDOW, SERIAL_PORTS};
use crate::memory::Converter;
use crate::outcome::{Outcome, ResetBy};
use crate::output::GuestLog;
use crate::tdx::{EXIT_TDX, SYSTEM_EVENT_TDX_FATAL, TdxExits, fatal};

/// KVM_HC_MAP_GPA_RANGE (Linux `uapi/linux/kvm_para.h`).
const HC_MAP_GPA_RANGE: u64 = 12;

/// What comes after an exit.
pub enum Handled {
    /// The vCPU goes on.
    Resume,
    /// The guest has ended.
    End(Outcome),
    /// KVM has more to say in `kvm_run`.
    InternalError,
    /// KVM_EXIT_TDX, whose words are in `kvm_run`.
    Tdx,
}

/// Serves the exits of all vCPUs.
pub struct Handler {
    /// Ports, MMIO and devices.
    pub machine: Arc<Machine>,
    /// Private and shared memory, of a confidential guest.
    pub converter: Option<Arc<Converter>>,
    /// What a TD asks of user space.
    pub tdx: Option<TdxExits>,
    /// For refusals that a guest can cause at will.
    pub log: Arc<GuestLog>,
    /// In tests of the defence, a host that attacks.
    pub attack: Option<Attack>,
}

impl Handler {
    /// Serves one exit.
    pub fn handle(&self, exit: VcpuExit<'_>) -> Handled {
        match exit {
            VcpuExit::IoIn(port, data) => self.machine.port_read(port, data),
            VcpuExit::IoOut(port, data) => {
                // The firmware says there what it has verified; the demo's Linux has another console.
                if let Some(attack) = self.attack.as_ref().filter(|_| SERIAL_PORTS.contains(&port)) {
                    attack.strike(Moment::Verified);
                }
                if let Some(outcome) = self.machine.port_write(port, data) {
                    return Handled::End(outcome);
                }
            }
            VcpuExit::MmioRead(gpa, data) => self.machine.mmio_read(gpa, data),
            VcpuExit::MmioWrite(gpa, data) => {
                self.machine.mmio_write(gpa, data);
                // Drivers do this, the firmware does not: Linux runs.
                if let Some(attack) = self.attack.as_ref().filter(|_| PCI_WINDOW.contains(&gpa)) {
                    attack.strike(Moment::Linux);
                }
            }
            VcpuExit::IoapicEoi(vector) => self.machine.ioapic_eoi(vector),
            VcpuExit::Hypercall(call) => self.hypercall(call),
            VcpuExit::MemoryFault { flags, gpa, size } => return self.memory_fault(flags, gpa, size),
            VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr => {}
            VcpuExit::Shutdown => {
                // On a PC it resets, and Linux uses it for that.
                let plain = self.converter.is_none();
                let outcome = if plain { Outcome::Reset(ResetBy::TripleFault) } else { Outcome::TripleFault };
                return Handled::End(outcome);
            }
            VcpuExit::SystemEvent(kind, data) => return Handled::End(system_event(kind, data)),
            VcpuExit::InternalError => return Handled::InternalError,
            VcpuExit::Unsupported(EXIT_TDX) if self.tdx.is_some() => return Handled::Tdx,
            VcpuExit::FailEntry(reason, cpu) => {
                let why = format!("KVM cannot enter the guest on CPU {cpu}: hardware reason {reason:#x}");
                return Handled::End(Outcome::Failed(why));
            }
            other => return Handled::End(Outcome::Failed(format!("unexpected exit {other:?}"))),
        }
        Handled::Resume
    }

    fn hypercall(&self, call: HypercallExit<'_>) {
        let [gpa, pages, attributes, ..] = call.args;
        *call.ret = match &self.converter {
            Some(converter) if call.nr == HC_MAP_GPA_RANGE => {
                match converter.map_gpa_range(gpa, pages, attributes) {
                    Ok(()) => 0,
                    Err(error) => {
                        self.log.warn(&error);
                        (-i64::from(libc::EINVAL)) as u64
                    }
                }
            }
            _ => {
                self.log.warn(&format_args!("hypercall {} refused", call.nr));
                (-i64::from(libc::ENOSYS)) as u64
            }
        };
    }

    /// The guest accessed a page through the view that it does not have: an implicit conversion. What it lost
    /// by that is its own affair, and its processor's: a page that was not validated faults.
    fn memory_fault(&self, flags: u64, gpa: u64, size: u64) -> Handled {
        let private_flag = u64::from(KVM_MEMORY_EXIT_FLAG_PRIVATE);
        let fail = |why: String| {
            Handled::End(Outcome::Failed(format!(
                "memory fault at {gpa:#x}, {size:#x} bytes, flags {flags:#x}: {why}"
            )))
        };
        match &self.converter {
            Some(_) if flags & !private_flag != 0 => fail("unknown flags".into()),
            Some(_) if self.attack.as_ref().is_some_and(Attack::insists_on_shared) => {
                fail("the processor does not let the guest use a shared page as its private one".into())
            }
            Some(converter) => match converter.convert(gpa, size, flags & private_flag != 0) {
                Ok(()) => Handled::Resume,
                Err(error) => fail(error.to_string()),
            },
            None => fail("this guest has no private memory".into()),
        }
    }
}

fn system_event(kind: u32, data: &[u64]) -> Outcome {
    match kind {
        KVM_SYSTEM_EVENT_SHUTDOWN => Outcome::PoweredOff { code: 0 },
        KVM_SYSTEM_EVENT_RESET => Outcome::Reset(ResetBy::Kvm),
        KVM_SYSTEM_EVENT_CRASH => Outcome::Failed("it reported a crash".into()),
        SYSTEM_EVENT_TDX_FATAL => fatal(data),
        KVM_SYSTEM_EVENT_SEV_TERM => {
            Outcome::from_ghcb_termination(data.first().copied().unwrap_or_default())
        }
        _ => Outcome::Failed(format!("unknown system event {kind}, data {data:x?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_events_are_told_apart() {
        for (kind, data, outcome) in [
            (1, &[][..], Outcome::PoweredOff { code: 0 }),
            (2, &[], Outcome::Reset(ResetBy::Kvm)),
            (6, &[0x0007_2100], Outcome::Terminated { set: 2, code: 7 }),
            (6, &[], Outcome::Terminated { set: 0, code: 0 }),
        ] {
            assert_eq!(system_event(kind, data), outcome);
        }
        assert!(matches!(system_event(7, &[0; 16]), Outcome::Failed(_)));
        assert!(matches!(system_event(77, &[1]), Outcome::Failed(_)));
    }
}

//! What the tiny TDs are asked to do, and what is noted of it.

use kvm_bindings::KVM_X86_TDX_VM;
use kvm_ioctls::{Kvm, VcpuExit};

use super::code::Do;
use super::ioctl::{self, Capabilities, Cpuid, MemRegion, id};
use super::machine::{
    self, MMIO, MMIO_GVA, Options, PENDING, Record, SHARED, Step, Td, step, strict, tdcall, vmcall,
};
use crate::tiny::Observed;

type Lines = Result<Vec<String>, String>;
type Scenario = (&'static str, fn() -> Lines);

const ALL: &[Scenario] = &[("entry state and VP.INFO", entry)];

/// Runs every scenario.
pub fn run_all() -> Vec<Observed> {
    ALL.iter()
        .map(|(name, run)| {
            let events = run().unwrap_or_else(|error| vec![format!("failed: {error}")]);
            Observed { guest: (*name).to_owned(), events }
        })
        .collect()
}

fn surprise(exit: VcpuExit<'_>) -> Result<(), String> {
    Err(format!("unexpected exit {exit:?}"))
}

/// Builds, finalizes and runs a TD whose steps need nothing from the host.
fn alone(options: &Options, script: &[Step]) -> Result<Vec<Record>, String> {
    let mut td = Td::build(options, script)?;
    td.finalize()?;
    td.run(surprise)?;
    Ok(td.records(script.len() + 1))
}

fn entry() -> Lines {
    let mut lines = Vec::new();
    for gpaw in [48, 52] {
        let options = Options { gpaw, ..strict() };
        let records = alone(&options, &[tdcall(1, &[])])?;
        let [start, info] = records.as_slice() else { return Err("two records".into()) };
        lines.push(format!(
            "rbx {} rcx {:#x} r8 {:#x} rdx {:#x} rsi {}",
            start.gpr[3], start.gpr[1], start.gpr[8], start.gpr[2], start.gpr[6]
        ));
        lines.push(format!(
            "VP.INFO {:#x}: gpaw {} attributes {:#x} vcpus {} index {}",
            info.gpr[0], info.gpr[1], info.gpr[2], info.gpr[8] as u32, info.gpr[9]
        ));
    }
    Ok(lines)
}

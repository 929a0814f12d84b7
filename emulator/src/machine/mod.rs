//! The machine: VM, vCPUs, memory, interrupts, time.
//!
//! Must never: hold a lock of one vCPU while taking another's; let a TLB entry outlive the memslot, attribute
//! or guest_memfd range that it was made from ([`vm::Vm::flush_all`] is called by whoever takes one away).

pub mod attributes;
pub mod clock;
pub mod confidential;
pub mod ctx;
pub mod env;
pub mod exit;
pub mod gmem;
mod host_page;
pub mod irq;
pub mod irqchip;
pub mod kernel;
pub mod lapic;
pub mod memory;
pub mod msr;
pub mod run_page;
pub mod tee;
pub mod timer;
pub mod vcpu;
pub mod vm;

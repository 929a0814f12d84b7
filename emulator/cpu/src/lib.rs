//! An x86-64 processor in software: instructions are decoded once into blocks of operations and run
//! from there.
//!
//! The processor knows nothing of KVM, SEV-SNP or TDX. It asks its [`Env`] to judge each page that
//! enters the TLB ([`Env::resolve`]) and to carry out whatever leaves the core: ports, MMIO, CPUID,
//! the MSRs that the core does not own, and the confidential-computing instructions. The environment
//! answers with a value, an exception, or a [`Stop`].
//!
//! What this room must never do: consult memory attributes, the RMP or a memslot anywhere but in
//! [`Env::resolve`]; keep a host pointer past [`Cpu::flush_tlb`]; panic on guest input.

mod access;
mod alu;
mod bits;
mod block;
mod cpu;
mod decode;
mod descriptor;
mod env;
mod features;
mod flags;
mod interrupt;
mod mem;
mod native;
mod op;
mod ops;
mod paging;
mod state;
pub mod testing;
mod tlb;

pub use cpu::{Cpu, Event};
pub use decode::length_of_host_instruction;
pub use env::{Access, Attention, Env, HostPage, PageRequest, Stop};
pub use features::{Feature, Register, features, missing_features};
pub use state::{CpuState, Exception, Fpu, MemoryEncryption, Segment, SegmentTable};

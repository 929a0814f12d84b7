//! Tiny TDs: a guest that carries out a script of instructions (`code.rs`), a launcher over KVM's ioctls (`machine.rs`),
//! and what is asked of them (`scenarios.rs`).

mod code;
pub mod ioctl;
mod machine;
mod orders;
pub mod quote;
mod scenarios;

pub use scenarios::run_all;

//! The measured ROM that takes a confidential guest from reset to Linux.
//!
//! This library holds every decision the firmware takes, over the [`Machine`] trait, so that all of it is tested on
//! the host against hosts that lie; `rom/` holds the instructions that carry the decisions out.
//!
//! What never happens here: a panic on something the host said, a second read of something already checked, an access
//! to RAM that the firmware has not validated itself, AML or ACPI that the host wrote.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

mod accept;
mod acpi;
mod boot;
mod boot_params;
mod bytes;
pub mod console;
mod cpuid_page;
mod event_log;
mod fw_cfg;
pub mod ghcb;
mod hashes;
mod kernel;
pub mod layout;
mod machine;
mod memory_map;
mod memory_types;
pub mod metadata;
mod placement;
pub mod sha256;
pub mod tdcall;
mod termination;
mod trust;
pub mod vectors;

#[cfg(test)]
mod fake;

pub use boot::{Handoff, boot};
pub use machine::{Guest, Machine, PageSize, PortAccess, Validation, Width};
pub use termination::{Stop, TerminationReason};

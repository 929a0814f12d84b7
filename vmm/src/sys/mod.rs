//! System calls that neither the standard library nor the crates beside this one wrap, each safe to call.

pub mod listener;
pub mod poll;
pub mod signals;
pub mod socket;

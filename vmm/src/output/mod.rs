//! What leaves this process: guest text, messages for the operator, files.
//!
//! A thread that serves a guest never waits for a host's reader without a bound ([`sink`]); guest text reaches a terminal
//! without what would steer it ([`escape`]); no file is followed through a link, read by others or overwritten unasked
//! ([`mod@file`]).

pub mod escape;
pub mod file;
mod say;
pub mod sink;

pub use say::{GuestLog, finish_messages, say};

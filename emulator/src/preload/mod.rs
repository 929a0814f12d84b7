//! The interposed libc symbols. Every fake descriptor is a real memfd, so mmap, poll, dup and close stay the
//! kernel's; only `open` of the two device nodes, `ioctl`, `fallocate`, `close`, the dup family and signal
//! handler registration are seen here; and CPUID, where the client's executable has it.
//!
//! Must never: change the behaviour of a call on a descriptor that is not ours.

mod cpuid;
pub mod fds;
pub mod real;
pub mod signals;
mod symbols;

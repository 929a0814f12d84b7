//! Virtual processors: a thread each, which runs the guest and serves its exits.

mod exits;
mod kick;
mod run;

pub use exits::Handler;
pub use run::VcpuThreads;

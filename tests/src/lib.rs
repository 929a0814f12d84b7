//! Shared pieces of the conformance and end-to-end tests: tiny guests that need nothing but KVM's ioctls.
//!
//! [`snp_orders`] is the launch commands' counterpart, for machines that have SEV-SNP, and [`snp_platform`] looks at their
//! secure processor as operators' tools do. [`snp_startup`] has a second processor.
//! [`td`] has guests of their own for TDX.
//!
//! The same guests run on `/dev/kvm` and on softkvm; [`tiny::run_all`] returns what a client can observe of each, and
//! the conformance test compares the two.

pub mod snp_orders;
pub mod snp_platform;
pub mod snp_startup;
pub mod td;
pub mod tiny;

//! Verification of confidential-computing evidence and prediction of launch measurements.
//!
//! Everything here is a pure function of its arguments: no I/O, no clock, no global state. Bytes
//! that come from a guest, a host or a network are parsed without panicking and refused with an
//! error that names the field.
//!
//! - [`abi`]: numbers that the firmware and the VMM must agree on and nobody else defines.
//! - [`measure`]: what a launch is made of, as a plan that the VMM executes and the verifier hashes.
//! - [`snp`]: SEV-SNP evidence, first as bytes, then (feature `verify`) as something to believe or not.
//! - [`tdx`]: TDX evidence, likewise.
//! - [`verdict`] (feature `verify`): the answer, with every reason that speaks against the evidence; [`claims`]: what
//!   authentic evidence says; [`ear`]: both as a signed token.
//! - [`signature`] (feature `verify`): the one point at which another implementation of ECDSA is chosen.
//! - [`json`] (feature `verify`): how documents are read.
//! - `corim`, `schema` (features of those names): reference values and formats for other people's tools.
//!
//! Without the `alloc` feature there is only what the firmware shares: [`abi`], and the tables of what it builds and
//! measures ([`measure::acpi`], [`measure::tdx::events`]).
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

#[cfg(feature = "alloc")]
extern crate alloc;

pub mod abi;
#[cfg(feature = "verify")]
pub mod claims;
#[cfg(feature = "verify")]
mod contradiction;
#[cfg(feature = "corim")]
pub mod corim;
#[cfg(feature = "verify")]
pub mod ear;
#[cfg(feature = "verify")]
pub mod jose;
#[cfg(feature = "verify")]
pub mod json;
pub mod measure;
#[cfg(feature = "schema")]
pub mod schema;
#[cfg(feature = "verify")]
pub mod signature;
#[cfg(feature = "verify")]
pub mod signing;
#[cfg(feature = "alloc")]
pub mod snp;
#[cfg(feature = "alloc")]
pub mod tdx;
#[cfg(feature = "verify")]
pub mod verdict;
#[cfg(feature = "verify")]
pub mod x509;

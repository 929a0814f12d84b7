//! The quoting service of the emulated platform: reports in, quotes out, under a root of its own.
//!
//! On hardware these are the quoting enclave, the provisioning certification enclave and Intel's services. Here they are
//! functions of the platform's secret; the formats, and what a verifier must check, are the real ones (Intel TDX DCAP
//! Quoting Library API, appendix "Quote Format"; Intel SGX PCK Certificate and CRL Profile; Intel PCS API v4).

pub mod collateral;
pub mod pki;
pub mod platform;
pub mod qgs;
pub mod quote;

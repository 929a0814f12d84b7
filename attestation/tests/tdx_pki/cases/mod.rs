//! Every way to be wrong, one at a time, and the reasons that evidence is refused for then.

mod chain;
mod policy;
mod quote;
mod tcb;

use super::Scenario;
use super::quote::{TEE_TCB_SVN, TEE_TCB_SVN2};

pub type Case = (&'static str, fn(&mut Scenario), &'static [&'static str]);

/// Sets both TEE_TCB_SVNs, as far as the report has them.
fn svn(s: &mut Scenario, svns: &[u8]) {
    s.quote.set(TEE_TCB_SVN, svns);
    if s.quote.body.len() > 584 {
        s.quote.set(TEE_TCB_SVN2, svns);
    }
}

/// All of them, for quotes of every kind.
pub const ALL: &[(&str, &[Case])] = &[
    ("form", quote::FORM),
    ("signatures", quote::SIGNATURES),
    ("chain", chain::CHAIN),
    ("SGX extension", chain::SGX_EXTENSION),
    ("CRLs", chain::CRLS),
    ("documents", tcb::DOCUMENTS),
    ("enclave", tcb::ENCLAVE),
    ("TCB", tcb::TCB),
    ("policy", policy::POLICY),
    ("event log", quote::EVENT_LOG),
];

/// Those that only some quotes can have: of version 5, and of TDX 1.0, 1.5 and 1.5ex.
pub const VERSION_5: &[Case] = quote::VERSION_5;
pub const TDX_1_0: &[Case] = policy::TDX_1_0;
pub const TDX_1_5: &[Case] = policy::TDX_1_5;
pub const TDX_1_5_EX: &[Case] = policy::TDX_1_5_EX;

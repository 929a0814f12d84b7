//! What the operations do, by family.

pub(crate) mod alu;
pub(crate) mod bits;
pub(crate) mod branch;
pub(crate) mod confidential;
pub(crate) mod control;
pub(crate) mod data;
pub(crate) mod decimal;
pub(crate) mod fpu;
pub(crate) mod io;
pub(crate) mod misc;
pub(crate) mod msr;
pub(crate) mod operand;
pub(crate) mod segments;
pub(crate) mod stack;
pub(crate) mod string;
pub(crate) mod system;

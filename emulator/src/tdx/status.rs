//! Completion status codes of the TDX module (RAX), by their names in the ABI reference.
#![allow(missing_docs, reason = "the names are the specification's")]

pub const SUCCESS: u64 = 0;
pub const OPERAND_INVALID: u64 = 0xc000_0100_0000_0000;
pub const OP_STATE_INCORRECT: u64 = 0xc000_0608_0000_0000;
pub const NO_VALID_VE_INFO: u64 = 0xc000_0704_0000_0000;
pub const PAGE_ALREADY_ACCEPTED: u64 = 0x0000_0b0a_0000_0000;
pub const PAGE_SIZE_MISMATCH: u64 = 0xc000_0b0b_0000_0000;
pub const METADATA_FIELD_ID_INCORRECT: u64 = 0xc000_0c00_0000_0000;
pub const METADATA_FIELD_NOT_WRITABLE: u64 = 0xc000_0c01_0000_0000;
pub const METADATA_FIELD_VALUE_NOT_VALID: u64 = 0xc000_0c03_0000_0000;
pub const INVALID_REPORTMACSTRUCT: u64 = 0xc000_1001_0000_0000;

/// Which operand: the low half of a status.
pub mod operand {
    pub const RAX: u64 = 0;
    pub const RCX: u64 = 1;
    pub const RDX: u64 = 2;
    pub const R8: u64 = 8;
    pub const ATTRIBUTES: u64 = 64;
    pub const XFAM: u64 = 65;
    pub const CPUID_CONFIG: u64 = 69;
}

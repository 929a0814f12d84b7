//! SVM exit codes and the GHCB's software exit codes (AMD APM volume 2 appendix C; GHCB specification, table of NAE events).
#![allow(missing_docs, reason = "the names are the specification's")]

pub const READ_DR7: u32 = 0x27;
pub const WRITE_DR7: u32 = 0x37;
pub const RDTSC: u32 = 0x6e;
pub const RDPMC: u32 = 0x6f;
pub const CPUID: u32 = 0x72;
pub const INVD: u32 = 0x76;
pub const HLT: u32 = 0x78;
pub const IOIO: u32 = 0x7b;
pub const MSR: u32 = 0x7c;
pub const VMMCALL: u32 = 0x81;
pub const RDTSCP: u32 = 0x87;
pub const WBINVD: u32 = 0x89;
pub const MONITOR: u32 = 0x8a;
pub const MWAIT: u32 = 0x8b;
pub const NPF: u32 = 0x400;
/// #VC error code: access to a private page that is not validated.
pub const PAGE_NOT_VALIDATED: u32 = 0x404;
pub const MMIO_READ: u32 = 0x8000_0001;
pub const MMIO_WRITE: u32 = 0x8000_0002;
pub const NMI_COMPLETE: u32 = 0x8000_0003;
pub const AP_RESET_HOLD: u32 = 0x8000_0004;
pub const AP_JUMP_TABLE: u32 = 0x8000_0005;
pub const PAGE_STATE_CHANGE: u32 = 0x8000_0010;
pub const GUEST_REQUEST: u32 = 0x8000_0011;
pub const EXTENDED_GUEST_REQUEST: u32 = 0x8000_0012;
pub const AP_CREATION: u32 = 0x8000_0013;
pub const HV_FEATURES: u32 = 0x8000_fffd;
pub const TERMINATION: u32 = 0x8000_fffe;

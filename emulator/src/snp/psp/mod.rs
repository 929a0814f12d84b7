//! The secure processor: keys, certificates, reports, guest messages.
//!
//! Its root is its own (`O=Cloister softkvm, emulated, NOT AMD`), made on first use under the state directory.

pub mod certs;
pub mod device;
pub mod message;
pub mod platform;
pub mod report;

use std::sync::OnceLock;

pub use message::message;
use platform::Platform;

use crate::platform::of_this_process;

/// The platform of this process, opened at first use.
pub fn platform() -> Option<&'static Platform> {
    static PLATFORM: OnceLock<Option<Platform>> = OnceLock::new();
    of_this_process(&PLATFORM, "the secure processor", Platform::open)
}

/// The certificate table of an extended report: VCEK, ASK, ARK.
pub fn certificate_table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| platform().map(|p| p.certs.table()).unwrap_or_default())
}

//! softkvm: KVM's UAPI answered from a software machine.
//!
//! The library is preloaded into a VMM. It takes the place of `/dev/kvm` and `/dev/sev`, and behaves as the
//! kernel's documentation and headers say, errno for errno, order for order. What it does not know it
//! refuses with the kernel's errno and says so once on stderr; it never pretends.
//!
//! Rooms: [`preload`] (interposed libc symbols), [`uapi`] (ioctls and argument validation), [`machine`] (VM, vCPUs,
//! memory, interrupts), [`snp`] (RMP, VMSA, GHCB, launch, secure processor), [`tdx`] (secure EPT, TDCALL, #VE, launch), [`platform`] (keys and certificates that outlive a VM).
#![allow(missing_docs, reason = "the public face of this crate is KVM's UAPI, not its Rust items")]

pub mod machine;
pub mod platform;
pub mod preload;
pub mod snp;
pub mod tdx;
pub mod uapi;

/// Says once on stderr that the client asked for something that softkvm does not have.
#[macro_export]
macro_rules! note_once {
    ($($arg:tt)*) => {{
        static SAID: std::sync::Once = std::sync::Once::new();
        SAID.call_once(|| eprintln!("softkvm: {}", format_args!($($arg)*)));
    }};
}

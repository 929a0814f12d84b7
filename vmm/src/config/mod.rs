//! What to run: command line and TOML file, merged into one checked struct.
//!
//! Parsing is pure; [`VmConfig::load`] then reads every input file whole, so that a launch that starts has
//! all that it needs and a launch that cannot work is refused before anything is created.

mod args;
mod images;
mod units;

pub use args::{Backend, DiskArgs, QuoteService, RunArgs, Tee, VsockArgs};
pub use images::Kernel;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cloister_attestation::measure::snp::{Rom, RomError};

use crate::hostile::Hostile;
use crate::limits::{
    CMDLINE_MAX, CPUS_MAX, FIRMWARE_BYTES_MAX, INITRD_BYTES_MAX, KERNEL_BYTES_MAX, MEMORY_MAX, MEMORY_MIN,
    PCI_FUNCTIONS_MAX, SMALL_BYTES_MAX,
};
use crate::sys::listener;

/// The default guest policy: bit 17 must be one, bit 16 allows SMT.
const DEFAULT_SNP_POLICY: u64 = 0x3_0000;
const SNP_POLICY_DEBUG: u64 = 1 << 19;
/// ATTRIBUTES of a TD (TDX module ABI specification, "ATTRIBUTES"): accesses to pages that the TD has not accepted end it
/// instead of raising #VE. Linux refuses to run without.
const TD_SEPT_VE_DISABLE: u64 = 1 << 28;
const TD_DEBUG: u64 = 1 << 0;

/// Why the input is unusable. Each is one line that says what to change.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error("{what} {}: {source}", path.display())]
    Read { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", path.display())]
    Toml { path: PathBuf, message: String },
    #[error("no firmware given: use --firmware ROM")]
    NoFirmware,
    #[error("firmware {}: {source}", path.display())]
    Firmware { path: PathBuf, source: RomError },
    #[error("firmware {}: not a ROM for this machine, it has no table of GUIDed entries at its end", path.display())]
    NotFirmware { path: PathBuf },
    #[error("kernel {}: {reason}", path.display())]
    Kernel { path: PathBuf, reason: images::ImageError },
    #[error("initrd {}: {reason}", path.display())]
    Initrd { path: PathBuf, reason: images::ImageError },
    #[error("--{0} needs a kernel: use --kernel FILE")]
    NeedsKernel(&'static str),
    #[error("--cmdline has {len} bytes; Linux takes {CMDLINE_MAX} with the terminating NUL")]
    CmdlineLong { len: usize },
    #[error("--cmdline contains a NUL byte")]
    CmdlineNul,
    #[error("--cpus {0}: a guest has 1 to {CPUS_MAX} CPUs")]
    Cpus(u32),
    #[error(
        "--memory {0} bytes: a guest has {min} MiB to {max} GiB of memory, in whole pages of 4 KiB; a size without \
         a suffix is in bytes, so write 512M or 2G",
        min = MEMORY_MIN >> 20, max = MEMORY_MAX >> 30
    )]
    Memory(u64),
    #[error(
        "{disks} disks: there is room for {room} (a guest has {PCI_FUNCTIONS_MAX} PCI devices; console, vsock and rng are some of them)"
    )]
    Disks { disks: usize, room: usize },
    #[error("disk {}: {reason}", path.display())]
    Disk { path: PathBuf, reason: String },
    #[error("--{what} {}: {source}", path.display())]
    Output { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("vsock cid {0}: guests have 3 to 4294967294")]
    VsockCid(u32),
    #[error("vsock socket {}: {reason}", path.display())]
    VsockSocket { path: PathBuf, reason: String },
    #[error("--snp-policy {0:#x} allows the host to debug the guest; add --allow-debug if that is meant")]
    PolicyDebug(u64),
    #[error("--snp-policy {0:#x}: bit 17 is reserved and must be one")]
    PolicyReserved(u64),
    #[error("--tdx-attributes {0:#x} allows the host to debug the TD; add --allow-debug if that is meant")]
    AttributesDebug(u64),
    #[error("--{what}: {reason}")]
    Input { what: &'static str, reason: String },
}

/// A disk as the guest will see it.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The raw image.
    pub path: PathBuf,
    /// Whether the guest may write.
    pub readonly: bool,
    /// VIRTIO_BLK_T_GET_ID's answer.
    pub id: String,
}

/// A checked configuration with the contents of its input files.
#[derive(Debug)]
pub struct VmConfig {
    /// Which kind of guest; `Auto` is decided by what the host can do.
    pub tee: Tee,
    /// The ROM.
    pub firmware: Vec<u8>,
    /// What the firmware is to boot.
    pub kernel: Option<Arc<Kernel>>,
    /// How many processors.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Block devices in PCI order.
    pub disks: Vec<Disk>,
    /// The vsock device.
    pub vsock: Option<VsockArgs>,
    /// Where COM1 goes.
    pub serial: Backend,
    /// Where hvc0 goes; no device if `Null`.
    pub console: Backend,
    /// Guest policy of SNP_LAUNCH_START.
    pub snp_policy: u64,
    /// Whether an SNP guest's VMSAs keep the host from injecting events.
    pub restricted_injection: bool,
    /// ID block and its authentication.
    pub id_block: Option<IdBlock>,
    /// HOST_DATA of the attestation report.
    pub host_data: [u8; 32],
    /// What a TD is for its whole life.
    pub td: TdIdentity,
    /// Where a TD's quotes come from; without one the guest learns that there is no service.
    pub quote_service: Option<QuoteService>,
    /// Where the launch transcript goes.
    pub transcript: Option<PathBuf>,
    /// Where the host's view of guest memory goes at the end.
    pub dump_shared: Option<PathBuf>,
    /// Whether output files that exist are overwritten.
    pub force: bool,
    /// An attack on the guest, in tests.
    pub hostile: Option<Hostile>,
}

/// The launch identity that SNP_LAUNCH_FINISH checks.
#[derive(Clone, Debug)]
pub struct IdBlock {
    /// 96 bytes: digest, family, image, version, SVN, policy.
    pub block: Vec<u8>,
    /// 4096 bytes: keys and signatures.
    pub auth: Vec<u8>,
    /// Whether the author key in `auth` is to be checked.
    pub author_key: bool,
}

/// The part of KVM_TDX_INIT_VM that an operator chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TdIdentity {
    /// ATTRIBUTES.
    pub attributes: u64,
    /// MRCONFIGID: what the owner says about the TD's configuration.
    pub mrconfigid: [u8; 48],
    /// MROWNER.
    pub mrowner: [u8; 48],
    /// MROWNERCONFIG.
    pub mrownerconfig: [u8; 48],
}

impl VmConfig {
    /// Merges `args` with the file that they name, reads the inputs and checks all of it.
    pub fn load(args: RunArgs) -> Result<Self, ConfigError> {
        let args = args.with_config_file()?;
        let cpus = args.cpus.unwrap_or(1);
        if !(1..=CPUS_MAX).contains(&cpus) {
            return Err(ConfigError::Cpus(cpus));
        }
        let memory = args.memory.map_or(512 << 20, |size| size.0);
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&memory) || !memory.is_multiple_of(4096) {
            return Err(ConfigError::Memory(memory));
        }
        let snp_policy = args.snp_policy.map_or(DEFAULT_SNP_POLICY, |policy| policy.0);
        check_policy(snp_policy, args.allow_debug)?;
        let td = td_identity(&args)?;
        let firmware = read_firmware(args.firmware.as_deref())?;
        let kernel = read_kernel(&args)?;
        check_devices(&args)?;
        let disks = args.disk.iter().enumerate().map(check_disk).collect::<Result<_, _>>()?;
        args.vsock.as_ref().map_or(Ok(()), check_vsock)?;
        Ok(Self {
            tee: args.tee.unwrap_or_default(),
            firmware,
            kernel: kernel.map(Arc::new),
            cpus,
            memory,
            disks,
            serial: args.serial.unwrap_or_default(),
            console: args.console.unwrap_or_default(),
            snp_policy,
            restricted_injection: args.restricted_injection,
            id_block: read_id_block(args.id_block.as_deref(), args.id_auth.as_deref())?,
            host_data: fixed_hex("host-data", args.host_data.as_deref())?,
            td,
            quote_service: args.quote_service,
            transcript: args.transcript,
            dump_shared: args.dump_shared,
            force: args.force,
            hostile: args.hostile,
            vsock: args.vsock,
        })
    }
}

fn check_policy(policy: u64, allow_debug: bool) -> Result<(), ConfigError> {
    match policy {
        _ if policy & SNP_POLICY_DEBUG != 0 && !allow_debug => Err(ConfigError::PolicyDebug(policy)),
        _ if policy & (1 << 17) == 0 => Err(ConfigError::PolicyReserved(policy)),
        _ => Ok(()),
    }
}

/// A file of at most `max` bytes, not one more of which is read.
pub(super) fn read(what: &'static str, path: &Path, max: u64) -> Result<Vec<u8>, ConfigError> {
    let fail = |source| ConfigError::Read { what, path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(fail)?;
    file.take(max + 1).read_to_end(&mut bytes).map_err(fail)?;
    match bytes.len() as u64 > max {
        true => Err(fail(std::io::Error::other(format!("has more than {max} bytes, which is too large")))),
        false => Ok(bytes),
    }
}

/// What every guest has on its bus beside disks: an rng, and what the configuration asks for.
fn check_devices(args: &RunArgs) -> Result<(), ConfigError> {
    let console = args.console.as_ref() != Some(&Backend::Null);
    let others = 1 + usize::from(console) + usize::from(args.vsock.is_some());
    let (disks, room) = (args.disk.len(), PCI_FUNCTIONS_MAX - others);
    if disks > room { Err(ConfigError::Disks { disks, room }) } else { Ok(()) }
}

fn read_firmware(path: Option<&Path>) -> Result<Vec<u8>, ConfigError> {
    let path = path.ok_or(ConfigError::NoFirmware)?;
    let bytes = read("firmware", path, FIRMWARE_BYTES_MAX)?;
    let rom = Rom::parse(&bytes);
    match rom.map_err(|source| ConfigError::Firmware { path: path.to_owned(), source })?.has_table() {
        true => Ok(bytes),
        false => Err(ConfigError::NotFirmware { path: path.to_owned() }),
    }
}

fn read_kernel(args: &RunArgs) -> Result<Option<Kernel>, ConfigError> {
    let Some(path) = args.kernel.as_deref() else {
        let orphan = [("initrd", args.initrd.is_some()), ("cmdline", args.cmdline.is_some())];
        return match orphan.into_iter().find(|(_, given)| *given) {
            Some((what, _)) => Err(ConfigError::NeedsKernel(what)),
            None => Ok(None),
        };
    };
    let cmdline = args.cmdline.clone().unwrap_or_default();
    if cmdline.contains('\0') {
        return Err(ConfigError::CmdlineNul);
    }
    if cmdline.len() >= CMDLINE_MAX {
        return Err(ConfigError::CmdlineLong { len: cmdline.len() });
    }
    let image = read("kernel", path, KERNEL_BYTES_MAX)?;
    images::check_kernel(&image).map_err(|reason| ConfigError::Kernel { path: path.to_owned(), reason })?;
    let initrd = args.initrd.as_deref().map(|path| {
        let bytes = read("initrd", path, INITRD_BYTES_MAX)?;
        images::check_initrd(&bytes)
            .map_err(|reason| ConfigError::Initrd { path: path.to_owned(), reason })?;
        Ok(bytes)
    });
    Ok(Some(Kernel { image, initrd: initrd.transpose()?, cmdline }))
}

fn check_disk((index, args): (usize, &DiskArgs)) -> Result<Disk, ConfigError> {
    let path = args.path.clone();
    let fail = |reason: String| ConfigError::Disk { path: path.clone(), reason };
    let metadata = std::fs::metadata(&path).map_err(|error| fail(error.to_string()))?;
    // A pipe would be waited for, and has no sectors.
    if !metadata.is_file() && !metadata.file_type().is_block_device() {
        return Err(fail("is neither a file nor a block device".into()));
    }
    // A block device has no length here; the device finds it by seeking.
    if metadata.is_file() && (metadata.len() == 0 || !metadata.len().is_multiple_of(512)) {
        return Err(fail(format!(
            "a raw image is whole sectors of 512 bytes, this file has {} bytes",
            metadata.len()
        )));
    }
    let id = args.id.clone().unwrap_or_else(|| format!("disk{index}"));
    if id.len() > 20 || !id.is_ascii() {
        return Err(fail(format!("id {id:?}: an id is up to 20 ASCII characters")));
    }
    Ok(Disk { path, readonly: args.readonly, id })
}

fn check_vsock(args: &VsockArgs) -> Result<(), ConfigError> {
    if !(3..u32::MAX).contains(&args.cid) {
        return Err(ConfigError::VsockCid(args.cid));
    }
    let fail = |reason: String| Err(ConfigError::VsockSocket { path: args.socket.clone(), reason });
    // sun_path has 108 bytes with the NUL, and the host side of a guest's connection appends `_PORT`.
    if args.socket.as_os_str().len() > 96 {
        return fail("a unix socket path has at most 96 bytes here".into());
    }
    listener::check(&args.socket).or_else(|error| fail(error.to_string()))
}

fn read_id_block(block: Option<&Path>, auth: Option<&Path>) -> Result<Option<IdBlock>, ConfigError> {
    let (block, auth) = match (block, auth) {
        (None, None) => return Ok(None),
        (Some(block), Some(auth)) => {
            (read("id block", block, SMALL_BYTES_MAX)?, read("id auth", auth, SMALL_BYTES_MAX)?)
        }
        (Some(_), None) => {
            return Err(ConfigError::Input { what: "id-block", reason: "needs --id-auth too".into() });
        }
        (None, Some(_)) => {
            return Err(ConfigError::Input { what: "id-auth", reason: "needs --id-block too".into() });
        }
    };
    for (what, bytes, len) in [("id-block", &block, 96), ("id-auth", &auth, 4096)] {
        if bytes.len() != len {
            let reason = format!("the file has {} bytes instead of {len}", bytes.len());
            return Err(ConfigError::Input { what, reason });
        }
    }
    // ID authentication: author key at 0x880 (SEV-SNP firmware ABI 56860, "ID Authentication Information Structure").
    let author_key = auth.iter().skip(0x880).take(0x404).any(|&byte| byte != 0);
    Ok(Some(IdBlock { block, auth, author_key }))
}

fn td_identity(args: &RunArgs) -> Result<TdIdentity, ConfigError> {
    let attributes = args.tdx_attributes.map_or(TD_SEPT_VE_DISABLE, |attributes| attributes.0);
    if attributes & TD_DEBUG != 0 && !args.allow_debug {
        return Err(ConfigError::AttributesDebug(attributes));
    }
    Ok(TdIdentity {
        attributes,
        mrconfigid: fixed_hex("tdx-mrconfigid", args.tdx_mrconfigid.as_deref())?,
        mrowner: fixed_hex("tdx-mrowner", args.tdx_mrowner.as_deref())?,
        mrownerconfig: fixed_hex("tdx-mrownerconfig", args.tdx_mrownerconfig.as_deref())?,
    })
}

/// Exactly `N` bytes in hexadecimal; zeros where nothing is given.
fn fixed_hex<const N: usize>(what: &'static str, hex: Option<&str>) -> Result<[u8; N], ConfigError> {
    let Some(hex) = hex else { return Ok([0; N]) };
    let bytes = units::parse_hex(hex).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| ConfigError::Input { what, reason: format!("takes {} hexadecimal digits", 2 * N) })
}

#[cfg(test)]
mod tests;

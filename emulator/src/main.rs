//! `softkvm`: runs a command with the software machine in place of `/dev/kvm` and `/dev/sev`.

mod program;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};
use softkvm::platform::state_directory;
use softkvm::snp::psp;
use softkvm::tdx::quoting::collateral::Collateral;
use softkvm::tdx::quoting::{self as tdx, qgs};
use softkvm::uapi::tee::{STATE_VARIABLE, TEE_VARIABLE};

/// Run a VMM on a software machine that answers KVM's ioctls, with AMD SEV-SNP or Intel TDX.
///
/// The command must be dynamically linked with glibc: a library is preloaded into it, and a command for which that cannot be is
/// refused. Nothing that it launches is confidential, and no verifier trusts its reports unless told to. A program can tell that
/// it runs here by the environment variable SOFTKVM_TEE, which is none, snp or tdx.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    run: Run,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Args)]
struct Run {
    /// Directory of the emulated keys and the platform model.
    #[arg(long, value_name = "DIR", global = true)]
    state: Option<PathBuf>,
    /// Which confidential machine to be.
    #[arg(long, value_enum, default_value = "snp")]
    tee: Tee,
    /// The command and its arguments, after `--`.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<std::ffi::OsString>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Tee {
    None,
    Snp,
    Tdx,
}

#[derive(Subcommand)]
enum Action {
    /// Write ark.pem, ask.pem, vcek.pem and crl.der, as an offline KDS mirror would hold them, and tdx-root.pem,
    /// tdx-root.der and tdx-collateral.json, as an offline PCCS would.
    ExportCerts {
        /// Where to; created if it is not there.
        dir: PathBuf,
        /// One machine's only. Without it both are written, and AMD's keys, which take some seconds, are made.
        #[arg(long, value_enum)]
        only: Option<Tee>,
    },
    /// Serve quotes of this platform, as Intel's quote generation service would, until killed.
    Qgs {
        /// The unix socket to listen on.
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match go(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("softkvm: {message}");
            ExitCode::from(2)
        }
    }
}

fn go(cli: Cli) -> Result<(), String> {
    if let Some(state) = &cli.run.state {
        // SAFETY: no other thread has been started.
        unsafe { std::env::set_var(STATE_VARIABLE, state) };
    }
    match cli.action {
        Some(Action::ExportCerts { dir, only }) => export(&dir, only),
        Some(Action::Qgs { socket }) => {
            qgs::listen(&open_tdx_platform()?, &socket).map_err(|e| e.to_string())
        }
        None => launch(&cli.run),
    }
}

fn export(dir: &Path, only: Option<Tee>) -> Result<(), String> {
    if matches!(only, None | Some(Tee::Snp)) {
        open_platform()?.certs.export(dir).map_err(|e| e.to_string())?;
    }
    if matches!(only, None | Some(Tee::Tdx)) {
        let platform = open_tdx_platform()?;
        let collateral = Collateral::make(&platform).map_err(|e| e.to_string())?;
        collateral.export(&platform, dir).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn open_platform() -> Result<psp::platform::Platform, String> {
    let dir = state_directory().map_err(|e| e.to_string())?;
    psp::platform::Platform::open(&dir).map_err(|e| e.to_string())
}

fn open_tdx_platform() -> Result<tdx::platform::Platform, String> {
    let dir = state_directory().map_err(|e| e.to_string())?;
    tdx::platform::Platform::open(&dir).map_err(|e| e.to_string())
}

fn launch(run: &Run) -> Result<(), String> {
    let Some((program, arguments)) = run.command.split_first() else {
        return Err("nothing to run: softkvm [--state DIR] [--tee snp|tdx|none] -- COMMAND ARGS…".into());
    };
    let tee = match run.tee {
        Tee::None => "none",
        Tee::Snp => {
            // Keys are made here, where the wait can be explained, and not inside the VMM's first report.
            open_platform()?;
            "snp"
        }
        Tee::Tdx => {
            open_tdx_platform()?;
            "tdx"
        }
    };
    program::check(program).map_err(|error| error.to_string())?;
    let library = library()?;
    eprintln!(
        "softkvm: an emulated machine ({}) answers for /dev/kvm: nothing in it is confidential",
        describe(run.tee)
    );
    let mut preload = library.into_os_string();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|v| !v.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let mut command = Command::new(program);
    command.args(arguments).env("LD_PRELOAD", preload).env(TEE_VARIABLE, tee);
    // Returns only if it fails.
    Err(format!("cannot run {}: {}", program.to_string_lossy(), command.exec()))
}

fn describe(tee: Tee) -> &'static str {
    match tee {
        Tee::None => "without a TEE; --tee snp or tdx for one",
        Tee::Snp => "AMD SEV-SNP; --tee tdx for Intel's",
        Tee::Tdx => "Intel TDX; --tee snp for AMD's",
    }
}

/// Effective user and group.
fn ids() -> (u32, u32) {
    // SAFETY: neither call has preconditions.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// Whether a file has capabilities of its own.
fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    let name = c"security.capability";
    // SAFETY: both are NUL-terminated, and a size of 0 asks for the length only.
    unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) > 0 }
}

/// `libsoftkvm.so` beside this executable, or where distributions would put it.
fn library() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|e| format!("cannot find my own path: {e}"))?;
    let beside = own.with_file_name("libsoftkvm.so");
    let installed = own.parent().and_then(|bin| bin.parent()).map(|prefix| prefix.join("lib/libsoftkvm.so"));
    [Some(beside.clone()), installed]
        .into_iter()
        .flatten()
        .find(|path| path.exists())
        .ok_or_else(|| format!("{} is missing: build it with `cargo build -p softkvm`", beside.display()))
}

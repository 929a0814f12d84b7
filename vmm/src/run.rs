//! `cloister run`: from configuration to exit code.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use crate::config::{Backend, ConfigError, RunArgs, Tee, VmConfig};
use crate::devices::backend::{Input, Output};
use crate::devices::fw_cfg::FwCfg;
use crate::devices::ioapic::IoApic;
use crate::devices::msi::KvmMsi;
use crate::devices::{GuestLog, Machine};
use crate::hostile::Attack;
use crate::launch::{self, Guest, LaunchError};
use crate::layout::PCI_WINDOW;
use crate::memory;
use crate::outcome::Outcome;
use crate::pci::{Bus, Function, HostBridge};
use crate::signals::{self, StopSignals};
use crate::tdx::{QuoteBroker, TdxExits};
use crate::vcpu::{Handler, VcpuThreads};
use crate::virtio::block::Block;
use crate::virtio::console::Console;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;
use crate::virtio::{BAR_BYTES, Device, VirtioPci};

const EXIT_REFUSED: u8 = 1;
const EXIT_USAGE: u8 = 2;

/// Why a run did not get as far as an outcome.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("{what}: {source}")]
    Host { what: String, source: io::Error },
}

impl RunError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Launch(LaunchError::Transcript { .. }) => EXIT_USAGE,
            Self::Launch(_) | Self::Host { .. } => EXIT_REFUSED,
        }
    }
}

fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> RunError {
    let what = what.into();
    move |source| RunError::Host { what, source }
}

/// Runs a guest and says how it ended.
pub fn main(args: RunArgs) -> ExitCode {
    let code = match VmConfig::load(args).map_err(RunError::from).and_then(run) {
        Ok(outcome) => {
            if outcome != (Outcome::PoweredOff { code: 0 }) {
                eprintln!("cloister: {outcome}");
            }
            outcome.exit_code()
        }
        Err(error) => {
            eprintln!("cloister: {error}");
            error.exit_code()
        }
    };
    ExitCode::from(code)
}

fn run(mut config: VmConfig) -> Result<Outcome, RunError> {
    // Before any thread starts, so that all inherit the mask.
    let signals = StopSignals::block().map_err(host("signals"))?;
    signals::install_kick_handler().map_err(host("signals"))?;

    let kvm = launch::open_kvm()?;
    if config.tee == Tee::Auto {
        let (tee, why) = launch::choose(&kvm);
        eprintln!("cloister: --tee auto: {why}");
        config.tee = tee;
    }
    let serial = open_output("serial", &config.serial)?;
    let devices = virtio_devices(&config)?;
    let dump = config.dump_shared.as_deref().map(create_dump).transpose()?;
    let guest = launch::launch(&kvm, &config)?;
    if let Some(hostile) = config.hostile {
        // After the launch has measured the good ones.
        config.kernel = config.kernel.map(|kernel| Arc::new(hostile.swap(&kernel)));
        config.cpus = hostile.told_cpus(config.cpus);
    }

    let msi = Arc::new(KvmMsi(guest.vm.clone()));
    let ioapic = Arc::new(IoApic::new(msi.clone()));
    let fw_cfg = FwCfg::new(&config, guest.memory.clone());
    let virtio = plug(devices, &guest, &msi).map_err(host("virtio"))?;
    let host_bridge: Arc<dyn Function> = Arc::new(HostBridge::default());
    let functions = virtio.iter().map(|function| function.clone() as Arc<dyn Function>);
    let quotes = QuoteBroker::new(config.quote_service.clone(), guest.memory.clone(), msi.clone());
    let bus = Bus::new([host_bridge].into_iter().chain(functions).collect());
    let machine = Arc::new(Machine::new(serial, fw_cfg, ioapic, bus));
    let handler = Arc::new(Handler {
        machine,
        attack: Attack::prepare(config.hostile, &guest.vm, guest.converter.as_ref()),
        converter: guest.converter.clone(),
        tdx: (config.tee == Tee::Tdx).then(|| TdxExits::new(quotes)),
        log: GuestLog::new("guest"),
    });
    let vcpus = VcpuThreads::start(guest.vcpus, &handler).map_err(host("vCPU threads"))?;
    let waited = wait(&vcpus, &signals).map_err(host("poll"));
    let outcome = vcpus.join();
    virtio.iter().for_each(|function| function.shut_down());
    if let Some(file) = dump {
        memory::dump::write(guest.memory.mapping(), &file).map_err(host("--dump-shared"))?;
    }
    waited.map(|()| outcome)
}

fn create_dump(path: &Path) -> Result<File, ConfigError> {
    let fail = |source| ConfigError::Output { what: "dump-shared", path: path.to_owned(), source };
    File::create(path).map_err(fail)
}

fn open_output(what: &'static str, backend: &Backend) -> Result<Output, ConfigError> {
    Output::open(backend).map_err(|source| {
        let path = if let Backend::File(path) = backend { path.clone() } else { "stdio".into() };
        ConfigError::Output { what, path, source }
    })
}

/// The virtio devices of a configuration, in PCI order, with their host sides open.
fn virtio_devices(config: &VmConfig) -> Result<Vec<Box<dyn Device>>, RunError> {
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    if config.console != Backend::Null {
        let output = open_output("console", &config.console)?;
        let input = if config.console == Backend::Stdio { Input::terminal() } else { None };
        devices.push(Box::new(Console::new(output, input)));
    }
    for disk in &config.disks {
        let block = Block::open(disk);
        let reason =
            |error: io::Error| ConfigError::Disk { path: disk.path.clone(), reason: error.to_string() };
        devices.push(Box::new(block.map_err(reason)?));
    }
    if let Some(args) = &config.vsock {
        let vsock = Vsock::open(args);
        let reason = |error: io::Error| ConfigError::VsockSocket {
            path: args.socket.clone(),
            reason: error.to_string(),
        };
        devices.push(Box::new(vsock.map_err(reason)?));
    }
    devices.push(Box::new(Rng));
    Ok(devices)
}

/// Puts devices behind PCI functions, with their BARs one after another.
fn plug(devices: Vec<Box<dyn Device>>, guest: &Guest, msi: &Arc<KvmMsi>) -> io::Result<Vec<Arc<VirtioPci>>> {
    let bars = (PCI_WINDOW.start as u32..).step_by(BAR_BYTES as usize);
    let function = |(device, bar)| {
        VirtioPci::new(device, bar, guest.memory.clone(), Some(guest.vm.clone()), msi.clone()).map(Arc::new)
    };
    devices.into_iter().zip(bars).map(function).collect()
}

/// Waits until the guest has ended or the operator ends it.
fn wait(vcpus: &VcpuThreads, signals: &StopSignals) -> io::Result<()> {
    let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut fds = [poll(vcpus.ended().as_raw_fd()), poll(signals.as_raw_fd())];
    loop {
        // SAFETY: `fds` is an array of as many initialised entries as the call is told.
        if unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
            continue;
        }
        if fds[0].revents != 0 {
            return Ok(());
        }
        if let Some(signal) = signals.take() {
            vcpus.stop(Outcome::Signalled(signal));
            return Ok(());
        }
    }
}

//! `cloister run`: from configuration to exit code.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use crate::config::{Backend, ConfigError, RunArgs, Tee, VmConfig};
use crate::devices::Machine;
use crate::devices::backend::{Input, Output};
use crate::devices::fw_cfg::FwCfg;
use crate::devices::ioapic::IoApic;
use crate::devices::msi::KvmMsi;
use crate::ending::undo_all;
use crate::hostile::Attack;
use crate::launch::{self, Guest, Kind, LaunchError};
use crate::layout::PCI_WINDOW;
use crate::outcome::Outcome;
use crate::output::file::OutputFile;
use crate::output::sink::Sink;
use crate::output::{GuestLog, finish_messages, say};
use crate::pci::{Bus, Function, HostBridge};
use crate::supervise::{self, Ended, Running};
use crate::sys::signals::{self, StopSignals};
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
        Ok(ended) => {
            if ended.outcome != (Outcome::PoweredOff { code: 0 }) {
                say(&ended.outcome);
            }
            match ended.outcome.exit_code() {
                0 if !ended.complete => EXIT_REFUSED,
                code => code,
            }
        }
        Err(error) => {
            say(&error);
            error.exit_code()
        }
    };
    finish_messages();
    // Devices whose threads hang are still there.
    undo_all();
    ExitCode::from(code)
}

fn run(mut config: VmConfig) -> Result<Ended, RunError> {
    // Before any thread starts, so that all inherit the mask.
    let signals = StopSignals::block().map_err(host("signals"))?;
    signals::install_kick_handler().map_err(host("signals"))?;

    let kvm = launch::open_kvm()?;
    let kind = launch::choose(&kvm, config.tee)?;
    if config.tee == Tee::Auto {
        say(format_args!("--tee auto: this host can launch guests of {kind}"));
    }
    let mut outputs = Outputs::new(config.force);
    let serial = outputs.device("serial", &config.serial)?;
    let devices = virtio_devices(&config, &mut outputs)?;
    let mut dump = outputs.optional("dump-shared", config.dump_shared.as_deref())?;
    let mut transcript = outputs.optional("transcript", config.transcript.as_deref())?;
    let guest = launch::launch(&kvm, kind, &config, transcript.as_mut())?;
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
    let log = Arc::new(GuestLog::new("guest"));
    let quotes =
        QuoteBroker::new(config.quote_service.clone(), guest.memory.clone(), msi.clone(), log.clone());
    let bus = Bus::new([host_bridge].into_iter().chain(functions).collect()).map_err(host("PCI"))?;
    let machine = Arc::new(Machine::new(serial, fw_cfg, ioapic, bus));
    let handler = Arc::new(Handler {
        machine,
        attack: Attack::prepare(config.hostile, &guest.vm, guest.converter.as_ref()),
        converter: guest.converter.clone(),
        tdx: (kind == Kind::Tdx).then(|| TdxExits::new(quotes, log.clone())),
        log,
    });
    let vcpus = VcpuThreads::start(guest.vcpus, &handler).map_err(host("vCPU threads"))?;
    let sinks = outputs.keep();
    dump.as_mut().into_iter().for_each(OutputFile::keep);
    let running = Running {
        vcpus,
        virtio,
        sinks,
        dump,
        memory: guest.memory,
        _backing: (guest.vm, guest.backing, guest.converter),
    };
    supervise::until_the_end(running, &signals).map_err(host("the guest's end"))
}

/// The outputs of a run.
struct Outputs {
    force: bool,
    stdout: Option<Sink>,
    sinks: Vec<Sink>,
    /// Files that go away again if there is no guest.
    files: Vec<OutputFile>,
}

impl Outputs {
    fn new(force: bool) -> Self {
        Self { force, stdout: None, sinks: Vec::new(), files: Vec::new() }
    }

    /// Where a character device's output goes.
    fn device(&mut self, what: &'static str, backend: &Backend) -> Result<Output, ConfigError> {
        let path = if let Backend::File(path) = backend { path.as_path() } else { Path::new("stdio") };
        let fail = |source| ConfigError::Output { what, path: path.to_owned(), source };
        Ok(match backend {
            Backend::Null => Output::null(),
            Backend::Stdio => Output::escaped(self.stdout().map_err(fail)?),
            Backend::RawStdio => Output::raw(self.stdout().map_err(fail)?),
            Backend::File(path) => {
                let file = OutputFile::create(path, self.force).map_err(fail)?;
                let sink = file.file().and_then(|file| Sink::new(what, file)).map_err(fail)?;
                self.files.push(file);
                self.sinks.push(sink.clone());
                Output::raw(sink)
            }
        })
    }

    /// Standard output is one, so that what devices write there keeps its order.
    fn stdout(&mut self) -> io::Result<Sink> {
        if let Some(sink) = &self.stdout {
            return Ok(sink.clone());
        }
        let sink = Sink::new("stdout", File::from(io::stdout().as_fd().try_clone_to_owned()?))?;
        self.sinks.push(sink.clone());
        Ok(self.stdout.insert(sink).clone())
    }

    /// A file for what the VMM itself has to say.
    fn optional(&self, what: &'static str, path: Option<&Path>) -> Result<Option<OutputFile>, ConfigError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| ConfigError::Output { what, path, source }
        };
        path.map(|path| OutputFile::create(path, self.force).map_err(fail(path))).transpose()
    }

    /// There is a guest: the files stay.
    fn keep(mut self) -> Vec<Sink> {
        self.files.iter_mut().for_each(OutputFile::keep);
        self.sinks
    }
}

/// The virtio devices of a configuration, in PCI order, with their host sides open.
fn virtio_devices(config: &VmConfig, outputs: &mut Outputs) -> Result<Vec<Box<dyn Device>>, RunError> {
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    if config.console != Backend::Null {
        let output = outputs.device("console", &config.console)?;
        let stdio = matches!(config.console, Backend::Stdio | Backend::RawStdio);
        devices.push(Box::new(Console::new(output, if stdio { Input::terminal() } else { None })));
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

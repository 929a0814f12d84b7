//! `cargo xtask demo`: a stock kernel launched as an attested guest on softkvm, and a secret released to it; or, with
//! `--tamper`, one thing changed and the refusal that follows.

mod broker;
mod check;
mod proxy;
mod sysrq;
mod tamper;
mod tee;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{command, firmware, image, kernel, paths, progress};
use tamper::Tamper;
pub use tee::{QuoteService, Tee};

/// What `demo` takes.
#[derive(clap::Args)]
#[group(id = "demo")]
pub struct Options {
    /// Kind of guest.
    #[arg(long, value_enum, default_value = "snp")]
    tee: Tee,
    /// Guest processors; as many as the attack needs, if there is one
    #[arg(long)]
    cpus: Option<u32>,
    /// Change one thing, and see who refuses.
    #[arg(long, value_enum)]
    tamper: Option<Tamper>,
    /// Show the guest's whole console.
    #[arg(long)]
    verbose: bool,
    #[command(flatten)]
    kernel: kernel::Options,
}

/// The secret's name at the broker.
const RESOURCE: &str = "demo/key/disk";
/// Another one, which the same guest may have.
const OTHER_RESOURCE: &str = "demo/key/other";
/// The key with which the guest proves what it has.
const PROOF_RESOURCE: &str = "demo/key/proof";
/// Guest memory.
const MEMORY: &str = "512M";
/// Where the VMM leaves what it could read of the guest's memory.
const SHARED_PAGES: &str = "shared-pages";
/// A guest that takes longer has hung.
const PATIENCE: Duration = Duration::from_secs(180);

/// Everything that a run needs, built.
pub struct Parts {
    /// Directory of the executables.
    pub bin: PathBuf,
    /// Firmware ROM.
    pub rom: PathBuf,
    /// Kernel.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: PathBuf,
}

impl Parts {
    /// Builds executables and images.
    pub fn build(options: &kernel::Options) -> Result<Self> {
        let step = progress::step("building softkvm, cloister, cloister-attest and cloister-broker");
        let mut build = command::cargo();
        build.args(["build", "--release", "--quiet"]);
        for package in ["softkvm", "cloister", "cloister-attest", "cloister-broker"] {
            build.args(["--package", package]);
        }
        command::run(&mut build)?;
        drop(step);
        let rom = firmware::build()?;
        let kernel = kernel::obtain(options)?;
        let initrd = image::build(&kernel, None)?;
        Ok(Self { bin: paths::target().join("release"), rom, kernel: kernel.image, initrd })
    }

    /// One of the executables.
    pub fn tool(&self, name: &str) -> Command {
        Command::new(self.bin.join(name))
    }
}

/// A broker's pin, where no broker is asked.
pub const EXAMPLE_PIN: &str = "sha256:NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs";

/// The command line of the guest's kernel: measured, so what it asks for is the owner's wish. SysRq is off from before the
/// first program on; a panic resets.
pub fn command_line(pin: &str) -> String {
    format!(
        "console=hvc0 panic=-1 cryptomgr.notests sysctl.kernel.sysrq=0 cloister.broker=vsock:2:8080 \
         cloister.broker-key={pin} cloister.proof={PROOF_RESOURCE} cloister.secret={RESOURCE}"
    )
}

/// A directory for one run, removed when it went well.
struct Workspace(PathBuf);

impl Workspace {
    fn new() -> Result<Self> {
        let path = paths::target().join("demo").join(std::process::id().to_string());
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.0).with_context(|| self.0.display().to_string())
    }
}

/// The demo.
pub fn run(options: &Options) -> Result<()> {
    let tee = options.tee;
    if let Some(what) = options.tamper.filter(|what| what.expected(tee).is_none()) {
        bail!("{what:?} is no attack on a guest of --tee {}", tee.name());
    }
    let cpus = options.cpus.unwrap_or(options.tamper.map_or(1, Tamper::cpus));
    let parts = Parts::build(&options.kernel)?;
    let workspace = Workspace::new()?;
    let state = tamper::state_directory(tee, options.tamper)?;
    let roots = workspace.path("roots");
    let mut export = parts.tool("softkvm");
    export.arg("--state").arg(&state).arg("export-certs").arg(&roots).args(["--only", tee.name()]);
    command::output(&mut export)?;
    let reference = workspace.path("reference.json");
    let trust = tee.trust(&roots, &workspace.0)?;
    let broker = broker::Prepared::new(&parts, &workspace.0, &trust, &reference)?;
    let line = tamper::command_line(options.tamper, &broker.pin);
    let predicted = measure(&parts, (tee, cpus), &line, &reference)?;
    println!("demo: predicted measurement {predicted}");
    let (secret, proof_key) = (broker::random_secret()?, broker::random_secret()?);
    for (name, secret) in
        [(RESOURCE, &secret), (OTHER_RESOURCE, &broker::random_secret()?), (PROOF_RESOURCE, &proof_key)]
    {
        broker.set(&parts, name, secret)?;
    }
    let broker = broker.start(&parts)?;
    let quotes = QuoteService::start(tee, &parts, &state, workspace.path("qgs"))?;
    let socket = workspace.path("vsock");
    let proxy = proxy::start(options.tamper, &broker.socket, &proxy::host_port(&socket, 8080))?;
    let launch = tamper::Launch::prepare(options.tamper, &parts, &workspace.0, quotes.as_ref(), line)?;
    let outcome = launch_guest(&parts, (options, cpus), &launch, &state, &socket, &workspace)?;
    drop((proxy, quotes));
    let log = broker.stop()?;
    let verdict = check::Run {
        tee,
        outcome: &outcome,
        broker_log: &log,
        predicted: &predicted,
        secret: &secret,
        proof_key: &proof_key,
    };
    match options.tamper {
        None => check::released(&verdict, &workspace.0)?,
        Some(what) => {
            check::refused(&verdict, what)?;
            if what.expected(tee).is_some_and(|expected| expected.who == tamper::NOBODY) {
                check::released(&verdict, &workspace.0)?;
                println!("demo: {what:?} has no effect");
            }
        }
    }
    workspace.remove()
}

/// The demo as it should go with one and two processors, and every attack refused.
pub fn check() -> Result<()> {
    for tee in [Tee::Snp, Tee::Tdx] {
        let run_one = |cpus, tamper| {
            run(&Options { tee, cpus, tamper, verbose: false, kernel: kernel::Options::default() })
        };
        run_one(Some(1), None)?;
        run_one(Some(2), None)?;
        let attacks = <Tamper as clap::ValueEnum>::value_variants().iter();
        for tamper in attacks.filter(|what| what.expected(tee).is_some()) {
            // Linux decides which of the swapped pages it touches first; it may hang before it can say so.
            let tries = if *tamper == Tamper::RamRemap { 3 } else { 1 };
            let refused = (0..tries).map(|_| run_one(None, Some(*tamper))).find(Result::is_ok);
            refused
                .with_context(|| format!("{}: {tamper:?} was not refused in {tries} tries", tee.name()))??;
        }
    }
    Ok(())
}

/// The files that a guest is made from, as `cloister run` and `cloister-attest measure` take them.
pub fn guest_files(command: &mut Command, rom: &Path, kernel: &Path, initrd: &Path) {
    for (option, file) in [("--firmware", rom), ("--kernel", kernel), ("--initrd", initrd)] {
        command.arg(option).arg(file);
    }
}

/// Predicts the measurement offline, from the files that the guest's owner has.
pub fn measure(parts: &Parts, (tee, cpus): (Tee, u32), line: &str, output: &Path) -> Result<String> {
    let mut measure = parts.tool("cloister-attest");
    tee.measure(&mut measure, cpus);
    guest_files(&mut measure, &parts.rom, &parts.kernel, &parts.initrd);
    let text = command::output(measure.arg("--cmdline").arg(line))?;
    fs::write(output, &text).with_context(|| output.display().to_string())?;
    let value: Value = serde_json::from_str(&text).context("cloister-attest measure --json")?;
    tee.measurement(&value)
}

/// What came of a launch.
pub struct Outcome {
    /// The VMM's exit code.
    pub code: Option<i32>,
    /// The guest's console.
    pub console: String,
    /// What the VMM and softkvm said.
    pub host: String,
}

fn launch_guest(
    parts: &Parts,
    (options, cpus): (&Options, u32),
    launch: &tamper::Launch,
    state: &Path,
    socket: &Path,
    workspace: &Workspace,
) -> Result<Outcome> {
    let (console, host) = (workspace.path("console.log"), workspace.path("host.log"));
    let mut vsock = std::ffi::OsString::from("cid=3,socket=");
    vsock.push(socket);
    let mut run = parts.tool("softkvm");
    let tee = options.tee.name();
    run.arg("--state").arg(state).args(["--tee", tee, "--"]);
    run.arg(parts.bin.join("cloister")).args(["run", "--tee", tee]);
    run.args(["--memory", launch.memory, "--cpus", &cpus.to_string()]);
    guest_files(&mut run, &launch.rom, &launch.kernel, &launch.initrd);
    run.arg("--cmdline").arg(&launch.command_line).arg("--vsock").arg(vsock);
    let hvc0 = match options.tamper {
        Some(Tamper::Sysrq) => "stdio".into(),
        _ => file_option(&console),
    };
    run.arg("--console").arg(hvc0).arg("--serial").arg(file_option(&workspace.path("serial.log")));
    run.arg("--dump-shared").arg(workspace.path(SHARED_PAGES));
    run.arg("--transcript").arg(workspace.path("transcript.json")).args(&launch.arguments);
    let step = progress::step("the guest runs");
    let code = match options.tamper {
        Some(Tamper::Sysrq) => sysrq::run(&run, &workspace.0, &console)?,
        _ => {
            let log = fs::File::create(&host).with_context(|| host.display().to_string())?;
            run.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            wait(run.spawn().context("softkvm")?)?
        }
    };
    drop(step);
    let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let serial = read(&workspace.path("serial.log"));
    let outcome = Outcome { code, console: serial + &read(&console), host: read(&host) };
    if options.verbose {
        print!("{}{}", outcome.console, outcome.host);
    }
    Ok(outcome)
}

fn file_option(path: &Path) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from("file=");
    option.push(path);
    option
}

fn wait(mut child: std::process::Child) -> Result<Option<i32>> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill()?;
    child.wait()?;
    bail!("the guest did not end within {} s", PATIENCE.as_secs())
}

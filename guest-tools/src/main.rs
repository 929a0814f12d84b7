//! `cloister-guest`: what runs inside a confidential guest, in Linux: ask for evidence, prove oneself to a broker, fetch a
//! secret. As PID 1 it is also a minimal init.
//!
//! The host carries every byte between guest and broker and is trusted with none: the broker's answer is encrypted to a
//! key that exists only in this guest and that its report binds, and signed by a key that this guest was told of in measured
//! memory. Must never: write a secret anywhere but where it was told to; trust anything that the host says beyond carrying it;
//! read what the host types.

mod console;
mod evidence;
mod http;
mod init;
mod kbs;
mod proof;
mod system;
mod transport;
mod tsm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cloister_kbs::jws::Pins;

#[derive(Parser)]
#[command(version, about = "Evidence and secrets for a confidential guest")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Get an attestation report or quote over 64 bytes of report data.
    Report {
        /// The report data, hexadecimal; shorter values are padded with zeros.
        #[arg(long, default_value = "")]
        report_data: String,
        /// Where to write the report; `-` is standard output.
        #[arg(long, default_value = "-")]
        output: PathBuf,
        /// Where to write what comes with it: the certificate table of an SNP report, the event log of a TD's firmware.
        #[arg(long)]
        auxiliary: Option<PathBuf>,
        /// Print measurement and sizes as JSON on standard error's sibling, standard output, instead of the report.
        #[arg(long)]
        json: bool,
    },
    /// Prove this guest to a broker and print the token.
    Attest {
        #[command(flatten)]
        broker: Broker,
    },
    /// Prove this guest to a broker and fetch a secret.
    GetSecret {
        #[command(flatten)]
        broker: Broker,
        /// The secret: repository/type/tag.
        resource: String,
        /// Where to write it (mode 0600); `-` is standard output.
        #[arg(long, default_value = "-")]
        output: PathBuf,
        /// Print, on standard error, a proof that it arrived: an HMAC under this resource, which is fetched as well.
        #[arg(long, value_name = "RESOURCE")]
        proof: Option<String>,
    },
    /// Be PID 1: mounts, modules, the secret that the kernel command line asks for, then a command or power-off.
    Init,
}

#[derive(clap::Args)]
struct Broker {
    /// Where the broker is: vsock:CID:PORT, tcp:HOST:PORT.
    #[arg(long, default_value = "vsock:2:8080")]
    broker: transport::Address,
    /// Whom to believe: what `cloister-broker key pin` prints (sha256:…), or file: and the path of a JWK set. May come again.
    #[arg(long, value_name = "PIN", required = true)]
    broker_key: Vec<String>,
}

impl Broker {
    fn attest(&self) -> Result<kbs::Session, Error> {
        let mut pins = Pins::default();
        for text in &self.broker_key {
            init::pin(&mut pins, text).map_err(Error::BrokerKey)?;
        }
        Ok(kbs::Session::attest(&self.broker, &pins)?)
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Evidence(#[from] evidence::Error),
    #[error(transparent)]
    Kbs(#[from] kbs::Error),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("--broker-key: {0}")]
    BrokerKey(String),
    #[error("--proof: {0}")]
    Proof(String),
    #[error("--report-data: {0}")]
    ReportData(String),
}

impl Error {
    /// 1: refused by the broker, or its answer by us; 2: anything else.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Kbs(kbs::Error::Refused { .. } | kbs::Error::Forged { .. }) => 1,
            _ => 2,
        }
    }
}

fn main() -> ExitCode {
    // The kernel starts PID 1 as /init, with its own arguments.
    if std::process::id() == 1 {
        init::run();
    }
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::complain(&error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Report { report_data, output, auxiliary, json } => {
            let evidence = evidence::get(&parse_report_data(&report_data)?)?;
            if let Some(path) = auxiliary {
                system::write_private(&path, &evidence.auxiliary)
                    .map_err(|source| Error::Io { path, source })?;
            }
            if json {
                println!("{}", evidence.summary());
                return Ok(());
            }
            system::write_private(&output, &evidence.report)
                .map_err(|source| Error::Io { path: output, source })
        }
        Command::Attest { broker } => {
            let session = broker.attest()?;
            println!("{}", session.token());
            Ok(())
        }
        Command::GetSecret { broker, resource, output, proof } => {
            let mut session = broker.attest()?;
            let secret = session.secret(&resource)?;
            if let Some(name) = proof {
                let key = proof::Key::new(session.secret(&name)?).map_err(Error::Proof)?;
                eprintln!("cloister-guest: proof {}", key.proof(&resource, &secret));
            }
            system::write_private(&output, &secret).map_err(|source| Error::Io { path: output, source })
        }
        Command::Init => init::run(),
    }
}

fn parse_report_data(text: &str) -> Result<[u8; 64], Error> {
    let bytes = hex::decode(text).map_err(|e| Error::ReportData(e.to_string()))?;
    let mut data = [0u8; 64];
    match data.get_mut(..bytes.len()) {
        Some(target) => target.copy_from_slice(&bytes),
        None => return Err(Error::ReportData(format!("{} bytes, at most 64", bytes.len()))),
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_data_is_padded_and_never_cut() {
        assert_eq!(parse_report_data("0102").unwrap()[..3], [1, 2, 0]);
        assert!(parse_report_data(&"00".repeat(65)).is_err());
        assert!(parse_report_data("xy").is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}

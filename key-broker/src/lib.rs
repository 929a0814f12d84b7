//! `cloister-broker`: releases secrets to guests that prove what they are.
//!
//! It speaks the KBS protocol (RCAR 0.4.0). A guest asks, gets a nonce, sends evidence that binds the nonce and its own
//! key, and, if the evidence is authentic and the policy allows it, gets the secret encrypted to that key. Everything
//! that arrives is untrusted and bounded. Must never: log or print a secret; answer an unattested session with one; let one
//! nonce be used twice.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod challenge;
pub mod config;
mod connections;
mod gate;
mod key_file;
mod known;
mod listen;
pub mod problem;
mod server;
mod spent;
mod store;
mod token;
pub mod verify;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use zeroize::Zeroizing;

use config::{Config, TokenConfig};
use p256::elliptic_curve::Generate as _;
use p256::pkcs8::{EncodePrivateKey as _, LineEnding};
use store::Store;

#[derive(Parser)]
#[command(version, about = "Releases secrets to guests that prove what they are")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve guests.
    Serve {
        /// Configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// The key that signs, which guests have pinned.
    Key {
        /// Configuration.
        #[arg(long)]
        config: PathBuf,
        #[command(subcommand)]
        action: KeyAction,
    },
    /// Manage the stored secrets.
    Secret {
        /// Configuration.
        #[arg(long)]
        config: PathBuf,
        #[command(subcommand)]
        action: SecretAction,
    },
}

#[derive(Subcommand)]
enum KeyAction {
    /// Make the key that signs tokens and releases, in the file that [token] key_file names. Never replaces one.
    Generate,
    /// Print what guests have pinned: cloister.broker-key=PIN on their kernel's command line.
    Pin {
        /// As JSON, with the JWK set.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum SecretAction {
    /// Store a secret, replacing what was there.
    Set {
        /// repository/type/tag.
        name: String,
        /// File with the secret; `-` is standard input.
        #[arg(long)]
        file: PathBuf,
    },
    /// List the names.
    List,
    /// Remove a secret.
    Remove {
        /// repository/type/tag.
        name: String,
    },
}

/// Bytes of a secret at most.
const MAX_SECRET: u64 = 512 << 10;

/// What the program does with its arguments; its exit code.
pub fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .json()
        .init();
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("cloister-broker: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<(), String> {
    match command {
        Command::Serve { config } => {
            let config = Config::load(&config).map_err(|e| e.to_string())?;
            let runtime = tokio::runtime::Runtime::new().map_err(|e| e.to_string())?;
            runtime.block_on(listen::serve(config))
        }
        Command::Key { config, action } => {
            let config = Config::load(&config).map_err(|e| e.to_string())?;
            println!("{}", key(&config.token, &action)?);
            Ok(())
        }
        Command::Secret { config, action } => {
            let config = Config::load(&config).map_err(|e| e.to_string())?;
            let store = Store::open(&config.store).map_err(|e| e.to_string())?;
            manage(&store, action).map_err(|e| e.to_string())
        }
    }
}

/// Makes the key, or only tells its pin.
fn key(config: &TokenConfig, action: &KeyAction) -> Result<String, String> {
    let path = config.key_file.as_ref().ok_or("the configuration names no [token] key_file")?;
    if matches!(action, KeyAction::Generate) {
        let key = p256::SecretKey::try_generate().map_err(|e| format!("no randomness: {e}"))?;
        let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(|e| e.to_string())?;
        key_file::create(path, &pem).map_err(|e| e.to_string())?;
    }
    let key = token::signing_key(config).map_err(|e| e.to_string())?.ok_or("no key")?;
    let pin = token::pin(&key);
    Ok(match action {
        KeyAction::Pin { json: true } => {
            serde_json::json!({"pin": pin, "jwks": {"keys": [cloister_attestation::jose::jwk(&key)]}})
                .to_string()
        }
        _ => pin,
    })
}

fn manage(store: &Store, action: SecretAction) -> Result<(), store::Error> {
    match action {
        SecretAction::Set { name, file } => store.set(&name, &read_secret(&file)?),
        SecretAction::List => {
            store.names()?.iter().for_each(|name| println!("{name}"));
            Ok(())
        }
        SecretAction::Remove { name } => store.remove(&name),
    }
}

fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, store::Error> {
    let io = |source| store::Error::Io { path: path.to_owned(), source };
    let mut secret = Zeroizing::new(Vec::new());
    let input: Box<dyn Read> = match path == Path::new("-") {
        true => Box::new(std::io::stdin()),
        false => Box::new(std::fs::File::open(path).map_err(io)?),
    };
    input.take(MAX_SECRET.saturating_add(1)).read_to_end(&mut secret).map_err(io)?;
    if secret.len() as u64 > MAX_SECRET {
        return Err(store::Error::TooLarge);
    }
    Ok(secret)
}

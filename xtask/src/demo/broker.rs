//! The broker of a demo: configured, given its secret, started, and asked for its log at the end.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Parts;
use crate::command;

/// A running broker.
pub struct Broker {
    child: Child,
    /// Where it listens.
    pub socket: PathBuf,
    log: PathBuf,
}

fn random() -> Result<String> {
    let mut bytes = [0u8; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// A secret that has not existed before, as text.
pub fn random_secret() -> Result<String> {
    random()
}

/// A broker that is configured, has its key and its secrets, and does not serve yet.
pub struct Prepared {
    config: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    /// What guests have pinned.
    pub pin: String,
}

impl Prepared {
    /// A broker in `dir` that has this trust and will know one reference value.
    pub fn new(parts: &Parts, dir: &Path, trust: &str, reference: &Path) -> Result<Self> {
        let (socket, log, config) = (dir.join("broker"), dir.join("broker.log"), dir.join("broker.toml"));
        let key = dir.join("store.key");
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&key)?;
        file.write_all(random()?.as_bytes())?;
        let text = format!(
            "listen = [{listen:?}]\nreference_values = [{reference:?}]\n\n{trust}\n\
             [store]\npath = \"secrets.redb\"\nkey_file = \"store.key\"\n\n[token]\nkey_file = \"token.pem\"\n",
            listen = format!("unix:{}", socket.display()),
        );
        fs::write(&config, text)?;
        let mut generate = parts.tool("cloister-broker");
        let pin = command::output(generate.args(["key", "--config"]).arg(&config).arg("generate"))?;
        Ok(Self { config, socket, log, pin: pin.trim().to_owned() })
    }

    /// Gives it a secret.
    pub fn set(&self, parts: &Parts, name: &str, secret: &str) -> Result<()> {
        let mut set = parts.tool("cloister-broker");
        set.args(["secret", "--config"])
            .arg(&self.config)
            .args(["set", name, "--file", "-"])
            .stdin(Stdio::piped());
        let mut set = set.spawn().context("cloister-broker")?;
        set.stdin.take().context("no pipe")?.write_all(secret.as_bytes())?;
        if !set.wait()?.success() {
            bail!("cloister-broker secret set failed");
        }
        Ok(())
    }

    /// Starts it.
    pub fn start(self, parts: &Parts) -> Result<Broker> {
        let mut serve = parts.tool("cloister-broker");
        serve.args(["serve", "--config"]).arg(&self.config).stdin(Stdio::null());
        serve.stderr(File::create(&self.log)?);
        let child = serve.spawn().context("cloister-broker")?;
        let mut broker = Broker { child, socket: self.socket, log: self.log };
        broker.wait_until_ready()?;
        Ok(broker)
    }
}

impl Broker {
    fn wait_until_ready(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            if UnixStream::connect(&self.socket).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "cloister-broker ended ({status}): {}",
                    fs::read_to_string(&self.log).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("cloister-broker does not listen on {}", self.socket.display())
    }

    /// Ends it; what it logged.
    pub fn stop(mut self) -> Result<String> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(fs::read_to_string(&self.log)?)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Already ended, or not ours to mourn.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! The command line, which is also the schema of the TOML file.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use serde::Deserialize;

use super::ConfigError;
use super::units::{Number, Size};
use crate::hostile::Hostile;
use crate::limits::SMALL_BYTES_MAX;

/// Which kind of guest to launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tee {
    /// SEV-SNP or TDX, whichever the host has; says which. Never a plain guest.
    #[default]
    Auto,
    /// No confidentiality.
    None,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

/// Flags of `cloister run`, and the keys of its TOML file. Relative paths on the command line are relative to the current
/// directory, those in the file to the file's.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RunArgs {
    /// TOML file with any of these settings; flags win over it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Kind of guest [default: auto]
    #[arg(long, value_enum)]
    pub tee: Option<Tee>,
    /// Firmware ROM
    #[arg(long, value_name = "ROM")]
    pub firmware: Option<PathBuf>,
    /// Linux kernel: bzImage or ELF vmlinux
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// Number of processors [default: 1]
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Guest memory, such as 512M or 2G [default: 512M]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// Raw disk image: `[path=]FILE[,readonly=on][,id=TEXT]`; may be given several times
    #[arg(long, value_name = "OPTIONS")]
    pub disk: Vec<DiskArgs>,
    /// vsock device: cid=N,socket=PATH. The guest's connections to host port P arrive at PATH_P; the host
    /// connects to PATH and sends "CONNECT P\n"
    #[arg(long, value_name = "OPTIONS")]
    pub vsock: Option<VsockArgs>,
    /// First serial port: stdio, stdio,raw, null or file=PATH [default: stdio]. On stdio the guest's control characters are shown as
    /// escapes such as \x1b; with `raw` they reach the terminal
    #[arg(long, value_name = "BACKEND")]
    pub serial: Option<Backend>,
    /// virtio console (hvc0): stdio, stdio,raw, null or file=PATH [default: stdio]
    #[arg(long, value_name = "BACKEND")]
    pub console: Option<Backend>,
    /// SNP guest policy [default: 0x30000]
    #[arg(long, value_name = "NUMBER")]
    pub snp_policy: Option<Number>,
    /// Accept a guest policy that lets the host debug the guest
    #[arg(long)]
    pub allow_debug: bool,
    /// Launch an SNP guest whose VMSAs keep the host from injecting exceptions and interrupts (SEV_FEATURES bit 3); Linux
    /// does not start with it
    #[arg(long)]
    pub restricted_injection: bool,
    /// SNP ID block, 96 bytes
    #[arg(long, value_name = "FILE")]
    pub id_block: Option<PathBuf>,
    /// SNP ID authentication, 4096 bytes
    #[arg(long, value_name = "FILE")]
    pub id_auth: Option<PathBuf>,
    /// HOST_DATA of the attestation report, 64 hexadecimal digits
    #[arg(long, value_name = "HEX")]
    pub host_data: Option<String>,
    /// TD attributes [default: 0x10000000, SEPT_VE_DISABLE]
    #[arg(long, value_name = "NUMBER")]
    pub tdx_attributes: Option<Number>,
    /// MRCONFIGID of a TD, 96 hexadecimal digits
    #[arg(long, value_name = "HEX")]
    pub tdx_mrconfigid: Option<String>,
    /// MROWNER of a TD, 96 hexadecimal digits
    #[arg(long, value_name = "HEX")]
    pub tdx_mrowner: Option<String>,
    /// MROWNERCONFIG of a TD, 96 hexadecimal digits
    #[arg(long, value_name = "HEX")]
    pub tdx_mrownerconfig: Option<String>,
    /// Where a TD's quotes come from: unix:PATH or vsock:CID:PORT of a quote generation service
    #[arg(long, value_name = "ADDRESS")]
    pub quote_service: Option<QuoteService>,
    /// Write the launch transcript (JSON) here
    #[arg(long, value_name = "FILE")]
    pub transcript: Option<PathBuf>,
    /// When the guest has ended, write all of its memory that the host could read here (a sparse file)
    #[arg(long, value_name = "FILE")]
    pub dump_shared: Option<PathBuf>,
    /// Overwrite output files that exist
    #[arg(long)]
    pub force: bool,
    /// Attack the guest as a malicious host would, to see that it notices
    #[arg(long, value_enum, value_name = "ATTACK", hide = true)]
    #[serde(skip)]
    pub hostile: Option<Hostile>,
}

impl RunArgs {
    /// Fills what the command line left open from the file that it names.
    pub fn with_config_file(self) -> Result<Self, ConfigError> {
        let Some(path) = self.config.clone() else { return Ok(self) };
        let bytes = super::read("config", &path, SMALL_BYTES_MAX)?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let line = 1 + error
                .as_bytes()
                .iter()
                .take(error.utf8_error().valid_up_to())
                .filter(|&&b| b == b'\n')
                .count();
            ConfigError::Toml { path: path.clone(), message: format!("line {line}: not UTF-8") }
        })?;
        let base = path.parent().unwrap_or(Path::new("")).to_owned();
        let mut file: Self = toml::from_str(&text)
            .map_err(|error| ConfigError::Toml { path, message: one_line(&text, &error) })?;
        file.beside(&base);
        Ok(self.over(file))
    }

    /// Takes every relative path as relative to `base`.
    fn beside(&mut self, base: &Path) {
        let named = [
            &mut self.firmware,
            &mut self.kernel,
            &mut self.initrd,
            &mut self.id_block,
            &mut self.id_auth,
            &mut self.transcript,
            &mut self.dump_shared,
        ];
        let disks = self.disk.iter_mut().map(|disk| &mut disk.path);
        let sockets = self.vsock.iter_mut().map(|vsock| &mut vsock.socket);
        let backends = [&mut self.serial, &mut self.console].into_iter().flatten();
        let outputs = backends.filter_map(|backend| match backend {
            Backend::File(path) => Some(path),
            Backend::Stdio | Backend::RawStdio | Backend::Null => None,
        });
        let quotes = self.quote_service.iter_mut().filter_map(|service| match service {
            QuoteService::Unix(path) => Some(path),
            QuoteService::Vsock { .. } => None,
        });
        let all = named.into_iter().flatten().chain(disks).chain(sockets).chain(outputs).chain(quotes);
        all.for_each(|path| *path = base.join(&*path));
    }

    /// `self` where it says something, else `file`.
    fn over(self, file: Self) -> Self {
        Self {
            config: self.config,
            tee: self.tee.or(file.tee),
            firmware: self.firmware.or(file.firmware),
            kernel: self.kernel.or(file.kernel),
            initrd: self.initrd.or(file.initrd),
            cmdline: self.cmdline.or(file.cmdline),
            cpus: self.cpus.or(file.cpus),
            memory: self.memory.or(file.memory),
            disk: if self.disk.is_empty() { file.disk } else { self.disk },
            vsock: self.vsock.or(file.vsock),
            serial: self.serial.or(file.serial),
            console: self.console.or(file.console),
            snp_policy: self.snp_policy.or(file.snp_policy),
            allow_debug: self.allow_debug || file.allow_debug,
            restricted_injection: self.restricted_injection || file.restricted_injection,
            id_block: self.id_block.or(file.id_block),
            id_auth: self.id_auth.or(file.id_auth),
            host_data: self.host_data.or(file.host_data),
            tdx_attributes: self.tdx_attributes.or(file.tdx_attributes),
            tdx_mrconfigid: self.tdx_mrconfigid.or(file.tdx_mrconfigid),
            tdx_mrowner: self.tdx_mrowner.or(file.tdx_mrowner),
            tdx_mrownerconfig: self.tdx_mrownerconfig.or(file.tdx_mrownerconfig),
            quote_service: self.quote_service.or(file.quote_service),
            transcript: self.transcript.or(file.transcript),
            dump_shared: self.dump_shared.or(file.dump_shared),
            force: self.force || file.force,
            hostile: self.hostile,
        }
    }
}

/// A TOML error as `line N: message`.
fn one_line(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(1, |before| before.matches('\n').count() + 1);
    format!("line {line}: {}", error.message().replace('\n', " "))
}

/// A `--disk`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskArgs {
    /// The image.
    pub path: PathBuf,
    /// Refuse writes.
    #[serde(default)]
    pub readonly: bool,
    /// Serial number that the guest sees.
    pub id: Option<String>,
}

/// A `--vsock`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockArgs {
    /// The guest's context identifier.
    pub cid: u32,
    /// Where the host finds it.
    pub socket: PathBuf,
}

/// Where a character device's output goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Standard output, with what would steer a terminal escaped, and standard input where it is a terminal.
    #[default]
    Stdio,
    /// The same as the guest writes it.
    RawStdio,
    /// Nowhere.
    Null,
    /// A file, as the guest writes it.
    File(PathBuf),
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "stdio,raw" => Ok(Self::RawStdio),
            None if text == "null" => Ok(Self::Null),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(format!("{text:?} is none of stdio, stdio,raw, null, file=PATH")),
        }
    }
}

impl<'de> Deserialize<'de> for Backend {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where a quote generation service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuoteService {
    /// On a unix socket.
    Unix(PathBuf),
    /// On a vsock port of this host or another.
    Vsock {
        /// Context identifier; 2 is the host.
        cid: u32,
        /// Port; Intel's service has 4050.
        port: u32,
    },
}

impl FromStr for QuoteService {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unusable = || format!("{text:?} is neither unix:PATH nor vsock:CID:PORT");
        match text.split_once(':').ok_or_else(unusable)? {
            ("unix", path) if !path.is_empty() => Ok(Self::Unix(path.into())),
            ("vsock", address) => {
                let (cid, port) = address.split_once(':').ok_or_else(unusable)?;
                let number = |text: &str| text.parse().map_err(|_| unusable());
                Ok(Self::Vsock { cid: number(cid)?, port: number(port)? })
            }
            _ => Err(unusable()),
        }
    }
}

impl<'de> Deserialize<'de> for QuoteService {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// `key=value` pairs separated by commas, each key at most once.
fn pairs<'a>(text: &'a str, keys: &[&str]) -> Result<Vec<(&'a str, &'a str)>, String> {
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for pair in text.split(',') {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} is not key=value"))?;
        if !keys.contains(&key) {
            return Err(format!("unknown key {key:?}; known: {}", keys.join(", ")));
        }
        if pairs.iter().any(|(known, _)| *known == key) {
            return Err(format!("{key} given twice"));
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

fn value<'a>(pairs: &[(&str, &'a str)], key: &str) -> Option<&'a str> {
    pairs.iter().find(|(known, _)| *known == key).map(|&(_, value)| value)
}

impl FromStr for DiskArgs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // What begins without a key is the path.
        let first = text.split(',').next().unwrap_or_default();
        let named = match first.is_empty() || first.contains('=') {
            true => text.to_owned(),
            false => format!("path={text}"),
        };
        let pairs = pairs(&named, &["path", "readonly", "id"])?;
        let readonly = match value(&pairs, "readonly") {
            None | Some("off") => false,
            Some("on") => true,
            Some(other) => return Err(format!("readonly={other}: on or off")),
        };
        let path = value(&pairs, "path").ok_or("path=FILE is missing")?.into();
        Ok(Self { path, readonly, id: value(&pairs, "id").map(str::to_owned) })
    }
}

impl FromStr for VsockArgs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pairs = pairs(text, &["cid", "socket"])?;
        let cid = value(&pairs, "cid").ok_or("cid=N is missing")?;
        let cid = cid.parse().map_err(|_| format!("cid={cid} is not a number of 32 bits"))?;
        Ok(Self { cid, socket: value(&pairs, "socket").ok_or("socket=PATH is missing")?.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_and_sockets_are_key_value_lists() {
        let disk = |path: &str, readonly, id: Option<&str>| DiskArgs {
            path: path.into(),
            readonly,
            id: id.map(str::to_owned),
        };
        assert_eq!("path=a.img".parse(), Ok(disk("a.img", false, None)));
        assert_eq!("readonly=on,id=x,path=a".parse(), Ok(disk("a", true, Some("x"))));
        assert_eq!("dir/a.img".parse(), Ok(disk("dir/a.img", false, None)));
        assert_eq!("a.img,readonly=on".parse(), Ok(disk("a.img", true, None)));
        for text in [
            "",
            ",",
            "a.img,b.img",
            "a.img,path=b",
            "readonly=on,a",
            "readonly=on",
            "path=a,path=b",
            "path=a,colour=red",
            "path=a,readonly=1",
        ] {
            assert!(text.parse::<DiskArgs>().is_err(), "{text}");
        }
        assert_eq!("cid=3,socket=s".parse(), Ok(VsockArgs { cid: 3, socket: "s".into() }));
        for text in ["cid=3", "socket=s", "cid=x,socket=s", "cid=4294967296,socket=s"] {
            assert!(text.parse::<VsockArgs>().is_err(), "{text}");
        }
    }

    #[test]
    fn backends_are_words_or_a_file() {
        for (text, backend) in [
            ("stdio", Backend::Stdio),
            ("stdio,raw", Backend::RawStdio),
            ("null", Backend::Null),
            ("file=a,b", Backend::File("a,b".into())),
        ] {
            assert_eq!(text.parse(), Ok(backend));
        }
        for text in ["", "tty", "raw", "stdio,", "stdio,cooked", "null,raw", "file=", "file"] {
            assert!(text.parse::<Backend>().is_err(), "{text}");
        }
    }

    #[test]
    fn quote_services_are_unix_or_vsock_addresses() {
        assert_eq!("unix:/run/qgs".parse(), Ok(QuoteService::Unix("/run/qgs".into())));
        assert_eq!("vsock:2:4050".parse(), Ok(QuoteService::Vsock { cid: 2, port: 4050 }));
        for text in ["", "unix:", "/run/qgs", "vsock:2", "vsock:2:x", "vsock::4050", "tcp:1:2"] {
            assert!(text.parse::<QuoteService>().is_err(), "{text}");
        }
    }

    #[test]
    fn paths_in_a_file_are_relative_to_it() {
        let text = "firmware = 'F'\nkernel = 'F'\ninitrd = '/F'\nid-block = 'F'\nid-auth = 'F'\ntranscript = 'F'\n\
                    dump-shared = 'F'\nconsole = 'file=F'\nserial = 'null'\nquote-service = 'unix:F'\n\
                    disk = [{ path = 'F' }, { path = 'F' }]\nvsock = { cid = 3, socket = 'F' }\n";
        let mut file: RunArgs = toml::from_str(text).unwrap();
        file.beside(Path::new("there"));
        let debug = format!("{file:?}");
        assert_eq!(
            (debug.matches("\"there/F\"").count(), debug.matches("\"F\"").count()),
            (11, 0),
            "{debug}"
        );
        assert_eq!(file.initrd, Some("/F".into()));
    }

    #[test]
    fn flags_win_over_the_file() {
        let file: RunArgs = toml::from_str(
            "tee = \"snp\"\ncpus = 4\nmemory = \"1G\"\nsnp-policy = 0x30000\nserial = \"null\"\n\
             [[disk]]\npath = \"a\"\n[vsock]\ncid = 3\nsocket = \"s\"\n",
        )
        .unwrap();
        let flags = RunArgs { cpus: Some(2), ..RunArgs::default() };
        let merged = flags.over(file);
        assert_eq!((merged.cpus, merged.memory, merged.tee), (Some(2), Some(Size(1 << 30)), Some(Tee::Snp)));
        assert_eq!((merged.serial, merged.disk.len()), (Some(Backend::Null), 1));
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_refused_with_their_line() {
        for (text, line) in [
            ("cpus = 1\ncolour = \"red\"\n", "line 2: unknown field `colour`"),
            ("memory = \"lots\"\n", "line 1: "),
            ("not toml", "line 1: "),
        ] {
            let error = toml::from_str::<RunArgs>(text).unwrap_err();
            let message = one_line(text, &error);
            assert!(message.starts_with(line) && !message.contains('\n'), "{message}");
        }
    }
}

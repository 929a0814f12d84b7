//! Tiny guests: ROMs of one page, assembled here, run by the real binary.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs `cloister run` with `arguments`. `CLOISTER_TEST_LAUNCHER` may name a program to run it under, such as a
/// software machine; without one, tests that start guests need `/dev/kvm`.
pub fn cloister(arguments: &[&str]) -> Output {
    let binary = env!("CARGO_BIN_EXE_cloister");
    let launcher = std::env::var("CLOISTER_TEST_LAUNCHER").unwrap_or_default();
    let mut words = launcher.split_whitespace().chain([binary, "run"]);
    let mut command = Command::new("timeout");
    command.arg("60").args(&mut words).args(arguments);
    command.stdin(std::process::Stdio::null()).output().expect("the binary starts")
}

/// The command that runs `cloister run` with `arguments`, to be started and sent signals. A guard of its own ends it where the guest does
/// not.
pub fn command(arguments: &[&str]) -> Command {
    let launcher = std::env::var("CLOISTER_TEST_LAUNCHER").unwrap_or_default();
    let mut words = launcher.split_whitespace().chain([env!("CARGO_BIN_EXE_cloister"), "run"]);
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words).args(arguments).stdin(std::process::Stdio::null());
    command
}

/// A started `cloister run`, which is killed if a test leaves it.
pub struct Running(pub std::process::Child);

impl Running {
    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.0.id().to_string()]).status();
        assert!(sent.expect("kill").success());
    }

    /// Its exit code, if it ends within a minute.
    pub fn code(&mut self) -> Option<i32> {
        for _ in 0..6000 {
            if let Some(status) = self.0.try_wait().expect("a child") {
                return status.code();
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("it does not end");
    }

    /// What it said on a standard error that is a pipe, once it has ended.
    pub fn stderr(&mut self) -> String {
        let mut said = String::new();
        let mut pipe = self.0.stderr.take().expect("a pipe");
        std::io::Read::read_to_string(&mut pipe, &mut said).expect("text");
        said
    }

    /// Waits until `ready` holds, for a minute.
    pub fn until(&mut self, mut ready: impl FnMut() -> bool) {
        for _ in 0..6000 {
            if ready() {
                return;
            }
            assert!(self.0.try_wait().expect("a child").is_none(), "it ended before");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("it does not come to that");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Standard error without what the launcher says.
pub fn stderr(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines()
        .filter(|line| line.starts_with("cloister: ") || line.starts_with("error: "))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Whether SNP guests can run here; says so if not.
pub fn snp_available() -> bool {
    let available = cloister_command(&["probe"])
        .is_some_and(|text| text.lines().any(|line| line.starts_with("snp   yes")));
    if !available {
        eprintln!("SKIPPED: this machine has no SEV-SNP, and CLOISTER_TEST_LAUNCHER gives none");
    }
    available
}

fn cloister_command(arguments: &[&str]) -> Option<String> {
    let launcher = std::env::var("CLOISTER_TEST_LAUNCHER").unwrap_or_default();
    let mut words = launcher.split_whitespace().chain([env!("CARGO_BIN_EXE_cloister")]);
    let output = Command::new(words.next()?).args(words).args(arguments).output().ok()?;
    String::from_utf8(output.stdout).ok()
}

/// Whether guests can run here; says so if not.
pub fn machine_available() -> bool {
    let available = std::env::var_os("CLOISTER_TEST_LAUNCHER").is_some()
        || std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !available {
        eprintln!("SKIPPED: no usable /dev/kvm and no CLOISTER_TEST_LAUNCHER");
    }
    available
}

/// Real-mode code under construction.
#[derive(Default)]
pub struct Asm(Vec<u8>);

impl Asm {
    /// `mov dx, port; mov al, value; out dx, al`
    pub fn out8(mut self, port: u16, value: u8) -> Self {
        self.0.push(0xba);
        self.0.extend(port.to_le_bytes());
        self.0.extend([0xb0, value, 0xee]);
        self
    }

    /// `mov dx, port; mov ax, value; out dx, ax`
    pub fn out16(mut self, port: u16, value: u16) -> Self {
        self.0.push(0xba);
        self.0.extend(port.to_le_bytes());
        self.0.push(0xb8);
        self.0.extend(value.to_le_bytes());
        self.0.push(0xef);
        self
    }

    /// Writes `text` to COM1.
    pub fn print(self, text: &str) -> Self {
        text.bytes().fold(self, |asm, byte| asm.out8(0x3f8, byte))
    }

    /// `mov dx, from; in al, dx; mov dx, to; out dx, al`
    pub fn copy8(mut self, from: u16, to: u16) -> Self {
        self.0.push(0xba);
        self.0.extend(from.to_le_bytes());
        self.0.extend([0xec, 0xba]);
        self.0.extend(to.to_le_bytes());
        self.0.push(0xee);
        self
    }

    /// Any bytes.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// `jmp` back to the begin of the ROM, so that what it holds goes on for ever.
    pub fn again(self) -> Self {
        let back = -(self.0.len() as i16 + 3);
        self.bytes(&[0xe9]).bytes(&back.to_le_bytes())
    }

    /// Powers the machine off.
    pub fn power_off(self) -> Self {
        self.out8(0x600, 0x34).bytes(&[0xf4, 0xeb, 0xfd]) // hlt; jmp back to it
    }

    /// A ROM of one page that starts with this code, and with an empty table of GUIDed entries.
    pub fn rom(self) -> Vec<u8> {
        rom(&self.0, &[])
    }

    /// Ends an SNP guest by the GHCB MSR protocol: reason `code` of set `set`.
    pub fn terminate(self, set: u8, code: u8) -> Self {
        let request = 0x100 | u32::from(set) << 12 | u32::from(code) << 16;
        let [a, b, c, d] = request.to_le_bytes();
        // mov ecx, GHCB MSR; mov eax, request; xor edx, edx; wrmsr; rep vmmcall (VMGEXIT)
        self.bytes(&[0x66, 0xb9, 0x30, 0x01, 0x01, 0xc0, 0x66, 0xb8, a, b, c, d, 0x66, 0x31, 0xd2])
            .bytes(&[0x0f, 0x30, 0xf3, 0x0f, 0x01, 0xd9])
    }

    /// The same ROM for an SNP guest: with a secrets page at 0x1000, a CPUID page at 0x2000 and 8 KiB of zeros at 0x4000.
    pub fn snp_rom(self) -> Vec<u8> {
        const METADATA: u32 = 0x800; // bytes before the end
        const METADATA_GUID: [u8; 16] =
            [0x66, 0x65, 0x88, 0xdc, 0x4a, 0x98, 0x98, 0x47, 0xa7, 0x5e, 0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc];
        let entry = [&METADATA.to_le_bytes()[..], &22u16.to_le_bytes(), &METADATA_GUID].concat();
        let mut rom = rom(&self.0, &entry);
        let sections: [[u32; 3]; 3] = [[0x1000, 0x1000, 2], [0x2000, 0x1000, 3], [0x4000, 0x2000, 1]];
        let words = [16 + 12 * 3, 1, 3].into_iter().chain(sections.into_iter().flatten());
        let metadata: Vec<u8> = b"ASEV".iter().copied().chain(words.flat_map(u32::to_le_bytes)).collect();
        let at = rom.len() - METADATA as usize;
        rom[at..at + metadata.len()].copy_from_slice(&metadata);
        rom
    }
}

/// A ROM of one page with `code` at its start and `entries` in its table of GUIDed entries.
fn rom(code: &[u8], entries: &[u8]) -> Vec<u8> {
    const FOOTER_GUID: [u8; 16] =
        [0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d];
    let size = (entries.len() as u16 + 18).to_le_bytes();
    let table = [entries, &size, &FOOTER_GUID].concat();
    let mut rom = vec![0; 4096];
    rom[..code.len()].copy_from_slice(code);
    rom[4096 - 32 - table.len()..4096 - 32].copy_from_slice(&table);
    // At the reset vector: jmp to offset 0xf000 of the segment, which is the page's first byte.
    rom[4080..4083].copy_from_slice(&[0xe9, 0x0d, 0xf0]);
    rom
}

/// A scratch directory with a ROM in it.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// Empty.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a scratch directory"))
    }

    /// A file with `bytes`.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).expect("a scratch file");
        path
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The names of what is in it.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).expect("the scratch directory");
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("scratch paths are UTF-8")
}

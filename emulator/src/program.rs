//! Whether a library can be preloaded into a program at all. Where it cannot, the program would find the host's own
//! `/dev/kvm`, or none, and whoever asked for the software machine would not be told: a test of nothing that passes.
//!
//! Looks at the file that will be executed, and through scripts at their interpreters. What a shell script starts later is
//! not seen here.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Interpreters of interpreters that Linux follows (fs/exec.c, BINPRM_BUF_SIZE and its bound on recursion).
const INTERPRETERS: usize = 5;
const HEAD: usize = 256;

/// Why no library can be preloaded.
#[derive(Debug, thiserror::Error)]
pub enum Unsuitable {
    /// Nowhere.
    #[error("there is no program {0:?} here or in PATH")]
    NotFound(OsString),
    /// Cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a program.
    #[error("{0} is neither an ELF program nor a script")]
    NoProgram(PathBuf),
    /// Another architecture.
    #[error("{0} is no program for x86-64")]
    Architecture(PathBuf),
    /// Static.
    #[error(
        "{0} is statically linked: nothing can be preloaded into it, and it would use this host's own /dev/kvm. \
         Take a build that is linked dynamically with glibc"
    )]
    Static(PathBuf),
    /// Another C library.
    #[error("{program} is linked with {interpreter}: softkvm's library is for glibc")]
    OtherLibc {
        /// Which program.
        program: PathBuf,
        /// Its dynamic linker.
        interpreter: String,
    },
    /// Set-user-ID, set-group-ID or with capabilities.
    #[error(
        "{0} gains privileges when it is executed (set-user-ID, set-group-ID or file capabilities): the dynamic linker \
         preloads nothing into such programs. Take a copy without them"
    )]
    Privileged(PathBuf),
    /// Scripts without end.
    #[error("{0}: too many interpreters of interpreters")]
    Scripts(PathBuf),
}

/// Finds the program as execvp(3) does, and checks that a library can be preloaded into it.
pub fn check(program: &OsStr) -> Result<(), Unsuitable> {
    let mut path = find(program)?;
    for _ in 0..INTERPRETERS {
        let io = |source| Unsuitable::Io { path: path.clone(), source };
        let mut file = File::open(&path).map_err(io)?;
        let mut head = Vec::new();
        (&mut file).take(HEAD as u64).read_to_end(&mut head).map_err(io)?;
        if head.starts_with(b"\x7fELF") {
            return check_elf(&path, &mut file, &head);
        }
        path = interpreter(&head).ok_or_else(|| Unsuitable::NoProgram(path.clone()))?;
    }
    Err(Unsuitable::Scripts(path))
}

fn find(program: &OsStr) -> Result<PathBuf, Unsuitable> {
    if program.as_bytes().contains(&b'/') {
        return Ok(program.into());
    }
    let executable = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(executable);
    found.ok_or_else(|| Unsuitable::NotFound(program.into()))
}

/// The interpreter of a script; for `env NAME`, the program of that name.
fn interpreter(head: &[u8]) -> Option<PathBuf> {
    let line = head.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?;
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let interpreter = Path::new(OsStr::from_bytes(words.next()?));
    if interpreter.file_name() == Some(OsStr::new("env")) {
        let name = words.find(|word| !word.starts_with(b"-") && !word.contains(&b'='))?;
        return find(OsStr::from_bytes(name)).ok();
    }
    Some(interpreter.into())
}

/// A number of the ELF header or of a program header.
fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut wide = [0; 8];
    for (to, from) in wide.iter_mut().zip(bytes.get(at..).unwrap_or_default()).take(N) {
        *to = *from;
    }
    u64::from_le_bytes(wide)
}

fn check_elf(path: &Path, file: &mut File, head: &[u8]) -> Result<(), Unsuitable> {
    const CLASS_64_LITTLE_ENDIAN: &[u8] = &[2, 1];
    const EM_X86_64: u64 = 62;
    const PT_INTERP: u64 = 3;
    const HEADER_BYTES: usize = 56;
    const HEADERS_MAX: u64 = 512;
    let io = |source| Unsuitable::Io { path: path.to_owned(), source };
    if head.get(4..6) != Some(CLASS_64_LITTLE_ENDIAN) || number::<2>(head, 18) != EM_X86_64 {
        return Err(Unsuitable::Architecture(path.to_owned()));
    }
    if is_privileged(path, file).map_err(io)? {
        return Err(Unsuitable::Privileged(path.to_owned()));
    }
    // The dynamic linker has none above it, and preloads into what it is told to run.
    if path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"ld-linux")) {
        return Ok(());
    }
    let (offset, count) = (number::<8>(head, 32), number::<2>(head, 56).min(HEADERS_MAX));
    for index in 0..count {
        let mut header = [0; HEADER_BYTES];
        let at = offset.saturating_add(index.saturating_mul(HEADER_BYTES as u64));
        file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut header)).map_err(io)?;
        if number::<4>(&header, 0) == PT_INTERP {
            let (at, length) = (number::<8>(&header, 8), number::<8>(&header, 32).min(4096));
            let mut name = Vec::new();
            file.seek(SeekFrom::Start(at)).map_err(io)?;
            file.take(length).read_to_end(&mut name).map_err(io)?;
            let interpreter = String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned();
            return match interpreter.contains("musl") {
                true => Err(Unsuitable::OtherLibc { program: path.to_owned(), interpreter }),
                false => Ok(()),
            };
        }
    }
    Err(Unsuitable::Static(path.to_owned()))
}

/// Whether the kernel gives the program more than its caller has, so that its dynamic linker is careful (ld.so(8),
/// "secure-execution mode"). Root gains nothing by a program of root's.
fn is_privileged(path: &Path, file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let found = file.metadata()?;
    let mode = found.permissions().mode();
    let (euid, egid) = crate::ids();
    let gains_user = mode & libc::S_ISUID != 0 && found.uid() != euid;
    let gains_group = mode & libc::S_ISGID != 0 && mode & libc::S_IXGRP != 0 && found.gid() != egid;
    Ok(gains_user || gains_group || (euid != 0 && crate::has_capabilities(path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;

    struct Elf {
        machine: u16,
        interpreter: Option<&'static str>,
    }

    impl Elf {
        fn bytes(&self) -> Vec<u8> {
            let mut file = vec![0; 64];
            file[..6].copy_from_slice(b"\x7fELF\x02\x01");
            file[18..20].copy_from_slice(&self.machine.to_le_bytes());
            file[32] = 64;
            file[56] = 2;
            // PT_LOAD first.
            let mut load = [0; 56];
            load[0] = 1;
            file.extend(load);
            let name = self.interpreter.unwrap_or_default();
            let mut second = [0; 56];
            second[0] = if self.interpreter.is_some() { 3 } else { 2 };
            second[8] = 176;
            second[32] = name.len() as u8 + 1;
            file.extend(second);
            file.extend(name.as_bytes());
            file.push(0);
            file
        }
    }

    const GLIBC: Option<&str> = Some("/lib64/ld-linux-x86-64.so.2");

    fn said(folder: &Path, name: &str, bytes: &[u8], mode: u32) -> String {
        let path = folder.join(name);
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o755).open(&path).unwrap();
        io::Write::write_all(&mut file, bytes).unwrap();
        drop(file);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        check(path.as_os_str()).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn only_programs_that_a_library_can_be_preloaded_into_are_run() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str, bytes: &[u8]| said(folder.path(), name, bytes, 0o755);
        let elf = |machine, interpreter| Elf { machine, interpreter }.bytes();
        assert_eq!(at("good", &elf(62, GLIBC)), "");
        assert!(at("static", &elf(62, None)).contains("statically linked"));
        assert_eq!(at("ld-linux-x86-64.so.2", &elf(62, None)), "");
        assert!(at("arm", &elf(183, GLIBC)).contains("x86-64"));
        assert!(at("musl", &elf(62, Some("/lib/ld-musl-x86_64.so.1"))).contains("glibc"));
        assert!(at("text", b"hello").contains("neither"));
        assert!(at("empty", b"").contains("neither"));
        assert!(at("cut", &elf(62, GLIBC)[..70]).contains("cut"));
        let script = |name: &str| format!("#! {}\n", folder.path().join(name).display()).into_bytes();
        assert_eq!(at("script", &script("good")), "");
        assert!(at("script of a static one", &script("static")).contains("statically linked"));
        assert!(at("loop", &script("loop")).contains("too many"));
        assert_eq!(at("env", b"#!/usr/bin/env -S A=b sh\n"), "");
        assert!(check(OsStr::new("no-such-program")).unwrap_err().to_string().contains("PATH"));
        assert!(check(OsStr::new("/no/such/program")).is_err());
    }

    #[test]
    fn a_program_that_gains_privileges_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("suid");
        let bytes = Elf { machine: 62, interpreter: GLIBC }.bytes();
        assert_eq!(said(folder.path(), "suid", &bytes, 0o4755), "", "one's own gains nothing");
        // Only root can give a file away.
        if std::os::unix::fs::chown(&path, Some(65534), None).is_ok() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
            assert!(check(path.as_os_str()).unwrap_err().to_string().contains("set-user-ID"));
        }
    }
}

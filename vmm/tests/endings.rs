//! However a guest ends: the VMM ends too, and leaves nothing behind that is not meant to stay.

mod common;

use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use common::{Asm, Running, Scratch, arg, cloister, command, machine_available, stderr};

/// The arguments of a plain guest with `rom`.
fn plain<'a>(rom: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["--tee", "none", "--firmware", rom, "--memory", "16M", "--console", "null"][..], more].concat()
}

/// `file=PATH`
fn file(path: &std::path::Path) -> String {
    format!("file={}", arg(path))
}

#[test]
fn every_signal_that_asks_for_the_end_gets_it_in_order() {
    if !machine_available() {
        return;
    }
    for signal in ["TERM", "INT", "HUP", "QUIT"] {
        let scratch = Scratch::new();
        let rom = scratch.file("rom", &Asm::default().print("up\n").bytes(&[0xeb, 0xfe]).rom());
        let (serial, socket) = (scratch.path("serial"), scratch.path("socket"));
        let (serial_option, vsock) = (file(&serial), format!("cid=3,socket={}", arg(&socket)));
        let arguments = plain(arg(&rom), &["--cpus", "2", "--serial", &serial_option, "--vsock", &vsock]);
        let mut running = Running(command(&arguments).stderr(Stdio::piped()).spawn().unwrap());
        running.until(|| std::fs::read(&serial).is_ok_and(|text| text == b"up\n"));
        assert!(socket.exists());
        running.signal(signal);
        assert_eq!(running.code(), Some(1), "SIG{signal}");
        let said = running.stderr();
        assert!(said.contains(&format!("stopped by SIG{signal}")), "{said}");
        assert!(!socket.exists(), "SIG{signal}");
    }
}

/// Starts a guest that writes without end into a small pipe, and waits until that is full.
fn stuck_writer(scratch: &Scratch, more: &[&str]) -> (Running, std::io::PipeReader) {
    const PIPE: i32 = 4096;
    let rom = scratch.file("rom", &Asm::default().print(&"x".repeat(500)).again().rom());
    let (reader, writer) = std::io::pipe().unwrap();
    // SAFETY: the descriptor is open; this changes its pipe's size.
    assert_eq!(unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE) }, PIPE);
    let mut command = command(&plain(arg(&rom), more));
    let mut running = Running(command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap());
    // Full is when nothing more arrives: the last piece need not fit to the byte.
    let (mut last, mut same) = (0, 0);
    running.until(|| {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the descriptor is open, and the answer has room.
        assert_eq!(unsafe { libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &mut bytes) }, 0);
        same = if bytes == last { same + 1 } else { 0 };
        last = bytes;
        bytes > 0 && same == 20
    });
    (running, reader)
}

#[test]
fn a_reader_that_takes_nothing_does_not_keep_the_guest_alive() {
    if !machine_available() {
        return;
    }
    let scratch = Scratch::new();
    let (mut running, _reader) = stuck_writer(&scratch, &[]);
    running.signal("TERM");
    assert_eq!(running.code(), Some(1));
    let said = running.stderr();
    assert!(said.contains("stopped by SIGTERM") && said.contains("were not taken and are lost"), "{said}");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    if !machine_available() {
        return;
    }
    let scratch = Scratch::new();
    let socket = scratch.path("socket");
    let (mut running, _reader) =
        stuck_writer(&scratch, &["--vsock", &format!("cid=3,socket={}", arg(&socket))]);
    // What the guest has written waits for its reader; the second signal does not.
    while running.0.try_wait().unwrap().is_none() {
        running.signal("TERM");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(running.code(), Some(1));
    let said = running.stderr();
    assert!(said.contains("SIGTERM again: ending at once"), "{said}");
    assert!(!socket.exists());
}

#[test]
fn a_slow_reader_gets_all_that_the_guest_wrote() {
    if !machine_available() {
        return;
    }
    let scratch = Scratch::new();
    // 40 KiB in less than 4 KiB of code: 500 bytes, 80 times (mov si, 80; …; dec si; jnz).
    let text: String = ('a'..='z').cycle().take(499).chain(['\n']).collect();
    let asm = Asm::default().bytes(&[0xbe, 80, 0]);
    let asm = asm.print(&text).bytes(&[0x4e, 0x74, 0x03]);
    // From behind the jump back to behind the `mov`.
    let back = -(6 * 500 + 3 + 3i16);
    let asm = asm.bytes(&[0xe9]).bytes(&back.to_le_bytes()).power_off();
    let rom = scratch.file("rom", &asm.rom());
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut running = Running(command(&plain(arg(&rom), &[])).stdout(writer).spawn().unwrap());
    let mut got = Vec::new();
    let mut piece = [0; 1000];
    loop {
        std::thread::sleep(std::time::Duration::from_millis(1));
        match reader.read(&mut piece).unwrap() {
            0 => break,
            read => got.extend_from_slice(&piece[..read]),
        }
    }
    assert_eq!(running.code(), Some(0));
    assert!(String::from_utf8(got).unwrap() == text.repeat(80), "nothing is lost");
}

#[test]
fn a_socket_that_a_killed_launch_left_behind_is_replaced() {
    if !machine_available() {
        return;
    }
    let scratch = Scratch::new();
    let rom = scratch.file("rom", &Asm::default().bytes(&[0xeb, 0xfe]).rom());
    let off = scratch.file("off", &Asm::default().power_off().rom());
    let socket = scratch.path("socket");
    let vsock = format!("cid=3,socket={}", arg(&socket));
    let arguments = plain(arg(&rom), &["--serial", "null", "--vsock", &vsock]);
    let mut running = Running(command(&arguments).spawn().unwrap());
    running.until(|| socket.exists());
    // Another launch leaves the living one alone.
    let again = plain(arg(&off), &["--serial", "null", "--vsock", &vsock]);
    let refused = cloister(&again);
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    running.signal("KILL");
    running.code();
    assert!(socket.exists(), "left behind");
    assert_eq!(cloister(&again).status.code(), Some(0));
    assert!(!socket.exists());
}

/// A new pseudo-terminal: its master and its slave.
fn terminal() -> (OwnedFd, OwnedFd) {
    let (mut master, mut slave) = (0, 0);
    let null = std::ptr::null_mut();
    // SAFETY: both results have room; nothing else is asked for.
    assert_eq!(unsafe { libc::openpty(&mut master, &mut slave, null, null.cast(), null.cast()) }, 0);
    // SAFETY: the call above just made these descriptors.
    unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) }
}

fn echoes(terminal: &OwnedFd) -> bool {
    // SAFETY: all zeros is a valid termios, which tcgetattr then fills.
    unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), &mut settings), 0);
        settings.c_lflag & libc::ECHO != 0
    }
}

#[test]
fn every_end_leaves_the_terminal_as_it_was() {
    if !machine_available() {
        return;
    }
    let scratch = Scratch::new();
    let rom = scratch.file("rom", &Asm::default().bytes(&[0xeb, 0xfe]).rom());
    for signal in ["TERM", "HUP", "QUIT", "INT"] {
        let (_master, slave) = terminal();
        let fixed = ["--tee", "none", "--firmware", arg(&rom), "--memory", "16M", "--serial", "null"];
        let mut command = command(&fixed);
        command.stdin(slave.try_clone().unwrap()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: both calls are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0);
                Ok(())
            })
        };
        assert!(echoes(&slave));
        let mut running = Running(command.spawn().unwrap());
        running.until(|| !echoes(&slave));
        running.signal(signal);
        assert_eq!(running.code(), Some(1), "SIG{signal}");
        assert!(echoes(&slave), "SIG{signal}");
    }
}

#[test]
fn guest_text_reaches_a_terminal_escaped_unless_raw_is_asked_for() {
    if !machine_available() {
        return;
    }
    let scratch = Scratch::new();
    let rom = scratch.file("rom", &Asm::default().print("\x1b[2Jhi\r\n").power_off().rom());
    for (serial, text) in [("stdio", "\\x1b[2Jhi\r\n"), ("stdio,raw", "\x1b[2Jhi\r\n")] {
        let output = cloister(&plain(arg(&rom), &["--serial", serial]));
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), text.as_bytes()), "{serial}");
    }
    let log = scratch.path("log");
    let output = cloister(&plain(arg(&rom), &["--serial", &file(&log)]));
    assert_eq!(
        (output.status.code(), std::fs::read(&log).unwrap().as_slice()),
        (Some(0), &b"\x1b[2Jhi\r\n"[..])
    );
}

#[test]
fn output_files_are_private_new_and_no_links() {
    if !machine_available() {
        return;
    }
    let scratch = Scratch::new();
    let rom = scratch.file("rom", &Asm::default().print("hi").power_off().rom());
    let (precious, link) = (scratch.file("precious", b"precious"), scratch.path("link"));
    std::os::unix::fs::symlink(&precious, &link).unwrap();
    for (option, file_option) in
        [("--serial", true), ("--console", true), ("--dump-shared", false), ("--transcript", false)]
    {
        let value = |path| if file_option { file(path) } else { arg(path).to_owned() };
        let fixed = ["--tee", "none", "--firmware", arg(&rom), "--memory", "16M"];
        let run = |path, more: &[&str]| {
            let value = value(path);
            cloister(&[&fixed[..], &[option, &value], more].concat())
        };
        for (path, more, words) in [
            (&precious, &[][..], "--force"),
            (&link, &[], "symbolic link"),
            (&link, &["--force"], "symbolic link"),
        ] {
            let output = run(path, more);
            assert_eq!(output.status.code(), Some(2), "{option}: {}", stderr(&output));
            assert!(stderr(&output).contains(words), "{option}: {}", stderr(&output));
            assert_eq!(std::fs::read(&precious).unwrap(), b"precious", "{option}");
        }
        let new = scratch.path("new");
        assert_eq!(run(&new, &[]).status.code(), Some(0), "{option}");
        // Of a plain guest there is no transcript.
        assert_eq!(new.exists(), option != "--transcript", "{option}");
        if new.exists() {
            assert_eq!(std::fs::metadata(&new).unwrap().mode() & 0o777, 0o600, "{option}");
            assert_eq!(run(&new, &["--force"]).status.code(), Some(0), "{option}");
            std::fs::remove_file(&new).unwrap();
        }
    }
}

#[test]
fn a_refused_launch_leaves_no_files() {
    if !machine_available() {
        return;
    }
    let scratch = Scratch::new();
    let rom = scratch.file("rom", &Asm::default().power_off().rom());
    let (serial, dump) = (file(&scratch.path("serial")), scratch.path("dump"));
    // A ROM without metadata is no SNP guest's; where the host has no SNP, that is the refusal.
    let output = cloister(
        &[
            &["--tee", "snp", "--firmware", arg(&rom), "--memory", "16M", "--console", "null"][..],
            &["--serial", &serial, "--dump-shared", arg(&dump)],
        ]
        .concat(),
    );
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(scratch.names(), ["rom"]);
}

#[test]
fn nobody_gets_a_plain_guest_who_did_not_ask_for_one() {
    if !machine_available() {
        return;
    }
    let scratch = Scratch::new();
    // A plain guest that would succeed, and which no TEE launches: it has no metadata.
    let rom = scratch.file("rom", &Asm::default().power_off().rom());
    for tee in [&["--tee", "auto"][..], &[]] {
        let fixed = ["--firmware", arg(&rom), "--memory", "16M", "--console", "null", "--serial", "null"];
        let output = cloister(&[&fixed[..], tee].concat());
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("--tee none") || said.contains("carries no SEV metadata"), "{said}");
    }
}

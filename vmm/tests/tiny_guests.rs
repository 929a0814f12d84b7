//! Guests of a few instructions, from reset vector to exit code.

mod common;

use common::{Asm, Scratch, arg, cloister, machine_available, stderr};

/// Runs a ROM without confidentiality: exit code, COM1, standard error.
fn run(asm: Asm, more: &[&str]) -> (Option<i32>, String, String) {
    let scratch = Scratch::new();
    let (rom, serial) = (scratch.file("rom", &asm.rom()), scratch.path("serial"));
    let backend = format!("file={}", arg(&serial));
    let firmware = arg(&rom);
    let fixed = [
        "--tee",
        "none",
        "--firmware",
        firmware,
        "--memory",
        "16M",
        "--console",
        "null",
        "--serial",
        &backend,
    ];
    let output = cloister(&[&fixed[..], more].concat());
    let serial = std::fs::read_to_string(&serial).unwrap_or_default();
    (output.status.code(), serial, stderr(&output))
}

#[test]
fn a_guest_prints_and_powers_off_with_its_code() {
    if !machine_available() {
        return;
    }
    assert_eq!(run(Asm::default().print("hello\n").power_off(), &[]), (Some(0), "hello\n".into(), "".into()));
    let (code, serial, line) = run(Asm::default().print("x").out8(0x603, 42).power_off(), &[]);
    assert_eq!(
        (code, serial.as_str(), line.trim()),
        (Some(42), "x", "cloister: guest powered off with code 42")
    );
}

#[test]
fn fw_cfg_answers_at_its_ports() {
    if !machine_available() {
        return;
    }
    let mut asm = Asm::default().out16(0x510, 0);
    for _ in 0..4 {
        asm = asm.copy8(0x511, 0x3f8);
    }
    // The CPU count, as a digit: in al, dx; add al, '0'
    asm = asm.out16(0x510, 5).bytes(&[0xba, 0x11, 0x05, 0xec, 0x04, b'0', 0xba, 0xf8, 0x03, 0xee]);
    let (code, serial, _) = run(asm.power_off(), &["--cpus", "3"]);
    assert_eq!((code, serial.as_str()), (Some(0), "QEMU3"));
}

#[test]
fn ends_that_are_not_clean_are_named_and_exit_1() {
    if !machine_available() {
        return;
    }
    for (asm, line) in [
        (Asm::default().out8(0x602, 1).power_off(), "cloister: guest asked for a reset, which ends it here"),
        (
            Asm::default().out8(0x604, 0x81).power_off(),
            "cloister: guest terminated: 2:1 kernel hash mismatch",
        ),
    ] {
        let (code, _, said) = run(asm, &[]);
        assert_eq!((code, said.as_str()), (Some(1), line));
    }
}

#[test]
fn a_triple_fault_ends_the_guest() {
    if !machine_available() {
        return;
    }
    // An empty IDT (lidt cs:[0xf800]), protected mode (mov eax, cr0; or al, 1; mov cr0, eax), int3.
    let code = [0x2e, 0x0f, 0x01, 0x1e, 0x00, 0xf8, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0xcc];
    let (code, _, said) = run(Asm::default().bytes(&code), &[]);
    // Some KVMs emulate these modes and give up instead of shutting down.
    let known = ["guest shut down by a triple fault", "KVM internal error 1 (instruction emulation failed)"];
    assert!(code == Some(1) && known.iter().any(|known| said.contains(known)), "{said}");
}

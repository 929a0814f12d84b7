//! Guests of a few instructions, from reset vector to exit code.

mod common;

use common::{Asm, Scratch, arg, cloister, machine_available, stderr};

/// Runs a ROM without confidentiality: exit code, COM1, standard error.
fn run(asm: Asm, more: &[&str]) -> (Option<i32>, String, String) {
    let (code, serial, said) = run_raw(asm, more);
    (code, String::from_utf8(serial).unwrap(), said)
}

/// The same for a guest that prints any bytes.
fn run_raw(asm: Asm, more: &[&str]) -> (Option<i32>, Vec<u8>, String) {
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
    let serial = std::fs::read(&serial).unwrap_or_default();
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
fn an_end_that_is_not_clean_is_named_and_exits_1() {
    if !machine_available() {
        return;
    }
    let asm = Asm::default().out8(0x604, 0x81).power_off();
    let (code, _, said) = run(asm, &[]);
    assert_eq!((code, said.as_str()), (Some(1), "cloister: guest terminated: 2:1 kernel hash mismatch"));
}

/// What the VMM says of a reset.
fn reset_by(way: &str) -> String {
    format!("cloister: guest asked for a reset (by {way}), which ends it here")
}

#[test]
fn every_way_to_reset_a_pc_ends_in_the_vmm_s_reset() {
    if !machine_available() {
        return;
    }
    for (asm, way) in [
        (Asm::default().out8(0x602, 1), "ACPI"),
        (Asm::default().out8(0x64, 0xfe), "the keyboard controller"),
        // As Linux does it: what kind of reset, then the reset.
        (Asm::default().out8(0xcf9, 0x02).out8(0xcf9, 0x06), "port 0xCF9"),
        // jmp FFFF:0
        (Asm::default().bytes(&[0xea, 0x00, 0x00, 0xff, 0xff]), "ACPI"),
    ] {
        let (code, _, said) = run(asm.power_off(), &[]);
        assert_eq!((code, said), (Some(1), reset_by(way)));
    }
    // Other values do other things.
    for asm in
        [Asm::default().out8(0x602, 2), Asm::default().out8(0x64, 0xd1), Asm::default().out8(0xcf9, 0x02)]
    {
        assert_eq!(run(asm.power_off(), &[]).0, Some(0));
    }
}

#[test]
fn the_cmos_clock_is_the_host_s() {
    if !machine_available() {
        return;
    }
    // Year, month and day, as they are: BCD.
    let read = |asm: Asm, register| asm.out8(0x70, register).copy8(0x71, 0x3f8);
    let asm = [0x32, 0x09, 0x08, 0x07].into_iter().fold(Asm::default(), read);
    let dates = || {
        let output = std::process::Command::new("date").args(["-u", "+%Y%m%d"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let before = dates();
    let (code, bytes, _) = run_raw(asm.power_off(), &[]);
    let date: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(code, Some(0));
    assert!(before == date || dates() == date, "{before} {date}");
}

#[test]
fn a_triple_fault_resets_a_plain_guest() {
    if !machine_available() {
        return;
    }
    // An empty IDT (lidt cs:[0xf800]), protected mode (mov eax, cr0; or al, 1; mov cr0, eax), int3.
    let code = [0x2e, 0x0f, 0x01, 0x1e, 0x00, 0xf8, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0xcc];
    let (code, _, said) = run(Asm::default().bytes(&code), &[]);
    // Some KVMs emulate these modes and give up instead of shutting down.
    let reset = reset_by("a triple fault");
    let known = [reset.as_str(), "KVM internal error 1 (instruction emulation failed)"];
    assert!(code == Some(1) && known.iter().any(|known| said.contains(*known)), "{said}");
}

//! Unusable input: one clear line, exit code 2, nothing left behind. No machine is needed.

mod common;

use common::{Asm, Scratch, arg, cloister};

/// Asserts that `arguments` are refused with one line that contains `text`.
fn refused(scratch: &Scratch, arguments: &[&str], text: &str) {
    let before = scratch.names();
    let output = cloister(arguments);
    // The launcher says which machine it is.
    let stderr = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<_> = stderr.lines().filter(|line| !line.starts_with("softkvm: ")).collect();
    let stderr = ours.join("\n");
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
    assert!(stderr.contains(text), "{arguments:?}: {stderr}");
    // clap adds a usage hint to its line; ours stand alone.
    assert!(stderr.starts_with("error: ") || stderr.trim().lines().count() == 1, "{stderr}");
    assert_eq!(scratch.names(), before, "left behind by {arguments:?}");
    assert!(output.stdout.is_empty());
}

/// The header of a bzImage whose 64-bit part has `paragraphs` of 16 bytes, with the first of them.
fn bz_image(paragraphs: u32) -> Vec<u8> {
    let mut image = vec![0; 1024 + 16];
    image[0x1f1] = 1;
    image[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x236] = 1;
    image
}

#[test]
fn unusable_input_is_refused_with_one_line() {
    let scratch = Scratch::new();
    let good = scratch.file("rom", &Asm::default().power_off().rom());
    let rom = ["--firmware", arg(&good)];
    let garbage = scratch.file("garbage", &[0x5a; 4096]);
    let missing = scratch.path("missing");
    let kernel = scratch.file("kernel", &bz_image(1));
    let cut_kernel = scratch.file("cut-kernel", &bz_image(1000));
    let cut_initrd = scratch.file("cut-initrd", b"070701000000");
    let toml = scratch.file("vm.toml", b"cpus = \"many\"\n");
    let cut = scratch.file("cut", &std::fs::read(&good).unwrap()[..1000]);
    let disk = format!("path={}", arg(&missing));
    let odd_disk = format!("path={}", arg(&cut));
    let busy = scratch.path("busy");
    let _listener = std::os::unix::net::UnixListener::bind(&busy).unwrap();
    let vsock = format!("cid=3,socket={}", arg(&busy));
    let check = |more: &[&str], text: &str| refused(&scratch, &[&rom[..], more].concat(), text);

    check(&["--cpus", "0"], "--cpus 0");
    check(&["--cpus", "9999"], "--cpus 9999");
    check(&["--cpus", "many"], "--cpus");
    check(&["--memory", "0"], "--memory 0");
    check(&["--memory", "lots"], "not a size");
    check(&["--kernel", arg(&missing)], "No such file");
    check(&["--kernel", arg(&garbage)], "neither a Linux bzImage nor");
    check(&["--kernel", arg(&cut_kernel)], "truncated");
    check(&["--initrd", arg(&garbage)], "--initrd needs a kernel");
    check(&["--kernel", arg(&kernel), "--initrd", arg(&garbage)], "neither a cpio archive");
    check(&["--kernel", arg(&kernel), "--initrd", arg(&cut_initrd)], "damaged or truncated");
    check(&["--kernel", arg(&kernel), "--initrd", arg(&missing)], "No such file");
    check(&["--disk", &disk], "No such file");
    check(&["--disk", &odd_disk], "whole sectors");
    let whole = format!("path={}", arg(&good));
    let disks: Vec<&str> = std::iter::repeat_n(["--disk", &whole], 35).flatten().collect();
    check(&disks, "35 disks: there is room for 29");
    check(&["--kernel", "/dev/zero"], "too large");
    check(&["--memory", "1T"], "16 MiB to 511 GiB");
    check(&["--vsock", &vsock], "exists already");
    check(&["--vsock", "cid=3"], "socket=PATH is missing");
    check(&["--config", arg(&toml)], "line 1");
    check(&["--config", arg(&missing)], "No such file");
    check(&["--config", arg(&garbage)], "line 1");
    if std::fs::File::open("/dev/kvm").is_ok() {
        let backend = format!("file={}", arg(&missing.join("x")));
        check(&["--tee", "none", "--serial", &backend], "No such file");
        check(&["--tee", "none", "--serial", "null", "--console", &backend], "No such file");
        let nowhere = missing.join("x");
        check(&["--tee", "none", "--serial", "null", "--dump-shared", arg(&nowhere)], "No such file");
    }
    check(&["--serial", "tty"], "none of stdio, stdio,raw, null, file=PATH");
    check(&["--host-data", "ab"], "64 hexadecimal digits");
    check(&["--snp-policy", "0xb0000"], "--allow-debug");
    refused(&scratch, &["--firmware", arg(&missing)], "No such file");
    refused(&scratch, &["--firmware", arg(&garbage)], "not a ROM");
    refused(&scratch, &["--firmware", arg(&cut)], "1000 bytes");
    refused(&scratch, &[], "no firmware given");
}

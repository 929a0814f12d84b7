//! The same tiny guests give the same results on `/dev/kvm` and on softkvm.

use std::path::PathBuf;
use std::process::Command;

use cloister_tests::tiny::Observed;

/// The directory of the workspace's executables of this profile.
fn executables() -> PathBuf {
    let mut path = std::env::current_exe().expect("own path");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path
}

fn softkvm() -> PathBuf {
    let softkvm = executables().join("softkvm");
    let path = softkvm.display();
    assert!(softkvm.exists(), "{path} is missing: run `cargo build -p softkvm` first (xtask test does)");
    softkvm
}

fn observe(mut command: Command) -> Vec<Observed> {
    let output = command.output().expect("tiny-guests runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
}

#[test]
fn tiny_guests_behave_alike_on_kvm_and_on_softkvm() {
    let guests = env!("CARGO_BIN_EXE_tiny-guests");
    let mut soft = Command::new(softkvm());
    soft.args(["--tee", "none", "--", guests]);
    let soft = observe(soft);
    assert!(soft.iter().all(|o| o.events.iter().all(|e| !e.starts_with("failed"))), "{soft:#?}");
    let taken = soft.iter().find(|o| o.guest == "memory that the client takes away").expect("the guest");
    let each = ["out 0x31 [00]", "errno 14"];
    assert!(taken.events.chunks(2).all(|two| two == each), "{taken:#?}");
    let usable = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if let Err(error) = usable {
        eprintln!("SKIPPED the comparison: /dev/kvm cannot be opened here ({error})");
        return;
    }
    let hard = observe(Command::new(guests));
    assert_eq!(hard.len(), soft.len());
    for (hard, soft) in hard.iter().zip(&soft) {
        // Some hosts' KVM interprets guests and stops at instructions that it does not know; then there is no oracle.
        if let Some(reason) = hard.events.iter().find(|e| e.starts_with("failed: KVM_EXIT_INTERNAL_ERROR")) {
            eprintln!("SKIPPED {:?}: /dev/kvm gives up on it ({reason})", hard.guest);
            continue;
        }
        // Linux says EFAULT; a KVM of another maker takes memory that is not there for a device.
        if hard.guest.starts_with("memory that the client") && hard.events.iter().any(|e| e.contains("mmio"))
        {
            eprintln!("SKIPPED {:?}: /dev/kvm is not Linux's ({:?})", hard.guest, hard.events);
            continue;
        }
        assert_eq!(hard.events, soft.events, "{}: /dev/kvm on the left, softkvm on the right", hard.guest);
    }
}

#[test]
fn snp_launch_commands_are_refused_as_linux_and_the_secure_processor_refuse_them() {
    let state = tempfile::tempdir().expect("a directory for the emulated platform");
    let mut soft = Command::new(softkvm());
    soft.arg("--state").arg(state.path()).args(["--tee", "snp", "--", env!("CARGO_BIN_EXE_snp-orders")]);
    let output = soft.output().expect("snp-orders runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Reason 1 of set 2: the first SIPI started it, and the hold that it then asked for ended with a SIPI.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "second processor: 0x12100\n");
}

/// Through the `sev` crate, as `snphost` asks; its layouts of the kernel's structures are not ours.
#[test]
fn dev_sev_answers_operators_tools() {
    let state = tempfile::tempdir().expect("a directory for the emulated platform");
    let look = || -> serde_json::Value {
        let mut soft = Command::new(softkvm());
        soft.arg("--state").arg(state.path());
        let output =
            soft.args(["--", env!("CARGO_BIN_EXE_snp-platform")]).output().expect("snp-platform runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let seen = look();
    let chip_id = seen["chip_id"].as_str().expect("hexadecimal digits");
    assert!(chip_id.len() == 128 && chip_id.bytes().any(|digit| digit != b'0'), "{chip_id}");
    let tcb = 0x5417_0000_0000_000au64;
    let expected = serde_json::json!({
        "sev": "1.55.21 Initialized 0",
        "chip_id": chip_id,
        "snp": [0x15_0101_3701u64, 0],
        "tcb": [tcb, tcb],
        "guests": [0, 1, 0],
        // EIO with INVALID_LEN; EINVAL; ENOTTY.
        "short_id": [5, 4, 64],
        "config": 22,
        "c_bit": 51,
        "foreign": 25,
    });
    assert_eq!(seen, expected);
    assert_eq!(look(), seen, "one platform, whenever it is asked");
}

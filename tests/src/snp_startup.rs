//! INIT and SIPI to a second processor of an SEV-SNP guest: they cannot touch its registers. The first SIPI starts it where its
//! launch has put it, and later ones end an AP_RESET_HOLD (linux: sev_vcpu_deliver_sipi_vector; GHCB specification, "AP Reset
//! Hold Request").

use std::sync::mpsc;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, KVM_SYSTEM_EVENT_SEV_TERM, kvm_enable_cap, kvm_msi, kvm_regs};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::snp_orders::{Guest, NORMAL, OK, PAGE, POLICY};

/// In real mode: AP_RESET_HOLD by the GHCB MSR, then the guest's end, with what the hold was answered as its reason.
const CODE: &[u8] = &[
    0x66, 0xb9, 0x30, 0x01, 0x01, 0xc0, // mov ecx, 0xc0010130
    0x66, 0xb8, 0x06, 0x00, 0x00, 0x00, // mov eax, 6
    0x66, 0x31, 0xd2, // xor edx, edx
    0x0f, 0x30, // wrmsr
    0xf3, 0x0f, 0x01, 0xd9, // vmgexit
    0x0f, 0x32, // rdmsr
    0x66, 0xc1, 0xe8, 0x0c, // shr eax, 12
    0x66, 0x25, 0xff, 0x00, 0x00, 0x00, // and eax, 0xff
    0x66, 0xc1, 0xe0, 0x10, // shl eax, 16
    0x66, 0x0d, 0x00, 0x21, 0x00, 0x00, // or eax, 0x2100
    0x66, 0x31, 0xd2, // xor edx, edx
    0x0f, 0x30, // wrmsr
    0xf3, 0x0f, 0x01, 0xd9, // vmgexit
    0xf4, // hlt
];
/// How long the processor may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A launch whose second processor is at [`CODE`].
fn launch() -> Result<(Guest, VcpuFd), String> {
    let mut guest = Guest::new()?;
    let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    split.args[0] = 24;
    guest.vm.enable_cap(&split).map_err(|e| format!("KVM_CAP_SPLIT_IRQCHIP: {e}"))?;
    guest.fill(CODE);
    let steps = [guest.init2(0, 0, 2), guest.start(POLICY, 0, true), guest.update(0, PAGE, NORMAL, 0)];
    let first = guest.vm.create_vcpu(0).map_err(|e| format!("vCPU 0: {e}"))?;
    let second = guest.vm.create_vcpu(1).map_err(|e| format!("vCPU 1: {e}"))?;
    let mut sregs = second.get_sregs().map_err(|e| format!("KVM_GET_SREGS: {e}"))?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    second.set_sregs(&sregs).map_err(|e| format!("KVM_SET_SREGS: {e}"))?;
    let regs = kvm_regs { rflags: 2, ..kvm_regs::default() };
    second.set_regs(&regs).map_err(|e| format!("KVM_SET_REGS: {e}"))?;
    let finished = guest.finish(0);
    drop(first);
    if steps.iter().chain([&finished]).any(|step| *step != OK) {
        return Err(format!("the launch: {steps:?} {finished:?}"));
    }
    Ok((guest, second))
}

/// Sends the second processor INIT and SIPI until it ends; the GHCB MSR with which it does.
pub fn startup() -> Result<u64, String> {
    const INIT: u32 = 5 << 8;
    const SIPI: u32 = 6 << 8;
    let (guest, mut second) = launch()?;
    let (sender, end) = mpsc::channel();
    let runner = std::thread::spawn(move || {
        let end = match second.run() {
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SEV_TERM, data)) => {
                data.first().copied().ok_or_else(|| "an end without data".to_owned())
            }
            other => Err(format!("KVM_RUN: {other:?}")),
        };
        // Nobody may wait any more.
        let _ = sender.send(end);
    });
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        for data in [INIT, SIPI] {
            // To APIC ID 1.
            let msi = kvm_msi { address_lo: 0xfee0_1000, data, ..Default::default() };
            guest.vm.signal_msi(msi).map_err(|e| format!("KVM_SIGNAL_MSI: {e}"))?;
        }
        if let Ok(end) = end.recv_timeout(Duration::from_millis(50)) {
            let _ = runner.join();
            return end;
        }
    }
    Err("the second processor does not end".to_owned())
}

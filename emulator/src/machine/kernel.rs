//! What KVM answers itself, "in the kernel": the LAPIC, MSRs, CPUID, hypercalls. A plain guest gets there by executing the
//! instruction, a confidential one by asking for it (GHCB, TDVMCALL).

use softkvm_cpu::Stop;

use super::env::VcpuEnv;
use super::exit::{Outcome, Pending};
use super::lapic::{self, Effect};
use super::run_page::KVM_HC_MAP_GPA_RANGE;

impl VcpuEnv<'_> {
    /// The register of an xAPIC access, if the address is in the LAPIC's page.
    pub(super) fn lapic_register(&self, gpa: u64) -> Option<u32> {
        if !self.ctx.vm.lapic_in_kernel() {
            return None;
        }
        let lapic = self.ctx.shared.lapic();
        let here = lapic.base & lapic::BASE_ENABLE != 0
            && !lapic.x2apic()
            && gpa & !0xfff == lapic.base & !0xfff & ((1 << 52) - 1);
        here.then_some((gpa as u32 & 0xfff) >> 4)
    }

    /// A read of the LAPIC's page; `false` if the address is elsewhere.
    pub fn lapic_read(&mut self, gpa: u64, data: &mut [u8]) -> bool {
        let Some(register) = self.lapic_register(gpa) else { return false };
        let now = self.ctx.vm.clock.tsc();
        let value = self.ctx.shared.lapic().read(register, now).unwrap_or(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
        true
    }

    /// A write of the LAPIC's page; `None` if the address is elsewhere.
    pub fn lapic_write(&mut self, gpa: u64, data: &[u8]) -> Option<Result<(), Stop>> {
        let register = self.lapic_register(gpa)?;
        // Registers are 32 bits wide and 16 bytes apart; anything else is ignored, as hardware does.
        if gpa & 0xf != 0 || data.len() < 4 {
            return Some(Ok(()));
        }
        let value = data.iter().take(4).rev().fold(0u64, |acc, &b| acc << 8 | u64::from(b));
        let now = self.ctx.vm.clock.tsc();
        let effect = self.ctx.shared.lapic().write(register, value, now).unwrap_or(Effect::None);
        Some(self.ctx.lapic_effect(effect))
    }

    /// KVM's own MSRs, then the table's.
    pub fn machine_rdmsr(&mut self, index: u32) -> Option<u64> {
        let ctx = &mut *self.ctx;
        match index {
            0x10 => Some(ctx.tsc()),
            0x1b => Some(ctx.shared.lapic().base),
            0x11 | 0x4b56_4d00 => Some(0),
            0x12 | 0x4b56_4d01 => Some(ctx.kvmclock),
            0x6e0 => Some(ctx.shared.lapic().tsc_deadline),
            0x800..=0x8ff => {
                let lapic = ctx.shared.lapic();
                let allowed = lapic.x2apic() && !matches!(index, 0x80b | 0x83f);
                if allowed { lapic.read(index - 0x800, ctx.vm.clock.tsc()).ok() } else { None }
            }
            _ => ctx.msrs.read(index),
        }
    }

    /// As [`Self::machine_rdmsr`]; `Ok(false)` means #GP.
    pub fn machine_wrmsr(&mut self, index: u32, value: u64) -> Result<bool, Stop> {
        let ctx = &mut *self.ctx;
        match index {
            0x10 => ctx.tsc_offset = value.wrapping_sub(ctx.vm.clock.tsc()),
            0x1b => return Ok(ctx.shared.lapic().set_base(value).is_ok()),
            0x11 | 0x4b56_4d00 => {
                let wall = ctx.vm.clock.wall_clock(2);
                return Ok(ctx.vm.write_shared(value, &wall).is_ok());
            }
            0x12 | 0x4b56_4d01 => {
                ctx.kvmclock = value;
                ctx.update_kvmclock();
            }
            0x6e0 => {
                let (guest, now) = (ctx.tsc(), ctx.vm.clock.tsc());
                ctx.shared.lapic().set_tsc_deadline(value, guest, now);
                ctx.rearm();
            }
            0x800..=0x8ff => {
                let now = ctx.vm.clock.tsc();
                let effect = {
                    let mut lapic = ctx.shared.lapic();
                    if !lapic.x2apic() {
                        return Ok(false);
                    }
                    lapic.write(index - 0x800, value, now)
                };
                match effect {
                    Ok(effect) => ctx.lapic_effect(effect)?,
                    Err(lapic::Refused) => return Ok(false),
                }
            }
            _ => return Ok(ctx.msrs.write(index, value, false)),
        }
        Ok(true)
    }

    /// CPUID from the client's table, with the bits that follow the machine's state.
    pub fn table_cpuid(&self, leaf: u32, subleaf: u32, cr4: u64, xcr0: u64) -> [u32; 4] {
        crate::uapi::cpuid::lookup(&self.ctx.cpuid, leaf, subleaf, cr4, xcr0, self.ctx.shared.lapic().base)
    }

    /// KVM's hypercalls (Documentation/virt/kvm/x86/hypercalls.rst); `None` goes to the client.
    pub fn kvm_hypercall(&self, number: u64) -> Option<u64> {
        const ENOSYS: i64 = 1000;
        match number {
            // KVM_HC_VAPIC_POLL_IRQ
            1 => Some(0),
            KVM_HC_MAP_GPA_RANGE if self.ctx.client_maps_ranges() => None,
            _ => Some(-ENOSYS as u64),
        }
    }

    /// A hypercall that is answered by executing the instruction again.
    pub fn hypercall(&mut self, number: u64, args: [u64; 6]) -> Result<u64, Stop> {
        if let Some(answer) = self.kvm_hypercall(number).or_else(|| self.ctx.replay.take()) {
            return Ok(answer);
        }
        self.ctx.run.exit_hypercall(number, args);
        self.ctx.replay.pending = Some(Pending::Hypercall);
        self.ctx.leave(Outcome::Client)
    }
}

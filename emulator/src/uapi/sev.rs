//! KVM_MEMORY_ENCRYPT_OP of an SNP VM, and `/dev/sev`.

use std::sync::Arc;

use kvm_bindings::{
    kvm_sev_cmd, kvm_sev_init, kvm_sev_snp_launch_finish, kvm_sev_snp_launch_start, kvm_sev_snp_launch_update,
};

use super::errno::Errno;
use super::user;
use crate::machine::confidential;
use crate::machine::vcpu::Vcpu;
use crate::machine::vm::Vm;
use crate::preload::fds;
use crate::snp::SnpVm;
use crate::snp::launch::{self, Finish, Firmware, PageType, Refusal};
use crate::snp::page::{Page, ZERO};
use crate::snp::psp::{self, device};

super::user::abi!(
    kvm_sev_cmd,
    kvm_sev_init,
    kvm_sev_snp_launch_finish,
    kvm_sev_snp_launch_start,
    kvm_sev_snp_launch_update,
    [u8; 96]
);

const INIT2: u32 = 22;
const SNP_LAUNCH_START: u32 = 100;
const SNP_LAUNCH_UPDATE: u32 = 101;
const SNP_LAUNCH_FINISH: u32 = 102;
/// Pages that one LAUNCH_UPDATE does before it asks to be called again, so that a signal need not wait for long.
const UPDATE_BATCH: u64 = 4096;

type Command = fn(&Arc<Vm>, &SnpVm, usize) -> Result<(), Refusal>;

const COMMANDS: &[(u32, Command)] =
    &[(INIT2, init2), (SNP_LAUNCH_START, start), (SNP_LAUNCH_UPDATE, update), (SNP_LAUNCH_FINISH, finish)];

/// KVM_MEMORY_ENCRYPT_OP.
pub fn vm_command(vm: &Arc<Vm>, snp: &SnpVm, arg: usize) -> Result<i32, Errno> {
    // A null argument asks whether there is SEV at all.
    if arg == 0 {
        return Ok(0);
    }
    let mut command: kvm_sev_cmd = user::read(arg)?;
    if command.id < SNP_LAUNCH_START && snp.launch().initialised() {
        return Err(Errno::EPERM);
    }
    let handler = COMMANDS.iter().find(|row| row.0 == command.id).map(|row| row.1).ok_or(Errno::EINVAL)?;
    let needs_device = matches!(command.id, SNP_LAUNCH_START..=SNP_LAUNCH_FINISH);
    if needs_device && !matches!(fds::get(command.sev_fd as i32), Some(fds::Object::Sev)) {
        return Err(Errno::EBADF);
    }
    let result = handler(vm, snp, command.data as usize);
    command.error = result.map_or_else(|refusal| refusal.firmware, |()| 0);
    user::write(arg, &command)?;
    result.map(|()| 0).map_err(|refusal| refusal.errno)
}

fn init2(vm: &Arc<Vm>, snp: &SnpVm, data: usize) -> Result<(), Refusal> {
    let args: kvm_sev_init = user::read(data)?;
    snp.launch().init2(vm, args.vmsa_features, args.flags, args.ghcb_version)
}

fn start(_vm: &Arc<Vm>, snp: &SnpVm, data: usize) -> Result<(), Refusal> {
    let args: kvm_sev_snp_launch_start = user::read(data)?;
    snp.launch().start(args.policy, args.gosvw, args.flags)
}

fn update(vm: &Arc<Vm>, snp: &SnpVm, data: usize) -> Result<(), Refusal> {
    let mut args: kvm_sev_snp_launch_update = user::read(data)?;
    snp.launch().has_context()?;
    let kind = PageType::from_client(args.type_).ok_or(Errno::EINVAL)?;
    let zero = kind == PageType::Zero;
    if !args.len.is_multiple_of(4096) || args.flags != 0 {
        return Err(Errno::EINVAL.into());
    }
    let gpa = args.gfn_start.checked_mul(4096).ok_or(Errno::EINVAL)?;
    let slots = vm.slots();
    let slot = slots.find(gpa).filter(|slot| slot.gmem.is_some()).ok_or(Errno::EINVAL)?;
    let fits = args.len != 0
        && args.len <= slot.bytes - (gpa - slot.gpa)
        && (zero || args.uaddr.is_multiple_of(4096));
    if !fits {
        return Err(Refusal::from(Errno::EINVAL).while_populating());
    }
    let pages = (args.len / 4096).min(UPDATE_BATCH);
    for page in 0..pages {
        // What is done before the first refusal is reported as done; the client meets it when it goes on.
        match update_page(vm, snp, args.gfn_start * 4096, args.uaddr as usize, kind) {
            Err(refusal) if page == 0 => return Err(refusal.while_populating()),
            Err(_) => break,
            Ok(()) => {}
        }
        args.gfn_start += 1;
        args.len -= 4096;
        if !zero {
            args.uaddr += 4096;
        }
    }
    user::write(data, &args)?;
    Ok(())
}

fn update_page(vm: &Arc<Vm>, snp: &SnpVm, gpa: u64, source: usize, kind: PageType) -> Result<(), Refusal> {
    if !vm.is_private(gpa) {
        return Err(Errno::EINVAL.into());
    }
    if confidential::placed(vm, gpa) {
        return Err(Errno::EEXIST.into());
    }
    let contents: Page = if kind == PageType::Zero { ZERO } else { user::read(source)? };
    match snp.launch().update(gpa, kind, &contents) {
        Ok(page) => Ok(confidential::place(vm, gpa, &page, launch::launch_entry(gpa).raw())?),
        Err((refusal, corrected)) => {
            if let Some(page) = corrected {
                user::write_bytes(source, &page[..])?;
            }
            Err(refusal)
        }
    }
}

fn finish(vm: &Arc<Vm>, snp: &SnpVm, data: usize) -> Result<(), Refusal> {
    let args: kvm_sev_snp_launch_finish = user::read(data)?;
    if args.id_block_en == 0 && args.auth_key_en != 0 {
        return Err(Errno::EINVAL.into());
    }
    let id = match args.id_block_en {
        0 => None,
        _ => Some((
            user::read(args.id_block_uaddr as usize)?,
            Box::new(user::read::<Page>(args.id_auth_uaddr as usize)?),
        )),
    };
    let finish =
        Finish { id, author_key: args.auth_key_en != 0, host_data: args.host_data, flags: args.flags };
    let vcpus: Vec<Arc<Vcpu>> = fds::vcpus_of(vm);
    snp.launch().finish(&vcpus, &finish)
}

/// struct sev_issue_cmd: u32 command, u64 data (packed), u32 error.
const ISSUE_COMMAND: u32 = (3 << 30) | (16 << 16) | ((b'S' as u32) << 8);

type DeviceCommand = fn(usize) -> Result<(), Refusal>;

/// The commands that VMMs and operators' tools use to look at the platform. None of them changes it: what is reported is
/// committed already.
const DEVICE_COMMANDS: &[(u32, DeviceCommand)] = &[
    (1, |data| Ok(user::write_bytes(data, &device::platform_status())?)),
    (8, get_id),
    (9, snp_platform_status),
    // SNP_COMMIT.
    (10, |_| psp::platform().map(drop).ok_or(Errno::EINVAL.into())),
];

/// SEV_GET_ID2: u64 address, u32 length of the buffer, and of what was or should be written.
fn get_id(data: usize) -> Result<(), Refusal> {
    let platform = psp::platform().ok_or(Errno::EINVAL)?;
    let (address, room): (u64, u32) = (user::read(data)?, user::read(data + 8)?);
    user::write(data + 8, &(platform.chip_id.len() as u32))?;
    if address == 0 || (room as usize) < platform.chip_id.len() {
        return Err(Firmware::InvalidLength.into());
    }
    Ok(user::write_bytes(address as usize, &platform.chip_id)?)
}

fn snp_platform_status(data: usize) -> Result<(), Refusal> {
    let platform = psp::platform().ok_or(Errno::EINVAL)?;
    if data == 0 {
        return Err(Errno::EINVAL.into());
    }
    let known = |vm: &Arc<Vm>| vm.snp().is_some_and(|snp| snp.launch().is_known());
    let guests = fds::vms().iter().filter(|vm| known(vm)).count() as u32;
    Ok(user::write_bytes(data, &device::snp_platform_status(platform, guests))?)
}

/// Ioctls on `/dev/sev`.
pub fn device(request_number: u32, arg: usize) -> Result<i32, Errno> {
    if request_number != ISSUE_COMMAND {
        return Err(Errno::ENOTTY);
    }
    let command: u32 = user::read(arg)?;
    let data = user::read::<u64>(arg + 4)? as usize;
    let Some((_, handler)) = DEVICE_COMMANDS.iter().find(|row| row.0 == command) else {
        crate::note_once!("/dev/sev command {command} is not implemented");
        return Err(Errno::EINVAL);
    };
    let result = handler(data);
    user::write(arg + 12, &result.map_or_else(|refusal| refusal.firmware, |()| 0))?;
    result.map(|()| 0).map_err(|refusal| refusal.errno)
}

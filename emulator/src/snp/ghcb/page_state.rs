//! Page State Change (GHCB specification, "Page State Change Support"): a list of entries in a shared buffer.

use softkvm_cpu::Stop;

use super::{Completion, Ghcb, PRIVATE, SHARED, client, field, reason, scratch};
use crate::machine::ctx::Ctx;
use crate::machine::exit::Outcome;

mod psc {
    pub const HEADER: u64 = 8;
    pub const MAX_ENTRIES: u16 = 253;
    pub const INVALID_HEADER: u64 = 1 << 32 | 1;
    pub const INVALID_ENTRY: u64 = 1 << 32 | 2;
    pub const GENERIC: u64 = 1 << 32 | 3;
}

/// Works on the entry at `cur_entry`; the client changes the pages, one entry an exit.
pub fn change(ctx: &mut Ctx, ghcb: &mut Ghcb) -> Result<(), Stop> {
    let Some(at) = scratch(ctx, ghcb, psc::HEADER) else {
        ghcb.malformed(reason::INVALID_SCRATCH);
        return Ok(());
    };
    if !ctx.client_maps_ranges() {
        ghcb.result(0, psc::GENERIC);
        return Ok(());
    }
    match next_entry(ctx, ghcb.gpa, at) {
        Ok(Some(stop)) => Err(stop),
        Ok(None) => Ok(()),
        Err(code) => {
            ghcb.result(0, code);
            Ok(())
        }
    }
}

/// Sends the next entry to the client (`Some`), or says that none is left.
fn next_entry(ctx: &mut Ctx, ghcb: u64, at: u64) -> Result<Option<Stop>, u64> {
    let mut header = [0u8; 8];
    ctx.vm.read_shared(at, &mut header).map_err(|_| psc::INVALID_HEADER)?;
    let [c0, c1, e0, e1, ..] = header;
    let (current, end) = (u16::from_le_bytes([c0, c1]), u16::from_le_bytes([e0, e1]));
    if end >= psc::MAX_ENTRIES
        || at + psc::HEADER + 8 * (u64::from(end) + 1) > ghcb + field::SHARED_BUFFER_END
    {
        return Err(psc::INVALID_HEADER);
    }
    if current > end {
        return Ok(None);
    }
    let mut raw = [0u8; 8];
    ctx.vm
        .read_shared(at + psc::HEADER + 8 * u64::from(current), &mut raw)
        .map_err(|_| psc::INVALID_HEADER)?;
    let entry = u64::from_le_bytes(raw);
    let (done, gfn, operation, large) =
        (entry & 0xfff, entry >> 12 & 0xff_ffff_ffff, entry >> 52 & 15, entry >> 56 & 1 != 0);
    let total = if large { 512 } else { 1 };
    if !matches!(operation, PRIVATE | SHARED) || done > total || (large && gfn & 0x1ff != 0) {
        return Err(psc::INVALID_ENTRY);
    }
    let pages = total - done;
    let completion = Completion::PageState { ghcb, scratch: at, pages };
    let stop = client::<()>(ctx, completion, |run| {
        run.exit_map_gpa_range((gfn + done) << 12, pages, operation == PRIVATE)
    });
    Ok(stop.err())
}

/// Marks the entry that the client just did, and goes on.
pub fn entry_done(ctx: &mut Ctx, ghcb: u64, at: u64, pages: u64) -> Option<Outcome> {
    let refused = ctx.run.hypercall_result() != 0;
    let mut header = [0u8; 8];
    let mut raw = [0u8; 8];
    let mut code = psc::GENERIC;
    if !refused && ctx.vm.read_shared(at, &mut header).is_ok() {
        let current = u16::from_le_bytes([header[0], header[1]]);
        let entry_at = at + psc::HEADER + 8 * u64::from(current.min(psc::MAX_ENTRIES));
        let _ = ctx.vm.read_shared(entry_at, &mut raw);
        let entry = u64::from_le_bytes(raw);
        let progress = (entry & !0xfff) | ((entry & 0xfff).saturating_add(pages) & 0xfff);
        let _ = ctx.vm.write_shared(entry_at, &progress.to_le_bytes());
        let _ = ctx.vm.write_shared(at, &current.saturating_add(1).to_le_bytes());
        match next_entry(ctx, ghcb, at) {
            Ok(Some(_)) => return Some(ctx.take_outcome()),
            Ok(None) => return None,
            Err(refusal) => code = refusal,
        }
    }
    if let Some(mut page) = Ghcb::read(ctx, ghcb) {
        page.result(0, code);
        page.write(ctx);
    }
    None
}

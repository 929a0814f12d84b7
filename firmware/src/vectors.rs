//! What keeps a host from running a launched register state into its own code.
//!
//! SNP launches every processor in real mode, with the interrupt vectors at address 0 and SS:SP = 0:0: that state is
//! measured, and the firmware cannot choose another. A host may inject an NMI, an interrupt or an exception of any vector
//! at any VMRUN: before the first instruction, again and again without one instruction between, and in a launched state
//! that it has kept back until secrets have come. Two barriers, each of which is enough:
//!
//! 1. *Nothing can be pushed.* The page at the top of the launch state's stack segment
//!    ([`LAUNCH_STACK`](crate::layout::LAUNCH_STACK)) is never validated, and reserved in the map that Linux gets. The
//!    delivery's first push raises #VC, whose delivery raises another, which is a double fault, whose delivery fails as
//!    well: the processor shuts down without having executed anything. SP changes by instructions only, and none of those
//!    that run on the launched stack change it: each path of the reset code loads a stack of its own before it pushes.
//!    A host cannot validate a page, and real mode reaches private memory only (APM volume 2, 15.34.5 and 15.36).
//! 2. *Nothing of the host's is reached.* All vectors of page 0 lead to code in that page which stops the processor.
//!    PVALIDATE leaves in a page what the host put there, so there is a moment at which page 0 is valid and not yet
//!    filled. In that moment the first barrier stands alone, as it has since the launch.
//!
//! Later states have tables of their own, or an empty one where no exception is expected (`reset.s`). A TD's processors
//! start in protected mode with an empty table (TDX module base specification, "TD VCPU initial state": IDTR limit 0), and
//! no host injects more than an NMI there. Page 0 is the same in a TD all the same: what is reserved need not be told apart.

/// Bytes of the real-mode interrupt vector table.
const TABLE: usize = 1024;
/// All vectors: 0x00CC:0x02EB, an odd offset near the end of the page. As instructions, from whatever offset, they lead behind the table or
/// into it again without touching memory: `jmp .+4`; `add %ah, %cl`; `int3`; `add %ch, %bl`.
const VECTOR: [u8; 4] = [0xEB, 0x02, 0xCC, 0x00];
/// `jmp .`, at every odd offset behind the table. From an even one, `0xFE 0xEB` is no instruction: vector 6. The words of
/// zeros between them are `add %al, (%bx,%si)`, which changes a byte at most before it leads to one of both.
const STOP: [u8; 2] = [0xEB, 0xFE];
/// `int1`, in the byte behind the last pair: a processor that a host enters again after `hlt` would be in the next page. From
/// the byte before, `0xFE 0xF1` is no instruction either.
const LAST: u8 = 0xF1;
/// The BIOS data area's words that Linux reads: the segment of the extended area, and the KiB of conventional memory.
const BDA_WORDS: [usize; 2] = [0x40E, 0x413];

/// Fills page 0.
pub fn fill(page: &mut [u8; 4096]) {
    let (table, rest) = page.split_at_mut(TABLE);
    for vector in table.chunks_exact_mut(VECTOR.len()) {
        vector.copy_from_slice(&VECTOR);
    }
    // `hlt` first, so that the pairs begin at odd offsets.
    rest.fill(0xF4);
    for stop in rest.get_mut(1..).unwrap_or_default().chunks_exact_mut(STOP.len()) {
        stop.copy_from_slice(&STOP);
    }
    if let Some(last) = page.last_mut() {
        *last = LAST;
    }
    for at in BDA_WORDS {
        page.get_mut(at..at.saturating_add(2)).unwrap_or_default().fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> [u8; 4096] {
        // As a host would leave it.
        let mut page = [0xA5; 4096];
        fill(&mut page);
        page
    }

    #[test]
    fn every_vector_leads_to_a_stop_in_the_page() {
        let page = filled();
        for vector in page[..TABLE].chunks(4) {
            let word = |at: usize| usize::from(u16::from_le_bytes([vector[at], vector[at + 1]]));
            let target = (word(2) << 4) + word(0);
            assert_eq!(page[target..target + 2], STOP);
        }
    }

    #[test]
    fn no_byte_of_the_hosts_stays_and_linux_finds_no_bios() {
        let page = filled();
        assert!(!page.contains(&0xA5));
        for at in BDA_WORDS {
            assert_eq!(page[at..at + 2], [0, 0], "{at:#x}");
        }
        assert!(!page.windows(4).any(|window| window == b"_MP_"), "what Linux looks for in the first KiB");
    }
}

//! CPUID that the client executes itself.
//!
//! A client may ask the processor instead of KVM: QEMU reads the position of the C-bit so. Few machines can make CPUID fault
//! in user mode, so in the client's own executable each CPUID becomes UD2, which is as long, and SIGILL is answered as the
//! machine's processor would. Shared libraries keep the host's, since they ask what they may execute; and so do the
//! executable's constructors, which have run before the client opens `/dev/kvm`.
//!
//! Must never: change two bytes that are not that instruction.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use iced_x86::{Code, Decoder, DecoderOptions};
use kvm_bindings::kvm_cpuid_entry2;

use super::signals;
use crate::machine::lapic;
use crate::uapi::cpuid;

const CPUID: [u8; 2] = [0x0f, 0xa2];
/// The second byte of UD2; the first is the same.
const UD2: u8 = 0x0b;
const PAGE: usize = 4096;

struct Answers {
    /// Addresses, ascending.
    sites: Vec<usize>,
    table: Vec<kvm_cpuid_entry2>,
}

static ANSWERS: OnceLock<Answers> = OnceLock::new();

/// Takes over the executable's CPUID instructions, once.
pub fn intercept() {
    if ANSWERS.get().is_some() {
        return;
    }
    let sites: Vec<usize> = code_of_the_executable()
        .into_iter()
        .flat_map(|code| {
            let base = code.as_ptr() as usize;
            instructions(code).map(move |at| base + at)
        })
        .collect();
    let answers = Answers { sites, table: cpuid::supported() };
    if answers.sites.is_empty() || ANSWERS.set(answers).is_err() || !signals::catch_illegal_instructions() {
        return;
    }
    for site in ANSWERS.get().iter().flat_map(|answers| &answers.sites) {
        if !replace(site + 1) {
            crate::note_once!("the client's CPUID instructions cannot be replaced: it sees the host's CPUID");
        }
    }
}

/// Answers the CPUID that raised SIGILL; `false` if it was something else.
pub fn answer(signal: c_int, context: *mut c_void) -> bool {
    if signal != libc::SIGILL || context.is_null() {
        return false;
    }
    // SAFETY: the kernel gives handlers with SA_SIGINFO, which all that lead here have, a ucontext_t of their own.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let Some(answers) = ANSWERS.get() else { return false };
    let get = |register: c_int| registers[register as usize] as u64;
    if answers.sites.binary_search(&(get(libc::REG_RIP) as usize)).is_err() {
        return false;
    }
    let (leaf, subleaf) = (get(libc::REG_RAX) as u32, get(libc::REG_RCX) as u32);
    let words = of_the_machine(&answers.table, leaf, subleaf);
    for (register, word) in
        [libc::REG_RAX, libc::REG_RBX, libc::REG_RCX, libc::REG_RDX].into_iter().zip(words)
    {
        registers[register as usize] = i64::from(word);
    }
    registers[libc::REG_RIP as usize] += CPUID.len() as i64;
    true
}

/// What the machine itself answers: KVM's leaves, and the bit that announces them, are for its guests.
fn of_the_machine(table: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> [u32; 4] {
    const HYPERVISOR: u32 = 1 << 31;
    let mut words = cpuid::lookup(table, leaf, subleaf, 0, 1, lapic::BASE_ENABLE);
    match leaf {
        1 => words[2] &= !HYPERVISOR,
        0x4000_0000..=0x4fff_ffff => words = [0; 4],
        _ => {}
    }
    words
}

/// The executable segments of the program, without the libraries.
fn code_of_the_executable() -> Vec<&'static [u8]> {
    unsafe extern "C" fn segments(object: *mut libc::dl_phdr_info, _: usize, list: *mut c_void) -> c_int {
        // SAFETY: dl_iterate_phdr passes a valid object, and on the pointer that it was given below.
        let (object, list) = unsafe { (&*object, &mut *list.cast::<Vec<&'static [u8]>>()) };
        // SAFETY: the object has that many program headers.
        let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
        let wanted = libc::PF_R | libc::PF_X;
        for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & wanted == wanted) {
            let start = (object.dlpi_addr + header.p_vaddr) as *const u8;
            // SAFETY: a readable segment of the program, which stays mapped.
            list.push(unsafe { std::slice::from_raw_parts(start, header.p_filesz as usize) });
        }
        // The first object is the program; no more are wanted.
        1
    }
    let mut list: Vec<&'static [u8]> = Vec::new();
    // SAFETY: the callback is as dl_iterate_phdr wants it, and the list outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(segments), (&raw mut list).cast()) };
    list
}

/// Where CPUID stands in `code`.
fn instructions(code: &'static [u8]) -> impl Iterator<Item = usize> {
    let pairs = code.windows(CPUID.len()).enumerate().filter(|(_, pair)| *pair == CPUID);
    pairs.map(|(at, _)| at).filter(|&at| is_an_instruction(code, at))
}

/// Do the bytes at `at` begin an instruction? x86 code falls into step with itself after a few instructions, from wherever one
/// begins to decode: most decodings that begin a little earlier arrive there if they do, and few if they do not.
fn is_an_instruction(code: &[u8], at: usize) -> bool {
    const BEGINNINGS: std::ops::Range<usize> = 48..112;
    let arrives = |back: usize| {
        let Some(window) = at.checked_sub(back).and_then(|start| code.get(start..at + CPUID.len())) else {
            return back >= at;
        };
        let mut decoder = Decoder::with_ip(64, window, 0, DecoderOptions::NONE);
        while decoder.position() < back {
            let _ = decoder.decode();
        }
        decoder.position() == back && decoder.decode().code() == Code::Cpuid
    };
    let arrived = BEGINNINGS.filter(|&back| arrives(back)).count();
    arrived * 4 >= BEGINNINGS.len() * 3
}

/// Makes the byte at `address` that of UD2: one store, so that no other thread sees half of it.
fn replace(address: usize) -> bool {
    let page = (address & !(PAGE - 1)) as *mut c_void;
    // SAFETY: the page is the program's own code; it stays executable throughout.
    unsafe {
        if libc::mprotect(page, PAGE, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) != 0 {
            return false;
        }
        (address as *mut u8).write_volatile(UD2);
        libc::mprotect(page, PAGE, libc::PROT_READ | libc::PROT_EXEC) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ordinary code: mov, lea, test, jump, call and so on.
    const FILLER: &[u8] = &[
        0x48, 0x89, 0xd8, 0x48, 0x8d, 0x05, 0x10, 0x20, 0x30, 0x00, 0x48, 0x85, 0xc0, 0x74, 0x05, 0xe8, 0x11,
        0x22, 0x33, 0x00, 0x48, 0x83, 0xc4, 0x18, 0x5b, 0x5d, 0xc3, 0x66, 0x90, 0x89, 0xf1,
    ];

    fn code(around: &[u8]) -> &'static [u8] {
        [&FILLER.repeat(6)[..], around, &FILLER.repeat(2)].concat().leak()
    }

    #[test]
    fn the_instruction_is_found_and_its_bytes_in_others_are_left() {
        for (bytes, found) in [
            (&[0x53, 0x0f, 0xa2, 0x5b][..], Some(1)),
            (&[0x0f, 0xa2, 0x0f, 0xa2], Some(0)),
            // mov eax, 0x1234a20f; lea rax, [rip + 0xa20f]; mov [rbx + 0x0fa2…], …
            (&[0xb8, 0x0f, 0xa2, 0x34, 0x12], None),
            (&[0x48, 0x8d, 0x05, 0x0f, 0xa2, 0x00, 0x00], None),
            (&[0x48, 0xb8, 0x11, 0x0f, 0xa2, 0x44, 0x55, 0x66, 0x77, 0x88], None),
        ] {
            let sites: Vec<usize> = instructions(code(bytes)).collect();
            assert_eq!(sites.first().map(|at| at - 6 * FILLER.len()), found, "{bytes:02x?}");
            assert_eq!(
                sites.len(),
                bytes.windows(2).filter(|pair| *pair == CPUID && found.is_some()).count()
            );
        }
    }

    #[test]
    fn the_machine_has_no_hypervisor_above_it() {
        let table = cpuid::supported();
        assert_eq!(of_the_machine(&table, 0x4000_0000, 0), [0; 4]);
        assert_eq!(of_the_machine(&table, 1, 0)[2] >> 31, 0);
        assert_eq!(of_the_machine(&table, 0x8000_0008, 0)[0] & 0xff, u32::from(cpuid::PHYSICAL_BITS));
    }
}

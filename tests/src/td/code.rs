//! The guest: it carries out a script, one instruction a step, and records what became of each.
//!
//! A step names an instruction and all general registers. The record has the registers afterwards, or the exception; after
//! #VE it has what TDG.VP.VEINFO.GET says, unless the script asks for that itself.

use std::arch::global_asm;

/// Where the guest's code starts.
pub const BODY: u64 = 0x1000;
/// Where its exception handlers start, 16 bytes each.
pub const HANDLERS: u64 = 0x2000;
/// Where it keeps its own variables.
pub const VARIABLES: u64 = 0x6000;
/// Where the script starts.
pub const SCRIPT: u64 = 0x7000;
/// Where the records go: the guest-virtual address of shared memory.
pub const RECORDS: u64 = 0x4000_0000;

/// An instruction of the script; the order is the table's in the code below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "instructions by their names")]
pub enum Do {
    Tdcall,
    Hlt,
    InAl,
    OutAl,
    Cpuid,
    Rdmsr,
    Wrmsr,
    /// MOV RAX, [RSI]
    Load,
    /// MOV [RDI], RAX
    Store,
    Wbinvd,
    Invd,
    Vmcall,
    Vmmcall,
    Monitor,
    Mwait,
    Rdpmc,
    MovCr0,
    MovCr4,
    /// CALL RSI
    Call,
    OutEax,
    Insb,
    /// The script's next steps fetch VE_INFO themselves (1) or not (0): RAX.
    KeepVe,
}

global_asm!(
    ".pushsection .rodata",
    ".balign 4096",
    // The reset vector's page: 32-bit protected mode, to 64-bit mode, to the body. GDT pointer at 0xe00.
    ".globl td_reset_start",
    "td_reset_start:",
    ".code32",
    "mov eax, 0xfffffe00",
    "lgdt [eax]",
    "mov eax, 0xfffffe08",
    "lidt [eax]",
    "mov eax, cr4",
    "or eax, 0x620",
    "mov cr4, eax",
    "mov eax, 0x10000",
    "mov cr3, eax",
    "mov eax, cr0",
    "or eax, 0x80000002",
    "mov cr0, eax",
    "mov esp, 0x5000",
    "push 8",
    "push 0x1000",
    "retf",
    ".org td_reset_start + 0xff0",
    "jmp td_reset_start",
    ".org td_reset_start + 0x1000",
    // The body.
    ".globl td_body_start",
    "td_body_start:",
    ".code64",
    // The entry registers are the first record, as if an instruction had left them.
    "jmp td_save",
    "td_loop:",
    "mov rsp, 0x5000",
    "mov rax, [0x6000]",
    "mov ecx, [rax]",
    "cmp ecx, -1",
    "je td_finish",
    "mov qword ptr [0x6020], 0",
    "shl ecx, 4",
    "lea rdx, [rip + td_table]",
    "add rcx, rdx",
    "mov [0x6010], rcx",
    "mov rcx, [rax + 16]",
    "mov rdx, [rax + 24]",
    "mov rbx, [rax + 32]",
    "mov rbp, [rax + 48]",
    "mov rsi, [rax + 56]",
    "mov rdi, [rax + 64]",
    "mov r8, [rax + 72]",
    "mov r9, [rax + 80]",
    "mov r10, [rax + 88]",
    "mov r11, [rax + 96]",
    "mov r12, [rax + 104]",
    "mov r13, [rax + 112]",
    "mov r14, [rax + 120]",
    "mov r15, [rax + 128]",
    "mov rax, [rax + 8]",
    "jmp qword ptr [0x6010]",
    ".balign 16",
    "td_table:",
    ".byte 0x66, 0x0f, 0x01, 0xcc",
    "jmp td_save",
    ".balign 16",
    "hlt",
    "jmp td_save",
    ".balign 16",
    "in al, dx",
    "jmp td_save",
    ".balign 16",
    "out dx, al",
    "jmp td_save",
    ".balign 16",
    "cpuid",
    "jmp td_save",
    ".balign 16",
    "rdmsr",
    "jmp td_save",
    ".balign 16",
    "wrmsr",
    "jmp td_save",
    ".balign 16",
    "mov rax, [rsi]",
    "jmp td_save",
    ".balign 16",
    "mov [rdi], rax",
    "jmp td_save",
    ".balign 16",
    "wbinvd",
    "jmp td_save",
    ".balign 16",
    "invd",
    "jmp td_save",
    ".balign 16",
    ".byte 0x0f, 0x01, 0xc1",
    "jmp td_save",
    ".balign 16",
    ".byte 0x0f, 0x01, 0xd9",
    "jmp td_save",
    ".balign 16",
    ".byte 0x0f, 0x01, 0xc8",
    "jmp td_save",
    ".balign 16",
    ".byte 0x0f, 0x01, 0xc9",
    "jmp td_save",
    ".balign 16",
    "rdpmc",
    "jmp td_save",
    ".balign 16",
    "mov cr0, rax",
    "jmp td_save",
    ".balign 16",
    "mov cr4, rax",
    "jmp td_save",
    ".balign 16",
    "call rsi",
    "jmp td_save",
    ".balign 16",
    "out dx, eax",
    "jmp td_save",
    ".balign 16",
    "insb",
    "jmp td_save",
    ".balign 16",
    "mov [0x6038], rax",
    "jmp td_save",
    ".balign 16",
    "td_save:",
    "mov [0x6040], rax",
    "mov rax, [0x6008]",
    "mov [rax + 72], rcx",
    "mov [rax + 80], rdx",
    "mov [rax + 88], rbx",
    "mov [rax + 96], rsp",
    "mov [rax + 104], rbp",
    "mov [rax + 112], rsi",
    "mov [rax + 120], rdi",
    "mov [rax + 128], r8",
    "mov [rax + 136], r9",
    "mov [rax + 144], r10",
    "mov [rax + 152], r11",
    "mov [rax + 160], r12",
    "mov [rax + 168], r13",
    "mov [rax + 176], r14",
    "mov [rax + 184], r15",
    "mov rcx, [0x6040]",
    "mov [rax + 64], rcx",
    "td_next:",
    "mov rax, [0x6008]",
    "mov rcx, [0x6020]",
    "mov [rax], rcx",
    "add qword ptr [0x6008], 192",
    // The first record belongs to no step.
    "cmp qword ptr [0x6018], 0",
    "jne td_step",
    "mov qword ptr [0x6018], 1",
    "jmp td_loop",
    "td_step:",
    "add qword ptr [0x6000], 136",
    "jmp td_loop",
    "td_finish:",
    // TDVMCALL IO: one byte to port 0x501.
    "xor eax, eax",
    "mov ecx, 0xfc00",
    "xor r10d, r10d",
    "mov r11d, 30",
    "mov r12d, 1",
    "mov r13d, 1",
    "mov r14d, 0x501",
    "mov r15d, 0x2a",
    ".byte 0x66, 0x0f, 0x01, 0xcc",
    "jmp td_finish",
    // The handlers, at 0x2000: vector, error code where there is one.
    ".org td_body_start + 0x1000",
    ".set v, 0",
    ".rept 32",
    ".byte 0x6a, v",
    "jmp td_exception",
    ".balign 16",
    ".set v, v + 1",
    ".endr",
    "td_exception:",
    "pop rax",
    "lea rcx, [rax + 1]",
    "mov [0x6020], rcx",
    "mov rdi, [0x6008]",
    "mov rdx, [rsp]",
    "mov [rdi + 8], rdx",
    "mov rdx, cr2",
    "mov [rdi + 16], rdx",
    "mov rsp, 0x5000",
    "cmp eax, 20",
    "jne td_next",
    "cmp qword ptr [0x6038], 0",
    "jne td_next",
    "mov eax, 3",
    ".byte 0x66, 0x0f, 0x01, 0xcc",
    "mov rdi, [0x6008]",
    "mov [rdi + 24], rcx",
    "mov [rdi + 32], rdx",
    "mov [rdi + 40], r8",
    "mov [rdi + 48], r9",
    "mov [rdi + 56], r10",
    "jmp td_next",
    ".globl td_body_end",
    "td_body_end:",
    ".popsection",
);

fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: both labels bound the same read-only section contents.
    unsafe { std::slice::from_raw_parts(start, end.offset_from(start) as usize) }
}

unsafe extern "C" {
    #[link_name = "td_reset_start"]
    static RESET_START: u8;
    #[link_name = "td_body_start"]
    static BODY_START: u8;
    #[link_name = "td_body_end"]
    static BODY_END: u8;
}

/// The page at 4 GiB - 4 KiB.
pub fn reset_page() -> &'static [u8] {
    between(&raw const RESET_START, &raw const BODY_START)
}

/// Code and handlers, from [`BODY`].
pub fn body() -> &'static [u8] {
    between(&raw const BODY_START, &raw const BODY_END)
}

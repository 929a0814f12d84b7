//! The guests' machine code, assembled with the test.

use std::arch::global_asm;

macro_rules! guest {
    ($name:ident, $bits:literal, $($line:literal),* $(,)?) => {
        global_asm!(
            ".pushsection .rodata",
            ".balign 4096",
            concat!($bits),
            // Visible to whichever codegen unit refers to them.
            concat!(".globl tiny_", stringify!($name), "_start"),
            concat!(".globl tiny_", stringify!($name), "_end"),
            concat!("tiny_", stringify!($name), "_start:"),
            $($line,)*
            concat!("tiny_", stringify!($name), "_end:"),
            ".code64",
            ".popsection",
        );
        /// The guest's bytes.
        pub fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = concat!("tiny_", stringify!($name), "_start")]
                static START: u8;
                #[link_name = concat!("tiny_", stringify!($name), "_end")]
                static END: u8;
            }
            // SAFETY: both labels bound the same read-only section contents.
            unsafe {
                let (start, end) = (&raw const START, &raw const END);
                std::slice::from_raw_parts(start, end.offset_from(start) as usize)
            }
        }
    };
}

guest!(
    real_arithmetic,
    ".code16",
    "mov ax, 0x1234",
    "mov bx, 0x4321",
    "add ax, bx",
    "out 0x10, ax",
    "mul bx",
    "mov dx, 0x20",
    "in al, dx",
    "out dx, al",
    "in eax, dx",
    "shl eax, 3",
    "hlt"
);

guest!(
    string_io,
    ".code16",
    "mov di, 0x2000",
    "mov cx, 3",
    "mov dx, 0x30",
    "cld",
    "rep insw",
    "mov si, 0x2000",
    "mov cx, 3",
    "mov dx, 0x31",
    "rep outsb",
    "hlt"
);

guest!(
    mmio,
    ".code64",
    "mov rax, 0x123456789abcdef0",
    "mov rbx, 0x300000",
    "mov [rbx], eax",
    "mov rcx, [rbx + 8]",
    "mov [rbx + 16], rcx",
    "movzx edx, byte ptr [rbx + 3]",
    "add dword ptr [rbx + 32], 5",
    "mov rbx, 0x200000",
    "mov rsi, [rbx]",
    "mov [rbx], rax",
    "hlt"
);

guest!(
    long_arithmetic,
    ".code64",
    "mov rdi, 0x8000",
    "cld",
    "mov rax, 0xfedcba9876543210",
    "mov rcx, 0x1111111122222222",
    "mov rdx, 7",
    "imul rcx",
    "mov [rdi], rax",
    "mov [rdi+8], rdx",
    "mov rax, 1000000007",
    "cqo",
    "mov rbx, 97",
    "div rbx",
    "mov [rdi+16], rax",
    "mov [rdi+24], rdx",
    "mov rax, -17",
    "cqo",
    "mov rbx, 5",
    "idiv rbx",
    "mov [rdi+32], rax",
    "mov [rdi+40], rdx",
    "mov rax, 0x8000000000000001",
    "rol rax, 5",
    "mov [rdi+48], rax",
    "mov cl, 9",
    "shld rax, rbx, cl",
    "mov [rdi+56], rax",
    "bsr rcx, rax",
    "bsf rdx, rax",
    "mov [rdi+64], rcx",
    "mov [rdi+72], rdx",
    "mov r8, 0x5555",
    "xadd r8, rcx",
    "lock cmpxchg [rdi], r8",
    "bswap r8",
    "movsx r9, cl",
    "setb r10b",
    "sub rax, rax",
    "adc rax, 0",
    "cmp rax, 1",
    "hlt"
);

guest!(
    strings,
    ".code64",
    "mov rdi, 0x8000",
    "mov rax, 0x1122334455667788",
    "mov ecx, 8",
    "rep stosq",
    "mov rsi, 0x8000",
    "mov rdi, 0x8003",
    "mov ecx, 16",
    "rep movsb",
    "mov rsi, 0x8000",
    "mov rdi, 0x8008",
    "mov ecx, 100",
    "repe cmpsb",
    "mov rbx, rcx",
    "mov rdi, 0x8000",
    "mov al, 0x55",
    "mov ecx, 64",
    "repne scasb",
    "hlt"
);

guest!(
    vectors,
    ".code64",
    "mov rdi, 0x8000",
    "mov rax, 0x400921fb54442d18",
    "movq xmm0, rax",
    "mulsd xmm0, xmm0",
    "movsd [rdi], xmm0",
    "mov rax, 0x0102030405060708",
    "movq xmm1, rax",
    "punpcklqdq xmm1, xmm1",
    "pshufd xmm2, xmm1, 0x1b",
    "paddb xmm2, xmm1",
    "movdqu [rdi+16], xmm2",
    "pcmpeqb xmm3, xmm3",
    "pmovmskb eax, xmm3",
    "mov [rdi+8], rax",
    "fninit",
    "fldpi",
    "fld1",
    "fadd st(0), st(1)",
    "fstp qword ptr [rdi+32]",
    "fnstsw ax",
    "mov [rdi+40], rax",
    "cvttsd2si rcx, xmm0",
    "stmxcsr [rdi+48]",
    "hlt"
);

// Handlers lie at offset 0, 16 bytes each: push the vector (as found at the handler's address), then record.
guest!(
    exceptions,
    ".code64",
    ".set v, 0",
    ".rept 32",
    ".byte 0x6a, v",
    "jmp 2f",
    ".balign 16",
    ".set v, v + 1",
    ".endr",
    "2:",
    "push rax",
    "push rbx",
    // r15: where the next record goes; r14: where to continue.
    "mov rax, [rsp+16]",
    "mov [r15], rax",
    "mov rbx, [rsp+24]",
    "mov [r15+8], rbx",
    "mov rbx, cr2",
    "mov [r15+16], rbx",
    "add r15, 24",
    "pop rbx",
    "pop rax",
    "mov rsp, 0x7000",
    "jmp r14",
    ".balign 1024",
    "mov r15, 0x8000",
    "lea r14, [rip + 3f]",
    "xor ebx, ebx",
    "mov eax, 1",
    "cqo",
    "div rbx",
    "3:",
    "lea r14, [rip + 4f]",
    "ud2",
    "4:",
    "lea r14, [rip + 5f]",
    "mov rax, [0x40000000]",
    "5:",
    "lea r14, [rip + 6f]",
    "mov rax, 0x40001000",
    "mov [rax], rax",
    "6:",
    "lea r14, [rip + 7f]",
    "mov rax, 0x8000000000000000",
    "mov rax, [rax]",
    "7:",
    "hlt"
);

guest!(
    more_exceptions,
    ".code64",
    ".set v, 0",
    ".rept 32",
    ".byte 0x6a, v",
    "jmp 2f",
    ".balign 16",
    ".set v, v + 1",
    ".endr",
    "2:",
    "push rax",
    "push rbx",
    // r15: where the next record goes; r14: where to continue.
    "mov rax, [rsp+16]",
    "mov [r15], rax",
    "mov rbx, [rsp+24]",
    "mov [r15+8], rbx",
    "mov rbx, cr2",
    "mov [r15+16], rbx",
    "add r15, 24",
    "pop rbx",
    "pop rax",
    "mov rsp, 0x7000",
    "jmp r14",
    ".balign 1024",
    "mov r15, 0x8000",
    "lea r14, [rip + 3f]",
    "mov ecx, 0xdeadbeef",
    "rdmsr",
    "3:",
    "lea r14, [rip + 4f]",
    "mov ax, 0x33",
    "mov ds, ax",
    "4:",
    "lea r14, [rip + 5f]",
    "mov rax, cr0",
    "mov rbx, 0x20000000",
    "or rax, rbx",
    "mov cr0, rax",
    "5:",
    "lea r14, [rip + 6f]",
    "int3",
    "6:",
    "hlt"
);

guest!(
    self_modifying,
    ".code64",
    "mov ecx, 3",
    "xor ebx, ebx",
    "2:",
    "mov eax, 1",
    "add ebx, eax",
    "lea rdi, [rip + 2b]",
    "inc byte ptr [rdi + 1]",
    "dec ecx",
    "jnz 2b",
    "mov eax, ebx",
    "out 0x10, eax",
    "hlt"
);

guest!(
    interruptible,
    ".code64",
    ".rept 32",
    "nop",
    ".balign 16",
    ".endr",
    "mov rdi, 0x8000",
    "inc qword ptr [rdi]",
    "mov al, 0x77",
    "out 0x11, al",
    "iretq",
    ".balign 1024",
    "mov rdi, 0x8000",
    "sti",
    "nop",
    "out 0x12, al",
    "cli",
    "hlt"
);

guest!(
    identity,
    ".code64",
    "mov eax, 0x40000002",
    "xor ecx, ecx",
    "cpuid",
    "mov rdi, 0x8000",
    "mov [rdi], eax",
    "mov [rdi+4], ebx",
    "mov [rdi+8], ecx",
    "mov [rdi+12], edx",
    "mov eax, 0x12345",
    "cpuid",
    "mov [rdi+16], eax",
    "mov [rdi+20], edx",
    "mov ecx, 0xc0000102",
    "mov eax, 0x1000",
    "mov edx, 0xffff8000",
    "wrmsr",
    "xor eax, eax",
    "xor edx, edx",
    "rdmsr",
    "mov [rdi+24], eax",
    "mov [rdi+28], edx",
    "swapgs",
    "mov ecx, 0xc0000101",
    "rdmsr",
    "mov [rdi+32], eax",
    "hlt"
);

// The handler of the chips' vector lies at offset 512: it counts, and ends the interrupt at both kinds of chip.
guest!(
    timer_ticks,
    ".code64",
    ".balign 512",
    "hlt",
    ".balign 512",
    "push rax",
    "inc qword ptr [0x8000]",
    "mov al, 0x20",
    "out 0x20, al",
    "pop rax",
    "iretq",
    ".balign 1024",
    ".irp value, 0x11",
    "mov al, \\value",
    "out 0x20, al",
    ".endr",
    ".irp value, 0x20, 4, 1, 0xfe",
    "mov al, \\value",
    "out 0x21, al",
    ".endr",
    "mov al, 0xff",
    "out 0xa1, al",
    // Channel 0, rate generator, 1 ms.
    "mov al, 0x34",
    "out 0x43, al",
    "mov al, 0xa9",
    "out 0x40, al",
    "mov al, 4",
    "out 0x40, al",
    "2:",
    "sti",
    "hlt",
    "cli",
    "cmp qword ptr [0x8000], 3",
    "jb 2b",
    "in al, 0x21",
    "out 0x12, al",
    // The read-back command: status of channel 0, without its output.
    "mov al, 0xe2",
    "out 0x43, al",
    "in al, 0x40",
    "and al, 0x3f",
    "out 0x12, al"
);

guest!(
    level_interrupt,
    ".code64",
    ".balign 512",
    "hlt",
    ".balign 512",
    "push rax",
    "inc qword ptr [0x8000]",
    // The host lowers the line here the second time.
    "out 0x13, al",
    "mov rax, 0xfee000b0",
    "mov dword ptr [rax], 0",
    "pop rax",
    "iretq",
    ".balign 1024",
    // All of the PIC's inputs masked, the LAPIC on.
    "mov al, 0xff",
    "out 0x21, al",
    "out 0xa1, al",
    "mov rbx, 0xfee000f0",
    "mov dword ptr [rbx], 0x1ff",
    // Entry 9: vector 0x20, level, to APIC 0.
    "mov rbx, 0xfec00000",
    "mov dword ptr [rbx], 0x23",
    "mov dword ptr [rbx + 0x10], 0",
    "mov dword ptr [rbx], 0x22",
    "mov dword ptr [rbx + 0x10], 0x8020",
    "mov dword ptr [rbx], 1",
    "mov eax, [rbx + 0x10]",
    "and eax, 0xff00ff",
    "out 0x12, eax",
    "2:",
    "sti",
    "hlt",
    "cli",
    "cmp qword ptr [0x8000], 2",
    "jb 2b",
    "out 0x14, al"
);

guest!(spin, ".code64", "2:", "inc rax", "jmp 2b");

guest!(triple_fault, ".code64", "mov rsp, 0x40000000", "push rax", "hlt");

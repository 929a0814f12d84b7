# Reset to 64-bit mode. AT&T syntax; addresses come from the layout table as constants.
#
# Whether this is a confidential guest is decided by SEV_STATUS alone, never by CPUID: the processor does not let a host
# intercept that MSR, whereas CPUID in a guest is whatever the host answers. A host that could talk the firmware into
# believing that it is not confidential would get its stack as shared memory. The C-bit comes from the CPUID page, which
# the secure processor has checked; memory is private as long as paging is off, so both can be read before paging is on.
#
# A TD's processors start in flat 32-bit protected mode, every other in real mode: that is how they are told apart. The
# TDX module sets that state, and the launch measurement of an SNP guest covers its own, so no host can pretend either.
#
# A host may interrupt a processor before any instruction, see vectors.rs. So no path pushes before it has loaded a stack
# of its own, and the interrupt table is empty wherever no exception is expected: one there shuts the processor down. In
# real mode the page to which SS:SP = 0:0 points is never valid, which holds before the first instruction as well.

.section .reset, "ax"
reset_page:

.set IN_SEGMENT, {reset_page} & 0xffff      # offset of this page in the reset code segment (base 0xFFFF0000)

.code16
# Application processors start here (the launcher reads the address from the SEV-ES reset block): they never run the
# boot processor's path beside it on the same stack. Linux gives them a state of its own when it wants them.
ap_park:                                    # = {ap_entry}, the start of this page
    cli
    lidtl   %cs:(no_idt_pointer - reset_page + IN_SEGMENT)
1:  hlt
    jmp     1b

.code32
# A TD: EBX = GPAW, ESI = index of this processor, CS flat with no table behind it. There is no interrupt table either
# (the TDX module launches with IDTR limit 0), and none is loaded before 64-bit mode, by a processor that waits for Linux
# never: an exception here ends the TD, as it cannot be told to anyone without TDCALL.
td32:
    cli
    cld
    movl    $gdt_pointer, %eax
    lgdtl   (%eax)
    ljmpl   $0x08, $td_segments
td_segments:
    movw    $0x18, %ax
    movw    %ax, %ds
    movw    %ax, %es
    movw    %ax, %ss
    testl   %esi, %esi
    jnz     td_ap32
    movl    %ebx, %ebp                      # GPAW; 0 in any other guest
    xorl    %ebx, %ebx                      # a private page has no bit set
    movl    ${stack}, %edi                  # the launch added it with contents of the host's
    movl    $({stack_top} - {stack}) / 4, %ecx
    xorl    %eax, %eax
    rep stosl
    movl    ${stack_top}, %esp
    call    td_ap_memory
    movl    $1, td_gate
    jmp     page_tables

# The memory that application processors use is a TD's from the start, but what is in it the host chose, and nobody
# measured it: a wakeup command, the upper halves of page-table entries. So the boot processor clears and fills all of
# it, and the others wait for that at the gate, whose closed state is part of the measured ROM. The tables map the first
# GiB, where Linux wakes the processors, and this page, all of it private; entries are accessed and dirty already, so
# that the processor never writes them.
td_ap_memory:
    movl    ${ap_mem}, %edi
    movl    $({ap_mem_end} - {ap_mem}) / 4, %ecx
    xorl    %eax, %eax
    rep stosl
    movl    ${ap_tables} + 0x1023, {ap_tables}
    movl    ${ap_tables} + 0x2023, {ap_tables} + 0x1000
    movl    ${ap_tables} + 0x3023, {ap_tables} + 0x1018
    movl    $0xffe000e3, {ap_tables} + 0x3ff8
    movl    ${ap_tables} + 0x2000, %edi
    movl    $0xe3, %eax
    movl    $512, %ecx
    movl    $0x200000, %edx
    jmp     fill

.balign 64
td_gate:                                    # 1: open
    .long   0
.balign 64

td_ap32:
    pause
    cmpl    $0, td_gate
    je      td_ap32
    movl    %cr4, %eax
    orl     $0x20, %eax                     # PAE; MCE stays set
    movl    %eax, %cr4
    movl    ${ap_tables}, %eax
    movl    %eax, %cr3
    movl    %cr0, %eax
    orl     $0x80010000, %eax               # PG, WP
    movl    %eax, %cr0
    ljmpl   $0x10, $td_ap64

.code16
reset16:
    cli
    cld
    lgdtl   %cs:(gdt_pointer - reset_page + IN_SEGMENT)
    lidtl   %cs:(no_idt_pointer - reset_page + IN_SEGMENT)
    movl    %cr0, %eax
    andl    $0x9fffffff, %eax               # caches on: CD and NW are set at reset
    orl     $1, %eax
    movl    %eax, %cr0
    ljmpl   $0x08, $start32

.code32
start32:
    movw    $0x18, %ax
    movw    %ax, %ds
    movw    %ax, %es
    movw    %ax, %ss
    movl    ${stack_top}, %esp

    xorl    %ebp, %ebp                      # no TD
    xorl    %eax, %eax
    xorl    %edx, %edx
    lidtl   idt32_pointer
    movl    $0xc0010131, %ecx               # SEV_STATUS; #GP where the processor has none
sev_status_read:
    rdmsr
sev_status_known:
    lidtl   no_idt_pointer
    movl    %eax, %esi
    xorl    %ebx, %ebx                      # C-bit, as the high half of a page-table entry
    testl   $1, %esi
    jz      not_confidential
    testl   $4, %esi                        # SEV without SNP protects too little to go on
    jz      halt32
    testl   $0x18, %esi                     # vTOM would make other pages private; ReflectVC is a paravisor's
    jnz     halt32

    movl    {cpuid_page}, %ecx              # count of entries
    cmpl    $64, %ecx
    ja      cpuid_refused
    movl    ${cpuid_page} + 16, %edi
1:  testl   %ecx, %ecx
    jz      cpuid_refused
    cmpl    $0x8000001f, (%edi)
    je      2f
    addl    $48, %edi
    decl    %ecx
    jmp     1b
2:  movl    28(%edi), %ecx                  # EBX[5:0]: position of the C-bit
    andl    $0x3f, %ecx
    subl    $32, %ecx
    cmpl    $19, %ecx                       # bits 32 to 51 of an entry
    ja      cpuid_refused
    movl    $1, %ebx
    shll    %cl, %ebx
    jmp     page_tables

# A host may inject the #GP that makes SEV_STATUS look absent. In a real SNP guest the secure processor has filled the
# secrets page with keys; in a plain one nobody has.
not_confidential:
    movl    ${secrets_page}, %edi
    movl    $1024, %ecx
    xorl    %eax, %eax
    repe scasl
    jne     halt32

page_tables:
    movl    %ebp, {td_gpaw}
    movl    ${pml4}, %edi
    movl    $({page_tables_end} - {pml4}) / 4, %ecx
    xorl    %eax, %eax
    rep stosl
    movl    ${pdpt} + 3, {pml4}
    movl    %ebx, {pml4} + 4
    movl    ${pd_0} + 3, {pdpt}
    movl    %ebx, {pdpt} + 4
    movl    ${pd_3} + 3, {pdpt} + 24
    movl    %ebx, {pdpt} + 28
    movl    ${pd_0}, %edi                   # first GiB in 2 MiB pages
    movl    $0x83, %eax
    movl    $512, %ecx
    movl    $0x200000, %edx
    call    fill
    movl    ${pt_low} + 3, {pd_0}           # its first 2 MiB in 4 KiB pages
    movl    ${pd_3}, %edi                   # fourth GiB
    movl    $0xc0000083, %eax
    movl    $512, %ecx
    call    fill
    movl    ${pt_low}, %edi
    movl    $0x3, %eax
    movl    $512, %ecx
    movl    $0x1000, %edx
    call    fill
    movl    $0, {pt_low}                    # page 0: the stack's guard
    movl    $0, {pt_low} + 4

    movl    %cr4, %eax
    orl     $0x620, %eax                    # PAE, OSFXSR, OSXMMEXCPT
    movl    %eax, %cr4
    movl    ${pml4}, %eax
    movl    %eax, %cr3
    testl   %ebp, %ebp                      # a TD has EFER.LME set and must not write EFER
    jnz     paging_on
    movl    $0xc0000080, %ecx
    rdmsr
    orl     $0x100, %eax                    # EFER.LME; SVME stays as the launch set it
    wrmsr
paging_on:
    movl    %cr0, %eax
    andl    $0xfffffffb, %eax               # no x87 emulation
    orl     $0x80010022, %eax               # PG, WP, NE, MP
    movl    %eax, %cr0
    ljmpl   $0x10, $start64

fill:                                       # ECX entries at EDI: EAX rising by EDX, EBX above
    movl    %eax, (%edi)
    movl    %ebx, 4(%edi)
    addl    %edx, %eax
    addl    $8, %edi
    loop    fill
    ret

gp32:                                       # expected from one instruction only, and nothing to return to but the next
    cmpl    $sev_status_read, 4(%esp)
    jne     halt32
    movl    ${stack_top}, %esp
    xorl    %eax, %eax
    jmp     sev_status_known

cpuid_refused:
    movl    $0xc0010130, %ecx               # GHCB MSR protocol, terminate: reason set 2, code 11
    movl    $({cpuid_refused} << 16) | 0x2100, %eax
    xorl    %edx, %edx
    wrmsr
    rep; vmmcall
halt32:
    cli
    lidtl   no_idt_pointer
1:  hlt
    jmp     1b

.code64
start64:
    movw    $0x18, %ax
    movw    %ax, %ds
    movw    %ax, %es
    movw    %ax, %ss
    xorl    %eax, %eax
    movw    %ax, %fs
    movw    %ax, %gs
    movl    ${stack_top}, %esp
    lidt    idt64_pointer(%rip)
    call    rom_main
    ud2

# A TD's application processor waits for its command in the mailbox (ACPI 6.4, 5.2.12.19). ESI is its index, which the
# TDX module gave it and which is its APIC id. Nothing here touches a stack, and the processor's translations are
# dropped at the end: pages that the boot processor had shared for a while may be the ones that Linux wakes it to.
td_ap64:
    movl    ${mailbox}, %edi
1:  pause
    cmpw    $1, (%rdi)                      # command: wake up
    jne     1b
    cmpl    %esi, 4(%rdi)                   # APIC id
    jne     1b
    movq    8(%rdi), %rbx                   # wakeup vector
    movw    $0, (%rdi)                      # taken
    movq    %cr3, %rax
    movq    %rax, %cr3
    jmp     *%rbx

.global halt64
halt64:
    cli
    lidt    no_idt_pointer(%rip)
1:  hlt
    jmp     1b

# Every exception is unexpected: no instruction that the firmware executes is intercepted.
.macro vector number
vector_\number:
    .if (\number == 8) || ((\number >= 10) && (\number <= 14)) || (\number == 17) || (\number == 21) || (\number == 29) || (\number == 30)
    .else
    pushq   $0
    .endif
    pushq   $\number
    jmp     exception
    .balign 16
.endm
.balign 16
vectors:
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    vector \n
.endr

exception:
    popq    %rdi                            # vector
    popq    %rsi                            # error code
    movq    (%rsp), %rdx                    # RIP
    movq    %cr2, %rcx
    andq    $-16, %rsp
    call    rom_exception
    ud2

.balign 16
gdt:
    .quad   0
    .quad   0x00cf9b000000ffff              # 0x08 32-bit code
    .quad   0x00af9b000000ffff              # 0x10 64-bit code: Linux's __BOOT_CS
    .quad   0x00cf93000000ffff              # 0x18 data: Linux's __BOOT_DS
gdt_end:
gdt_pointer:
    .word   gdt_end - gdt - 1
    .long   gdt, 0
no_idt_pointer:                             # for 32-bit code and, with the zeros that follow, for 64-bit code
    .word   0
    .quad   0
idt32_pointer:
    .word   30 * 8 - 1
    .long   idt32, 0
idt64_pointer:
    .word   32 * 16 - 1
    .long   idt64, 0

.macro gate32 handler
    .word   \handler - reset_page + IN_SEGMENT, 0x08, 0x8e00, 0xffff
.endm
.balign 8
idt32:
.rept 13
    gate32  halt32
.endr
    gate32  gp32
.rept 16
    gate32  halt32
.endr

.macro gate64 number
    .word   vector_\number - reset_page + IN_SEGMENT, 0x10, 0x8e00, 0xffff
    .long   0, 0
.endm
.balign 16
idt64:
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    gate64  \n
.endr

# Leaves the firmware: RDI = entry, RSI = boot_params. The kernel brings a table of its own; until then an exception must
# not come back to code whose stack and page tables are no longer its own.
.global enter_kernel
enter_kernel:
    cli
    cld
    lidt    no_idt_pointer(%rip)
    xorl    %ebx, %ebx
    xorl    %ebp, %ebp
    jmp     *%rdi

# TDCALL with all registers but RSP and RBP from, and back to, the structure at RDI.
.global tdcall_with
tdcall_with:
    pushq   %rbx
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    pushq   %rdi
    movq    (%rdi), %rax
    movq    8(%rdi), %rcx
    movq    16(%rdi), %rdx
    movq    24(%rdi), %rbx
    movq    32(%rdi), %rsi
    movq    48(%rdi), %r8
    movq    56(%rdi), %r9
    movq    64(%rdi), %r10
    movq    72(%rdi), %r11
    movq    80(%rdi), %r12
    movq    88(%rdi), %r13
    movq    96(%rdi), %r14
    movq    104(%rdi), %r15
    movq    40(%rdi), %rdi
    .byte   0x66, 0x0f, 0x01, 0xcc          # TDCALL
    xchgq   %rdi, (%rsp)
    movq    %rax, (%rdi)
    movq    %rcx, 8(%rdi)
    movq    %rdx, 16(%rdi)
    movq    %rbx, 24(%rdi)
    movq    %rsi, 32(%rdi)
    movq    %r8, 48(%rdi)
    movq    %r9, 56(%rdi)
    movq    %r10, 64(%rdi)
    movq    %r11, 72(%rdi)
    movq    %r12, 80(%rdi)
    movq    %r13, 88(%rdi)
    movq    %r14, 96(%rdi)
    movq    %r15, 104(%rdi)
    popq    40(%rdi)
    popq    %r15
    popq    %r14
    popq    %r13
    popq    %r12
    popq    %rbx
    ret

# The jumps cross sections, so their distances are spelt out.
.set reset16_offset, reset16 - reset_page
.set td32_offset, td32 - reset_page

.section .vector, "ax"
.code16
.global reset_vector
reset_vector:                               # the same bytes in real and in protected mode
    .byte   0x0f, 0x20, 0xc0                # mov %cr0, %eax
    .byte   0xa8, 0x01                      # test $1, %al
    .byte   0x74, 0x05                      # jz: real mode
    .byte   0xe9                            # jmp near td32, in the flat segment
    .long   {reset_page} + (td32_offset) - ({reset_vector} + 12)
    .byte   0xe9                            # jmp near reset16, in the 64 KiB segment at 0xFFFF0000
    .word   {reset_page} + (reset16_offset) - ({reset_vector} + 15)
    .balign 16, 0
.code64

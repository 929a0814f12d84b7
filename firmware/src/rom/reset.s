# Reset to 64-bit mode. AT&T syntax; addresses come from the layout table as constants.
#
# Whether this is a confidential guest is decided by SEV_STATUS alone, never by CPUID: the processor does not let a host
# intercept that MSR, whereas CPUID in a guest is whatever the host answers. A host that could talk the firmware into
# believing that it is not confidential would get its stack as shared memory. The C-bit comes from the CPUID page, which
# the secure processor has checked; memory is private as long as paging is off, so both can be read before paging is on.

.section .reset, "ax"
reset_page:

.set IN_SEGMENT, {reset_page} & 0xffff      # offset of this page in the reset code segment (base 0xFFFF0000)

.code16
# Application processors start here (the launcher reads the address from the SEV-ES reset block): they never run the
# boot processor's path beside it on the same stack. Linux gives them a state of its own when it wants them.
ap_park:                                    # = {ap_entry}, the start of this page
    cli
    hlt
    jmp     ap_park

reset16:
    cli
    cld
    lgdtl   %cs:(gdt_pointer - reset_page + IN_SEGMENT)
    lidtl   %cs:(idt32_pointer - reset_page + IN_SEGMENT)
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

    xorl    %eax, %eax
    xorl    %edx, %edx
    movl    $0xc0010131, %ecx               # SEV_STATUS; #GP where the processor has none
sev_status_read:
    rdmsr
sev_status_known:
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
    movl    $0xc0000080, %ecx
    rdmsr
    orl     $0x100, %eax                    # EFER.LME; SVME stays as the launch set it
    wrmsr
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
    hlt
    jmp     halt32

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

# Leaves the firmware: RDI = entry, RSI = boot_params.
.global enter_kernel
enter_kernel:
    cli
    cld
    xorl    %ebx, %ebx
    xorl    %ebp, %ebp
    jmp     *%rdi

# The jump crosses sections, so its distance is spelt out; ap_park before reset16 has no relocation to vary.
.set reset16_offset, reset16 - reset_page

.section .vector, "ax"
.code16
.global reset_vector
reset_vector:
    .byte   0xe9                            # jmp near reset16, in the 64 KiB segment at 0xFFFF0000
    .word   {reset_page} + (reset16_offset) - ({reset_vector} + 3)
    .balign 16, 0
.code64

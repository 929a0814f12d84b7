//! Running bytes on the host processor, in a page of their own, with signals as exceptions.

use std::cell::UnsafeCell;
use std::mem::offset_of;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use iced_x86::code_asm::*;

use crate::state::{DATA, DATA_BYTES, End, State};

/// What the generated code and the signal handler share, beside the code.
#[repr(C, align(4096))]
struct Shared {
    input: State,
    output: State,
    host_rsp: u64,
}

/// Code, then [`Shared`], then the guest data at its fixed place.
pub struct Native {
    code: *mut u8,
    shared: *mut UnsafeCell<Shared>,
}

const CODE_BYTES: usize = 0x2000;
const BODY: u64 = 0x800;
const TAIL: u64 = 0x1000;

static TAIL_ADDRESS: AtomicU64 = AtomicU64::new(0);
static SIGNAL: AtomicI32 = AtomicI32::new(0);

extern "C" fn on_signal(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    SIGNAL.store(signal, Ordering::Relaxed);
    // SAFETY: the kernel passes a valid ucontext.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    context.uc_mcontext.gregs[libc::REG_RIP as usize] = TAIL_ADDRESS.load(Ordering::Relaxed) as i64;
    // The tail must run with TF and AC clear whatever the case did.
    context.uc_mcontext.gregs[libc::REG_EFL as usize] &= !0x40100;
}

const GPRS: [AsmRegister64; 16] =
    [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];

impl Native {
    pub fn new() -> Self {
        // SAFETY: fresh anonymous mappings, checked; the data lies where nothing else is.
        let (code, shared) = unsafe {
            let rw = libc::PROT_READ | libc::PROT_WRITE;
            let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let total = CODE_BYTES + size_of::<Shared>();
            let code = libc::mmap(core::ptr::null_mut(), total, rw, anonymous, -1, 0);
            assert_ne!(code, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(code, CODE_BYTES, rw | libc::PROT_EXEC), 0);
            let fixed = anonymous | libc::MAP_FIXED_NOREPLACE;
            let data = libc::mmap(DATA as *mut libc::c_void, DATA_BYTES, rw, fixed, -1, 0);
            assert_eq!(data as u64, DATA);
            let code = code.cast::<u8>();
            (code, code.add(CODE_BYTES).cast::<UnsafeCell<Shared>>())
        };
        let native = Self { code, shared };
        native.handle_signals();
        native.assemble();
        native
    }

    fn handle_signals(&self) {
        TAIL_ADDRESS.store(self.code as u64 + TAIL, Ordering::Relaxed);
        // SAFETY: the stack is leaked on purpose: it must outlive the handler.
        unsafe {
            let stack = Box::leak(vec![0u8; 1 << 16].into_boxed_slice());
            let alternate =
                libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
            assert_eq!(libc::sigaltstack(&alternate, core::ptr::null_mut()), 0);
            let mut action: libc::sigaction = core::mem::zeroed();
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_signal;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
                assert_eq!(libc::sigaction(signal, &action, core::ptr::null_mut()), 0);
            }
        }
    }

    /// The fixed code around the case: load everything, jump to it; save everything, return.
    fn assemble(&self) {
        let at = |offset: usize| self.shared as u64 + offset as u64;
        let input = offset_of!(Shared, input);
        let output = offset_of!(Shared, output);
        let host_rsp = at(offset_of!(Shared, host_rsp));
        let saved = [rbx, rbp, r12, r13, r14, r15];
        let mut head = CodeAssembler::new(64).unwrap();
        let mut tail = CodeAssembler::new(64).unwrap();
        (|| -> Result<(), IcedError> {
            for r in saved {
                head.push(r)?;
            }
            head.mov(qword_ptr(host_rsp), rsp)?;
            head.fxrstor64(ptr(at(input + offset_of!(State, image))))?;
            head.push(qword_ptr(at(input + offset_of!(State, rflags))))?;
            head.popfq()?;
            for (n, r) in GPRS.into_iter().enumerate() {
                head.mov(r, qword_ptr(at(input + offset_of!(State, gpr) + 8 * n)))?;
            }
            head.jmp(self.code as u64 + BODY)?;
            for (n, r) in GPRS.into_iter().enumerate() {
                tail.mov(qword_ptr(at(output + offset_of!(State, gpr) + 8 * n)), r)?;
            }
            tail.mov(rsp, qword_ptr(host_rsp))?;
            tail.pushfq()?;
            tail.pop(qword_ptr(at(output + offset_of!(State, rflags))))?;
            tail.cld()?;
            tail.fxsave64(ptr(at(output + offset_of!(State, image))))?;
            tail.fninit()?;
            tail.push(0x1f80)?;
            tail.ldmxcsr(dword_ptr(rsp))?;
            tail.pop(rax)?;
            for r in saved.into_iter().rev() {
                tail.pop(r)?;
            }
            tail.ret()
        })()
        .unwrap();
        self.write(0, &rip_relative(&mut head, self.code as u64));
        self.write(TAIL, &rip_relative(&mut tail, self.code as u64 + TAIL));
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= CODE_BYTES);
        // SAFETY: inside the code mapping.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.code.add(at as usize), bytes.len()) }
    }

    /// Runs a case over `data`, which it changes.
    pub fn run(&self, bytes: &[u8], state: &State, data: &mut [u8]) -> (State, End) {
        self.write(BODY, bytes);
        let end = self.code as u64 + BODY + bytes.len() as u64;
        let back = (self.code as u64 + TAIL).wrapping_sub(end + 5) as u32;
        self.write(BODY + bytes.len() as u64, &[0xe9]);
        self.write(BODY + bytes.len() as u64 + 1, &back.to_le_bytes());
        SIGNAL.store(0, Ordering::Relaxed);
        // SAFETY: the code saves what a function must preserve, and both areas are ours alone.
        let output = unsafe {
            core::ptr::copy_nonoverlapping(data.as_ptr(), DATA as *mut u8, DATA_BYTES);
            let shared = (*self.shared).get();
            (*shared).input = state.clone();
            let call: extern "sysv64" fn() = core::mem::transmute(self.code);
            call();
            core::ptr::copy_nonoverlapping(DATA as *const u8, data.as_mut_ptr(), DATA_BYTES);
            (*shared).output.clone()
        };
        let end = match SIGNAL.load(Ordering::Relaxed) {
            0 => End::Done,
            // The kernel reports #DE, #MF and #XM alike; the status words tell which.
            libc::SIGFPE => End::Float,
            libc::SIGILL => End::Undefined,
            _ => End::Memory,
        };
        (output, end)
    }
}

/// Assembles with absolute operands turned into RIP-relative ones: the shared area may lie above 4 GiB.
fn rip_relative(a: &mut CodeAssembler, at: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = iced_x86::Encoder::new(64);
    let mut rip = at;
    for i in a.instructions() {
        let mut i = *i;
        match i.code() {
            iced_x86::Code::Mov_RAX_moffs64 => i.set_code(iced_x86::Code::Mov_r64_rm64),
            iced_x86::Code::Mov_moffs64_RAX => i.set_code(iced_x86::Code::Mov_rm64_r64),
            iced_x86::Code::Jmp_rel8_64 => i.set_code(iced_x86::Code::Jmp_rel32_64),
            _ => {}
        }
        let memory = (0..i.op_count()).any(|n| i.op_kind(n) == iced_x86::OpKind::Memory);
        if memory && i.memory_base() == iced_x86::Register::None {
            i.set_memory_base(iced_x86::Register::RIP);
            i.set_memory_displ_size(8);
        }
        rip += encoder.encode(&i, rip).unwrap() as u64;
    }
    out.extend(encoder.take_buffer());
    out
}

//! The processor against the one it runs on: random instructions, the same registers and memory, the same result.
//!
//! Seeded and bounded. `SOFTKVM_CPU_SEED` and `SOFTKVM_CPU_CASES` widen the search.

mod generate;
mod native;
mod state;

use iced_x86::{Instruction, Mnemonic, RflagsBits};
use softkvm_cpu::testing::{self, FlatEnv, Ram};
use softkvm_cpu::{Cpu, Segment};
use state::{DATA, DATA_BYTES, End, Random, State};

/// Guest-physical place of the data.
const DATA_GPA: u64 = 0x20_0000;
/// Where the guest's code runs, and lies. No round number: the guest can read there, the host cannot, and rotated
/// addresses of the data are round.
const CODE_PAGE: u64 = 397;
const CODE: u64 = DATA + CODE_PAGE * 0x1000;
const CODE_GPA: u64 = 0x10_0000;
/// Handlers of the exceptions: 16 bytes apart, each a HLT.
const HANDLERS: u64 = 0x7000;
const KERNEL_STACK: u64 = 0x9_0000;

struct Guest {
    ram: std::sync::Arc<Ram>,
    env: FlatEnv,
    cpu: Cpu,
}

impl Guest {
    fn new() -> Self {
        let ram = Ram::new(4 << 20);
        let (env, mut cpu) = FlatEnv::new(&ram);
        testing::long_mode(&mut cpu, &ram, CODE);
        // User code sees its own page and the data at the address that the host uses, and nothing around it.
        for i in 0..512 {
            ram.write_u64(testing::PAGE_TABLES + 0x2000 + i * 8, i << 21 | 0xe3);
        }
        ram.write_u64(testing::PAGE_TABLES + 0x2000 + (DATA >> 21) * 8, 0xa000 | 7);
        for page in 0..DATA_BYTES as u64 / 0x1000 {
            ram.write_u64(0xa000 + page * 8, (DATA_GPA + page * 0x1000) | 7);
        }
        ram.write_u64(0xa000 + CODE_PAGE * 8, CODE_GPA | 7);
        for vector in 0..32 {
            testing::set_gate(&ram, vector, HANDLERS + u64::from(vector) * 16, 0, 3);
            ram.write(HANDLERS + u64::from(vector) * 16, &[0xf4]);
        }
        ram.write_u64(testing::TSS + 4, KERNEL_STACK);
        Self { ram, env, cpu }
    }

    fn run(&mut self, bytes: &[u8], state: &State, data: &mut [u8]) -> (State, End) {
        self.ram.write(DATA_GPA, data);
        self.ram.write(CODE_GPA, bytes);
        self.ram.write(CODE_GPA + bytes.len() as u64, &[0xcc]);
        let s = &mut self.cpu.state;
        s.gpr = state.gpr;
        s.rflags = state.rflags;
        s.rip = CODE;
        s.cpl = 3;
        s.seg[1] = Segment { selector: 0x23, base: 0, limit: u32::MAX, attributes: 0xafb };
        s.seg[2] = Segment { selector: 0x1b, base: 0, limit: u32::MAX, attributes: 0xcf3 };
        s.fpu.0[..512].copy_from_slice(&state.image);
        self.env.halted = false;
        self.cpu.run(&mut self.env);
        assert!(self.env.halted, "the guest did not reach a handler: {:x?}", self.cpu.state);
        data.copy_from_slice(&self.ram.read(DATA_GPA, DATA_BYTES));
        let s = &self.cpu.state;
        let vector = (s.rip - 1 - HANDLERS) / 16;
        let mut output = State { image: [0; 512], gpr: s.gpr, rflags: 0 };
        output.image.copy_from_slice(&s.fpu.0[..512]);
        // The frame's last five words: RIP, CS, RFLAGS, RSP, SS.
        output.rflags = self.ram.read_u64(KERNEL_STACK - 24);
        output.gpr[4] = self.ram.read_u64(KERNEL_STACK - 16);
        let end = match vector {
            3 => End::Done,
            0 => End::Divide,
            6 => End::Undefined,
            16 | 19 => End::Float,
            _ => End::Memory,
        };
        (output, end)
    }
}

/// The flags that `i` leaves undefined, in RFLAGS positions.
fn rflags(bits: u32) -> u64 {
    [
        (RflagsBits::OF, 0x800),
        (RflagsBits::SF, 0x80),
        (RflagsBits::ZF, 0x40),
        (RflagsBits::AF, 0x10),
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 4),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & bit != 0)
    .map(|(_, flag)| flag)
    .sum()
}

/// The parts of the FXSAVE image that are architectural: not the last instruction's address.
fn image_differs(a: &[u8; 512], b: &[u8; 512]) -> bool {
    a[0..5] != b[0..5]
        || a[24..28] != b[24..28]
        || (0..8).any(|st| a[32 + st * 16..42 + st * 16] != b[32 + st * 16..42 + st * 16])
        || a[160..416] != b[160..416]
}

#[derive(Clone)]
struct Case {
    listing: Vec<(Instruction, Vec<u8>)>,
    /// After each instruction, the flags that are undefined.
    undefined: Vec<u64>,
}

impl Case {
    fn bytes(&self) -> Vec<u8> {
        self.listing.iter().flat_map(|(_, bytes)| bytes.clone()).collect()
    }

    fn undefined(&self) -> u64 {
        self.undefined.last().copied().unwrap_or(0)
    }

    fn prefix(&self, n: usize) -> Self {
        Self { listing: self.listing[..n].to_vec(), undefined: self.undefined[..n].to_vec() }
    }
}

fn is_shift(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(m, Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd)
}

/// Conversions to MMX registers enter MMX state even when they raise #XM; the processor leaves x87 state alone then.
fn converts_to_mmx(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(m, Cvtpd2pi | Cvtps2pi | Cvttpd2pi | Cvttps2pi | Cvtpi2ps | Cvtpi2pd)
}

/// A run of instructions whose flag inputs are defined.
fn case(random: &mut Random, forms: &[generate::Form], most: u64) -> Case {
    let mut case = Case { listing: Vec::new(), undefined: Vec::new() };
    let length = 1 + random.below(most);
    while (case.listing.len() as u64) < length {
        let form = random.pick(forms);
        let Some((i, bytes)) = generate::instruction(random, &form) else { continue };
        let reads_all = matches!(i.mnemonic(), Mnemonic::Pushf | Mnemonic::Pushfq | Mnemonic::Lahf);
        let before = case.undefined();
        if before != 0 && (reads_all || rflags(i.rflags_read()) & before != 0) {
            continue;
        }
        // A count of zero writes no flags at all.
        let counted = i.has_rep_prefix() || i.has_repne_prefix() || is_shift(i.mnemonic());
        let defined =
            if counted { 0 } else { rflags(i.rflags_written() | i.rflags_cleared() | i.rflags_set()) };
        let after = before & !defined | rflags(i.rflags_undefined());
        let (branch, reads) = generate::branch_over(random, bytes.len() as u8);
        if most > 1 && random.one_in(5) && rflags(reads) & before == 0 {
            // Branch and target are one entry, so that a shorter prefix never jumps out of the code.
            case.undefined.push(before | after);
            case.listing.push((i, [branch, bytes].concat()));
            continue;
        }
        case.undefined.push(after);
        case.listing.push((i, bytes));
    }
    case
}

/// Where two images differ, briefly.
fn image_difference(a: &[u8; 512], b: &[u8; 512]) -> String {
    let at: Vec<_> =
        (0..416).filter(|&i| a[i] != b[i]).map(|i| format!("[{i}] {:x} {:x}", a[i], b[i])).collect();
    at.join(", ")
}

/// Runs a case on both sides; what differs, or whether the host completed it.
fn check(
    host: &native::Native,
    guest: &mut Guest,
    case: &Case,
    start: &State,
    data: &[u8],
) -> Result<bool, String> {
    let (mut host_data, mut guest_data) = (data.to_vec(), data.to_vec());
    let bytes = case.bytes();
    let (expected, end) = host.run(&bytes, start, &mut host_data);
    let (mut result, guest_end) = guest.run(&bytes, start, &mut guest_data);
    compare(case, start, (&expected, end, &host_data), (&mut result, guest_end, &guest_data))?;
    Ok(end == End::Done)
}

fn compare(
    case: &Case,
    start: &State,
    host: (&State, End, &[u8]),
    guest: (&mut State, End, &[u8]),
) -> Result<(), String> {
    // The kernel reports divide errors and floating-point exceptions by the same signal.
    let same_end = host.1 == guest.1 || host.1 == End::Float && guest.1 == End::Divide;
    let mut wrong = Vec::new();
    if !same_end {
        wrong.push(format!("ends: host {:?}, guest {:?}", host.1, guest.1));
    }
    for r in 0..16 {
        if host.0.gpr[r] != guest.0.gpr[r] {
            wrong.push(format!("r{r}: host {:#x}, guest {:#x}", host.0.gpr[r], guest.0.gpr[r]));
        }
    }
    let mask = 0xcd5 & !case.undefined();
    if same_end && host.1 == End::Done && (host.0.rflags ^ guest.0.rflags) & mask != 0 {
        wrong.push(format!("rflags: host {:#x}, guest {:#x}", host.0.rflags, guest.0.rflags));
    }
    let raised = host.1 == End::Float;
    let left_alone = raised && case.listing.iter().any(|(i, _)| converts_to_mmx(i.mnemonic()));
    if raised {
        // Which masked exceptions an instruction reports beside the unmasked one differs between processors.
        guest.0.image[24] = guest.0.image[24] & 0xc0 | host.0.image[24] & 0x3f;
    }
    // Whether a store from an MMX register that faults has entered MMX state already differs between processors.
    let left_alone = left_alone
        || same_end
            && host.1 == End::Memory
            && case.listing.iter().any(|(i, _)| i.mnemonic() == Mnemonic::Movntq);
    if !left_alone && image_differs(&host.0.image, &guest.0.image) {
        wrong.push(format!("fpu (host, guest): {}", image_difference(&host.0.image, &guest.0.image)));
    }
    if let Some(at) = host.2.iter().zip(guest.2).position(|(a, b)| a != b) {
        wrong.push(format!("memory at {at:#x}: host {:#x}, guest {:#x}", host.2[at], guest.2[at]));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let listing: Vec<_> =
        case.listing.iter().map(|(i, bytes)| format!("{:?} {bytes:02x?}", i.code())).collect();
    let ends = format!(
        "ends: host {:?}, guest {:?}; FCW, FSW at the start {:x?}",
        host.1,
        guest.1,
        &start.image[..4]
    );
    Err(format!(
        "{}\n{}\n{ends}\nstart: {:x?} {:#x}",
        listing.join("\n"),
        wrong.join("\n"),
        start.gpr,
        start.rflags
    ))
}

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn random_instructions_do_what_the_host_does() {
    let forms = generate::forms();
    assert!(forms.len() > 1000, "only {} forms", forms.len());
    let native = native::Native::new();
    let mut guest = Guest::new();
    let mut random = Random(environment("SOFTKVM_CPU_SEED", 1));
    let cases = environment("SOFTKVM_CPU_CASES", 60_000);
    let mut failures = std::collections::BTreeMap::new();
    let mut done = 0;
    for n in 0..cases {
        // Single instructions first, each form in turn; then runs of them.
        let case = if n < cases / 2 {
            let form = forms[n as usize % forms.len()];
            case(&mut random, &[form], 1)
        } else {
            case(&mut random, &forms, 8)
        };
        let start = state::random_state(&mut random);
        let data: Vec<u8> = (0..DATA_BYTES / 8).flat_map(|_| random.interesting().to_le_bytes()).collect();
        match check(&native, &mut guest, &case, &start, &data) {
            Ok(completed) => done += u64::from(completed),
            Err(_) => {
                // The shortest prefix that differs ends in the culprit.
                let (code, why) = (1..=case.listing.len())
                    .map(|n| case.prefix(n))
                    .find_map(|p| check(&native, &mut guest, &p, &start, &data).err().map(|e| (p, e)))
                    .map(|(p, e)| (p.listing.last().map(|(i, _)| i.code()), e))
                    .unwrap_or((None, "not reproducible".into()));
                failures.entry(format!("{code:?}")).or_insert(why);
            }
        }
    }
    for why in failures.values().take(environment("SOFTKVM_CPU_SHOW", 8) as usize) {
        eprintln!("----\n{why}");
    }
    assert!(
        failures.is_empty(),
        "{} forms differ: {:?}",
        failures.len(),
        failures.keys().collect::<Vec<_>>()
    );
    assert!(done > cases / 2, "too few cases complete: {done} of {cases}");
}

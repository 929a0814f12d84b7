//! That the tiny TDs of `tests/` meet all that the tables here serve: a row without a scenario is a row that nobody
//! has seen work.

use super::tdcall::LEAVES;
use super::ve::reason;
use crate::uapi::tdx::{VCPU_COMMANDS, VM_COMMANDS};

/// What the tiny TDs note, a line a step: its name, a colon, the answer.
const SCENARIOS: &str = include_str!("../../../tests/tests/td-guests.txt");

/// The answers of the steps that name this leaf or command.
fn answers(name: &str) -> Vec<&'static str> {
    let of = |line: &'static str| {
        let (step, answer) = line.rsplit_once(": ")?;
        let rest = step.strip_prefix(name)?;
        (rest.is_empty() || rest.starts_with(' ')).then_some(answer)
    };
    SCENARIOS.lines().filter_map(of).collect()
}

#[test]
fn a_tiny_td_calls_every_leaf() {
    // Served by what a call does, not as a step of its own name; and what is never served.
    const NO_PLAIN_SUCCESS: [&str; 4] =
        ["TDG.VP.VMCALL", "TDG.VP.VEINFO.GET", "TDG.SERVTD.RD", "TDG.SERVTD.WR"];
    for (.., name, _) in LEAVES {
        let answers = answers(name.strip_prefix("TDG.").expect("a guest-side leaf"));
        let served = answers.iter().any(|answer| answer.starts_with("0x0") || answer.starts_with("0 "));
        assert!(!answers.is_empty(), "{name} is called by no tiny TD");
        assert!(served || NO_PLAIN_SUCCESS.contains(name), "{name} is served to no tiny TD: {answers:?}");
    }
}

#[test]
fn a_tiny_td_sees_every_reason_for_a_virtualization_exception() {
    for (name, number) in reason::ALL {
        assert!(SCENARIOS.contains(&format!(": #VE {number} ")), "{name} ({number}) is seen by no tiny TD");
    }
}

#[test]
fn a_client_is_served_and_refused_every_command() {
    let names = VM_COMMANDS.iter().map(|row| row.1).chain(VCPU_COMMANDS.iter().map(|row| row.1));
    for name in names {
        let answers = answers(name.strip_prefix("KVM_TDX_").expect("a TDX command"));
        assert!(
            answers.iter().any(|answer| answer.starts_with('0')),
            "{name} is served to nobody: {answers:?}"
        );
        let refused = |answer: &&str| answer.starts_with("errno");
        assert!(answers.iter().any(refused), "{name} is refused to nobody: {answers:?}");
    }
}

#[test]
fn the_commands_are_those_of_the_kernels_header() {
    let mut numbers: Vec<u32> =
        VM_COMMANDS.iter().map(|row| row.0).chain(VCPU_COMMANDS.iter().map(|row| row.0)).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..=6).collect::<Vec<_>>());
}

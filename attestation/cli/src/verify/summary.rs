//! A verdict for people: what was decided, what was not, what runs, and then the details.

use std::io::{IsTerminal, stdout};

use cloister_attestation::verdict::{Code, Verdict};
use cloister_attestation::{snp, tdx};
use serde::Serialize;

use crate::output::{self, printable};

/// Claims that have a line for people.
pub trait Summary: Serialize {
    /// What the evidence is of, in a few lines.
    fn lines(&self) -> Vec<String>;
}

impl Summary for snp::Claims {
    fn lines(&self) -> Vec<String> {
        let report = &self.report;
        let key = &self.endorsement_key;
        vec![
            format!(
                "SEV-SNP guest on {}, VMPL {}, signed by its {}",
                self.product,
                report.vmpl,
                key.kind.name()
            ),
            format!("under {}", self.trust_root.subject),
            format!("measurement {}", report.measurement),
        ]
    }
}

impl Summary for tdx::Claims {
    fn lines(&self) -> Vec<String> {
        vec![
            format!("TD on a platform of FMSPC {}, TCB {}", self.platform.fmspc, self.tcb.status),
            format!("under {}", self.trust_root.subject),
            format!("MRTD {}", self.mrtd),
        ]
    }
}

/// Colours of a terminal, where there is one and nobody asked for none (no-color.org).
struct Paint(bool);

impl Paint {
    fn of_stdout() -> Self {
        Self(stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
    }

    fn over(&self, colour: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

const GREEN: &str = "1;32";
const YELLOW: &str = "1;33";
const RED: &str = "1;31";

/// What to do next, where a reason has a usual cause.
fn hint(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::RootUntrusted => {
            "evidence of softkvm is signed by a root of its own: `softkvm export-certs DIR` writes it, --trust-root takes it"
        }
        Code::VekMissing => {
            "give the VCEK's or VLEK's certificate with --vek, or the host's table with --cert-table"
        }
        Code::CrlInapplicable => {
            "give the CRL of this chain's root, or say in the policy that revocation is \"optional\""
        }
        Code::CertificateNotYetValid | Code::CollateralNotYetValid | Code::CrlNotYetValid => {
            "is this machine's clock right? --at gives another time, --clock-tolerance more room"
        }
        _ => return None,
    })
}

/// Prints it on stdout.
pub fn print<C: Summary>(verdict: &Verdict<C>, quiet: bool) -> anyhow::Result<()> {
    let text = text(verdict, quiet, &Paint::of_stdout());
    output::write(&text)?;
    match &verdict.claims {
        Some(claims) if !quiet => output::print(&serde_json::json!({ "claims": claims }), false),
        _ => Ok(()),
    }
}

fn text<C: Summary>(verdict: &Verdict<C>, quiet: bool, paint: &Paint) -> String {
    let open = verdict.unchecked.join(", ");
    let mut text = match (verdict.is_accepted(), quiet) {
        (true, true) => return String::new(),
        (true, false) if open.is_empty() => paint.over(GREEN, "accepted"),
        // First what nobody decided: this verdict is about less than it looks.
        (true, false) => {
            format!("{} {}", paint.over(YELLOW, "accepted, NOT DECIDED by the policy:"), open)
        }
        (false, _) => paint.over(RED, "REJECTED"),
    };
    text.push('\n');
    for reason in &verdict.reasons {
        text.push_str(&format!("  {:?}: {}\n", reason.code.kind(), printable(&reason.to_string())));
    }
    let mut hints: Vec<_> = verdict.reasons.codes().into_iter().filter_map(hint).collect();
    hints.dedup();
    hints.iter().for_each(|hint| text.push_str(&format!("  hint: {hint}\n")));
    if quiet {
        return text;
    }
    if !verdict.is_accepted() && !open.is_empty() {
        text.push_str(&format!("not decided by the policy: {open}\n"));
    }
    for line in verdict.claims.iter().flat_map(Summary::lines) {
        text.push_str(&format!("  {}\n", printable(&line)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_attestation::verdict::Reasons;

    #[derive(Serialize)]
    struct Guest;

    impl Summary for Guest {
        fn lines(&self) -> Vec<String> {
            vec!["a guest\n of \u{1b}".into()]
        }
    }

    fn verdict(codes: &[Code], open: &[&'static str]) -> Verdict<Guest> {
        let mut reasons = Reasons::default();
        codes.iter().for_each(|code| reasons.push(*code, "seen"));
        Verdict::new(reasons, Some(Guest), open.to_vec())
    }

    #[test]
    fn the_first_line_says_what_was_not_decided() {
        let none = Paint(false);
        let first = |verdict: &Verdict<Guest>| {
            text(verdict, false, &none).lines().next().unwrap_or_default().to_owned()
        };
        assert_eq!(first(&verdict(&[], &[])), "accepted");
        let open = verdict(&[], &["tcb", "revocation"]);
        assert_eq!(first(&open), "accepted, NOT DECIDED by the policy: tcb, revocation");
        assert_eq!(first(&open.decided()), "REJECTED");
    }

    #[test]
    fn quiet_is_silent_about_what_is_accepted_and_names_reasons() {
        let none = Paint(false);
        assert_eq!(text(&verdict(&[], &["tcb"]), true, &none), "");
        let refused = text(&verdict(&[Code::RootUntrusted], &["tcb"]), true, &none);
        assert!(refused.contains("root-untrusted") && refused.contains("export-certs"), "{refused}");
        assert!(!refused.contains("a guest") && !refused.contains("tcb"), "{refused}");
    }

    #[test]
    fn only_our_own_colours_reach_a_terminal() {
        let plain = text(&verdict(&[], &[]), false, &Paint(false));
        assert!(!plain.contains('\u{1b}') && plain.contains("a guest\u{fffd} of \u{fffd}"), "{plain:?}");
        assert!(text(&verdict(&[], &[]), false, &Paint(true)).starts_with("\u{1b}[1;32maccepted\u{1b}[0m"));
    }
}

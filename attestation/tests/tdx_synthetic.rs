//! TDX evidence of our own making, for quotes of every version and TD reports of every type: right, and wrong in
//! one way at a time. Each case must be refused for exactly its reason.

mod tdx_pki;

use std::collections::BTreeSet;

use cloister_attestation::ear::{Attested, Flaw};
use cloister_attestation::signature::Backend;
use cloister_attestation::snp::{BitRule, UnknownBitRule};
use cloister_attestation::tdx::{
    Collateral, CollateralDocument, Evidence, PckCa, TcbStatus, authenticate, verify,
};
use cloister_attestation::x509::UnixTime;
use tdx_pki::cases::{ALL, Case, TDX_1_0, TDX_1_5, TDX_1_5_EX, VERSION_5};
use tdx_pki::quote::{
    LogEvent, QE_ISVSVN, TD_ATTRIBUTES, TEE_TCB_SVN, TEE_TCB_SVN2, claims_no_more, log, usual_events,
};
use tdx_pki::*;

#[test]
fn right_evidence_is_accepted_with_its_claims() {
    for ((version, body), report_type) in KINDS.into_iter().zip(["1.0", "1.0", "1.5", "1.5ex"]) {
        let verdict = Scenario::new(version, body).verify();
        assert!(verdict.is_accepted(), "{version} {body}: {:?}", verdict.reasons);
        let claims = verdict.claims.unwrap();
        assert_eq!((claims.quote_version, claims.report_type), (version, report_type));
        assert_eq!(claims.mrtd.0, [0x3e; 48]);
        assert_eq!(claims.rtmr3.0, [0xa3; 48]);
        assert_eq!(claims.report_data.0, [0xda; 64]);
        assert_eq!(claims.tcb.status, TcbStatus::UpToDate);
        assert_eq!(claims.platform.fmspc.0, FMSPC);
        assert_eq!(claims.platform.platform_instance_id.unwrap().0, [0x66; 16]);
        assert_eq!((claims.platform.pck_ca, claims.platform.pce_svn), (PckCa::Platform, 13));
        assert_eq!(claims.platform.sgx_svns.0[..8], [3, 3, 2, 2, 4, 1, 0, 5]);
        assert!(claims.platform.configuration.unwrap().smt_enabled);
        assert_eq!(claims.tee_tcb_svn2.is_some(), body > 2);
        assert_eq!(claims.extended.as_ref().map(|ex| ex.td_id.0), (body == 4).then_some([0x1d; 32]));
        // The latest beginning and the earliest end of everything.
        assert_eq!(claims.collateral.not_before, "2026-11-10T00:00:00Z".parse().unwrap());
        assert_eq!(claims.collateral.not_after, "2026-12-01T00:00:00Z".parse().unwrap());
    }
}

/// Cases of one group, and the quotes that can have them: version and type of body.
type Group<'a> = (&'static str, &'static [Case], &'a [(u16, u16)]);

#[test]
fn wrong_evidence_is_refused_for_exactly_its_reason() {
    // The oldest and the newest: what lies between them differs from both in nothing that these cases touch.
    let ends: &[(u16, u16)] = &[KINDS[0], KINDS[3]];
    let kinds = KINDS;
    let some: [Group<'_>; 4] = [
        ("TDX 1.0", TDX_1_0, &kinds[..2]),
        ("version 5", VERSION_5, &kinds[1..]),
        ("TDX 1.5", TDX_1_5, &kinds[2..]),
        ("TDX 1.5ex", TDX_1_5_EX, &kinds[3..]),
    ];
    let all = ALL.iter().map(|(group, cases)| (*group, *cases, ends)).chain(some);
    let (mut wrong, mut names, mut count) = (Vec::new(), BTreeSet::new(), 0);
    for (group, cases, kinds) in all {
        for ((version, body), (name, change, expected)) in
            kinds.iter().flat_map(|kind| cases.iter().map(move |case| (kind, case)))
        {
            let mut scenario = Scenario::new(*version, *body);
            change(&mut scenario);
            let mut found = scenario.codes();
            found.sort_unstable();
            let mut expected = expected.to_vec();
            expected.sort_unstable();
            if found != expected {
                wrong.push(format!(
                    "v{version} type {body}, {group}, {name}: {found:?} instead of {expected:?}"
                ));
            }
            names.insert(*name);
            count += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("TDX: {count} cases of {} names", names.len());
    assert!(names.len() >= 150, "{} names", names.len());
}

#[test]
fn what_keeps_a_platform_from_every_level_is_named() {
    type Row = (fn(&mut Scenario), &'static str);
    let rows: [Row; 7] = [
        (
            |s| s.sgx(SgxExtension::default().svn(8, 4)),
            "the platform is below every TCB level of its model; the closest, Revoked of 2026-10-01T00:00:00Z: \
             SGX component 8 has 4, needs 5",
        ),
        (
            |s| s.sgx(SgxExtension::default().svn(17, 4)),
            "the platform is below every TCB level of its model; the closest, Revoked of 2026-10-01T00:00:00Z: \
             PCESVN has 4, needs 5",
        ),
        (
            |s| s.quote.set(TEE_TCB_SVN2, &[6, 1, 0]),
            "the platform is below every TCB level of its model; the closest, Revoked of 2026-10-01T00:00:00Z: \
             TEE_TCB_SVN2[2] has 0, needs 1",
        ),
        (
            |s| {
                s.sgx(SgxExtension::default().svn(8, 4).svn(17, 4));
                s.quote.set(TEE_TCB_SVN, &[6, 1, 0]);
            },
            "the platform is below every TCB level of its model; the closest, Revoked of 2026-10-01T00:00:00Z: \
             SGX component 8 has 4, needs 5, and 2 more",
        ),
        (
            |s| s.tcb_info.value["tcbLevels"] = serde_json::json!([]),
            "the TCB info has no TCB levels for platforms",
        ),
        (
            |s| s.quote.set(TEE_TCB_SVN, &[1, 1, 3]),
            "the TDX module 1.1 is below every TCB level of its major version (TEE_TCB_SVN); the lowest is 2",
        ),
        (
            |s| s.quote.qe(QE_ISVSVN, &[0]),
            "the quoting enclave's ISVSVN 0 is below every TCB level; the lowest is 1",
        ),
    ];
    for (change, expected) in rows {
        let mut scenario = Scenario::new(5, 3);
        change(&mut scenario);
        let verdict = scenario.verify();
        let messages: Vec<_> = verdict.reasons.iter().map(|reason| reason.message.as_str()).collect();
        assert_eq!(messages, [expected]);
    }
}

#[test]
fn there_are_no_two_cases_of_one_name() {
    let all = ALL.iter().map(|(_, cases)| *cases).chain([VERSION_5, TDX_1_0, TDX_1_5, TDX_1_5_EX]);
    let mut names: Vec<_> = all.flatten().map(|(name, ..)| *name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn several_faults_are_all_named() {
    let mut scenario = Scenario::new(5, 3);
    scenario.quote.quote_signer = Key::Rogue;
    scenario.quote.qe_report_signer = Key::Rogue;
    scenario.pck.signer = Key::Rogue;
    scenario.pck.not_after = "2026-11-01T00:00:00Z";
    scenario.pck_crl.next_update = Some("2026-11-02T00:00:00Z");
    scenario.tcb_info.value["fmspc"] = "000000000000".into();
    let expected = [
        "certificate-signature",
        "fmspc-mismatch",
        "qe-report-signature",
        "quote-signature",
        "certificate-expired",
        "crl-expired",
    ];
    let mut found = scenario.codes();
    found.sort_unstable();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn collateral_is_judged_once_and_ages_all_the_same() {
    let scenario = Scenario::new(4, 2);
    let collateral = Collateral::new(&scenario.collateral(), &scenario.roots());
    assert!(collateral.reasons().is_empty());
    let (from, to) = collateral.window();
    let quote = scenario.quote_bytes();
    let evidence = Evidence { quote: &quote, event_log: None };
    let accepted = |time| verify(&evidence, &collateral, time, &scenario.policy).is_accepted();
    // The PCK CRL ends first, and at its nextUpdate it has ended.
    assert!(accepted(from) && accepted(scenario.time()) && accepted(UnixTime(to.0 - 1)));
    assert!(!accepted(UnixTime(from.0 - 1)) && !accepted(to));
    // From its texts it is the same; from other texts it is refused as from a file.
    let backend = Backend::default();
    let mut texts = CollateralDocument::from_json(&scenario.collateral()).unwrap();
    let of = |texts: &CollateralDocument| Collateral::from_document(&backend, texts, &scenario.roots());
    assert!(of(&texts).reasons().is_empty() && of(&texts).window() == (from, to));
    texts.tcb_info.push(' ');
    let codes = of(&texts).reasons().codes();
    assert_eq!(codes.iter().map(|code| code.as_str()).collect::<Vec<_>>(), ["tcb-info-signature"]);
    // It serves other quotes of the platform, and none of another.
    let mut other = Scenario::new(5, 4);
    other.sgx(SgxExtension::default().set("4", der::tlv(4, &[1; 6])));
    let quote = other.quote_bytes();
    let evidence = Evidence { quote: &quote, event_log: None };
    let verdict = verify(&evidence, &collateral, scenario.time(), &scenario.policy);
    assert_eq!(
        verdict.reasons.codes().iter().map(|code| code.as_str()).collect::<Vec<_>>(),
        ["fmspc-mismatch"]
    );
}

#[test]
fn a_relaunch_is_advised_with_what_was_wrong_at_launch() {
    let mut scenario = Scenario::new(5, 3);
    scenario.quote.set(TEE_TCB_SVN, &[4, 1, 3]);
    let claims = scenario.verify().claims.unwrap();
    assert_eq!(claims.tcb.status, TcbStatus::TDRelaunchAdvised);
    assert_eq!(claims.tcb.advisories, ["INTEL-SA-00002"]);
    assert_eq!(claims.tcb.module.unwrap().status, TcbStatus::OutOfDate);
    assert_eq!(claims.tcb.current.unwrap().status, TcbStatus::UpToDate);
}

#[test]
fn an_event_log_tells_what_was_measured_and_marks_what_was_not() {
    let mut scenario = Scenario::new(5, 4);
    scenario.event_log = Some(scenario.quote.measure(&usual_events()));
    let log = scenario.verify().claims.unwrap().event_log.unwrap();
    let measured: Vec<_> = log.events.iter().map(|event| event.data_measured).collect();
    assert_eq!(measured, [true, true, true, true, false, true, true]);
    let separators: Vec<_> = log.events.iter().map(|event| event.separator).collect();
    assert_eq!(separators, [false, true, false, true, false, false, false]);
    // The text is the measured bytes; that they are a command line is the log's word.
    let line = &log.events[6];
    assert_eq!(line.measured_text.as_deref(), Some("root=/dev/vda quiet"));
    assert_eq!(line.log.label.as_deref(), Some("kernel_cmdline"));
    let described = &log.events[4];
    assert_eq!((described.measured_text.as_ref(), described.log.text.as_deref()), (None, Some("a path")));
}

/// Changes a log where nothing is measured.
type Relabelling = (&'static str, fn(&mut [LogEvent]));

#[test]
fn what_is_not_measured_of_an_event_log_changes_no_claim_but_the_logs_own_word() {
    let changes: [Relabelling; 6] = [
        ("a command is called the kernel's command line", |events| {
            events[5].data = b"kernel_cmdline: set quiet=0\0".to_vec();
        }),
        ("and the kernel's command line a command", |events| {
            events[5].data = b"kernel_cmdline: set quiet=0\0".to_vec();
            events[6].data = b"grub_cmd: root=/dev/vda quiet\0".to_vec();
        }),
        ("the kernel's command line is called a module's", |events| {
            events[6].data = b"module_cmdline: root=/dev/vda quiet\0".to_vec();
        }),
        ("the kernel's command line is hidden behind a description", |events| {
            events[6].data = b"/vmlinuz\0".to_vec();
        }),
        ("an action and a separator are called tags", |events| {
            events[1].kind = 0x6;
            events[2].kind = 0x6;
        }),
        ("a file is described otherwise", |events| events[4].data = b"another path".to_vec()),
    ];
    let mut scenario = Scenario::new(5, 4);
    let mut claims = |change: fn(&mut [LogEvent])| {
        let mut events = usual_events();
        scenario.quote.measure(&events);
        change(&mut events);
        scenario.event_log = Some(log(&events));
        let verdict = scenario.verify();
        assert!(verdict.is_accepted(), "{:?}", verdict.reasons);
        verdict.claims.unwrap().event_log.unwrap()
    };
    let right = claims(|_| ());
    for (name, change) in changes {
        let changed = claims(change);
        assert!(changed != right && claims_no_more(&changed, &right), "{name}: {changed:#?}");
    }
}

#[test]
fn what_a_policy_puts_up_with_is_known_of_the_claims() {
    type Row = (&'static str, fn(&mut Scenario), &'static [Flaw]);
    let rows: [Row; 8] = [
        ("nothing", |_| (), &[]),
        ("debug", |s| s.quote.set(TD_ATTRIBUTES, &[1]), &[Flaw::HostMayLook]),
        ("HGS+ profiling", |s| s.quote.set(TD_ATTRIBUTES, &[0x10]), &[Flaw::HostMayLook]),
        ("profiling", |s| s.quote.set(TD_ATTRIBUTES, &[0x60]), &[Flaw::HostMayLook]),
        ("migratable", |s| s.quote.set(TD_ATTRIBUTES + 3, &[0x30]), &[Flaw::MayBeMoved]),
        ("an unknown bit", |s| s.quote.set(TD_ATTRIBUTES + 5, &[1]), &[Flaw::UnknownBit]),
        ("no SEPT_VE_DISABLE", |s| s.quote.set(TD_ATTRIBUTES + 3, &[0]), &[Flaw::HostMayInterfere]),
        ("out of date", |s| s.quote.qe(QE_ISVSVN, &[3]), &[Flaw::TcbFlawed]),
    ];
    for (name, change, flaws) in rows {
        let mut scenario = Scenario::new(5, 3);
        let rules = &mut scenario.policy.td_attributes;
        for rule in [
            &mut rules.debug,
            &mut rules.hgs_plus_prof,
            &mut rules.perf_prof,
            &mut rules.pmt_prof,
            &mut rules.migratable,
            &mut rules.sept_ve_disable,
        ] {
            *rule = BitRule::Allowed;
        }
        rules.unknown = UnknownBitRule::Allowed;
        scenario.policy.tcb.accepted.push(TcbStatus::OutOfDate);
        change(&mut scenario);
        let verdict = scenario.verify();
        assert!(verdict.is_accepted(), "{name}: {:?}", verdict.reasons);
        assert_eq!(verdict.claims.unwrap().flaws(), flaws, "{name}");
    }
}

#[test]
fn a_known_platform_is_checked_no_less() {
    let scenario = Scenario::new(5, 3);
    let collateral = Collateral::new(&scenario.collateral(), &scenario.roots());
    let first = scenario.quote_bytes();
    let evidence = Evidence { quote: &first, event_log: None };
    let platform = authenticate(&evidence, &collateral, scenario.time()).unwrap().verified_platform().clone();
    // The same evidence with a known platform and without: the same answer, whatever is wrong.
    for (group, cases) in ALL.iter().chain(&[("TDX 1.5", TDX_1_5)]) {
        for (name, change, _) in *cases {
            let mut s = Scenario::new(5, 3);
            change(&mut s);
            let (quote, collateral) = (s.quote_bytes(), Collateral::new(&s.collateral(), &s.roots()));
            let evidence = Evidence { quote: &quote, event_log: s.event_log.as_deref() };
            let unknown = authenticate(&evidence, &collateral, s.time()).map(|authentic| authentic.claims());
            let known =
                platform.authenticate(&evidence, &collateral, s.time()).map(|authentic| authentic.claims());
            assert_eq!(known, unknown, "{group}, {name}");
        }
    }
}

//! The second question: is this authentic quote one that the relying party accepts?

use alloc::format;
use alloc::string::String;

use super::authenticate::Authentic;
use super::policy::{EventLogRule, Padding, PaddingRule, Policy};
use super::quote::TdReport;
use crate::snp::{BitRule, Hex, listed};
use crate::verdict::{Code, Reasons};

const SECONDS_PER_DAY: u64 = 86_400;

/// Compares an authentic quote with `policy`; returns everything that the policy does not accept.
pub fn appraise(authentic: &Authentic, policy: &Policy) -> Reasons {
    let mut reasons = Reasons::default();
    identity(&authentic.report, policy, &mut reasons);
    service_tds(&authentic.report, policy, &mut reasons);
    attributes(&authentic.report, policy, &mut reasons);
    tcb(authentic, policy, &mut reasons);
    platform(authentic, policy, &mut reasons);
    envelope(authentic, policy, &mut reasons);
    reasons
}

fn identity(report: &TdReport, policy: &Policy, reasons: &mut Reasons) {
    let base = &report.base;
    let [rtmr0, rtmr1, rtmr2, rtmr3] = &base.rtmrs;
    let measurements = [
        (Code::Mrtd, "MRTD", &base.mrtd, &policy.mrtd),
        (Code::Rtmr, "RTMR0", rtmr0, &policy.rtmr0),
        (Code::Rtmr, "RTMR1", rtmr1, &policy.rtmr1),
        (Code::Rtmr, "RTMR2", rtmr2, &policy.rtmr2),
        (Code::Rtmr, "RTMR3", rtmr3, &policy.rtmr3),
        (Code::Mrseam, "MRSEAM", &base.mrseam, &policy.mrseam),
        (Code::Mrconfigid, "MRCONFIGID", &base.mrconfigid, &policy.mrconfigid),
        (Code::Mrowner, "MROWNER", &base.mrowner, &policy.mrowner),
        (Code::Mrownerconfig, "MROWNERCONFIG", &base.mrownerconfig, &policy.mrownerconfig),
    ];
    for (code, name, value, list) in measurements {
        listed(reasons, code, name, value, list.as_deref());
    }
    let report_data = policy.report_data.as_ref().map(core::slice::from_ref);
    listed(reasons, Code::ReportData, "REPORTDATA", &base.report_data, report_data);
}

/// A service TD may read and change the TD's metadata, migrate it above all: it is part of what is trusted.
fn service_tds(report: &TdReport, policy: &Policy, reasons: &mut Reasons) {
    const NONE: &[Hex<48>] = &[Hex([0; 48])];
    let list = Some(policy.mrservicetd.as_deref().unwrap_or(NONE));
    match &report.v15 {
        Some(v15) => listed(reasons, Code::Mrservicetd, "MRSERVICETD", &v15.mrservicetd, list),
        // Who lists service TDs wants to know which there are.
        None if policy.mrservicetd.is_some() => {
            let message = format!("a TD report of TDX {} has no MRSERVICETD", report.kind().name());
            reasons.push(Code::Mrservicetd, message);
        }
        None => {}
    }
    // Without SERVTD_EXT these are zero, whatever MRSERVICETD is.
    if let Some(ex) = report.ex.as_ref().filter(|_| report.td_attributes().servtd_ext()) {
        listed(reasons, Code::Mrservicetd, "the current service TD hash", &ex.cur_servtd_hash, list);
    }
}

fn attributes(report: &TdReport, policy: &Policy, reasons: &mut Reasons) {
    let attributes = report.td_attributes();
    for (name, set, rule) in policy.td_attributes.rules(attributes) {
        let raw = attributes.0;
        match (rule, set) {
            (BitRule::Forbidden, true) => {
                let message = format!("ATTRIBUTES {raw:#x} set {name}, which is forbidden");
                reasons.push(Code::TdAttributesForbidden, message);
            }
            (BitRule::Required, false) => {
                let message = format!("ATTRIBUTES {raw:#x} do not set {name}, which is required");
                reasons.push(Code::TdAttributesRequired, message);
            }
            _ => {}
        }
    }
    let xfam = report.xfam().0.to_le_bytes();
    listed(reasons, Code::Xfam, "XFAM", &xfam, policy.xfam.as_deref());
}

fn tcb(authentic: &Authentic, policy: &Policy, reasons: &mut Reasons) {
    let (tcb, rules) = (&authentic.tcb, &policy.tcb);
    let accepted = |status| rules.accepted.contains(&status);
    let grace = u64::from(rules.out_of_date_grace_days).saturating_mul(SECONDS_PER_DAY);
    let in_grace = tcb.status.is_out_of_date()
        && authentic.time.time.0 <= tcb.date.0.saturating_add(grace)
        && accepted(tcb.status.before_out_of_date());
    if !accepted(tcb.status) && !in_grace {
        let message = format!("the TCB, of {}, is {}", tcb.date, tcb.status);
        reasons.push(Code::TcbStatus, message);
    }
    let current = tcb.current.iter().flat_map(|level| &level.advisories);
    for advisory in &rules.refused_advisories {
        let applies = |own: &String| own.eq_ignore_ascii_case(advisory);
        if tcb.advisories.iter().chain(current.clone()).any(applies) {
            reasons.push(Code::TcbAdvisory, format!("{advisory} applies to the TCB"));
        }
    }
    let (tcb_info, qe_identity) = authentic.evaluation_numbers;
    for (name, number) in [("TCB info", tcb_info), ("QE identity", qe_identity)] {
        let least = rules.min_evaluation_number;
        if number < least {
            let message = format!("the {name} is of TCB evaluation {number}, expected at least {least}");
            reasons.push(Code::TcbEvaluationNumber, message);
        }
    }
    let report = &authentic.report;
    let svns = [
        ("TEE_TCB_SVN", Some(&report.base.tee_tcb_svn)),
        ("TEE_TCB_SVN2", report.v15.as_ref().map(|v15| &v15.tee_tcb_svn2)),
    ];
    let Some(least) = policy.min_tee_tcb_svn else { return };
    for (name, svn) in svns.into_iter().filter_map(|(name, svn)| Some((name, svn?))) {
        if svn.iter().zip(least.0).any(|(own, least)| *own < least) {
            let message = format!("{name} is {}, expected at least {least}, byte by byte", Hex(*svn));
            reasons.push(Code::TeeTcbSvn, message);
        }
    }
}

fn platform(authentic: &Authentic, policy: &Policy, reasons: &mut Reasons) {
    let pck = authentic.pck();
    listed(reasons, Code::Fmspc, "FMSPC", &pck.fmspc.0, policy.fmspc.as_deref());
    match (&pck.platform_instance_id, policy.platform_instance_id.as_deref()) {
        (Some(id), list) => {
            listed(reasons, Code::PlatformInstanceId, "the platform instance ID", &id.0, list)
        }
        (None, Some(_)) => {
            reasons.push(Code::PlatformInstanceId, "the platform's certificate has no platform instance ID");
        }
        (None, None) => {}
    }
    let configuration = pck.configuration;
    let flag = |read: fn(super::pck::PlatformConfiguration) -> bool| configuration.is_some_and(read);
    let rules = &policy.platform;
    for (name, set, rule) in [
        ("dynamic_platform", flag(|own| own.dynamic_platform), rules.dynamic_platform),
        ("cached_keys", flag(|own| own.cached_keys), rules.cached_keys),
        ("smt_enabled", flag(|own| own.smt_enabled), rules.smt_enabled),
    ] {
        let message = match (rule, set) {
            (BitRule::Forbidden, true) => format!("the platform has {name}, which is forbidden"),
            (BitRule::Required, false) => format!("the platform does not have {name}, which is required"),
            _ => continue,
        };
        reasons.push(Code::PlatformConfiguration, message);
    }
}

/// What came with the quote.
fn envelope(authentic: &Authentic, policy: &Policy, reasons: &mut Reasons) {
    let allowed = match policy.quote_padding {
        PaddingRule::None => authentic.padding == Padding::None,
        PaddingRule::Zero => authentic.padding != Padding::Other,
        PaddingRule::Any => true,
    };
    if !allowed {
        reasons.push(Code::QuotePadding, "bytes follow the quote that the policy does not allow");
    }
    if policy.event_log == EventLogRule::Required && authentic.event_log.is_none() {
        reasons.push(Code::EventLogMissing, "an event log is required and none was given");
    }
}

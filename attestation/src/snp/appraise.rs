//! The second question: is this authentic report one that the relying party accepts?

use alloc::format;
use alloc::vec::Vec;
use core::fmt;

use super::authenticate::Authentic;
use super::chain::Revocation;
use super::policy::{AbiVersion, BitRule, Hex, Policy, REVOCATION, RevocationRule};
use super::report::Report;
use crate::verdict::{Code, Reasons};

/// Compares an authentic report with `policy`; returns everything that the policy does not accept.
pub fn appraise(authentic: &Authentic, policy: &Policy) -> Reasons {
    let mut reasons = Reasons::default();
    identity(authentic, policy, &mut reasons);
    signer(authentic, policy, &mut reasons);
    guest(&authentic.report, policy, &mut reasons);
    firmware(&authentic.report, policy, &mut reasons);
    tcb(authentic, policy, &mut reasons);
    revocation(authentic, policy, &mut reasons);
    reasons
}

/// What neither `policy` nor the checks of `authentic` decided. A current CRL decides revocation, asked for or not.
pub(super) fn undecided(authentic: &Authentic, policy: &Policy) -> Vec<&'static str> {
    let checked = matches!(authentic.revocation, Revocation::Checked { .. });
    let mut open = policy.unchecked();
    open.retain(|name| !(checked && *name == REVOCATION));
    open
}

/// Refuses a value that is on no list, unless there is no list.
pub(crate) fn listed<const N: usize>(
    reasons: &mut Reasons,
    code: Code,
    field: &str,
    value: &[u8; N],
    list: Option<&[Hex<N>]>,
) {
    if let Some(list) = list.filter(|list| !list.iter().any(|allowed| allowed.0 == *value)) {
        let value = Hex(*value);
        match list {
            [only] => reasons.push(code, format!("{field} is {value}, expected {only}")),
            _ => reasons.push(code, format!("{field} is {value}, none of the {} allowed", list.len())),
        }
    }
}

fn identity(authentic: &Authentic, policy: &Policy, reasons: &mut Reasons) {
    let report = &authentic.report;
    let report_data = policy.report_data.as_ref().map(core::slice::from_ref);
    listed(reasons, Code::Measurement, "MEASUREMENT", report.measurement(), policy.measurement.as_deref());
    listed(reasons, Code::ReportData, "REPORT_DATA", report.report_data(), report_data);
    listed(reasons, Code::HostData, "HOST_DATA", report.host_data(), policy.host_data.as_deref());
    listed(reasons, Code::FamilyId, "FAMILY_ID", report.family_id(), policy.family_id.as_deref());
    listed(reasons, Code::ImageId, "IMAGE_ID", report.image_id(), policy.image_id.as_deref());
    let list = policy.id_key_digest.as_deref();
    listed(reasons, Code::IdKeyDigest, "ID_KEY_DIGEST", report.id_key_digest(), list);
    let list = policy.author_key_digest.as_deref();
    if list.is_some() && !report.author_key_en() {
        reasons.push(Code::AuthorKeyDigest, "no author key signed the guest's ID key");
    } else {
        listed(reasons, Code::AuthorKeyDigest, "AUTHOR_KEY_DIGEST", report.author_key_digest(), list);
    }
    listed(reasons, Code::ReportId, "REPORT_ID", report.report_id(), policy.report_id.as_deref());
    listed(reasons, Code::ReportIdMa, "REPORT_ID_MA", report.report_id_ma(), policy.report_id_ma.as_deref());
    listed(reasons, Code::ChipId, "CHIP_ID", report.chip_id(), policy.chip_id.as_deref());
    if authentic.chip_id_masked && !policy.allow_masked_chip_id {
        reasons
            .push(Code::ChipIdMasked, "the host masks CHIP_ID, so the report could be of any chip's guest");
    }
}

fn signer(authentic: &Authentic, policy: &Policy, reasons: &mut Reasons) {
    let vek = authentic.vek();
    if policy.product.as_ref().is_some_and(|list| !list.contains(&vek.product)) {
        reasons.push(Code::Product, format!("the processor is a {}", vek.product));
    }
    if !policy.signing_key.contains(&vek.kind) {
        reasons.push(Code::SigningKey, format!("a {} signed the report", vek.kind.name()));
    }
    match (&policy.csp_id, &vek.csp_id) {
        (Some(_), None) => {
            let message = format!("a {} signed the report, which is no provider's", vek.kind.name());
            reasons.push(Code::CspId, message);
        }
        (Some(list), Some(id)) if !list.contains(id) => {
            reasons.push(Code::CspId, format!("the {} is that of {id:?}", vek.kind.name()));
        }
        _ => {}
    }
}

/// Refuses a value outside of its bounds, as far as there are any.
fn within<T: PartialOrd + fmt::Display>(
    reasons: &mut Reasons,
    code: Code,
    field: &str,
    value: T,
    (least, most): (Option<T>, Option<T>),
) {
    if let Some(least) = least.filter(|least| value < *least) {
        reasons.push(code, format!("{field} is {value}, expected at least {least}"));
    }
    if let Some(most) = most.filter(|most| value > *most) {
        reasons.push(code, format!("{field} is {value}, expected at most {most}"));
    }
}

fn guest(report: &Report, policy: &Policy, reasons: &mut Reasons) {
    let bounds = (Some(policy.min_report_version), policy.max_report_version);
    within(reasons, Code::ReportVersion, "the report's version", report.version(), bounds);
    let bounds = (Some(policy.min_guest_svn), policy.max_guest_svn);
    within(reasons, Code::GuestSvn, "GUEST_SVN", report.guest_svn(), bounds);
    if !policy.vmpl.contains(&report.vmpl()) {
        let message = format!("VMPL {} asked for the report, allowed are {:?}", report.vmpl(), policy.vmpl);
        reasons.push(Code::Vmpl, message);
    }
    let bits = report.guest_policy();
    for (name, set, rule) in policy.guest_policy.rules(bits) {
        match (rule, set) {
            (BitRule::Forbidden, true) => reasons.push(
                Code::GuestPolicyForbidden,
                format!("the guest policy {:#x} sets {name}, which is forbidden", bits.0),
            ),
            (BitRule::Required, false) => reasons.push(
                Code::GuestPolicyRequired,
                format!("the guest policy {:#x} does not set {name}, which is required", bits.0),
            ),
            _ => {}
        }
    }
    // The ABI's own demand, which no rule about unknown bits waives.
    if !bits.has_must_be_one() {
        let message = format!("the guest policy {:#x} clears bit 17, which must be one", bits.0);
        reasons.push(Code::GuestPolicyRequired, message);
    }
    let abi = AbiVersion { major: bits.abi_major(), minor: bits.abi_minor() };
    let bounds = (policy.guest_policy.min_abi, policy.guest_policy.max_abi);
    within(reasons, Code::GuestPolicyAbi, "the ABI that the guest policy demands", abi, bounds);
}

fn firmware(report: &Report, policy: &Policy, reasons: &mut Reasons) {
    let bits = report.platform_info();
    for (name, set, rule) in policy.platform_info.rules(bits) {
        match (rule, set) {
            (BitRule::Forbidden, true) => reasons.push(
                Code::PlatformInfoForbidden,
                format!("PLATFORM_INFO {:#x} sets {name}, which is forbidden", bits.0),
            ),
            (BitRule::Required, false) => reasons.push(
                Code::PlatformInfoRequired,
                format!("PLATFORM_INFO {:#x} does not set {name}, which is required", bits.0),
            ),
            _ => {}
        }
    }
    let (current, committed) = (report.current_version(), report.committed_version());
    let same_tcb = report.current_tcb() == report.committed_tcb();
    if !policy.allow_provisional_firmware && (current != committed || !same_tcb) {
        let message = format!(
            "firmware {current} (TCB {}) runs and the host has committed to {committed} (TCB {}) only",
            Hex(report.current_tcb().0),
            Hex(report.committed_tcb().0)
        );
        reasons.push(Code::FirmwareProvisional, message);
    }
    // Provisional or not, nobody commits to firmware that has not run yet.
    if committed > current {
        let message = format!("the host has committed to firmware {committed}, above {current}, which runs");
        reasons.push(Code::TcbOrder, message);
    }
    let rules = &policy.firmware;
    for (field, version, bounds) in [
        ("the current firmware", current, (rules.min_current, rules.max_current)),
        ("the committed firmware", committed, (rules.min_committed, rules.max_committed)),
    ] {
        within(reasons, Code::FirmwareVersion, field, version, bounds);
    }
    mitigation(reasons, "launch", report.launch_mit_vector(), policy.mitigations.launch);
    mitigation(reasons, "current", report.current_mit_vector(), policy.mitigations.current);
}

fn mitigation(reasons: &mut Reasons, name: &str, vector: Option<u64>, required: u64) {
    let missing = required & !vector.unwrap_or_default();
    if missing != 0 {
        let has: &dyn fmt::Display = match &vector {
            Some(vector) => &format!("{vector:#x}"),
            None => &"not in a report of this version",
        };
        let message = format!("the {name} mitigation vector is {has}, bits {missing:#x} are missing");
        reasons.push(Code::Mitigation, message);
    }
}

fn tcb(authentic: &Authentic, policy: &Policy, reasons: &mut Reasons) {
    let (report, product) = (&authentic.report, authentic.vek().product);
    let versions = [
        ("REPORTED_TCB", report.reported_tcb()),
        ("COMMITTED_TCB", report.committed_tcb()),
        ("CURRENT_TCB", report.current_tcb()),
        ("LAUNCH_TCB", report.launch_tcb()),
    ];
    // The launch may have run on anything up to what runs now.
    for (name, version) in versions {
        for (part, current, own) in report.current_tcb().below(version, product) {
            let part = part.name();
            let message = format!("{name} has {part} {own}, above CURRENT_TCB's {current}");
            reasons.push(Code::TcbOrder, message);
        }
    }
    let Some(rules) = policy.tcb.get(&product) else {
        if !policy.tcb.is_empty() {
            reasons.push(Code::TcbNoMinimum, format!("the policy has no TCB minimum for {product}"));
        }
        return;
    };
    let bounds = [
        (rules.reported, rules.max_reported),
        (rules.committed, rules.max_committed),
        (rules.current, rules.max_current),
        (rules.launch, rules.max_launch),
    ];
    for ((name, version), (minimum, maximum)) in versions.into_iter().zip(bounds) {
        let level = |part| version.level(product, part).unwrap_or_default();
        for (part, least) in minimum.parts() {
            let bounds = (Some(least), None);
            within(reasons, Code::TcbTooLow, &format!("{name}'s {}", part.name()), level(part), bounds);
        }
        for (part, most) in maximum.parts() {
            let bounds = (None, most);
            within(reasons, Code::TcbTooHigh, &format!("{name}'s {}", part.name()), level(part), bounds);
        }
    }
}

fn revocation(authentic: &Authentic, policy: &Policy, reasons: &mut Reasons) {
    let (root, time) = (authentic.root().common_name(), authentic.time);
    match (authentic.revocation, policy.revocation) {
        // Whoever gives CRLs wants revocation checked: wrong ones are not as good as none.
        (Revocation::Inapplicable, RevocationRule::IfGiven) => {
            let message = format!("CRLs were given, and none is of {root}, the root of this chain");
            return reasons.push(Code::CrlInapplicable, message);
        }
        (_, RevocationRule::IfGiven | RevocationRule::Optional) => return,
        (_, RevocationRule::Required) => {}
    }
    match authentic.revocation {
        Revocation::Checked { .. } => {}
        Revocation::NotChecked | Revocation::Inapplicable => {
            reasons.push(Code::CrlMissing, format!("no CRL of {root} was given"));
        }
        Revocation::Stale { this_update, .. } if time.is_before(this_update) => {
            let message = format!("the CRL of {root} was issued at {this_update}, and it is {time}");
            reasons.push(Code::CrlNotYetValid, message);
        }
        Revocation::Stale { next_update: Some(next_update), .. } => {
            let message = format!("the CRL of {root} was to be replaced by {next_update}, and it is {time}");
            reasons.push(Code::CrlExpired, message);
        }
        Revocation::Stale { next_update: None, .. } => {
            reasons.push(Code::CrlExpired, format!("the CRL of {root} does not say how long it holds"));
        }
    }
}

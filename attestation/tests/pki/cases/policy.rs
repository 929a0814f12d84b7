//! Authentic evidence that a policy does not accept.

use super::*;

pub const POLICY: &[Case] = &[
    ("debug", |s| s.report[0x0a] |= 8, &["guest-policy-forbidden"]),
    ("migration agent", |s| s.report[0x0a] |= 4, &["guest-policy-forbidden"]),
    ("CXL", |s| s.report[0x0a] |= 0x20, &["guest-policy-forbidden"]),
    ("unknown guest policy bit", |s| s.report[0x0f] |= 0x80, &["guest-policy-forbidden"]),
    (
        "unknown guest policy bit allowed",
        |s| {
            s.report[0x0f] |= 0x80;
            s.policy.guest_policy.unknown = UnknownBitRule::Allowed;
        },
        &[],
    ),
    ("bit 17 of the guest policy clear", |s| s.report[0x0a] &= !2, &["guest-policy-required"]),
    (
        "bit 17 clear and unknown bits allowed",
        |s| {
            s.report[0x0a] &= !2;
            s.policy.guest_policy.unknown = UnknownBitRule::Allowed;
        },
        &["guest-policy-required"],
    ),
    ("SMT forbidden", |s| s.policy.guest_policy.smt = BitRule::Forbidden, &["guest-policy-forbidden"]),
    (
        "single socket required",
        |s| s.policy.guest_policy.single_socket = BitRule::Required,
        &["guest-policy-required"],
    ),
    (
        "ABI too low",
        |s| {
            s.policy = serde_json::from_str(r#"{"guest_policy": {"min_abi": "1.51"}}"#).unwrap();
            s.set(0x08, &[50, 1]);
        },
        &["guest-policy-abi"],
    ),
    ("unknown platform bit", |s| s.report[0x41] = 1, &["platform-info-forbidden"]),
    (
        "SMT machine forbidden",
        |s| s.policy.platform_info.smt_en = BitRule::Forbidden,
        &["platform-info-forbidden"],
    ),
    (
        "alias check required",
        |s| {
            s.policy.platform_info.alias_check_complete = BitRule::Required;
            s.report[0x40] &= !0x20;
        },
        &["platform-info-required"],
    ),
    ("VMPL 1", |s| s.report[0x30] = 1, &["vmpl"]),
    (
        "ABI too high",
        |s| {
            s.policy = serde_json::from_str(r#"{"guest_policy": {"max_abi": "1.51"}}"#).unwrap();
            s.set(0x08, &[52, 1]);
        },
        &["guest-policy-abi"],
    ),
    (
        "exactly this ABI",
        |s| {
            s.policy =
                serde_json::from_str(r#"{"guest_policy": {"min_abi": "1.51", "max_abi": "1.51"}}"#).unwrap();
            s.set(0x08, &[51, 1]);
        },
        &[],
    ),
    ("guest SVN too high", |s| guest_svn(s, 6), &["guest-svn"]),
    ("exactly this guest SVN", |s| guest_svn(s, 5), &[]),
    ("guest SVN below exactly this", |s| guest_svn(s, 4), &["guest-svn"]),
    ("report version as high as allowed", |s| s.policy.max_report_version = Some(s.report[0].into()), &[]),
    (
        "newest report version forbidden",
        |s| s.policy.max_report_version = Some(u32::from(s.report[0]) - 1),
        &["report-version"],
    ),
    (
        "current firmware too new",
        |s| s.policy.firmware.max_current = Some(firmware(1, 55, 39)),
        &["firmware-version"],
    ),
    (
        "committed firmware too new",
        |s| s.policy.firmware.max_committed = Some(firmware(1, 54, 255)),
        &["firmware-version"],
    ),
    (
        "exactly this firmware",
        |s| {
            let version = Some(firmware(1, 55, 40));
            let rules = &mut s.policy.firmware;
            (rules.min_current, rules.max_current) = (version, version);
            (rules.min_committed, rules.max_committed) = (version, version);
        },
        &[],
    ),
    ("reported SNP too high", |s| snp_at_most(s, -1, |r, max| r.max_reported = max), &["tcb-too-high"]),
    ("committed SNP too high", |s| snp_at_most(s, -1, |r, max| r.max_committed = max), &["tcb-too-high"]),
    ("current SNP too high", |s| snp_at_most(s, -1, |r, max| r.max_current = max), &["tcb-too-high"]),
    ("launch SNP too high", |s| snp_at_most(s, -1, |r, max| r.max_launch = max), &["tcb-too-high"]),
    ("SNP just low enough", |s| snp_at_most(s, 0, |r, max| (r.max_reported, r.max_launch) = (max, max)), &[]),
    (
        "exactly another SNP",
        |s| snp_at_most(s, 1, |r, max| (r.max_current, r.current.snp) = (max, max.snp.unwrap())),
        &["tcb-too-low"],
    ),
    ("guest SVN", |s| s.policy.min_guest_svn = 1, &["guest-svn"]),
    ("report version", |s| s.policy.min_report_version = 6, &["report-version"]),
    ("measurement", |s| s.policy.measurement = Some(vec![Hex([0; 48])]), &["measurement"]),
    ("no measurement allowed", |s| s.policy.measurement = Some(vec![]), &["measurement"]),
    ("report data", |s| s.policy.report_data = Some(Hex([0; 64])), &["report-data"]),
    (
        "end of report data",
        |s| {
            s.policy.report_data = Some(Hex([0xda; 64]));
            s.report[0x8f] ^= 1;
        },
        &["report-data"],
    ),
    ("all of report data as expected", |s| s.policy.report_data = Some(Hex([0xda; 64])), &[]),
    ("host data", |s| s.policy.host_data = Some(vec![Hex([1; 32])]), &["host-data"]),
    ("family ID", |s| s.policy.family_id = Some(vec![Hex([1; 16])]), &["family-id"]),
    ("image ID", |s| s.policy.image_id = Some(vec![Hex([1; 16])]), &["image-id"]),
    ("ID key", |s| s.policy.id_key_digest = Some(vec![Hex([1; 48])]), &["id-key-digest"]),
    (
        "author key",
        |s| {
            s.report[0x48] |= 1;
            s.policy.author_key_digest = Some(vec![Hex([1; 48])]);
        },
        &["author-key-digest"],
    ),
    ("no author key", |s| s.policy.author_key_digest = Some(vec![Hex([0; 48])]), &["author-key-digest"]),
    ("report ID", |s| s.policy.report_id = Some(vec![Hex([1; 32])]), &["report-id"]),
    ("report ID of the agent", |s| s.policy.report_id_ma = Some(vec![Hex([1; 32])]), &["report-id-ma"]),
    ("chip", |s| s.policy.chip_id = Some(vec![Hex([1; 64])]), &["chip-id"]),
    ("chip masked", |s| s.set(0x1a0, &[0; 64]), &["chip-id-masked"]),
    (
        "chip masked and allowed",
        |s| {
            s.set(0x1a0, &[0; 64]);
            s.policy.allow_masked_chip_id = true;
        },
        &[],
    ),
    ("no product allowed", |s| s.policy.product = Some(vec![]), &["product"]),
    (
        "a provider's key wanted, a chip's given",
        |s| s.policy.csp_id = Some(vec!["CN=cloud.example".into()]),
        &["csp-id"],
    ),
    ("VCEK not allowed", |s| s.policy.signing_key = vec![VekKind::Vlek], &["signing-key"]),
    ("provisional TCB", |s| s.report[0x1e0 + 7] -= 1, &["firmware-provisional"]),
    ("provisional firmware", |s| s.report[0x1ec] -= 1, &["firmware-provisional"]),
    (
        "provisional and allowed",
        |s| {
            s.report[0x1ec] -= 1;
            s.policy.allow_provisional_firmware = true;
        },
        &[],
    ),
    (
        "committed above what runs",
        |s| {
            s.report[0x1ec] += 1;
            s.policy.allow_provisional_firmware = true;
        },
        &["tcb-order"],
    ),
    (
        "committed to a minor version above what runs",
        |s| {
            s.report[0x1ed] += 1;
            s.report[0x1ec] = 0;
        },
        &["firmware-provisional", "tcb-order"],
    ),
    (
        "current firmware too old",
        |s| s.policy.firmware.min_current = Some(firmware(1, 55, 41)),
        &["firmware-version"],
    ),
    (
        "committed firmware too old",
        |s| s.policy.firmware.min_committed = Some(firmware(2, 0, 0)),
        &["firmware-version"],
    ),
    ("firmware just right", |s| s.policy.firmware.min_current = Some(firmware(1, 55, 40)), &[]),
    ("launch TCB above current", |s| s.report[0x1f0 + 7] += 1, &["tcb-order"]),
    (
        "reported above current",
        |s| {
            s.report[0x38] -= 1;
            s.report[0x1e0] -= 1;
            s.report[0x1f0] -= 1;
        },
        &["tcb-order"],
    ),
    ("reported microcode too low", |s| tcb(s, |r, min| r.reported = min), &["tcb-too-low"]),
    ("committed microcode too low", |s| tcb(s, |r, min| r.committed = min), &["tcb-too-low"]),
    ("current microcode too low", |s| tcb(s, |r, min| r.current = min), &["tcb-too-low"]),
    ("launch microcode too low", |s| tcb(s, |r, min| r.launch = min), &["tcb-too-low"]),
    (
        "no minimum for the product",
        |s| {
            let other = if s.product == Product::Milan { Product::Genoa } else { Product::Milan };
            s.policy.tcb.insert(other, TcbRules::default());
        },
        &["tcb-no-minimum"],
    ),
    ("launch mitigation", |s| s.policy.mitigations.launch = 0x10, &["mitigation"]),
    ("current mitigation", |s| s.policy.mitigations.current = 0x100, &["mitigation"]),
];

fn firmware(major: u8, minor: u8, build: u8) -> FirmwareVersion {
    FirmwareVersion { major, minor, build }
}

/// A guest of this version, where exactly 5 is wanted.
fn guest_svn(scenario: &mut Scenario, svn: u8) {
    scenario.report[4] = svn;
    (scenario.policy.min_guest_svn, scenario.policy.max_guest_svn) = (5, Some(5));
}

/// A maximum for SNP, so much above what the report has.
fn snp_at_most(scenario: &mut Scenario, above: i8, place: fn(&mut TcbRules, TcbMaximum)) {
    let product = scenario.product;
    let at = product.tcb_layout().iter().position(|part| *part == TcbPart::Snp).unwrap();
    let level = scenario.report[0x180 + at].checked_add_signed(above);
    let mut rules = TcbRules::default();
    place(&mut rules, TcbMaximum { snp: level, ..TcbMaximum::default() });
    scenario.policy.tcb.insert(product, rules);
}

fn tcb(scenario: &mut Scenario, place: fn(&mut TcbRules, TcbMinimum)) {
    let mut rules = TcbRules::default();
    place(&mut rules, TcbMinimum { microcode: 220, ..TcbMinimum::default() });
    scenario.policy.tcb.insert(scenario.product, rules);
}

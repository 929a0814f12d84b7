//! What a policy refuses in evidence that is authentic.

use cloister_attestation::snp::{BitRule, Hex};
use cloister_attestation::tdx::{PaddingRule, TcbStatus};

use super::{Case, svn};
use crate::tdx_pki::quote::*;
use crate::tdx_pki::{FMSPC, SgxExtension};

pub const POLICY: &[Case] = &[
    ("MRTD on the list", |s| s.policy.mrtd = Some(vec![Hex([0; 48]), Hex([0x3e; 48])]), &[]),
    ("MRTD not on the list", |s| s.policy.mrtd = Some(vec![Hex([0; 48])]), &["mrtd"]),
    (
        "RTMRs on the lists",
        |s| {
            s.policy.rtmr0 = Some(vec![Hex([0xa0; 48])]);
            s.policy.rtmr1 = Some(vec![Hex([0xa1; 48])]);
            s.policy.rtmr2 = Some(vec![Hex([0xa2; 48])]);
            s.policy.rtmr3 = Some(vec![Hex([0xa3; 48])]);
        },
        &[],
    ),
    ("RTMR0 not on the list", |s| s.policy.rtmr0 = Some(vec![Hex([0xa1; 48])]), &["rtmr"]),
    ("RTMR1 not on the list", |s| s.policy.rtmr1 = Some(vec![]), &["rtmr"]),
    ("RTMR2 not on the list", |s| s.policy.rtmr2 = Some(vec![]), &["rtmr"]),
    ("RTMR3 not on the list", |s| s.policy.rtmr3 = Some(vec![]), &["rtmr"]),
    ("report data as expected", |s| s.policy.report_data = Some(Hex([0xda; 64])), &[]),
    ("report data of another question", |s| s.policy.report_data = Some(Hex([0; 64])), &["report-data"]),
    ("report data that begins as expected", |s| s.quote.set(REPORT_DATA + 32, &[0; 32]), &[]),
    (
        "report data as expected in its first half only",
        |s| {
            s.quote.set(REPORT_DATA + 63, &[0]);
            s.policy.report_data = Some(Hex([0xda; 64]));
        },
        &["report-data"],
    ),
    ("module not on the list", |s| s.policy.mrseam = Some(vec![Hex([0; 48])]), &["mrseam"]),
    ("module on the list", |s| s.policy.mrseam = Some(vec![Hex([0x5e; 48])]), &[]),
    (
        "MRCONFIGID not on the list",
        |s| {
            s.quote.set(MRCONFIGID, &[1]);
            s.policy.mrconfigid = Some(vec![Hex([0; 48])]);
        },
        &["mrconfigid"],
    ),
    (
        "MROWNER not on the list",
        |s| {
            s.quote.set(MROWNER, &[1]);
            s.policy.mrowner = Some(vec![Hex([0; 48])]);
        },
        &["mrowner"],
    ),
    (
        "MROWNERCONFIG not on the list",
        |s| {
            s.quote.set(MROWNERCONFIG, &[1]);
            s.policy.mrownerconfig = Some(vec![Hex([0; 48])]);
        },
        &["mrownerconfig"],
    ),
    ("XFAM not on the list", |s| s.policy.xfam = Some(vec![Hex([3, 0, 0, 0, 0, 0, 0, 0])]), &["xfam"]),
    ("XFAM on the list", |s| s.policy.xfam = Some(vec![Hex([0xe7, 2, 6, 0, 0, 0, 0, 0])]), &[]),
    ("debug", |s| s.quote.set(TD_ATTRIBUTES, &[1]), &["td-attributes-forbidden"]),
    (
        "debug, allowed",
        |s| {
            s.quote.set(TD_ATTRIBUTES, &[1]);
            s.policy.td_attributes.debug = BitRule::Allowed;
        },
        &[],
    ),
    ("profiling", |s| s.quote.set(TD_ATTRIBUTES, &[0x20]), &["td-attributes-forbidden"]),
    ("migratable", |s| s.quote.set(TD_ATTRIBUTES + 3, &[0x30]), &["td-attributes-forbidden"]),
    ("PKS", |s| s.quote.set(TD_ATTRIBUTES + 3, &[0x50]), &[]),
    (
        "PKS, forbidden",
        |s| {
            s.quote.set(TD_ATTRIBUTES + 3, &[0x50]);
            s.policy.td_attributes.pks = BitRule::Forbidden;
        },
        &["td-attributes-forbidden"],
    ),
    ("PERFMON", |s| s.quote.set(TD_ATTRIBUTES + 7, &[0x80]), &[]),
    (
        "PERFMON, forbidden",
        |s| {
            s.quote.set(TD_ATTRIBUTES + 7, &[0x80]);
            s.policy.td_attributes.perfmon = BitRule::Forbidden;
        },
        &["td-attributes-forbidden"],
    ),
    (
        "an attribute that nobody knows",
        |s| s.quote.set(TD_ATTRIBUTES + 5, &[1]),
        &["td-attributes-forbidden"],
    ),
    ("no SEPT_VE_DISABLE", |s| s.quote.set(TD_ATTRIBUTES + 3, &[0]), &["td-attributes-required"]),
    (
        "no SEPT_VE_DISABLE, allowed",
        |s| {
            s.quote.set(TD_ATTRIBUTES + 3, &[0]);
            s.policy.td_attributes.sept_ve_disable = BitRule::Allowed;
        },
        &[],
    ),
    (
        "TEE_TCB_SVN too low",
        |s| {
            let mut least = [0; 16];
            least[2] = 4;
            s.policy.min_tee_tcb_svn = Some(Hex(least));
        },
        &["tee-tcb-svn"],
    ),
    (
        "TEE_TCB_SVN high enough",
        |s| {
            let mut least = [0; 16];
            least[2] = 3;
            s.policy.min_tee_tcb_svn = Some(Hex(least));
        },
        &[],
    ),
    (
        "advisory that is refused",
        |s| {
            svn(s, &[4, 1, 3]);
            s.policy.tcb.accepted.push(TcbStatus::OutOfDate);
            s.policy.tcb.refused_advisories = vec!["intel-sa-00002".into()];
        },
        &["tcb-advisory"],
    ),
    (
        "advisory that does not apply",
        |s| s.policy.tcb.refused_advisories = vec!["INTEL-SA-00002".into()],
        &[],
    ),
    ("evaluation too old", |s| s.policy.tcb.min_evaluation_number = 19, &["tcb-evaluation-number"]),
    (
        "QE identity's evaluation too old",
        |s| {
            s.qe_identity.value["tcbEvaluationDataNumber"] = 17.into();
            s.policy.tcb.min_evaluation_number = 18;
        },
        &["tcb-evaluation-number"],
    ),
    (
        "platform not on the list",
        |s| {
            s.policy.platform_instance_id = Some(vec![Hex([0; 16])]);
        },
        &["platform-instance-id"],
    ),
    ("platform on the list", |s| s.policy.platform_instance_id = Some(vec![Hex([0x66; 16])]), &[]),
    (
        "platform without an ID and a list",
        |s| {
            s.sgx(SgxExtension::default().without("6"));
            s.policy.platform_instance_id = Some(vec![Hex([0; 16])]);
        },
        &["platform-instance-id"],
    ),
    ("model not on the list", |s| s.policy.fmspc = Some(vec![Hex([0; 6])]), &["fmspc"]),
    ("model on the list", |s| s.policy.fmspc = Some(vec![Hex(FMSPC)]), &[]),
    ("SMT, forbidden", |s| s.policy.platform.smt_enabled = BitRule::Forbidden, &["platform-configuration"]),
    (
        "dynamic platform, forbidden",
        |s| {
            s.policy.platform.dynamic_platform = BitRule::Forbidden;
        },
        &["platform-configuration"],
    ),
    (
        "cached keys, required",
        |s| s.policy.platform.cached_keys = BitRule::Required,
        &["platform-configuration"],
    ),
    ("zeros behind the quote", |s| s.quote.padding = vec![0; 3000], &[]),
    (
        "zeros behind the quote, none allowed",
        |s| {
            s.quote.padding = vec![0];
            s.policy.quote_padding = PaddingRule::None;
        },
        &["quote-padding"],
    ),
    ("something behind the quote", |s| s.quote.padding = vec![0, 1], &["quote-padding"]),
    (
        "something behind the quote, allowed",
        |s| {
            s.quote.padding = vec![0, 1];
            s.policy.quote_padding = PaddingRule::Any;
        },
        &[],
    ),
];

/// Those that only TD reports of TDX 1.0 can have.
pub const TDX_1_0: &[Case] = &[
    ("an empty list of service TDs and no field", |s| s.policy.mrservicetd = Some(vec![]), &["mrservicetd"]),
    (
        "a list of service TDs and no field",
        |s| s.policy.mrservicetd = Some(vec![Hex([1; 48])]),
        &["mrservicetd"],
    ),
    (
        "a list with no service TD and no field",
        |s| s.policy.mrservicetd = Some(vec![Hex([0; 48])]),
        &["mrservicetd"],
    ),
    ("no list of service TDs and no field", |_| (), &[]),
];

/// Those that only TD reports of TDX 1.5 can have.
pub const TDX_1_5: &[Case] = &[
    ("launched out of date, updated since", |s| s.quote.set(TEE_TCB_SVN, &[4, 1, 3]), &["tcb-status"]),
    (
        "launched out of date, updated since, accepted",
        |s| {
            s.quote.set(TEE_TCB_SVN, &[4, 1, 3]);
            s.policy.tcb.accepted.push(TcbStatus::TDRelaunchAdvised);
        },
        &[],
    ),
    (
        "launched out of date, updated since, configuration needed",
        |s| {
            s.quote.set(TEE_TCB_SVN, &[4, 1, 3]);
            s.tcb_info.value["tcbLevels"][0]["tcbStatus"] = "ConfigurationNeeded".into();
            s.policy.tcb.accepted.push(TcbStatus::TDRelaunchAdvised);
        },
        &["tcb-status"],
    ),
    (
        "out of date now and not at launch, within its grace",
        |s| {
            s.quote.set(TEE_TCB_SVN2, &[4, 1, 3]);
            s.tcb_info.value["tdxModuleIdentities"][1]["tcbLevels"][1]["tcbDate"] =
                "2026-09-01T00:00:00Z".into();
            s.policy.tcb.out_of_date_grace_days = 82;
        },
        &[],
    ),
    (
        "out of date now and not at launch, beyond its grace",
        |s| {
            s.quote.set(TEE_TCB_SVN2, &[4, 1, 3]);
            s.tcb_info.value["tdxModuleIdentities"][1]["tcbLevels"][1]["tcbDate"] =
                "2026-09-01T00:00:00Z".into();
            s.policy.tcb.out_of_date_grace_days = 81;
        },
        &["tcb-status"],
    ),
    (
        "the platform out of date at launch and now, the module longer and only now",
        |s| {
            s.quote.set(TEE_TCB_SVN, &[6, 1, 2]);
            s.quote.set(TEE_TCB_SVN2, &[4, 1, 2]);
            s.tcb_info.value["tdxModuleIdentities"][1]["tcbLevels"][1]["tcbDate"] =
                "2026-09-01T00:00:00Z".into();
            s.policy.tcb.out_of_date_grace_days = 81;
        },
        &["tcb-status"],
    ),
    ("launched revoked, updated since", |s| s.quote.set(TEE_TCB_SVN, &[2, 1, 3]), &["tcb-revoked"]),
    ("out of date now", |s| s.quote.set(TEE_TCB_SVN2, &[4, 1, 3]), &["tcb-status"]),
    ("revoked now", |s| s.quote.set(TEE_TCB_SVN2, &[2, 1, 3]), &["tcb-revoked"]),
    ("below every level now", |s| s.quote.set(TEE_TCB_SVN2, &[1, 1, 3]), &["tcb-level"]),
    ("of a module now that nobody knows", |s| s.quote.set(TEE_TCB_SVN2, &[6, 2, 3]), &["tcb-level"]),
    (
        "advisory to what runs now",
        |s| {
            s.quote.set(TEE_TCB_SVN2, &[4, 1, 3]);
            s.policy.tcb.accepted.push(TcbStatus::OutOfDate);
            s.policy.tcb.refused_advisories = vec!["INTEL-SA-00002".into()];
        },
        &["tcb-advisory"],
    ),
    (
        "TEE_TCB_SVN2 too low",
        |s| {
            s.quote.set(TEE_TCB_SVN, &[7, 1, 3]);
            let mut least = [0; 16];
            least[0] = 7;
            s.policy.min_tee_tcb_svn = Some(Hex(least));
        },
        &["tee-tcb-svn"],
    ),
    ("a service TD", |s| s.quote.set(MRSERVICETD, &[1]), &["mrservicetd"]),
    (
        "a service TD on the list",
        |s| {
            s.quote.set(MRSERVICETD, &[1; 48]);
            s.policy.mrservicetd = Some(vec![Hex([1; 48])]);
        },
        &[],
    ),
    ("no service TD and an empty list", |s| s.policy.mrservicetd = Some(vec![]), &["mrservicetd"]),
    ("no service TD on the list", |s| s.policy.mrservicetd = Some(vec![Hex([0; 48])]), &[]),
    (
        "no service TD where one must be",
        |s| s.policy.mrservicetd = Some(vec![Hex([1; 48])]),
        &["mrservicetd"],
    ),
];

/// Those that only TD reports of TDX 1.5ex can have.
pub const TDX_1_5_EX: &[Case] = &[
    ("extended service TDs", |s| s.quote.set(TD_ATTRIBUTES + 2, &[2]), &["td-attributes-forbidden"]),
    (
        "another service TD now than at launch",
        |s| {
            s.quote.set(TD_ATTRIBUTES + 2, &[2]);
            s.policy.td_attributes.servtd_ext = BitRule::Allowed;
            s.quote.set(MRSERVICETD, &[1; 48]);
            s.quote.set(CUR_SERVTD_HASH, &[2; 48]);
            s.policy.mrservicetd = Some(vec![Hex([1; 48])]);
        },
        &["mrservicetd"],
    ),
    (
        "service TDs of then and now on the list",
        |s| {
            s.quote.set(TD_ATTRIBUTES + 2, &[2]);
            s.policy.td_attributes.servtd_ext = BitRule::Allowed;
            s.quote.set(MRSERVICETD, &[1; 48]);
            s.quote.set(CUR_SERVTD_HASH, &[2; 48]);
            s.policy.mrservicetd = Some(vec![Hex([1; 48]), Hex([2; 48])]);
        },
        &[],
    ),
];

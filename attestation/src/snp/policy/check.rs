//! What no policy can mean.

use alloc::format;

use super::{Policy, TcbMaximum, TcbMinimum};
use crate::contradiction::{Check, PolicyError, allows_something, clock_tolerance, ordered, possible};
use crate::snp::report::Report;
use crate::snp::tcb::Product;

/// VMPLs that processors have.
const VMPL_MAX: u32 = 3;

impl Policy {
    /// Refuses a policy that can accept nothing, with the field's name. Reading one does this by itself.
    pub fn check(&self) -> Result<(), PolicyError> {
        self.check_lists()?;
        self.vmpl.iter().try_for_each(|&vmpl| possible("vmpl", vmpl, 0, VMPL_MAX))?;
        let (oldest, newest) = (*Report::VERSIONS.start(), *Report::VERSIONS.end());
        // 0 and 1 are minima that everything meets.
        possible("min_report_version", self.min_report_version, 0, newest)?;
        if let Some(max) = self.max_report_version {
            possible("max_report_version", max, oldest, u32::MAX)?;
        }
        ordered(
            ("min_report_version", Some(self.min_report_version)),
            ("max_report_version", self.max_report_version),
        )?;
        ordered(("min_guest_svn", Some(self.min_guest_svn)), ("max_guest_svn", self.max_guest_svn))?;
        let abi = &self.guest_policy;
        ordered(("guest_policy.min_abi", abi.min_abi), ("guest_policy.max_abi", abi.max_abi))?;
        let firmware = &self.firmware;
        ordered(
            ("firmware.min_current", firmware.min_current),
            ("firmware.max_current", firmware.max_current),
        )?;
        ordered(
            ("firmware.min_committed", firmware.min_committed),
            ("firmware.max_committed", firmware.max_committed),
        )?;
        for (product, rules) in &self.tcb {
            tcb(*product, "reported", rules.reported, rules.max_reported)?;
            tcb(*product, "committed", rules.committed, rules.max_committed)?;
            tcb(*product, "current", rules.current, rules.max_current)?;
            tcb(*product, "launch", rules.launch, rules.max_launch)?;
        }
        clock_tolerance(self.clock_tolerance_seconds)
    }

    fn check_lists(&self) -> Check {
        allows_something("measurement", self.measurement.as_deref())?;
        allows_something("host_data", self.host_data.as_deref())?;
        allows_something("family_id", self.family_id.as_deref())?;
        allows_something("image_id", self.image_id.as_deref())?;
        allows_something("id_key_digest", self.id_key_digest.as_deref())?;
        allows_something("author_key_digest", self.author_key_digest.as_deref())?;
        allows_something("report_id", self.report_id.as_deref())?;
        allows_something("report_id_ma", self.report_id_ma.as_deref())?;
        allows_something("chip_id", self.chip_id.as_deref())?;
        allows_something("csp_id", self.csp_id.as_deref())?;
        allows_something("product", self.product.as_deref())?;
        allows_something("signing_key", Some(&self.signing_key))?;
        allows_something("vmpl", Some(&self.vmpl))
    }
}

fn tcb(product: Product, version: &str, minimum: TcbMinimum, maximum: TcbMaximum) -> Check {
    let table = format!("tcb.{}", product.name().to_ascii_lowercase());
    for ((part, least), (_, most)) in minimum.parts().into_iter().zip(maximum.parts()) {
        let name = part.name();
        let least_field = format!("{table}.{version}.{name}");
        // A minimum for a part that the product does not have is met by no report.
        if least > 0 && !product.tcb_layout().contains(&part) {
            let why = format!("the TCB version of {product} has no {name}");
            return Err(PolicyError { field: least_field, why });
        }
        ordered((&least_field, Some(least)), (&format!("{table}.max_{version}.{name}"), most))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_accept_nothing_is_refused_with_its_field() {
        for (text, field) in [
            (r#"{"vmpl": [256]}"#, "vmpl: 256"),
            (r#"{"vmpl": [0, 4]}"#, "vmpl: 4"),
            (r#"{"vmpl": []}"#, "vmpl: an empty list"),
            (r#"{"signing_key": []}"#, "signing_key: an empty list"),
            (r#"{"measurement": []}"#, "measurement: an empty list"),
            (r#"{"chip_id": []}"#, "chip_id: an empty list"),
            (r#"{"csp_id": []}"#, "csp_id: an empty list"),
            (r#"{"min_guest_svn": 5, "max_guest_svn": 3}"#, "min_guest_svn: 5 is above 3"),
            (r#"{"min_report_version": 6}"#, "min_report_version: 6"),
            (r#"{"max_report_version": 1}"#, "max_report_version: 1"),
            (r#"{"min_report_version": 4, "max_report_version": 3}"#, "min_report_version: 4 is above 3"),
            (r#"{"guest_policy": {"min_abi": "1.55", "max_abi": "1.54"}}"#, "guest_policy.min_abi: 1.55"),
            (
                r#"{"firmware": {"min_current": "1.55.2", "max_current": "1.55.1"}}"#,
                "firmware.min_current: 1.55.2",
            ),
            (
                r#"{"firmware": {"min_committed": "2.0.0", "max_committed": "1.55.1"}}"#,
                "firmware.min_committed: 2.0.0",
            ),
            (
                r#"{"tcb": {"genoa": {"reported": {"snp": 9}, "max_reported": {"snp": 8}}}}"#,
                "tcb.genoa.reported.snp: 9 is above 8, which is tcb.genoa.max_reported.snp",
            ),
            (
                r#"{"tcb": {"turin": {"launch": {"fmc": 2}, "max_launch": {"fmc": 1}}}}"#,
                "tcb.turin.launch.fmc: 2",
            ),
            (r#"{"tcb": {"milan": {"current": {"fmc": 1}}}}"#, "tcb.milan.current.fmc: the TCB version"),
            (r#"{"clock_tolerance_seconds": 86401}"#, "clock_tolerance_seconds: 86401 s"),
        ] {
            let error = serde_json::from_str::<Policy>(text).unwrap_err().to_string();
            assert!(error.starts_with(field), "{text}: {error}");
        }
    }

    #[test]
    fn bounds_that_meet_are_good() {
        for text in [
            r#"{"vmpl": [0, 1, 2, 3], "min_report_version": 5, "max_report_version": 5}"#,
            r#"{"min_report_version": 0, "max_report_version": 7, "clock_tolerance_seconds": 0}"#,
            r#"{"min_guest_svn": 3, "max_guest_svn": 3}"#,
            r#"{"tcb": {"genoa": {"reported": {"snp": 8}, "max_reported": {"snp": 8}}}}"#,
            r#"{"guest_policy": {"min_abi": "1.55", "max_abi": "1.55"}}"#,
        ] {
            serde_json::from_str::<Policy>(text).unwrap();
        }
    }
}

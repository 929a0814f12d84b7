//! What no policy can mean.

use alloc::string::ToString;

use super::Policy;
use crate::contradiction::{PolicyError, allows_something, clock_tolerance};
use crate::tdx::tcb::TcbStatus;

impl Policy {
    /// Refuses a policy that can accept nothing, with the field's name. Reading one does this by itself.
    pub fn check(&self) -> Result<(), PolicyError> {
        for (field, list) in [
            ("mrtd", &self.mrtd),
            ("rtmr0", &self.rtmr0),
            ("rtmr1", &self.rtmr1),
            ("rtmr2", &self.rtmr2),
            ("rtmr3", &self.rtmr3),
            ("mrseam", &self.mrseam),
            ("mrconfigid", &self.mrconfigid),
            ("mrowner", &self.mrowner),
            ("mrownerconfig", &self.mrownerconfig),
            ("mrservicetd", &self.mrservicetd),
        ] {
            allows_something(field, list.as_deref())?;
        }
        allows_something("xfam", self.xfam.as_deref())?;
        allows_something("platform_instance_id", self.platform_instance_id.as_deref())?;
        allows_something("fmspc", self.fmspc.as_deref())?;
        allows_something("tcb.accepted", Some(&self.tcb.accepted))?;
        if self.tcb.accepted.iter().all(|&status| status == TcbStatus::Revoked) {
            let why = "Revoked is never accepted, and nothing else is".to_string();
            return Err(PolicyError { field: "tcb.accepted".into(), why });
        }
        clock_tolerance(self.clock_tolerance_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_accept_nothing_is_refused_with_its_field() {
        for (text, field) in [
            (r#"{"mrtd": []}"#, "mrtd: an empty list"),
            (r#"{"rtmr3": []}"#, "rtmr3: an empty list"),
            (r#"{"mrservicetd": []}"#, "mrservicetd: an empty list"),
            (r#"{"xfam": []}"#, "xfam: an empty list"),
            (r#"{"fmspc": []}"#, "fmspc: an empty list"),
            (r#"{"platform_instance_id": []}"#, "platform_instance_id: an empty list"),
            (r#"{"tcb": {"accepted": []}}"#, "tcb.accepted: an empty list"),
            (r#"{"tcb": {"accepted": ["Revoked"]}}"#, "tcb.accepted: Revoked"),
            (r#"{"clock_tolerance_seconds": 90000}"#, "clock_tolerance_seconds: 90000 s"),
        ] {
            let error = serde_json::from_str::<Policy>(text).unwrap_err().to_string();
            assert!(error.starts_with(field), "{text}: {error}");
        }
        serde_json::from_str::<Policy>(r#"{"tcb": {"accepted": ["Revoked", "OutOfDate"]}}"#).unwrap();
    }
}

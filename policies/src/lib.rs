//! Release policies: Rego, evaluated by regorus, default deny.
//!
//! A policy decides whether an attested guest may have one resource. It never sees the secret, and it is asked only after the
//! evidence was found authentic. Whatever goes wrong in a policy (a missing rule, a type error, a value that is not `true`)
//! is a denial.

use serde::Serialize;

/// The default policy's text.
pub const DEFAULT: &str = include_str!("../release.rego");
/// The rule that is asked.
const RULE: &str = "data.policy.allow";

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not compile.
    #[error("the policy does not compile: {0}")]
    Compile(String),
    /// It does not define what is asked.
    #[error("the policy does not define {RULE}")]
    NoRule,
}

/// What a policy is asked.
#[derive(Clone, Debug, Serialize)]
pub struct Question<'a> {
    /// The resource.
    pub resource: Resource<'a>,
    /// "snp" or "tdx".
    pub tee: &'a str,
    /// "accepted" or "rejected".
    pub verdict: &'a str,
    /// MEASUREMENT or MRTD, lower-case hexadecimal.
    pub measurement: &'a str,
    /// Claims of the evidence.
    pub claims: &'a serde_json::Value,
    /// Reference values.
    pub reference: &'a [serde_json::Value],
}

/// A resource's name.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Resource<'a> {
    /// Repository.
    pub repository: &'a str,
    /// Type.
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// Tag.
    pub tag: &'a str,
}

/// A compiled policy.
#[derive(Clone)]
pub struct Policy {
    engine: regorus::Engine,
}

impl Policy {
    /// Compiles a policy.
    pub fn new(text: &str) -> Result<Self, Error> {
        let mut engine = regorus::Engine::new();
        engine.set_rego_v0(false);
        engine.add_policy("release.rego".into(), text.into()).map_err(|e| Error::Compile(e.to_string()))?;
        let policy = Self { engine };
        // Asked about nothing, a usable policy has an opinion: its default.
        match policy.clone().evaluate(serde_json::json!({})) {
            Some(_) => Ok(policy),
            None => Err(Error::NoRule),
        }
    }

    fn evaluate(&mut self, input: serde_json::Value) -> Option<regorus::Value> {
        self.engine.set_input(regorus::Value::from(input));
        self.engine.eval_rule(RULE.into()).ok().filter(|value| *value != regorus::Value::Undefined)
    }

    /// May this guest have this resource? Only the value `true` means yes.
    pub fn allows(&self, question: &Question<'_>) -> bool {
        let Ok(input) = serde_json::to_value(question) else { return false };
        // Each question has an engine of its own: nothing of one is left for the next.
        self.clone().evaluate(input) == Some(regorus::Value::Bool(true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ask(policy: &str, verdict: &str, measurement: &str, reference: &[serde_json::Value]) -> bool {
        let resource = Resource { repository: "demo", kind: "key", tag: "disk" };
        let claims = json!({ "vmpl": 0 });
        let question = Question { resource, tee: "snp", verdict, measurement, claims: &claims, reference };
        Policy::new(policy).unwrap().allows(&question)
    }

    #[test]
    fn the_default_releases_to_accepted_guests_with_a_known_measurement_only() {
        let known = [json!({ "tee": "snp", "measurement": "aa" })];
        assert!(ask(DEFAULT, "accepted", "aa", &known));
        assert!(!ask(DEFAULT, "rejected", "aa", &known), "evidence was rejected");
        assert!(!ask(DEFAULT, "accepted", "bb", &known), "another measurement");
        assert!(!ask(DEFAULT, "accepted", "aa", &[]), "no reference values");
        assert!(
            !ask(DEFAULT, "accepted", "aa", &[json!({ "tee": "tdx", "measurement": "aa" })]),
            "another TEE's"
        );
    }

    #[test]
    fn the_default_wants_all_registers_that_the_firmware_of_a_td_extends() {
        let resource = Resource { repository: "demo", kind: "key", tag: "disk" };
        let known = |rtmrs: serde_json::Value| [json!({ "tee": "tdx", "mrtd": "aa", "rtmrs": rtmrs })];
        let allowed = |reference: &[serde_json::Value], rtmr2: &str| {
            let claims = json!({ "rtmr0": "r0", "rtmr1": "r1", "rtmr2": rtmr2, "rtmr3": "theirs" });
            let (tee, verdict, measurement) = ("tdx", "accepted", "aa");
            let question = Question { resource, tee, verdict, measurement, claims: &claims, reference };
            Policy::new(DEFAULT).unwrap().allows(&question)
        };
        let all = json!(["r0", "r1", "r2", "r3"]);
        assert!(allowed(&known(all.clone()), "r2"));
        assert!(!allowed(&known(all), "other"), "another command line");
        assert!(!allowed(&known(json!([null, "r1", "r2", "r3"])), "r2"), "RTMR0 was not predicted");
        assert!(!allowed(&[json!({ "tee": "snp", "measurement": "aa" })], "r2"), "another TEE's");
    }

    #[test]
    fn only_true_is_yes() {
        for (value, expected) in
            [("true", true), ("false", false), ("\"true\"", false), ("1", false), ("[true]", false)]
        {
            assert_eq!(
                ask(&format!("package policy\nallow := {value}\n"), "accepted", "aa", &[]),
                expected,
                "{value}"
            );
        }
        let broken =
            "package policy\nimport rego.v1\ndefault allow := false\nallow if input.claims.vmpl.x.y == 1\n";
        assert!(!ask(broken, "accepted", "aa", &[]));
    }

    #[test]
    fn policies_without_the_rule_or_with_errors_are_refused() {
        assert!(matches!(Policy::new("package policy\nallow := "), Err(Error::Compile(_))));
        assert!(matches!(Policy::new("package other\nallow := true\n"), Err(Error::NoRule)));
    }
}

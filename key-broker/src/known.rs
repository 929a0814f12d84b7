//! How a guest differs from the reference values, for the log: a policy says no more than no.

use serde_json::Value;

/// What a guest of this kind is compared by: a name, where it is in the claims (nowhere: it is the measurement), and where in
/// a reference value.
type Register = (&'static str, Option<&'static str>, &'static str);

const SNP: &[Register] = &[("the measurement", None, "/measurement")];
const TDX: &[Register] = &[
    ("MRTD", None, "/mrtd"),
    ("RTMR0", Some("/rtmr0"), "/rtmrs/0"),
    ("RTMR1", Some("/rtmr1"), "/rtmrs/1"),
    ("RTMR2", Some("/rtmr2"), "/rtmrs/2"),
];

/// In a few words: whether the guest is one of the reference values, and else what is not theirs. Of the values of its kind
/// the nearest is what it is compared with.
pub fn describe(reference: &[Value], tee: &str, measurement: &str, claims: &Value) -> String {
    let registers = if tee == "tdx" { TDX } else { SNP };
    let of_kind: Vec<&Value> = reference.iter().filter(|value| value["tee"] == tee).collect();
    let different = |value: &&Value| -> Vec<&str> {
        let differs = |register: &&Register| {
            let (_, claim, expected) = register;
            let found = claim.map_or(Some(measurement), |at| claims.pointer(at).and_then(Value::as_str));
            found.is_none() || value.pointer(expected).and_then(Value::as_str) != found
        };
        registers.iter().filter(differs).map(|register| register.0).collect()
    };
    let count = of_kind.len();
    match of_kind.iter().map(different).min_by_key(Vec::len) {
        None => format!("there is no reference value for {tee}"),
        Some(names) if names.is_empty() => format!("one of {count} reference values for {tee}"),
        Some(names) => {
            format!(
                "not among {count} reference values for {tee}: of the nearest, {} differs",
                names.join(", ")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_differs_from_the_nearest_value_is_named() {
        let td = |mrtd: &str, rtmrs: [&str; 3]| json!({"tee": "tdx", "mrtd": mrtd, "rtmrs": rtmrs});
        let reference = [
            json!({"tee": "snp", "measurement": "aa"}),
            json!({"tee": "snp", "measurement": "bb"}),
            td("m", ["0", "1", "2"]),
            td("n", ["x", "y", "z"]),
        ];
        let claims = |rtmr1: &str| json!({"rtmr0": "0", "rtmr1": rtmr1, "rtmr2": "2"});
        for (tee, measurement, claims, words) in [
            ("snp", "bb", json!({}), "one of 2 reference values for snp"),
            (
                "snp",
                "cc",
                json!({}),
                "not among 2 reference values for snp: of the nearest, the measurement differs",
            ),
            ("tdx", "m", claims("1"), "one of 2 reference values for tdx"),
            ("tdx", "m", claims("9"), "not among 2 reference values for tdx: of the nearest, RTMR1 differs"),
            (
                "tdx",
                "o",
                claims("9"),
                "not among 2 reference values for tdx: of the nearest, MRTD, RTMR1 differs",
            ),
            (
                "tdx",
                "m",
                json!({}),
                "not among 2 reference values for tdx: of the nearest, RTMR0, RTMR1, RTMR2 differs",
            ),
        ] {
            assert_eq!(describe(&reference, tee, measurement, &claims), words);
        }
        assert_eq!(
            describe(&reference[..2], "tdx", "m", &claims("1")),
            "there is no reference value for tdx"
        );
    }
}

//! The protocol over real sockets, with evidence that a stand-in judges.

use super::*;

#[test]
fn a_file_has_one_reference_value_or_an_array_of_them() {
    let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    for (text, count) in [
        (r#"{"measurement": "ab"}"#, Some(1)),
        (r#"{"mrtd": "ab", "cpus": 1}"#, Some(1)),
        (r#"[{"measurement": "ab"}, {"measurement": "cd"}]"#, Some(2)),
        (r#"[{"measurement": "ab"}, {"cpus": 1}]"#, None),
        (r#"[[{"measurement": "ab"}]]"#, None),
        ("[]", None),
        (r#"{"measurement": 1}"#, None),
        ("1", None),
        ("", None),
    ] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(references(&path).map(|values| values.len()).ok(), count, "{text}");
    }
}

mod net;

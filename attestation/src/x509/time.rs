//! Points in time. There is no clock here: whoever verifies says what time it is.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use der::DateTime;

/// Seconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(pub u64);

/// Not a time of the form `2026-11-21T07:00:00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a time of the form 2026-11-21T07:00:00Z (RFC 3339, UTC)")]
pub struct ParseTimeError;

impl FromStr for UnixTime {
    type Err = ParseTimeError;

    fn from_str(text: &str) -> Result<Self, ParseTimeError> {
        let time: DateTime = text.parse().map_err(|_| ParseTimeError)?;
        Ok(Self(time.unix_duration().as_secs()))
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::from_unix_duration(Duration::from_secs(self.0)) {
            Ok(time) => fmt::Display::fmt(&time, f),
            Err(_) => write!(f, "{} s after 1970", self.0),
        }
    }
}

impl serde::Serialize for UnixTime {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for UnixTime {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <alloc::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl From<&x509_cert::time::Time> for UnixTime {
    fn from(time: &x509_cert::time::Time) -> Self {
        Self(time.to_unix_duration().as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_and_print_as_rfc_3339_in_utc() {
        for (text, seconds) in [("1970-01-01T00:00:00Z", 0), ("2026-11-21T07:03:03Z", 1_795_244_583)] {
            assert_eq!(text.parse(), Ok(UnixTime(seconds)));
            assert_eq!(UnixTime(seconds).to_string(), text);
        }
        for text in ["", "now", "2026-11-21", "2026-11-21T07:03:03+01:00", "2026-02-30T00:00:00Z"] {
            assert_eq!(text.parse::<UnixTime>(), Err(ParseTimeError), "{text}");
        }
        assert!(UnixTime(u64::MAX).to_string().starts_with("18446744073709551615 s"));
    }
}

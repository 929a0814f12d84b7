//! Points in time. There is no clock here: whoever verifies says what time it is.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use der::DateTime;

/// Seconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(pub u64);

/// Now, as somebody's clock says, and how far other clocks may be from it.
///
/// Whoever issues certificates, CRLs and collateral has a clock of its own: something issued "five seconds ahead" is not from
/// the future, and a limit that passed a moment ago is no attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// What the clock says.
    pub time: UnixTime,
    /// Seconds by which a clock may be ahead or behind.
    pub tolerance_seconds: u32,
}

impl Moment {
    /// [`Moment::tolerance_seconds`] where nobody says otherwise.
    pub const DEFAULT_TOLERANCE_SECONDS: u32 = 60;

    /// That time, by a clock that agrees with all others.
    pub const fn exactly(time: UnixTime) -> Self {
        Self { time, tolerance_seconds: 0 }
    }

    /// Whether it is too early for what holds from then on.
    pub fn is_before(self, from: UnixTime) -> bool {
        self.time.0.saturating_add(self.tolerance_seconds.into()) < from.0
    }

    /// Whether it is too late for what holds until then, that second included.
    pub fn is_after(self, to: UnixTime) -> bool {
        self.time.0.saturating_sub(self.tolerance_seconds.into()) > to.0
    }

    /// Whether it is too late for what is replaced at that second.
    pub fn has_reached(self, end: UnixTime) -> bool {
        self.time.0.saturating_sub(self.tolerance_seconds.into()) >= end.0
    }
}

impl From<UnixTime> for Moment {
    fn from(time: UnixTime) -> Self {
        Self { time, tolerance_seconds: Self::DEFAULT_TOLERANCE_SECONDS }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.time, f)
    }
}

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
    fn a_tolerance_widens_both_ends_by_as_many_seconds() {
        let at = |time, tolerance_seconds| Moment { time: UnixTime(time), tolerance_seconds };
        let (from, to) = (UnixTime(100), UnixTime(200));
        for (moment, before, after, reached) in [
            (at(99, 0), true, false, false),
            (at(100, 0), false, false, false),
            (at(200, 0), false, false, true),
            (at(201, 0), false, true, true),
            (at(89, 10), true, false, false),
            (at(90, 10), false, false, false),
            (at(209, 10), false, false, false),
            (at(210, 10), false, false, true),
            (at(211, 10), false, true, true),
            (at(0, u32::MAX), false, false, false),
            (at(u64::MAX, u32::MAX), false, true, true),
        ] {
            let seen = (moment.is_before(from), moment.is_after(to), moment.has_reached(to));
            assert_eq!(seen, (before, after, reached), "{moment:?}");
        }
        assert_eq!(Moment::from(UnixTime(7)).tolerance_seconds, Moment::DEFAULT_TOLERANCE_SECONDS);
    }

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

//! Policies that can accept nothing. They are refused when they are read: whoever wrote one meant something else.

use alloc::format;
use alloc::string::String;
use core::fmt;

/// Why a policy cannot be meant, and the field to look at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct PolicyError {
    /// The field, with its table: `tcb.milan.reported.snp`.
    pub field: String,
    /// What is wrong with its value.
    pub why: String,
}

pub(crate) type Check = Result<(), PolicyError>;

/// Clocks that differ by more are wrong.
const CLOCK_TOLERANCE_SECONDS_MAX: u32 = 86_400;

fn refuse(field: &str, why: String) -> Check {
    Err(PolicyError { field: field.into(), why })
}

/// A minimum that is above its maximum leaves no value.
pub(crate) fn ordered<T: PartialOrd + fmt::Display>(
    (min_field, min): (&str, Option<T>),
    (max_field, max): (&str, Option<T>),
) -> Check {
    match (min, max) {
        (Some(min), Some(max)) if min > max => {
            refuse(min_field, format!("{min} is above {max}, which is {max_field}: no value is between"))
        }
        _ => Ok(()),
    }
}

/// A value that evidence can have.
pub(crate) fn possible<T: PartialOrd + fmt::Display>(field: &str, value: T, min: T, max: T) -> Check {
    match value < min || value > max {
        true => refuse(field, format!("{value} is no value that evidence can have: {min} to {max}")),
        false => Ok(()),
    }
}

/// A list that allows something.
pub(crate) fn allows_something<T>(field: &str, list: Option<&[T]>) -> Check {
    match list {
        Some([]) => refuse(field, "an empty list allows nothing: leave it out to allow everything".into()),
        _ => Ok(()),
    }
}

/// A tolerance that still makes times mean something.
pub(crate) fn clock_tolerance(seconds: u32) -> Check {
    match seconds > CLOCK_TOLERANCE_SECONDS_MAX {
        true => refuse(
            "clock_tolerance_seconds",
            format!("{seconds} s are more than a day ({CLOCK_TOLERANCE_SECONDS_MAX} s)"),
        ),
        false => Ok(()),
    }
}

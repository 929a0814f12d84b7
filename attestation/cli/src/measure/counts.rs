//! How many processors a guest has: a number, or a range where one measurement for each number is wanted.

use std::ops::RangeInclusive;
use std::str::FromStr;

use anyhow::bail;

/// Numbers of processors; at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    least: u32,
    most: u32,
    is_range: bool,
}

impl Counts {
    const MOST: u32 = 4096;

    /// The number, for what is about one guest.
    pub fn only(self) -> anyhow::Result<u32> {
        match self.is_range {
            true => {
                bail!("this is about one guest: give --cpus one number, not {}-{}", self.least, self.most)
            }
            false => Ok(self.most),
        }
    }

    /// The biggest number.
    pub fn most(self) -> u32 {
        self.most
    }

    /// All numbers, smallest first.
    pub fn all(self) -> RangeInclusive<u32> {
        self.least..=self.most
    }

    /// Whether a range was given, be it one of a single number.
    pub fn is_range(self) -> bool {
        self.is_range
    }
}

impl FromStr for Counts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().filter(|number| (1..=Self::MOST).contains(number));
        let (least, most) = text.split_once('-').unwrap_or((text, text));
        match (number(least), number(most)) {
            (Some(least), Some(most)) if least <= most => {
                Ok(Self { least, most, is_range: text.contains('-') })
            }
            _ => Err(format!("expected a number from 1 to {}, or a range such as 1-64", Self::MOST)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_a_number_or_a_range() {
        for (text, least, most, is_range) in
            [("1", 1, 1, false), ("4096", 4096, 4096, false), ("1-64", 1, 64, true), ("2-2", 2, 2, true)]
        {
            let counts: Counts = text.parse().unwrap();
            assert_eq!(counts, Counts { least, most, is_range }, "{text}");
            assert_eq!(counts.only().is_err(), is_range, "{text}");
        }
        for text in ["", "0", "4097", "-1", "1-", "0-4", "4-2", "1-5000", "1-2-3", "a"] {
            assert!(text.parse::<Counts>().is_err(), "{text}");
        }
    }
}

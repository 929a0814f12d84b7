//! Tiny guests: a few instructions each, observed through exits, registers and memory.

mod code;
mod guests;
mod machine;

use serde::{Deserialize, Serialize};

/// What a client saw of one guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The guest's name.
    pub guest: String,
    /// Exits, in order, and whatever the guest's check wrote down.
    pub events: Vec<String>,
}

/// Runs every guest.
pub fn run_all() -> Vec<Observed> {
    guests::ALL
        .iter()
        .map(|(name, run)| {
            let events = run().unwrap_or_else(|error| vec![format!("failed: {error}")]);
            Observed { guest: (*name).to_owned(), events }
        })
        .collect()
}

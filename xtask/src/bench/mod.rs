//! `cargo xtask bench [NAME]`: figures beside those of a peer that runs in the same minute on the same machine.

mod attestation;
mod boot;

use anyhow::{Result, bail};
use serde::Serialize;

/// What `bench` takes.
#[derive(clap::Args)]
#[group(id = "bench")]
pub struct Options {
    /// Which benchmark; all of them without a name.
    name: Option<String>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// One figure. `ratio` is ours by the peer's: for times, below 1 is faster.
#[derive(Serialize)]
struct Figure {
    bench: &'static str,
    figure: String,
    value: f64,
    unit: &'static str,
    peer: Option<&'static str>,
    peer_value: Option<f64>,
    ratio: Option<f64>,
}

impl Figure {
    fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
            return Ok(());
        }
        let peer = match (self.peer, self.peer_value, self.ratio) {
            (Some(peer), Some(value), Some(ratio)) => {
                format!("   {peer}: {value:.2} {}   ratio {ratio:.2}", self.unit)
            }
            _ => String::new(),
        };
        println!("{} {}: {:.2} {}{peer}", self.bench, self.figure, self.value, self.unit);
        Ok(())
    }
}

type Bench = fn() -> Result<Vec<Figure>>;

const BENCHES: &[(&str, Bench)] = &[("attestation", attestation::run), ("boot", boot::run)];

/// Runs one benchmark, or all.
pub fn run(options: &Options) -> Result<()> {
    let chosen: Vec<_> = BENCHES
        .iter()
        .filter(|(name, _)| options.name.as_deref().is_none_or(|wanted| wanted == *name))
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = BENCHES.iter().map(|(name, _)| *name).collect();
        bail!("there is no such benchmark; there are: {}", names.join(", "));
    }
    for (_, bench) in chosen {
        bench()?.iter().try_for_each(|figure| figure.print(options.json))?;
    }
    Ok(())
}

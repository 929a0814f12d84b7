//! `schema`: the formats, for other people's tools.

use clap::ValueEnum;

use crate::output;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Document {
    /// What `verify snp --policy` reads
    Policy,
    /// What `verify --json` prints as claims
    Claims,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Of what
    document: Document,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let schema = match args.document {
        Document::Policy => cloister_attestation::schema::policy(),
        Document::Claims => cloister_attestation::schema::claims(),
    };
    output::print(&schema, true)
}

//! `schema`: the formats, for other people's tools.

use clap::ValueEnum;
use cloister_attestation::schema;

use crate::output;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Document {
    /// What `verify --policy` reads
    Policy,
    /// What `verify --json` prints as claims, of either TEE
    Claims,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Tee {
    Snp,
    Tdx,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Of what
    document: Document,
    /// For which TEE the policy is
    #[arg(long, value_enum, default_value = "snp")]
    tee: Tee,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let schema = match (args.document, args.tee) {
        (Document::Policy, Tee::Snp) => schema::snp_policy(),
        (Document::Policy, Tee::Tdx) => schema::tdx_policy(),
        (Document::Claims, _) => schema::claims(),
    };
    output::print(&schema, true)
}

//! `collateral`: what Intel's service answered, one file per question, as the one document that `verify tdx` and the broker read.

use std::path::PathBuf;

use cloister_attestation::tdx::PcsAnswers;

use crate::{output, read};

/// The answers of Intel's PCS, or of a PCCS, as they came. Chains are in headers: give the file with the headers (`curl -D`),
/// the header's value, or PEM.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Answer to /tdx/certification/v4/tcb
    #[arg(long, value_name = "FILE")]
    tcb_info: PathBuf,
    /// Its header TCB-Info-Issuer-Chain
    #[arg(long, value_name = "FILE")]
    tcb_info_chain: PathBuf,
    /// Answer to /tdx/certification/v4/qe/identity
    #[arg(long, value_name = "FILE")]
    qe_identity: PathBuf,
    /// Its header SGX-Enclave-Identity-Issuer-Chain; that of the TCB info if not given
    #[arg(long, value_name = "FILE")]
    qe_identity_chain: Option<PathBuf>,
    /// Answer to /sgx/certification/v4/pckcrl: DER, PEM or hexadecimal digits
    #[arg(long, value_name = "FILE")]
    pck_crl: PathBuf,
    /// Its header SGX-PCK-CRL-Issuer-Chain
    #[arg(long, value_name = "FILE")]
    pck_crl_chain: PathBuf,
    /// CRL of Intel's root: DER, PEM or hexadecimal digits
    #[arg(long, value_name = "FILE")]
    root_crl: PathBuf,
    /// Write the document here
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let answers = PcsAnswers {
        tcb_info: &read(&args.tcb_info)?,
        tcb_info_chain: &read(&args.tcb_info_chain)?,
        qe_identity: &read(&args.qe_identity)?,
        qe_identity_chain: &read(args.qe_identity_chain.as_ref().unwrap_or(&args.tcb_info_chain))?,
        pck_crl: &read(&args.pck_crl)?,
        pck_crl_chain: &read(&args.pck_crl_chain)?,
        root_crl: &read(&args.root_crl)?,
    };
    output::write_document(&args.output, &answers.document()?)
}

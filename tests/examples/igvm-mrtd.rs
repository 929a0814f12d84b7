//! MRTD of a TDVF image as the `igvm` crate computes it, for `cargo xtask test` to compare with ours: our launch plan
//! says which pages there are, their hash is none of ours.

use std::process::ExitCode;

use cloister_attestation::measure::Contents;
use cloister_attestation::measure::tdx::{LaunchPlan, PageCommand, Tdvf};
use igvm::IgvmDirectiveHeader;
use igvm::measurement::generate_tdx_measurement;
use igvm_defs::{IgvmPageDataFlags, IgvmPageDataType, PAGE_SIZE_4K};

const MASK: u32 = 1;

/// What an IGVM file would say for a page command, one directive a page.
fn directives(command: &PageCommand<'_>) -> impl Iterator<Item = IgvmDirectiveHeader> {
    let contents = match &command.contents {
        Contents::Bytes(bytes) => bytes.to_vec(),
        Contents::Zeros | Contents::Executor => Vec::new(),
    };
    let (gpa, len, measured) = (command.gpa.0, command.len, command.measured);
    (0..len).step_by(PAGE_SIZE_4K as usize).map(move |at| {
        let data = contents.iter().skip(at as usize).take(PAGE_SIZE_4K as usize).copied().collect();
        IgvmDirectiveHeader::PageData {
            gpa: gpa + at,
            compatibility_mask: MASK,
            flags: IgvmPageDataFlags::new().with_unmeasured(!measured),
            data_type: IgvmPageDataType::NORMAL,
            data,
        }
    })
}

fn mrtd(path: &str) -> Result<String, Box<dyn std::error::Error>> {
    let image = std::fs::read(path)?;
    let plan = LaunchPlan::new(&Tdvf::parse(&image)?)?;
    let directives: Vec<_> = plan.commands().iter().flat_map(directives).collect();
    Ok(hex::encode(generate_tdx_measurement(&directives, MASK)?))
}

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("igvm-mrtd: which image?");
        return ExitCode::from(2);
    };
    match mrtd(&path) {
        Ok(mrtd) => {
            println!("{mrtd}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("igvm-mrtd: {path}: {error}");
            ExitCode::from(2)
        }
    }
}

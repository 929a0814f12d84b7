//! MRTD of our own ROM: by a program of ours in another language, and by the `igvm` crate's MRTD calculation.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::demo::{Parts, Tee};
use crate::{command, paths};

/// In which order a KVM adds and measures the pages of a range. `igvm` knows the first, Linux's.
pub const ORDERS: [&str; 2] = ["page-by-page", "two-pass"];

/// Compares `cloister-attest measure tdx` with the witnesses.
pub fn check(parts: &Parts) -> Result<()> {
    let igvm = igvm(parts)?;
    let mut values = Vec::new();
    for order in ORDERS {
        let ours = ours(parts, order)?;
        let mut witnesses = vec![("the calculation apart", mrtd_apart(&parts.rom, order)?)];
        if order == ORDERS[0] {
            witnesses.push(("igvm", igvm.clone()));
        }
        for (name, theirs) in &witnesses {
            ensure!(ours == *theirs, "{order}: cloister-attest says {ours}, {name} {theirs}");
        }
        let names: Vec<_> = witnesses.iter().map(|witness| witness.0).collect();
        println!("MRTD {order}: {ours}, as {} says", names.join(" and "));
        values.push(ours);
    }
    ensure!(values[0] != values[1], "the order of pages does not show in MRTD: nothing was compared");
    Ok(())
}

fn ours(parts: &Parts, order: &str) -> Result<String> {
    let mut measure = parts.tool("cloister-attest");
    Tee::Tdx.measure(&mut measure, 1);
    let text = command::output(measure.args(["--page-order", order, "--firmware"]).arg(&parts.rom))?;
    Tee::Tdx.measurement(&serde_json::from_str::<Value>(&text).context("cloister-attest measure --json")?)
}

/// MRTD of an image by the program of ours in another language.
pub fn mrtd_apart(image: &Path, order: &str) -> Result<String> {
    let program = paths::workspace().join("xtask/src/measurement/mrtd.py");
    let said = command::output(Command::new("python3").arg(program).arg(image).arg(order))?;
    Ok(said.trim().to_owned())
}

fn igvm(parts: &Parts) -> Result<String> {
    let mut example = command::cargo();
    example.args(["run", "--release", "--quiet", "-p", "cloister-tests", "--example", "igvm-mrtd"]);
    Ok(command::output(example.arg("--").arg(&parts.rom))?.trim().to_owned())
}

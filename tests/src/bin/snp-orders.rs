//! Prints every SNP launch command that was answered otherwise than by Linux and the secure processor, and how a second
//! processor ended.

use cloister_tests::{snp_orders, snp_startup};

fn main() {
    let seen = snp_orders::differences().and_then(|differences| Ok((differences, snp_startup::startup()?)));
    match seen {
        Ok((differences, end)) => {
            differences.iter().for_each(|line| println!("{line}"));
            println!("second processor: {end:#x}");
        }
        Err(error) => {
            eprintln!("snp-orders: {error}");
            std::process::exit(2);
        }
    }
}

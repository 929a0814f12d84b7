//! Prints every SNP launch command that was answered otherwise than by Linux and the secure processor.

fn main() {
    match cloister_tests::snp_orders::differences() {
        Ok(differences) => differences.iter().for_each(|line| println!("{line}")),
        Err(error) => {
            eprintln!("snp-orders: {error}");
            std::process::exit(2);
        }
    }
}

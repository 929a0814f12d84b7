//! Prints what `/dev/sev` says, as JSON.

fn main() {
    let seen = cloister_tests::snp_platform::look()
        .and_then(|seen| serde_json::to_string(&seen).map_err(|e| e.to_string()));
    match seen {
        Ok(seen) => println!("{seen}"),
        Err(error) => {
            eprintln!("snp-platform: {error}");
            std::process::exit(2);
        }
    }
}

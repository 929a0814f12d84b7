//! Runs every tiny TD on whatever answers `/dev/kvm` and prints one JSON object per scenario.

fn main() {
    for result in cloister_tests::td::run_all() {
        match serde_json::to_string(&result) {
            Ok(line) => println!("{line}"),
            Err(error) => {
                eprintln!("td-guests: {error}");
                std::process::exit(2);
            }
        }
    }
}

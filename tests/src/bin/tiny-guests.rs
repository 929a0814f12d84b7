//! Runs every tiny guest on whatever answers `/dev/kvm` and prints one JSON object per guest.

fn main() {
    for result in cloister_tests::tiny::run_all() {
        match serde_json::to_string(&result) {
            Ok(line) => println!("{line}"),
            Err(error) => {
                eprintln!("tiny-guests: {error}");
                std::process::exit(2);
            }
        }
    }
}

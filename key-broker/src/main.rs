//! `cloister-broker`, the program.

fn main() -> std::process::ExitCode {
    cloister_broker::main()
}
